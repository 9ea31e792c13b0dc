"""Dense chains whose data never hold the mask: its logit counts as -inf, or is left out."""

import importlib
import re

import pytest
import torch
from helpers.compare import assert_close, check_gradient, same_bits
from helpers.masks import forbidden, problem

import d3pm_fast as d3
from d3pm_fast import functional, transitions

ALSO_BY = ("triton",)  # the fixture impl; see conftest.py
BETAS = torch.tensor([0.1, 0.3, 0.2, 0.6], dtype=torch.float64)
MASK_BETAS = torch.tensor([0.2, 0.1, 0.4, 1.0], dtype=torch.float64)
REVERSE = ["joint", "posterior_mean"]
FIRST_STEP = ["posterior", "logits"]
SIZES = [5, 33]


def make(k, data_has_mask=False):
    visible = transitions.band(k - 1, BETAS, 2)
    return transitions.with_mask(visible, MASK_BETAS, data_has_mask=data_has_mask)


def made_of(rows):
    """Logits that hold junk at the mask, and such without it."""
    return rows, rows[..., :-1].contiguous()


USUAL = {"k": 5, "reverse": "joint", "first_step": "logits", "shaping": None}
in_full = pytest.mark.exhaustive(
    where=lambda impl, **others: impl == "triton" and not others.items() <= USUAL.items()
)


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@in_full
@pytest.mark.parametrize("k", SIZES)
def test_a_loss_is_that_of_forbidden_logits(impl, k, reverse, first_step):
    chain = make(k)
    logits, x0, x_t, t, _ = problem(chain)
    options = {"reverse": reverse, "first_step": first_step, "ce_weight": 0.1, "reduction": "none"}
    clean = forbidden(logits, chain).requires_grad_()
    truth = functional.loss_terms(make(k, True), clean, x0, x_t, t, impl="reference", **options)
    (true_gradient,) = torch.autograd.grad(truth.loss.sum(), clean)
    for rows in made_of(logits):
        leaf = rows.clone().requires_grad_()
        loss = functional.loss(chain, leaf, x0, x_t, t, impl=impl, **options)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        assert_close(loss, truth.loss, torch.float64, ulps=4096, scale=truth.loss.abs() + 1e-3)
        expected = true_gradient[..., : leaf.shape[-1]]
        check_gradient(gradient, expected, torch.float64, ulps=4096, floor=1e-3)
        if leaf.shape[-1] == k:
            assert bool((gradient[..., -1] == 0).all())
        terms = functional.loss_terms(chain, leaf, x0, x_t, t, impl=impl, **options)
        for found, term in zip(terms, truth, strict=True):
            assert_close(found, term, torch.float64, ulps=4096, scale=term.abs() + 1e-3)


@pytest.mark.exhaustive(where=lambda impl, dtype: impl == "triton" and dtype != torch.bfloat16)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_leaves_the_mask_out(impl, dtype):
    chain = make(33)
    logits, x0, x_t, t, _ = problem(chain, dtype)
    clean = forbidden(logits, chain).double().requires_grad_()
    truth = functional.loss(make(33, True), clean, x0, x_t, t, reduction="none", impl="reference")
    (true_gradient,) = torch.autograd.grad(truth.sum(), clean)
    for rows in made_of(logits):
        leaf = rows.clone().requires_grad_()
        loss = functional.loss(chain, leaf, x0, x_t, t, reduction="none", impl=impl)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        assert gradient.dtype == dtype
        assert_close(loss, truth, dtype, ulps=64, scale=truth.abs() + 0.1)
        expected = true_gradient[..., : leaf.shape[-1]]
        check_gradient(gradient, expected, dtype, ulps=64, floor=0.01)


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@in_full
@pytest.mark.parametrize("k", SIZES)
def test_a_posterior_is_that_of_forbidden_logits(impl, k, reverse, first_step):
    chain = make(k)
    logits, _, x_t, t, _ = problem(chain)
    options = {"reverse": reverse, "first_step": first_step}
    clean = forbidden(logits, chain).requires_grad_()
    truth = functional.p_posterior(make(k, True), clean, x_t, t, impl="reference", **options)
    upstream = torch.randn_like(truth).where(truth > -torch.inf, 0)
    (true_gradient,) = torch.autograd.grad(truth, clean, upstream)
    for rows in made_of(logits):
        leaf = rows.clone().requires_grad_()
        log_p = functional.p_posterior(chain, leaf, x_t, t, impl=impl, **options)
        (gradient,) = torch.autograd.grad(log_p, leaf, upstream)
        assert_close(log_p, truth, torch.float64, ulps=4096, scale=truth.abs() + 1)
        expected = true_gradient[..., : leaf.shape[-1]]
        check_gradient(gradient, expected, torch.float64, ulps=4096, floor=1e-3)
        if leaf.shape[-1] == k:
            assert bool((gradient[..., -1] == 0).all())


@pytest.mark.parametrize("shaping", [None, {"temperature": 0.7, "top_k": 3, "top_p": 0.9}])
@in_full
@pytest.mark.parametrize("k", SIZES)
def test_draws_are_those_of_forbidden_logits(impl, k, shaping):
    chain = make(k)
    logits, _, x_t, t, _ = problem(chain)

    def drawn(chain, rows, s):
        given = rows if shaping is None else functional.Shaped(rows, **shaping)
        return functional.p_sample(chain, given, x_t, t, s, seeds=torch.arange(4), impl=impl)

    for s in (None, 0 * t):
        expected = drawn(make(k, True), forbidden(logits, chain), s)
        for rows in made_of(logits):
            assert torch.equal(drawn(chain, rows, s), expected)


def test_guided_logits_forbid_the_mask(impl):
    chain = make(6)
    logits, _, x_t, t, _ = problem(chain)
    other = torch.randn_like(logits)

    def log_p(rows, unconditional):
        shaped = functional.Shaped(rows, unconditional, guidance=2.0, top_k=2)
        return functional.p_posterior(chain, shaped, x_t, t, impl=impl)

    expected = log_p(forbidden(logits, chain), forbidden(other, chain))
    assert_close(log_p(logits, other), expected, torch.float64, ulps=64)
    assert_close(log_p(logits[..., :-1], other[..., :-1]), expected, torch.float64, ulps=64)


def test_a_logistic_prediction_forbids_the_mask(impl):
    chain, with_mask = make(9), make(9, True)
    _, x0, x_t, t, _ = problem(chain)
    parameters = [torch.randn(x0.shape, dtype=torch.float64).requires_grad_() for _ in range(2)]
    clean = forbidden(functional.logistic_logits(*parameters, 9), chain)
    truth = functional.loss(with_mask, clean, x0, x_t, t, impl="reference")
    expected = torch.autograd.grad(truth, parameters, retain_graph=True)
    given = functional.Logistic(*parameters)
    loss = functional.loss(chain, given, x0, x_t, t, impl=impl)
    assert_close(loss, truth, torch.float64, ulps=4096)
    for actual, gradient in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        check_gradient(actual, gradient, torch.float64, ulps=1 << 14, floor=1e-3)
    log_p = functional.p_posterior(chain, given, x_t, t, impl=impl)
    truth = functional.p_posterior(with_mask, clean, x_t, t, impl="reference")
    assert_close(log_p, truth, torch.float64, ulps=4096, scale=truth.abs() + 1)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_second_derivatives_and_tangents_are_those_of_forbidden_logits(impl):
    chain = make(5)
    logits, x0, x_t, t, _ = problem(chain)
    direction = torch.randn_like(logits)

    def loss_of(rows, chain=chain, impl=impl):
        return functional.loss(chain, rows, x0, x_t, t, impl=impl)

    def truth_of(rows):
        inside = torch.arange(5) < 4
        return loss_of(rows.where(inside, -torch.inf), make(5, True), "reference")

    for found, expected in (
        (curvature(f, logits, direction) for f in (loss_of, truth_of)),
        (torch.func.jvp(f, (logits,), (direction,)) for f in (loss_of, truth_of)),
    ):
        for actual, value in zip(found, expected, strict=True):
            torch.testing.assert_close(actual, value, rtol=1e-9, atol=1e-12)


def curvature(function, rows, direction):
    leaf = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    (product,) = torch.autograd.grad((gradient * direction).sum(), leaf)
    return gradient, product


def test_samples_and_bounds_of_a_denoiser_that_leaves_the_mask_out():
    diffusion, with_mask = d3.D3PM(make(6)), d3.D3PM(make(6, True))
    weight = torch.randn(6, 5)
    seeds = torch.arange(8)
    denoisers = {
        "left out": lambda x_t, t: weight[x_t],
        "junk": lambda x_t, t: torch.nn.functional.pad(weight[x_t], (0, 1), value=50.0),
        "forbidden": lambda x_t, t: torch.nn.functional.pad(weight[x_t], (0, 1), value=-torch.inf),
    }
    x0 = torch.randint(5, (8, 3))
    truth = with_mask.sample(denoisers["forbidden"], (8, 3), seeds=seeds)
    bound = with_mask.elbo(denoisers["forbidden"], x0, seeds=seeds).bits_per_dim
    for denoiser in denoisers.values():
        x = diffusion.sample(denoiser, (8, 3), seeds=seeds)
        assert torch.equal(x, truth)
        assert bool((x < 5).all())
        found = diffusion.elbo(denoiser, x0, seeds=seeds).bits_per_dim
        torch.testing.assert_close(found, bound)


def test_data_that_hold_the_mask_are_refused(impl):
    chain = make(5)
    logits, x0, x_t, t, _ = problem(chain)
    x0[2, 1] = x_t[2, 1] = 4
    message = re.escape("x0 must not hold the mask, class 4, got one at index (2, 1)")
    if x0.device.type == "cpu" and not (impl == "triton" and torch.cuda.is_available()):
        with pytest.raises(ValueError, match=message):
            functional.loss(chain, logits, x0, x_t, t, impl=impl)
    else:
        loss = functional.loss(chain, logits, x0, x_t, t, reduction="none", impl=impl)
        assert torch.equal(loss.isnan(), x0 == 4)
    left_out = functional.loss(chain, logits, x0, x_t, t, mask=x0 != 4, impl=impl)
    assert bool(left_out.isfinite())


def test_a_loss_of_data_that_hold_the_mask_is_nan_where_they_are_not_read(impl, monkeypatch):
    module = importlib.import_module("d3pm_fast.functional.loss")
    monkeypatch.setattr(module, "can_be_read", lambda values: False)
    chain = make(5)
    logits, x0, x_t, t, _ = problem(chain)
    x0[2, 1] = x_t[2, 1] = 4
    if impl == "cpu":
        with pytest.raises(IndexError, match="x0"):
            functional.loss(chain, logits, x0, x_t, t, impl=impl)
        return
    loss = functional.loss(chain, logits, x0, x_t, t, reduction="none", impl=impl)
    assert torch.equal(loss.isnan(), x0 == 4)


def test_what_data_hold_is_no_part_of_the_chain():
    chains = [make(6, held) for held in (False, True)]
    assert [chain.forbidden for chain in chains] == [5, -1]
    assert chains[0].fingerprint == chains[1].fingerprint
    x0, t = torch.randint(5, (4, 3)), torch.tensor([1, 2, 3, 4])
    x_t = functional.q_sample(chains[0], x0, t, seeds=torch.arange(4))
    q, other = (functional.q_posterior(chain, x0, x_t, t) for chain in chains)
    assert same_bits(q, other)
    first, second = (d3.D3PM(chain) for chain in chains)
    second.load_state_dict(first.state_dict())


def test_where_data_hold_the_mask_no_logit_is_left_out():
    chain = make(5, True)
    logits, x0, x_t, t, _ = problem(chain)
    with pytest.raises(ValueError, match=r"logits must have shape \(4, 3, 5\), got \(4, 3, 4\)"):
        functional.loss(chain, logits[..., :4], x0, x_t, t)
