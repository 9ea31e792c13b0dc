"""Each Triton kernel once, in the interpreter; of an older Triton too: test_triton_versions.py.

Tiny inputs against the reference in float64, which has its own tests.
"""

import pytest
import torch

import d3pm_fast as d3
from d3pm_fast import functional, ops
from d3pm_fast.chains.structures import RANK_ONE
from d3pm_fast.records import Loss, Model, Shard, Weights

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="runs in the interpreter"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter's: see conftest.py
]

K = 5
BETAS = [0.1, 0.3, 0.5, 0.9]
CHAINS = {
    "uniform": d3.transitions.uniform(K, BETAS),
    "absorbing": d3.transitions.absorbing(K, BETAS, mask_id=K - 1),
    "marginal": d3.transitions.marginal(K, BETAS, torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1])),
    "gaussian": d3.transitions.discretized_gaussian(K, BETAS),
}
T = torch.tensor([1, 2, 4])
SEEDS = torch.tensor([5, 6, 7])


@pytest.fixture(params=CHAINS)
def problem(request):
    """A chain, logits, x_0, x_t and t."""
    chain = CHAINS[request.param]
    x0 = torch.randint(K - 1, (3, 2))
    x_t = functional.q_sample(chain, x0, T, impl="reference")
    return chain, torch.randn(3, 2, K), x0, x_t, T


def by_both(function, logits, **options):
    """The values and gradients of logits, or of several tensors, by Triton and by the reference."""
    results = []
    for impl, leaves in (("triton", logits), ("reference", [x.double() for x in logits])):
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        value = function(*leaves, impl=impl, **options)
        torch.where(value.isfinite(), value, 0.0).sum().backward()
        results.append([value.detach(), *(leaf.grad for leaf in leaves)])
    return results


def assert_alike(results, rtol=1e-4):
    for value, expected in zip(*results, strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("reverse", ["joint", "posterior_mean"])
def test_loss(problem, reverse):
    chain, logits, *tokens = problem

    def loss(leaf, **options):
        return functional.loss(chain, leaf, *tokens, reverse=reverse, ce_weight=0.1, **options)

    assert_alike(by_both(loss, [logits], reduction="none"))


def test_loss_of_long_rows():
    chain = d3.transitions.uniform(520, BETAS)
    x0, x_t, t = torch.tensor([[3]]), torch.tensor([[519]]), torch.tensor([2])

    def loss(leaf, **options):
        return functional.loss(chain, leaf, x0, x_t, t, **options)

    assert_alike(by_both(loss, [torch.randn(1, 1, 520, dtype=torch.float64)]), rtol=1e-9)


@pytest.mark.parametrize("num_classes", [K, 520])
def test_loss_by_scores(num_classes):
    for make, *more in (
        (d3.transitions.uniform,),
        (d3.transitions.marginal, torch.arange(1, num_classes + 1) * 2 / num_classes**2),
    ):
        law = [x / x.sum() for x in more]
        chain = make(num_classes, d3.schedules.continuous.log_linear(), *law)
        x0, x_t, t = torch.tensor([[3], [1]]), torch.tensor([[4], [1]]), torch.tensor([0.4, 0.7])

        def loss(leaf, chain=chain, tokens=(x0, x_t, t), **options):
            return functional.loss(chain, functional.Score(leaf), *tokens, **options)

        assert_alike(by_both(loss, [torch.randn(2, 1, num_classes)]))


@pytest.mark.parametrize("chain", [CHAINS["uniform"], CHAINS["marginal"]])
def test_loss_in_strokes(chain):
    x0, x_t = torch.tensor([0, 4, 3]), torch.tensor([2, 4, 1])
    logits, rest = torch.randn(3, K), (x0, None, x_t, chain.step_record(T, None))
    call = Loss(logits, *rest, Model(False, False), Weights(1.0, 0.1))
    statistics, solve, sums, gradient = (
        operation.kernel("triton", RANK_ONE.name)
        for operation in (ops.loss_statistics, ops.loss_solve, ops.loss_sums, ops.loss_gradient)
    )
    parts = [
        (call._replace(logits=logits[:, :2].contiguous()), Shard(0)),
        (call._replace(logits=logits[:, 2:].contiguous()), Shard(2)),
    ]
    row = ops.merged([statistics(*part) for part in parts])
    line = solve(*parts[0], row)
    total = sum(sums(*part, row, line) for part in parts)
    (value, left), (_, right) = (gradient(*part, row, total) for part in parts)

    leaf = logits.double().requires_grad_()
    expected = functional.loss(
        chain, leaf, x0, x_t, T, ce_weight=0.1, reduction="none", impl="reference"
    )
    expected.sum().backward()
    made = value, torch.cat((left, right), -1)
    assert_alike((made, (expected.detach(), leaf.grad)))


def test_dense_loss_by_products_apart(problem, monkeypatch):
    monkeypatch.setattr("d3pm_fast.kernels.dense.loss.MOST_FUSED", 0)
    chain, logits, *tokens = problem

    def loss(leaf, **options):
        return functional.loss(chain, leaf, *tokens, **options)

    assert_alike(by_both(loss, [logits]))


def test_posteriors(problem):
    chain, logits, x0, x_t, t = problem
    found, expected = (
        functional.q_posterior(chain, x0, x_t, t, impl=impl).double()
        for impl in ("triton", "reference")
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)

    def p_posterior(leaf, **options):
        return functional.p_posterior(chain, leaf, x_t, t, **options)

    assert_alike(by_both(p_posterior, [logits]))


def test_draws(problem):
    chain, logits, x0, x_t, t = problem
    shaped = functional.Shaped(logits, logits.flip(-1), 2.0, 0.7, 3, 0.9)
    for draw in (
        lambda impl: functional.q_sample(chain, x0, t, seeds=SEEDS, impl=impl),
        lambda impl: functional.p_sample(chain, logits, x_t, t, seeds=SEEDS, impl=impl),
        lambda impl: functional.p_sample(chain, shaped, x_t, t, seeds=SEEDS, impl=impl),
    ):
        assert torch.equal(draw("triton"), draw("reference"))


def test_logistic_pair():
    chain = CHAINS["uniform"]
    x0, x_t = torch.tensor([[0, 1], [4, 2], [3, 3]]), torch.tensor([[0, 2], [4, 1], [0, 3]])

    def loss(loc, log_scale, **options):
        return functional.loss(chain, (loc, log_scale), x0, x_t, T, **options)

    assert_alike(by_both(loss, [torch.randn(3, 2), torch.randn(3, 2)]))


def test_products():
    from d3pm_fast.kernels.dense.products import scan

    matrices = torch.rand(3, K, K)
    first, second, third = matrices.double()
    products = torch.stack([first, first @ second, first @ second @ third])
    torch.testing.assert_close(scan(matrices, None).double(), products, rtol=1e-5, atol=0)
    upstream = torch.rand(3, K, K)
    last = upstream[2].double()
    middle = upstream[1].double() + last @ third.T
    adjoints = torch.stack([upstream[0].double() + middle @ second.T, middle, last])
    torch.testing.assert_close(scan(matrices, upstream), adjoints, rtol=1e-6, atol=0)


def test_scale():
    from d3pm_fast.kernels.common.scale import scale_

    found = scale_(torch.arange(6.0).view(2, 3), torch.tensor(0.5))
    assert found.tolist() == [[0.0, 0.5, 1.0], [1.5, 2.0, 2.5]]
    assert scale_(found, torch.tensor([2.0, 1.0])).tolist() == [[0.0, 1.0, 2.0], [1.5, 2.0, 2.5]]
