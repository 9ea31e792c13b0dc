"""Chains whose law of redrawn tokens moves with time: gidd, and marginals of one's own."""

import pytest
import torch
from helpers.chains import true_loss, true_p_posterior, true_q_posterior
from helpers.compare import assert_close, check_gradient
from helpers.continuous import true_density
from helpers.laws import assert_follows
from helpers.moving import FAMILIES, MASK, PI, K, make_moving_chain, moving

import d3pm_fast as d3
from d3pm_fast import functional, schedules, transitions
from d3pm_fast.schedules import continuous

ALSO_BY = ("triton", "cuda")  # the fixture impl; see conftest.py
REVERSE = ["joint", "posterior_mean"]
STEPS = [(0.0, 0.3), (0.3, 0.35), (0.4, 0.9), (0.9, 1.0)]


@pytest.fixture(params=FAMILIES)
def chain(request):
    return make_moving_chain(request.param)


def every_pair(chain, t):
    """All ``(x_0, x_t)`` that the chain can make at t of data without the mask, and logits."""
    possible = chain.product(0, t) > 0
    possible[MASK] = False
    x0, x_t = possible.nonzero().unbind(-1)
    logits = 2 * torch.randn(len(x0), K, dtype=torch.float64)
    logits[:, MASK] = -torch.inf
    return x0, x_t, logits.requires_grad_()


def at(time, x0):
    return torch.full((len(x0),), time, dtype=torch.float64)


def test_matrices_are_those_of_the_marginals(chain):
    for s, t in STEPS:
        found = chain.transition.q_matrix(t, s)
        assert_close(found, chain.product(s, t), torch.float64, ulps=32, scale=torch.ones(1))
    left = chain.transition.q_bar_matrix(0.4) @ chain.transition.q_matrix(0.7, 0.4)
    assert_close(left, chain.product(0, 0.7), torch.float64, ulps=8, scale=torch.ones(1))
    assert torch.equal(chain.transition.q_bar_matrix(0.0), torch.eye(K).double())
    assert_close(chain.transition.q_matrix(1.0, 1.0).sum(1), torch.ones(K), torch.float64)


@pytest.mark.parametrize("family", [name for name in FAMILIES if "gidd" in name])
def test_gidd_keeps_its_digits_at_both_ends(family):
    chain = make_moving_chain(family)
    times = [1e-300, 1e-12, 1e-6, 0.25, 0.5, 0.75, 1 - 1e-6, 1 - 1e-12, 1 - 2**-53]
    t = torch.tensor(times, dtype=torch.float64)
    rates = [list(map(float, chain.rate_coefficients(time))) for time in times]
    found = torch.stack(chain.transition.marginals.rates(t), dim=-1)
    assert_close(found, torch.tensor(rates, dtype=torch.float64), torch.float64, ulps=16)
    pairs = [(s, t) for t in times[1:] for s in (0.0, t * (1 - 1e-9), t / 2, t * 1e-9)]
    steps = [list(map(float, chain.coefficients(s, t))) for s, t in pairs]
    s, t = torch.tensor(pairs, dtype=torch.float64).T
    found = chain.transition.step_coefficients(s, t)[:, :3]
    assert_close(found, torch.tensor(steps, dtype=torch.float64), torch.float64, ulps=32)


@pytest.mark.parametrize("reverse", REVERSE)
def test_steps_agree_with_explicit_matrices(impl, chain, reverse):
    for s, t in STEPS if impl in ("reference", "cpu") else STEPS[1:2]:
        x0, x_t, leaf = every_pair(chain, t)
        times, model = (at(t, x0), at(s, x0)), {"reverse": reverse, "impl": impl}
        loss = functional.loss(
            chain.transition, leaf, x0, x_t, *times, ce_weight=0.1, reduction="none", **model
        )
        truth = true_loss(chain, leaf, x0, x_t, t, reverse, ce_weight=0.1, s=s)
        gradient, true_gradient = (
            torch.autograd.grad(value.sum(), leaf)[0] for value in (loss, truth)
        )
        assert_close(loss, truth, torch.float64, ulps=256, scale=truth.abs() + 1)
        check_gradient(gradient, true_gradient, torch.float64, ulps=256, floor=0.1)
        posteriors = functional.p_posterior(chain.transition, leaf.detach(), x_t, *times, **model)
        expected = true_p_posterior(chain, leaf.detach(), x_t, s, t, reverse)
        assert_close(posteriors.exp(), expected, torch.float64, ulps=256, scale=torch.ones(1))
        posteriors = functional.q_posterior(
            chain.transition, x0, x_t, *times, dtype=torch.float64, impl=impl
        )
        expected = true_q_posterior(chain, x0, x_t, s, t)
        assert_close(posteriors.exp(), expected, torch.float64, ulps=256, scale=torch.ones(1))


@pytest.mark.parametrize("reverse", REVERSE)
def test_the_density_agrees_with_its_definition(impl, chain, reverse):
    times = [1e-3, 0.37, 0.8, 0.999]
    for t in times if impl in ("reference", "cpu") else times[1:2]:
        x0, x_t, leaf = every_pair(chain, t)
        truth = true_density(chain, leaf, x0, x_t, t, reverse)
        loss = functional.loss(
            chain.transition, leaf, x0, x_t, at(t, x0), reverse=reverse, reduction="none", impl=impl
        )
        gradient, true_gradient = (
            torch.autograd.grad(value.sum(), leaf)[0] for value in (loss, truth)
        )
        assert_close(loss, truth, torch.float64, ulps=4096, scale=truth.abs() + 1)
        check_gradient(gradient, true_gradient, torch.float64, ulps=4096, floor=0.1)


@pytest.mark.parametrize("family", ["gidd, late", "from_marginals"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_density_at_the_end_of_time(kernels, family, dtype):
    """There a rate is infinite, and what is kept or redrawn is 0: the number before 1 counts."""
    chain, x0 = make_moving_chain(family), torch.tensor([0, 1, 3, 4])
    logits = torch.randn(4, K, dtype=dtype)
    logits[:, MASK] = -torch.inf
    x_t, t = torch.full_like(x0, MASK), at(1.0, x0)
    loss = functional.loss(chain.transition, logits, x0, x_t, t, reduction="none", impl=kernels)
    assert_close(loss, true_density(chain, logits.double(), x0, x_t, 1.0), dtype, ulps=32)


def test_losses_of_short_steps_tend_to_the_density(impl, chain):
    """Their error falls like the length of the step."""
    x0, x_t, logits = every_pair(chain, 0.6)
    options = {"reduction": "none", "impl": impl}
    t, errors = at(0.6, x0), []
    limit = functional.loss(chain.transition, logits, x0, x_t, t, **options)
    for step in (1e-3, 1e-4):
        loss = functional.loss(chain.transition, logits, x0, x_t, t, t - step, **options) / step
        errors.append((loss - limit).abs().max())
    assert 8 < errors[0] / errors[1] < 12


def test_draws_follow_the_marginals(impl, chain):
    draws = 2000 if impl in ("reference", "cpu") else 200
    x0 = torch.tensor([0, 3, 4]).expand(draws, 3)
    t = torch.full((draws,), 0.45, dtype=torch.float64)
    x_t = functional.q_sample(chain.transition, x0, t, seeds=torch.arange(draws), impl=impl)
    assert_follows(x_t, chain.product(0, 0.45)[x0[0]])


def test_reverse_steps_follow_their_law(impl, chain):
    draws = 2000 if impl in ("reference", "cpu") else 200
    x_t = torch.tensor([0, MASK, 3])
    logits = torch.tensor([0.5, 0.0, -torch.inf, 1.0, -1.0], dtype=torch.float64).expand(3, K)
    law = true_p_posterior(chain, logits, x_t, 0.3, 0.6)
    t, s = (torch.full((draws,), time, dtype=torch.float64) for time in (0.6, 0.3))
    x_s = functional.p_sample(
        chain.transition,
        logits.expand(draws, 3, K),
        x_t.expand(draws, 3),
        t,
        s,
        seeds=torch.arange(draws),
        impl=impl,
    )
    assert_follows(x_s, law)


def test_samples_have_the_law_of_the_data(chain):
    law = torch.tensor([0.5, 0.3, 0.0, 0.2, 0.0], dtype=torch.float64)
    diffusion = d3.D3PM(chain.transition)
    denoiser = lambda x_t, t: law.log().expand(*x_t.shape, K)  # noqa: E731
    x = diffusion.sample(denoiser, (4, 500), 20, seeds=torch.arange(4))
    assert_follows(x.reshape(-1, 1), law[None])


def test_what_is_left_at_the_end(chain):
    mask = torch.eye(K).double()[MASK]
    assert_close(chain.transition.stationary(), mask, torch.float64)
    assert (chain.transition.prior() == 0).all()


def test_a_chain_that_keeps_some():
    """Its stationary law is that of the tokens redrawn; what it keeps is in the prior."""
    parts = [lambda t: 1 - 0.5 * t, lambda t: 0.1 * t, lambda t: 0.4 * t]
    chain = transitions.from_marginals(K, *parts, mask_id=MASK, pi=PI)
    law = 0.2 * PI + 0.8 * torch.eye(K).double()[MASK]
    end = 0.5 * torch.eye(K).double() + 0.5 * law
    assert_close(chain.stationary(), law, torch.float64)
    expected = torch.where(end > 0, end * (end / law).log(), 0).sum(1)
    assert_close(chain.prior(), expected, torch.float64, ulps=16)


CONSTANT = {  # make of a schedule, and shares of the base and of the mask
    "uniform": (lambda alphas: transitions.uniform(K, alphas), 1.0, None),
    "marginal": (lambda alphas: transitions.marginal(K, alphas, PI), 1.0, PI),
    "absorbing": (lambda alphas: transitions.absorbing(K, alphas, MASK), 0.0, None),
    "mask_and_uniform": (
        lambda alphas: transitions.mask_and_uniform(K, alphas, MASK, 0.25),
        0.25,
        None,
    ),
}


@pytest.mark.parametrize("schedule", [continuous.log_linear(), continuous.cosine()], ids=repr)
@pytest.mark.parametrize("family", CONSTANT)
def test_marginals_of_other_families_make_them(family, schedule):
    make, share, pi = CONSTANT[family]
    parts = [schedule.alpha, lambda t: share * schedule.one_minus_alpha(t)]
    options = {"pi": pi}
    if share < 1:
        options |= {"mask": lambda t: (1 - share) * schedule.one_minus_alpha(t), "mask_id": MASK}
    expected, found = make(schedule), transitions.from_marginals(K, *parts, **options)
    s, t = torch.tensor([[0, 1e-3, 0.2, 0.5, 0.9], [1e-3, 0.2, 0.21, 0.9, 1]], dtype=torch.float64)
    steps = [chain.step_coefficients(s, t) for chain in (found, expected)]
    torch.testing.assert_close(*steps, rtol=1e-13, atol=1e-15)
    tables = [chain.loss_record(t)[0].table[:-1] for chain in (found, expected)]  # before t = 1
    assert_close(*tables, torch.float64, ulps=32)
    torch.testing.assert_close(found.stationary(), expected.stationary(), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.prior(), expected.prior(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("betas", [schedules.cosine(20), schedules.linear(20, 0.1, 0.2)])
@pytest.mark.parametrize("family", CONSTANT)
def test_tables_of_other_families_make_them(family, betas):
    make, share, pi = CONSTANT[family]
    expected = make(betas)
    keep, base, mask = expected.product_table[1:].unbind(-1)
    options = {"pi": pi, "mask": mask, "mask_id": MASK} if share < 1 else {"pi": pi}
    found = transitions.from_marginals(K, keep, base, **options)
    assert found.num_steps == 20
    torch.testing.assert_close(found.product_table, expected.product_table, rtol=1e-13, atol=1e-16)
    steps = found.step_table[1:], expected.step_table[1:]
    torch.testing.assert_close(*steps, rtol=1e-12, atol=1e-16)
    assert bool((found.product_table[-1, 0] == 0) == (expected.product_table[-1, 0] == 0))
    torch.testing.assert_close(found.prior(), expected.prior(), rtol=1e-11, atol=1e-15)
    s, t = torch.combinations(torch.arange(21)).T
    steps = [chain.step_coefficients(s, t) for chain in (found, expected)]
    torch.testing.assert_close(*steps, rtol=1e-11, atol=1e-15)
    assert share in (0.25, 0.0) or (steps[0][:, 2] == 0).all()


def test_a_table_that_ends_with_0_keeps_nothing():
    """Also where base and mask, divided by their sum, sum to ``1 - 2^-53``."""
    for _ in range(200):
        weights = torch.rand(2, dtype=torch.float64)
        base, mask = (1.0000001 * weights / weights.sum()).tolist()
        chain = transitions.from_marginals(K, [0.0], [base], [mask], MASK)
        assert chain.product_table[1, 0] == 0


def test_tables_of_a_law_that_moves():
    t = torch.linspace(0, 1, 13, dtype=torch.float64)[1:]
    chain = transitions.from_marginals(K, *moving(t), MASK, PI)
    truth = make_moving_chain("from_marginals")
    for step in range(1, 13):
        s, u = float((step - 1) / 12), float(t[step - 1])
        for found, expected in (
            (chain.q_matrix(step), truth.product(s, u)),
            (chain.q_bar_matrix(step), truth.product(0, u)),
        ):
            assert_close(found, expected, torch.float64, ulps=32, scale=torch.ones(1))


def test_gidd_without_uniform_noise_is_absorbing():
    found = transitions.gidd(K, MASK, 0.0)
    expected = transitions.absorbing(K, continuous.linear(), MASK)
    s, t = torch.tensor([[0, 1e-3, 0.2], [1e-3, 0.2, 1.0]], dtype=torch.float64)
    steps = [chain.step_coefficients(s, t) for chain in (found, expected)]
    torch.testing.assert_close(*steps, rtol=1e-14, atol=1e-16)
    assert_close(*(chain.loss_record(t)[0].table for chain in (found, expected)), torch.float64)


def test_most_tokens_are_redrawn_where_p_uniform_says():
    """Its share is reached at t = 1/2, and by a small gamma kept between."""
    for gamma in (0.01, 1.0, 2.0):
        _, base, _ = transitions.gidd(K, MASK, 0.3, gamma).marginals.product(
            torch.linspace(0, 1, 101, dtype=torch.float64)
        )
        assert int(base.argmax()) == 50
        assert float(base.max()) == pytest.approx(0.3)
    early = transitions.gidd(K, MASK, 0.3, 0.01).q_bar_matrix(0.01)[0, 1]
    assert float(early) == pytest.approx(0.3 / (K - 1), rel=0.02)


def test_gidd_in_steps_draws_as_in_continuous_time(impl):
    chain, steps = transitions.gidd(K, MASK, 0.2), 40
    stepped = transitions.gidd(K, MASK, 0.2, num_steps=steps)
    for step in range(1, steps + 1):
        pairs = (
            (stepped.q_matrix(step), chain.q_matrix(step / steps, (step - 1) / steps)),
            (stepped.q_bar_matrix(step), chain.q_bar_matrix(step / steps)),
        )
        for found, expected in pairs:
            torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-15)
    x0, t = torch.tensor([[0, 1, 3], [4, 3, 1]]), torch.tensor([13, 39])
    seeds, seconds = torch.arange(2), t.double() / steps
    x_t = functional.q_sample(stepped, x0, t, seeds=seeds, impl=impl)
    found = functional.q_sample(chain, x0, seconds, seeds=seeds, impl=impl)
    assert torch.equal(found, x_t)
    logits = torch.randn(2, 3, K, dtype=torch.float64)
    logits[..., MASK] = -torch.inf
    expected = functional.p_sample(stepped, logits, x_t, t, t - 1, seeds=seeds, impl=impl)
    before = (t - 1).double() / steps
    found = functional.p_sample(chain, logits, x_t, seconds, before, seeds=seeds, impl=impl)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": lambda t: 0.9 * t}, r"keep \+ base \+ mask must be 1 within 1e-6, got 0.9999 at"),
        ({"keep": lambda t: 1 - 2 * t}, r"keep must lie in \[0, 1\], got -0.002 at t = 0.501"),
        ({"base": lambda t: t.float()}, "base must return float64 numbers of the shape of t"),
        ({"base": lambda t: t.sum()}, "base must return float64 numbers of the shape of t"),
        ({"keep": lambda t: t * torch.nan}, r"keep must lie in \[0, 1\], got nan at t = 0"),
        (
            {"keep": lambda t: 0.5 + 0.5 * t, "base": lambda t: 0.5 - 0.5 * t},
            "keep must never grow",
        ),
        ({"keep": torch.ones_like, "base": torch.zeros_like}, "keep must fall below 1, got 1 at t"),
        ({"keep": [0.9, 0.5], "base": [0.1, 0.4]}, "must be 1 within 1e-6, got 0.9 at t = 2"),
        ({"keep": [0.9, 0.95], "base": [0.1, 0.05]}, r"keep must never grow, got 0.95 at t = 2"),
        ({"keep": [1.1], "base": [-0.1]}, r"keep must lie in \[0, 1\], got 1.1 at t = 1"),
        ({"keep": [0.9, 0.5], "base": [0.1]}, r"must have one shape \(T,\) with T >= 1"),
        ({"keep": [1.0], "base": [0.0]}, "keep must fall below 1"),
        (
            {"keep": [0.5, 0.4], "base": [0.5, 0.2], "mask": [0.0, 0.4], "mask_id": 2},
            r"the step of base, W\(t\) - .*, must be at least 0, got -0.2 at t = 2",
        ),
        ({"mask": [0.1]}, "mask and mask_id are given together"),
        ({"mask_id": 2}, "mask and mask_id are given together"),
        ({"pi": [0.5] * K}, "pi must sum to 1"),
    ],
)
def test_marginals_of_no_chain_are_refused(arguments, message):
    valid = {"keep": lambda t: 1 - t, "base": lambda t: t}
    with pytest.raises(ValueError, match=message):
        transitions.from_marginals(K, **valid | arguments)


def test_a_rate_below_zero_is_refused_between_the_times_of_the_grid():
    """At which the marginals are those of a chain: each step would be one, some rates are not."""
    wave = lambda t: t + 3e-4 * torch.sin(2000 * torch.pi * t)  # noqa: E731
    parts = [lambda t: 1 - t, lambda t: 0.5 * wave(t), lambda t: t - 0.5 * wave(t)]
    with pytest.raises(
        ValueError, match=r"the rate of mask, .* must be at least 0, got -.* at t = 0"
    ):
        transitions.from_marginals(K, *parts, MASK)
    with pytest.raises(ValueError, match=r"the step of base, .* at t = 0\.501"):
        transitions.from_marginals(
            K, lambda t: 1 - t, lambda t: t * (1 - t) ** 2, lambda t: t - t * (1 - t) ** 2, MASK
        )


def test_functions_beside_tables_are_refused():
    with pytest.raises(TypeError, match="must be functions of time, or tables"):
        transitions.from_marginals(K, lambda t: 1 - t, [0.5])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((K, MASK, 1.0), ValueError, r"p_uniform must lie in \[0, 1\), got 1.0"),
        ((K, MASK, -0.1), ValueError, r"p_uniform must lie in \[0, 1\), got -0.1"),
        ((K, MASK, 0.1, 0.0), ValueError, r"gamma must lie in \(0, 2\], got 0.0"),
        ((K, MASK, 0.1, 2.1), ValueError, r"gamma must lie in \(0, 2\], got 2.1"),
        ((K, K, 0.1), IndexError, r"mask_id must lie in \[0, 5\), got 5"),
        ((1, 0, 0.1), ValueError, "num_classes must be at least 2"),
        ((K, MASK, 0.1, 1.0, 0), ValueError, "num_steps must be at least 1"),
    ],
)
def test_wrong_arguments_of_gidd_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        transitions.gidd(*arguments)


@pytest.mark.parametrize("num_steps", [None, 7])
def test_gidd_without_uniform_noise_is_an_absorbing_chain(num_steps):
    chain = transitions.gidd(K, MASK, 0.0, num_steps=num_steps)
    t = 0.4 if num_steps is None else 3
    keep = 1 - (t if num_steps is None else t / num_steps)
    expected = keep * torch.eye(K).double() + (1 - keep) * torch.eye(K).double()[MASK]
    torch.testing.assert_close(chain.q_bar_matrix(t), expected)
    samples = d3.samplers.first_hitting(
        d3.D3PM(chain), lambda x_t, t: torch.zeros(*x_t.shape, K), (2, 3)
    )
    assert not (samples == MASK).any()


def test_a_jump_leads_from_the_data():
    """As of the log-linear schedules of SEDD, where alpha(0) < 1."""
    chain = transitions.from_marginals(K, lambda t: 0.8 * (1 - t), lambda t: 0.2 + 0.8 * t)
    expected = transitions.uniform(K, continuous.from_alpha(lambda t: 0.8 * (1 - t)))
    assert torch.equal(chain.q_bar_matrix(0.0), torch.eye(K).double())
    for s, t in ((0.0, 1e-9), (0.0, 0.5), (0.2, 0.5)):
        torch.testing.assert_close(chain.q_matrix(t, s), expected.q_matrix(t, s))


def test_a_law_that_stays_as_it_was_is_not_entered():
    """A phase of masking alone has no trace of rounding in the other law."""
    keep = lambda t: torch.where(t < 0.5, 1 - t, 2 * (1 - t) ** 2)  # noqa: E731
    base = lambda t: torch.where(t < 0.5, t, keep(t))  # noqa: E731
    chain = transitions.from_marginals(K, keep, base, lambda t: 1 - keep(t) - base(t), MASK)
    t = torch.linspace(0.51, 0.99, 301, dtype=torch.float64)
    assert (chain.step_coefficients(t - 0.005, t)[:, 1] == 0).all()
    assert (chain.loss_record(t)[0].table[:, 1] == 0).all()
    table = chain.product_coefficients(t)
    stepped = transitions.from_marginals(K, *table.unbind(-1), MASK)
    assert (stepped.step_table[2:, 1] == 0).all()
    assert not stepped.needs_float64


def square(t):
    return t * t


def rest(t):
    return 1 - t * t


def test_chains_can_be_moved_saved_and_told_apart(tmp_path):
    torch.serialization.add_safe_globals([square, rest])
    chains = {
        "gidd": transitions.gidd(K, MASK, 0.2),
        "gidd, p_uniform": transitions.gidd(K, MASK, 0.3),
        "gidd, gamma": transitions.gidd(K, MASK, 0.2, 0.5),
        "gidd, mask": transitions.gidd(K, 3, 0.2),
        "gidd, steps": transitions.gidd(K, MASK, 0.2, num_steps=7),
        "functions": transitions.from_marginals(K, rest, square),
        "functions, pi": transitions.from_marginals(K, rest, square, pi=PI),
        "functions, mask": transitions.from_marginals(K, rest, torch.zeros_like, square, MASK),
    }
    assert len({round(chain.fingerprint, 6) for chain in chains.values()}) == len(chains)
    for name, chain in chains.items():
        diffusion = d3.D3PM(chain)
        if "mask" not in name:
            torch.save(diffusion, tmp_path / "diffusion")
            loaded = torch.load(tmp_path / "diffusion", weights_only=True)
            assert loaded.transition.fingerprint == chain.fingerprint
            assert torch.equal(loaded.transition.q_bar_matrix(1), chain.q_bar_matrix(1))
        assert diffusion.to("meta").transition.device.type == "meta"
    state = d3.D3PM(chains["gidd"]).state_dict()
    with pytest.warns(UserWarning, match="other transition probabilities"):
        d3.D3PM(chains["gidd, p_uniform"]).load_state_dict(state)


def test_rare_classes_ask_for_float64():
    assert not transitions.gidd(50_258, 50_257, 0.1).needs_float64
    assert not transitions.gidd(50_258, 50_257, 0.1, 2.0).needs_float64
    assert transitions.gidd(K, MASK, 1e-12, 2.0).needs_float64
    cubic = lambda t: t**3  # noqa: E731
    assert transitions.from_marginals(K, lambda t: 1 - cubic(t), cubic).needs_float64
    assert not transitions.from_marginals(K, lambda t: 1 - t, lambda t: t).needs_float64


def test_float32_keeps_the_loss_of_gidd(kernels):
    """In the middle and near both ends, with the vocabulary of a language model's size."""
    chain = transitions.gidd(3000, 2999, 0.1)
    x0 = torch.randint(2999, (6, 2))
    t = torch.tensor([1e-6, 0.01, 0.2, 0.7, 0.99, 1 - 1e-6], dtype=torch.float64)
    x_t = functional.q_sample(chain, x0, t, impl="reference")
    logits = 2 * torch.randn(6, 2, 3000)
    logits[..., 2999] = -torch.inf
    losses = [
        functional.loss(chain, rows, x0, x_t, t, reduction="none", impl=impl)
        for rows, impl in ((logits, kernels), (logits.double(), "reference"))
    ]
    assert_close(*losses, torch.float32, ulps=64, scale=losses[1].abs() + 1)


def test_the_compiled_density(cpu, chain):
    x0, x_t, logits = every_pair(chain, 0.5)

    def loss(leaf, t):
        return functional.loss(chain.transition, leaf, x0, x_t, t)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaf, t = logits.detach(), at(0.5, x0)
    assert_close(compiled(leaf, t), loss(leaf, t), torch.float64)


@pytest.mark.parametrize("gamma", [1.5, 2.0])
def test_the_mean_of_the_density_is_the_bound_of_many_steps(gamma):
    """For data of one class, with a denoiser that does not know it."""
    steps, totals = 400, []
    logits = torch.tensor([0.5, 0.1, -torch.inf, 0.3, -0.2], dtype=torch.float64)
    chain = transitions.gidd(K, MASK, 0.3, gamma)
    stepped = transitions.gidd(K, MASK, 0.3, gamma, num_steps=steps)
    t = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    for transition, times in ((chain, t), (stepped, torch.arange(1, steps + 1))):
        law = torch.stack([transition.q_bar_matrix(time)[3] for time in times.tolist()])
        step, x_t = (law > 0).nonzero().unbind(-1)
        rows, x0 = logits.expand(len(step), K), torch.full_like(x_t, 3)
        loss = functional.loss(transition, rows, x0, x_t, times[step], reduction="none")
        totals.append((law[step, x_t] * loss).sum() / (1 if transition.has_steps else steps))
    assert abs(totals[0] / totals[1] - 1) < 1e-2
