"""Keeps Triton from making a number a token more than once.

A tile's rows and one-dimensional tensors are laid out differently among threads. Rather than move
numbers, Triton makes them anew in each layout, with all loads and all arithmetic that lead to them.
"""

import triton
import triton.language as tl


@triton.jit
def once(x):
    """Return a number a token as it is; sums over axes of one number are not made anew."""
    return tl.sum(tl.sum(x[:, None, None], axis=2), axis=1)


@triton.jit
def once_of(condition):
    """Return a truth value a token as it is."""
    return once(condition.to(tl.int32)) != 0
