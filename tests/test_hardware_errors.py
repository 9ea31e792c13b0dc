"""Losses, posteriors and draws with the errors of a GPU's own functions.

The interpreter has none. They are drawn here for Triton's, in ``simt.h`` for those of CUDA C++, and
are at most 3e-7 of a power of two, 2^-22 of log2 or of 1 where that is
less, and 2^-21.9 of the square of a reciprocal of a square root.
"""

import pytest
import torch
from helpers import simulated
from helpers.chains import REVERSE, likely_pairs, make_chain
from helpers.compare import storage_error, unit

from d3pm_fast import _compiled, functional
from d3pm_fast._environment import INTERPRET

pytest.importorskip("triton")
import triton
import triton.language as tl
from d3pm_fast.kernels.common.math import LN2, LOG2E
from d3pm_fast.kernels.common.tile import Tile
from d3pm_fast.kernels.rank_one import (
    loss,
    loss_long,
    loss_rest,
    loss_row,
    loss_whole,
    p_sample,
    posterior,
    posterior_row,
    step,
)
from test_choices import ROUNDING, near_a_tie
from test_numerics import OF_EVERY_DTYPE, OF_EVERY_FORM, check_digits_of_logits

pytestmark = pytest.mark.skipif(not INTERPRET, reason="runs in the interpreter")
EXP, LOG, RECIPROCAL = tl.constexpr(3e-7), tl.constexpr(2**-22), tl.constexpr(2**-21.9)
PROMISED = 32  # units of float32, half of what docs/numerics.md says for any row


@triton.jit
def drawn(x):
    """Return numbers within [-1, 1] that look drawn."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits ^ (bits >> 7)) * -1640531527).to(tl.float32) * (1.0 / 2147483648.0)


@triton.jit
def rough_exp(x):
    return tl.exp2(x * LOG2E) * (1.0 + EXP * drawn(x))


@triton.jit
def rough_exp2(x):
    return tl.exp2(x) * (1.0 + EXP * drawn(x))


@triton.jit
def rough_log(y):
    return rough_log2(y) * LN2


@triton.jit
def rough_log2(y):
    log2 = tl.log2(y)
    size = tl.where((log2 > -1.0) & (log2 < 1.0), 1.0, log2)
    return log2 + LOG * drawn(y) * size


@triton.jit
def rough_reciprocal(y):
    if y.dtype == tl.float64:  # the hardware's is of float32
        return 1.0 / y
    return (1.0 / y) * (1.0 + RECIPROCAL * drawn(y))


@pytest.fixture
def rough(triton, monkeypatch):
    functions = {
        "fast_exp": rough_exp,
        "fast_exp2": rough_exp2,
        "fast_log": rough_log,
        "fast_log2": rough_log2,
        "reciprocal": rough_reciprocal,
    }
    for module in (
        loss_long,
        loss_rest,
        loss_row,
        loss_whole,
        step,
        posterior,
        posterior_row,
        p_sample,
    ):
        for name, function in functions.items():
            monkeypatch.setattr(module, name, function, raising=False)


not_by_the_interpreter = pytest.mark.unserved(
    where=lambda erring, num_classes, **_: erring == "triton" and num_classes > 64,
    reason="the interpreter is slow",
)


@pytest.fixture(params=["triton", "cuda"])
def erring(request, monkeypatch):
    """An implementation whose hardware errs."""
    if request.param == "triton":
        request.getfixturevalue("rough")
        yield "triton"
    else:
        monkeypatch.setattr(_compiled, "cuda", simulated.module())
        with simulated.erring():
            yield "cuda"


@not_by_the_interpreter
@pytest.mark.parametrize("num_classes", [27, 64, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", ["uniform", "absorbing_last", "mask_and_uniform", "marginal"])
def test_posteriors_keep_the_digits_that_are_promised(erring, family, reverse, dtype, num_classes):
    """Of more tokens than a program has, and of those that are left."""
    chain = make_chain(family, num_classes, torch.linspace(1e-4, 0.9, 12, dtype=torch.float64))
    _, x_t, t = likely_pairs(chain, [1, 2, 4, 8, 12], 32)
    scale, lift = torch.rand(2, len(t), 1)
    logits = (6 * scale - 2).exp() * torch.randn(len(t), num_classes)
    logits = logits.scatter_add(1, torch.randint(num_classes - 1, (len(t), 1)), 30 * lift).to(dtype)
    upstream = torch.randn(len(t), num_classes).to(dtype)
    found, truth = (
        results(chain, leaf.detach().requires_grad_(), upstream, x_t, t, reverse, impl)
        for leaf, impl in ((logits, erring), (logits.double(), "reference"))
    )
    possible = truth[0] > -torch.inf
    assert torch.equal(found[0] > -torch.inf, possible)
    for value, expected, size in zip(
        found, truth, (truth[0].abs() + 1, upstream.norm(dim=-1, keepdim=True)), strict=True
    ):
        allowed = PROMISED * unit(dtype) * size + storage_error(dtype) * expected.abs()
        allowed += torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert bool(((value.double() - expected).abs() < allowed)[possible].all())


def results(chain, leaf, upstream, x_t, t, reverse, impl):
    """Log-probabilities and the gradient, of what is possible."""
    log_p = functional.p_posterior(chain.transition, leaf, x_t, t, reverse=reverse, impl=impl)
    possible = log_p.detach() > -torch.inf
    (gradient,) = torch.autograd.grad(log_p, leaf, upstream.to(leaf.dtype) * possible)
    return log_p.detach(), gradient


@not_by_the_interpreter
@pytest.mark.parametrize("num_classes", [27, 64, 300])
def test_draws_differ_at_ties_alone(erring, num_classes):
    """Of the softmax itself."""
    chain = make_chain("uniform", num_classes)
    count = 500
    x_t, seeds = torch.randint(num_classes, (count,)), torch.arange(count)
    logits = 3 * torch.randn(count, num_classes)
    model = chain.transition, logits, x_t, torch.ones_like(x_t)
    found, expected = (
        functional.p_sample(*model, seeds=seeds, first_step="logits", impl=impl)
        for impl in (erring, "reference")
    )
    near = near_a_tie(logits.double().softmax(-1), seeds, ROUNDING[torch.float32])
    assert torch.equal(found[~near], expected[~near])


@OF_EVERY_DTYPE
@OF_EVERY_FORM
@pytest.mark.parametrize("num_classes", [27, 64, 256])
def test_losses_keep_the_digits_of_their_logits(rough, family, num_classes, dtype):
    check_digits_of_logits("triton", family, num_classes, dtype)


@pytest.mark.exhaustive(
    where=lambda family, dtype: (family == "uniform") == (dtype == torch.bfloat16)
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", ["uniform", "absorbing_last", "marginal"])
def test_losses_of_rows_that_are_read_in_parts_keep_them_too(rough, monkeypatch, family, dtype):
    monkeypatch.setattr(loss, "tile_for", lambda *_: Tile(1, 1, 1, 4))
    monkeypatch.setattr(loss, "tile_of_long_row", lambda *_: (Tile(1, 4, 4, 4), 2))
    chain, count = make_chain(family, 45), 24
    x0, t = torch.randint(44, (count,)), torch.arange(count) % 3 + 1
    x_t = functional.q_sample(chain.transition, x0, t, seeds=torch.arange(count))
    logits = torch.randn(count, 45)
    logits[torch.arange(count), x0] += torch.linspace(-2, 14, count)
    logits[::5, ::3] = -torch.inf
    logits[torch.arange(count), x0] = logits[torch.arange(count), x0].clamp(min=-2)
    logits = logits.to(dtype)
    for count_as, rows in {"all": logits, "large": 1e9 + logits.float().clamp(min=-9e3)}.items():
        found, expected = (
            chain_loss(chain, rows.to(kind), x0, x_t, t, impl)
            for kind, impl in ((rows.dtype, "triton"), (torch.float64, "cpu"))
        )
        for ours, true in zip(found, expected, strict=True):
            scale = true.abs().amax(-1, keepdim=True)
            least = 2**-8 if ours.dtype == torch.bfloat16 else 8e-6
            assert ((ours - true).abs() <= least * scale + 1e-30).all(), count_as


def chain_loss(chain, logits, x0, x_t, t, impl):
    """Each token's loss, and the gradient of their sum."""
    leaf = logits.clone().requires_grad_()
    value = functional.loss(chain.transition, leaf, x0, x_t, t, reduction="none", impl=impl)
    value.sum().backward()
    return value.detach()[:, None], leaf.grad
