"""Drawing x_t from q(x_t | x_0)."""

from torch import Tensor

import d3pm_fast as d3

from .cases import OURS, Inputs, Operation, Provider, Run, as_pytest, cases
from .providers import closed_form, compiled, copy, dense

CASES = cases("q_sample", (64, 1024, 256))
TOLERANCE = 4.0


def ours(i: Inputs) -> Run:
    return lambda: d3.functional.q_sample(i.transition, i.x0, i.t)


def gumbel_dense(i: Inputs) -> Run | None:
    tables = dense(i.transition)
    return None if tables is None else lambda: tables.q_sample(i.x0, i.t)


def gumbel_eager(i: Inputs) -> Run:
    draw = closed_form(i.transition).q_sample_gumbel
    return lambda: draw(i.x0, i.t)


def gumbel_compiled(i: Inputs) -> Run:
    draw = compiled(closed_form(i.transition).q_sample_gumbel)
    return lambda: draw(i.x0, i.t)


def mixture_eager(i: Inputs) -> Run:
    draw = closed_form(i.transition).q_sample_mixture
    return lambda: draw(i.x0, i.t)


def bytes_moved(i: Inputs) -> int:
    """Read a token and write a token."""
    return 2 * i.x0.nbytes


def distance(ours: Tensor, other: Tensor, i: Inputs) -> float:
    """Return how far two draws are apart, in about standard deviations of the difference.

    Compared are the mean class and how many tokens are still x_0.
    """
    return apart(ours, other, i.x0, i.case.num_classes)


def apart(ours: Tensor, other: Tensor, before: Tensor, num_classes: int) -> float:
    kept = (ours == before).double().mean() - (other == before).double().mean()
    level = (ours.double().mean() - other.double().mean()) / num_classes
    return float(max(abs(kept), abs(level))) * ours.numel() ** 0.5 / 0.7


Q_SAMPLE = Operation(
    "q_sample",
    CASES,
    {
        OURS: Provider(ours),
        "Gumbel, dense tables": Provider(gumbel_dense, TOLERANCE),
        "Gumbel eager": Provider(gumbel_eager, TOLERANCE),
        "Gumbel compiled": Provider(gumbel_compiled, TOLERANCE),
        "mixture eager": Provider(mixture_eager, TOLERANCE),
        "copy": Provider(lambda i: copy(bytes_moved(i))),
    },
    bytes_moved,
    distance,
)
test_q_sample = as_pytest(Q_SAMPLE)
