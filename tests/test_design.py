"""What docs/design.md says of the code is so."""

import re
import sys
from pathlib import Path

import torch

import d3pm_fast as d3
from d3pm_fast import _compiled

ROOT = Path(__file__).parents[1]
DESIGN = (ROOT / "docs" / "design.md").read_text()
PACKAGE = str(Path(d3.__file__).parent)


def rows_below(heading):
    """The cells of the first table below a heading, its own heading left out."""
    _, text = DESIGN.split(f"\n## {heading}\n")
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE).group()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


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
    *told, last = rows_below("From a call to a kernel")
    assert [file.strip("`") for _, file, *_ in told] == [file for _, file in way]
    for (call, *_), (function, _) in zip(told, way, strict=True):
        assert function.split(".")[-1] == call.strip("`").split(".")[-1]
    assert last[0] == "`cpu.loss`"
    assert len(way) + 1 <= 8
    assert {logits.data_ptr(), t.data_ptr()} <= set(given)  # no copy is made on the way
