"""Logits ``hidden weight^T + bias`` that a loss makes some rows at a time, against whole ones."""

import os

import pytest
import torch
import torch.nn.functional as F
from helpers.compare import (
    assert_close,
    assert_gradient_close,
    check_gradient,
    storage_error,
    unit,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.func import grad, jvp

from d3pm_fast import D3PM, functional, schedules, transitions
from d3pm_fast.functional import Linear
from d3pm_fast.ops.linear import by_rows
from d3pm_fast.ops.linear import rows as of_rows

ALSO_BY = ("triton", "cuda")

# Triton's interpreter is slow: `test_loss` has it in the quick tests, too.
but_triton = pytest.mark.exhaustive(where=lambda impl, **_: impl == "triton")
K, T, D, SHAPE = 7, 12, 3, (5, 4)
LOG_LINEAR = schedules.continuous.log_linear()
CHAINS = {
    "uniform": transitions.uniform(K, schedules.cosine(T)),
    "absorbing": transitions.absorbing(K, schedules.jsd(T), mask_id=4),
    "absorbing, data have it": transitions.absorbing(
        K, schedules.jsd(T), mask_id=4, data_has_mask=True
    ),
    "marginal": transitions.marginal(K, schedules.cosine(T), torch.arange(1, K + 1) / 28),
    "gaussian": transitions.discretized_gaussian(K, schedules.linear(T, 0.02, 0.4)),
    "continuous uniform": transitions.uniform(K, LOG_LINEAR),
    "continuous absorbing": transitions.absorbing(K, LOG_LINEAR, mask_id=K - 1),
}


@pytest.fixture(params=[1, 6 * K * 8, None], ids=["a row a chunk", "six", "all"])
def budget(request):
    return request.param


@pytest.fixture(params=["rows", "tiles"])
def schedule(request):
    return request.param


@pytest.fixture(params=CHAINS)
def problem(request):
    return drawn(CHAINS[request.param])


@pytest.fixture(autouse=True)
def served(request):
    """CUDA C++ serves no chains of matrices, these have no tiles, nor has CUDA C++."""
    params = getattr(getattr(request.node, "callspec", None), "params", {})
    chain = str(params.get("problem", params.get("name")))
    by_cuda, is_dense = params.get("impl") == "cuda", chain.startswith("gaussian")
    if (by_cuda and is_dense) or (params.get("schedule") == "tiles" and (by_cuda or is_dense)):
        pytest.skip("not served")


def drawn(chain, shape=SHAPE):
    """A chain with data, noise and times."""
    x0 = torch.randint(K, shape)
    x0[x0 == chain.forbidden] = 0
    t = torch.linspace(0.01, 1, shape[0]).double()
    if chain.has_steps:
        t = (t * T).ceil().long()
    return chain, x0, functional.q_sample(chain, x0, t), t


def parameters(dtype=torch.float64, with_bias=True, shape=SHAPE):
    made = torch.randn(*shape, D), torch.randn(K, D), torch.randn(K)
    return [x.to(dtype).requires_grad_() for x in made[: 2 + with_bias]]


def check(operation, leaves, impl, dtype, budget, schedule="rows", ulps=512):
    """Compare value and gradients with those of whole logits in float64, and of plain PyTorch.

    For an upstream gradient that differs between tokens.
    """
    hidden, weight, *bias = leaves
    value = operation(Linear(hidden, weight, *bias or (None,), budget, schedule), impl=impl)
    upstream = torch.rand(value.shape).to(value.dtype) + 0.5
    true_leaves = [x.detach().double().requires_grad_() for x in leaves]
    truth = operation(F.linear(*true_leaves), impl="reference")
    plain = operation(F.linear(*leaves), impl="reference")
    size = truth.detach().abs() + 1
    assert_close(value, truth, dtype, ulps=ulps, scale=size, baseline=plain)
    gradients = torch.autograd.grad(value, leaves, upstream)
    expected = torch.autograd.grad(truth, true_leaves, upstream.double())
    by_plain = torch.autograd.grad(plain, leaves, upstream)
    for x, found, true, other in zip(leaves, gradients, expected, by_plain, strict=True):
        assert found.dtype == x.dtype
        assert found.shape == x.shape
        if dtype == torch.float64:
            check_gradient(found.flatten(), true.flatten(), dtype, ulps=ulps)
        else:
            size = torch.linalg.vector_norm(true)
            error, allowed = (
                torch.linalg.vector_norm(y.double() - true) / size for y in (found, other)
            )
            assert error <= 1.5 * allowed + storage_error(dtype) + ulps * unit(dtype)


@pytest.mark.parametrize("counted", ["all", "some", "some, weighted"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batch"])
def test_loss(problem, impl, schedule, reduction, counted):
    chain, *tokens = problem
    options = {"reduction": reduction, "ce_weight": 0.1}
    if counted != "all":
        options["mask"] = torch.rand(SHAPE) < 0.6
    if counted == "some, weighted":
        options["weights"] = torch.rand(SHAPE).where(torch.rand(SHAPE) < 0.8, 0)

    def loss(prediction, **kwargs):
        return functional.loss(chain, prediction, *tokens, **options, **kwargs)

    check(loss, parameters(), impl, torch.float64, 6 * K * 8, schedule)


@but_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", ["uniform", "absorbing", "gaussian"])
def test_every_dtype(name, impl, budget, schedule, reduction, dtype):
    chain, *tokens = drawn(CHAINS[name])

    def loss(prediction, **kwargs):
        return functional.loss(chain, prediction, *tokens, reduction=reduction, **kwargs)

    check(loss, parameters(dtype), impl, dtype, budget, schedule)


@but_triton
@pytest.mark.parametrize("reverse", ["joint", "posterior_mean"])
@pytest.mark.parametrize("first_step", ["posterior", "logits"])
def test_models_and_terms(problem, impl, schedule, reverse, first_step):
    chain, *tokens = problem
    options = {"reverse": reverse, "first_step": first_step, "reduction": "none"}

    def loss(prediction, **kwargs):
        return functional.loss(chain, prediction, *tokens, **options, **kwargs)

    check(loss, parameters(), impl, torch.float64, 6 * K * 8, schedule)
    leaves = parameters()
    found, expected = (
        functional.loss_terms(chain, prediction, *tokens, **options, impl=impl)
        for prediction in (Linear(*leaves, 1, schedule), F.linear(*leaves))
    )
    for term, other in zip(found, expected, strict=True):
        assert_close(term, other, torch.float64, ulps=512, scale=other.abs() + 1)


@but_triton
def test_a_denominator(impl):
    chain, *tokens = drawn(CHAINS["absorbing"])

    def loss(prediction, **kwargs):
        return functional.loss(chain, prediction, *tokens, denominator=7.0, **kwargs)

    check(loss, parameters(), impl, torch.float64, 1)


@but_triton
@pytest.mark.parametrize("name", ["absorbing", "gaussian with a mask"])
def test_a_head_without_the_mask(impl, name):
    chain = transitions.absorbing(K, schedules.jsd(T), mask_id=K - 1)
    if name != "absorbing":
        gaussian = transitions.discretized_gaussian(K - 1, schedules.linear(T, 0.02, 0.4))
        chain = transitions.with_mask(gaussian, schedules.jsd(T))
    _, *tokens = drawn(chain)
    hidden, weight, bias = parameters()
    leaves = [x.detach().requires_grad_() for x in (hidden, weight[:-1], bias[:-1])]

    def loss(prediction, **kwargs):
        return functional.loss(chain, prediction, *tokens, **kwargs)

    check(loss, leaves, impl, torch.float64, 6 * K * 8)
    check(loss, [hidden, weight, bias], impl, torch.float64, 6 * K * 8)


@but_triton
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_needs_no_gradient_has_none(problem, impl, schedule, frozen):
    chain, *tokens = problem
    leaves = parameters()
    expected = torch.autograd.grad(
        functional.loss(chain, F.linear(*leaves), *tokens, impl="reference"), leaves
    )
    leaves[frozen].requires_grad_(False)
    functional.loss(chain, Linear(*leaves, None, schedule), *tokens, impl=impl).backward()
    for index, (leaf, truth) in enumerate(zip(leaves, expected, strict=True)):
        if index == frozen:
            assert leaf.grad is None
        else:
            assert_gradient_close(leaf.grad.flatten(), truth.flatten(), torch.float64, ulps=512)


@but_triton
def test_without_a_graph(problem, impl, schedule, budget):
    chain, *tokens = problem
    leaves = parameters()
    for reduction in ("mean", "none"):
        with torch.no_grad():
            found, expected = (
                functional.loss(chain, prediction, *tokens, reduction=reduction, impl=impl)
                for prediction in (Linear(*leaves, budget, schedule), F.linear(*leaves))
            )
        assert not found.requires_grad
        assert_close(found, expected, torch.float64, ulps=64, scale=expected.abs() + 1)


@but_triton
def test_a_second_backward_pass(problem, impl):
    chain, *tokens = problem
    leaves = parameters()
    for reduction in ("mean", "none"):
        value = functional.loss(chain, Linear(*leaves), *tokens, reduction=reduction, impl=impl)
        upstream = torch.rand_like(value)
        first = torch.autograd.grad(value, leaves, upstream, retain_graph=True)
        again = torch.autograd.grad(value, leaves, upstream)
        for x, y in zip(first, again, strict=True):
            torch.testing.assert_close(x, y)


@given(st.data())
def test_any_shape_and_budget(data):
    chain = CHAINS[data.draw(st.sampled_from(sorted(CHAINS)))]
    schedules = ["rows"] if chain is CHAINS["gaussian"] else ["rows", "tiles"]
    schedule = data.draw(st.sampled_from(schedules))
    shape = tuple(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=3)))
    budget = data.draw(st.integers(1, 400))
    _, *tokens = drawn(chain, shape)
    leaves = parameters(shape=shape)

    def loss(prediction, **kwargs):
        return functional.loss(chain, prediction, *tokens, reduction="sum", **kwargs)

    found, expected = loss(Linear(*leaves, budget, schedule)), loss(F.linear(*leaves))
    assert_close(found, expected, torch.float64, ulps=512, scale=expected.abs() + 1)
    pairs = zip(*(torch.autograd.grad(x, leaves) for x in (found, expected)), strict=True)
    if tokens[0].numel() == 0:
        assert not any(bool(gradient.any()) for gradient, _ in pairs)
        return
    for gradient, truth in pairs:
        assert_gradient_close(
            gradient.flatten(), truth.flatten(), torch.float64, ulps=512, floor=1e-3
        )


@pytest.mark.exhaustive(where=lambda impl, schedule, **_: impl == "triton" and schedule == "tiles")
@pytest.mark.parametrize("name", ["uniform", "continuous absorbing"])
def test_an_item_alone(name, impl, schedule):
    """Whose time is that of all tokens, of which each has a row of a chunk."""
    chain = CHAINS[name]
    x0 = torch.zeros(1, 50, dtype=torch.int64)
    x_t = x0 + 1 if name == "uniform" else torch.full_like(x0, chain.mask_id)
    t = torch.tensor([T // 2]) if chain.has_steps else torch.tensor([0.5]).double()

    def loss(prediction, **kwargs):
        options = {"weights": torch.tensor([2.0]), "reduction": "none"}
        return functional.loss(chain, prediction, x0, x_t, t, **options, **kwargs)

    check(loss, parameters(shape=(1, 50)), impl, torch.float64, 6 * K * 8, schedule)


@but_triton
def test_no_token(impl, schedule):
    chain, *tokens = drawn(CHAINS["absorbing"])
    leaves = parameters()
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    prediction = Linear(*leaves, None, schedule)
    value = functional.loss(chain, prediction, *tokens, mask=mask, impl=impl)
    assert bool(value.isnan())
    for gradient in torch.autograd.grad(value, leaves):
        assert not bool(gradient.any())


def test_rows_without_a_loss_are_not_made(cpu, monkeypatch):
    made = []
    original = of_rows.logits_into

    def logits_into(out, *others):
        made.append(len(out))
        original(out, *others)

    monkeypatch.setattr(of_rows, "logits_into", logits_into)
    chain, x0, _, t = drawn(CHAINS["absorbing"], (5, 40))
    t = t.clamp(max=T - 1)  # at T all are masked
    x_t = x0.where(torch.rand(5, 40) < 0.5, 4)
    leaves = parameters(shape=(5, 40))
    functional.loss(chain, Linear(*leaves), x0, x_t, t, impl=cpu).backward()
    assert sum(made) == int((x_t == 4).sum())
    made.clear()
    functional.loss_terms(chain, Linear(*leaves), x0, x_t, t, impl=cpu)
    assert sum(made) == x0.numel()  # terms are of all


def test_values_out_of_range(cpu):
    chain, x0, x_t, t = drawn(CHAINS["absorbing"])
    leaves = parameters()
    for tokens in ((x0.clone().fill_(K), x_t, t), (x0, x_t.clone().fill_(-1), t)):
        with pytest.raises(IndexError):
            functional.loss(chain, Linear(*leaves), *tokens, impl=cpu)
    with pytest.raises(IndexError):
        functional.loss(chain, Linear(*leaves), x0, x0, t + T, impl=cpu)


def test_a_pair_that_cannot_be(cpu):
    chain, x0, _, t = drawn(transitions.absorbing(K, schedules.jsd(T), mask_id=4))
    x0.fill_(1)
    with pytest.warns(UserWarning, match="cannot come from"):
        value = functional.loss(
            chain, Linear(*parameters()), x0, torch.full_like(x0, 2), t, reduction="none", impl=cpu
        )
    assert bool(value.isnan().all())


@but_triton
def test_logits_out_of_the_range_of_exp(problem, impl, schedule):
    chain, *tokens = problem
    hidden, weight, bias = (x.detach() for x in parameters())
    leaves = [x.requires_grad_() for x in (hidden, weight * 30, bias - 1e4)]

    def loss(prediction, **kwargs):
        return functional.loss(chain, prediction, *tokens, **kwargs)

    check(loss, leaves, impl, torch.float64, 1, schedule, ulps=2**20)


@but_triton
def test_posterior(problem, impl, budget):
    chain, _, x_t, t = problem
    s = None if chain.has_steps else t / 2

    def p_posterior(prediction, **kwargs):
        log_p = functional.p_posterior(chain, prediction, x_t, t, s, **kwargs)
        return log_p.where(log_p.isfinite(), 0)

    check(p_posterior, parameters(), impl, torch.float64, budget)


@but_triton
def test_draws_are_those_of_the_logits(problem, impl, budget):
    chain, _, x_t, t = problem
    s = None if chain.has_steps else t / 2
    leaves = parameters()
    found, expected = (
        functional.p_sample(chain, prediction, x_t, t, s, seeds=torch.arange(5), impl=impl)
        for prediction in (Linear(*leaves, budget), F.linear(*leaves))
    )
    assert torch.equal(found, expected)


def test_draws_of_many_positions(cpu):
    """Of several axes, with a time for each token, more than the budget has logits of."""
    for name in ("uniform", "absorbing", "gaussian"):
        chain, _, x_t, t = drawn(CHAINS[name], (2, 5, 3))
        leaves = parameters(shape=(2, 5, 3))
        for times in (t, t[:, None, None].expand_as(x_t).contiguous()):
            found, expected = (
                functional.p_sample(chain, prediction, x_t, times, seeds=torch.arange(2), impl=cpu)
                for prediction in (Linear(*leaves, 7 * K * 4), F.linear(*leaves))
            )
            assert torch.equal(found, expected)


def test_a_denoiser_that_returns_it():
    chain, *_ = drawn(CHAINS["absorbing"])
    diffusion = D3PM(chain)
    embedding, (_, weight, bias) = torch.randn(K, D).double(), parameters()

    def linear(x_t, t):
        return Linear(embedding[x_t], weight, bias)

    def logits(x_t, t):
        return F.linear(embedding[x_t], weight, bias)

    seeds = torch.arange(5)
    for last in ("sample", "argmax"):
        found, expected = (
            diffusion.sample(denoiser, SHAPE, seeds=seeds, last=last)
            for denoiser in (linear, logits)
        )
        assert torch.equal(found, expected)
    x0 = torch.randint(4, SHAPE)
    bounds = (diffusion.elbo(denoiser, x0, seeds=seeds).nats for denoiser in (linear, logits))
    torch.testing.assert_close(*bounds)


@but_triton
def test_tokens_that_do_not_count_may_hold_anything(problem, impl, budget):
    chain, *tokens = problem
    mask = torch.rand(SHAPE) < 0.6
    hidden, weight, bias = parameters()
    options = {"mask": mask, "reduction": "sum", "impl": impl}
    expected = functional.loss(chain, F.linear(hidden, weight, bias), *tokens, **options)
    wild = hidden.detach().masked_fill(~mask.unsqueeze(-1), torch.nan).requires_grad_()
    value = functional.loss(chain, Linear(wild, weight, bias, budget), *tokens, **options)
    torch.testing.assert_close(value, expected)
    of_hidden, of_weight = torch.autograd.grad(value, (wild, weight))
    assert bool((of_hidden[~mask] == 0).all())
    assert bool(of_weight.isfinite().all())


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast(problem, cpu, schedule, reduction):
    chain, *tokens = problem
    leaves = parameters(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (
            functional.loss(chain, prediction, *tokens, reduction=reduction, impl=cpu)
            for prediction in (Linear(*leaves, 1, schedule), F.linear(*leaves))
        )
    torch.testing.assert_close(found, expected)
    upstream = torch.rand_like(found)
    of_linear, of_logits = (torch.autograd.grad(x, leaves, upstream) for x in (found, expected))
    for gradient, other in zip(of_linear, of_logits, strict=True):
        assert gradient.dtype == torch.float32
        size = torch.linalg.vector_norm(other)
        assert torch.linalg.vector_norm(gradient - other) <= 0.02 * size


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_derivatives_of_gradients_and_transforms(problem, cpu, reduction):
    chain, *tokens = problem
    leaves = parameters()

    def loss(prediction, impl=cpu):
        losses = functional.loss(chain, prediction, *tokens, reduction=reduction, impl=impl)
        return (losses**2).sum()

    def of_parameters(*leaves):
        return loss(Linear(*leaves))

    def by_reference(*leaves):
        return loss(F.linear(*leaves), "reference")

    along = tuple(torch.randn_like(x) for x in leaves)
    tangents = (jvp(f, tuple(leaves), along)[1] for f in (of_parameters, by_reference))
    torch.testing.assert_close(*tangents)
    for transform in (
        lambda f: torch.autograd.functional.vhp(f, tuple(leaves), along)[1],
        lambda f: grad(f, argnums=(0, 1, 2))(*leaves),
    ):
        results = zip(transform(of_parameters), transform(by_reference), strict=True)
        for found, expected in results:
            check_gradient(found.flatten(), expected.flatten(), torch.float64, ulps=2**12)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", ["uniform", "absorbing", "gaussian"])
def test_a_compiled_step(cpu, name, reduction):
    chain, *tokens = drawn(CHAINS[name])
    embedding, (_, *head) = torch.randn(K, D).double().requires_grad_(), parameters()
    leaves = [embedding, *head]

    def loss(embedding, *head):
        hidden = embedding[tokens[1]].tanh()
        losses = functional.loss(
            chain, Linear(hidden, *head), *tokens, reduction=reduction, impl=cpu
        )
        return (losses**2).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = (torch.autograd.grad(f(*leaves), leaves) for f in (compiled, loss))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("is_reentrant", [False, True])
def test_checkpointing_around_the_head(cpu, is_reentrant):
    chain, *tokens = drawn(CHAINS["absorbing"])

    def loss(hidden, weight, bias):
        return functional.loss(chain, Linear(hidden.tanh(), weight, bias), *tokens, impl=cpu)

    leaves = parameters()
    torch.utils.checkpoint.checkpoint(loss, *leaves, use_reentrant=is_reentrant).backward()
    others = torch.autograd.grad(loss(*leaves), leaves)
    for leaf, expected in zip(leaves, others, strict=True):
        torch.testing.assert_close(leaf.grad, expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_is_saved_may_be_moved_to_the_host(cpu, reduction):
    chain, *tokens = drawn(CHAINS["absorbing"])
    leaves, moved = parameters(), []

    def losses():
        head = Linear(leaves[0].tanh(), *leaves[1:])
        return functional.loss(chain, head, *tokens, reduction=reduction, impl=cpu)

    def pack(x):
        moved.append(x.clone())
        return len(moved) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, moved.__getitem__):
        value = losses()
    upstream = torch.rand_like(value)
    found = torch.autograd.grad(value, leaves, upstream)
    expected = torch.autograd.grad(losses(), leaves, upstream)
    assert moved
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_the_sum_of_the_weights_gradient_becomes_its_gradient(cpu, monkeypatch):
    """No other tensor of the weight's size is made, unless there is a gradient to add it to."""
    made = []

    def zero_gradients(*args):
        gradients = of_rows.zero_gradients(*args)
        made.append(gradients.weight.data_ptr())
        return gradients

    monkeypatch.setattr(by_rows, "zero_gradients", zero_gradients)
    chain, *tokens = drawn(CHAINS["uniform"])
    hidden, weight, bias = parameters(torch.float32)
    for reduction in ("mean", "none"):
        weight.grad = None
        losses = functional.loss(
            chain, Linear(hidden, weight, bias), *tokens, reduction=reduction, impl=cpu
        )
        losses.sum().backward()
        assert weight.grad.data_ptr() == made[-1]


@pytest.mark.exhaustive
def test_more_logits_than_32_bits_count(cpu):
    """In one chunk of 4 GiB, against chunks of 64 MiB."""
    num_rows, num_classes = 129, (1 << 24) + 1
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") < 8 << 30:
        pytest.skip("less than 8 GiB of memory")
    chain = transitions.absorbing(num_classes, LOG_LINEAR, mask_id=num_classes - 1)
    tokens = torch.arange(num_rows)[None], torch.full((1, num_rows), num_classes - 1)
    hidden = torch.linspace(-1, 1, num_rows).view(1, num_rows, 1)
    weight = torch.linspace(-3, 3, num_classes).view(num_classes, 1)
    leaves = [x.bfloat16().requires_grad_() for x in (hidden, weight)]
    t = torch.full((1,), 0.5).double()
    one, several = (
        torch.autograd.grad(
            functional.loss(
                chain, Linear(*leaves, memory_budget=budget), *tokens, t, reduction="sum", impl=cpu
            ),
            leaves,
        )
        for budget in (1 << 33, 1 << 26)
    )
    for gradient, other in zip(one, several, strict=True):
        gradient, other = gradient.float(), other.float()
        assert (gradient - other).norm() <= 0.05 * other.norm()


def test_tied_weights(cpu):
    chain, *tokens = drawn(CHAINS["uniform"])
    weight = torch.randn(K, D).double().requires_grad_()

    def loss(make):
        return functional.loss(chain, make(weight[tokens[1]].tanh(), weight), *tokens, impl=cpu)

    found, expected = (torch.autograd.grad(loss(make), weight)[0] for make in (Linear, F.linear))
    check_gradient(found.flatten(), expected.flatten(), torch.float64, ulps=512)


WRONG = {
    "hidden must have shape": lambda h, w, b: Linear(h[:, :2], w, b),
    "weight must have shape": lambda h, w, b: Linear(h, w[:-2], b),
    "bias must have shape": lambda h, w, b: Linear(h, w, b[:-1]),
    "weight must be torch.float64 as hidden is": lambda h, w, b: Linear(h, w.float(), b),
    "bias must be torch.float64 as hidden is": lambda h, w, b: Linear(h, w, b.float()),
    "memory_budget must be at least 1": lambda h, w, b: Linear(h, w, b, 0),
    "schedule must be one of 'rows', 'tiles'": lambda h, w, b: Linear(h, w, b, 9, "columns"),
    "hidden must be float32": lambda h, w, b: Linear(h.long(), w, b),
    "hidden must be a tensor": lambda h, w, b: Linear(None, w, b),
    "weight must be a tensor": lambda h, w, b: Linear(h, None, b),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_refused(message):
    chain, *tokens = drawn(CHAINS["uniform"])
    with pytest.raises((ValueError, TypeError), match=message):
        functional.loss(chain, WRONG[message](*parameters()), *tokens)


def test_a_schedule_that_is_not_served():
    chain, *tokens = drawn(CHAINS["gaussian"])
    with pytest.raises(ValueError, match=r"schedule='tiles' serves rank-one chains"):
        functional.loss(chain, Linear(*parameters(), None, "tiles"), *tokens)


@pytest.mark.parametrize("schedule", ["rows", "tiles"])
@pytest.mark.parametrize("name", ["uniform", "absorbing"])
def test_more_classes_than_a_tile_has(cpu, name, schedule):
    """In float32 against float64, with tiles of 64 classes and chunks of a few rows."""
    num_classes = 300
    make = getattr(transitions, name)
    options = {} if name == "uniform" else {"mask_id": num_classes - 1}
    chain = make(num_classes, schedules.cosine(T), **options)
    x0, t = torch.randint(num_classes - 1, SHAPE), torch.tensor([1, 2, 6, T - 1, T])
    tokens = x0, functional.q_sample(chain, x0, t), t
    leaves = [x.requires_grad_() for x in (torch.randn(*SHAPE, D), torch.randn(num_classes, D))]

    def loss(prediction, **kwargs):
        return functional.loss(chain, prediction, *tokens, ce_weight=0.1, **kwargs)

    check(loss, leaves, cpu, torch.float32, 5000, schedule)
