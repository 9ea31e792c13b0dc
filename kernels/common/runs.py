"""Which run a token is of: runs of tokens, all of one length, share a step or a seed."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

MOST = (1 << 31) - 1  # tokens, that are divided in 32 bits


class Runs(NamedTuple):
    """The length of runs, and how to divide by it without a division.

    With ``2^(shift - 1) < length <= 2^shift`` and ``factor = ceil(2^(31 + shift) / length)``, the
    integer part of ``n factor / 2^(31 + shift)`` is that of ``n / length`` for any n below 2^31: it
    is more than that by less than ``n / 2^31 / length``.
    """

    length: Any
    factor: Any  # None where there are more tokens
    shift: Any


def runs_of(num_tokens: int, num_runs: int) -> Runs:
    """Return what divides tokens by the length of their runs."""
    length = max(num_tokens // max(num_runs, 1), 1)
    if num_tokens > MOST:
        return Runs(length, None, None)
    shift = (length - 1).bit_length()
    return Runs(length, -(-(1 << (31 + shift)) // length), shift)


@triton.jit
def run_of(tokens, runs):
    """Return the run of each token; any number for one beyond the last."""
    if runs.factor is None:
        return tokens // runs.length
    else:
        factor = tl.full([1], runs.factor, tl.int64).to(tl.uint32)
        return (tl.umulhi((2 * tokens).to(tl.uint32), factor) >> runs.shift).to(tl.int32)
