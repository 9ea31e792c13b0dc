"""The chain that replaces a class by a neighbour in an embedding space."""

import torch
from torch import Tensor

from .._arrays import ArrayLike, check_probabilities
from .._checks import check_choice
from ..chains import MEMORY_BUDGET, DenseTransition, Schedule, SparseTransition
from ..chains.exponentials import check_rising, rate_chain
from ..chains.jump_laws import Coins
from ..chains.keep_or_move import keep_or_move_chain
from ..chains.neighbors import (
    limit_of_graph,
    neighbor_matrix,
    neighbor_rates,
    sparse_matrix,
    with_diagonal,
)
from ..chains.sparse import sparse_rate_chain
from ..choices import GRAPH_METHODS, GraphMethod

__all__ = ["nearest_neighbor"]

_SINKHORN_ROUNDS = 10_000
_MOST_CLASSES = 1024  # above it, products with the rate are cheaper than matrices of K x K


def nearest_neighbor(
    embeddings: ArrayLike,
    num_neighbors: int,
    schedule: ArrayLike | Schedule,
    *,
    method: GraphMethod = "exponential",
    mask_rate: float | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> DenseTransition | SparseTransition:
    """Return the chain on the graph of the k nearest neighbours.

    ``method="exponential"`` is the paper's, ``Qbar_t = exp(tau_t R)`` with the rate of
    :func:`nearest_neighbor_rate`. ``method="sinkhorn"`` is that of its published code:
    ``Q_t = (1 - beta_t) I + beta_t S``, where S is the symmetric adjacency matrix scaled until it
    is doubly stochastic. The limit of both is uniform, or the mask where there is one; a rate
    never masks all at any time, so that the bound's prior term is then infinite.

    Above 1024 classes, and where the matrices of all steps would not fit ``memory_budget``, the
    chain holds no matrix of ``K x K`` numbers: it is applied to rows by products with the sparse
    matrix, as many as there may be moves up to t.

    Source: D3PM, appendix A.2.4.

    Args:
        embeddings: ``(K, D)``, finite; Euclidean distances count, so rows of length 1 compare by
            cosine, as in the published code.
        num_neighbors: k, 1..K-1.
        schedule: ``(T,)``: for the exponential the times ``tau_t``, at least 0 and never falling
            (see :func:`d3pm_fast.schedules.mutual_information_times`), for Sinkhorn the betas.
            The exponential also takes a schedule of :mod:`d3pm_fast.schedules.continuous`, see
            :func:`from_rate`, and then holds matrices whatever K is.
        method: ``"exponential"`` or ``"sinkhorn"``.
        mask_rate: for the exponential: adds a mask as class K, which every class turns into at
            this rate, above 0.
        memory_budget: bytes that products of the chain may take, where there are any.

    Raises:
        ValueError: not a finite matrix, k outside 1..K-1, a schedule that is none, a graph that
            is not connected (take more neighbours), or one that no scaling makes doubly
            stochastic.
    """
    check_choice("method", method, GRAPH_METHODS)
    if method == "exponential":
        rates = neighbor_rates(embeddings, num_neighbors, mask_rate)
        mask_id = -1 if mask_rate is None else len(rates) - 1
        if not isinstance(schedule, Schedule):
            schedule = check_rising("times", schedule)
            if _takes_more(memory_budget, len(rates), len(schedule)):
                law = limit_of_graph(rates, mask_id)
                return sparse_rate_chain("nearest_neighbor", rates, schedule, law, mask_id)
        rate = with_diagonal(rates)
        return rate_chain("nearest_neighbor", rate, schedule, None, mask_id, memory_budget)
    if isinstance(schedule, Schedule):
        raise ValueError('continuous time needs method="exponential"')
    if mask_rate is not None:
        raise ValueError('mask_rate needs method="exponential"; with_mask adds a mask to any chain')
    betas = check_probabilities("schedule", schedule)
    move = _doubly_stochastic(neighbor_matrix(embeddings, num_neighbors))
    if _takes_more(memory_budget, len(move), len(betas)):
        return SparseTransition("nearest_neighbor", move, Coins(betas), limit_of_graph(move))
    return keep_or_move_chain("nearest_neighbor", move.to_dense(), betas, memory_budget)


def _takes_more(memory_budget: int, num_classes: int, num_steps: int) -> bool:
    """Return whether matrices are dearer than products with a sparse one.

    Counted are ``Qbar_t``, the running sums of its rows, and the float32 tables of a step.
    """
    return num_classes > _MOST_CLASSES or 26 * num_steps * num_classes**2 > memory_budget


def _doubly_stochastic(matrix: Tensor) -> Tensor:
    """Return ``x_i matrix_ij x_j`` whose rows all sum to 1, for a sparse symmetric matrix.

    Source: Sinkhorn and Knopp 1967; the square root, which keeps the matrix symmetric on the way,
    is Knight and Ruiz's (2013).
    """
    x = torch.ones(len(matrix), dtype=torch.float64, device="cpu")
    for _ in range(_SINKHORN_ROUNDS):
        sums = x * (matrix @ x)
        if float((sums - 1).abs().max()) < 1e-14:
            i, j = matrix.indices()
            return sparse_matrix(matrix.indices(), x[i] * matrix.values() * x[j], len(matrix))
        x = x / sums.sqrt()
    raise ValueError(
        "the graph of the nearest neighbours cannot be made doubly stochastic: take more "
        'neighbours, or method="exponential"'
    )
