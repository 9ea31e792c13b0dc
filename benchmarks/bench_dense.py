"""The loss of a dense chain beside the two bare products that it is made of; float32."""

import torch
from torch import Tensor

from .bench_loss import dense_compiled, dense_eager, distance, ours
from .cases import GAUSSIAN, GAUSSIAN_FULL, OURS, Inputs, Operation, Provider, Run, as_pytest, cases
from .host_chains import SUBSTITUTION, WITH_MASK
from .providers import copy

CASES = cases("dense loss", (8, 1024, 256), families=(GAUSSIAN_FULL, GAUSSIAN))
CASES += cases("dense loss", (2, 256, 1025), families=[WITH_MASK])  # VQ-Diffusion's, as matrices
CASES += cases("dense loss", (8, 256, 28), families=[SUBSTITUTION])  # EvoDiff's


def two_products(i: Inputs) -> Run:
    """``s Qbar`` and ``r Qbar^T`` on matrices that are ready, and nothing else.

    Without entries that make subnormal products: with them it takes ten times as long.
    """
    q_bar = torch.stack([i.transition.q_bar_matrix(t - 1).float() for t in i.t.tolist()])
    q_bar = q_bar.where(q_bar > 1e-18, 0)

    def run() -> tuple[Tensor, Tensor]:
        return torch.bmm(i.logits, q_bar), torch.bmm(i.logits, q_bar.mT)

    return run


def bytes_moved(i: Inputs) -> int:
    """Read the logits and write the gradient."""
    return 2 * i.logits.nbytes


DENSE = Operation(
    "dense loss",
    CASES,
    {
        OURS: Provider(ours),
        "two products": Provider(two_products),
        "dense eager": Provider(dense_eager, tolerance=0.25),
        "dense compiled": Provider(dense_compiled, tolerance=0.25),
        "copy": Provider(lambda i: copy(bytes_moved(i))),
    },
    bytes_moved,
    distance,
)
test_dense_loss = as_pytest(DENSE)
