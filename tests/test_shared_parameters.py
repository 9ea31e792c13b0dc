"""A prediction with a parameter that all tokens share: logits ``h W^T``, of h a token and one W."""

from typing import NamedTuple

import pytest
import torch
from helpers.compare import assert_close, check_gradient, compute_dtype
from torch.func import grad, jvp

from d3pm_fast import derivatives, functional, predictions, schedules, transitions
from d3pm_fast._checks import check_float, check_no_nan, check_shape
from d3pm_fast.predictions import Prediction
from d3pm_fast.predictions import chunks as of_chunks
from d3pm_fast.predictions.logits import LogitsPrediction

K, T, D, SHAPE = 7, 12, 3, (5, 4)
CHAINS = {
    "uniform": transitions.uniform(K, schedules.cosine(T)),
    "absorbing": transitions.absorbing(K, schedules.jsd(T), mask_id=4, data_has_mask=True),
    "gaussian": transitions.discretized_gaussian(K, schedules.linear(T, 0.02, 0.4)),
}


class Linear(NamedTuple):
    """Logits ``hidden weight^T``: ``(B, *S, D)`` and ``(K, D)``."""

    hidden: torch.Tensor
    weight: torch.Tensor


class LinearPrediction(Prediction):
    num_shared = 1

    def __init__(self, given, classes):
        self.given, self.classes = given, classes

    @property
    def shape(self):
        return tuple(self.given.hidden.shape[:-1])

    @property
    def parameters(self):
        return tuple(self.given)

    def check(self, shape):
        hidden, weight = self.given
        check_float("hidden", hidden)
        check_shape("hidden", hidden, (*shape, hidden.shape[-1]))
        check_shape("weight", weight, (self.num_classes, hidden.shape[-1]))

    def check_no_nan(self):
        check_no_nan("logits", self.given)

    def double(self):
        return self.with_given(*(x.double() for x in self.given))

    def served_by(self, implementation, _reads_classes_first=False):
        if implementation == "reference" or derivatives.are_asked(*self.given):
            return LogitsPrediction(self.meaning(*self.given), self.classes)
        return self

    def masked(self, mask):
        hidden, weight = self.given
        return self.with_given(hidden.where(mask.unsqueeze(-1), 0), weight)

    def logits(self, *parameters):
        hidden, weight = to_compute(parameters)
        return hidden @ weight.T

    meaning = logits

    def pull(self, parameters, grad):
        hidden, weight = to_compute(parameters)
        return grad @ weight, grad.flatten(0, -2).T @ hidden.flatten(0, -2)

    def row(self, token):
        hidden, weight = self.given
        return weight @ hidden[token]

    def with_given(self, *given):
        return LinearPrediction(Linear(*given), self.classes)


def to_compute(parameters):
    return [x.to(compute_dtype(x.dtype)) for x in parameters]


@pytest.fixture(autouse=True)
def linear_is_a_kind(monkeypatch):
    monkeypatch.setattr(predictions, "_KINDS", {Linear: LinearPrediction, **predictions._KINDS})


@pytest.fixture(params=[1, 2 * 4 * K * 4, 1 << 21], ids=["an item a chunk", "two", "all"])
def chunks(request, monkeypatch):
    monkeypatch.setitem(of_chunks.CHUNK_BYTES, "cpu", request.param)


@pytest.fixture(params=CHAINS)
def problem(request):
    chain = CHAINS[request.param]
    x0, t = torch.randint(K, SHAPE), torch.tensor([1, 2, 6, T - 1, T])
    return chain, x0, functional.q_sample(chain, x0, t), t


def parameters(dtype=torch.float64):
    hidden, weight = torch.randn(*SHAPE, D), torch.randn(K, D)
    return [x.to(dtype).requires_grad_() for x in (hidden, weight)]


def by_autograd(operation, leaves, upstream):
    """The operation in float64 on logits of plain PyTorch, and both gradients by autograd."""
    hidden, weight = (x.detach().double().requires_grad_() for x in leaves)
    value = operation(hidden @ weight.T, impl="reference")
    return value.detach(), torch.autograd.grad(value, (hidden, weight), upstream.double())


def check(operation, leaves, impl, dtype, ulps):
    """Compare the value, and gradients for an upstream gradient that differs between tokens."""
    value = operation(Linear(*leaves), impl=impl)
    upstream = torch.rand(value.shape).to(value.dtype) + 0.5
    truth, true_gradients = by_autograd(operation, leaves, upstream)
    assert_close(value, truth, dtype, ulps=ulps, scale=truth.abs() + 1)
    for gradient, expected in zip(
        torch.autograd.grad(value, leaves, upstream), true_gradients, strict=True
    ):
        assert gradient.dtype == dtype
        check_gradient(gradient.flatten(), expected.flatten(), dtype, ulps=ulps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batch"])
def test_loss(problem, impl, chunks, reduction, masked, dtype):
    chain, *tokens = problem
    mask = torch.rand(SHAPE) < 0.6 if masked else None
    options = {"mask": mask, "reduction": reduction, "ce_weight": 0.1}

    def loss(prediction, **kwargs):
        return functional.loss(chain, prediction, *tokens, **options, **kwargs)

    check(loss, parameters(dtype), impl, dtype, ulps=512)


def test_posterior(problem, impl, chunks):
    chain, _, x_t, t = problem

    def p_posterior(prediction, **kwargs):
        log_p = functional.p_posterior(chain, prediction, x_t, t, **kwargs)
        return log_p.where(log_p.isfinite(), 0)

    check(p_posterior, parameters(), impl, torch.float64, ulps=512)


def test_draws_are_those_of_the_logits(problem, cpu, chunks):
    chain, _, x_t, t = problem
    hidden, weight = parameters()
    drawn, expected = (
        functional.p_sample(chain, prediction, x_t, t, seeds=torch.arange(5), impl=cpu)
        for prediction in (Linear(hidden, weight), hidden @ weight.T)
    )
    assert torch.equal(drawn, expected)


def test_tokens_that_do_not_count_may_hold_anything(problem, cpu, chunks):
    chain, *tokens = problem
    mask = torch.rand(SHAPE) < 0.6
    hidden, weight = parameters()
    options = {"mask": mask, "reduction": "sum", "impl": cpu}
    expected = functional.loss(chain, hidden @ weight.T, *tokens, **options)
    wild = hidden.detach().masked_fill(~mask.unsqueeze(-1), torch.nan).requires_grad_()
    value = functional.loss(chain, Linear(wild, weight), *tokens, **options)
    torch.testing.assert_close(value, expected)
    of_hidden, of_weight = torch.autograd.grad(value, (wild, weight))
    assert bool((of_hidden[~mask] == 0).all())
    assert bool(of_weight.isfinite().all())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_derivatives_of_gradients_and_transforms(problem, cpu, chunks, reduction):
    chain, *tokens = problem
    leaves = parameters()

    def loss(prediction, impl=cpu):
        losses = functional.loss(chain, prediction, *tokens, reduction=reduction, impl=impl)
        return (losses**2).sum()

    def of_parameters(hidden, weight):
        return loss(Linear(hidden, weight))

    def by_reference(hidden, weight):
        return loss(hidden @ weight.T, "reference")

    along = tuple(torch.randn_like(x) for x in leaves)
    tangents = (jvp(f, tuple(leaves), along)[1] for f in (of_parameters, by_reference))
    torch.testing.assert_close(*tangents)
    for transform in (
        lambda f: torch.autograd.functional.vhp(f, tuple(leaves), along)[1],
        lambda f: grad(f, argnums=(0, 1))(*leaves),
    ):
        results = zip(transform(of_parameters), transform(by_reference), strict=True)
        for found, expected in results:
            check_gradient(found.flatten(), expected.flatten(), torch.float64, ulps=2**12)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_compiled_loss(cpu, chunks, reduction):
    chain, x0, t = CHAINS["uniform"], torch.randint(K, SHAPE), torch.tensor([1, 2, 6, T - 1, T])
    x_t, leaves = functional.q_sample(chain, x0, t), parameters()

    def loss(hidden, weight):
        prediction = Linear(hidden, weight)
        losses = functional.loss(chain, prediction, x0, x_t, t, reduction=reduction, impl=cpu)
        return (losses**2).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = (torch.autograd.grad(f(*leaves), leaves) for f in (compiled, loss))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)
