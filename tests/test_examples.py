"""The examples run, and what they learn is nearer to the truth than to ignorance."""

import importlib
from pathlib import Path

import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("name", "ignorant"),  # the distance of independent tokens to the law
    [("checkerboard", 0.5), ("markov_chain", 0.54)],
)
def test_a_quick_run_comes_near_its_law(name, ignorant, tmp_path, monkeypatch, capsys):
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module(name)
    model, truth = example.main(quick=True, out=tmp_path / "plot.png")
    assert truth < model < 0.6 * ignorant
    assert f"{model:.4f}" in capsys.readouterr().out
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.width > 1000


def test_total_variation_is_half_the_sum_of_differences(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    comparison = importlib.import_module("comparison")
    pairs = torch.tensor([[0, 1], [0, 1], [1, 0], [1, 1]])
    table = comparison.frequencies(pairs, 2)
    assert table.tolist() == [[0, 0.5], [0.25, 0.25]]
    uniform = torch.full((2, 2), 0.25, dtype=torch.float64)
    assert comparison.total_variation(table, uniform) == 0.25
