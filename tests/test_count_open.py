"""How many tokens may have a loss, and losses by heads that are told."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers.compare import assert_close, check_gradient

import d3pm_fast as d3
from d3pm_fast import functional, ops
from d3pm_fast.functional import Linear
from d3pm_fast.ops.linear import tokens as of_tokens

K, T, D, SHAPE = 7, 12, 3, (5, 4)
LOG_LINEAR = d3.schedules.continuous.log_linear()
ABSORBING = {
    "absorbing": d3.transitions.absorbing(K, d3.schedules.jsd(T), mask_id=4),
    "continuous": d3.transitions.absorbing(K, LOG_LINEAR, mask_id=K - 1),
}
OTHERS = {
    "uniform": d3.transitions.uniform(K, d3.schedules.cosine(T)),
    "gaussian": d3.transitions.discretized_gaussian(K, d3.schedules.linear(T, 0.02, 0.4)),
}
CHAINS = ABSORBING | OTHERS


@pytest.fixture(params=CHAINS)
def chain(request):
    return CHAINS[request.param]


def drawn(chain):
    x0 = torch.randint(K, SHAPE)
    x0[x0 == chain.forbidden] = 0
    t = torch.tensor([0.05, 0.3, 0.5, 0.6, 0.8]).double()
    if chain.has_steps:
        t = (t * T).ceil().long()
    return x0, functional.q_sample(chain, x0, t), t


def parameters():
    made = torch.randn(*SHAPE, D), torch.randn(K, D), torch.randn(K)
    return [x.double().requires_grad_() for x in made]


@pytest.mark.parametrize("first_step", ["posterior", "logits"])
@pytest.mark.parametrize("is_part", [False, True])
def test_it_counts_the_tokens_that_have_a_gradient(chain, first_step, is_part):
    x0, x_t, t = drawn(chain)
    s = t / 2 if is_part and not chain.has_steps else None
    options = {"first_step": first_step}
    if is_part:
        mask, factors = torch.rand(SHAPE) < 0.6, torch.rand(SHAPE).where(torch.rand(SHAPE) < 0.8, 0)
        options |= {"mask": mask, "weights": factors}
    count = functional.count_open(chain, x0, x_t, t, s, **options)
    logits = torch.randn(*SHAPE, K).double().requires_grad_()
    losses = functional.loss(chain, logits, x0, x_t, t, s, **options, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    has_gradient = (gradient != 0).any(-1)
    if first_step == "posterior" or chain in OTHERS.values():
        assert int(count) == int(has_gradient.sum())
    assert int(has_gradient.sum()) <= int(count) <= x0.numel()
    if chain in ABSORBING.values():
        assert int(has_gradient.sum()) < x0.numel()


@pytest.mark.parametrize("more", [0, 2, 100])
@pytest.mark.parametrize("schedule", ["rows", "tiles"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", ["absorbing", "uniform"])
def test_a_head_that_is_told(impl, name, more, schedule, reduction):
    if impl == "cuda" and schedule == "tiles":
        pytest.skip("not served")
    chain = CHAINS[name]
    x0, x_t, t = drawn(chain)
    mask = torch.rand(SHAPE) < 0.6
    hidden, *head = parameters()
    wild = hidden.detach().masked_fill(~mask.unsqueeze(-1), torch.nan).requires_grad_()
    number = int(functional.count_open(chain, x0, x_t, t, mask=mask)) + more

    def loss(prediction, by=impl):
        return functional.loss(
            chain, prediction, x0, x_t, t, mask=mask, reduction=reduction, impl=by
        )

    value = loss(Linear(wild, *head, 100, schedule, number))
    truth = loss(F.linear(hidden, *head), "reference")
    assert_close(value, truth, torch.float64, ulps=512, scale=truth.detach().abs() + 1)
    upstream = torch.rand_like(truth) + 0.5
    found = torch.autograd.grad(value, (wild, *head), upstream)
    expected = torch.autograd.grad(truth, (hidden, *head), upstream)
    for x, y in zip(found, expected, strict=True):
        check_gradient(x.flatten(), y.flatten(), torch.float64, ulps=512)


@pytest.mark.parametrize("lacking", [1, 100])
@pytest.mark.parametrize("schedule", ["rows", "tiles"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_more_than_it_is_told(impl, lacking, schedule, reduction):
    if impl == "reference" or (impl == "cuda" and schedule == "tiles"):
        pytest.skip("makes them all, or is not served")
    chain = CHAINS["absorbing"]
    x0, x_t, t = drawn(chain)
    x_t[:, 0] = 4
    leaves = parameters()
    number = max(int((x_t == 4).sum()) - lacking, 0)
    head = Linear(*leaves, None, schedule, number)
    value = functional.loss(chain, head, x0, x_t, t, reduction=reduction, impl=impl)
    assert bool(value.isnan())
    of_hidden, *of_head = torch.autograd.grad(value, leaves)
    assert bool(of_hidden.isnan().any())
    assert all(bool(gradient.isnan().all()) for gradient in of_head)


def test_a_cross_entropy_is_of_all(cpu):
    chain = CHAINS["absorbing"]
    tokens, leaves = drawn(chain), parameters()
    for loss in (
        lambda x: functional.loss(chain, x, *tokens, ce_weight=0.1, impl=cpu),
        lambda x: functional.loss_terms(chain, x, *tokens, impl=cpu).ce,
    ):
        torch.testing.assert_close(loss(Linear(*leaves, num_open=1)), loss(F.linear(*leaves)))


def test_nothing_waits_for_a_device(monkeypatch):
    """Tensors of the device "meta" have no numbers: to read one is an error."""
    chain, seen = CHAINS["absorbing"], []
    x0, x_t, t = drawn(chain)

    def on_meta(of):
        seen.append(of)
        raise StopIteration

    monkeypatch.setattr(of_tokens, "are_open", on_meta)
    with pytest.raises(StopIteration):
        functional.loss(chain, Linear(*parameters(), num_open=3), x0, x_t, t, impl="cpu")
    monkeypatch.undo()
    (of,) = seen
    step = of.step._replace(rows=of.step.rows.to("meta"), table=of.step.table.to("meta"))
    tensors = {name: getattr(of, name).to("meta") for name in ("hidden", "x0", "x_t")}
    of = of._replace(
        **tensors,
        step=step,
        weights=of.weights._replace(tokens=torch.ones(of.x0.shape, device="meta")),
    )
    some, rows = of_tokens.with_loss(of)
    assert some.hidden.shape == (3, D)
    assert rows.shape == (3,)
    with pytest.raises(RuntimeError):
        int(ops.count_open(of))
    some, rows = of_tokens.with_loss(of._replace(head=of.head._replace(num_open=-1)))
    assert rows is None
    assert some.hidden.shape == of.hidden.shape


def test_the_count_of_a_gpu_is_waited_for_alone(monkeypatch):
    said = []

    class Stream:
        def record_event(self):
            said.append("event")
            return SimpleNamespace(synchronize=lambda: said.append("waited"))

    class Number:
        is_cuda, device = True, "cuda:1"

        def to(self, device, non_blocking):
            said.append((device, non_blocking))
            return torch.tensor(5)

    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: said.append(device) or Stream()
    )
    count = functional.Count(Number())
    assert said == [("cpu", True), "cuda:1", "event"]
    assert int(count) == 5
    assert said[3:] == ["waited"]


def test_a_module_and_a_compiled_step(cpu):
    diffusion = d3.D3PM(CHAINS["absorbing"], impl=cpu)
    tokens = drawn(diffusion.transition)
    module = d3.LinearLoss(D, K, diffusion)
    hidden = torch.randn(*SHAPE, D)
    number = diffusion.count_open(*tokens)
    expected = diffusion.loss(module.head(hidden), *tokens)
    torch.testing.assert_close(module(hidden, *tokens, num_open=number), expected)
    assert bool(module(hidden, *tokens, num_open=int(number) - 1).isnan())
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden, *tokens, num_open=int(number)), expected)


def test_what_is_refused():
    chain = CHAINS["absorbing"]
    x0, x_t, t = drawn(chain)
    with pytest.raises(ValueError, match="x_t must have shape"):
        functional.count_open(chain, x0, x_t[:, :2], t)
    with pytest.raises(ValueError, match="first_step must be one of"):
        functional.count_open(chain, x0, x_t, t, first_step="last")
    with pytest.raises(ValueError, match="num_open must be at least 0"):
        functional.loss(chain, Linear(*parameters(), num_open=-1), x0, x_t, t)
    with pytest.raises(TypeError, match="num_open must be an integer, got float"):
        functional.loss(chain, Linear(*parameters(), num_open=1.5), x0, x_t, t)
