"""Where a chain can go, and the law that it tends to."""

import torch
from torch import Tensor

from .logs import product_of_patterns

__all__ = ["closure", "stationary_law"]


def closure(matrix: Tensor) -> tuple[Tensor, int]:
    """Return which class leads to which, and in how many steps.

    Args:
        matrix: ``(K, K)``, transition probabilities or rates; only the signs off the diagonal
            are read.

    Returns:
        bool ``(K, K)``, True at ``[i, j]`` where j can be reached from i (i itself can); and a
        number of steps within which all that can be reached is, a power of two.
    """
    reached = (matrix > 0).fill_diagonal_(True)
    steps = 1
    while True:
        further = product_of_patterns(reached, reached)
        if torch.equal(further, reached):
            return reached, steps
        reached, steps = further, 2 * steps


def stationary_law(matrix: Tensor) -> Tensor:
    """Return the law that a chain keeps: ``pi P = pi``, or ``pi R = 0`` for rates.

    Classes that the chain leaves for good have probability 0. The others are solved by the
    elimination of Grassmann, Taksar and Heyman (1985), which never subtracts: every entry keeps
    its relative accuracy.

    Args:
        matrix: float64 ``(K, K)``, transition probabilities or rates; the diagonal is not read.

    Returns:
        float64 ``(K,)``, summing to 1; exactly uniform where the matrix is symmetric.

    Raises:
        ValueError: the classes fall into sets that never lead to each other, so that the limit
            depends on x_0.
    """
    reached, _ = closure(matrix)
    recurrent = (reached <= reached.T).all(dim=1).nonzero().flatten()
    among = reached[recurrent][:, recurrent]
    if not bool(among.all()):
        count = len(torch.unique(among, dim=0))
        raise ValueError(
            f"the chain has {count} sets of classes that it never leaves, so its limit depends "
            "on x_0: connect the classes, or name the stationary law"
        )
    law = matrix.new_zeros(len(matrix))
    law[recurrent] = _law_of_irreducible(matrix[recurrent][:, recurrent])
    return law


def _law_of_irreducible(matrix: Tensor) -> Tensor:
    size = len(matrix)
    if torch.equal(matrix, matrix.T):
        return matrix.new_full((size,), 1 / size)
    flow = matrix.clone()
    for last in range(size - 1, 0, -1):
        flow[:last, last] /= flow[last, :last].sum()
        flow[:last, :last].addr_(flow[:last, last], flow[last, :last])
    law = matrix.new_zeros(size)
    law[0] = 1.0
    for index in range(1, size):
        law[index] = law[:index] @ flow[:index, index]
    return law / law.sum()
