"""Entries of a step's tables: probabilities, or, below float64's range, their logarithms.

A logarithm is negative, which no probability is; 0 stands for what is impossible.
"""

import triton
import triton.language as tl


@triton.jit
def value_of(entry):
    """Return the probability, 0 below float64's range."""
    return tl.maximum(entry, 0.0)


@triton.jit
def log_of(entry):
    """Return the probability's logarithm."""
    return tl.where(entry < 0.0, entry, tl.log(entry))
