"""Chains that replace a class by a neighbour in an embedding space."""

import torch
from torch import Tensor

from .._checks import (
    ArrayLike,
    as_float64,
    check_choice,
    check_count,
    check_finite,
    check_number,
    check_probabilities,
)
from ..choices import GRAPH_METHODS, GraphMethod
from .dense import DenseTransition
from .jump_laws import Coins
from .matrices import keep_or_move_chain
from .products import MEMORY_BUDGET
from .rates import check_rising, rate_chain
from .sparse import SparseTransition, sparse_rate_chain

__all__ = ["nearest_neighbor", "nearest_neighbor_rate", "nearest_neighbors"]

_CHUNK = 1 << 22  # distances at a time: 32 MiB of float64
_SINKHORN_ROUNDS = 10_000
_MOST_CLASSES = 1024  # above it, products with the rate are cheaper than matrices of K x K


def nearest_neighbor(
    embeddings: ArrayLike,
    num_neighbors: int,
    schedule: ArrayLike,
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
        rates = _rates(embeddings, num_neighbors, mask_rate)
        mask_id = -1 if mask_rate is None else len(rates) - 1
        times = check_rising("times", schedule)
        if _takes_more(memory_budget, len(rates), len(times)):
            law = _limit(rates, mask_id)
            return sparse_rate_chain("nearest_neighbor", rates, times, law, mask_id)
        rate = _with_diagonal(rates)
        return rate_chain("nearest_neighbor", rate, times, None, mask_id, memory_budget)
    if mask_rate is not None:
        raise ValueError('mask_rate needs method="exponential"; with_mask adds a mask to any chain')
    betas = check_probabilities("schedule", schedule)
    move = _doubly_stochastic(_adjacency(embeddings, num_neighbors))
    if _takes_more(memory_budget, len(move), len(betas)):
        return SparseTransition("nearest_neighbor", move, Coins(betas), _limit(move))
    return keep_or_move_chain("nearest_neighbor", move.to_dense(), betas, memory_budget)


def nearest_neighbor_rate(
    embeddings: ArrayLike, num_neighbors: int, mask_rate: float | None = None
) -> Tensor:
    """Return the rate matrix R of the graph of the k nearest neighbours.

    Off the diagonal it is ``(G + G^T) / (2k)``, ``G[i, j] = 1`` where i is among the k nearest
    neighbours of j; rows sum to 0. Source: D3PM, appendix A.2.4, eq. 9; the mask's rate is added
    as in appendix A.2.6.

    Args:
        embeddings: ``(K, D)``, finite.
        num_neighbors: k, 1..K-1.
        mask_rate: if given, class K is a mask which every class turns into at this rate, above 0;
            all the neighbours together come to a rate of 1 on average.

    Returns:
        float64 ``(K, K)``, symmetric; or ``(K + 1, K + 1)`` with the mask last.

    Raises:
        ValueError: not a finite matrix, k outside 1..K-1, or a mask rate that is not above 0.
    """
    return _with_diagonal(_rates(embeddings, num_neighbors, mask_rate))


def nearest_neighbors(embeddings: ArrayLike, num_neighbors: int) -> Tensor:
    """Return the k nearest neighbours of each class, itself left out.

    Of classes at the same distance the one of the lower index is the nearer.

    Args:
        embeddings: ``(K, D)``, finite.
        num_neighbors: k, 1..K-1.

    Returns:
        int64 ``(K, k)``, each row in rising order of the index.

    Raises:
        ValueError: not a finite matrix, or k outside 1..K-1.
    """
    points = as_float64("embeddings", embeddings)
    if points.ndim != 2 or len(points) < 2 or points.shape[1] < 1:
        raise ValueError(
            f"embeddings must have shape (K, D) with K >= 2, got {tuple(points.shape)}"
        )
    check_finite("embeddings", points)
    num_neighbors = check_count("num_neighbors", num_neighbors)
    if num_neighbors >= len(points):
        raise ValueError(
            f"num_neighbors must be at most K - 1 = {len(points) - 1}, got {num_neighbors}"
        )
    chunks = torch.arange(len(points), device="cpu").split(max(1, _CHUNK // len(points)))
    return torch.cat([_nearest(points, rows, num_neighbors) for rows in chunks])


def _takes_more(memory_budget: int, num_classes: int, num_steps: int) -> bool:
    """Return whether matrices are dearer than products with a sparse one.

    Counted are ``Qbar_t``, the running sums of its rows, and the float32 tables of a step.
    """
    return num_classes > _MOST_CLASSES or 26 * num_steps * num_classes**2 > memory_budget


def _nearest(points: Tensor, rows: Tensor, num_neighbors: int) -> Tensor:
    # Matrix products would round away which of two distances is the smaller.
    distances = torch.cdist(
        points[rows], points, compute_mode="donot_use_mm_for_euclid_dist"
    ).scatter_(1, rows[:, None], float("inf"))
    last = distances.kthvalue(num_neighbors, dim=1, keepdim=True).values
    nearer, as_near = distances < last, distances == last
    room = num_neighbors - nearer.sum(1, keepdim=True)
    chosen = nearer | (as_near & (as_near.cumsum(1) <= room))
    return chosen.nonzero()[:, 1].view(len(rows), num_neighbors)


def _adjacency(embeddings: ArrayLike, num_neighbors: int) -> Tensor:
    """Return ``(G + G^T) / (2k)``, sparse."""
    neighbors = nearest_neighbors(embeddings, num_neighbors)
    size, count = neighbors.shape
    classes = torch.arange(size, device="cpu")
    one_way = torch.stack([classes.repeat_interleave(count), neighbors.flatten()])
    index = torch.cat([one_way, one_way.flip(0)], dim=1)
    weights = torch.full((index.shape[1],), 0.5 / count, dtype=torch.float64, device="cpu")
    return _sparse(index, weights, size)


def _rates(embeddings: ArrayLike, num_neighbors: int, mask_rate: float | None) -> Tensor:
    """Return the rate matrix off its diagonal, sparse."""
    rates = _adjacency(embeddings, num_neighbors)
    if mask_rate is None:
        return rates
    if check_number("mask_rate", mask_rate) <= 0:
        raise ValueError(f"mask_rate must be above 0, got {mask_rate}")
    size = len(rates)
    classes = torch.arange(size, device="cpu")
    index = torch.cat([rates.indices(), torch.stack([classes, classes.new_full((size,), size)])], 1)
    masking = rates.values().new_full((size,), mask_rate)
    return _sparse(index, torch.cat([rates.values(), masking]), size + 1)


def _sparse(index: Tensor, values: Tensor, size: int) -> Tensor:
    shape = size, size
    return torch.sparse_coo_tensor(
        index, values, shape, check_invariants=True, device="cpu"
    ).coalesce()


def _with_diagonal(rates: Tensor) -> Tensor:
    rate = rates.to_dense()
    return rate - torch.diag(rate.sum(1))


def _limit(rates: Tensor, mask_id: int = -1) -> Tensor:
    """Return the law that the chain tends to; the graph must be connected."""
    size = len(rates)
    if mask_id >= 0:
        limit = torch.zeros(size, dtype=torch.float64, device="cpu")
        limit[mask_id] = 1.0
        return limit
    least = torch.arange(size, device="cpu")  # the least class that leads to each
    before = least[:0]
    while not torch.equal(least, before):
        before = least
        least = least.scatter_reduce(0, rates.indices()[0], least[rates.indices()[1]], "amin")
        least = least[least]
    count = len(least.unique())
    if count > 1:
        raise ValueError(
            f"the graph of the nearest neighbours has {count} parts that never lead to each "
            "other, so its limit depends on x_0: take more neighbours"
        )
    return torch.full((size,), 1 / size, dtype=torch.float64, device="cpu")


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
            return _sparse(matrix.indices(), x[i] * matrix.values() * x[j], len(matrix))
        x = x / sums.sqrt()
    raise ValueError(
        "the graph of the nearest neighbours cannot be made doubly stochastic: take more "
        'neighbours, or method="exponential"'
    )
