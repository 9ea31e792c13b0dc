"""The code of the pages runs, and says what they say it does; the pages build without a warning."""

import doctest
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import d3pm_fast as d3

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [page for page in sorted(ROOT.glob("docs/*.md")) if BLOCK.search(page.read_text())]
MODULES = [
    "d3pm_fast.choices",
    "d3pm_fast.elbo",
    "d3pm_fast.evaluation",
    "d3pm_fast.functional",
    "d3pm_fast.reference",
    "d3pm_fast.sampling",
    "d3pm_fast.schedules",
    "d3pm_fast.timesteps",
    "d3pm_fast.transitions",
    "d3pm_fast.unmasking",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, request):
    """A block in ``{code-block} python`` is only shown; one with prompts is compared."""
    torch.set_num_threads(1)
    text, names = page.read_text(), {"__name__": page.stem}
    if 'impl="cpu"' in text:
        request.getfixturevalue("cpu")
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        if block[1].startswith(">>>"):
            case = doctest.DocTestParser().get_doctest(block[1], {}, page.name, str(page), line)
            case.globs = names  # not a copy: later blocks see what this one names
            runner.run(case, clear_globs=False)
        else:
            exec(compile("\n" * line + block[1], str(page), "exec"), names)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path):
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("Sphinx is not installed")
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", tmp_path]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(build, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    pages = "".join(page.read_text() for page in (tmp_path / "api").glob("*.html"))
    for module in MODULES:
        names = importlib.import_module(module).__all__
        missing = [name for name in names if f'id="{module}.{name}"' not in pages]
        assert not missing, f"{module}: {missing}"


def public_functions():
    """Every function that users call, and the methods of D3PM, by name."""
    modules = d3, *(importlib.import_module(name) for name in MODULES if "reference" not in name)
    found = {f"{m.__name__}.{name}": getattr(m, name) for m in modules for name in m.__all__}
    found |= {f"D3PM.{name}": method for name, method in vars(d3.D3PM).items() if name[0] != "_"}
    state = "D3PM.set_extra_state"  # called by PyTorch
    return {k: f for k, f in found.items() if inspect.isfunction(f) and k != state}


FUNCTIONS = public_functions()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_describes_every_argument_where_it_stands(name):
    """What an editor shows of a call must not send the reader to another function for it."""
    function = FUNCTIONS[name]
    arguments = [name for name in inspect.signature(function).parameters if name != "self"]
    text = inspect.getdoc(function)
    described = text.partition("\nArgs:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^    (\w+): ", described, re.MULTILINE) == arguments
    assert not re.search(r"\bas (in|for) :", described)


def test_every_environment_variable_has_its_line():
    folders = [ROOT / name for name in ("d3pm_fast", "kernels", "csrc")]
    files = [ROOT / "setup.py", *(file for folder in folders for file in folder.rglob("*"))]
    texts = [file.read_text() for file in files if file.suffix in (".py", ".cpp", ".h")]
    found = {name for text in texts for name in re.findall(r"D3PM_FAST_[A-Z_]+", text)}
    page = (ROOT / "docs/install.md").read_text()
    assert found
    assert not {name for name in found if f"`{name}`" not in page}
