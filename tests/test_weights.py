"""Factors of tokens, what a mean divides by, and the terms that a loss is made of."""

import math

import pytest
import torch
from helpers.compare import assert_close, check_gradient
from hypothesis import given
from hypothesis import strategies as st

import d3pm_fast as d3
from d3pm_fast import functional, schedules, transitions

ALSO_BY = ("triton", "cuda")  # the fixture impl; see conftest.py
K, T = 7, 5
BETAS = torch.linspace(0.1, 0.5, T, dtype=torch.float64)
POINTS = torch.arange(K, dtype=torch.float64)[:, None] ** 1.1  # on a line: all are linked
RANK_ONE = {
    "uniform": transitions.uniform(K, BETAS),
    "absorbing": transitions.absorbing(K, BETAS, K - 1),
    "marginal": transitions.marginal(K, BETAS, torch.arange(1, K + 1) / 28),
    "continuous": transitions.mask_and_uniform(K, schedules.continuous.cosine(), 2, 0.3),
}
DENSE = {
    "discretized_gaussian": transitions.discretized_gaussian(K, BETAS),
    "sparse": transitions.nearest_neighbor(POINTS, 2, BETAS.cumsum(0), memory_budget=1),
}
CHAINS = RANK_ONE | DENSE
FIRST_STEP = ["posterior", "logits"]


def problem(chain, shape=(6, 4), dtype=torch.float64):
    """Data, x_t, times and a leaf of logits; two of the times are 1."""
    x0 = torch.randint(K, shape)
    x0 = torch.where(x0 == chain.mask_id, (x0 + 1) % K, x0)
    if chain.has_steps:
        t = torch.randint(1, T + 1, shape[:1])
        t[:2] = 1
    else:
        t = 0.1 + 0.8 * torch.rand(shape[:1], dtype=torch.float64)
    x_t = functional.q_sample(chain, x0, t)
    logits = (2 * torch.randn(*shape, K, dtype=torch.float64)).to(dtype)
    return logits.requires_grad_(), x0, x_t, t


def serves(impl, chain):
    """Whether an implementation has a kernel for a chain."""
    return impl != "cuda" or chain in RANK_ONE.values()


def of_tokens(chain, tensors, **options):
    """Each token's loss and its gradient by what has no factors."""
    logits, x0, x_t, t = tensors
    leaf = logits.detach().double().requires_grad_()
    loss = functional.loss(chain, leaf, x0, x_t, t, reduction="none", impl="reference", **options)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("name", CHAINS)
def test_factors_are_those_of_losses_and_gradients(impl, name, first_step, per_token):
    chain = CHAINS[name]
    if not serves(impl, chain):
        pytest.skip("no kernel")
    logits, x0, x_t, t = tensors = problem(chain)
    weights = 0.5 + torch.rand(x0.shape if per_token else x0.shape[:1])
    weights[1] = 0
    options = {"first_step": first_step, "ce_weight": 0.3}
    tokens, gradient = of_tokens(chain, tensors, **options)
    factors = weights.double().reshape(*weights.shape, *[1] * (2 - weights.ndim))
    loss = functional.loss(
        chain, logits, x0, x_t, t, weights=weights, reduction="none", impl=impl, **options
    )
    (actual,) = torch.autograd.grad(loss.sum(), logits)
    assert_close(loss, tokens * factors, torch.float64, ulps=4096)
    check_gradient(actual, gradient * factors.unsqueeze(-1), torch.float64, ulps=4096, floor=0.01)


@pytest.mark.parametrize("reduction", ["mean", "sum", "batch"])
@pytest.mark.parametrize("name", CHAINS)
def test_reductions_have_factors_and_the_mask(impl, name, reduction):
    chain = CHAINS[name]
    if not serves(impl, chain):
        pytest.skip("no kernel")
    logits, x0, x_t, t = tensors = problem(chain)
    weights, mask = 3 * torch.rand(x0.shape), torch.rand(x0.shape) < 0.7
    tokens, gradient = of_tokens(chain, tensors)
    factors = weights.double() * mask
    loss = functional.loss(
        chain, logits, x0, x_t, t, weights=weights, mask=mask, reduction=reduction, impl=impl
    )
    (actual,) = torch.autograd.grad(loss.sum(), logits)
    share = 1 / mask.sum().double() if reduction == "mean" else 1.0
    total = (tokens * factors * share).sum(dim=1 if reduction == "batch" else (0, 1))
    assert_close(loss, total, torch.float64, ulps=4096)
    expected = gradient * (factors * share).unsqueeze(-1)
    check_gradient(actual, expected, torch.float64, ulps=4096, floor=0.01 * share)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_weights", [False, True])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_mean_divides_by_the_denominator(impl, kind, with_weights, dtype):
    chain = CHAINS["uniform"]
    logits, x0, x_t, t = tensors = problem(chain, dtype=dtype)
    weights = 0.5 + torch.rand(x0.shape[0]) if with_weights else None
    denominator = kind(37.5)
    options = {"weights": weights, "denominator": denominator, "impl": impl}
    loss = functional.loss(chain, logits, x0, x_t, t, **options)
    (actual,) = torch.autograd.grad(loss, logits)
    tokens, gradient = of_tokens(chain, tensors)
    factors = (torch.ones(1) if weights is None else weights).double()[:, None] / 37.5
    assert_close(loss, (tokens * factors).sum(), dtype, ulps=64)
    check_gradient(actual, gradient * factors[..., None], dtype, ulps=64, floor=0.01 / 37.5)


def test_float16_gradients_are_divided_once_the_scaler_is_in(impl):
    """A gradient of 1e-9 is below float16's numbers; times a scaler's 2^16 it is not."""
    logits, x0, x_t, t = tensors = problem(CHAINS["uniform"], dtype=torch.float16)
    loss = functional.loss(
        CHAINS["uniform"], logits, x0, x_t, t, weights=torch.ones(6), denominator=1e8, impl=impl
    )
    (actual,) = torch.autograd.grad(loss * 2.0**16, logits)
    _, gradient = of_tokens(CHAINS["uniform"], tensors)
    check_gradient(actual, gradient * (2.0**16 / 1e8), torch.float16, ulps=64, floor=1e-5)


@pytest.mark.parametrize(("vb_weight", "ce_weight"), [(1.0, 0.0), (0.0, 1.0), (0.7, 0.1)])
@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("name", CHAINS)
def test_terms_are_those_of_the_loss(impl, name, first_step, vb_weight, ce_weight):
    chain = CHAINS[name]
    if not serves(impl, chain):
        pytest.skip("no kernel")
    logits, x0, x_t, t = tensors = problem(chain)
    weights, mask = 3 * torch.rand(x0.shape), torch.rand(x0.shape) < 0.7
    bound, by_bound = of_tokens(chain, tensors, first_step=first_step)
    entropy, by_entropy = of_tokens(
        chain, tensors, first_step=first_step, vb_weight=0.0, ce_weight=1.0
    )
    factors = weights.double() * mask
    terms = functional.loss_terms(
        chain, logits, x0, x_t, t, first_step=first_step, vb_weight=vb_weight,
        ce_weight=ce_weight, weights=weights, mask=mask, reduction="none", impl=impl,
    )  # fmt: skip
    (actual,) = torch.autograd.grad(terms.loss.sum(), logits)
    assert_close(terms.vb, bound * factors, torch.float64, ulps=4096)
    assert_close(terms.ce, entropy * factors, torch.float64, ulps=4096)
    total = vb_weight * bound + ce_weight * entropy
    assert_close(terms.loss, total * factors, torch.float64, ulps=4096)
    gradient = (vb_weight * by_bound + ce_weight * by_entropy) * factors.unsqueeze(-1)
    check_gradient(actual, gradient, torch.float64, ulps=4096, floor=0.01)
    assert not terms.vb.requires_grad
    assert not terms.ce.requires_grad


@pytest.mark.parametrize("reduction", ["mean", "sum", "batch"])
@pytest.mark.parametrize("name", ["absorbing", "discretized_gaussian"])
def test_terms_are_reduced_as_the_loss(impl, name, reduction):
    chain = CHAINS[name]
    if not serves(impl, chain):
        pytest.skip("no kernel")
    tensors = problem(chain)
    options = {"mask": torch.rand(6, 4) < 0.7, "ce_weight": 0.1, "impl": impl}
    every = functional.loss_terms(chain, *tensors, reduction="none", **options)
    made = functional.loss_terms(chain, *tensors, reduction=reduction, **options)
    for tokens, value in zip(every, made, strict=True):
        total = tokens.sum(dim=1 if reduction == "batch" else (0, 1))
        share = 1 / options["mask"].sum().double() if reduction == "mean" else 1
        assert_close(value, total * share, torch.float64, ulps=64)


def test_learned_weights_of_terms_leave_the_terms_as_they_are():
    chain = CHAINS["uniform"]
    tensors = problem(chain)
    weight = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    terms = functional.loss_terms(chain, *tensors, ce_weight=weight)
    plain = functional.loss_terms(chain, *tensors, ce_weight=0.25)
    for value, expected in zip(terms, plain, strict=True):
        assert_close(value, expected, torch.float64, ulps=64)
    (of_weight,) = torch.autograd.grad(terms.loss, weight)
    assert_close(of_weight, plain.ce, torch.float64, ulps=64)
    assert not terms.vb.requires_grad
    assert not terms.ce.requires_grad


def test_a_token_of_weight_0_may_hold_anything(impl):
    chain = CHAINS["absorbing"]
    logits, x0, x_t, t = problem(chain)
    weights = torch.ones(x0.shape)
    weights[0] = 0
    with torch.no_grad():
        logits[0] = torch.nan
    x0[0], x_t[0] = 0, 1  # what the chain cannot make
    terms = functional.loss_terms(
        chain, logits, x0, x_t, t, weights=weights, reduction="none", impl=impl
    )
    (gradient,) = torch.autograd.grad(terms.loss.sum(), logits)
    for value in (*terms, gradient):
        assert bool((value[0] == 0).all())
        assert not bool(value[1:].isnan().any())


def test_so_may_its_parameters_and_data(impl):
    """NaN for a logistic's parameters, and the mask for data that never hold it."""
    chain, (_, x0, x_t, t) = CHAINS["absorbing"], problem(CHAINS["absorbing"])
    parameters = [torch.randn(x0.shape, dtype=torch.float64) for _ in range(2)]
    weights = torch.ones(6)
    weights[0], x0[0] = 0, chain.mask_id
    for parameter in parameters:
        parameter[0] = torch.nan
        parameter.requires_grad_()
    loss = functional.loss(
        chain, functional.Logistic(*parameters), x0, x_t, t, weights=weights, impl=impl
    )
    for gradient in torch.autograd.grad(loss, parameters):
        assert bool((gradient[0] == 0).all())
        assert bool((gradient[1:] != 0).any())
        assert bool(gradient.isfinite().all())


@given(power=st.floats(-30, 30), negative=st.booleans())
def test_factors_of_any_size_keep_the_digits(cpu, power, negative):
    """Losses and gradients are those of factor 1, times the factor, to rounding."""
    chain = CHAINS["uniform"]
    logits, x0, x_t, t = problem(chain, dtype=torch.float32)
    factor = math.copysign(10.0**power, -1.0 if negative else 1.0)
    made = {}
    for weights in (None, torch.full((6,), factor)):
        loss = functional.loss(chain, logits, x0, x_t, t, weights=weights, reduction="none")
        made[weights is None] = loss, *torch.autograd.grad(loss.sum(), logits)
    factor = float(torch.tensor(factor))
    for actual, plain in zip(made[False], made[True], strict=True):
        expected = plain.double() * factor
        size = plain.double().abs().amax(-1, keepdim=True).clamp(min=0.1)  # of a row's terms
        scale = size * abs(factor)
        assert_close(actual, expected, torch.float32, ulps=64, scale=scale)


@pytest.mark.parametrize("name", ["uniform", "absorbing"])
def test_a_logistic_prediction_has_factors_and_terms(impl, name):
    chain, (_, x0, x_t, t) = CHAINS[name], problem(CHAINS[name])
    parameters = [torch.randn(x0.shape, dtype=torch.float64).requires_grad_() for _ in range(2)]
    weights = torch.rand(x0.shape)
    logits = functional.logistic_logits(*parameters, K)
    made = []
    for prediction in (functional.Logistic(*parameters), logits):
        by = impl if prediction is not logits else "reference"
        terms = functional.loss_terms(
            chain, prediction, x0, x_t, t, weights=weights, denominator=5.0, ce_weight=0.2, impl=by
        )
        made.append((*terms, *torch.autograd.grad(terms.loss, parameters, retain_graph=True)))
    for actual, expected in zip(*made, strict=True):
        assert_close(actual, expected, torch.float64, ulps=1 << 14, scale=expected.abs() + 0.1)


def test_the_module_hands_them_on():
    diffusion = d3.D3PM(CHAINS["uniform"], first_step="logits")
    logits, x0, x_t, t = problem(diffusion.transition)
    weights = torch.rand(6)
    terms = diffusion.loss_terms(logits, x0, x_t, t, ce_weight=0.1, weights=weights, denominator=9)
    loss = diffusion.loss(logits, x0, x_t, t, None, 1.0, 0.1, None, weights, "mean", 9)
    assert_close(terms.loss, loss, torch.float64)
    assert_close(terms.vb + 0.1 * terms.ce, loss, torch.float64)


def test_a_graph_of_the_gradient_has_the_factors():
    chain = CHAINS["uniform"]
    logits, x0, x_t, t = problem(chain, (2, 2))
    weights = torch.rand(2, 2).double()

    def loss(leaf):
        terms = functional.loss_terms(
            chain, leaf, x0, x_t, t, weights=weights, ce_weight=0.2, denominator=3.0
        )
        return terms.loss

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"weights": torch.ones(6, 3)}, ValueError, r"weights must have shape \(6,\) or \(6, 4\)"),
        ({"weights": torch.ones(6).long()}, TypeError, "weights must be float32"),
        ({"weights": torch.ones(6, requires_grad=True)}, ValueError, "not require a gradient"),
        ({"weights": [1.0] * 6}, TypeError, "weights must be a tensor"),
        ({"denominator": 0.0}, ValueError, "denominator must be above 0"),
        ({"denominator": torch.ones(2)}, ValueError, r"shape \(\), got \(2,\)"),
        ({"denominator": 2.0, "reduction": "sum"}, ValueError, "what a mean divides by"),
    ],
)
def test_bad_arguments_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        functional.loss(CHAINS["uniform"], *problem(CHAINS["uniform"]), **options)
