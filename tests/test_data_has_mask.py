"""Data that never hold the mask: its logit counts as -inf, whatever it is, or is left out."""

import pytest
import torch
from helpers.compare import assert_close, check_gradient, same_bits
from helpers.masks import forbidden, problem

import d3pm_fast as d3
from d3pm_fast import functional, schedules, transitions

ALSO_BY = ("triton", "cuda")  # the fixture impl; see conftest.py
T = 4
BETAS = torch.linspace(0.1, 0.6, T, dtype=torch.float64)
TIMES = {"steps": BETAS, "continuous": schedules.continuous.cosine()}
REVERSE = ["joint", "posterior_mean"]
FIRST_STEP = ["posterior", "logits"]
PLACES = {"first": lambda k: 0, "middle": lambda k: k // 2, "last": lambda k: k - 1}
SIZES = [5, 33, 300]


def make(family, num_classes, times, mask_id, data_has_mask):
    if family == "absorbing":
        return transitions.absorbing(num_classes, TIMES[times], mask_id, data_has_mask)
    return transitions.mask_and_uniform(num_classes, TIMES[times], mask_id, 0.3, data_has_mask)


def cases():
    return [
        (family, times, place, k)
        for family in ("absorbing", "mask_and_uniform")
        for times in TIMES
        for place in PLACES
        for k in SIZES
    ]


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize(("family", "times", "place", "k"), cases())
def test_a_loss_is_that_of_forbidden_logits(impl, family, times, place, k, reverse, first_step):
    mask_id = PLACES[place](k)
    chain = make(family, k, times, mask_id, False)
    logits, x0, x_t, t, s = problem(chain)
    options = {"reverse": reverse, "first_step": first_step, "ce_weight": 0.1, "reduction": "none"}
    clean = forbidden(logits, chain).requires_grad_()
    with_mask = make(family, k, times, mask_id, True)
    truth = functional.loss(with_mask, clean, x0, x_t, t, s, impl="reference", **options)
    (true_gradient,) = torch.autograd.grad(truth.sum(), clean)
    given = [logits] + [logits[..., :-1].contiguous()] * (place == "last")
    for rows in given:
        leaf = rows.clone().requires_grad_()
        loss = functional.loss(chain, leaf, x0, x_t, t, s, impl=impl, **options)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        assert_close(loss, truth, torch.float64, ulps=4096, scale=truth.abs() + 1e-3)
        expected = true_gradient[..., : leaf.shape[-1]]
        check_gradient(gradient, expected, torch.float64, ulps=4096, floor=1e-3)
        if leaf.shape[-1] == k:
            assert bool((gradient[..., mask_id] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", SIZES)
def test_every_dtype_leaves_the_mask_out(impl, k, dtype):
    chain = make("absorbing", k, "steps", k - 1, False)
    logits, x0, x_t, t, _ = problem(chain, dtype)
    truth_leaf = forbidden(logits, chain).double().requires_grad_()
    truth = functional.loss(chain, truth_leaf, x0, x_t, t, reduction="none", impl="reference")
    (true_gradient,) = torch.autograd.grad(truth.sum(), truth_leaf)
    for rows in (logits, logits[..., :-1].contiguous()):
        leaf = rows.clone().requires_grad_()
        loss = functional.loss(chain, leaf, x0, x_t, t, reduction="none", impl=impl)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        assert_close(loss, truth, dtype, ulps=64, scale=truth.abs() + 0.1)
        expected = true_gradient[..., : leaf.shape[-1]]
        check_gradient(gradient, expected, dtype, ulps=64, floor=0.01)


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize(("family", "times", "place", "k"), cases())
def test_a_posterior_is_that_of_forbidden_logits(
    impl, family, times, place, k, reverse, first_step
):
    mask_id = PLACES[place](k)
    chain = make(family, k, times, mask_id, False)
    logits, _, x_t, t, s = problem(chain)
    options = {"reverse": reverse, "first_step": first_step}
    clean = forbidden(logits, chain).requires_grad_()
    with_mask = make(family, k, times, mask_id, True)
    truth = functional.p_posterior(with_mask, clean, x_t, t, s, impl="reference", **options)
    upstream = torch.randn_like(truth).where(truth > -torch.inf, 0)
    (true_gradient,) = torch.autograd.grad(truth, clean, upstream)
    given = [logits] + [logits[..., :-1].contiguous()] * (place == "last")
    for rows in given:
        leaf = rows.clone().requires_grad_()
        log_p = functional.p_posterior(chain, leaf, x_t, t, s, impl=impl, **options)
        (gradient,) = torch.autograd.grad(log_p, leaf, upstream)
        assert_close(log_p, truth, torch.float64, ulps=4096, scale=truth.abs() + 1)
        expected = true_gradient[..., : leaf.shape[-1]]
        check_gradient(gradient, expected, torch.float64, ulps=4096, floor=1e-3)


def test_nothing_is_pulled_back_to_the_mask(impl):
    """Also where its log-probability is -inf, and something comes from above to it."""
    chain = make("absorbing", 5, "steps", 2, False)
    logits, _, x_t, t, _ = problem(chain)
    leaf = logits.requires_grad_()
    log_p = functional.p_posterior(chain, leaf, x_t, t, impl=impl)
    upstream = torch.zeros_like(log_p)
    upstream[..., 2] = 1
    (gradient,) = torch.autograd.grad(log_p, leaf, upstream)
    assert bool((gradient[..., 2] == 0).all())


@pytest.mark.parametrize("shaping", [None, {"temperature": 0.7, "top_k": 3, "top_p": 0.9}])
@pytest.mark.parametrize(("family", "times", "place", "k"), cases())
def test_draws_are_those_of_forbidden_logits(impl, family, times, place, k, shaping):
    mask_id = PLACES[place](k)
    chain = make(family, k, times, mask_id, False)
    with_mask = make(family, k, times, mask_id, True)
    logits, _, x_t, t, s = problem(chain)
    seeds = torch.arange(len(x_t))

    def drawn(chain, rows):
        given = rows if shaping is None else functional.Shaped(rows, **shaping)
        return functional.p_sample(chain, given, x_t, t, s, seeds=seeds, impl=impl)

    expected = drawn(with_mask, forbidden(logits, chain))
    assert torch.equal(drawn(chain, logits), expected)
    if place == "last":
        assert torch.equal(drawn(chain, logits[..., :-1].contiguous()), expected)


@pytest.mark.parametrize("times", TIMES)
def test_guided_logits_forbid_the_mask(impl, times):
    chain = make("absorbing", 6, times, 5, False)
    logits, _, x_t, t, s = problem(chain)
    other = torch.randn_like(logits)

    def log_p(rows, unconditional):
        shaped = functional.Shaped(rows, unconditional, guidance=2.0, top_k=2)
        return functional.p_posterior(chain, shaped, x_t, t, s, impl=impl)

    expected = log_p(forbidden(logits, chain), forbidden(other, chain))
    assert_close(log_p(logits, other), expected, torch.float64, ulps=64)
    assert_close(log_p(logits[..., :-1], other[..., :-1]), expected, torch.float64, ulps=64)


def test_a_logistic_prediction_forbids_the_mask(impl):
    chain = make("absorbing", 9, "steps", 4, False)
    _, x0, x_t, t, _ = problem(chain)
    parameters = [torch.randn(x0.shape, dtype=torch.float64).requires_grad_() for _ in range(2)]
    logits = functional.logistic_logits(*parameters, 9)
    truth = functional.loss(chain, forbidden(logits, chain), x0, x_t, t, impl="reference")
    expected = torch.autograd.grad(truth, parameters)
    loss = functional.loss(chain, functional.Logistic(*parameters), x0, x_t, t, impl=impl)
    assert_close(loss, truth, torch.float64, ulps=4096)
    for actual, gradient in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        check_gradient(actual, gradient, torch.float64, ulps=1 << 14, floor=1e-3)


def test_what_data_hold_is_no_part_of_the_chain():
    """The same draws and posteriors of q, and a state dict of the one loads into the other."""
    chains = [make("absorbing", 6, "steps", 5, held) for held in (False, True)]
    x0, t = torch.randint(5, (4, 3)), torch.tensor([1, 2, 3, 4])
    seeds = torch.arange(4)
    x_t, other = (functional.q_sample(chain, x0, t, seeds=seeds) for chain in chains)
    assert torch.equal(x_t, other)
    q, other = (functional.q_posterior(chain, x0, x_t, t) for chain in chains)
    assert same_bits(q, other)
    first, second = (d3.D3PM(chain) for chain in chains)
    second.load_state_dict(first.state_dict())


def test_families_without_a_mask_forbid_nothing():
    assert transitions.uniform(5, BETAS).data_has_mask
    assert transitions.uniform(5, BETAS).forbidden == -1
    assert make("absorbing", 5, "steps", 3, False).forbidden == 3
    assert make("absorbing", 5, "steps", 3, True).forbidden == -1


@pytest.mark.parametrize(("mask_id", "held"), [(0, False), (4, True)])
def test_a_logit_is_left_out_only_of_a_mask_that_is_the_last_class(mask_id, held):
    chain = make("absorbing", 5, "steps", mask_id, held)
    logits, x0, x_t, t, _ = problem(chain)
    with pytest.raises(ValueError, match=r"logits must have shape \(4, 3, 5\), got \(4, 3, 4\)"):
        functional.loss(chain, logits[..., :4], x0, x_t, t)
