"""Drawing x_{t-1} from p(x_{t-1} | x_t), the logits given."""

from torch import Tensor

import d3pm_fast as d3

from .bench_q_sample import TOLERANCE, apart
from .cases import FEW, OURS, Inputs, Operation, Provider, Run, as_pytest, cases
from .providers import closed_form, compiled, copy

CASES = cases("p_sample", (8, 1024, 256))
CASES += cases("p_sample", (64, 1024, 256), families=("uniform", FEW))


def ours(i: Inputs) -> Run:
    args = i.transition, i.logits, i.x_t, i.t
    return lambda: d3.functional.p_sample(*args, first_step="logits")


def gumbel_eager(i: Inputs) -> Run:
    draw = closed_form(i.transition).p_sample_gumbel
    return lambda: draw(i.logits, i.x_t, i.t)


def gumbel_compiled(i: Inputs) -> Run:
    draw = compiled(closed_form(i.transition).p_sample_gumbel)
    return lambda: draw(i.logits, i.x_t, i.t)


def multinomial_eager(i: Inputs) -> Run:
    draw = closed_form(i.transition).p_sample_multinomial
    return lambda: draw(i.logits, i.x_t, i.t)


def bytes_moved(i: Inputs) -> int:
    """Read a token, write a token, and read its logits; with a mask, if it may unmask.

    Of the masked tokens a share of ``(abar_{t-1} - abar_t) / (1 - abar_t)`` may.
    """
    row = i.case.num_classes * i.logits.itemsize
    rows = float(i.case.num_tokens)
    if i.transition.mask_id >= 0:
        to_mask, bar_keep = i.transition.step_table[i.t][:, [2, 3]].unbind(-1)
        share = to_mask * bar_keep / i.transition.product_table[i.t, 2]
        rows = float(((i.x_t == i.transition.mask_id) * share[:, None]).sum())
    return 2 * i.x_t.nbytes + round(rows * row)


def distance(ours: Tensor, other: Tensor, i: Inputs) -> float:
    """Return how far two draws are apart, as in ``bench_q_sample``."""
    return apart(ours, other, i.x_t, i.case.num_classes)


P_SAMPLE = Operation(
    "p_sample",
    CASES,
    {
        OURS: Provider(ours),
        "Gumbel eager": Provider(gumbel_eager, TOLERANCE),
        "Gumbel compiled": Provider(gumbel_compiled, TOLERANCE),
        "multinomial eager": Provider(multinomial_eager, TOLERANCE),
        "copy": Provider(lambda i: copy(bytes_moved(i))),
    },
    bytes_moved,
    distance,
)
test_p_sample = as_pytest(P_SAMPLE)
