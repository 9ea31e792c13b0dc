"""The graph of the nearest neighbours in an embedding space, as a sparse matrix."""

import torch
from torch import Tensor

from .._arrays import ArrayLike, as_float64, check_finite
from .._checks import check_count, check_number

__all__ = [
    "limit_of_graph",
    "nearest_neighbors",
    "neighbor_matrix",
    "neighbor_rates",
    "sparse_matrix",
    "with_diagonal",
]

_CHUNK = 1 << 22  # distances at a time: 32 MiB of float64


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


def neighbor_matrix(embeddings: ArrayLike, num_neighbors: int) -> Tensor:
    """Return ``(G + G^T) / (2k)``, sparse."""
    neighbors = nearest_neighbors(embeddings, num_neighbors)
    size, count = neighbors.shape
    classes = torch.arange(size, device="cpu")
    one_way = torch.stack([classes.repeat_interleave(count), neighbors.flatten()])
    index = torch.cat([one_way, one_way.flip(0)], dim=1)
    weights = torch.full((index.shape[1],), 0.5 / count, dtype=torch.float64, device="cpu")
    return sparse_matrix(index, weights, size)


def neighbor_rates(embeddings: ArrayLike, num_neighbors: int, mask_rate: float | None) -> Tensor:
    """Return the rate matrix off its diagonal, sparse."""
    rates = neighbor_matrix(embeddings, num_neighbors)
    if mask_rate is None:
        return rates
    if check_number("mask_rate", mask_rate) <= 0:
        raise ValueError(f"mask_rate must be above 0, got {mask_rate}")
    size = len(rates)
    classes = torch.arange(size, device="cpu")
    index = torch.cat([rates.indices(), torch.stack([classes, classes.new_full((size,), size)])], 1)
    masking = rates.values().new_full((size,), mask_rate)
    return sparse_matrix(index, torch.cat([rates.values(), masking]), size + 1)


def sparse_matrix(index: Tensor, values: Tensor, size: int) -> Tensor:
    """Return the sparse matrix ``(size, size)``, coalesced, on the CPU."""
    shape = size, size
    return torch.sparse_coo_tensor(
        index, values, shape, check_invariants=True, device="cpu"
    ).coalesce()


def limit_of_graph(rates: Tensor, mask_id: int = -1) -> Tensor:
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


def with_diagonal(rates: Tensor) -> Tensor:
    """Return the rate matrix, ``(K, K)``, whose rows sum to 0."""
    rate = rates.to_dense()
    return rate - torch.diag(rate.sum(1))
