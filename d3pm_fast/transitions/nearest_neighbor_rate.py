"""The rate matrix of the graph of the nearest neighbours."""

from torch import Tensor

from .._arrays import ArrayLike
from ..chains.neighbors import neighbor_rates, with_diagonal

__all__ = ["nearest_neighbor_rate"]


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
    return with_diagonal(neighbor_rates(embeddings, num_neighbors, mask_rate))
