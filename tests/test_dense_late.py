"""Late steps of chains of matrices: where the rows of ``Qbar_s`` are alike, products leave out
what they have in common. Truth is by explicit matrices, which leave out nothing."""

import pytest
import torch
from helpers.chains import REVERSE, likely_pairs, true_loss, true_p_posterior
from helpers.compare import assert_close, check_gradient
from helpers.dense_chains import MIXING, make_late_chain

from d3pm_fast import functional, schedules, transitions
from d3pm_fast.chains.factored import is_mixed

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def late_step(family, dtype, count=4):
    """A chain of five classes, and pairs at the first step of the late kind with logits."""
    chain = make_late_chain(family)
    s = next(s for s in range(chain.num_steps) if is_mixed(chain.product(0, s)))
    x0, x_t, t = likely_pairs(chain, [s + 1], count)
    return chain, s, (x0, x_t, t), (2 * torch.randn(count, chain.num_classes)).to(dtype)


def check_loss(chain, s, tokens, logits, impl, **options):
    leaf, exact = (made.clone().requires_grad_() for made in (logits, logits.double()))
    loss = functional.loss(chain.transition, leaf, *tokens, reduction="none", impl=impl, **options)
    truth = true_loss(chain, exact, *tokens[:2], s + 1, **options)
    least = 1.0 if logits.dtype == torch.float64 else 1e-4  # the truth is a difference
    assert_close(loss, truth, logits.dtype, ulps=64, scale=truth + least)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    (expected,) = torch.autograd.grad(truth.sum(), exact)
    check_gradient(gradient, expected, logits.dtype, ulps=1 << 10, floor=1e-2)


def check_p_posterior(chain, s, tokens, logits, impl, **options):
    _, x_t, t = tokens
    leaf, exact = (made.clone().requires_grad_() for made in (logits, logits.double()))
    log_p = functional.p_posterior(chain.transition, leaf, x_t, t, impl=impl, **options)
    p = true_p_posterior(chain, exact, x_t, s, s + 1, **options)
    possible = p.detach() > 0
    truth = p.where(possible, 1).log().where(possible, -torch.inf)
    assert_close(log_p, truth, logits.dtype, ulps=64, scale=truth.abs().nan_to_num(posinf=0) + 1)
    upstream = torch.randn(p.shape).to(logits.dtype) * possible
    (gradient,) = torch.autograd.grad(log_p, leaf, upstream)
    (expected,) = torch.autograd.grad(truth, exact, upstream.double())
    check_gradient(gradient, expected, logits.dtype, ulps=1 << 10, floor=1e-2)


def check_step(step, impl, **options):
    check_loss(*step, impl, **options)
    check_p_posterior(*step, impl, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", MIXING)
def test_losses_and_posteriors(cpu, family, dtype):
    for reverse in REVERSE:
        check_step(late_step(family, dtype, 20), cpu, reverse=reverse)


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", MIXING)
def test_losses_and_posteriors_by_triton(triton, family, reverse):
    check_step(late_step(family, torch.float32), triton, reverse=reverse)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype_by_triton(triton, dtype):
    check_step(late_step("gaussian", dtype), triton)


def test_products_that_are_kernels_of_their_own(triton, monkeypatch):
    monkeypatch.setattr("d3pm_fast.kernels.dense.loss.MOST_FUSED", 0)
    check_loss(*late_step("gaussian", torch.float32), triton)


@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_what_tells_nearly_equal_rows_apart_keeps_its_digits(name, request):
    """Here ``Qbar_s`` differs from row to row in the eighth digit only."""
    chain = transitions.discretized_gaussian(16, schedules.linear(100, 0.02, 0.9))
    kernels, tokens = request.getfixturevalue(name), torch.arange(8)
    logits, upstream = torch.randn(2, 8, 16)
    made = []
    for impl, leaf in ((kernels, logits), ("reference", logits.double())):
        leaf = leaf.clone().requires_grad_()
        step = tokens, torch.full_like(tokens, 100)
        loss = functional.loss(chain, leaf, 15 - tokens, *step, reduction="sum", impl=impl)
        log_p = functional.p_posterior(chain, leaf, *step, impl=impl)
        upstreams = torch.ones((), dtype=leaf.dtype), upstream.to(leaf.dtype)
        made.append(
            [
                torch.autograd.grad(*of)[0]
                for of in zip((loss, log_p), (leaf,) * 2, upstreams, strict=True)
            ]
        )
    for gradient, expected in zip(*made, strict=True):
        assert float(expected.abs().max()) < 1e-6
        check_gradient(gradient, expected, torch.float32, ulps=1 << 7)
