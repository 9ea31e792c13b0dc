"""Chains of sparse rates: neighbours among many classes, without a matrix of K x K numbers."""

import resource

import pytest
import torch
from helpers.compare import assert_close, check_gradient
from hypothesis import given
from hypothesis import strategies as st

from d3pm_fast import functional, transitions
from d3pm_fast.chains.jump_laws import Coins, Poisson
from d3pm_fast.chains.jumps import TAIL

SIZE = 200
TIMES = torch.tensor([0.01, 0.3, 2.0, 30.0]).double()


def points(num_classes, seed=0):
    return torch.randn(num_classes, 4, generator=torch.Generator().manual_seed(seed)).double()


@pytest.fixture(scope="module", params=[None, 0.2], ids=["neighbors", "masked"])
def pair(request):
    """The same chain, held as a sparse rate and as matrices."""
    options = {"mask_rate": request.param}
    sparse = transitions.nearest_neighbor(points(SIZE), 12, TIMES, memory_budget=1, **options)
    rate = transitions.nearest_neighbor_rate(points(SIZE), 12, **options)
    return sparse, transitions.from_rate(rate, TIMES)


def test_many_classes_are_held_as_a_sparse_rate(pair):
    sparse, dense = pair
    assert isinstance(sparse, transitions.SparseTransition)
    for num_classes, kind in ((40, transitions.DenseTransition), (1025, type(sparse))):
        assert isinstance(transitions.nearest_neighbor(points(num_classes), 12, TIMES), kind)
    torch.testing.assert_close(sparse.stationary(), dense.stationary(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("s", "t"), [(0, 1), (0, 2), (1, 2), (0, 4), (2, 3)])
def test_every_entry_has_its_digits(pair, s, t):
    sparse, dense = (chain.product(s, t) for chain in pair)
    assert torch.equal(sparse > 0, dense > 0)
    torch.testing.assert_close(sparse, dense, rtol=1e-11, atol=0)
    assert ((sparse.sum(1) - 1).abs() < 1e-12).all()


def test_prior_and_reach(pair):
    sparse, dense = pair
    torch.testing.assert_close(sparse.prior(), dense.prior(), rtol=1e-9, atol=1e-15)
    x0, x_t = torch.arange(90), torch.arange(90, 180)
    t = torch.arange(90) % 5
    torch.testing.assert_close(
        sparse.log_reach(x0, x_t, t), dense.log_reach(x0, x_t, t), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reverse", ["joint", "posterior_mean"])
def test_loss_is_that_of_the_matrices(pair, reverse, dtype):
    sparse, dense = pair
    k = sparse.num_classes
    generator = torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(4, 3, k, generator=generator)).to(dtype)
    x0 = torch.randint(SIZE, (4, 3), generator=generator)
    t = torch.arange(1, 5)
    x_t = functional.q_sample(sparse, x0, t, generator=generator)
    truth = run(dense, logits.double(), x0, x_t, t, reverse, "reference")
    for name, part in zip(("loss", "gradient"), truth, strict=True):
        assert part.isfinite().all(), name
    loss, gradient = run(sparse, logits, x0, x_t, t, reverse, "cpu")
    plain = run(dense, logits, x0, x_t, t, reverse, "reference")
    # The matrices of the truth are themselves rounded in float64.
    scale = truth[0] + 0.1 if dtype == torch.float64 else truth[0]
    assert_close(loss, truth[0], loss.dtype, ulps=128, scale=scale, baseline=plain[0])
    # Where the rows of Qbar are alike, differences of them have fewer digits.
    check_gradient(gradient, truth[1], dtype, ulps=512)


def run(transition, logits, x0, x_t, t, reverse, impl):
    leaf = logits.detach().clone().requires_grad_()
    options = {"reverse": reverse, "reduction": "none", "impl": impl}
    loss = functional.loss(transition, leaf, x0, x_t, t, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("reverse", ["joint", "posterior_mean"])
@pytest.mark.parametrize("is_sure", [False, True])
def test_draws_are_those_of_the_reference(pair, reverse, is_sure):
    """Also where the model is sure of a class that x_t is all but never reached from."""
    sparse, _ = pair
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 3, sparse.num_classes, generator=generator)
    if is_sure:
        logits[..., torch.randint(SIZE, (3,), generator=generator)] += 90
    t = torch.arange(1, 5)
    x_t = torch.randint(SIZE, (4, 3), generator=generator)
    options = {"reverse": reverse, "seeds": torch.arange(4)}
    drawn, truth = (
        functional.p_sample(sparse, logits, x_t, t, impl=impl, **options)
        for impl in ("cpu", "reference")
    )
    assert (drawn == truth).sum() >= 11  # a number may lie on a border within rounding


def test_draws_follow_the_rows(impl):
    chain = transitions.nearest_neighbor(points(SIZE), 12, TIMES, memory_budget=1)
    count = 20_000 if impl == "cpu" else 1000
    x0 = torch.full((1, count), 7)
    for t in (1, 3):
        drawn = functional.q_sample(
            chain, x0, torch.tensor([t]), generator=torch.Generator().manual_seed(2), impl=impl
        )
        law = chain.product(0, t)[7]
        likely = law > 20 / count
        seen = torch.bincount(drawn.flatten(), minlength=SIZE).double()
        expected = count * torch.cat([law[likely], law[~likely].sum()[None]])
        observed = torch.cat([seen[likely], seen[~likely].sum()[None]])
        freedom = max(int(likely.sum()), 1)
        distance = ((observed - expected) ** 2 / expected).sum()
        assert distance < freedom + 6 * (2 * freedom) ** 0.5 + 9


def test_without_the_compiled_module(pair, monkeypatch):
    sparse, _ = pair
    made = sparse.product(0, 3)
    monkeypatch.setattr("d3pm_fast.chains.jumps.cpu", None)
    torch.testing.assert_close(sparse.product(0, 3), made, rtol=1e-13, atol=0)


def test_a_graph_in_parts_has_no_limit():
    apart = torch.cat([points(600), points(600) + 100])
    with pytest.raises(ValueError, match="2 parts"):
        transitions.nearest_neighbor(apart, 12, TIMES)


@given(mean=st.floats(1e-12, 500), dtype=st.sampled_from(sorted(TAIL, key=str)))
def test_the_law_of_jumps_leaves_out_less_than_its_tail(mean, dtype):
    law = Poisson(1.0, torch.tensor([mean], dtype=torch.float64)).terms(0, 1, TAIL[dtype])
    n = torch.arange(len(law)).double()
    assert abs(law.sum() - 1) < 1e-13
    assert abs((n * law).sum() - mean) < 1e-11 * max(mean, 1)
    after = len(law)  # the first that is left out; those after it fall faster than a geometric law
    log_next = after * torch.tensor(mean).double().log() - mean - torch.lgamma(n[-1] + 2)
    assert after > mean
    assert log_next.exp() / (1 - mean / (after + 1)) <= TAIL[dtype]


def test_the_law_of_coins():
    betas = torch.tensor([0.1, 0.0, 1.0, 0.7]).double()
    jumps = torch.cartesian_prod(*[torch.arange(2)] * 4)
    chances = torch.where(jumps == 1, betas, 1 - betas).prod(1)
    truth = torch.zeros(5).double().index_add(0, jumps.sum(1), chances)
    law = Coins(betas)
    torch.testing.assert_close(law.log_terms(0, 4, 4).exp(), truth, rtol=1e-14, atol=0)
    assert law.log_terms(1, 4, 7)[4:].eq(-torch.inf).all()
    torch.testing.assert_close(
        Coins(torch.full((50,), 1e-9).double()).terms(0, 50, 1e-20),
        torch.tensor([1 - 5e-8, 5e-8, 1225e-18]).double(),
        rtol=1e-6,
        atol=0,
    )


@pytest.mark.parametrize("is_sparse", [False, True])
def test_sinkhorn_keeps_or_moves(is_sparse):
    betas = torch.tensor([1e-6, 0.3, 1.0, 0.5], dtype=torch.float64)
    budget = 1 if is_sparse else 1 << 24
    chain = transitions.nearest_neighbor(
        points(SIZE), 12, betas, method="sinkhorn", memory_budget=budget
    )
    assert isinstance(chain, transitions.SparseTransition) == is_sparse
    move, truth = chain.product(2, 3), torch.eye(SIZE, dtype=torch.float64)
    for beta in betas:
        truth = (1 - beta) * truth + beta * truth @ move
    ones = torch.ones(SIZE, dtype=torch.float64)
    torch.testing.assert_close(chain.product(0, 4), truth, rtol=1e-11, atol=0)
    torch.testing.assert_close(truth.sum(0), ones, rtol=1e-12, atol=0)
    torch.testing.assert_close(chain.stationary(), ones / SIZE, rtol=1e-15, atol=0)
    logs = chain.log_product(0, 2)
    torch.testing.assert_close(logs, chain.product(0, 2).log(), rtol=0, atol=1e-9)


def test_no_matrix_of_all_classes_is_made():
    """8192 classes: a single float32 matrix would take 256 MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chain = transitions.nearest_neighbor(points(8192), 12, torch.linspace(0, 1, 1000))
    logits = torch.zeros(2, 4, 8192)
    x_t = functional.q_sample(chain, torch.zeros(2, 4).long(), torch.tensor([500, 1000]))
    drawn = functional.p_sample(chain, logits, x_t, torch.tensor([500, 1000]))
    assert ((drawn >= 0) & (drawn < 8192)).all()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < 200 << 20


@pytest.mark.parametrize("num_classes", [32, 64])
def test_draws_are_the_same_by_every_implementation(cpu, triton, num_classes):
    times = [0.3, 1.0, 6.0]
    chain = transitions.nearest_neighbor(points(num_classes), 6, times, memory_budget=1)
    assert isinstance(chain, transitions.SparseTransition)
    seeds, t = torch.arange(4), torch.arange(4)
    x0 = torch.randint(num_classes, (4, 20))
    x_t, *others = (
        functional.q_sample(chain, x0, t, seeds=seeds, step=1 << 33, impl=impl)
        for impl in (cpu, triton, "reference")
    )
    assert torch.equal(x_t[0], x0[0])
    assert (x_t != x0).float().mean(dim=1)[3] > 0.7
    assert all(torch.equal(x_t, other) for other in others)
    logits = torch.randn(3, 9, num_classes)
    for options in ({}, {"s": torch.tensor([0, 1, 0]), "reverse": "posterior_mean"}):
        x_s, *others = (
            functional.p_sample(
                chain, logits, x_t[1:, :9], t[1:], seeds=seeds[1:], impl=impl, **options
            )
            for impl in (cpu, triton, "reference")
        )
        assert all(torch.equal(x_s, other) for other in others)


def test_what_is_no_class_or_time_is_not_drawn(triton):
    chain = transitions.nearest_neighbor(points(9), 3, TIMES, memory_budget=1)
    x0, t = torch.tensor([1, -1, 9, 3, 3]), torch.tensor([2, 2, 2, 5, -1])
    drawn = functional.q_sample(chain, x0, t, impl=triton)
    assert drawn[0] >= 0
    assert drawn[1:].tolist() == [-1] * 4
