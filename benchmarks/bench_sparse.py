"""One sampling step of a nearest-neighbour chain of 8192 classes beside one dense product."""

import torch
from torch import Tensor

import d3pm_fast as d3

from .bench_p_sample import distance
from .cases import NEIGHBORS, OURS, Inputs, Operation, Provider, Run, as_pytest, cases

CASES = cases("sparse p_sample", (1, 128, 8192), families=tuple(NEIGHBORS))


def ours(i: Inputs) -> Run:
    """The whole step: softmax, ``s Qbar_s``, posterior and draw."""
    generator = torch.Generator().manual_seed(0)

    def run() -> Tensor:
        return d3.functional.p_sample(i.transition, i.logits, i.x_t, i.t, generator=generator)

    return run


def dense_product(i: Inputs) -> Run:
    """``s Qbar_s`` on a matrix that is ready (random: products do not care), and nothing else."""
    k = i.case.num_classes
    matrix = torch.rand(k, k)

    def run() -> Tensor:
        return i.logits.view(-1, k) @ matrix

    return run


def bytes_moved(i: Inputs) -> int:
    """Read the logits."""
    return i.logits.nbytes


SPARSE = Operation(
    "sparse p_sample",
    CASES,
    {OURS: Provider(ours), "dense product": Provider(dense_product)},
    bytes_moved,
    distance,
)
test_sparse = as_pytest(SPARSE)
