"""The operations on a logistic prediction: as on its logits, whatever the chunks."""

import pytest
import torch
from helpers.compare import assert_close, check_gradient

from d3pm_fast import functional, schedules, transitions
from d3pm_fast.functional import Logistic
from d3pm_fast.predictions import chunks as of_chunks

K, T, SHAPE = 17, 12, (5, 3, 4)
CHAINS = {
    "uniform": transitions.uniform(K, schedules.cosine(T)),
    "absorbing": transitions.absorbing(K, schedules.jsd(T), mask_id=4, data_has_mask=True),
    "gaussian": transitions.discretized_gaussian(K, schedules.linear(T, 0.02, 0.4)),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=[1, 1 << 21], ids=["an item a chunk", "one chunk"])
def chunks(request, monkeypatch):
    monkeypatch.setitem(of_chunks.CHUNK_BYTES, "cpu", request.param)


@pytest.fixture(params=CHAINS)
def problem(request):
    chain = CHAINS[request.param]
    x0 = torch.randint(K, SHAPE)
    t = torch.tensor([1, 2, 6, T - 1, T])
    return chain, x0, functional.q_sample(chain, x0, t), t


def parameters(dtype=torch.float32):
    loc, log_scale = (1.2 * torch.randn(SHAPE) for _ in range(2))
    return tuple(value.to(dtype).requires_grad_() for value in (loc, log_scale))


def truth_of(operation, pair, *args, edge_corrected=False, **options):
    """The operation in float64 on logits that plain PyTorch makes, and both gradients."""
    leaves = [value.detach().double().requires_grad_() for value in pair]
    logits = functional.logistic_logits(*leaves, K, edge_corrected=edge_corrected, impl="reference")
    value = operation(logits, *args, impl="reference", **options)
    return value.detach(), torch.autograd.grad(value.where(value.isfinite(), 0).sum(), leaves)


def rows(gradient):
    """A token's gradient is one number: those of an item are what a row is of here."""
    return gradient.flatten(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edge_corrected", [False, True])
def test_the_loss_is_that_of_the_logits(problem, impl, chunks, dtype, edge_corrected):
    chain, x0, x_t, t = problem
    pair = parameters(dtype)
    options = {"reverse": "posterior_mean", "ce_weight": 0.1, "reduction": "none"}

    def loss(prediction, **kwargs):
        return functional.loss(chain, prediction, x0, x_t, t, **options, **kwargs)

    truth, true_gradients = truth_of(loss, pair, edge_corrected=edge_corrected)
    value = loss(Logistic(*pair, edge_corrected), impl=impl)
    gradients = torch.autograd.grad(value.sum(), pair)
    floor = 1.0 if impl == "reference" else 0.1
    assert_close(value, truth, dtype, ulps=256, scale=truth.abs() + floor)
    for gradient, true_gradient in zip(gradients, true_gradients, strict=True):
        assert gradient.dtype == dtype
        check_gradient(rows(gradient), rows(true_gradient), dtype, ulps=2048, floor=0.1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "batch", "none"])
@pytest.mark.parametrize("masked", [False, True])
def test_reductions_and_masks_are_those_of_logits(problem, cpu, chunks, reduction, masked):
    chain, x0, x_t, t = problem
    pair = parameters(torch.float64)
    options = {"mask": torch.rand(SHAPE) < 0.6 if masked else None, "reduction": reduction}

    def loss(prediction, **kwargs):
        return functional.loss(chain, prediction, x0, x_t, t, **options, **kwargs)

    truth, true_gradients = truth_of(loss, pair)
    value = loss(pair, impl=cpu)
    gradients = torch.autograd.grad(value.sum(), pair)
    torch.testing.assert_close(value.detach(), truth, rtol=1e-11, atol=0)
    for gradient, true_gradient in zip(gradients, true_gradients, strict=True):
        check_gradient(rows(gradient), rows(true_gradient), torch.float64, ulps=1 << 14)


def test_p_posterior_and_its_gradient_are_those_of_the_logits(problem, impl, chunks):
    chain, _, x_t, t = problem
    pair = parameters(torch.float64)

    def log_p(prediction, **kwargs):
        return functional.p_posterior(chain, prediction, x_t, t, **kwargs)

    truth, true_gradients = truth_of(log_p, pair)
    value = log_p(pair, impl=impl)
    gradients = torch.autograd.grad(value.where(value.isfinite(), 0).sum(), pair)
    assert_close(value, truth, torch.float64, ulps=256, scale=truth.abs() + 1)
    for gradient, true_gradient in zip(gradients, true_gradients, strict=True):
        check_gradient(rows(gradient), rows(true_gradient), torch.float64, ulps=1 << 14, floor=1.0)


def test_draws_are_those_of_the_logits_whatever_the_chunks(problem, impl, chunks):
    chain, _, x_t, t = problem
    pair = parameters(torch.float64)
    logits = functional.logistic_logits(*pair, K)
    seeds = torch.arange(len(t))
    for s in (None, torch.zeros_like(t)):
        drawn = functional.p_sample(chain, pair, x_t, t, s, seeds=seeds, impl=impl)
        expected = functional.p_sample(chain, logits, x_t, t, s, seeds=seeds, impl=impl)
        assert torch.equal(drawn, expected)


def test_times_of_each_token_are_cut_with_the_batch(cpu, chunks):
    chain = CHAINS["gaussian"]
    x0, t = torch.randint(K, SHAPE), torch.randint(1, T + 1, SHAPE)
    x_t = functional.q_sample(chain, x0, t)
    pair = parameters(torch.float64)
    value = functional.loss(chain, pair, x0, x_t, t, impl=cpu)
    logits = functional.logistic_logits(*pair, K)
    torch.testing.assert_close(value, functional.loss(chain, logits, x0, x_t, t, impl=cpu))


def test_an_empty_batch_has_an_empty_loss(cpu):
    empty = torch.zeros(0, 3)
    tokens = empty.long()
    args = (CHAINS["uniform"], (empty, empty), tokens, tokens, torch.zeros(0).long())
    assert functional.loss(*args, reduction="none", impl=cpu).shape == (0, 3)


def test_a_pair_of_another_shape_is_named(problem):
    chain, x0, x_t, t = problem
    loc, log_scale = parameters()
    with pytest.raises(ValueError, match=r"loc must have shape \(5, 3, 4\), got \(5, 3\)"):
        functional.loss(chain, (loc[..., 0], log_scale[..., 0]), x0, x_t, t)
    with pytest.raises(ValueError, match="log_scale must have shape"):
        functional.loss(chain, (loc, log_scale[0]), x0, x_t, t)


def test_one_graph_of_the_compiler(problem, cpu):
    chain, x0, x_t, t = problem

    def loss(loc, log_scale):
        return functional.loss(chain, (loc, log_scale), x0, x_t, t, impl=cpu)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    pair = parameters()
    results = [
        (value.detach(), *torch.autograd.grad(value, pair))
        for value in (loss(*pair), compiled(*pair))
    ]
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(eager, other)


def test_what_is_masked_has_no_gradient_whatever_it_is(impl):
    chain = transitions.uniform(20, [0.1, 0.2, 0.3])
    loc = torch.tensor([[0.0, torch.nan, torch.inf]], requires_grad=True)
    log_scale = torch.zeros(1, 3, requires_grad=True)
    tokens, mask = torch.zeros(1, 3).long(), torch.tensor([[True, False, False]])
    arguments = tokens, tokens, torch.tensor([3])
    functional.loss(chain, (loc, log_scale), *arguments, mask=mask, impl=impl).backward()
    for gradient in (loc.grad, log_scale.grad):
        assert gradient[0, 0] != 0
        assert gradient[0, 1:].tolist() == [0, 0]
