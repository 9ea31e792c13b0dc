"""The ways that tokens take through the kernels of chains of matrices: each is seen to be taken,
by the loss, by log-probabilities, by their gradients and by draws, and is right."""

import pytest
import torch
from helpers.chains import one_hot
from helpers.compare import assert_close, check_gradient
from helpers.dense_chains import make_dense_chain, make_late_chain

from d3pm_fast import functional, schedules, transitions
from d3pm_fast.ops.dense.groups import StepGroups
from d3pm_fast.ops.dense.recompute import Recompute
from d3pm_fast.reference.philox import uniforms

COUNT = 4
FORWARD = {"first_step": "posterior"}


def wide(start, end):
    return transitions.discretized_gaussian(256, schedules.linear(1000, start, end))


# The chain, t, how much surer than others the model is of a class eight beyond x_t, and what the
# CPU's first pass in float32 multiplies with: a form, the dtype of its numbers, what it leaves out.
WAYS = {
    "identity": (lambda: make_dense_chain("gaussian", 5).transition, 1, 0, ("Identity", 32, False)),
    "dense": (lambda: make_dense_chain("gaussian", 5).transition, 3, 0, ("Dense", 32, False)),
    "far from the truth": (
        lambda: transitions.discretized_gaussian(17, [0.03] * 3), 3, 20, ("Dense", 32, False),
    ),
    "centred": (lambda: make_late_chain("gaussian").transition, 10, 0, ("Dense", 32, True)),
    "sparse": (lambda: make_late_chain("sparse").transition, 5, 0, ("Polynomial", 32, False)),
    "band": (lambda: wide(1e-4, 0.02), 4, 0, ("Band", 32, False)),
    "low rank in float64": (lambda: wide(1e-4, 0.02), 200, 0, ("LowRank", 64, True)),
    "low rank": (lambda: wide(1e-4, 0.02), 600, 0, ("LowRank", 32, True)),
    "recomputed in float64": (
        lambda: transitions.discretized_gaussian(17, [0.005] * 3), 3, 80, ("Dense", 32, False),
    ),
    "recomputed in log space": (
        lambda: transitions.discretized_gaussian(17, [3e-5] * 3), 3, 1e4, ("Dense", 32, False),
    ),
}  # fmt: skip
BY_TRITON = [
    "dense",
    "far from the truth",
    "centred",
    "sparse",
    "recomputed in float64",
    "recomputed in log space",
]
RECOMPUTED = {
    "recomputed in float64": {"float64"},
    "recomputed in log space": {"float64", "log space"},
}


@pytest.fixture
def problem(request):
    make, time, surer, _ = WAYS[request.param]
    chain = make()
    k = chain.num_classes
    x0, t, seeds = torch.randint(k // 2, (COUNT,)), torch.full((COUNT,), time), torch.arange(COUNT)
    x_t = x0 + 1 if surer else functional.q_sample(chain, x0, t, seeds=seeds)
    logits = torch.randn(COUNT, k) + surer * one_hot((x_t + 8) % k, k).float()
    return request.param, Problem(chain, logits, x0, x_t, t, seeds)


class Problem:
    def __init__(self, chain, logits, x0, x_t, t, seeds):
        self.chain, self.logits, self.seeds = chain, logits, seeds
        self.x0, self.x_t, self.t = x0, x_t, t

    def loss(self, impl, dtype):
        leaf = self.logits.to(dtype).requires_grad_()
        args = self.chain, leaf, self.x0, self.x_t, self.t
        loss = functional.loss(*args, reduction="none", impl=impl, **FORWARD)
        return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]

    def log_p(self, impl, dtype):
        leaf = self.logits.to(dtype).requires_grad_()
        args = self.chain, leaf, self.x_t, self.t
        log_p = functional.p_posterior(*args, impl=impl, **FORWARD)
        upstream = torch.linspace(-1, 2, leaf.shape[1], dtype=dtype).expand_as(leaf)
        return log_p.detach(), torch.autograd.grad(log_p, leaf, upstream)[0]

    def draw(self, impl):
        args = self.chain, self.logits, self.x_t, self.t
        return functional.p_sample(*args, seeds=self.seeds, impl=impl, **FORWARD)


def check(problem, impl, seen):
    """Compare all operations with log space in float64; ``seen(name)`` looks at each call."""
    made = problem.loss(impl, torch.float32)
    seen("loss")
    truth, gradient = problem.loss("reference", torch.float64)
    assert_close(made[0], truth, torch.float32, ulps=64, scale=truth + 1e-4)
    check_gradient(made[1], gradient, torch.float32, ulps=1 << 10, floor=gradient.abs().max() / 8)
    made = problem.log_p(impl, torch.float32)
    seen("p_posterior")
    truth, gradient = problem.log_p("reference", torch.float64)
    assert_close(made[0], truth, torch.float32, ulps=64, scale=truth.abs() + 1)
    check_gradient(made[1], gradient, torch.float32, ulps=1 << 10, floor=1.0)
    drawn = problem.draw(impl)
    seen("p_sample")
    _, draw = uniforms(problem.seeds, 0, COUNT)
    cdf = truth.exp().cumsum(1)
    assert torch.equal(drawn, torch.searchsorted(cdf, (draw * cdf[:, -1])[:, None]).squeeze(1))


@pytest.mark.parametrize("problem", WAYS, indirect=True)
def test_by_the_cpu(cpu, problem, monkeypatch):
    name, problem = problem
    first, recomputed = set(), set()
    chunks_of, in_log_space = StepGroups.__iter__, Recompute.in_log_space

    def chunks(run):
        for chunk in chunks_of(run):
            form = chunk.step.form
            if run.real == torch.float32:
                bits = 8 * form.dtype.itemsize
                first.add((type(form).__name__, bits, form.is_centred))
            else:
                recomputed.add("float64")
            yield chunk

    def noted(run):
        recomputed.add("log space")
        return in_log_space(run)

    def seen(operation):
        assert first == {WAYS[name][3]}, operation
        assert recomputed == RECOMPUTED.get(name, set()), operation
        first.clear()
        recomputed.clear()

    monkeypatch.setattr(StepGroups, "__iter__", chunks)
    monkeypatch.setattr(Recompute, "in_log_space", noted)
    check(problem, cpu, seen)


@pytest.mark.parametrize("products", ["in one program", "apart"])
@pytest.mark.parametrize("problem", BY_TRITON, indirect=True)
def test_by_triton(triton, problem, products, monkeypatch):
    from d3pm_fast.kernels.dense import exact, loss, p_sample, posterior, split

    name, problem = problem
    kernels, centred, inexact = set(), [], []
    launch = exact.launch

    def noted(kernel, num_programs, on, *args, **options):
        kernels.add(kernel.fn.__name__)
        if kernel.fn.__name__.startswith("recompute_"):
            a, steps, recompute, *_ = args
            centred.append(bool(steps.common[recompute.which].any()))
            inexact.append(int(a.inexact.sum()))
        launch(kernel, num_programs, on, *args, **options)

    def seen(operation):
        carry, pull = {"predict_rows", "carry_rows"}, {"pull_rows", "gradient_of_pull"}
        apart = {*carry, "loss_of_rows", *pull}
        expected = {
            "loss": {"recompute_loss", *(apart if products == "apart" else {"loss_of_tiles"})},
            "p_posterior": {
                "recompute_p_posterior", *carry, "p_posterior_of_rows", "turn_rows", *pull,
            },
            "p_sample": {"recompute_p_sample", *carry, "p_sample_of_rows"},
        }  # fmt: skip
        assert kernels == expected[operation]
        assert set(centred) == {name in ("centred", "sparse")}, operation
        assert set(inexact) == {COUNT if name in RECOMPUTED else 0}, operation
        for note in (kernels, centred, inexact):
            note.clear()

    for module in (exact, loss, p_sample, posterior, split):
        monkeypatch.setattr(module, "launch", noted)
    if products == "apart":
        monkeypatch.setattr(loss, "MOST_FUSED", 0)
    check(problem, triton, seen)
