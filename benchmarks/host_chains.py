"""The chains of other programs, by the page of ``docs/hosts`` that they are on."""

from collections.abc import Callable

import torch

import d3pm_fast as d3
from d3pm_fast.transitions import Transition

EPS = 1e-3  # of the log-linear schedule
EXPONENT = 2.0  # of kappa
P_UNIFORM = 0.2
REDRAWN = 1e-6
MASKED_UNIFORM, WITH_MASK, SUBSTITUTION = "masked_uniform", "with_mask", "substitution"

_continuous = d3.schedules.continuous


def masked_uniform(num_classes: int) -> Transition:
    """Return VQ-Diffusion's chain of 100 steps."""
    kept = torch.linspace(0.99999, 0.000009, 100, dtype=torch.float64)

    def betas(log_products: torch.Tensor) -> torch.Tensor:
        return -torch.expm1(torch.diff(log_products, prepend=torch.zeros(1)))

    redrawn = betas(-torch.log1p(REDRAWN / kept))
    masked = betas(torch.log1p(-kept.flip(0)))
    return d3.transitions.masked_uniform(num_classes, redrawn, masked, mask_id=num_classes - 1)


def with_mask(num_classes: int) -> Transition:
    """Return such a chain as matrices."""
    betas = d3.schedules.jsd(100)
    visible = d3.transitions.uniform(num_classes - 1, 0.1 * betas)
    return d3.transitions.with_mask(visible, betas, data_has_mask=True)


def substitution(num_classes: int) -> Transition:
    """Return EvoDiff's chain: amino acids by BLOSUM62, and letters without a score."""
    scores = torch.zeros(num_classes, num_classes, dtype=torch.float64)
    n = min(num_classes, len(d3.transitions.BLOSUM62))
    scores[:n, :n] = torch.as_tensor(d3.transitions.BLOSUM62)[:n, :n]
    return d3.transitions.substitution(scores, d3.schedules.linear(500, 1e-4, 0.1))


def _marginals(num_classes: int) -> Transition:
    law = torch.arange(num_classes, 0, -1).double().square()
    betas = d3.schedules.cosine_squared(501, max_beta=0.9999)
    return d3.transitions.marginal(num_classes, betas, law / law.sum())


def _absorbing(schedule: object) -> Callable[[int], Transition]:
    return lambda k: d3.transitions.absorbing(k, schedule, mask_id=k - 1)


def _uniform(schedule: object) -> Callable[[int], Transition]:
    return lambda k: d3.transitions.uniform(k, schedule)


HOST_CHAINS: dict[str, Callable[[int], Transition]] = {
    "mdlm": _absorbing(_continuous.log_linear(EPS)),
    "sedd": _absorbing(_continuous.log_linear(EPS)),
    "udlm": _uniform(_continuous.log_linear(EPS)),
    "cloneofsimo": _uniform(d3.schedules.cosine(1000, max_beta=0.999)),
    "llada": _absorbing(_continuous.linear()),
    "md4": _absorbing(_continuous.linear()),
    "genmd4": _absorbing(_continuous.linear()),
    "gidd": lambda k: d3.transitions.gidd(k, k - 1, P_UNIFORM),
    "multinomial": _uniform(d3.schedules.cosine_multinomial(1000)),
    "maskgit": _absorbing(_continuous.cosine_maskgit()),
    "google": _uniform(d3.schedules.cosine(1000, max_beta=0.999)),
    "evodiff": substitution,
    "vq_diffusion": masked_uniform,
    "digress": _marginals,
    "flow_matching": _uniform(_continuous.from_alpha(lambda t: (1 - t) ** EXPONENT)),
    MASKED_UNIFORM: masked_uniform,
    SUBSTITUTION: substitution,
    WITH_MASK: with_mask,
}
