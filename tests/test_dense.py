"""Dense chains through every operation: against enumeration, in every form and dtype."""

import copy
import gc
import pickle
from threading import Thread

import pytest
import torch
from helpers.chains import (
    FIRST_STEP,
    REVERSE,
    every_pair,
    likely_pairs,
    one_hot,
    true_loss,
    true_p_posterior,
    true_q_posterior,
)
from helpers.compare import assert_close, assert_gradient_close, check_gradient
from helpers.dense_chains import (
    FAMILIES,
    make_dense_chain,
    one_way_chain,
    sure_of_what_cannot_lead,
)
from hypothesis import given
from hypothesis import strategies as st

from d3pm_fast import D3PM, functional, schedules, transitions
from d3pm_fast.reference.philox import uniforms

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SIZES = [3, 16, 17, 27, 64, 65, 100, pytest.param(256, marks=pytest.mark.exhaustive), 257]


def loss_and_gradient(chain, logits, x0, x_t, t, impl, **options):
    logits = logits.detach().clone().requires_grad_()
    loss = functional.loss(
        chain.transition, logits, x0, x_t, t, impl=impl, reduction="none", **options
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


def truth_by_time(chain, logits, x0, x_t, t, **options):
    leaf = logits.detach().double().requires_grad_()
    losses = torch.zeros(len(t), dtype=torch.float64)
    for time in t.unique().tolist():
        n = t == time
        truth = true_loss(chain, leaf[n], x0[n], x_t[n], time, **options)
        losses = losses.masked_scatter(n, truth)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient


def pairs_at_edge_times(chain):
    parts = [(*every_pair(chain, t), t) for t in chain.edge_times()]
    x0, x_t = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    return x0, x_t, torch.cat([torch.full_like(part[0], part[2]) for part in parts])


@pytest.mark.parametrize("num_classes", [3, 5])
@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair_agrees_with_explicit_matrices(impl, family, reverse, first_step, num_classes):
    chain = make_dense_chain(family, num_classes)
    x0, x_t, t = pairs_at_edge_times(chain)
    logits = 2 * torch.randn(len(t), num_classes, dtype=torch.float64)
    options = {"reverse": reverse, "first_step": first_step, "ce_weight": 0.1}
    truth, true_gradient = truth_by_time(chain, logits, x0, x_t, t, **options)
    loss, gradient = loss_and_gradient(chain, logits, x0, x_t, t, impl, **options)
    assert_close(loss, truth, torch.float64, ulps=1 << 10, scale=truth.abs() + 1)
    check_gradient(gradient, true_gradient, torch.float64, ulps=1 << 12, floor=0.1)


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_that_skips_times_agrees_with_explicit_matrices(impl, family, reverse, first_step):
    chain = make_dense_chain(family, 4)
    options = {"reverse": reverse, "first_step": first_step}
    for s, t in [(0, 6), (1, 3)]:
        x0, x_t = every_pair(chain, t)
        times, targets = (torch.full_like(x0, time) for time in (t, s))
        leaf = (2 * torch.randn(len(x0), 4, dtype=torch.float64)).requires_grad_()
        truth = true_loss(chain, leaf, x0, x_t, t, s=s, **options)
        (true_gradient,) = torch.autograd.grad(truth.sum(), leaf)
        args = chain, leaf, x0, x_t, times, impl
        loss, gradient = loss_and_gradient(*args, s=targets, **options)
        assert_close(loss, truth, torch.float64, ulps=1 << 10, scale=truth.abs() + 1)
        check_gradient(gradient, true_gradient, torch.float64, ulps=1 << 12, floor=0.1)
        step = x_t, times, targets
        q = functional.q_posterior(chain.transition, x0, *step, dtype=torch.float64, impl=impl)
        truth = true_q_posterior(chain, x0, x_t, s, t)
        assert_close(q.exp(), truth, torch.float64, ulps=1 << 10, scale=torch.ones(1))
        p = functional.p_posterior(chain.transition, leaf, *step, impl=impl, **options)
        truth = true_p_posterior(chain, leaf, x_t, s, t, **options)
        assert_close(p.exp(), truth, torch.float64, ulps=1 << 10, scale=torch.ones(1))


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_differences(impl, family, reverse):
    chain = make_dense_chain(family, 4)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 2)
    logits = torch.randn(len(t), 4, dtype=torch.float64, requires_grad=True)
    options = {"reverse": reverse, "first_step": "posterior", "impl": impl}

    def loss(x):
        return functional.loss(
            chain.transition, x, x0, x_t, t, ce_weight=0.1, reduction="none", **options
        )

    def p(x):
        return functional.p_posterior(chain.transition, x, x_t, t, **options).exp()

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradcheck(p, logits)


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_posteriors_agree_with_explicit_matrices(impl, family, reverse):
    chain = make_dense_chain(family, 5)
    for time in chain.edge_times():
        x0, x_t = every_pair(chain, time)
        t = torch.full_like(x0, time)
        logits = (2 * torch.randn(len(t), 5, dtype=torch.float64)).requires_grad_()
        q = functional.q_posterior(chain.transition, x0, x_t, t, dtype=torch.float64, impl=impl)
        truth = true_q_posterior(chain, x0, x_t, time - 1, time)
        assert_close(q.exp(), truth, torch.float64, ulps=1 << 10, scale=torch.ones(1))
        options = {"reverse": reverse, "first_step": "posterior"}
        p = functional.p_posterior(chain.transition, logits, x_t, t, impl=impl, **options)
        truth = true_p_posterior(chain, logits, x_t, time - 1, time, **options)
        assert_close(p.exp(), truth, torch.float64, ulps=1 << 10, scale=torch.ones(1))
        assert bool(((p == -torch.inf) == (truth == 0)).all())
        weights = torch.linspace(-1, 1, 5).double()
        (gradient,) = torch.autograd.grad(
            (p.where(p > -torch.inf, 0) * weights).sum(), logits, retain_graph=True
        )
        log_truth = truth.where(truth > 0, 1).log()
        (expected,) = torch.autograd.grad((log_truth * weights).sum(), logits)
        if bool((expected.abs() > 1e-9).any()):
            check_gradient(gradient, expected, torch.float64, ulps=1 << 14, floor=0.1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", SIZES)
@pytest.mark.parametrize("family", ["gaussian", "nearest_neighbor", "mixture"])
def test_every_size_and_dtype_is_as_good_as_plain_pytorch(cpu, family, num_classes, dtype):
    chain = make_dense_chain(family, num_classes)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), 6)
    logits = (2 * torch.randn(len(t), num_classes)).to(dtype)
    options = {"first_step": "posterior", "ce_weight": 0.01}
    truth, true_gradient = truth_by_time(chain, logits, x0, x_t, t, **options)
    plain, _ = loss_and_gradient(chain, logits, x0, x_t, t, "reference", **options)
    loss, gradient = loss_and_gradient(chain, logits, x0, x_t, t, cpu, **options)
    assert_close(loss, truth, dtype, ulps=64, baseline=plain, factor=1)
    check_gradient(gradient, true_gradient, dtype, ulps=512, floor=0.01)


def gaussian(num_classes, num_steps=1000, start=1e-4, end=0.02):
    betas = schedules.linear(num_steps, start, end)
    return transitions.discretized_gaussian(num_classes, betas)


FORMS = {  # of Qbar_{t-1}: K, t, the form, the dtype of its arithmetic in float32
    "identity": (256, 1, "Identity", torch.float32),
    "band": (256, 4, "Band", torch.float32),
    "dense": (256, 40, "Dense", torch.float32),
    "low rank in float64": (256, 200, "LowRank", torch.float64),
    "low rank": (256, 600, "LowRank", torch.float32),
}
CHAIN = gaussian(256)


def log_space_truth(chain, logits, x0, x_t, t, **options):
    """The reference in float64."""
    leaf = logits.detach().double().requires_grad_()
    args = chain, leaf, x0, x_t, t
    loss = functional.loss(*args, reduction="none", impl="reference", **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_keeps_the_digits(cpu, form, reverse):
    num_classes, time, name, work = FORMS[form]
    step = CHAIN.step(time - 1, time, torch.float32)
    assert (type(step.form).__name__, step.form.dtype) == (name, work)
    x0 = torch.randint(num_classes, (48,))
    t = torch.full_like(x0, time)
    x_t = functional.q_sample(CHAIN, x0, t)
    logits = torch.randn(48, num_classes)
    logits[16:, :] += 12 * one_hot(x0[16:], num_classes).float()  # nearly right
    options = {"reverse": reverse, "first_step": "posterior"}
    truth, true_gradient = log_space_truth(CHAIN, logits, x0, x_t, t, **options)
    leaf = logits.clone().requires_grad_()
    loss = functional.loss(CHAIN, leaf, x0, x_t, t, reduction="none", impl=cpu, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    plain = functional.loss(
        CHAIN, logits, x0, x_t, t, reduction="none", impl="reference", **options
    )
    own, others = ((value.double() - truth).abs() / truth for value in (loss.detach(), plain))
    assert float(own.max()) < max(1e-5, float(others.max()))
    assert_gradient_close(gradient, true_gradient, torch.float32, ulps=1 << 12, floor=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bound_of_a_form_holds(form, dtype):
    num_classes, time, *_ = FORMS[form]
    made = CHAIN.step(time - 1, time, dtype).form
    v = torch.eye(num_classes, dtype=made.dtype)
    q_bar = CHAIN.product(0, time - 1)
    of_the_mean = (
        float(4 * torch.finfo(torch.float64).eps + (q_bar.sum(1) - 1).abs().max()) / num_classes
    )
    if made.is_centred:
        v, q_bar = v - 1 / num_classes, q_bar - q_bar.mean(0)
    out = torch.empty_like(v)
    made.apply(v, out)
    rounding = 4 * torch.finfo(made.dtype).eps * q_bar.abs().max() + of_the_mean
    assert float((out.double() - q_bar).abs().max()) <= made.error + rounding
    back = torch.empty_like(v)
    made.apply_transposed(v, back)
    difference = back.double() - q_bar.T
    if made.is_centred:
        difference = difference - difference.mean(-1, keepdim=True)
    assert float(difference.abs().max()) <= made.error + rounding


@pytest.mark.parametrize("size", [50.0, 1e4])
@pytest.mark.parametrize("form", FORMS)
def test_sure_and_wrong_is_exact(cpu, form, size):
    """D1, D12: the digits are those of log space, however small the probabilities."""
    num_classes, time, *_ = FORMS[form]
    x0 = torch.randint(num_classes // 2, (6,))
    t = torch.full_like(x0, time)
    x_t = functional.q_sample(CHAIN, x0, t)
    logits = torch.randn(6, num_classes)
    logits[torch.arange(6), x0 + num_classes // 2] += size
    truth, _ = log_space_truth(CHAIN, logits, x0, x_t, t, first_step="posterior")
    loss = functional.loss(
        CHAIN, logits, x0, x_t, t, reduction="none", first_step="posterior", impl=cpu
    )
    assert_close(loss, truth, torch.float32, ulps=64)


@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize("beta", [3e-5, 1e-4])
def test_entries_below_the_range_of_float32_are_exact(cpu, beta, time):
    chain = transitions.discretized_gaussian(16, [beta] * 3)
    assert 0 < float(chain.q_matrix(1)[0, 1]) < 1e-76
    x0 = torch.arange(16)
    x_t = (x0 + 1).clamp(max=15)
    t = torch.full_like(x0, time)
    logits = torch.randn(16, 16)
    truth, _ = log_space_truth(chain, logits, x0, x_t, t, first_step="posterior")
    args = (chain, logits, x0, x_t, t)
    loss = functional.loss(*args, reduction="none", first_step="posterior", impl=cpu)
    assert_close(loss, truth, torch.float32, ulps=64)
    q = functional.q_posterior(chain, x0, x_t, t, dtype=torch.float64, impl=cpu)
    expected = functional.q_posterior(chain, x0, x_t, t, dtype=torch.float64, impl="reference")
    assert_close(q, expected, torch.float64, ulps=64, scale=expected.abs() + 1)


def test_a_nearly_right_denoiser_keeps_more_digits_than_plain_pytorch(cpu):
    x0 = torch.randint(256, (64,))
    t = torch.randint(2, 1000, (64,))
    x_t = functional.q_sample(CHAIN, x0, t)
    logits = torch.randn(64, 256) + 10 * one_hot(x0, 256).float()
    truth, _ = log_space_truth(CHAIN, logits, x0, x_t, t)
    error = {}
    for impl in (cpu, "reference"):
        loss = functional.loss(CHAIN, logits, x0, x_t, t, reduction="none", impl=impl)
        error[impl] = float(((loss.double() - truth).abs() / truth).median())
    assert error[cpu] < 1e-6 < 1e-3 < error["reference"]


def test_forbidden_classes_and_impossible_pairs(cpu):
    chain = make_dense_chain("from_matrices", 5)  # can only rise
    logits = torch.randn(3, 5)
    logits[0, 3:] = -torch.inf
    x0, x_t, t = torch.tensor([1, 4, 1]), torch.tensor([2, 2, 3]), torch.full((3,), 3)
    loss, gradient = loss_and_gradient(chain, logits, x0, x_t, t, cpu)
    expected, _ = loss_and_gradient(chain, logits.double(), x0, x_t, t, "reference")
    assert bool(loss[1].isnan())  # 4 cannot become 2
    assert bool(expected[1].isnan())
    assert_close(loss[::2], expected[::2], torch.float32, ulps=16)
    assert bool(gradient[2].isfinite().all())


def test_mixed_times_masks_and_layouts_change_nothing(cpu):
    chain = make_dense_chain("gaussian", 17).transition
    x0 = torch.randint(17, (4, 6))
    t = torch.randint(1, 7, (4, 6))
    x_t = functional.q_sample(chain, x0, t)
    logits = torch.randn(4, 6, 17)
    whole = functional.loss(chain, logits, x0, x_t, t, reduction="none", impl=cpu)
    for b in range(4):
        for n in range(6):
            i = (slice(b, b + 1), slice(n, n + 1))
            single = functional.loss(chain, logits[i], x0[i], x_t[i], t[i], impl=cpu)
            torch.testing.assert_close(single, whole[b, n])
    mask = torch.rand(4, 6) < 0.5
    garbage = x0.where(mask, 10**6)
    leaf = logits.clone().requires_grad_()
    args = (chain, leaf, garbage, x_t.where(mask, -7), t)
    loss = functional.loss(*args, mask=mask, reduction="none", impl=cpu)
    torch.testing.assert_close(loss.detach(), whole.where(mask, 0), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert not bool(gradient[~mask].any())
    assert bool(gradient[mask].any())
    turned = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    again = functional.loss(chain, turned, x0.int(), x_t.short(), t, reduction="none", impl=cpu)
    assert torch.equal(again, whole)
    mean = functional.loss(chain, logits, x0, x_t, t, mask=mask, impl=cpu)
    torch.testing.assert_close(mean, whole[mask].mean())


def test_an_empty_batch(impl):
    chain = make_dense_chain("gaussian", 5).transition
    empty = torch.zeros(0, 3).long()
    t = torch.zeros(0).long()
    logits = torch.zeros(0, 3, 5, requires_grad=True)
    loss = functional.loss(chain, logits, empty, empty, t, reduction="sum", impl=impl)
    loss.backward()
    assert loss == 0
    assert logits.grad.shape == (0, 3, 5)
    assert functional.q_sample(chain, empty, t, impl=impl).shape == (0, 3)
    assert functional.p_sample(chain, logits, empty, t, impl=impl).shape == (0, 3)


@given(
    st.sampled_from(FAMILIES), st.integers(3, 40), st.sampled_from(REVERSE), st.integers(0, 2**31)
)
def test_any_chain_and_logits_agree_with_log_space(cpu, family, num_classes, reverse, seed):
    generator = torch.Generator().manual_seed(seed)
    chain = make_dense_chain(family, num_classes).transition
    x0 = torch.randint(num_classes, (9,), generator=generator)
    t = torch.randint(1, 7, (9,), generator=generator)
    x_t = functional.q_sample(chain, x0, t, generator=generator)
    scale = 10.0 ** torch.randint(-3, 4, (9, 1), generator=generator)
    logits = (scale * torch.randn(9, num_classes, generator=generator)).float()
    truth, true_gradient = log_space_truth(chain, logits, x0, x_t, t, reverse=reverse)
    leaf = logits.clone().requires_grad_()
    loss = functional.loss(chain, leaf, x0, x_t, t, reverse=reverse, reduction="none", impl=cpu)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    # Logits of 1e3 have 1e-4 in their last digit, and so have differences of them.
    assert_close(loss, truth, torch.float32, ulps=64, scale=truth.abs() + logits.abs().amax(-1) / 8)
    size = 1 + logits.abs().amax(-1)
    assert_gradient_close(gradient, true_gradient, torch.float32, ulps=256, floor=size)


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_are_the_same_on_every_implementation(family, cpu):
    chain = make_dense_chain(family, 5).transition
    x0 = torch.randint(5, (6, 40)) if family != "with_mask" else torch.randint(4, (6, 40))
    t, seeds = torch.arange(1, 7), torch.arange(6)
    x_t = functional.q_sample(chain, x0, t, seeds=seeds, impl=cpu)
    assert torch.equal(x_t, functional.q_sample(chain, x0, t, seeds=seeds, impl="reference"))
    logits = torch.randn(6, 40, 5, dtype=torch.float64)
    for reverse in REVERSE:
        for s in (None, torch.zeros_like(t), t // 2):
            drawn = [
                functional.p_sample(
                    chain, logits, x_t, t, s, seeds=seeds, reverse=reverse, impl=impl
                )
                for impl in (cpu, "reference")
            ]
            assert torch.equal(*drawn)


def test_q_sample_follows_its_law(cpu):
    """Chi-square, and a class of probability 1e-6 at its rate."""
    chain = transitions.from_matrices(torch.tensor([[[1 - 0.3 - 1e-6, 0.3, 1e-6]] * 3]).double())
    count = 4_000_000
    x0 = torch.zeros(1, count).long()
    t = torch.ones(1).long()
    drawn = functional.q_sample(chain, x0, t, seeds=torch.tensor([3]), impl=cpu)
    seen = torch.bincount(drawn.flatten(), minlength=3).double()
    expected = count * chain.q_matrix(1)[0]
    assert float(((seen - expected) ** 2 / expected).sum()) < 18.4  # 1e-4 of all draws
    assert 0 < int(seen[2]) < 14
    assert bool((uniforms(torch.tensor([3]), 0, 10)[1] < 1).all())


def test_p_sample_follows_its_law(cpu):
    chain = make_dense_chain("gaussian", 5)
    count = 200_000
    logits = torch.randn(5)
    x_t = torch.full((1, count), 2)
    for s, t in ((3, 4), (1, 5)):
        drawn = functional.p_sample(
            chain.transition, logits.expand(1, count, 5), x_t, torch.tensor([t]),
            torch.tensor([s]), seeds=torch.tensor([9]), impl=cpu,
        )  # fmt: skip
        law = true_p_posterior(chain, logits[None], torch.tensor([2]), s, t)[0]
        seen = torch.bincount(drawn.flatten(), minlength=5).double()
        assert float(((seen - count * law) ** 2 / (count * law)).sum()) < 23.5


def test_the_sampler_walks_down_with_any_stride(cpu):
    for family in ("gaussian", "with_mask"):
        diffusion = D3PM(make_dense_chain(family, 5).transition, impl=cpu)
        target = torch.tensor([3, 1, 2])

        def denoiser(x_t, t, target=target):
            return 40 * one_hot(target, 5).float().expand(len(x_t), -1, -1)

        for steps in (None, 2, 1):
            x = diffusion.sample(denoiser, (4, 3), steps=steps)
            assert torch.equal(x, target.expand(4, -1))


def test_a_budget_of_memory_changes_no_result(cpu):
    betas = schedules.linear(50, 1e-3, 0.1)
    large = transitions.discretized_gaussian(32, betas)
    small = transitions.discretized_gaussian(32, betas, memory_budget=8 * 32 * 32 * 17)
    x0, t = torch.randint(32, (50, 4)), torch.arange(1, 51)
    x_t = functional.q_sample(large, x0, t)
    logits = torch.randn(50, 4, 32)
    assert small.memory_budget == 8 * 32 * 32 * 17
    losses = [functional.loss(c, logits, x0, x_t, t, impl=cpu) for c in (large, small)]
    torch.testing.assert_close(*losses)
    with pytest.raises(ValueError, match="memory_budget must be at least"):
        transitions.discretized_gaussian(32, betas, memory_budget=1000)


def test_copies_and_pickles_are_chains_of_their_own(cpu):
    chain = transitions.discretized_gaussian(5, [0.1, 0.2])
    tokens, t = torch.tensor([[1], [2]]), torch.tensor([1, 2])
    logits = torch.randn(2, 1, 5)
    expected = functional.loss(chain, logits, tokens, tokens, t, impl=cpu)
    for copied in (copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))):
        assert copied.handle != chain.handle
        assert torch.equal(functional.loss(copied, logits, tokens, tokens, t, impl=cpu), expected)


def test_one_graph_of_the_compiler(cpu):
    chain = make_dense_chain("gaussian", 5).transition
    x0, t = torch.randint(5, (3, 4)), torch.tensor([1, 3, 6])
    x_t = functional.q_sample(chain, x0, t)
    logits = torch.randn(3, 4, 5)

    def loss(x):
        return functional.loss(chain, x, x0, x_t, t, ce_weight=0.1, impl=cpu)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        leaf = logits.clone().requires_grad_()
        value = function(leaf)
        value.backward()
        results.append((value.detach(), leaf.grad))
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(eager, other)


def test_opcheck_finds_nothing(cpu):
    chain = make_dense_chain("gaussian", 5).transition
    x0, t = torch.randint(5, (3, 4)), torch.tensor([1, 3, 6])
    x_t, logits, seeds = functional.q_sample(chain, x0, t), torch.randn(3, 4, 5), torch.arange(3)
    step, mask = (t, t - 1, chain.handle), torch.rand(3, 4) < 0.7
    loss = (logits, x0, mask, x_t, *step, False, True, 1.0, 0.1, None, False, False)
    calls = {
        "loss": (*loss, "none"),
        "loss_and_grad": (*loss, "mean", False),
        "q_posterior": (x0, x_t, *step, torch.float32),
        "p_posterior": (logits, x_t, *step, False, True),
        "p_posterior_grad": (logits, x_t, *step, False, True, torch.randn(3, 4, 5)),
        "q_sample": (x0, t, chain.handle, seeds, 0, 2),
        "p_sample": (logits, x_t, *step, False, True, seeds, 0, 2),
    }
    for name, args in calls.items():
        torch.library.opcheck(getattr(torch.ops.d3pm_fast, f"dense_{name}").default, args)


def test_bad_indices_are_named(impl):
    chain = make_dense_chain("gaussian", 5).transition
    good = torch.zeros(2, 3).long()
    logits, t = torch.zeros(2, 3, 5), torch.ones(2).long()
    with pytest.raises(IndexError, match=r"x0 must lie in \[0, 5\), got 5"):
        functional.loss(chain, logits, good + 5, good, t, impl=impl)
    with pytest.raises(IndexError, match=r"x_t must lie in \[0, 5\), got -1"):
        functional.loss(chain, logits, good, good - 1, t, impl=impl)
    with pytest.raises(IndexError, match=r"t must lie in \[1, 7\), got 0"):
        functional.loss(chain, logits, good, good, t - 1, impl=impl)
    with pytest.raises(IndexError, match=r"t must lie in \[0, 7\), got 7"):
        functional.q_sample(chain, good, t + 6, impl=impl)


@pytest.mark.parametrize("scale", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("time", [35, 50])
def test_predictions_far_from_the_truth_keep_their_digits_in_low_rank(cpu, time, scale):
    """What a row's sum is off by must not become a share of all that the form leaves out."""
    chain = gaussian(256, 100)
    assert type(chain.step(time - 1, time, torch.float32).form).__name__ == "LowRank"
    x0 = torch.randint(256, (64,))
    t = torch.full_like(x0, time)
    x_t = functional.q_sample(chain, x0, t)
    logits = scale * torch.randn(64, 256)
    truth, true_gradient = log_space_truth(chain, logits, x0, x_t, t)
    leaf = logits.clone().requires_grad_()
    loss = functional.loss(chain, leaf, x0, x_t, t, reduction="none", impl=cpu)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    # Of a loss that is next to nothing float32 keeps the digits of its terms.
    assert_close(loss, truth, torch.float32, ulps=64, scale=truth + 1e-4)
    check_gradient(gradient, true_gradient, torch.float32, ulps=512, floor=0.01)


@pytest.mark.parametrize("time", [66, 80, 120])
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
def test_posterior_means_keep_their_digits_in_low_rank(cpu, time, scale):
    """A sum that rounding has made negative is no proof that nothing is in doubt."""
    x0 = torch.randint(256, (64,))
    t = torch.full_like(x0, time)
    x_t = functional.q_sample(CHAIN, x0, t)
    logits = scale * torch.randn(64, 256)
    truth, _ = log_space_truth(CHAIN, logits, x0, x_t, t, reverse="posterior_mean")
    args = CHAIN, logits, x0, x_t, t
    loss = functional.loss(*args, reduction="none", reverse="posterior_mean", impl=cpu)
    own = (loss.double() - truth).abs() / truth
    assert float(own.max()) < 1e-3


def test_a_gradient_outlives_the_name_of_its_chain(cpu):
    logits = torch.randn(2, 3, 8, requires_grad=True)
    chain = transitions.discretized_gaussian(8, [0.1, 0.2, 0.3])
    tokens = torch.zeros(2, 3).long()
    log_p = functional.p_posterior(chain, logits, tokens, torch.tensor([2, 3]), impl=cpu)
    del chain
    gc.collect()
    log_p.sum().backward()
    assert bool((logits.grad != 0).any())


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_an_impossible_pair_is_nan_also_where_nothing_diverges(impl, weights):
    chain = transitions.band(20, [0.1, 0.2, 0.3], 2)
    x0, x_t, t = torch.tensor([0, 3]), torch.tensor([19, 4]), torch.ones(2).long()
    leaf = torch.zeros(2, 20, requires_grad=True)
    options = {"vb_weight": weights[0], "ce_weight": weights[1], "reduction": "none"}
    loss = functional.loss(chain, leaf, x0, x_t, t, impl=impl, **options)
    assert loss.isnan().tolist() == [True, False]


def test_the_level_of_the_logits_costs_a_posterior_mean_no_digits(cpu):
    chain = make_dense_chain("substitution", 20).transition
    x0, t = torch.randint(20, (40,)), torch.full((40,), 3)
    x_t = functional.q_sample(chain, x0, t)
    logits = torch.randn(40, 20) + 1e4
    options = {"reverse": "posterior_mean"}
    truth, _ = log_space_truth(chain, logits, x0, x_t, t, **options)
    loss = functional.loss(chain, logits, x0, x_t, t, reduction="none", impl=cpu, **options)
    assert_close(loss, truth, torch.float32, ulps=64, scale=truth.abs() + 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [40.0, 1e4, 1e38])
@pytest.mark.parametrize("structure", ["full", "sparse"])
def test_a_sure_class_that_cannot_lead_to_x_t_costs_no_digits(impl, structure, level, dtype):
    chain, t = one_way_chain(structure), 2
    x0, x_t, logits, left = sure_of_what_cannot_lead(chain, t, level)
    times, options = torch.full_like(x0, t), {"reverse": "posterior_mean"}
    truth, true_gradient = truth_by_time(chain, left, x0, x_t, times, **options)
    loss, gradient = loss_and_gradient(chain, logits.to(dtype), x0, x_t, times, impl, **options)
    assert_close(loss, truth, dtype, ulps=32, scale=truth.abs() + 1)
    assert_gradient_close(gradient, true_gradient, dtype, ulps=32, floor=1)
    args = chain.transition, logits.to(dtype), x_t, times
    log_p = functional.p_posterior(*args, impl=impl, **options)
    truth = true_p_posterior(chain, left, x_t, t - 1, t, **options).log()
    assert_close(log_p, truth, dtype, ulps=32, scale=truth.abs() + 1)
    drawn = functional.p_sample(*args, seeds=torch.arange(len(x0)), impl=impl, **options)
    assert bool(truth.gather(1, drawn[:, None]).isfinite().all())


def test_threads_share_the_products_of_a_chain():
    betas = torch.linspace(1e-3, 0.3, 200)
    shared, alone = (transitions.discretized_gaussian(100, betas) for _ in range(2))
    threads = [Thread(target=shared.q_bar_matrix, args=(t,)) for t in (200, 150, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for t in (1, 50, 150, 200):
        assert torch.equal(shared.q_bar_matrix(t), alone.q_bar_matrix(t))


def test_a_long_chain_is_multiplied_without_recursion():
    chain = transitions.band(64, torch.full((50_000,), 1e-3), 3)
    assert_close(chain.q_bar_matrix(222).sum(1), torch.ones(64), torch.float64, ulps=1 << 12)


def test_a_few_classes_near_the_end_keep_the_digits_of_the_gradient(cpu):
    """Where the rows of Qbar are alike, float32 has few digits of what tells them apart."""
    chain = gaussian(16, 1000)
    x0 = torch.randint(16, (64,))
    t = torch.randint(900, 1001, (64,))
    x_t = functional.q_sample(chain, x0, t)
    logits = torch.randn(64, 16)
    truth, true_gradient = log_space_truth(chain, logits, x0, x_t, t)
    leaf = logits.clone().requires_grad_()
    loss = functional.loss(chain, leaf, x0, x_t, t, reduction="none", impl=cpu)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert_close(loss, truth, torch.float32, ulps=1 << 11)
    check_gradient(gradient, true_gradient, torch.float32, ulps=1 << 13)


def test_draws_need_no_room_in_the_cache(cpu):
    """A table that nothing keeps is alive as long as the kernel reads it."""
    rate = torch.diag(torch.ones(15), 1) + 2 * torch.diag(torch.ones(15), -1)
    rate -= torch.diag(rate.sum(1))
    chain = transitions.from_rate(rate, torch.linspace(0.1, 3, 8), memory_budget=1000)
    x0, t, seeds = torch.randint(16, (5000,)), torch.randint(1, 9, (5000,)), torch.arange(5000)
    drawn = [functional.q_sample(chain, x0, t, seeds=seeds, impl=i) for i in (cpu, "reference")]
    assert torch.equal(*drawn)
