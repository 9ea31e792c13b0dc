"""Sphinx's settings; `make docs` builds the pages into docs/_build/html."""

from importlib.metadata import version as installed_version

project = "d3pm_fast"
author = "The d3pm_fast authors"
copyright = "the d3pm_fast authors"
release = version = installed_version("d3pm_fast")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"d3pm_fast {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sourcelink = False

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
