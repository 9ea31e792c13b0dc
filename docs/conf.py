"""Sphinx's settings; `make docs` builds the pages into docs/_build/html."""

from importlib.metadata import version as installed_version
from pathlib import Path

project = "d3pm_fast"
author = "The d3pm_fast authors"
copyright = "the d3pm_fast authors"
release = version = installed_version("d3pm_fast")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"d3pm_fast {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sourcelink = False

nb_execution_mode = "off"  # the notebooks come with what they showed
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
math_eqref_format = "({number})"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True

nitpicky = True
# The inventories of other projects are not fetched: a build needs no network.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|collections|numpy|pathlib)(\..*)?"),
    # Classes of the library that signatures of the reference and of a chain's insides name.
    (r"py:class", r"d3pm_fast\.(reference\.step|transitions\.[a-z_]+)\.[A-Z][A-Za-z]+"),
]


def setup(app):
    """Bring the notebooks to where Sphinx reads pages."""
    app.connect("config-inited", copy_notebooks)


def copy_notebooks(app, config):
    """Copy the notebooks; their links to other folders change with the place."""
    copies = Path(app.srcdir, "notebooks")
    copies.mkdir(exist_ok=True)
    for notebook in Path(app.srcdir, "../notebooks").glob("*.ipynb"):
        text = notebook.read_text().replace("](../", "](../../").replace("](../../docs/", "](../")
        (copies / notebook.name).write_text(text)
