"""Predictions by score: the loss against its definition, the reverse steps against theirs."""

import mpmath
import pytest
import torch
from helpers.compare import assert_close, check_gradient, unit
from helpers.continuous import FAMILIES, PI, K, make_continuous_chain
from helpers.laws import assert_follows
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf

import d3pm_fast as d3
from d3pm_fast import functional, transitions
from d3pm_fast.functional import Score
from d3pm_fast.schedules import continuous

ALSO_BY = ("triton", "cuda")  # the fixture impl; see conftest.py
SCHEDULE = continuous.log_linear()
HIDDEN = {  # whose data never hold the mask
    "absorbing": transitions.absorbing(K, SCHEDULE, K - 1),
    "mask_and_uniform": transitions.mask_and_uniform(K, SCHEDULE, 2, 0.3),
    "gidd": transitions.gidd(K, K - 1, 0.2),
    "masked_uniform": transitions.masked_uniform(K, continuous.cosine(), SCHEDULE, 2),
}
SHOWN = {name: make_continuous_chain(name, SCHEDULE).transition for name in FAMILIES}
CHAINS = {**{f"{name}, hidden": chain for name, chain in HIDDEN.items()}, **SHOWN}
CHAINS["from_marginals"] = transitions.from_marginals(
    K, lambda t: 1 - t, lambda t: t / 3 - t**2 / 6, lambda t: 2 * t / 3 + t**2 / 6, mask_id=1
)
STEPPED = {name: chain for name, chain in CHAINS.items() if not chain.asks_tokens}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def every_pair(chain, t):
    """All ``(x_0, x_t)`` that data and the chain can make at t."""
    reached = chain.q_bar_matrix(t) > 0
    if chain.forbidden >= 0:
        reached[chain.forbidden] = False
    return reached.nonzero().unbind(-1)


def times(x, t):
    return torch.full((len(x),), t, dtype=torch.float64)


def ratios(chain, logits, x_t, t):
    """``log f_j / f[x_t]`` with ``f = softmax(logits) Qbar_t``."""
    logits = logits.clone()
    if chain.forbidden >= 0:
        logits[..., chain.forbidden] = -torch.inf
    f = torch.softmax(logits, dim=-1) @ chain.q_bar_matrix(t)
    return (f / f.gather(-1, x_t.unsqueeze(-1))).log()


def loss_of(chain, log_scores, x0, x_t, t, impl, **options):
    options = {"reduction": "none", "impl": impl, **options}
    return functional.loss(chain, Score(log_scores), x0, x_t, t, **options)


@pytest.mark.parametrize("t", [1e-3, 0.37, 0.999])
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_scores_of_a_softmax_have_its_loss(impl, chain, t):
    x0, x_t = every_pair(chain, t)
    logits = 2 * torch.randn(len(x0), K, dtype=torch.float64)
    args = x0, x_t, times(x0, t)
    found = loss_of(chain, ratios(chain, logits, x_t, t), *args, impl)
    expected = functional.loss(chain, logits, *args, reduction="none", impl="reference")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert expected.max() > 0.01


def true_entropy(matrix, rates, y, x0, x_t):
    """Score entropy from explicit matrices, in float64 by autograd: SEDD's eq. 7, its constant."""
    rows = torch.arange(len(x0))
    r = matrix[x0] / matrix[x0, x_t].unsqueeze(-1)
    constant = torch.where(r > 0, r * (r.clamp(min=1e-300).log() - 1), 0)
    product = torch.where(r > 0, r * torch.where(r > 0, y, 0), 0)
    terms = y.exp() - product + constant
    others = torch.ones_like(terms).index_put((rows, x_t), torch.zeros(()).double())
    return rates[x_t] * (terms * others).sum(-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_scores_against_the_definition(impl, family, dtype):
    chain, t = make_continuous_chain(family, SCHEDULE), 0.37
    x0, x_t = every_pair(chain.transition, t)
    leaf = (2 * torch.randn(len(x0), K)).to(dtype).requires_grad_()
    wide = leaf.detach().double().requires_grad_()
    loss = loss_of(chain.transition, leaf, x0, x_t, times(x0, t), impl)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    truth = true_entropy(chain.reached(t), chain.rates(t), wide, x0, x_t)
    (true_gradient,) = torch.autograd.grad(truth.sum(), wide)
    assert_close(loss, truth, dtype, ulps=16, scale=truth.abs() + 1)
    counts = true_gradient.abs().sum(-1) > 0  # not an unmasked token
    assert (gradient[~counts] == 0).all()
    check_gradient(gradient[counts], true_gradient[counts], dtype, ulps=32)
    assert (gradient.gather(-1, x_t.unsqueeze(-1)) == 0).all()


def exact_entropy(law, t, y, x0, x_t):
    """The same of a chain with ``alpha(t) = 1 - t`` in mpmath's digits, and its gradient."""
    with mpmath.workdps(60):
        keep, lost = 1 - mpf(t), mpf(t)
        d = [keep * (j == x0) + lost * mpf(float(w)) for j, w in enumerate(law)]
        rate = mpf(float(law[x_t])) / keep
        total, slopes = mpf(0), [0.0] * len(law)
        for j, score in enumerate(y):
            if j != x_t:
                r = d[j] / d[x_t]
                total += mpmath.exp(score) - r * mpf(score) + r * (mpmath.log(r) - 1)
                slopes[j] = float(rate * (mpmath.exp(score) - r))
        return float(rate * total), slopes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("error", [0.5, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("family", ["uniform", "marginal"])
def test_scores_near_the_right_ones_keep_their_digits(impl, family, error, dtype):
    """Losses down to 1e-12, where the terms of the definition cancel to nothing."""
    law = (
        torch.full((K,), 1 / K, dtype=torch.float64)
        if family == "uniform"
        else PI[:4] / PI[:4].sum()
    )
    chain = transitions.marginal(len(law), continuous.linear(), law)
    if family == "uniform":
        chain = transitions.uniform(K, continuous.linear())
    t, x0, x_t = 0.3, torch.tensor([1, 1]), torch.tensor([1, 3])
    matrix = chain.q_bar_matrix(t)
    right = (matrix[x0] / matrix[x0, x_t].unsqueeze(-1)).log()
    leaf = (right + error * torch.randn(right.shape, dtype=torch.float64)).to(dtype)
    leaf.requires_grad_()
    loss = loss_of(chain, leaf, x0, x_t, times(x0, t), impl)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    exact = [
        exact_entropy(law, t, y, x, z)
        for y, x, z in zip(leaf.tolist(), x0.tolist(), x_t.tolist(), strict=True)
    ]
    truth, slopes = (torch.tensor(x, dtype=torch.float64) for x in zip(*exact, strict=True))
    if error == 1e-6:
        assert truth.max() < 1e-11
    # What is left of a rounded log r, in float64 of 1e-16, in float32 of 2^-41.
    floor = 2.0**-40 / error if dtype == torch.float32 else 1e-15 / error
    allowed = 16 * unit(dtype) + floor + (1e-9 if impl == "reference" else 0)
    assert ((loss.double() - truth).abs() / truth).max() < allowed
    check_gradient(gradient, slopes, dtype, ulps=16 + floor / unit(dtype))


def test_ratios_of_0_and_scores_of_any_size(impl):
    """-inf is the score of a ratio of 0; anywhere else it has no bound. NaN stays NaN."""
    chain = transitions.absorbing(3, continuous.linear(), 2)
    x0, mask, t = torch.tensor([0]), torch.tensor([2]), torch.tensor([0.5])
    inf, nan = torch.inf, torch.nan
    for row, expected in [
        ([0.0, -inf, nan], 0.0),
        ([-inf, 0.0, 0.0], inf),
        ([nan, 0.0, 0.0], nan),
        ([0.0, nan, 0.0], nan),
        ([0.0, 1e4, 0.0], inf),
        ([-1e4, -inf, 0.0], 2 * (1e4 - 1)),
        ([0.0, 80.0, 0.0], 2 * mpmath.exp(80)),
    ]:
        for dtype in (torch.float32, torch.float64):
            leaf = torch.tensor([row], dtype=dtype, requires_grad=True)
            loss = loss_of(chain, leaf, x0, mask, t, impl)
            assert_close(loss, torch.tensor([float(expected)], dtype=torch.float64), dtype, ulps=16)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            assert gradient[0, 2] == 0
            assert gradient.isfinite().all() == (expected < 1e38 or row[0] == -inf)


def test_a_ratio_far_below_its_score(impl):
    """e^(y - log r) is out of float32's range, e^y is not."""
    pi = torch.tensor([1 - 1e-16, 1e-16]).double()
    chain = transitions.marginal(2, continuous.linear(), pi)
    x0, t = torch.tensor([0]), torch.tensor([0.5])
    loss = loss_of(chain, torch.tensor([[0.0, 60.0]]), x0, x0, t, impl)
    expected = 2 * torch.tensor([60.0]).double().exp()
    assert_close(loss, expected, torch.float32, ulps=16)


def test_what_counts_for_nothing_is_not_read(impl):
    """Rows of unmasked and of masked out tokens, the score of x_t, that of no class at all."""
    nan = torch.nan
    chain = transitions.absorbing(3, continuous.linear(), 2)
    x0, x_t = torch.tensor([[0, 1, 0, 99]]), torch.tensor([[0, 1, 2, 7]])
    rows = [[nan] * 3, [nan] * 3, [0.0, -1.0, nan], [nan] * 3]
    leaf = torch.tensor([rows], requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    loss = loss_of(chain, leaf, x0, x_t, torch.tensor([0.5]), impl, mask=mask)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert (loss[0, [0, 1, 3]] == 0).all()
    assert (gradient[0, [0, 1, 3]] == 0).all()
    assert loss[0, 2] > 0
    assert gradient[0, 2, 2] == 0

    chain = HIDDEN["masked_uniform"]  # a visible token never was the mask, class 2
    x, args = torch.tensor([[1]]), (torch.tensor([0.5]), impl)
    losses = []
    for unused in (nan, 0.0):
        leaf = torch.tensor([[[0.0, 0.0, unused, 0.0, 0.0]]], requires_grad=True)
        losses.append(loss_of(chain, leaf, x, x, *args))
        assert torch.autograd.grad(losses[-1].sum(), leaf)[0][0, 0, 2] == 0
    assert losses[0] == losses[1] > 0


def test_classes_in_dimension_1(impl):
    chain, y, *tokens = problem()
    leaf, other = y.clone().requires_grad_(), y.movedim(-1, 1).contiguous().requires_grad_()
    losses = [
        loss_of(chain, leaf, *tokens, impl),
        loss_of(chain, other, *tokens, impl, class_dim=1),
    ]
    assert torch.equal(*losses)
    one, two = (
        torch.autograd.grad(loss.sum(), x)[0] for loss, x in zip(losses, (leaf, other), strict=True)
    )
    assert torch.equal(one, two.movedim(1, -1))
    x_t, t = tokens[1:]
    log_p = functional.p_posterior(chain, Score(y), x_t, t, t / 2)
    moved = functional.p_posterior(chain, Score(other.detach()), x_t, t, t / 2, class_dim=1)
    assert torch.equal(log_p.movedim(-1, 1), moved)


def test_a_pair_that_the_chain_cannot_make_has_no_loss(impl):
    chain = transitions.absorbing(3, continuous.linear(), 2)
    x0, x_t = torch.tensor([[0, 0]]), torch.tensor([[1, 2]])
    loss = loss_of(chain, torch.zeros(1, 2, 3), x0, x_t, torch.tensor([0.5]), impl)
    assert loss.isnan().tolist() == [[True, False]]


def problem(num_classes=7, dtype=torch.float64):
    chain = transitions.mask_and_uniform(num_classes, SCHEDULE, 2, 0.3)
    x0 = torch.randint(3, num_classes, (4, 3))
    t = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    x_t = functional.q_sample(chain, x0, t, impl="reference")
    return chain, torch.randn(4, 3, num_classes).to(dtype), x0, x_t, t


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_options_of_a_loss(impl, dtype):
    chain, y, *tokens = problem(dtype=dtype)
    mask = torch.rand(4, 3) < 0.7
    weights = torch.rand(4)
    each = loss_of(chain, y.double(), *tokens, "reference") * mask * weights[:, None]
    sums = {"none": each, "batch": each.sum(1), "sum": each.sum(), "mean": each.sum() / mask.sum()}
    for reduction, expected in sums.items():
        leaf = y.clone().requires_grad_()
        options = {"mask": mask, "weights": weights, "reduction": reduction}
        loss = loss_of(chain, leaf, *tokens, impl, vb_weight=0.5, **options)
        assert_close(loss, 0.5 * expected, dtype, ulps=32, scale=expected.abs() + 1)
        wide = y.double().detach().clone().requires_grad_()
        loss_of(chain, wide, *tokens, "reference", vb_weight=0.5, **options).sum().backward()
        loss.sum().backward()
        used = wide.grad.abs().sum(-1) > 0
        ulps = 8192 if dtype == torch.float16 else 64  # a mean's factor is rounded, too
        check_gradient(leaf.grad[used], wide.grad[used], dtype, ulps=ulps)
    divided = loss_of(chain, y, *tokens, impl, reduction="mean", denominator=7.0, mask=mask)
    plain = loss_of(chain, y, *tokens, impl, reduction="sum", mask=mask)
    torch.testing.assert_close(divided, plain / 7)
    learned = torch.tensor(0.5, requires_grad=True)
    loss = loss_of(chain, y, *tokens, impl, reduction="sum", vb_weight=learned)
    loss.backward()
    torch.testing.assert_close(learned.grad.to(loss.dtype), 2 * loss.detach())


def test_the_terms_of_a_loss(impl):
    chain, y, *tokens = problem()
    options = {"reduction": "sum", "impl": impl}
    leaf = y.clone().requires_grad_()
    terms = functional.loss_terms(chain, Score(leaf), *tokens, vb_weight=0.5, **options)
    torch.testing.assert_close(terms.loss, 0.5 * terms.vb)
    assert terms.ce.isnan()
    plain = functional.loss(chain, Score(y), *tokens, **options)
    torch.testing.assert_close(terms.vb, plain)
    (gradient,) = torch.autograd.grad(terms.loss, leaf)
    other = y.clone().requires_grad_()
    (truth,) = torch.autograd.grad(loss_of(chain, other, *tokens, "reference").sum(), other)
    check_gradient(gradient, 0.5 * truth, torch.float64, ulps=64)
    as_tensor = functional.loss_terms(
        chain, Score(y), *tokens, vb_weight=torch.tensor(0.5), **options
    )
    torch.testing.assert_close(as_tensor.loss, terms.loss.detach())


def test_what_has_no_meaning_is_refused():
    chain, y, *tokens = problem()
    *_, t = tokens
    with pytest.raises(ValueError, match="ce_weight must be 0 for a Score"):
        functional.loss(chain, Score(y), *tokens, ce_weight=0.1)
    with pytest.raises(ValueError, match="ce_weight must be 0 for a Score"):
        functional.loss(chain, Score(y), *tokens, ce_weight=torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"log_scores must have shape \(4, 3, 7\)"):
        functional.loss(chain, Score(y[..., 1:]), *tokens)
    with pytest.raises(ValueError, match="step must be one of"):
        functional.p_sample(chain, Score(y, "exact"), tokens[1], t, t / 2)
    with pytest.raises(ValueError, match="must be on"):
        functional.loss(chain, Score(y.to("meta")), *tokens)
    finite = transitions.uniform(7, [0.1, 0.3])
    steps = tokens[0], tokens[0], torch.tensor([1, 2, 1, 2])
    with pytest.raises(ValueError, match="is of continuous time, got a chain of 2 steps"):
        functional.loss(finite, Score(y), *steps)
    with pytest.raises(ValueError, match="step='euler' is of continuous time"):
        functional.p_posterior(finite, Score(y, "euler"), *steps[1:])
    dense = transitions.discretized_gaussian(7, [0.1, 0.3])
    with pytest.raises(ValueError, match="a Score needs a rank-one chain, got discretized"):
        functional.p_posterior(dense, Score(y), *steps[1:])
    masked = transitions.masked_uniform(7, SCHEDULE, SCHEDULE, 2)
    with pytest.raises(ValueError, match="no analytic step of masked_uniform"):
        functional.p_posterior(masked, Score(y), tokens[1], t, t / 2)


@pytest.mark.exhaustive(where=lambda impl, family: impl == "triton" and family != "absorbing")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch itself
@pytest.mark.parametrize("family", ["absorbing", "uniform", "marginal"])
def test_derivatives_of_a_gradient(impl, family):
    chain = SHOWN[family]
    x0, x_t = (x[::3] for x in every_pair(chain, 0.4))
    leaf = torch.randn(len(x0), K, dtype=torch.float64, requires_grad=True)

    def loss(y):
        return loss_of(chain, y, x0, x_t, times(x0, 0.4), impl)

    assert torch.autograd.gradcheck(loss, leaf)
    assert torch.autograd.gradgradcheck(loss, leaf)
    rows = torch.func.hessian(lambda y: loss(y).sum())(leaf.detach())
    assert rows.abs().max() > 0.1


@given(
    shape=st.sampled_from([(1, 3), (3, 5), (2, 27), (1, 300), (2, 64), (1, 1030)]),
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from([0.01, 1.0, 20.0]),
    name=st.sampled_from(["uniform", "absorbing", "marginal"]),
    seed=st.integers(0, 99),
)
def test_any_shape(kernels, shape, dtype, size, name, seed):
    random = torch.Generator().manual_seed(seed)
    tokens, num_classes = shape
    pi = torch.rand(num_classes, generator=random, dtype=torch.float64)
    make = {
        "uniform": lambda: transitions.uniform(num_classes, SCHEDULE),
        "absorbing": lambda: transitions.absorbing(num_classes, SCHEDULE, num_classes // 2),
        "marginal": lambda: transitions.marginal(num_classes, SCHEDULE, pi / pi.sum()),
    }
    chain = make[name]()
    x0 = torch.randint(num_classes, (2, tokens), generator=random)
    x0 = (x0 + (x0 == chain.forbidden)) % num_classes
    t = torch.rand(2, generator=random, dtype=torch.float64)
    x_t = functional.q_sample(chain, x0, t, seeds=torch.tensor([seed, 1]), impl="reference")
    y = (size * torch.randn(2, tokens, num_classes, generator=random)).to(dtype)
    losses, gradients = [], []
    for leaf, impl in ((y, kernels), (y.double(), "reference")):
        leaf = leaf.detach().requires_grad_()
        losses.append(loss_of(chain, leaf, x0, x_t, t, impl))
        gradients.append(torch.autograd.grad(losses[-1].sum(), leaf)[0])
    assert_close(losses[0], losses[1], dtype, ulps=64)
    terms = y.double().exp() * SCHEDULE.rate(t).view(2, 1, 1)  # that an entry is a difference of
    least = torch.finfo(dtype).tiny / unit(dtype)
    truth = gradients[1].where(gradients[1] < torch.finfo(dtype).max, torch.inf)
    assert_close(gradients[0], truth, dtype, ulps=64, scale=truth.abs() + terms + least)
    used = gradients[1].abs().sum(-1) > 0
    if used.any() and size <= 1:
        check_gradient(gradients[0][used], gradients[1][used], dtype, ulps=64)


def test_it_compiles_into_one_graph(cpu):
    chain, y, *tokens = problem(dtype=torch.float32)
    *_, x_t, t = tokens
    seeds = torch.arange(4)

    def compute(y):
        loss = functional.loss(chain, Score(y), *tokens, impl=cpu)
        log_p = functional.p_posterior(chain, Score(y), x_t, t, t / 2)
        return loss, log_p, functional.p_sample(chain, Score(y), x_t, t, t / 2, seeds=seeds)

    torch._dynamo.reset()
    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compute, compiled):
        leaf = y.clone().requires_grad_()
        loss, log_p, drawn = function(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
        results.append((loss.detach(), log_p.detach(), drawn, gradient))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_opcheck_finds_nothing(cpu):
    chain, y, x0, x_t, t = problem(dtype=torch.float32)
    step, _ = chain.loss_record(t)
    model, weights = (False, False), (1.0, 0.0, None)
    record = y, x0, None, x_t, *step, *model, *weights, True, False
    torch.library.opcheck(torch.ops.d3pm_fast.score_loss.default, (*record, "none"))
    operation = torch.ops.d3pm_fast.score_loss_and_grad.default
    torch.library.opcheck(operation, (*record, "mean", False))


# The reverse steps.


def true_step(chain, f, x_t, t, s):
    """``p(x_s | x_t)`` of one token whose x_t has the law f, of each: by explicit matrices."""
    q = chain.q_matrix(t, s)
    before = torch.linalg.solve(q.T, f.unsqueeze(-1)).squeeze(-1)
    weights = before.clamp(min=0) * q[:, x_t].T
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("s", [0.0, 0.2, 0.36])
@pytest.mark.parametrize("chain", STEPPED.values(), ids=STEPPED)
def test_the_analytic_step_undoes_that_of_the_chain(chain, s):
    t = 0.37
    x_t = torch.arange(K)
    if chain.family == "marginal":
        x_t = x_t[:-1]  # class 4 is not entered
    logits = torch.randn(len(x_t), K, dtype=torch.float64)
    at_t, at_s = times(x_t, t), times(x_t, s)
    scores = Score(ratios(chain, logits, x_t, t))
    found = functional.p_posterior(chain, scores, x_t, at_t, at_s)
    exact = functional.p_posterior(chain, logits, x_t, at_t, at_s, impl="reference")
    torch.testing.assert_close(found.exp(), exact.exp(), rtol=1e-9, atol=1e-12)

    y = scores.log_scores + 0.3 * torch.randn_like(logits)  # inexact: some weights are below 0
    if chain.data_has_mask or chain.mask_id < 0 or s > 0:
        y = y.scatter(-1, x_t.unsqueeze(-1), 0)
        truth = true_step(chain, y.exp(), x_t, t, s)
        found = functional.p_posterior(chain, Score(y), x_t, at_t, at_s).exp()
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)


def test_the_analytic_step_of_a_chain_of_steps():
    chain = transitions.mask_and_uniform(K, [0.1, 0.3, 0.2], 2, 0.3)
    x_t, t = torch.arange(K), torch.full((K,), 3)
    logits = torch.randn(K, K, dtype=torch.float64)
    scores = Score(ratios(chain, logits, x_t, 3))
    for s in (None, torch.full((K,), 1), torch.zeros(K).long()):
        found = functional.p_posterior(chain, scores, x_t, t, s)
        exact = functional.p_posterior(chain, logits, x_t, t, s, impl="reference")
        torch.testing.assert_close(found.exp(), exact.exp(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_euler_step_is_the_rates_times_the_length(family):
    chain, t = make_continuous_chain(family, SCHEDULE), 0.4
    x_t = torch.arange(K)
    y = torch.randn(K, K, dtype=torch.float64)
    for s in (0.39, 0.1):
        moves = (t - s) * chain.rates(t)[x_t].unsqueeze(-1) * y.exp()
        moves = moves.masked_fill(torch.eye(K).bool(), 0)
        law = moves + torch.diag((1 - moves.sum(-1)).clamp(min=0))
        law = law / law.sum(-1, keepdim=True)
        args = x_t, times(x_t, t), times(x_t, s)
        found = functional.p_posterior(chain.transition, Score(y, "euler"), *args)
        torch.testing.assert_close(found.exp(), law, rtol=1e-10, atol=1e-12)


def test_short_euler_steps_tend_to_the_exact_ones():
    """Also where the mask stays, which has no analytic step."""
    t = 0.5
    for chain in CHAINS.values():
        x_t = every_pair(chain, t)[1].unique()
        logits = torch.randn(len(x_t), K, dtype=torch.float64)
        scores = Score(ratios(chain, logits, x_t, t), "euler")
        errors = []
        for length in (1e-3, 1e-4):
            args = x_t, times(x_t, t), times(x_t, t - length)
            found = functional.p_posterior(chain, scores, *args).exp()
            exact = functional.p_posterior(chain, logits, *args, impl="reference").exp()
            errors.append((found - exact).abs().max())
        assert errors[1] < 0.02 * errors[0] + 1e-15 < 1e-5


def test_the_step_to_0_never_draws_a_mask_that_data_never_hold():
    for step in ("analytic", "euler"):
        chain = HIDDEN["absorbing"]
        y, x_t = torch.randn(9, K) - 5, torch.full((9,), K - 1)  # too low: a mask has some weight
        args = chain, Score(y, step), x_t, times(x_t, 0.4), times(x_t, 0.0)
        log_p = functional.p_posterior(*args)
        assert log_p.dtype == torch.float32
        expected = y[:, :-1].log_softmax(-1)
        torch.testing.assert_close(log_p[:, :-1], expected, rtol=1e-5, atol=1e-5)
        assert (log_p[:, -1] == -torch.inf).all()
        assert (functional.p_sample(*args) != K - 1).all()


@pytest.mark.parametrize("step", ["analytic", "euler"])
def test_the_law_of_a_step_has_a_gradient(step):
    chain, x_t = SHOWN["mask_and_uniform"], torch.arange(K)
    leaf = 0.1 * torch.randn(K, K, dtype=torch.float64)
    leaf.requires_grad_()
    args = x_t, times(x_t, 0.4), times(x_t, 0.39)
    assert torch.autograd.gradcheck(
        lambda y: functional.p_posterior(chain, Score(y, step), *args).exp(), leaf
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", ["analytic", "euler"])
@pytest.mark.parametrize("family", ["absorbing", "uniform", "mask_and_uniform"])
def test_draws_follow_the_law(family, step, dtype):
    chain, draws = SHOWN[family], 20_000
    x_t = torch.arange(K).expand(draws, K)
    y = (torch.randn(K, K) / 2).to(dtype)
    t, s = torch.full((draws,), 0.6).double(), torch.full((draws,), 0.4).double()
    args = x_t[:1], t[:1], s[:1]
    law = functional.p_posterior(chain, Score(y.double()[None], step), *args).exp()[0]
    scores = Score(y.expand(draws, K, K), step)
    seeds = torch.arange(draws)
    drawn = functional.p_sample(chain, scores, x_t, t, s, seeds=seeds)
    assert_follows(drawn.numpy(), law.numpy())
    some = functional.p_sample(chain, Score(y.expand(9, K, K), step), x_t[:9], t[:9], s[:9],
                               seeds=seeds[:9])  # fmt: skip
    assert torch.equal(some, drawn[:9])


def test_a_row_without_a_law():
    chain, x_t = SHOWN["uniform"], torch.tensor([1, 2])
    y = torch.zeros(2, K)
    y[1, 0] = torch.nan
    args = chain, Score(y), x_t, times(x_t, 0.4), times(x_t, 0.2)
    assert functional.p_posterior(*args).isnan().all(-1).tolist() == [False, True]
    with pytest.raises(ValueError, match=r"log_scores must give x_s a law.* at index \(1,\)"):
        functional.p_sample(*args)
    with pytest.raises(RuntimeError, match="impl='cpu' has no 'analytic_p_sample'"):
        functional.p_sample(*args, impl="cpu")
    for operation in ("analytic_posterior", "euler_p_sample"):
        assert d3.implementation(operation=operation).name == "reference"


LAW = torch.tensor([[0.4, 0.05, 0.1], [0.05, 0.2, 0.2]], dtype=torch.float64).view(-1)
PAIRS = torch.cartesian_prod(torch.arange(2), torch.arange(3))


def exact_scores(chain, x_t, t):
    """Of data with the law above, two tokens of classes 0..2: ratios by enumeration, (B, 2, K)."""
    rows = []
    for x, time in zip(x_t, t.tolist(), strict=True):
        reach = chain.q_bar_matrix(time)
        parts = [reach[PAIRS[:, i]] for i in range(2)]  # (6, K)
        one, other = (parts[i][:, x[i]] for i in range(2))
        here = (LAW * one * other).sum()
        first = (LAW * other) @ parts[0]
        second = (LAW * one) @ parts[1]
        rows.append(torch.stack([first, second]) / here)
    return torch.stack(rows).log()


@pytest.mark.parametrize("step", ["analytic", "euler"])
@pytest.mark.parametrize("family", ["absorbing", "uniform"])
def test_samples_with_exact_scores_have_the_law_of_the_data(family, step):
    """Up to the length of the steps: 64 of them leave less than the draws can tell."""
    make = {
        "absorbing": transitions.absorbing(4, continuous.log_linear(), 3),
        "uniform": transitions.uniform(3, continuous.geometric(1e-3, 8.0)),
    }
    diffusion, draws, num_steps = d3.D3PM(make[family]), 2000, 64
    chain = diffusion.transition

    def denoiser(x, t):
        found, back = torch.cat([x, t[:, None]], 1).unique(dim=0, return_inverse=True)
        y = exact_scores(chain, found[:, :2].long(), t[0].expand(len(found)))
        return Score(y[back], step)

    x = diffusion.sample(denoiser, (draws, 2), steps=num_steps, seeds=torch.arange(draws))
    assert x.max() < 3
    counts = torch.zeros(2, 3).index_put((x[:, 0].clamp(max=1), x[:, 1]), torch.ones(draws), True)
    found = counts.view(-1) / draws
    if family == "uniform":
        assert (x[:, 0] == 2).float().mean() < 0.01
    assert (found - LAW).abs().max() < 4 * (0.25 / draws) ** 0.5


@pytest.mark.parametrize("family", ["absorbing", "uniform"])
def test_the_bound_with_scores_is_that_with_logits(family):
    """The density, and the step from t_min to 0 by the analytic law; also in steps."""
    diffusion = d3.D3PM(CHAINS["absorbing, hidden" if family == "absorbing" else "uniform"])
    chain = diffusion.transition
    weight = torch.randn(K, K, dtype=torch.float64)
    x0 = torch.randint(K - 1, (3, 4))

    def logits(x, t):
        return weight[x] + t.view(-1, 1, 1)

    def scores(x, t):
        made = logits(x, t)
        rows = [ratios(chain, row, one, u) for row, one, u in zip(made, x, t.tolist(), strict=True)]
        return Score(torch.stack(rows))

    seeds = torch.arange(3)
    for options in ({"num_times": 5}, {"steps": 4}):
        found, expected = (
            diffusion.elbo(model, x0, seeds=seeds, **options).nats for model in (scores, logits)
        )
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_unmasking_one_by_one_takes_scores():
    diffusion = d3.D3PM(HIDDEN["absorbing"])
    y = torch.randn(K)
    y[1] = 9.0
    x = d3.samplers.first_hitting(
        diffusion, lambda x, t: Score(y.expand(*x.shape, K)), (20, 3), seeds=torch.arange(20)
    )
    assert (x == 1).float().mean() > 0.9
