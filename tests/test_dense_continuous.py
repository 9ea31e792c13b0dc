"""Dense chains in continuous time: against explicit matrices, steps, and rank-one chains."""

import math

import mpmath
import numpy as np
import pytest
import torch
from helpers.chains import true_loss, true_p_posterior, true_q_posterior
from helpers.compare import assert_close, check_gradient
from helpers.continuous import true_density
from helpers.continuous_dense import FAMILIES, K, make_dense_continuous_chain, rate_of
from helpers.laws import FALSE_ALARM, assert_follows
from scipy import stats

import d3pm_fast as d3
from d3pm_fast import evaluation, functional, transitions
from d3pm_fast.schedules import continuous

ALSO_BY = ("triton",)  # the fixture impl; see conftest.py
SCHEDULES = {
    "linear": (continuous.linear(), lambda t: 1 - t),
    "cosine": (continuous.cosine(), lambda t: mpmath.cos(t * mpmath.pi / 2)),
    "geometric": (
        continuous.geometric(1e-4, 8.0),
        lambda t: mpmath.exp(-mpmath.mpf(1e-4) * mpmath.power(8.0 / mpmath.mpf(1e-4), t)),
    ),
}
TIMES = [1e-3, 0.37, 0.8, 0.999]
REVERSE = ["joint", "posterior_mean"]
PI = torch.tensor([0.1, 0.2, 0.35, 0.3, 0.05], dtype=torch.float64)
NUM_STEPS = 20


def make(family, schedule="linear", num_classes=K):
    return make_dense_continuous_chain(family, *SCHEDULES[schedule], num_classes)


def every_pair(chain, t):
    """All ``(x_0, x_t)`` that the chain can make at t."""
    return (chain.product(0, t) > 0).nonzero().unbind(-1)


def value_and_gradient(logits, *args, **options):
    leaf = logits.detach().clone().requires_grad_()
    loss = functional.loss(args[0], leaf, *args[1:], reduction="none", **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_entry_is_that_of_the_definition(family, schedule):
    """Also the smallest: 1e-48 of four jumps in a time of 1e-12."""
    chain = make(family, schedule)
    near_one = 1 - 2.0**-20
    for s, t in ((0.0, 1e-12), (0.0, 0.3), (0.3, 0.9), (0.5, 0.5 + 1e-9), (0.3, near_one)):
        found, truth = chain.transition.q_matrix(t, s), chain.product(s, t)
        assert torch.equal(found == 0, truth == 0)
        # exp(-x) has x times the relative error of x, and t - s loses what t has too few of.
        rtol = 1e-13 if s == 0 else 1e-12 if t - s > 0.1 else 1e-6
        torch.testing.assert_close(found, truth, rtol=rtol, atol=0)
    assert torch.equal(chain.transition.q_bar_matrix(0.0), torch.eye(K).double())


@pytest.mark.parametrize("family", ["random", "line"])
def test_few_products_are_as_exact_as_many(family):
    """Times of 40 binades; entries down to 1e-300."""
    rate, _ = rate_of(family, 24)
    chain = transitions.from_rate(rate, continuous.linear())
    times = (10 ** torch.linspace(-11, 1.2, 60, dtype=torch.float64)).tolist()
    for t in (-math.expm1(-time) for time in times):
        exact = transitions.rate_exponential(rate, -math.log1p(-t))
        found = chain.q_matrix(t)
        assert torch.equal(found == 0, exact == 0)
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-305)
    assert any(key[0] == "whole" for key in chain._matrices.cache._entries)


def test_the_end_of_a_schedule_that_keeps_nothing():
    chain = make("random").transition
    law = chain.stationary()
    torch.testing.assert_close(
        law @ rate_of("random")[0], torch.zeros(K).double(), atol=1e-15, rtol=0
    )
    for s in (0.0, 0.5):
        assert torch.equal(chain.q_matrix(1.0, s), law.expand(K, K))
    assert (chain.prior() == 0).all()
    short = transitions.from_rate(rate_of("random")[0], continuous.log_linear(1e-2))
    end = short.q_bar_matrix(1.0)
    torch.testing.assert_close(
        short.prior(), (end * (end / law).log()).sum(1), rtol=1e-9, atol=1e-15
    )


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair_agrees_with_the_definition(impl, family, schedule, reverse):
    chain = make(family, schedule)
    for t in TIMES if impl in ("reference", "cpu") else TIMES[1:2]:
        x0, x_t = every_pair(chain, t)
        leaf = (2 * torch.randn(len(x0), K, dtype=torch.float64)).requires_grad_()
        truth = true_density(chain, leaf, x0, x_t, t, reverse)
        (true_gradient,) = torch.autograd.grad(truth.sum(), leaf)
        times = torch.full((len(x0),), t, dtype=torch.float64)
        options = {"reverse": reverse, "impl": impl}
        loss, gradient = value_and_gradient(leaf, chain.transition, x0, x_t, times, **options)
        assert_close(loss, truth, torch.float64, ulps=8192, scale=truth.abs() + 1)
        check_gradient(gradient, true_gradient, torch.float64, ulps=8192, floor=0.1)


@pytest.mark.exhaustive(where=lambda impl, family: impl == "triton" and family != "neighbors")
@pytest.mark.parametrize("family", FAMILIES)
def test_explicit_divergences_of_short_steps_tend_to_it(impl, family):
    """``T KL`` of T steps: the error falls like 1 / T."""
    chain, t = make(family), 0.5
    x0, x_t = every_pair(chain, t)
    logits, times = (
        torch.randn(len(x0), K, dtype=torch.float64),
        torch.full((len(x0),), t, dtype=torch.float64),
    )
    limit, _ = value_and_gradient(logits, chain.transition, x0, x_t, times, impl=impl)
    errors = []
    for num_steps in (1e3, 1e4):
        short = num_steps * true_loss(chain, logits, x0, x_t, t, s=t - 1 / num_steps)
        errors.append((short - limit).abs().max())
    assert errors[0] < 0.1 * limit.max()
    assert 8 < errors[0] / errors[1] < 12


@pytest.mark.exhaustive(where=lambda impl, **_: impl == "triton")
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("law", ["marginal", "uniform"])
def test_rates_of_rank_one_give_the_chain_of_rank_one(impl, law, schedule, reverse):
    schedule, _ = SCHEDULES[schedule]
    pi = PI if law == "marginal" else torch.full((K,), 1 / K, dtype=torch.float64)
    dense = transitions.from_rate(pi.expand(K, K) - torch.eye(K), schedule)
    single = (
        transitions.marginal(K, schedule, pi)
        if law == "marginal"
        else transitions.uniform(K, schedule)
    )
    t = torch.tensor([1e-9, 1e-3, 0.2, 0.6, 0.9, 0.999, 1.0], dtype=torch.float64)
    t = t[::3] if impl == "triton" else t  # its interpreter is slow
    x0 = torch.randint(K, (len(t), 6))
    x_t, logits = functional.q_sample(single, x0, t), torch.randn(len(t), 6, K, dtype=torch.float64)
    torch.testing.assert_close(dense.stationary(), single.stationary(), rtol=1e-14, atol=0)
    options = {"reverse": reverse}
    for s in (None, 0.6 * t, torch.zeros_like(t)):
        found = value_and_gradient(logits, dense, x0, x_t, t, s, impl=impl, **options)
        expected = value_and_gradient(logits, single, x0, x_t, t, s, impl="reference", **options)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
        check_gradient(found[1], expected[1], torch.float64, ulps=8192, floor=0.1)
    s = 0.6 * t
    both = [
        functional.p_posterior(chain, logits, x_t, t, s, impl=name, **options)
        for chain, name in ((dense, impl), (single, "reference"))
    ]
    torch.testing.assert_close(*both, rtol=1e-11, atol=1e-12)
    both = [
        functional.q_posterior(chain, x0, x_t, t, s, dtype=torch.float64, impl=name)
        for chain, name in ((dense, impl), (single, "reference"))
    ]
    torch.testing.assert_close(*both, rtol=1e-11, atol=1e-12)


@pytest.mark.exhaustive(where=lambda impl, **_: impl == "triton")
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_and_draws_are_those_of_a_chain_of_steps(impl, family):
    schedule = continuous.log_linear()
    rate, _ = rate_of(family)
    chain = transitions.from_rate(rate, schedule)
    stepped = transitions.from_rate(rate, -schedule.alpha(schedule.times(NUM_STEPS)).log())
    t, s = torch.tensor([1, 2, 15, 20, 19, 20]), torch.tensor([0, 1, 4, 0, 18, 19])
    x0, seeds = torch.randint(K, (6, 3)), torch.arange(6)
    logits = torch.randn(6, 3, K, dtype=torch.float64)
    x_t = functional.q_sample(stepped, x0, t, seeds=seeds, impl="reference")
    found = functional.q_sample(chain, x0, t / NUM_STEPS, seeds=seeds, impl=impl)
    assert torch.equal(found, x_t)
    assert torch.equal(functional.q_sample(chain, x0, 0.0 * t, impl=impl), x0)
    times = t.double() / NUM_STEPS, s.double() / NUM_STEPS
    for reverse in REVERSE:
        options = {"reverse": reverse, "ce_weight": 0.1}
        found = value_and_gradient(logits, chain, x0, x_t, *times, impl=impl, **options)
        expected = value_and_gradient(logits, stepped, x0, x_t, t, s, impl="reference", **options)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-11, atol=1e-11)
        check_gradient(found[1], expected[1], torch.float64, ulps=8192, floor=0.1)
        drawn = [
            functional.p_sample(of, logits, x_t, *at, seeds=seeds, reverse=reverse, impl=impl)
            for of, at in ((chain, times), (stepped, (t, s)))
        ]
        assert torch.equal(*drawn)


def test_draws_follow_their_laws(cpu):
    """Those of the other implementations are the same numbers."""
    chain, count = make("random", "cosine"), 20000
    x0, t, s = torch.arange(K), 0.4, 0.15
    times = torch.full((count,), t, dtype=torch.float64)
    x_t = functional.q_sample(chain.transition, x0.expand(count, K), times, impl=cpu)
    assert_follows(x_t, chain.product(0, t))
    logits = torch.randn(K, K, dtype=torch.float64)
    args = logits.expand(count, K, K), x0.expand(count, K), times, torch.full_like(times, s)
    drawn = functional.p_sample(chain.transition, *args, impl=cpu)
    assert_follows(drawn, true_p_posterior(chain, logits, x0, s, t))


def test_each_token_may_have_its_own_time(impl):
    chain = make("random", "cosine")
    x0, t = torch.randint(K, (2, 3)), 0.05 + 0.9 * torch.rand(2, 3, dtype=torch.float64)
    x_t = functional.q_sample(chain.transition, x0, t, impl=impl)
    leaf = torch.randn(2, 3, K, dtype=torch.float64, requires_grad=True)
    tokens = list(
        zip(leaf.view(-1, K), x0.flatten(), x_t.flatten(), t.flatten().tolist(), strict=True)
    )
    truth = torch.cat(
        [true_density(chain, row[None], x[None], z[None], u) for row, x, z, u in tokens]
    )
    (true_gradient,) = torch.autograd.grad(truth.sum(), leaf)
    loss, gradient = value_and_gradient(leaf, chain.transition, x0, x_t, t, impl=impl)
    assert_close(loss.flatten(), truth, torch.float64, ulps=4096, scale=truth.abs() + 1)
    check_gradient(gradient, true_gradient, torch.float64, ulps=4096, floor=0.1)
    log_q = functional.q_posterior(
        chain.transition, x0, x_t, t, 0.5 * t, dtype=torch.float64, impl=impl
    )
    expected = [
        true_q_posterior(chain, x[None], z[None], 0.5 * u, u).log() for _, x, z, u in tokens
    ]
    torch.testing.assert_close(log_q.view(-1, K), torch.cat(expected), rtol=1e-11, atol=1e-11)


@pytest.mark.exhaustive(where=lambda impl, num_classes, **_: impl == "triton" and num_classes > 27)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_classes", [27, 150])
@pytest.mark.parametrize("reverse", REVERSE)
def test_every_dtype(impl, dtype, num_classes, reverse):
    """Of matrices in every form that kernels have: early, and so late that rows are alike."""
    rate, _ = rate_of("random", num_classes)
    chain = transitions.from_rate(4 * rate / rate.abs().max(), continuous.log_linear())
    t = torch.tensor([0.01, 0.3, 0.7, 0.95, 0.999, 1.0]).double()[:: 1 if impl != "triton" else 2]
    x0 = torch.randint(num_classes, (len(t), 2))
    x_t = functional.q_sample(chain, x0, t, impl="reference")
    logits = (2 * torch.randn(len(t), 2, num_classes)).to(dtype)
    found = value_and_gradient(logits, chain, x0, x_t, t, reverse=reverse, impl=impl)
    truth = value_and_gradient(
        logits.double(), chain, x0, x_t, t, reverse=reverse, impl="reference"
    )
    ulps = 2048 if impl == "reference" else 64
    assert_close(found[0], truth[0], dtype, ulps=ulps, scale=truth[0].abs() + 1)
    check_gradient(found[1], truth[1], dtype, ulps=ulps, floor=1.0)


@pytest.mark.exhaustive(where=lambda impl, t, **_: impl == "triton" and 1e-12 < t < 1 - 1e-12)
@pytest.mark.parametrize("t", [1e-12, 1e-6, 1 - 1e-6, 1 - 1e-12, 1 - 2**-53])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_of_time(impl, t, dtype):
    """Where ``1 - alpha`` is far below an ulp of 1, and where alpha is."""
    chain = make("random")
    x0, x_t = every_pair(chain, 0.5)
    logits, times = (
        torch.randn(len(x0), K).to(dtype),
        torch.full((len(x0),), t, dtype=torch.float64),
    )
    leaf = logits.double().requires_grad_()
    truth = true_density(chain, leaf, x0, x_t, t)
    (slopes,) = torch.autograd.grad(truth.sum(), leaf)
    loss, gradient = value_and_gradient(logits, chain.transition, x0, x_t, times, impl=impl)
    if t > 0.5 and dtype == torch.float32 and impl == "reference":
        return  # it has no digits of what is left of x_0
    # The matrices are float64's: near 1 they keep of what is left of x_0 what an ulp of 1 is to it.
    left = 512 / (1 - t) ** 0.5 * torch.finfo(torch.float64).eps
    ulps = (1024 if impl == "reference" else 64) + left / torch.finfo(dtype).eps * (t > 0.5)
    assert_close(loss, truth, dtype, ulps=ulps)
    check_gradient(gradient, slopes, dtype, ulps=ulps)


@pytest.mark.exhaustive(where=lambda impl, reverse: impl == "triton" and reverse != "joint")
@pytest.mark.parametrize("reverse", REVERSE)
def test_masks_weights_denominators_and_terms(impl, reverse):
    chain, t = make("random").transition, torch.tensor([0.2, 0.7]).double()
    x0, logits = torch.randint(K, (2, 4)), torch.randn(2, 4, K, dtype=torch.float64)
    x_t = functional.q_sample(chain, x0, t, impl="reference")
    options = {"reverse": reverse, "vb_weight": 0.5, "ce_weight": 2.0}
    bound = value_and_gradient(logits, chain, x0, x_t, t, reverse=reverse, impl="reference")[0]
    entropy = torch.nn.functional.cross_entropy(logits.movedim(-1, 1), x0, reduction="none")
    mask = torch.tensor([[True, False, True, True], [True, True, False, True]])
    weights = torch.tensor([[0.5, 1.0, 2.0, 0.0], [1.0, 3.0, 1.0, 1.0]])
    counted = (weights * mask).double()
    leaf = logits.clone().requires_grad_()
    x_t = x_t.where(mask, 77)  # not looked at
    terms = functional.loss_terms(
        chain, leaf, x0, x_t, t, mask=mask, weights=weights, denominator=3.0, impl=impl, **options
    )
    vb, ce = (counted * bound).sum() / 3, (counted * entropy).sum() / 3
    for value, expected in zip(terms, (0.5 * vb + 2 * ce, vb, ce), strict=True):
        torch.testing.assert_close(value.detach(), expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(terms.loss, leaf)
    assert (gradient[counted == 0] == 0).all()
    plain = value_and_gradient(logits, chain, x0, x_t.where(mask, 0), t, impl=impl, **options)[1]
    check_gradient(gradient, counted[..., None] * plain / 3, torch.float64, ulps=256, floor=0.01)
    for reduction, expected in (("batch", (mask * bound).sum(1)), ("sum", (mask * bound).sum())):
        found = functional.loss(
            chain, logits, x0, x_t, t, mask=mask, reduction=reduction, reverse=reverse, impl=impl
        )
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reverse", REVERSE)
def test_second_derivatives(cpu, reverse):
    chain, t = make("line").transition, torch.tensor([0.4]).double()
    x0, x_t = torch.tensor([[1, 3]]), torch.tensor([[2, 3]])
    leaf = torch.randn(1, 2, K, dtype=torch.float64, requires_grad=True)

    def loss(logits):
        return functional.loss(chain, logits, x0, x_t, t, reverse=reverse, impl=cpu)

    assert torch.autograd.gradcheck(loss, leaf)
    assert torch.autograd.gradgradcheck(loss, leaf)


def test_forbidden_classes_and_impossible_pairs(impl):
    chain, t = make("one_way"), torch.tensor([0.5]).double()
    x0, x_t = torch.tensor([[0, 1, 3]]), torch.tensor([[2, 3, 1]])
    logits = torch.randn(1, 3, K, dtype=torch.float64)
    logits[..., 1], logits[0, 1, 1] = -torch.inf, 0.5
    logits[0, 0, 3:] = -torch.inf
    loss, gradient = value_and_gradient(logits, chain.transition, x0, x_t, t, impl=impl)
    leaf = logits[0, :2].requires_grad_()
    truth = true_density(chain, leaf, x0[0, :2], x_t[0, :2], 0.5)
    (slopes,) = torch.autograd.grad(truth.sum(), leaf)
    torch.testing.assert_close(loss[0, :2], truth.detach(), rtol=1e-12, atol=1e-12)
    check_gradient(gradient[0, :2], slopes, torch.float64, ulps=1024, floor=0.1)
    assert loss[0, 2].isnan()


@pytest.mark.exhaustive(
    where=lambda reverse, first_step: (reverse == "joint") != (first_step == "logits")
)
@pytest.mark.parametrize("first_step", ["posterior", "logits"])
@pytest.mark.parametrize("reverse", REVERSE)
def test_the_bound_is_one_and_its_estimate_is_it(reverse, first_step):
    """No less than ``-log p(x_0)`` of a sampler of many steps, by all its paths."""
    k, t_min, num_steps = 3, 0.02, 300
    chain = transitions.from_rate(rate_of("random", k)[0], continuous.log_linear(0.05))
    generator = torch.Generator().manual_seed(3)
    at_0, slope = torch.randn(2, k, k, dtype=torch.float64, generator=generator)
    model = {"reverse": reverse, "first_step": first_step}
    diffusion = d3.D3PM(chain, **model)
    states = torch.arange(k)

    def denoiser(x_t, t):
        return at_0[x_t] + t[:, None, None] * slope[x_t]

    times = [0.0, *np.linspace(t_min, 1, num_steps).tolist()]
    q = diffusion.transition.q_matrix
    law = diffusion.transition.stationary()
    for s, t in reversed(list(zip(times[:-1], times[1:], strict=True))):
        here = (torch.full((k,), x, dtype=torch.float64) for x in (t, s))
        rows = functional.p_posterior(chain, at_0 + t * slope, states, *here, **model)
        law = law @ rows.exp()
    nodes, weights = np.polynomial.legendre.leggauss(24)
    bound = diffusion.transition.prior().clone()
    for x0 in range(k):
        for node, weight in zip(nodes, weights, strict=True):
            t = t_min + (1 - t_min) * (1 + node) / 2
            loss = diffusion.loss(
                at_0 + t * slope,
                torch.full((k,), x0),
                states,
                torch.full((k,), t, dtype=torch.float64),
                reduction="none",
            )
            bound[x0] += weight * (1 - t_min) / 2 * (q(t)[x0] @ loss)
        log_p = diffusion.p_posterior(
            at_0 + t_min * slope,
            states,
            torch.full((k,), t_min, dtype=torch.float64),
            torch.zeros(k).double(),
        )
        bound[x0] -= q(t_min)[x0] @ log_p[:, x0]
    assert (bound > -law.log() + 1e-3).all()
    count = 150
    x0 = states.repeat(count)[:, None]
    found = diffusion.elbo(
        denoiser, x0, num_times=6, t_min=t_min, batch_size=20000,
        generator=torch.Generator().manual_seed(1),
    ).nats.view(count, k)  # fmt: skip
    critical = stats.norm.isf(FALSE_ALARM / 2 / k)
    assert ((found.mean(0) - bound).abs() < critical * found.std(0) / count**0.5).all()
    drawn = diffusion.sample(denoiser, (6000, 1), steps=times[:0:-1], seeds=torch.arange(6000))
    assert_follows(drawn, law[None])


def test_a_whole_evaluation(tmp_path):
    diffusion = d3.D3PM(make("random").transition)
    data = torch.randint(K, (6, 4))
    path = tmp_path / "bound.pt"
    found = evaluation.evaluate(
        diffusion, lambda x, t: torch.randn(*x.shape, K), data, path, num_times=4, batch_size=3
    )
    assert found.nats.shape == (6,)
    assert bool((found.nats > 0).all() & found.nats.isfinite().all())
    t = diffusion.sample_t(8, low_discrepancy=True)
    assert t.dtype == torch.float64
    assert bool(((t >= 0) & (t < 1)).all())


def test_what_is_refused():
    rate, _ = rate_of("random")
    two = torch.zeros(4, 4)
    two[0, 1] = two[1, 0] = two[2, 3] = two[3, 2] = 1
    two -= torch.diag(two.sum(1))
    law = torch.full((4,), 0.25)
    with pytest.raises(ValueError, match="sets of classes"):
        transitions.from_rate(two, continuous.linear(), stationary=law)
    chain = transitions.from_rate(two, continuous.log_linear(), stationary=law)
    assert chain.prior().isfinite().all()
    with pytest.raises(ValueError, match="exponential"):
        transitions.nearest_neighbor(torch.randn(6, 2), 2, continuous.linear(), method="sinkhorn")
    chain = transitions.from_rate(rate, continuous.linear())
    with pytest.raises(ValueError, match="continuous time"):
        transitions.mixture([chain, chain], [0.5, 0.5])
    with pytest.raises(ValueError, match="continuous time"):
        transitions.with_mask(chain, [0.1, 0.2])
    tokens, logits = torch.zeros(1, 2).long(), torch.randn(1, 2, K)
    for t, s, error in (
        (torch.tensor([1]), None, TypeError),
        (torch.tensor([1.5]), None, IndexError),
        (torch.tensor([0.0]), None, IndexError),
        (torch.tensor([0.5]), torch.tensor([0.5]), IndexError),
        (torch.tensor([0.5]), torch.tensor([-0.1]), IndexError),
    ):
        with pytest.raises(error):
            functional.loss(chain, logits, tokens, tokens, t, s)
    with pytest.raises(ValueError, match="s is needed"):
        functional.p_sample(chain, logits, tokens, torch.tensor([0.5]))
    for t in (-0.1, 1.1):
        with pytest.raises(IndexError, match="t must lie in"):
            functional.q_sample(chain, tokens, torch.tensor([t]))
        with pytest.raises(IndexError, match="must lie in"):
            chain.q_matrix(t)


def test_impossible_pairs_are_named():
    chain = make("one_way").transition
    with pytest.warns(UserWarning, match=r"at t = 0\.5"):
        loss = functional.loss(
            chain,
            torch.randn(1, 1, K),
            torch.tensor([[3]]),
            torch.tensor([[1]]),
            torch.tensor([0.5]),
        )
    assert loss.isnan()


def test_a_chain_can_be_moved_saved_and_told_apart(tmp_path):
    diffusion = d3.D3PM(make("random").transition)
    assert diffusion.num_steps is None
    torch.save(diffusion, tmp_path / "diffusion")
    loaded = torch.load(tmp_path / "diffusion", weights_only=True)
    assert loaded.transition.fingerprint == diffusion.transition.fingerprint
    assert torch.equal(loaded.transition.q_bar_matrix(0.3), diffusion.transition.q_bar_matrix(0.3))
    with pytest.warns(UserWarning, match="other transition probabilities"):
        d3.D3PM(make("random", "cosine").transition).load_state_dict(diffusion.state_dict())
    assert diffusion.to("meta").transition.device.type == "meta"


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_an_empty_batch_has_a_gradient(impl, shape):
    chain = transitions.from_rate(rate_of("random")[0], continuous.linear())
    leaf, tokens = torch.zeros(*shape, K, requires_grad=True), torch.zeros(shape).long()
    loss = functional.loss(
        chain, leaf, tokens, tokens, torch.full(shape[:1], 0.5), reduction="sum", impl=impl
    )
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss == 0
    assert gradient.shape == leaf.shape
