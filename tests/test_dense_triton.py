"""Chains of matrices by Triton's kernels, in its interpreter where there is no GPU."""

import pytest
import torch
from helpers.chains import FIRST_STEP, REVERSE, likely_pairs, one_hot, true_loss, true_p_posterior
from helpers.compare import assert_close, assert_gradient_close, check_gradient
from helpers.dense_chains import (
    FAMILIES,
    make_dense_chain,
    one_way_chain,
    sure_of_what_cannot_lead,
)

from d3pm_fast import functional, transitions
from d3pm_fast.chains.tables import step_tables

pytestmark = pytest.mark.usefixtures("triton")
STRUCTURES = ["gaussian", "from_matrices", "sparse_masked", "with_mask"]
FUSED = [True, False]
# Of the posterior mean the two products are always apart.
MODELS = [("joint", True), ("joint", False), ("posterior_mean", False)]
EDGES = [(family, "posterior") for family in FAMILIES] + [(name, "logits") for name in STRUCTURES]


@pytest.fixture
def fused(request, monkeypatch):
    """Whether the two products are in one program, which many classes do not allow."""
    from d3pm_fast.kernels.dense import loss

    if not request.param:
        monkeypatch.setattr(loss, "MOST_FUSED", 0)
    return request.param


def loss_and_gradient(chain, logits, x0, x_t, t, impl="triton", **options):
    leaf = logits.detach().clone().requires_grad_()
    loss = functional.loss(chain, leaf, x0, x_t, t, impl=impl, reduction="none", **options)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient


def log_space_truth(chain, logits, *tokens, **options):
    return loss_and_gradient(chain, logits.double(), *tokens, impl="reference", **options)


@pytest.mark.parametrize(("reverse", "fused"), MODELS, indirect=["fused"])
@pytest.mark.parametrize(("family", "first_step"), EDGES)
def test_loss_at_the_edges_of_time(fused, family, reverse, first_step):
    chain = make_dense_chain(family, 7)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 6)
    logits = 2 * torch.randn(len(t), 7)
    options = {"reverse": reverse, "first_step": first_step, "ce_weight": 0.1}
    truth, true_gradient = log_space_truth(chain.transition, logits, x0, x_t, t, **options)
    plain, _ = loss_and_gradient(chain.transition, logits, x0, x_t, t, impl="reference", **options)
    loss, gradient = loss_and_gradient(chain.transition, logits, x0, x_t, t, **options)
    assert_close(loss, truth, torch.float32, ulps=64, baseline=plain, factor=1)
    check_gradient(gradient, true_gradient, torch.float32, ulps=512, floor=0.01)


@pytest.mark.parametrize("family", STRUCTURES)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("skips", [False, True])
def test_float64_agrees_to_its_own_digits(family, reverse, skips):
    chain = make_dense_chain(family, 5)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 6)
    logits = 2 * torch.randn(len(t), 5, dtype=torch.float64)
    options = {"reverse": reverse, "ce_weight": 0.1, "s": t // 2 if skips else None}
    truth, true_gradient = log_space_truth(chain.transition, logits, x0, x_t, t, **options)
    loss, gradient = loss_and_gradient(chain.transition, logits, x0, x_t, t, **options)
    assert_close(loss, truth, torch.float64, ulps=1 << 10, scale=truth.abs() + 1)
    check_gradient(gradient, true_gradient, torch.float64, ulps=1 << 12, floor=0.1)


@pytest.mark.parametrize("fused", FUSED, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_classes", [3, 27, 70])
def test_every_size_and_dtype_is_as_good_as_plain_pytorch(fused, num_classes, dtype):
    chain = make_dense_chain("gaussian", num_classes)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 6)
    logits = (2 * torch.randn(len(t), num_classes)).to(dtype)
    options = {"first_step": "posterior", "ce_weight": 0.01}
    truth, true_gradient = log_space_truth(chain.transition, logits, x0, x_t, t, **options)
    plain, _ = loss_and_gradient(chain.transition, logits, x0, x_t, t, impl="reference", **options)
    loss, gradient = loss_and_gradient(chain.transition, logits, x0, x_t, t, **options)
    assert_close(loss, truth, dtype, ulps=64, baseline=plain, factor=1)
    check_gradient(gradient, true_gradient, dtype, ulps=512, floor=0.01)


@pytest.mark.parametrize("by_four_warps", [True, False])
@pytest.mark.parametrize("reverse", REVERSE)
def test_many_tokens_of_a_step_share_wide_tiles(reverse, by_four_warps, monkeypatch):
    from d3pm_fast.kernels.dense import loss, shape

    monkeypatch.setattr(loss, "MOST_FUSED", 0)
    monkeypatch.setattr(shape, "_multiplies_by_four_warps", lambda: by_four_warps)
    chain = make_dense_chain("gaussian", 40).transition
    x0, t = torch.randint(40, (2, 130)), torch.tensor([2, 5])
    x_t = functional.q_sample(chain, x0, t)
    arguments = chain, 2 * torch.randn(2, 130, 40), x0, x_t, t
    options = {"reverse": reverse, "ce_weight": 0.1}
    truth, true_gradient = log_space_truth(*arguments, **options)
    plain, _ = loss_and_gradient(*arguments, impl="reference", **options)
    loss, gradient = loss_and_gradient(*arguments, **options)
    assert_close(loss, truth, torch.float32, ulps=64, baseline=plain, factor=1)
    check_gradient(gradient, true_gradient, torch.float32, ulps=512, floor=0.01)


@pytest.mark.parametrize(("count", "rows"), [(127, 32), (128, 128)])
def test_tiles_are_as_long_as_steps_are_shared(count, rows):
    from d3pm_fast.kernels.dense.shape import split_shape
    from d3pm_fast.kernels.dense.tiles import tokens_per_step

    for which in (torch.zeros(3).long(), torch.zeros(3 * count).long()):
        shared = tokens_per_step(which, 3, 3 * count)
        assert split_shape(256, shared).rows == rows


def test_tiles_of_products_without_tensor_cores_are_short(monkeypatch):
    from d3pm_fast.kernels.dense import shape

    monkeypatch.setattr(shape, "DOT", "ieee")
    assert shape.split_shape(256, 1 << 20) == shape.SPLIT


def test_matrices_are_split_into_parts_once():
    chain = make_dense_chain("gaussian", 9).transition
    tables, which = step_tables(chain.step_record(torch.tensor([2, 6])))
    rest = tables.q_bar - tables.common[:, None]
    parts = tables.parts.double()
    least = 2.0**-133  # of bfloat16
    torch.testing.assert_close(parts.sum(1), rest.float().double(), rtol=0, atol=least)
    sizes = [float(part.abs().max()) for part in parts.unbind(1)]
    assert sizes[1] <= 2**-8 * sizes[0]
    assert 0 < sizes[2] <= 2**-8 * sizes[1]
    again, _ = step_tables(chain.step_record(which))
    assert again.parts is tables.parts


def test_the_tables_of_all_steps_are_within_the_budget():
    size, steps = 9 * 9, 6
    taken = (2 * steps + 1) * 8 * size + 3 * 2 * steps * size
    for budget, fits in ((taken, True), (taken - 1, False)):
        chain = transitions.discretized_gaussian(9, [0.01] * steps, memory_budget=budget)
        tables, _ = step_tables(chain.step_record(torch.tensor([2, 6])))
        assert len(tables.s) == (steps if fits else 2)
        stored = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tables}
        if fits:
            small = tables.common.nbytes + tables.s.nbytes
            assert sum(each.nbytes() for each in stored.values()) - small == taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", STRUCTURES)
def test_posteriors_and_their_gradient(family, reverse, dtype):
    chain = make_dense_chain(family, 6)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 2)
    logits = (2 * torch.randn(len(t), 6)).to(dtype)
    for first_step in FIRST_STEP:
        options = {"reverse": reverse, "first_step": first_step}
        made = []
        for impl, leaf in (("triton", logits.clone()), ("reference", logits.double())):
            leaf.requires_grad_()
            p = functional.p_posterior(chain.transition, leaf, x_t, t, impl=impl, **options)
            weights = torch.linspace(-1, 2, 6, dtype=p.dtype)
            (gradient,) = torch.autograd.grad((p.where(p > -torch.inf, 0) * weights).sum(), leaf)
            made.append((p.detach(), gradient))
        (p, gradient), (truth, true_gradient) = made
        scale = truth.abs().nan_to_num(posinf=0) + 1
        assert_close(p, truth, dtype, ulps=64, scale=scale)
        check_gradient(gradient, true_gradient, dtype, ulps=1 << 10, floor=0.5)
    for step_dtype in (dtype, torch.bfloat16):
        q = functional.q_posterior(chain.transition, x0, x_t, t, dtype=step_dtype, impl="triton")
        truth = functional.q_posterior(
            chain.transition, x0, x_t, t, dtype=torch.float64, impl="reference"
        )
        scale = truth.abs().nan_to_num(posinf=0) + 1
        assert_close(q, truth, step_dtype, ulps=64, scale=scale)


@pytest.mark.parametrize(("reverse", "fused"), MODELS, indirect=["fused"])
@pytest.mark.parametrize("size", [12.0, 50.0, 1e4])
def test_sure_predictions_right_or_wrong_keep_their_digits(fused, size, reverse):
    chain = make_dense_chain("gaussian", 17)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 6)
    logits = torch.randn(len(t), 17)
    # What a right prediction that is surer costs, float64 in log space does not tell from 0.
    is_right = (torch.arange(len(t)) % 2 == 0) & (size < 20)
    likely = x0.where(is_right, (x0 + 8) % 17)
    logits += size * one_hot(likely, 17).float()
    options = {"reverse": reverse, "first_step": "posterior"}
    truth, true_gradient = log_space_truth(chain.transition, logits, x0, x_t, t, **options)
    plain, _ = loss_and_gradient(chain.transition, logits, x0, x_t, t, impl="reference", **options)
    loss, gradient = loss_and_gradient(chain.transition, logits, x0, x_t, t, **options)
    own, others = ((value.double() - truth).abs() / truth for value in (loss, plain))
    assert float(own.max()) < max(1e-5, float(others.max()))
    assert_gradient_close(gradient, true_gradient, torch.float32, ulps=1 << 12, floor=1e-3)


@pytest.mark.parametrize("time", [1, 2])
def test_entries_below_the_range_of_float32_are_exact(time):
    chain = transitions.discretized_gaussian(16, [3e-5] * 3)
    x0 = torch.arange(16)
    x_t = (x0 + 1).clamp(max=15)
    arguments = chain, torch.randn(16, 16), x0, x_t, torch.full_like(x0, time)
    truth, true_gradient = log_space_truth(*arguments, first_step="posterior")
    loss, gradient = loss_and_gradient(*arguments, first_step="posterior")
    assert_close(loss, truth, torch.float32, ulps=64)
    check_gradient(gradient, true_gradient, torch.float32, ulps=512, floor=1e-3)


@pytest.mark.parametrize("fused", FUSED, indirect=True)
def test_pairs_that_hardly_ever_occur_are_exact(fused):
    """Here ``Qbar_t[x_0, x_t]`` is 2e-42, by products of factors that float32 has."""
    chain = transitions.discretized_gaussian(16, [1.48e-3] * 3)
    x0 = torch.arange(12)
    t = torch.full_like(x0, 2)
    assert -700 < float(chain.log_reach(x0, x0 + 4, t).max()) < -88
    arguments = chain, torch.randn(12, 16), x0, x0 + 4, t
    truth, true_gradient = log_space_truth(*arguments)
    loss, gradient = loss_and_gradient(*arguments)
    assert_close(loss, truth, torch.float32, ulps=64)
    check_gradient(gradient, true_gradient, torch.float32, ulps=512, floor=1e-3)


def test_a_sure_class_that_cannot_lead_to_x_t_costs_no_digits():
    chain, t = one_way_chain("full"), 2
    x0, x_t, logits, left = sure_of_what_cannot_lead(chain, t, level=1e4)
    times, options = torch.full_like(x0, t), {"reverse": "posterior_mean"}
    left.requires_grad_()
    truth = true_loss(chain, left, x0, x_t, t, **options)
    (true_gradient,) = torch.autograd.grad(truth.sum(), left)
    loss, gradient = loss_and_gradient(chain.transition, logits, x0, x_t, times, **options)
    assert_close(loss, truth, torch.float32, ulps=32, scale=truth.abs() + 1)
    assert_gradient_close(gradient, true_gradient, torch.float32, ulps=64, floor=1)
    args = chain.transition, logits, x_t, times
    log_p = functional.p_posterior(*args, impl="triton", **options)
    truth = true_p_posterior(chain, left, x_t, t - 1, t, **options).log()
    assert_close(log_p, truth, torch.float32, ulps=32, scale=truth.abs() + 1)


@pytest.mark.parametrize("size", [80.0, 1e4])
def test_log_probabilities_and_draws_of_sure_predictions(cpu, size):
    chain = transitions.discretized_gaussian(17, [0.005] * 6)
    x_t, t, seeds = torch.randint(8, (6, 3)), torch.arange(1, 7), torch.arange(6)
    logits = torch.randn(6, 3, 17) + size * one_hot(x_t + 8, 17).float()
    options = {"first_step": "posterior"}
    made = []
    for impl, leaf in (("triton", logits.clone()), ("reference", logits.double())):
        leaf.requires_grad_()
        p = functional.p_posterior(chain, leaf, x_t, t, impl=impl, **options)
        weights = torch.linspace(-1, 2, 17, dtype=p.dtype)
        (gradient,) = torch.autograd.grad((p.where(p > -torch.inf, 0) * weights).sum(), leaf)
        made.append((p.detach(), gradient))
    (p, gradient), (truth, true_gradient) = made
    assert_close(p, truth, torch.float32, ulps=64, scale=truth.abs() + 1)
    check_gradient(gradient, true_gradient, torch.float32, ulps=1 << 10, floor=0.5)
    drawn = [
        functional.p_sample(chain, logits, x_t, t, seeds=seeds, impl=impl, **options)
        for impl in (cpu, "triton")
    ]
    assert torch.equal(*drawn)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fused", FUSED, indirect=True)
def test_mixed_times_masks_and_budgets_change_nothing(fused):
    made = make_dense_chain("gaussian", 9)
    chain = made.transition
    x0, t = torch.randint(9, (2, 33)), torch.randint(1, 7, (2, 33))
    x_t = functional.q_sample(chain, x0, t)
    logits = torch.randn(2, 33, 9)
    whole, _ = loss_and_gradient(chain, logits, x0, x_t, t)
    truth, _ = log_space_truth(chain, logits, x0, x_t, t)
    assert_close(whole, truth, torch.float32, ulps=64)
    small = transitions.from_matrices(made.matrices, memory_budget=8 * 9 * 9 * 8)
    again, _ = loss_and_gradient(small, logits, x0, x_t, t)
    assert_close(again, truth, torch.float32, ulps=64)

    mask = torch.rand(2, 33) < 0.5
    garbage = x0.where(mask, 10**6), x_t.where(mask, -7)
    for dtype in (torch.float32, torch.float64):
        loss, masked = loss_and_gradient(chain, logits.to(dtype), *garbage, t, mask=mask)
        assert_close(loss, truth.where(mask, 0), torch.float32, ulps=64)
        assert not bool(masked[~mask].any())
    mean = functional.loss(chain, logits, *garbage, t, mask=mask, impl="triton")
    torch.testing.assert_close(mean, whole[mask].mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bad_index_makes_its_row_nan_and_no_other(dtype):
    chain = make_dense_chain("gaussian", 5).transition
    x0, t = torch.randint(5, (3, 5)), torch.tensor([1, 3, 6])
    x_t = functional.q_sample(chain, x0, t)
    logits = torch.randn(3, 5, 5).to(dtype)
    clean, clean_gradient = loss_and_gradient(chain, logits, x0, x_t, t)
    for bad in ("x0", "x_t", "t"):
        tokens = {"x0": x0.clone(), "x_t": x_t.clone(), "t": t[:, None].expand_as(x0).clone()}
        tokens[bad][1, 4] = 1 << 40
        loss, gradient = loss_and_gradient(chain, logits, **tokens)
        assert bool(loss[1, 4].isnan())
        assert bool(gradient[1, 4].isnan().all())
        loss[1, 4], gradient[1, 4] = clean[1, 4], clean_gradient[1, 4]
        torch.testing.assert_close(loss, clean, rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, clean_gradient, rtol=1e-4, atol=1e-6)


def test_times_none_of_which_there_is_reach_no_matrix():
    made = make_dense_chain("gaussian", 5)
    small = transitions.from_matrices(made.matrices, memory_budget=8 * 5 * 5 * 8)
    tokens, t = torch.zeros(2, 3).long(), torch.tensor([0, 9])
    for dtype in (torch.float32, torch.float64):
        loss, gradient = loss_and_gradient(small, torch.zeros(2, 3, 5).to(dtype), tokens, tokens, t)
        assert bool(loss.isnan().all())
        assert bool(gradient.isnan().all())
    draws = functional.q_sample(small, tokens, t, impl="triton")
    assert draws.tolist() == [[0, 0, 0], [-1, -1, -1]]


def test_an_impossible_pair_is_nan():
    chain = make_dense_chain("from_matrices", 5).transition  # can only rise
    x0, x_t, t = torch.tensor([1, 4]), torch.tensor([2, 2]), torch.full((2,), 3)
    for dtype in (torch.float32, torch.float64):
        loss, gradient = loss_and_gradient(chain, torch.randn(2, 5).to(dtype), x0, x_t, t)
        assert loss.isnan().tolist() == [False, True]
        assert gradient.isnan().all(dim=1).tolist() == [False, True]


def test_an_empty_batch():
    chain = make_dense_chain("gaussian", 5).transition
    empty, t = torch.zeros(0, 3).long(), torch.zeros(0).long()
    loss, gradient = loss_and_gradient(chain, torch.zeros(0, 3, 5), empty, empty, t)
    assert loss.shape == (0, 3)
    assert gradient.shape == (0, 3, 5)
    assert functional.q_sample(chain, empty, t, impl="triton").shape == (0, 3)


def test_a_logistic_pair_is_served_as_logits():
    chain = make_dense_chain("gaussian", 9).transition
    x0, t = torch.randint(9, (3, 4)), torch.tensor([1, 4, 6])
    x_t = functional.q_sample(chain, x0, t)
    results = []
    for impl in ("reference", "triton"):
        pair = [torch.linspace(-1, 1, 12).view(3, 4).requires_grad_() for _ in range(2)]
        loss = functional.loss(chain, tuple(pair), x0, x_t, t, impl=impl)
        loss.backward()
        results.append((loss.detach(), *(value.grad for value in pair)))
    for value, expected in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
