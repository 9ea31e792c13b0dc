"""What docs/design.md says of the code is so."""

import ast
import re
import sys
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import torch

import d3pm_fast as d3
from d3pm_fast import _compiled

ROOT = Path(__file__).parents[1]
DESIGN = (ROOT / "docs" / "design.md").read_text()
PACKAGE = str(Path(d3.__file__).parent)


def tables_below(heading):
    """The tables below a heading: the cells of each row, the first row left out."""
    _, text = DESIGN.split(f"\n## {heading}\n")
    tables = re.findall(r"(?:^\|.*\n)+", text.split("\n## ")[0], re.MULTILINE)
    return [
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
        for table in tables
    ]


def flat(values):
    for value in values:
        yield from flat(value) if isinstance(value, tuple) else (value,)


def test_the_way_of_a_call(cpu, monkeypatch):
    """Each function of the package on the stack when the compiled one is called, and what for."""
    kernel, ways, given = _compiled.cpu.loss, [], []

    def spy(*args):
        way, frame = [], sys._getframe(1)
        while frame is not None:
            code, frame = frame.f_code, frame.f_back
            if code.co_filename.startswith(PACKAGE):
                way.append((code.co_qualname, str(Path(code.co_filename).relative_to(PACKAGE))))
        ways.append(way[::-1])
        given.extend(flat(args))
        return kernel(*args)

    monkeypatch.setattr(_compiled.cpu, "loss", spy)
    diffusion = d3.D3PM(d3.transitions.uniform(5, d3.schedules.cosine(9)))
    x0, x_t, t = torch.tensor([[0, 1]]), torch.tensor([[1, 1]]), torch.tensor([4])
    logits = torch.randn(1, 2, 5, requires_grad=True)
    diffusion.loss(logits, x0, x_t, t)
    (way,) = ways
    *told, last = tables_below("From a call to a kernel")[0]
    assert [file.strip("`") for _, file, *_ in told] == [file for _, file in way]
    for (call, *_), (function, _) in zip(told, way, strict=True):
        assert function.split(".")[-1] == call.strip("`").split(".")[-1]
    assert last[0] == "`cpu.loss`"
    assert len(way) + 1 <= 8
    assert {logits.data_ptr(), t.data_ptr()} <= set(given)  # no copy is made on the way


def sources():
    """The name and the file of every module of the package, the kernels of Triton among them."""
    for folder in ("d3pm_fast", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            within = ("d3pm_fast",) * (folder == "kernels") + parts
            yield ".".join(within).removesuffix(".__init__"), path


MODULES = dict(sources())


def imported(name, source, is_package):
    """The modules of the package that a source imports, also in functions and for types alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        if isinstance(node, ast.ImportFrom):
            up = name.split(".")[: len(name.split(".")) - node.level + is_package]
            base = (
                ".".join([*up, node.module] if node.module else up) if node.level else node.module
            )
            for alias in node.names:
                yield from [m for m in (f"{base}.{alias.name}", base) if m in MODULES][:1]


def test_imports_are_read_as_python_reads_them():
    source = """
from . import loss, schedules
from ..chains.structures import RANK_ONE
from .dense import loss as dense
import torch, d3pm_fast.records
def f():
    from ..kernels.common.scale import scale_
"""
    found = set(imported("d3pm_fast.ops.shaped", source, is_package=False))
    assert found == {
        "d3pm_fast.ops.loss", "d3pm_fast.ops", "d3pm_fast.chains.structures",
        "d3pm_fast.ops.dense.loss", "d3pm_fast.records", "d3pm_fast.kernels.common.scale",
    }  # fmt: skip
    assert list(imported("d3pm_fast.ops", "from .loss import loss", is_package=True)) == [
        "d3pm_fast.ops.loss"
    ]


def row_of(module, rows):
    """The number of the row that names a module's file, or else its folder."""
    path = MODULES[module].relative_to(ROOT)
    name = str(path if path.parts[0] == "kernels" else path.relative_to("d3pm_fast"))
    found = {n for n, row in enumerate(rows) if any(fnmatch(name, p) for p in row)}
    (only,) = {n for n in found if name in rows[n]} or found
    return only


def test_imports_go_down_the_table_of_the_layout():
    names = [re.findall(r"`([^`]+)`", cells[0]) for cells in tables_below("Layout")[0]]
    rows = [[f"{name}*" if name.endswith("/") else name for name in row] for row in names]
    graph = {
        name: set(imported(name, path.read_text(), path.name == "__init__.py")) - {name}
        for name, path in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # raises for a circle
    for whole in ("d3pm_fast", "d3pm_fast.kernels"):  # it exports, or is empty
        graph.pop(whole)
    row = {module: row_of(module, rows) for module in graph}
    assert set(row.values()) == set(range(len(rows)))
    up = [(a, b) for a in graph for b in graph[a] & graph.keys() if row[b] < row[a]]
    assert not up


def test_an_operation_is_named_where_the_page_says():
    """Its own files, and all others that have its name in their code."""
    new, edited = (
        {path for cells in table for path in re.findall(r"`([^`]+)`", cells[0])}
        for table in tables_below("Add an operation")[:2]
    )
    own, naming = set(), set()
    for folder in ("d3pm_fast", "kernels", "csrc"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in {".py", ".h", ".cpp", ".cu"}:
                name = path.relative_to(ROOT).as_posix()
                if path.stem in {"gap", "gap_target"}:
                    own.add(name)
                elif re.search(r"\b[gG]ap\b", path.read_text(encoding="utf-8")):
                    naming.add(name)
    assert own == new
    assert naming == edited
