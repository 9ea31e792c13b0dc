"""Matrices of probabilities as their logarithms, for entries that float64 has no numbers for."""

import torch
from torch import Tensor

__all__ = ["LEAST", "log_matmul", "product_of_patterns"]

# An entry of a product that is above it has lost nothing to terms below float64's range.
LEAST = 1e-280
_CHUNK = 1 << 21  # terms at a time: 16 MiB of float64


def log_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return ``log(exp(a) @ exp(b))`` of float64 matrices with entries of at most 0.

    Every entry keeps its digits, however small it is; impossible ones are -inf. One matrix
    product serves the entries in float64's range, and each of the others is summed by itself.
    """
    product = a.exp() @ b.exp()
    possible = product_of_patterns(a > -torch.inf, b > -torch.inf)
    result = product.log().where(possible, -torch.inf)
    columns = b.T.contiguous()
    small = (possible & (product < LEAST)).nonzero()
    for i, j in (part.unbind(1) for part in small.split(max(_CHUNK // len(b), 1))):
        result[i, j] = torch.logsumexp(a[i] + columns[j], dim=1)
    return result


def product_of_patterns(a: Tensor, b: Tensor) -> Tensor:
    """Return where the product of two matrices is not 0, of where each of them is not, bool."""
    return a.float() @ b.float() > 0
