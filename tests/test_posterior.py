"""``log q`` and ``log p`` of a step: against enumeration, against 60 digits, and their options."""

import functools

import pytest
import torch
from helpers.chains import (
    FAMILIES,
    FIRST_STEP,
    REVERSE,
    every_pair,
    likely_pairs,
    make_chain,
    true_p_posterior,
    true_q_posterior,
)
from helpers.compare import assert_close, assert_gradient_close, check_gradient
from helpers.exact import exact_p_posterior, exact_q_posterior
from hypothesis import given
from hypothesis import strategies as st

from d3pm_fast import functional

# Around the vectors of 4, 8 and 16 classes, bytes, and a prime beyond 1024 summed at a time.
ALSO_BY = ("triton", "cuda")  # the fixture impl; see conftest.py
SIZES = [2, 3, 5, 16, 17, 27, 64, 255, 256, 257, 1000, 4099, 9001]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
CASES = [(k, torch.float32) for k in SIZES]
CASES += [(k, dtype) for k in (3, 17, 27, 257) for dtype in DTYPES if dtype != torch.float32]
BETAS = {
    "ordinary": [0.1, 0.2, 0.3, 0.5],
    "tiny": [1e-8] * 4,
    "almost gone": [0.5, 1 - 1e-6, 0.1, 0.2],
    "gone": [0.3, 0.5, 1.0, 0.4],
    "to the end": [0.25, 1 / 3, 0.5, 1.0],
}


def assert_log_close(actual, truth, dtype, ulps=16):
    """A logarithm's ulp is never less than that of a probability near 1."""
    assert_close(actual, truth, dtype, ulps=ulps, scale=truth.abs().nan_to_num(0, 0, 0) + 1)


def log_p_and_gradient(chain, logits, upstream, x_t, t, impl, **options):
    leaf = logits.detach().clone().requires_grad_()
    log_p = functional.p_posterior(chain.transition, leaf, x_t, t, impl=impl, **options)
    possible = log_p.detach() > -torch.inf
    (gradient,) = torch.autograd.grad(log_p, leaf, upstream.to(logits.dtype) * possible)
    return log_p.detach(), gradient


def true_log_p_and_gradient(chain, logits, upstream, x_t, t, **options):
    """Truth of rows at different times; what is impossible has no gradient."""
    leaf = logits.detach().double().requires_grad_()
    log_p = torch.zeros_like(leaf)
    for time in t.unique().tolist():
        n = t == time
        p = true_p_posterior(chain, leaf[n], x_t[n], time - 1, time, **options)
        rows = p.where(p > 0, 1).log().masked_fill(p == 0, -torch.inf)
        log_p = log_p.index_put((n.nonzero().flatten(),), rows)
    upstream = upstream.to(logits.dtype).double() * (log_p.detach() > -torch.inf)
    (gradient,) = torch.autograd.grad(log_p, leaf, upstream)
    return log_p.detach(), gradient


def every_token_at_edge_times(chain):
    """All x_t that anything leads to at each edge time, and t."""
    reached = [(chain.product(0, t) > 0).any(0).nonzero().flatten() for t in chain.edge_times()]
    times = [torch.full_like(x, t) for x, t in zip(reached, chain.edge_times(), strict=True)]
    return torch.cat(reached), torch.cat(times)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_q_of_every_pair_is_bayes_rule(impl, family, num_classes):
    chain = make_chain(family, num_classes)
    for t in chain.edge_times():
        x0, x_t = every_pair(chain, t)
        times = torch.full_like(x0, t)
        log_q = functional.q_posterior(
            chain.transition, x0, x_t, times, dtype=torch.float64, impl=impl
        )
        truth = true_q_posterior(chain, x0, x_t, t - 1, t).log()
        assert_log_close(log_q, truth, torch.float64)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_p_of_every_token_agrees_with_explicit_matrices(
    impl, family, reverse, first_step, num_classes
):
    chain = make_chain(family, num_classes)
    x_t, t = every_token_at_edge_times(chain)
    logits, upstream = 2 * torch.randn(2, len(t), num_classes, dtype=torch.float64)
    arguments = (chain, logits, upstream, x_t, t)
    options = {"reverse": reverse, "first_step": first_step}
    truth, true_gradient = true_log_p_and_gradient(*arguments, **options)
    log_p, gradient = log_p_and_gradient(*arguments, impl, **options)
    assert_log_close(log_p, truth, torch.float64)
    check_gradient(gradient, true_gradient, torch.float64, ulps=32, floor=1)


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_may_skip_times(impl, family, reverse):
    chain = make_chain(family, 4)
    for s, t in [(0, 6), (1, 3)]:
        x0, x_t = every_pair(chain, t)
        times, targets = (torch.full_like(x0, time) for time in (t, s))
        step = x_t, times, targets
        q = functional.q_posterior(chain.transition, x0, *step, dtype=torch.float64, impl=impl)
        assert_log_close(q, true_q_posterior(chain, x0, x_t, s, t).log(), torch.float64)
        logits = (2 * torch.randn(len(x0), 4, dtype=torch.float64)).requires_grad_()
        model = {"reverse": reverse, "first_step": "posterior"}
        log_p = functional.p_posterior(chain.transition, logits, *step, impl=impl, **model)
        truth = true_p_posterior(chain, logits, x_t, s, t, **model)
        assert_log_close(log_p, truth.log(), torch.float64)
        upstream = torch.randn(log_p.shape, dtype=torch.float64) * (truth > 0)
        (gradient,) = torch.autograd.grad(log_p, logits, upstream, retain_graph=True)
        (expected,) = torch.autograd.grad(truth.where(truth > 0, 1).log(), logits, upstream)
        assert_gradient_close(gradient, expected, torch.float64, ulps=64, floor=1)


@pytest.mark.parametrize(("num_classes", "dtype"), CASES)
@pytest.mark.parametrize("family", ["uniform", "absorbing_last", "marginal_with_zeros"])
def test_q_of_every_size_and_dtype_is_within_ulps(impl, family, num_classes, dtype):
    chain = make_chain(family, num_classes)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 4)
    log_q = functional.q_posterior(chain.transition, x0, x_t, t, dtype=dtype, impl=impl)
    parts = [
        true_q_posterior(chain, x0[t == v], x_t[t == v], v - 1, v) for v in t.unique().tolist()
    ]
    assert log_q.dtype == dtype
    rounding = 0.5 * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    ulps = 8 + (rounding if dtype.itemsize == 2 else 0)
    assert_log_close(log_q.double(), torch.cat(parts).log(), _calculated_in(dtype), ulps)


@pytest.mark.exhaustive(
    where=lambda impl, num_classes, **_: impl == "triton" and num_classes > 9000
)
@pytest.mark.parametrize(("num_classes", "dtype"), CASES)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", ["uniform", "absorbing_last", "marginal_with_zeros"])
def test_p_of_every_size_and_dtype_is_within_ulps(impl, family, reverse, num_classes, dtype):
    chain = make_chain(family, num_classes)
    _, x_t, t = likely_pairs(chain, chain.edge_times(), 4)
    logits = (2 * torch.randn(len(t), num_classes)).to(dtype)
    upstream = torch.randn(len(t), num_classes)
    arguments = (chain, logits, upstream, x_t, t)
    truth, true_gradient = true_log_p_and_gradient(*arguments, reverse=reverse)
    log_p, gradient = log_p_and_gradient(*arguments, impl, reverse=reverse)
    assert log_p.dtype == gradient.dtype == dtype
    rounding = 0.5 * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    ulps = 16 + (rounding if dtype.itemsize == 2 else 0)
    assert_log_close(log_p.double(), truth, _calculated_in(dtype), ulps)
    floor = upstream.double().norm(dim=-1)
    check_gradient(gradient, true_gradient, dtype, ulps=24, floor=floor)


def _calculated_in(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_classes", [2, 8, 27, 33, 64])
@pytest.mark.parametrize("family", ["uniform", "absorbing_last", "marginal_with_zeros"])
def test_any_number_of_rows_beside_each_other(impl, family, num_classes, dtype, offset):
    """Three warps' rows, settled ones among them, wherever in memory they begin."""
    chain = make_chain(family, num_classes)
    _, x_t, t = likely_pairs(chain, [1, 6], 35)
    logits = torch.randn(len(t) * num_classes + offset).to(dtype)[offset:].view(len(t), -1)
    arguments = chain, logits, torch.randn(len(t), num_classes).to(dtype), x_t, t
    log_p, gradient = log_p_and_gradient(*arguments, impl, first_step="posterior")
    truth, true_gradient = true_log_p_and_gradient(*arguments, first_step="posterior")
    rounding = 0.5 * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    ulps = 16 + (rounding if dtype.itemsize == 2 else 0)
    assert_log_close(log_p.double(), truth, torch.float32, ulps)
    check_gradient(gradient, true_gradient, dtype, ulps=24, floor=arguments[2].norm(dim=-1))


@functools.cache
def hard_rows(family, reverse, betas, dtype):
    """Extreme logits for every token at every edge time, and 60 digits of truth."""
    chain = make_chain(family, 5, BETAS[betas])
    x_t, t = every_token_at_edge_times(chain)
    generator = torch.Generator().manual_seed(2)
    normal = torch.randn(len(t), 5, generator=generator)
    upstream = torch.randn(len(t), 5, generator=generator)
    upstream = upstream.to(dtype).double()
    here = torch.nn.functional.one_hot(x_t, 5).bool()
    there = here.roll(1, -1)
    cases = [
        torch.zeros(len(t), 5),
        normal * 1e4,
        normal + 1e4 * here,
        normal + 1e4 * there,
        normal - 1e4 * here,
        normal + 14 * here,
        normal + 14 * there,
        normal.masked_fill(there, -torch.inf),
        normal.masked_fill(here, -torch.inf),
    ]
    rows = [cases[n % len(cases)][n] for n in range(len(t))]
    logits = torch.stack(rows).to(dtype)
    truth = exact_p_posterior(chain, logits, upstream, x_t, t, reverse)
    return (chain, logits, upstream, x_t, t), truth


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_hard_rows_of_p_agree_with_sixty_digits(impl, family, reverse, betas, dtype):
    arguments, (truth, true_gradient, terms) = hard_rows(family, reverse, betas, dtype)
    log_p, gradient = log_p_and_gradient(*arguments, impl, reverse=reverse, first_step="posterior")
    assert_log_close(log_p, truth, dtype, ulps=32)
    floor = terms.clamp(min=1.0 if impl == "reference" else 0)
    assert_gradient_close(gradient, true_gradient, dtype, ulps=48, floor=floor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_classes_that_noise_never_enters_keep_their_digits_far_from_zero(impl, dtype):
    """The level of the logits cancels before anything is rounded."""
    chain = make_chain("marginal_with_zeros", 8)
    logits = (1e4 + torch.rand(4, 8)).to(dtype)
    x_t, t = torch.tensor([1, 3, 5, 7]), torch.tensor([2, 3, 5, 6])
    truth, *_ = exact_p_posterior(chain, logits, torch.zeros(4, 8), x_t, t)
    log_p = functional.p_posterior(chain.transition, logits, x_t, t, impl=impl)
    assert_log_close(log_p, truth, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [40, 1100])
def test_so_do_those_without_a_pi_among_others(impl, num_classes, dtype):
    """Also where their probabilities are below the range of the type."""
    chain = make_chain("marginal_with_zeros", num_classes)
    without = torch.arange(num_classes)[:: num_classes // 4]
    _, x_t, t = likely_pairs(chain, chain.edge_times(), 4)
    logits = torch.randn(len(t), num_classes, dtype=dtype)
    logits[:, without] -= 1e4
    arguments = chain.transition, logits, x_t, t
    log_p = functional.p_posterior(*arguments, first_step="posterior", impl=impl)
    expected = functional.p_posterior(
        chain.transition, logits.double(), x_t, t, first_step="posterior", impl="reference"
    )
    assert bool((expected[:, without[1:]] < -9000).any())
    assert_log_close(log_p.double(), expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("family", FAMILIES)
def test_q_agrees_with_sixty_digits_at_any_noise(impl, family, betas, dtype):
    chain = make_chain(family, 5, BETAS[betas])
    for t in chain.edge_times():
        x0, x_t = every_pair(chain, t)
        times = torch.full_like(x0, t)
        log_q = functional.q_posterior(chain.transition, x0, x_t, times, dtype=dtype, impl=impl)
        assert_log_close(log_q, exact_q_posterior(chain, x0, x_t, times), dtype, ulps=16)


@pytest.mark.parametrize("family", ["absorbing_first", "absorbing_last", "marginal_with_zeros"])
def test_an_impossible_pair_has_no_posterior(impl, family):
    chain = make_chain(family, 5)
    x0, x_t = (v.flatten() for v in torch.meshgrid(*[torch.arange(5)] * 2, indexing="ij"))
    for t in chain.edge_times():
        log_q = functional.q_posterior(chain.transition, x0, x_t, torch.full((25,), t), impl=impl)
        possible = (chain.product(0, t) > 0).flatten()
        assert bool(log_q[~possible].isnan().all())
        assert not bool(log_q[possible].isnan().any())


@pytest.mark.parametrize("mask_id", [0, 2, 4])
def test_d1_what_is_forbidden_has_probability_exactly_zero(impl, mask_id):
    """Absorbing: a token was what it is or the mask; a masked one never comes from nowhere."""
    family = {0: "absorbing_first", 2: "absorbing_middle", 4: "absorbing_last"}[mask_id]
    chain = make_chain(family, 5)
    x0, x_t, t = likely_pairs(chain, [2, 3, 6], 10)
    log_q = functional.q_posterior(chain.transition, x0, x_t, t, impl=impl)
    j = torch.arange(5)
    allowed = (j == x0[:, None]) | ((j == mask_id) & (x_t == mask_id)[:, None])
    assert bool((log_q[~allowed] == -torch.inf).all())
    assert bool((log_q[x_t != mask_id].amax(-1).abs() < torch.finfo(torch.float32).eps).all())
    log_p = functional.p_posterior(chain.transition, torch.randn(30, 5), x_t, t, impl=impl)
    stays = x_t != mask_id
    expected = torch.full((30, 5), -torch.inf).scatter(1, x_t[:, None], 0.0)
    assert torch.equal(log_p[stays], expected[stays])
    assert bool(log_p[~stays].isfinite().all())


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_sum_to_one(impl, family, reverse):
    chain = make_chain(family, 257)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 6)
    logits = 3 * torch.randn(len(t), 257)
    log_q = functional.q_posterior(chain.transition, x0, x_t, t, impl=impl)
    log_p = functional.p_posterior(chain.transition, logits, x_t, t, reverse=reverse, impl=impl)
    for row in (log_q, log_p):
        total = row.double().exp().sum(-1)
        assert_close(total, torch.ones(len(t)), torch.float32, ulps=16)


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_p_of_a_sure_model_is_q(impl, family, reverse):
    chain = make_chain(family, 5)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 8)
    logits = torch.full((len(t), 5), -torch.inf).scatter(1, x0[:, None], 0.0)
    options = {"reverse": reverse, "first_step": "posterior", "impl": impl}
    log_p = functional.p_posterior(chain.transition, logits, x_t, t, **options)
    log_q = functional.q_posterior(chain.transition, x0, x_t, t, impl=impl)
    assert_log_close(log_p, log_q.double(), torch.float32)


def test_the_first_step_is_the_softmax_itself(impl):
    chain = make_chain("absorbing_last", 5)
    logits = torch.randn(5, 5)
    t = torch.ones(5, dtype=torch.int64)
    args = chain.transition, logits, torch.arange(5), t
    log_p = functional.p_posterior(*args, first_step="logits", impl=impl)
    assert_log_close(log_p, torch.log_softmax(logits.double(), -1), torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_divergence_of_the_posteriors(impl, family):
    """Loss, bound and sampler rest on one model: they cannot disagree."""
    chain = make_chain(family, 9)
    x0, x_t, t = likely_pairs(chain, [2, 5, 6], 6)
    logits = torch.randn(len(t), 9, dtype=torch.float64)
    for reverse in REVERSE:
        log_q = functional.q_posterior(chain.transition, x0, x_t, t, dtype=torch.float64, impl=impl)
        log_p = functional.p_posterior(chain.transition, logits, x_t, t, reverse=reverse, impl=impl)
        terms = (log_q.exp() * (log_q - log_p)).where(log_q > -torch.inf, 0)
        loss = functional.loss(
            chain.transition, logits, x0, x_t, t, reverse=reverse, reduction="none", impl=impl
        )
        assert_close(loss, terms.sum(-1), torch.float64, ulps=32, scale=terms.abs().sum(-1) + 1)


@pytest.mark.parametrize("positions", [(), (6,), (2, 3)])
def test_position_axes_are_all_alike(impl, positions):
    chain = make_chain("mask_and_uniform", 9)
    x0, x_t, _ = likely_pairs(chain, [3], 24)
    t = torch.tensor([1, 2, 5, 6])
    logits = torch.randn(24, 9)
    batch = 4 if positions else 24
    times = t if positions else t.repeat_interleave(6)
    shape = (batch, *positions)
    flat = t.repeat_interleave(6)
    log_p = functional.p_posterior(
        chain.transition, logits.view(*shape, 9), x_t.view(shape), times, impl=impl
    )
    log_q = functional.q_posterior(
        chain.transition, x0.view(shape), x_t.view(shape), times, impl=impl
    )
    assert log_p.shape == log_q.shape == (*shape, 9)
    plain_p = functional.p_posterior(chain.transition, logits, x_t, flat, impl=impl)
    plain_q = functional.q_posterior(chain.transition, x0, x_t, flat, impl=impl)
    assert torch.equal(log_p.view(24, 9), plain_p)
    assert torch.equal(log_q.view(24, 9), plain_q)


def test_times_may_differ_from_token_to_token(impl):
    chain = make_chain("uniform", 9).transition
    x, t = torch.randint(9, (2, 3)), torch.tensor([[1, 2, 6], [4, 4, 1]])
    logits = torch.randn(2, 3, 9)
    together = functional.p_posterior(chain, logits, x, t, impl=impl)
    for n in range(3):
        one = functional.p_posterior(chain, logits[:, n], x[:, n], t[:, n], impl=impl)
        assert_log_close(together[:, n], one.double(), torch.float32, ulps=2)


def test_q_is_of_the_default_dtype(impl):
    chain = make_chain("uniform", 3).transition
    one = torch.ones(1, dtype=torch.int64)
    assert functional.q_posterior(chain, one, one, one, impl=impl).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert functional.q_posterior(chain, one, one, one, impl=impl).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integer_dtype_serves(impl, dtype):
    chain = make_chain("uniform", 9)
    x0, x_t, t = likely_pairs(chain, [1, 6], 3)
    logits = torch.randn(6, 9)
    for call, arguments in [
        (functional.q_posterior, (x0, x_t, t)),
        (functional.p_posterior, (logits, x_t, t)),
    ]:
        narrow = [v if v.is_floating_point() else v.to(dtype) for v in arguments]
        expected = call(chain.transition, *arguments, impl=impl)
        assert torch.equal(call(chain.transition, *narrow, impl=impl), expected)


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradcheck_agrees(impl, family, reverse, first_step):
    chain = make_chain(family, 3)
    _, x_t, t = likely_pairs(chain, [1, 2, 6], 1)

    def compute(logits):
        log_p = functional.p_posterior(
            chain.transition, logits, x_t, t, reverse=reverse, first_step=first_step, impl=impl
        )
        return log_p[log_p > -torch.inf]

    leaf = torch.randn(len(t), 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(compute, leaf)


@given(
    family=st.sampled_from(FAMILIES),
    reverse=st.sampled_from(REVERSE),
    first_step=st.sampled_from(FIRST_STEP),
    num_classes=st.integers(2, 40),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 10**6),
)
def test_any_row_agrees_with_float64(
    impl, family, reverse, first_step, num_classes, dtype, spread, seed
):
    generator = torch.Generator().manual_seed(seed)
    chain = make_chain(family, num_classes)
    _, x_t, t = likely_pairs(chain, [1, 2, 6], 2, seed)
    logits = (spread * torch.randn(6, num_classes, generator=generator)).to(dtype)
    upstream = torch.randn(6, num_classes, generator=generator).to(dtype)
    options = {"reverse": reverse, "first_step": first_step}
    log_p, gradient = log_p_and_gradient(chain, logits, upstream, x_t, t, impl, **options)
    truth, true_gradient = log_p_and_gradient(
        chain, logits.double(), upstream, x_t, t, "reference", **options
    )
    rounding = 0.5 * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    ulps = 64 + (rounding if dtype.itemsize == 2 else 0)
    assert_log_close(log_p.double(), truth, _calculated_in(dtype), ulps)
    floor = 1 + upstream.double().norm(dim=-1)
    assert_gradient_close(gradient, true_gradient, dtype, ulps=64, floor=floor)
