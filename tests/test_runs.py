"""Which run a token is of: by a product of 32 bits, of more tokens by a division."""

import pytest
import torch

from d3pm_fast._environment import INTERPRET

pytest.importorskip("triton")
import triton
import triton.language as tl
from d3pm_fast.kernels.common.runs import MOST, run_of, runs_of

pytestmark = pytest.mark.skipif(not INTERPRET, reason="runs in the interpreter")


@triton.jit
def runs_of_tokens(tokens, out, runs, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, run_of(tl.load(tokens + at), runs))


def found(tokens, runs):
    out = torch.empty_like(tokens)
    runs_of_tokens[(1,)](tokens, out, runs, len(tokens))
    return out


LENGTHS = [1, 2, 3, 5, 7, 11, 64, 641, 1000, 1024, 65535, 65537, 6700417, 1 << 30, MOST - 1, MOST]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_run_is_that_of_a_division(length):
    """At the ends of runs, where a quotient that is a little too large shows."""
    first, last = torch.randint(MOST // length, (64,)), MOST // length
    first[:4] = torch.tensor([0, 0, last - 1, last])
    ends = torch.cat([first * length, (first * length - 1).clamp(min=0)]).clamp(max=MOST - 1)
    runs = runs_of(MOST // length * length, MOST // length)
    assert (runs.length, runs.factor < 1 << 32) == (length, True)
    assert torch.equal(found(ends, runs), ends // length)


def test_more_tokens_are_divided_in_64_bits():
    tokens = torch.tensor([0, 6, 7, 1 << 31, 7 << 31, (7 << 31) - 1, 1 << 40, 7 << 40])
    runs = runs_of(8 << 40, (8 << 40) // 7)
    assert runs.factor is None
    assert torch.equal(found(tokens, runs), tokens // 7)


def test_no_tokens_have_runs_of_one():
    assert runs_of(0, 0).length == 1
