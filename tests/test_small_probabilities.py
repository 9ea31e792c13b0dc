"""Chains with probabilities that float32 has no room for: calculated in float64, or refused."""

import pytest
import torch
from helpers.chains import Chain, every_pair, make_chain, one_hot
from helpers.compare import assert_close, assert_gradient_close
from helpers.exact import exact_loss, exact_p_posterior, exact_q_posterior

from d3pm_fast import functional, transitions
from d3pm_fast.functional import Logistic, Shaped

ALSO_BY = ("triton", "cuda")  # the fixture impl; see conftest.py
K = 3


def rare_class():
    betas = torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64)
    pi = torch.tensor([0.4, 0.6, 1e-40], dtype=torch.float64)
    return Chain(transitions.marginal(K, betas, pi), betas, pi.expand(3, K))


def fading_share():
    """Only the first step redraws from all classes: at T little is left but the mask."""
    betas = torch.full((4,), 1 - 1e-12, dtype=torch.float64)
    share = torch.tensor([0.5, 0, 0, 0], dtype=torch.float64)
    transition = transitions.mask_and_uniform(K, betas, 1, share, data_has_mask=True)
    vectors = share[:, None] / K + (1 - share[:, None]) * one_hot(1, K)
    return Chain(transition, betas, vectors)


CHAINS = {
    "uniform": lambda: make_chain("uniform", K, [1e-34] * 3),
    "absorbing": lambda: make_chain("absorbing_first", K, [1e-50, 0.5, 1e-50]),
    "mask and uniform": lambda: make_chain("mask_and_uniform", K, [1e-20, 1e-140]),
    "rare class": rare_class,
    "fading share": fading_share,
}


@pytest.fixture(params=CHAINS)
def chain(request):
    return CHAINS[request.param]()


@pytest.fixture
def tokens(chain):
    """All pairs at all times, and their float32 logits."""
    parts = [(*every_pair(chain, t), t) for t in range(1, chain.num_steps + 1)]
    x0, x_t = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    t = torch.cat([torch.full_like(part[0], part[2]) for part in parts])
    return 3 * torch.randn(len(t), K), x0, x_t, t


@pytest.mark.parametrize("reverse", ["joint", "posterior_mean"])
def test_the_loss_agrees_with_sixty_digits(impl, chain, tokens, reverse):
    options = {"reverse": reverse, "first_step": "posterior"}
    logits, *rest = tokens
    leaf = logits.requires_grad_()
    loss = functional.loss(chain.transition, leaf, *rest, reduction="none", impl=impl, **options)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    truth, true_gradient, terms = exact_loss(chain, logits, *rest, **options)
    least = 1e-6 if impl == "reference" else 1e-15  # 60 digits are spent on what float64 holds
    assert_close(loss, truth, torch.float32, ulps=8, scale=truth.abs() + least)
    assert_gradient_close(leaf.grad, true_gradient, torch.float32, floor=terms + least)


def test_posteriors_agree_with_sixty_digits(impl, chain, tokens):
    logits, x0, x_t, t = tokens
    upstream = torch.randn(len(t), K)
    leaf = logits.requires_grad_()
    args = chain.transition, leaf, x_t, t
    log_p = functional.p_posterior(*args, first_step="posterior", impl=impl)
    log_p.backward(upstream)
    log_q = functional.q_posterior(chain.transition, x0, x_t, t, impl=impl)
    assert log_p.dtype == log_q.dtype == torch.float32
    truth, true_gradient, terms = exact_p_posterior(chain, logits, upstream, x_t, t)
    assert_close(log_p, truth, torch.float32, scale=truth.abs() + 1)
    assert_gradient_close(leaf.grad, true_gradient, torch.float32, floor=terms + 1e-6)
    truth = exact_q_posterior(chain, x0, x_t, t)
    assert_close(log_q, truth, torch.float32, scale=truth.abs() + 1)


def test_the_posterior_mean_s_draws_have_its_law(cpu):
    """What s has at x_t counts, divided by 1e50 as it is: to stay is as rare as to move."""
    chain = transitions.uniform(K, [1e-50, 1e-50])
    logits = torch.zeros(1, 2000, K)
    x_t, t = torch.zeros(1, 2000, dtype=torch.int64), torch.tensor([2])
    log_p = functional.p_posterior(chain, logits.double(), x_t, t, reverse="posterior_mean")[0, 0]
    drawn = functional.p_sample(chain, logits, x_t, t, reverse="posterior_mean", impl=cpu)
    shares = torch.bincount(drawn.flatten(), minlength=K) / 2000
    torch.testing.assert_close(shares.double(), log_p.exp(), rtol=0, atol=0.05)
    assert 0.1 < shares[0] < 0.9


def test_what_is_small_is_a_beta_over_a_vocabulary(cpu):
    chain = transitions.uniform(50257, [1e-31] * 3)
    x0, x_t, t = torch.tensor([1, 2]), torch.tensor([0, 2]), torch.tensor([3, 3])
    logits = torch.randn(2, 50257)
    loss = [
        functional.loss(chain, row, x0, x_t, t, reduction="none", impl=cpu)
        for row in (logits, logits.double())
    ]
    assert loss[0].dtype == torch.float32
    assert_close(loss[0], loss[1], torch.float32)
    assert bool((loss[0] > 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_results_have_the_dtype_that_they_have_with_any_chain(dtype):
    chain, usual = transitions.uniform(K, [1e-30]), transitions.uniform(K, [0.1])
    x, t = torch.tensor([0, 1]), torch.tensor([1, 1])
    logits = torch.randn(2, K).to(dtype)
    pair = Logistic(torch.zeros(2, dtype=dtype), torch.zeros(2, dtype=dtype))
    for predicted in (logits, pair, tuple(pair[:2]), Shaped(logits, logits, 2.0, top_k=2)):
        for function in (functional.loss, functional.p_posterior, functional.p_sample):
            if function is functional.loss:
                if isinstance(predicted, Shaped):
                    continue
                args = predicted, x, x, t
            else:
                args = predicted, x, t
            assert function(chain, *args).dtype == function(usual, *args).dtype
    leaf = logits.requires_grad_()
    functional.loss(chain, leaf, x, x, t).backward()
    assert leaf.grad.dtype == dtype


def test_which_chains_need_float64():
    share = torch.tensor([0.5, 0.0])
    assert not transitions.uniform(10, [0.0, 1e-16, 1.0]).needs_float64
    assert transitions.uniform(10, [0.0, 1e-18, 1.0]).needs_float64
    assert not transitions.absorbing(10, [1e-17] * 2000, 0).needs_float64
    assert not transitions.absorbing(10, [0.9] * 2000, 0).needs_float64
    assert not transitions.marginal(3, [0.1], [0.5, 0.5, 0]).needs_float64
    assert transitions.marginal(3, [0.1], [0.5, 0.5, 1e-18]).needs_float64
    assert not transitions.mask_and_uniform(10, [0.5, 0.5], 0, share).needs_float64
    assert transitions.mask_and_uniform(10, [1e-9, 1 - 1e-10], 0, share).needs_float64


@pytest.mark.parametrize("beta", [1e-151, 1e-300, 1e-308, 5e-324])
def test_what_float64_has_no_room_for_is_refused(beta):
    for make in (
        lambda: transitions.absorbing(K, [0.1, beta], 0),
        lambda: transitions.uniform(K, [0.1, beta]),
        lambda: transitions.marginal(K, [0.1, 0.2], [0.5, 0.5, beta]),
        lambda: transitions.mask_and_uniform(K, [0.1, 0.2], 0, [0.1, beta]),
    ):
        with pytest.raises(ValueError, match=r"probability of at least 1e-150.* got "):
            make()
