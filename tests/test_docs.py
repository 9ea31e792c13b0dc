"""The pages: their code runs, their links work, GitHub can show them, and the site builds."""

import csv
import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import pages

import d3pm_fast as d3
from benchmarks import chart, host_table
from benchmarks.bench_hosts import HOSTS

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/hosts/*.md"))]
PAGES = [page for page in PAGES if pages.RUN.search(page.read_text())]
# What people open on GitHub: no page that a build of the site has made.
COPIES = {ROOT / "docs/changelog.md", ROOT / "docs/contributing.md"}
MARKDOWN = [
    *ROOT.glob("*.md"),
    *sorted({*ROOT.glob("docs/*.md")} - COPIES),
    ROOT / "docs/api/index.md",
    *sorted(ROOT.glob("docs/hosts/*.md")),
]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
MODULES = [
    "d3pm_fast.choices",
    "d3pm_fast.elbo",
    "d3pm_fast.evaluation",
    "d3pm_fast.functional",
    "d3pm_fast.reference",
    "d3pm_fast.sampling",
    "d3pm_fast.schedules",
    "d3pm_fast.schedules.continuous",
    "d3pm_fast.timesteps",
    "d3pm_fast.transitions",
    "d3pm_fast.samplers",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, request):
    torch.set_num_threads(1)
    if 'impl="cpu"' in page.read_text():
        request.getfixturevalue("cpu")
    _, failed = pages.run(page)
    assert failed == 0


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path):
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("Sphinx is not installed")
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", tmp_path]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(build, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "_static/tex-svg-full.js").exists()
    assert "cdn" not in (tmp_path / "mathematics.html").read_text()
    html = "".join(page.read_text() for page in (tmp_path / "api").glob("*.html"))
    for module in MODULES:
        names = importlib.import_module(module).__all__
        missing = [name for name in names if f'id="{module}.{name}"' not in html]
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


def each_file(files):
    return pytest.mark.parametrize("file", files, ids=lambda f: str(f.relative_to(ROOT)))


@each_file(MARKDOWN)
def test_a_page_has_no_markup_that_only_the_site_knows(file):
    text = file.read_text()
    directive, role, label = r"^\s*[`~:]{3,}\s*\{.*", r"\{[\w:-]+\}`.*", r"^\([\w-]+\)=$|\$\$.*"
    assert not re.findall(rf"{directive}|{role}|{label}", text, re.MULTILINE)


@each_file(MARKDOWN)
def test_mathematics_between_dollars_is_left_alone_by_markdown(file):
    """GitHub reads a page as Markdown first: an escape or an emphasis would change the TeX."""
    inline = re.compile(r"\$[^$]+\$")
    for token in tokens_of(file.read_text()):
        if token.type == "inline":
            source = re.sub(r"(`+).*?\1", "", token.content, flags=re.DOTALL)
            breaks = {"softbreak": "\n", "hardbreak": "\n"}
            shown = "".join(
                breaks.get(child.type, child.content)
                for child in token.children
                if child.type in ("text", *breaks)
            )
            assert inline.findall(shown) == inline.findall(source)
            outside = inline.sub("", source)
            assert "$" not in outside
            for formula in inline.finditer(source):
                before, after = source[: formula.start()][-1:], source[formula.end() :][:1]
                assert not before or before in " \n(", formula
                assert not after or after in " \n.,:;)'", formula


@each_file([*MARKDOWN, *NOTEBOOKS])
def test_every_relative_link_leads_to_a_file_and_a_heading(file):
    for link in links_of(markdown_of(file)):
        path, _, anchor = link.partition("#")
        if ":" not in path:
            target = (file.parent / path).resolve() if path else file
            assert target.exists(), link
            assert target.is_relative_to(ROOT), link
            assert not anchor or anchor in anchors_of(markdown_of(target)), link


@each_file(NOTEBOOKS)
def test_a_notebook_is_one_entry_of_the_contents(file):
    titles = [token for token in tokens_of(markdown_of(file)) if token.type == "heading_open"]
    assert [title.tag for title in titles].count("h1") == 1
    assert titles[0].tag == "h1"


def test_a_link_to_nowhere_is_found():
    """The functions behind the test above see links and headings."""
    text = "# A `b`, c\n\n[x](y.md#z) ![p](q.png) `[no](code.md)`\n"
    assert links_of(text) == ["y.md#z", "q.png"]
    assert anchors_of(text) == {"a-b-c"}


def test_the_tables_show_what_was_measured():
    page = (ROOT / "docs/performance.md").read_text()
    order = "ours", "cross_entropy", "closed form compiled", "closed form eager", "dense eager"
    times = chart.read()
    for case in dict.fromkeys(case for case, _ in times):
        cells = [times.get((case, name)) for name in (*order, "copy")]
        shown = " | ".join("-" if cell is None else f"{cell:.2f}" for cell in cells)
        assert f"| {case.removeprefix('loss ')} | {shown} |" in page
    page = (ROOT / "docs/numerics.md").read_text()
    with (ROOT / "benchmarks/results/epsilon.csv").open() as file:
        for row in csv.DictReader(file):
            exact, with_epsilon = float(row["exact"]), float(row["with_epsilon"])
            percent = f"{float(row['difference_percent']):+.4f} %"
            assert f"| {exact:.4f} | {with_epsilon:.4f} | {percent} |" in page


def test_pages_of_programs_have_the_numbers_of_the_benchmarks(tmp_path):
    rows = host_table.read()
    assert [(row.host, row.batch, row.positions, row.num_classes) for row in rows] == [
        (case.family, case.batch, case.positions, case.num_classes) for case in HOSTS.cases
    ]
    pages = {page.name for page in host_table.PAGES.glob("*.md")} - {"index.md"}
    assert {host_table.page_of(row.host).name for row in rows} == pages
    for row in rows:
        assert host_table.sentence(row) in host_table.page_of(row.host).read_text()
    host_table.write(rows, tmp_path / "hosts.csv")
    assert (tmp_path / "hosts.csv").read_text() == host_table.TABLE.read_text()


def test_the_chart_shows_every_provider(tmp_path):
    times = chart.read()
    assert {provider for _, provider in times} == {*chart.STYLES, chart.UNIT}
    chart.write(times, tmp_path / "loss.csv")
    assert (tmp_path / "loss.csv").read_text() == chart.TABLE.read_text()
    chart.draw(times, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 10_000


def markdown_of(file):
    """Return a page, or the text cells of a notebook."""
    if file.suffix != ".ipynb":
        return file.read_text()
    cells = json.loads(file.read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def tokens_of(text):
    """Return what CommonMark with tables, which GitHub extends, sees in a text."""
    markdown_it = pytest.importorskip("markdown_it")
    return markdown_it.MarkdownIt("commonmark").enable("table").parse(text)


def links_of(text):
    children = [child for token in tokens_of(text) for child in token.children or []]
    found = [child.attrGet("href") or child.attrGet("src") for child in children]
    return [link for link in found if link]


def anchors_of(text):
    """Return the names that GitHub gives the headings."""
    tokens = tokens_of(text)
    titles = [
        "".join(child.content for child in title.children)
        for heading, title in zip(tokens, tokens[1:], strict=False)
        if heading.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
