"""The loss and its gradient: against enumeration, against 60 digits, and its options."""

import functools

import pytest
import torch
from helpers.chains import (
    FAMILIES,
    FIRST_STEP,
    REVERSE,
    every_pair,
    gradient_terms,
    likely_pairs,
    make_chain,
    true_loss,
)
from helpers.compare import assert_close, assert_gradient_close, check_gradient
from helpers.exact import exact_loss
from hypothesis import given
from hypothesis import strategies as st

from d3pm_fast import functional, schedules, transitions

# 2, 3, 5: less than any vector; 16: one AVX-512 vector of float32; 17: one more; 27: characters;
# 64: a few vectors; 200, 201: where the CPU kernels change from a vector of tokens to a vector of
# classes; 255, 256, 257: bytes and their neighbours; 1000: not a multiple of 16; 4099: a prime
# beyond the 1024 classes summed at a time; 9001: beyond the rows that a GPU's program holds whole.
ALSO_BY = ("triton", "cuda")  # the fixture impl; see conftest.py
SIZES = [2, 3, 5, 16, 17, 27, 64, 200, 201, 255, 256, 257, 1000, 4099, 9001]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SKIPS = [(0, 6), (1, 3)]  # s and t


def loss_and_gradient(chain, logits, x0, x_t, t, impl, **options):
    """Token losses and the gradient of their sum: nothing is hidden by 1/N."""
    logits = logits.detach().clone().requires_grad_()
    loss = functional.loss(
        chain.transition, logits, x0, x_t, t, impl=impl, reduction="none", **options
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


def truth_by_time(chain, logits, x0, x_t, t, **options):
    """The float64 truth of rows at different times, and the gradient of its sum."""
    leaf = logits.detach().double().requires_grad_()
    losses = torch.zeros(len(t), dtype=torch.float64)
    for time in t.unique().tolist():
        rows = t == time
        losses = losses.masked_scatter(
            rows, true_loss(chain, leaf[rows], x0[rows], x_t[rows], time, **options)
        )
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient


def least_scale(impl):
    """The scale below which plain PyTorch, which subtracts logarithms, loses its digits."""
    return 1.0 if impl == "reference" else 0.0


def size_of_terms(chain, logits, x0, x_t, t, reverse="joint", first_step="posterior", **_):
    """The kernels' gradient keeps its digits down to the size of its own terms."""
    floor = torch.zeros(len(t), dtype=torch.float64)
    for time in t.unique().tolist():
        n = t == time
        floor[n] = gradient_terms(chain, logits[n], x0[n], x_t[n], time, reverse, first_step)
    return floor


def all_pairs_at_edge_times(chain):
    parts = [(*every_pair(chain, t), t) for t in chain.edge_times()]
    x0, x_t = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    t = torch.cat([torch.full_like(part[0], part[2]) for part in parts])
    return x0, x_t, t


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair_agrees_with_explicit_matrices(impl, family, reverse, first_step, num_classes):
    chain = make_chain(family, num_classes)
    x0, x_t, t = all_pairs_at_edge_times(chain)
    logits = 2 * torch.randn(len(t), num_classes, dtype=torch.float64)
    options = {"reverse": reverse, "first_step": first_step}
    truth, true_gradient = truth_by_time(chain, logits, x0, x_t, t, **options)
    loss, gradient = loss_and_gradient(chain, logits, x0, x_t, t, impl, **options)
    assert_close(loss, truth, torch.float64, ulps=32, scale=truth.abs() + 1)
    check_gradient(gradient, true_gradient, torch.float64, ulps=64, floor=0.1)


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_that_skips_times_agrees_with_explicit_matrices(impl, family, reverse, first_step):
    chain = make_chain(family, 4)
    options = {"reverse": reverse, "first_step": first_step}
    for s, t in SKIPS:
        x0, x_t = every_pair(chain, t)
        leaf = (2 * torch.randn(len(x0), 4, dtype=torch.float64)).requires_grad_()
        truth = true_loss(chain, leaf, x0, x_t, t, s=s, **options)
        (true_gradient,) = torch.autograd.grad(truth.sum(), leaf)
        times, targets = (torch.full_like(x0, time) for time in (t, s))
        args = chain, leaf, x0, x_t, times, impl
        loss, gradient = loss_and_gradient(*args, s=targets, **options)
        assert_close(loss, truth, torch.float64, ulps=32, scale=truth.abs() + 1)
        check_gradient(gradient, true_gradient, torch.float64, ulps=64, floor=0.1)


@pytest.mark.exhaustive(
    where=lambda impl, num_classes, **_: impl == "triton" and num_classes > 9000
)
@pytest.mark.parametrize("num_classes", SIZES)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", ["uniform", "absorbing_last", "marginal", "mask_and_uniform"])
def test_every_size_is_within_ulps_in_float32(impl, family, reverse, num_classes):
    _check_random_rows(impl, family, num_classes, torch.float32, reverse=reverse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [3, 16, 27, 64, 257])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_dtype_is_within_ulps(impl, family, num_classes, dtype):
    _check_random_rows(impl, family, num_classes, dtype, first_step="posterior", ce_weight=0.01)


def _check_random_rows(impl, family, num_classes, dtype, **options):
    chain = make_chain(family, num_classes)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 6)
    logits = (2 * torch.randn(len(t), num_classes)).to(dtype)
    truth, true_gradient = truth_by_time(chain, logits, x0, x_t, t, **options)
    loss, gradient = loss_and_gradient(chain, logits, x0, x_t, t, impl, **options)
    # This truth is of float64, and so no better than plain PyTorch in float64.
    floor = least_scale("reference" if dtype == torch.float64 else impl)
    assert_close(loss, truth, dtype, ulps=24, scale=truth.abs() + floor)
    floor = size_of_terms(chain, logits, x0, x_t, t, **options).clamp(min=floor)
    check_gradient(gradient, true_gradient, dtype, ulps=24, floor=floor)


def hard_rows(num_classes, x0):
    """Logits for one ``x_0`` that break careless arithmetic, by name."""
    base = torch.randn(num_classes, generator=torch.Generator().manual_seed(1))
    other = (x0 + 1) % num_classes
    target = torch.zeros(num_classes)
    target[x0] = 1

    def put(index, value, row=None):
        row = (base if row is None else row).clone()
        row[index] = value
        return row

    return {
        "all equal": torch.zeros(num_classes),
        "all equal, far off": torch.full((num_classes,), 1e4),
        "p within 1e-6 of q": 14 * target,
        "p within 1e-12 of q": 28 * target + 0.1 * base,
        "sure and right": 1e4 * target,
        "sure and wrong": put(other, 1e4),
        "the truth at -1e4": put(x0, -1e4),
        "huge spread": base * 1e4,
        "one class forbidden": put(other, -torch.inf),
        "all but the truth forbidden": torch.full((num_classes,), -torch.inf).where(
            target == 0, 0.3
        ),
    }


BETAS = {
    "ordinary": [0.1, 0.2, 0.3, 0.5],
    "tiny": [1e-8] * 4,
    "almost gone": [0.5, 1 - 1e-6, 0.1, 0.2],
    "gone": [0.3, 0.5, 1.0, 0.4],
    "to the end": [0.25, 1 / 3, 0.5, 1.0],
}


# The 16-bit formats are read and written like the others: two of the schedules say enough.
HARD = [
    (betas, dtype)
    for betas in BETAS
    for dtype in DTYPES
    if dtype.itemsize > 2 or betas in ("ordinary", "tiny")
]


@functools.cache
def hard_truth(family, reverse, betas, dtype, num_classes=5):
    chain = make_chain(family, num_classes, BETAS[betas])
    if num_classes == 5:
        x0, x_t, t = all_pairs_at_edge_times(chain)
    else:
        x0, x_t, t = likely_pairs(chain, chain.edge_times(), 12)
    keep = torch.randperm(len(t), generator=torch.Generator().manual_seed(0))[:24]
    x0, x_t, t = x0[keep], x_t[keep], t[keep]
    cases = [hard_rows(num_classes, x) for x in x0.tolist()]
    names = list(cases[0])
    rows = [case[names[n % len(names)]] for n, case in enumerate(cases)]
    logits = torch.stack(rows).to(dtype)
    return (chain, logits, x0, x_t, t), exact_loss(chain, logits, x0, x_t, t, reverse)


@pytest.mark.parametrize(("betas", "dtype"), HARD)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_hard_rows_agree_with_sixty_digits(impl, family, reverse, betas, dtype):
    arguments, (truth, true_gradient, terms) = hard_truth(family, reverse, betas, dtype)
    loss, gradient = loss_and_gradient(*arguments, impl, reverse=reverse)
    assert_close(loss, truth, dtype, ulps=24, scale=truth.abs() + least_scale(impl))
    floor = terms.clamp(min=least_scale(impl))
    assert_gradient_close(gradient, true_gradient, dtype, ulps=32, floor=floor)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("family", ["uniform", "absorbing_last", "marginal_with_zeros"])
def test_hard_rows_of_many_classes_agree_with_sixty_digits(impl, family, betas):
    arguments, truths = hard_truth(family, "joint", betas, torch.float32, num_classes=213)
    truth, true_gradient, terms = truths
    loss, gradient = loss_and_gradient(*arguments, impl)
    assert_close(loss, truth, torch.float32, ulps=24, scale=truth.abs() + least_scale(impl))
    floor = terms.clamp(min=least_scale(impl))
    assert_gradient_close(gradient, true_gradient, torch.float32, ulps=32, floor=floor)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_truth_that_the_model_forbids_costs_what_the_chain_leaves(impl, family):
    """With ``s[x_0] = 0`` the loss is infinite only where the noise does not lead to x_0."""
    chain = make_chain(family, 5)
    x0, x_t, t = all_pairs_at_edge_times(chain)
    logits = torch.zeros(len(t), 5).scatter(1, x0[:, None], -torch.inf)
    loss = functional.loss(chain.transition, logits, x0, x_t, t, reduction="none", impl=impl)
    truth = torch.cat(
        [true_loss(chain, logits[t == v], x0[t == v], x_t[t == v], v) for v in t.unique().tolist()]
    )
    assert_close(loss, truth, torch.float32, ulps=24, scale=truth.abs() + 1)


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_adding_a_number_to_a_row_changes_nothing(impl, family, reverse):
    chain = make_chain(family, 16)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 6)
    logits = torch.randint(-8, 8, (len(t), 16)).float()
    plain = loss_and_gradient(chain, logits, x0, x_t, t, impl, reverse=reverse)
    moved = loss_and_gradient(chain, logits + 4096, x0, x_t, t, impl, reverse=reverse)
    assert_close(moved[0], plain[0], torch.float32, ulps=16, scale=plain[0].abs() + 1)
    assert_gradient_close(moved[1], plain[1], torch.float32, ulps=32, floor=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_a_row_sums_to_zero(impl, family):
    chain = make_chain(family, 27)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 6)
    logits = torch.randn(len(t), 27)
    _, gradient = loss_and_gradient(chain, logits, x0, x_t, t, impl, ce_weight=0.1)
    total = gradient.double().sum(-1).abs()
    assert bool((total <= 32 * torch.finfo(torch.float32).eps).all())


@pytest.mark.parametrize("mask_id", [0, 2, 4])
@pytest.mark.parametrize("reverse", REVERSE)
def test_an_unmasked_token_costs_exactly_nothing(impl, reverse, mask_id):
    """Absorbing, t >= 2: neither loss nor gradient, whatever its logits."""
    chain = transitions.absorbing(5, schedules.jsd(6), mask_id)
    x = torch.tensor([i for i in range(5) if i != mask_id]).repeat(3)
    t = torch.tensor([2, 3, 5]).repeat_interleave(4)
    logits = 5 * torch.randn(12, 5)
    logits[0, 0] = -torch.inf
    leaf = logits.requires_grad_()
    loss = functional.loss(chain, leaf, x, x, t, reverse=reverse, reduction="none", impl=impl)
    loss.sum().backward()
    assert bool((loss == 0).all())
    assert bool((leaf.grad == 0).all())


@pytest.mark.parametrize("mask_id", [0, 2, 4])
@pytest.mark.parametrize("reverse", REVERSE)
def test_a_masked_token_is_weighted_cross_entropy_where_the_mask_is_forbidden(
    impl, reverse, mask_id
):
    """``(abar_{t-1} - abar_t) / (1 - abar_t)``: 1 / t for the jsd schedule."""
    chain = transitions.absorbing(5, schedules.jsd(6), mask_id)
    x0 = torch.tensor([(mask_id + 1) % 5, (mask_id + 3) % 5]).repeat(6)
    t = torch.arange(1, 7).repeat_interleave(2)
    logits = torch.randn(12, 5)
    logits[:, mask_id] = -torch.inf
    x_t = torch.full_like(x0, mask_id)
    loss = functional.loss(chain, logits, x0, x_t, t, reverse=reverse, reduction="none", impl=impl)
    truth = torch.nn.functional.cross_entropy(logits.double(), x0, reduction="none") / t
    assert_close(loss, truth, torch.float32, ulps=16)


@pytest.mark.parametrize("family", ["absorbing_first", "absorbing_last", "marginal_with_zeros"])
@pytest.mark.parametrize("first_step", FIRST_STEP)
def test_an_impossible_pair_is_nan_and_no_other_token_is(impl, family, first_step):
    chain = make_chain(family, 5)
    for t in chain.edge_times():
        reach = chain.product(0, t) > 0
        x0, x_t = (v.flatten() for v in torch.meshgrid(*[torch.arange(5)] * 2, indexing="ij"))
        loss, gradient = loss_and_gradient(
            chain, torch.randn(25, 5), x0, x_t, torch.full((25,), t), impl, first_step=first_step
        )
        assert torch.equal(loss.isnan(), ~reach.flatten())
        assert bool(gradient[reach.flatten()].isfinite().all())


@pytest.mark.parametrize("num_classes", [27, 32, 100, 256])
def test_runs_of_tokens_whose_rows_are_not_read(impl, num_classes):
    """Absorbing: tokens that cost nothing, pairs that cannot be, both, and some that are masked."""
    mask_id, each, last = num_classes - 1, 128, 5
    chain = make_chain("absorbing_last", num_classes)
    kind = torch.cat(
        [torch.randint(low, high, (each,)) for low, high in [(0, 1), (1, 2), (0, 2), (0, 3)]]
        + [torch.zeros(last, dtype=torch.int64)]
    )
    free, bad, masked = (kind == i for i in range(3))
    x0 = torch.randint(num_classes - 2, kind.shape)
    x_t = torch.where(masked, mask_id, x0 + bad)
    t = torch.full_like(x0, 4)
    logits = torch.randn(len(kind), num_classes)
    loss, gradient = loss_and_gradient(chain, logits, x0, x_t, t, impl)
    assert bool((loss[free] == 0).all())
    assert bool((gradient[free] == 0).all())
    assert bool(loss[bad].isnan().all())
    assert impl == "reference" or bool(gradient[bad].isnan().all())
    alone = loss_and_gradient(chain, *(of[masked] for of in (logits, x0, x_t, t)), impl)
    assert_close(loss[masked], alone[0].double(), torch.float32, ulps=4)
    assert_gradient_close(gradient[masked], alone[1].double(), torch.float32, ulps=8)


def small_problem(family="mask_and_uniform", num_classes=9, shape=(4, 6)):
    chain = make_chain(family, num_classes)
    x0 = torch.randint(num_classes, shape)
    t = torch.tensor([1, 2, 5, 6])[: shape[0]]
    x_t = functional.q_sample(chain.transition, x0, t)
    return chain.transition, torch.randn(*shape, num_classes), x0, x_t, t


def test_reductions_are_sums_of_the_token_losses(impl):
    problem = small_problem()
    none, batch, total, mean = (
        functional.loss(*problem, reduction=reduction, impl=impl)
        for reduction in ("none", "batch", "sum", "mean")
    )
    assert none.shape == (4, 6)
    assert batch.shape == (4,)
    assert_close(batch, none.double().sum(1), torch.float32, ulps=4)
    assert_close(total, none.double().sum(), torch.float32, ulps=4)
    assert_close(mean, none.double().mean(), torch.float32, ulps=4)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batch"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_reduction_scales_the_gradient_alike(impl, reduction, dtype):
    chain, logits, x0, x_t, t = small_problem()
    mask = torch.rand(4, 6) < 0.6
    results = []
    for name in ("sum", reduction):
        leaf = logits.to(dtype).clone().requires_grad_()
        loss = functional.loss(chain, leaf, x0, x_t, t, mask=mask, reduction=name, impl=impl)
        (loss.sum() * (int(mask.sum()) if name == "mean" else 1)).backward()
        results.append(leaf.grad)
    # Two roundings in bfloat16: the mean's, and that of what comes from above.
    twice = results[0].double() * (0.5 if dtype.itemsize == 2 else 1)
    other = results[1].double() * (0.5 if dtype.itemsize == 2 else 1)
    floor = 2 * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps / 8
    assert_gradient_close(other, twice, torch.float32, ulps=8, floor=floor * twice.abs().amax(-1))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batch"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_may_hold_anything(impl, reduction, dtype):
    """Ids out of range and NaN logits: loss 0, gradient exactly 0, the others as without them."""
    chain, logits, x0, x_t, t = small_problem()
    mask = torch.rand(4, 6) < 0.6
    plain = logits.to(dtype).clone().requires_grad_()
    padded = plain.detach().masked_fill(~mask[..., None], torch.nan).requires_grad_()
    options = {"ce_weight": 0.1, "mask": mask, "reduction": reduction, "impl": impl}
    expected = functional.loss(chain, plain, x0, x_t, t, **options)
    loss = functional.loss(
        chain, padded, x0.masked_fill(~mask, -100), x_t.masked_fill(~mask, 10**6), t, **options
    )
    assert torch.equal(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    assert torch.equal(padded.grad, plain.grad)
    assert bool((padded.grad[~mask] == 0).all())
    if reduction == "none":
        assert bool((loss[~mask] == 0).all())


def test_the_mean_is_over_the_tokens_that_count(impl):
    problem = small_problem()
    mask = torch.rand(4, 6) < 0.6
    tokens = functional.loss(*problem, reduction="none", impl=impl)
    mean = functional.loss(*problem, mask=mask, impl=impl)
    assert_close(mean, tokens[mask].double().mean(), torch.float32, ulps=4)


def test_the_sum_of_no_tokens_is_zero_and_its_gradient_too(impl):
    chain, logits, x0, x_t, t = small_problem()
    leaf, mask = logits.requires_grad_(), torch.zeros(4, 6, dtype=torch.bool)
    loss = functional.loss(chain, leaf, x0, x_t, t, mask=mask, reduction="sum", impl=impl)
    loss.backward()
    assert loss == 0
    assert bool((leaf.grad == 0).all())


@pytest.mark.parametrize(("vb_weight", "ce_weight"), [(1, 0), (0, 1), (0.7, 0.2), (2, -1)])
def test_weights_multiply_what_they_are_named_after(impl, vb_weight, ce_weight):
    """D2: the coefficient of the cross-entropy never lands on the bound."""
    chain = make_chain("uniform", 9)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 4)
    logits = torch.randn(len(t), 9)
    weights = {"vb_weight": vb_weight, "ce_weight": ce_weight}
    truth, true_gradient = truth_by_time(chain, logits, x0, x_t, t, **weights)
    loss, gradient = loss_and_gradient(chain, logits, x0, x_t, t, impl, **weights)
    assert_close(loss, truth, torch.float32, ulps=24, scale=truth.abs() + 1)
    assert_gradient_close(gradient, true_gradient, torch.float32, ulps=24, floor=1)


def test_without_weights_nothing_is_lost(impl):
    assert functional.loss(*small_problem(), vb_weight=0, ce_weight=0, impl=impl) == 0


def test_a_weight_of_zero_silences_an_infinite_term(impl):
    chain = make_chain("uniform", 4).transition
    logits = torch.zeros(1, 4, requires_grad=True)
    forbidden = logits + torch.tensor([-torch.inf, 0, 0, 0])
    x0, t = torch.tensor([0]), torch.tensor([3])
    loss = functional.loss(chain, forbidden, x0, x0, t, ce_weight=0.0, impl=impl)
    loss.backward()
    assert loss.isfinite()
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("family", FAMILIES)
def test_d5_the_first_step_reads_nothing_but_its_own_row(impl, family, first_step):
    """A table that wrapped around at t - 1 = 0, or 0 * NaN backwards, would show here."""
    chain = make_chain(family, 5)
    x0, x_t = every_pair(chain, 1)
    t = torch.ones_like(x0)
    logits = torch.randn(len(x0), 5)
    truth, true_gradient = truth_by_time(chain, logits, x0, x_t, t, first_step=first_step)
    loss, gradient = loss_and_gradient(chain, logits, x0, x_t, t, impl, first_step=first_step)
    assert_close(loss, truth, torch.float32, ulps=16, scale=truth.abs() + 1)
    check_gradient(gradient, true_gradient, torch.float32, ulps=16, floor=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_d1_the_bound_is_a_bound(impl, family):
    """Nothing is added to a log: KL is never negative, and 0 for the true x_0."""
    chain = make_chain(family, 5)
    x0, x_t, t = all_pairs_at_edge_times(chain)
    truth = torch.full((len(t), 5), -torch.inf).scatter(1, x0[:, None], 0.0)
    loss, gradient = loss_and_gradient(chain, truth, x0, x_t, t, impl)
    assert_close(loss, torch.zeros(len(t)), torch.float32, scale=torch.tensor(least_scale(impl)))
    assert bool((gradient.abs() <= 4 * torch.finfo(torch.float32).eps).all())
    if impl == "cpu":
        random, _ = loss_and_gradient(chain, torch.randn(len(t), 5), x0, x_t, t, impl)
        assert bool((random >= 0).all())


def test_d12_a_class_below_e_to_the_minus_70_still_gets_its_gradient(impl):
    """A clamp of log-probabilities would cut it off."""
    chain = make_chain("absorbing_last", 5)
    logits = torch.tensor([[-100.0, 0, 0, 0, -torch.inf]])
    x0, x_t, t = torch.tensor([0]), torch.tensor([4]), torch.tensor([3])
    loss, gradient = loss_and_gradient(chain, logits, x0, x_t, t, impl)
    truth, true_gradient, _ = exact_loss(chain, logits, x0, x_t, t)
    assert_close(loss, truth, torch.float32)
    check_gradient(gradient, true_gradient, torch.float32)
    assert gradient[0, 0] < -0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_d15_the_ends_of_the_chain_are_finite(impl, family):
    """t = 1, where alpha_bar_0 = 1, and t = T, where alpha_bar_T = 0."""
    chain = make_chain(family, 5, schedules.jsd(4))
    for t in (1, 4):
        x0, x_t = every_pair(chain, t)
        for first_step in FIRST_STEP:
            loss, gradient = loss_and_gradient(
                chain,
                torch.randn(len(x0), 5),
                x0,
                x_t,
                torch.full_like(x0, t),
                impl,
                first_step=first_step,
            )
            assert bool(loss.isfinite().all())
            assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("positions", [(), (6,), (2, 3)])
def test_position_axes_are_all_alike(impl, positions):
    chain, logits, x0, x_t, t = small_problem(shape=(4, 6))
    flat = functional.loss(chain, logits, x0, x_t, t, reduction="none", impl=impl)
    if positions == ():
        shaped = functional.loss(
            chain, logits[:, 0], x0[:, 0], x_t[:, 0], t, reduction="none", impl=impl
        )
        assert torch.equal(shaped, flat[:, 0])
        return
    shaped = functional.loss(
        chain,
        logits.view(4, *positions, -1),
        x0.view(4, *positions),
        x_t.view(4, *positions),
        t,
        reduction="none",
        impl=impl,
    )
    assert torch.equal(shaped, flat.view(4, *positions))


def test_times_may_differ_from_token_to_token(impl):
    chain = make_chain("mask_and_uniform", 9)
    x0, x_t, t = (v.view(4, 6) for v in likely_pairs(chain, [1, 2, 5, 6], 6))
    order = torch.randperm(24)
    x0, x_t, t = (v.flatten()[order].view(4, 6) for v in (x0, x_t, t))
    logits = torch.randn(4, 6, 9)
    tokens = functional.loss(chain.transition, logits, x0, x_t, t, reduction="none", impl=impl)
    for b in range(4):
        for n in range(6):
            one = functional.loss(
                chain.transition,
                logits[b, n][None],
                x0[b, n][None],
                x_t[b, n][None],
                t[b, n][None],
                impl=impl,
            )
            assert_close(one, tokens[b, n].double(), torch.float32, ulps=4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integer_dtype_serves(impl, dtype):
    chain, logits, x0, x_t, t = small_problem()
    expected = functional.loss(chain, logits, x0, x_t, t, impl=impl)
    narrow = functional.loss(chain, logits, x0.to(dtype), x_t.to(dtype), t.to(dtype), impl=impl)
    assert torch.equal(narrow, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_is_float64_for_float64_and_float32_for_all_others(impl, dtype):
    chain, logits, *tokens = small_problem()
    leaf = logits.to(dtype).requires_grad_()
    loss = functional.loss(chain, leaf, *tokens, impl=impl)
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert leaf.grad.dtype == dtype


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradcheck_agrees(impl, family, reverse, first_step):
    chain = make_chain(family, 3)
    x0, x_t, t = likely_pairs(chain, [1, 2, 6], 1)

    def compute(logits):
        return functional.loss(
            chain.transition,
            logits,
            x0,
            x_t,
            t,
            reverse=reverse,
            first_step=first_step,
            ce_weight=0.1,
            reduction="none",
            impl=impl,
        )

    leaf = torch.randn(len(t), 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(compute, leaf)


@given(
    family=st.sampled_from(FAMILIES),
    reverse=st.sampled_from(REVERSE),
    first_step=st.sampled_from(FIRST_STEP),
    num_classes=st.integers(2, 40) | st.integers(198, 260),
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    forbidden=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_problem_is_finite_and_agrees_with_float64(
    impl, family, reverse, first_step, num_classes, shape, dtype, spread, forbidden, seed
):
    generator = torch.Generator().manual_seed(seed)
    chain = make_chain(family, num_classes).transition
    x0 = torch.randint(num_classes, shape, generator=generator)
    t = torch.randint(1, 7, shape[:1], generator=generator)
    x_t = functional.q_sample(chain, x0, t, generator=generator)
    logits = (spread * torch.randn(*shape, num_classes, generator=generator)).to(dtype)
    if forbidden:
        ban = torch.rand(logits.shape, generator=generator) < 0.3
        keep = torch.nn.functional.one_hot(x0, num_classes).bool()
        keep |= torch.nn.functional.one_hot(x_t, num_classes).bool()
        logits = logits.masked_fill(ban & ~keep, -torch.inf)
    options = {"reverse": reverse, "first_step": first_step, "reduction": "none"}
    leaf = logits.clone().requires_grad_()
    loss = functional.loss(chain, leaf, x0, x_t, t, impl=impl, **options)
    loss.sum().backward()
    wide = logits.double().requires_grad_()
    truth = functional.loss(chain, wide, x0, x_t, t, impl="reference", **options)
    truth.sum().backward()
    assert_close(loss, truth, dtype, ulps=64, scale=truth.abs() + 1)
    assert_gradient_close(leaf.grad, wide.grad, dtype, ulps=64, floor=1)
