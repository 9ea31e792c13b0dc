"""Sphinx's settings; `make docs` builds the pages into docs/_build/html."""

import re
from importlib.metadata import distribution
from importlib.metadata import version as installed_version
from pathlib import Path

project = "d3pm_fast"
author = "The d3pm_fast authors"
copyright = "the d3pm_fast authors"
release = version = installed_version("d3pm_fast")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"d3pm_fast {release}"
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sourcelink = False

# One file that needs no other: the site draws its equations without a network.
mathjax = distribution("sphinx-mathjax-offline").locate_file(
    "sphinx-mathjax-offline/static/mathjax/tex-svg-full.js"
)
html_static_path = ["_static", str(mathjax)]
mathjax_path = mathjax.name

copybutton_prompt_is_regexp = True
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_exclude = ".linenos, .gp, .go"

nb_execution_mode = "off"  # the notebooks come with what they showed
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3

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
    (r"py:class", r"Tensor|d3pm_fast\.diffusion\.Diffusion|(d3pm_fast\.records\.)?AnyStep"),
    # Classes of the library that signatures of the reference and of a chain's insides name.
    (r"py:class", r"d3pm_fast\.(reference\.[a-z_]+|chains\.[a-z_]+)\.[A-Z][A-Za-z]+"),
]


# The pages are plain Markdown, which GitHub shows too. What only the site has is added here.
CONTENTS = {
    "index": {
        "Use": "install quickstart transitions samplers examples trainers large_vocabularies "
        "hosts/index command_line api/index",
        "Learn": "notebooks/quickstart notebooks/annotated_diffusion notebooks/annotated_training "
        "notebooks/continuous_time notebooks/elbo_ladder",
        "Understand": "mathematics numerics performance comparison",
        "Develop": "design contributing changelog",
    },
    "hosts/index": {
        "Programs": "mdlm udlm sedd cloneofsimo llada md4 flow_matching gidd multinomial maskgit "
        "google evodiff vq_diffusion digress",
    },
    "api/index": {
        "Modules": "d3pm choices functional schedules transitions timesteps sampling "
        "samplers elbo evaluation distributed products implementations reference",
    },
}
COPIES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def setup(app):
    """Connect what turns files of the repository into pages of the site."""
    app.connect("config-inited", copy_files)
    app.connect("source-read", adapt_page)


def copy_files(app, config):
    """Copy notebooks and files from outside of docs/ to where Sphinx reads pages."""
    docs = Path(app.srcdir)
    (docs / "notebooks").mkdir(exist_ok=True)
    for notebook in docs.parent.glob("notebooks/*.ipynb"):
        text = notebook.read_text().replace("](../", "](../../").replace("](../../docs/", "](../")
        (docs / "notebooks" / notebook.name).write_text(text)
    for name, copy in COPIES.items():
        text = (docs.parent / name).read_text()
        (docs / copy).write_text(text.replace("](docs/", "]("))


def adapt_page(app, page, source):
    """Let links to copied files and to modules go to their pages; add the tables of contents."""
    text = source[0].replace("](../notebooks/", "](notebooks/")
    for name, copy in COPIES.items():
        text = text.replace(f"](../{name}", f"]({copy}")
    text = re.sub(r"\]\(\.\./\.\./d3pm_fast/(?:ops/)?(\w+)(?:\.py)?\)", r"](\1.rst)", text)
    for caption, pages in CONTENTS.get(page, {}).items():
        entries = "\n".join(pages.split())
        text += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"
    source[0] = text
