"""The loss and its gradient: against enumeration, against 60 digits, and its options."""

import pytest
import torch
from helpers.chains import (
    FAMILIES,
    FIRST_STEP,
    REVERSE,
    every_pair,
    gradient_terms,
    likely_pairs,
    make_chain,
    true_loss,
)
from helpers.compare import assert_close, assert_gradient_close, check_gradient
from helpers.exact import exact_loss
from hypothesis import given
from hypothesis import strategies as st

from d3pm_fast import functional, schedules, transitions

# 2, 3, 5: less than any vector; 16: one AVX-512 vector of float32; 17: one more; 27: characters;
# 64: a few vectors; 255, 256, 257: bytes and their neighbours; 1000: not a multiple of 16;
# 4099: a prime beyond the 1024 classes summed at a time.
SIZES = [2, 3, 5, 16, 17, 27, 64, 255, 256, 257, 1000, 4099]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def loss_and_gradient(chain, logits, x0, x_t, t, impl, **options):
    """Token losses and the gradient of their sum: nothing is hidden by 1/N."""
    logits = logits.detach().clone().requires_grad_()
    loss = functional.loss(
        chain.transition, logits, x0, x_t, t, impl=impl, reduction="none", **options
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


def truth_by_time(chain, logits, x0, x_t, t, **options):
    """The float64 truth of rows at different times, and the gradient of its sum."""
    leaf = logits.detach().double().requires_grad_()
    losses = torch.zeros(len(t), dtype=torch.float64)
    for time in t.unique().tolist():
        rows = t == time
        losses = losses.masked_scatter(
            rows, true_loss(chain, leaf[rows], x0[rows], x_t[rows], time, **options)
        )
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient


def least_scale(impl):
    """The scale below which plain PyTorch, which subtracts logarithms, loses its digits."""
    return 1.0 if impl == "reference" else 0.0


def size_of_terms(chain, logits, x0, x_t, t, reverse="joint", first_step="logits", **_):
    """The kernels' gradient keeps its digits down to the size of its own terms."""
    floor = torch.zeros(len(t), dtype=torch.float64)
    for time in t.unique().tolist():
        n = t == time
        floor[n] = gradient_terms(chain, logits[n], x0[n], x_t[n], time, reverse, first_step)
    return floor


def all_pairs_at_edge_times(chain):
    parts = [(*every_pair(chain, t), t) for t in chain.edge_times()]
    x0, x_t = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    t = torch.cat([torch.full_like(part[0], part[2]) for part in parts])
    return x0, x_t, t


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair_agrees_with_explicit_matrices(impl, family, reverse, first_step, num_classes):
    chain = make_chain(family, num_classes)
    x0, x_t, t = all_pairs_at_edge_times(chain)
    logits = 2 * torch.randn(len(t), num_classes, dtype=torch.float64)
    options = {"reverse": reverse, "first_step": first_step}
    truth, true_gradient = truth_by_time(chain, logits, x0, x_t, t, **options)
    loss, gradient = loss_and_gradient(chain, logits, x0, x_t, t, impl, **options)
    assert_close(loss, truth, torch.float64, ulps=32, scale=truth.abs() + 1)
    check_gradient(gradient, true_gradient, torch.float64, ulps=64, floor=0.1)


@pytest.mark.parametrize("num_classes", SIZES)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", ["uniform", "absorbing_last", "marginal", "mask_and_uniform"])
def test_every_size_is_within_ulps_in_float32(impl, family, reverse, num_classes):
    _check_random_rows(impl, family, num_classes, torch.float32, reverse=reverse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [3, 16, 27, 257])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_dtype_is_within_ulps(impl, family, num_classes, dtype):
    _check_random_rows(impl, family, num_classes, dtype, first_step="posterior", ce_weight=0.01)


def _check_random_rows(impl, family, num_classes, dtype, **options):
    chain = make_chain(family, num_classes)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 6)
    logits = (2 * torch.randn(len(t), num_classes)).to(dtype)
    truth, true_gradient = truth_by_time(chain, logits, x0, x_t, t, **options)
    loss, gradient = loss_and_gradient(chain, logits, x0, x_t, t, impl, **options)
    # This truth is of float64, and so no better than plain PyTorch in float64.
    floor = least_scale("reference" if dtype == torch.float64 else impl)
    assert_close(loss, truth, dtype, ulps=24, scale=truth.abs() + floor)
    floor = size_of_terms(chain, logits, x0, x_t, t, **options).clamp(min=floor)
    check_gradient(gradient, true_gradient, dtype, ulps=24, floor=floor)


def hard_rows(num_classes, x0):
    """Logits for one ``x_0`` that break careless arithmetic, by name."""
    base = torch.randn(num_classes, generator=torch.Generator().manual_seed(1))
    other = (x0 + 1) % num_classes
    target = torch.zeros(num_classes)
    target[x0] = 1

    def put(index, value, row=None):
        row = (base if row is None else row).clone()
        row[index] = value
        return row

    return {
        "all equal": torch.zeros(num_classes),
        "all equal, far off": torch.full((num_classes,), 1e4),
        "p within 1e-6 of q": 14 * target,
        "p within 1e-12 of q": 28 * target + 0.1 * base,
        "sure and right": 1e4 * target,
        "sure and wrong": put(other, 1e4),
        "the truth at -1e4": put(x0, -1e4),
        "huge spread": base * 1e4,
        "one class forbidden": put(other, -torch.inf),
        "all but the truth forbidden": torch.full((num_classes,), -torch.inf).where(target == 0, 0.3),
    }


BETAS = {
    "ordinary": [0.1, 0.2, 0.3, 0.5],
    "tiny": [1e-8] * 4,
    "almost gone": [0.5, 1 - 1e-6, 0.1, 0.2],
    "gone": [0.3, 0.5, 1.0, 0.4],
    "to the end": [0.25, 1 / 3, 0.5, 1.0],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_hard_rows_agree_with_sixty_digits(impl, family, reverse, betas, dtype):
    num_classes = 5
    chain = make_chain(family, num_classes, BETAS[betas])
    rows = [(*row, t) for t in chain.edge_times() for row in zip(*every_pair(chain, t), strict=True)]
    x0, x_t, t = (torch.tensor([row[i] for row in rows]) for i in range(3))
    keep = torch.randperm(len(t), generator=torch.Generator().manual_seed(0))[:24]
    x0, x_t, t = x0[keep], x_t[keep], t[keep]
    cases = [hard_rows(num_classes, x) for x in x0.tolist()]
    names = list(cases[0])
    logits = torch.stack([cases[n][names[n % len(names)]] for n in range(len(t))]).to(dtype)
    truth, true_gradient, terms = exact_loss(chain, logits, x0, x_t, t, reverse)
    loss, gradient = loss_and_gradient(chain, logits, x0, x_t, t, impl, reverse=reverse)
    assert_close(loss, truth, dtype, ulps=24, scale=truth.abs() + least_scale(impl))
    floor = terms.clamp(min=least_scale(impl))
    assert_gradient_close(gradient, true_gradient, dtype, ulps=32, floor=floor)
