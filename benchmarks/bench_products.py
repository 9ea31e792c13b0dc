"""Making all products of a Gaussian chain of T = 1000: time and bytes."""

import torch
from torch import Tensor

import d3pm_fast as d3

from .cases import (
    GAUSSIAN,
    GAUSSIAN_STEPS,
    OURS,
    Inputs,
    Operation,
    Provider,
    Run,
    as_pytest,
    cases,
)

CASES = cases("products", (1, 1, 256), families=(GAUSSIAN,))


def ours(i: Inputs) -> Run:
    """In float64, every step made from its formula."""

    def run() -> Tensor:
        betas = d3.schedules.linear(GAUSSIAN_STEPS)
        chain = d3.transitions.discretized_gaussian(i.case.num_classes, betas)
        return chain.q_bar_matrix(GAUSSIAN_STEPS)

    return run


def float32_sequential(i: Inputs) -> Run:
    """As most public code does it; the steps are ready."""
    chain = i.transition
    steps = torch.stack([chain.q_matrix(t + 1).float() for t in range(chain.num_steps)])

    def run() -> Tensor:
        products = torch.empty_like(steps)
        products[0] = steps[0]
        for t in range(1, len(steps)):
            torch.mm(products[t - 1], steps[t], out=products[t])
        return products[-1]

    return run


def bytes_moved(i: Inputs) -> int:
    """Write the table in float64."""
    return 8 * i.transition.num_steps * i.case.num_classes**2


def distance(ours: Tensor, other: Tensor, _: Inputs) -> float:
    """Return the largest relative difference of an entry of the last product."""
    return float(((ours - other) / ours).abs().max())


PRODUCTS = Operation(
    "products",
    CASES,
    {
        OURS: Provider(ours),
        "float32 sequential": Provider(float32_sequential, tolerance=1e-3),
    },
    bytes_moved,
    distance,
)
test_products = as_pytest(PRODUCTS)
