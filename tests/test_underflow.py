"""Transition probabilities that float64 has no numbers for: their logarithms keep them."""

import math

import mpmath
import pytest
import torch
from helpers.dense_chains import make_dense_chain

from d3pm_fast import functional, schedules, transitions
from d3pm_fast.chains.logs import log_matmul
from d3pm_fast.chains.sparse import sparse_rate_chain

ALSO_BY = ("triton",)  # the fixture impl; see conftest.py
K = 64
BETAS = schedules.linear(1000)


def log_gaussian(num_classes, beta):
    """``log Q_t`` of D3PM, appendix A.2.3."""
    n = torch.arange(-num_classes + 1, num_classes).double()
    total = torch.exp(-4 * n**2 / ((num_classes - 1) ** 2 * beta)).sum()
    i = torch.arange(num_classes)
    log_q = -4 * (i[:, None] - i) ** 2 / ((num_classes - 1) ** 2 * beta) - total.log()
    moved = log_q.exp().fill_diagonal_(0).sum(1)
    return log_q.diagonal_scatter(torch.log1p(-moved))


def log_sums(a, b):
    """``log(exp(a) @ exp(b))``, row by row."""
    return torch.stack([(row[:, None] + b).logsumexp(0) for row in a])


@pytest.fixture(scope="module")
def steps():
    first, second = (log_gaussian(K, beta) for beta in BETAS[:2])
    return first, second, log_sums(first, second)


@pytest.fixture(scope="module")
def chain():
    return transitions.discretized_gaussian(K, BETAS[:3])


def assert_logs_agree(logs, truth):
    assert torch.equal(logs == -torch.inf, truth == -torch.inf)
    torch.testing.assert_close(logs, truth, rtol=1e-12, atol=1e-9)


def test_products_of_logs():
    a, b = (1000 * torch.randn(7, 7, dtype=torch.float64).clamp(max=0) for _ in range(2))
    a[2], b[:, 3], a[4, 1:] = -torch.inf, -torch.inf, -torch.inf
    assert_logs_agree(log_matmul(a, b), log_sums(a, b))


def test_log_products(chain, steps):
    first, second, both = steps
    assert float(chain.product(0, 2).min()) == 0
    assert_logs_agree(chain.log_product(0, 1), first)
    assert_logs_agree(chain.log_q_matrix(2), second)
    assert_logs_agree(chain.log_product(0, 2), both)
    third = log_gaussian(K, BETAS[2])
    assert_logs_agree(chain.log_product(0, 3), log_sums(both, third))
    long = transitions.discretized_gaussian(K, BETAS[:100])
    assert_logs_agree(long.log_product(0, 100), long.product(0, 100).log())


def test_posterior_mean_counts_every_class(impl, chain, steps):
    """Zero logits: each class that x_0 may be has the same share, however unlikely x_t."""
    _, second, both = steps
    x = torch.tensor([40])
    log_q = second[:, 40] + steps[0] - both[:, 40, None]  # of every x_0
    log_p = log_q.logsumexp(0) - math.log(K)
    truth = (log_q[40].exp() * (log_q[40] - log_p)).sum()
    # The reference rounds logarithms of some -1e4 to float32.
    in_float32 = 1e-3 if impl == "reference" else 1e-5
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, in_float32)):
        loss = functional.loss(
            chain, torch.zeros(1, K, dtype=dtype), x, x, torch.tensor([2]),
            reverse="posterior_mean", impl=impl,
        )  # fmt: skip
        assert abs(float(loss) / float(truth) - 1) < rtol
    assert truth > 1


@pytest.mark.parametrize("others", [-1e4, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_sure_model_pays_for_an_all_but_impossible_class(impl, chain, steps, others, dtype):
    first, second, both = steps
    x = torch.tensor([40])
    logits = torch.full((1, K), others, dtype=dtype)
    logits[0, 60] = 0
    log_s = torch.log_softmax(logits[0].double(), 0)
    log_f = (log_s[:, None] + first).logsumexp(0)
    log_p = torch.log_softmax(second[:, 40] + log_f, 0)
    log_q = second[:, 40] + first[40] - both[40, 40]
    truth = (log_q.exp() * (log_q - log_p)).sum()
    leaf = logits.clone().requires_grad_()
    loss = functional.loss(chain, leaf, x, x, torch.tensor([2]), impl=impl)
    assert abs(float(loss.detach()) / float(truth) - 1) < (1e-9 if dtype == torch.float64 else 1e-5)
    assert truth > 1000
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert gradient.isfinite().all()
    log_p = functional.p_posterior(chain, logits, x, torch.tensor([2]), impl=impl)
    truth = torch.log_softmax(second[:, 40] + log_f, 0)
    torch.testing.assert_close(log_p[0].double(), truth, rtol=1e-6, atol=1e-3)


def test_posteriors_of_the_data(impl, chain, steps):
    first, second, both = steps
    x0, x_t = torch.tensor([40, 3]), torch.tensor([45, 60])
    log_q = functional.q_posterior(
        chain, x0, x_t, torch.tensor([2, 2]), dtype=torch.float64, impl=impl
    )
    truth = second[:, x_t].T + first[x0] - both[x0, x_t][:, None]
    assert_logs_agree(log_q, truth)


def exact_exponential(rate, time):
    with mpmath.workdps(600):
        matrix = mpmath.expm(mpmath.matrix(rate.tolist()) * time, method="taylor")
        logs = [[mpmath.log(v) if v > 0 else -mpmath.inf for v in row] for row in matrix.tolist()]
        return torch.tensor([list(map(float, row)) for row in logs], dtype=torch.float64)


@pytest.mark.parametrize("time", [1e-40, 1e-20, 0.5])
def test_exponentials(time):
    """Along a path whose last class is never left: up to 9 jumps, each as rare as the time."""
    k = 10
    rate = torch.diag(torch.ones(k - 1), 1).double() + torch.diag(torch.full((k - 1,), 2.0), -1)
    rate[-1] = 0
    rate = rate - torch.diag(rate.sum(1))
    truth = exact_exponential(rate, time)
    law = torch.eye(k)[-1]
    dense = transitions.from_rate(rate, [time, 2 * time], stationary=law)
    assert_logs_agree(dense.log_product(0, 1), truth)
    assert_logs_agree(dense.log_product(1, 2), truth)
    rates = rate.clone().fill_diagonal_(0).to_sparse().coalesce()
    times = torch.tensor([time, 2 * time], dtype=torch.float64)
    sparse = sparse_rate_chain("path", rates, times, law.double(), k - 1)
    assert_logs_agree(sparse.log_product(0, 1), truth)
    assert_logs_agree(sparse.log_columns(1, 2, torch.tensor([3, 9])), truth.T[[3, 9]])


def test_chains_of_chains():
    k, betas = 40, torch.full((3,), 1e-4, dtype=torch.float64)
    inner = transitions.discretized_gaussian(k, betas)
    log_q = log_gaussian(k, betas[0])
    assert_logs_agree(inner.log_product(0, 3), log_sums(log_sums(log_q, log_q), log_q))
    masked = transitions.with_mask(inner, schedules.jsd(3)).log_product(0, 1)
    assert_logs_agree(masked[:k, :k], log_q + math.log(2 / 3))
    assert bool((masked[k, :k] == -torch.inf).all())
    mixed = transitions.mixture([inner, transitions.absorbing(k, betas, 0)], [0.25, 0.75])
    truth = log_q + math.log(0.25)
    others = transitions.absorbing(k, betas, 0).q_matrix(1).log() + math.log(0.75)
    assert_logs_agree(mixed.log_product(0, 1), torch.logaddexp(truth, others))


def test_impossible_is_not_small():
    """Classes that the chain never leads to are -inf, also where others underflow."""
    for family in ("from_matrices", "with_mask", "gaussian_banded"):
        chain = make_dense_chain(family, 12)
        for t in (1, 2, 6):
            logs = chain.transition.log_product(0, t)
            assert torch.equal(logs > -torch.inf, chain.product(0, t) > 0)


@pytest.mark.parametrize("budget", [1, 1 << 24])
def test_chains_of_sparse_and_of_dense_chains_agree(budget):
    """A path of 30 classes, 15 jumps from end to end, each as rare as 1e-30."""
    times = torch.tensor([1e-30, 1.0], dtype=torch.float64)
    points = torch.arange(30.0)[:, None]
    inner = transitions.nearest_neighbor(points, 2, times, memory_budget=budget)
    assert isinstance(inner, transitions.SparseTransition) == (budget == 1)
    rate = transitions.nearest_neighbor_rate(points, 2)
    truth = transitions.from_rate(rate, times).log_product(0, 1)
    assert truth[0, 29] < -800
    assert_logs_agree(inner.log_q_matrix(1), truth)
    masked = transitions.with_mask(inner, [0.5, 1.0]).log_product(0, 1)
    assert_logs_agree(masked[:30, :30], truth + math.log(0.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("beta", [1e-4, 1e-3])
def test_what_p_excludes_costs_infinity_however_unlikely_it_is(impl, beta, dtype):
    chain = transitions.discretized_gaussian(12, [beta] * 3, band_limit=2)
    logits = torch.full((1, 12), -torch.inf, dtype=dtype)
    logits[0, 8] = 0
    x = torch.tensor([6])
    loss = functional.loss(chain, logits, x, x, torch.tensor([2]), impl=impl)
    assert loss == torch.inf
