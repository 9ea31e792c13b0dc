"""Chains in continuous time: against their definition, and against T steps of the same schedule."""

import pytest
import torch
from helpers.compare import assert_close, check_gradient

import d3pm_fast as d3
from d3pm_fast import functional, transitions
from d3pm_fast.schedules import continuous

ALSO_BY = ("triton", "cuda")  # the fixture impl; see conftest.py
K = 5
PI = torch.tensor([0.1, 0.2, 0.4, 0.3, 0.0], dtype=torch.float64)
FAMILIES = {
    "uniform": (lambda betas: transitions.uniform(K, betas), [1 / K] * K),
    "absorbing": (lambda betas: transitions.absorbing(K, betas, 4), [0, 0, 0, 0, 1]),
    "marginal": (lambda betas: transitions.marginal(K, betas, PI), PI.tolist()),
    "mask_and_uniform": (
        lambda betas: transitions.mask_and_uniform(K, betas, 2, 0.3, data_has_mask=True),
        [0.06, 0.06, 0.76, 0.06, 0.06],
    ),
}
SCHEDULES = [continuous.linear(), continuous.cosine(), continuous.geometric(1e-4, 8.0)]
NUM_STEPS = 40
S = torch.tensor([0, 1, 7, 0, 38, 39])
T = torch.tensor([1, 2, 30, 40, 39, 40])


@pytest.fixture(params=FAMILIES)
def family(request):
    """A function of betas or of a schedule, and the law of redrawn tokens."""
    make, law = FAMILIES[request.param]
    return make, torch.tensor(law, dtype=torch.float64)


@pytest.fixture(params=SCHEDULES, ids=repr)
def both(request, family):
    """The chain in continuous time, and that of T steps."""
    make, _ = family
    return make(request.param), make(request.param.betas(NUM_STEPS))


def seconds(steps):
    return steps.double() / NUM_STEPS


def problem(chain, shape=(3,)):
    """Clean tokens, corrupted ones, and logits, at the six pairs of times."""
    x0 = torch.randint(3, (len(T), *shape))
    x_t = functional.q_sample(chain, x0, T, impl="reference")
    return x0, x_t, torch.randn(len(T), *shape, K, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_matrices_are_those_of_the_definition(family, schedule):
    make, law = family
    chain = make(schedule)
    for s, t in ((0.0, 0.3), (0.3, 0.9), (0.9, 1.0), (0.25, 0.25)):
        keep = schedule.alpha(t) / (schedule.alpha(s) if s > 0 else 1)
        expected = keep * torch.eye(K).double() + (1 - keep) * law
        assert_close(chain.q_matrix(t, s), expected, torch.float64, ulps=32, scale=torch.ones(1))
    left = chain.q_bar_matrix(0.4) @ chain.q_matrix(0.7, 0.4)
    assert_close(left, chain.q_bar_matrix(0.7), torch.float64, ulps=32, scale=torch.ones(1))
    assert torch.equal(chain.q_bar_matrix(0.0), torch.eye(K).double())
    assert_close(chain.stationary(), law, torch.float64)


def test_every_operation_agrees_with_a_chain_of_steps(impl, both):
    chain, stepped = both
    x0, x_t, logits = problem(stepped)
    for reverse in ("joint", "posterior_mean"):
        for_both = ((chain, seconds(T), seconds(S)), (stepped, T, S))
        losses, gradients, posteriors = [], [], []
        for transition, t, s in for_both:
            leaf = logits.clone().requires_grad_()
            options = {"reverse": reverse, "impl": impl}
            loss = functional.loss(
                transition, leaf, x0, x_t, t, s, ce_weight=0.1, reduction="none", **options
            )
            losses.append(loss.detach())
            gradients.append(torch.autograd.grad(loss.sum(), leaf)[0])
            posteriors.append(functional.p_posterior(transition, logits, x_t, t, s, **options))
        assert_close(losses[0], losses[1], torch.float64, ulps=2048, scale=losses[1].abs() + 1)
        check_gradient(*gradients, torch.float64, ulps=4096, floor=0.1)
        torch.testing.assert_close(*posteriors, rtol=1e-11, atol=1e-11)
    found, expected = (
        functional.q_posterior(transition, x0, x_t, t, s, impl=impl)
        for transition, t, s in ((chain, seconds(T), seconds(S)), (stepped, T, S))
    )
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_draws_are_those_of_a_chain_of_steps(impl, both):
    chain, stepped = both
    x0, x_t, logits = problem(stepped)
    seeds = torch.arange(len(T))
    found, expected = (
        functional.q_sample(transition, x0, t, seeds=seeds, impl=impl)
        for transition, t in ((chain, seconds(T)), (stepped, T))
    )
    assert torch.equal(found, expected)
    found, expected = (
        functional.p_sample(transition, logits, x_t, t, s, seeds=seeds, impl=impl)
        for transition, t, s in ((chain, seconds(T), seconds(S)), (stepped, T, S))
    )
    assert torch.equal(found, expected)


def test_times_of_positions_and_of_float32(both):
    chain, stepped = both
    x0, x_t, _ = problem(stepped, shape=(2,))
    t = torch.stack((T, T.flip(0)), 1)
    x_t = functional.q_sample(stepped, x0, t, impl="reference")
    found = functional.q_posterior(chain, x0, x_t, seconds(t), torch.zeros(t.shape))
    expected = functional.q_posterior(stepped, x0, x_t, t, torch.zeros_like(t))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    single = (seconds(t)).float()
    exact = functional.q_posterior(chain, x0, x_t, single.double(), torch.zeros(t.shape))
    assert torch.equal(functional.q_posterior(chain, x0, x_t, single, torch.zeros(t.shape)), exact)


def test_prior_is_what_is_not_forgotten(family):
    make, law = family
    schedule = continuous.log_linear(1e-2)
    end = 1e-2 * torch.eye(K).double() + (1 - 1e-2) * law
    expected = torch.where(end > 0, end * (end / law).log(), 0).sum(1)
    found = functional.prior(make(schedule), torch.arange(K)[:, None])
    assert_close(found, expected, torch.float64, ulps=64, scale=torch.ones(K).double())


@pytest.mark.parametrize(
    ("t", "s", "error", "message"),
    [
        (torch.tensor([1]), torch.tensor([0.5]), TypeError, "t must be a float tensor"),
        (torch.tensor([0.5]), torch.tensor([0]), TypeError, "s must be a float tensor"),
        (torch.tensor([0.5]), torch.tensor([0.5]), IndexError, "s must lie in [0, t)"),
        (torch.tensor([0.5]), torch.tensor([-0.1]), IndexError, "s must lie in [0, t)"),
        (torch.tensor([1.5]), torch.tensor([0.5]), IndexError, "t must lie in (0, 1]"),
        (torch.tensor([torch.nan]), torch.tensor([0.5]), IndexError, "[0, t)"),
        (torch.tensor([0.5]), None, ValueError, "s is needed"),
    ],
)
def test_wrong_times_are_refused(impl, t, s, error, message):
    chain = transitions.uniform(K, continuous.linear())
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(error) as caught:
        functional.p_posterior(chain, torch.randn(1, 2, K), tokens, t, s, impl=impl)
    assert message in str(caught.value)


def test_times_beyond_the_interval_cannot_be_drawn():
    chain = transitions.uniform(K, continuous.linear())
    with pytest.raises(IndexError, match="t must lie in"):
        functional.q_sample(chain, torch.zeros(1, 2).long(), torch.tensor([1.01]))
    for t, s in ((1.5, 0.0), (0.5, 0.6), (0.5, -0.1)):
        with pytest.raises(IndexError, match="must lie in"):
            chain.q_matrix(t, s)


def test_a_share_of_each_step_has_no_meaning():
    with pytest.raises(ValueError, match="one number in continuous time"):
        transitions.mask_and_uniform(K, continuous.linear(), 0, [0.1, 0.2])


def test_impossible_pairs_are_named(both):
    chain = transitions.absorbing(K, continuous.linear(), 4)
    x0, x_t, t = torch.tensor([[1]]), torch.tensor([[2]]), torch.tensor([0.5])
    with pytest.warns(UserWarning, match=r"at t = 0\.5"):
        loss = functional.loss(chain, torch.randn(1, 1, K), x0, x_t, t, torch.tensor([0.25]))
    assert bool(loss.isnan())


def test_a_chain_can_be_moved_saved_and_told_apart(tmp_path, family):
    make, _ = family
    diffusion = d3.D3PM(make(continuous.log_linear()))
    assert diffusion.num_steps is None
    assert "num_steps=None" in repr(diffusion)
    torch.save(diffusion, tmp_path / "diffusion")
    loaded = torch.load(tmp_path / "diffusion", weights_only=True)
    assert loaded.transition.fingerprint == diffusion.transition.fingerprint
    assert torch.equal(loaded.transition.q_bar_matrix(0.3), diffusion.transition.q_bar_matrix(0.3))
    with pytest.warns(UserWarning, match="other transition probabilities"):
        d3.D3PM(make(continuous.cosine())).load_state_dict(diffusion.state_dict())
    assert diffusion.to("meta").transition.device.type == "meta"


def test_a_rare_class_asks_for_float64():
    rare = torch.tensor([1 - 1e-12, 1e-12], dtype=torch.float64)
    assert transitions.marginal(2, continuous.linear(), rare).needs_float64
    assert not transitions.marginal(2, continuous.linear(), rare.flip(0) * 0 + 0.5).needs_float64


def test_compiled_steps(cpu):
    chain = transitions.mask_and_uniform(K, continuous.cosine(), 2, data_has_mask=True)
    x0, x_t, logits = problem(
        transitions.mask_and_uniform(K, continuous.cosine().betas(40), 2, data_has_mask=True)
    )

    def loss(leaf, t, s):
        return functional.loss(chain, leaf, x0, x_t, t, s)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_close(
        compiled(logits, seconds(T), seconds(S)),
        loss(logits, seconds(T), seconds(S)),
        torch.float64,
    )


def exact_denoiser(chain, law, reverse):
    """For independent tokens of a law: what each reverse step asks of a denoiser.

    Joint: x_0 given the other tokens, so the law; posterior mean: ``q(x_0 | x_t)``.
    """

    def denoiser(x_t, t):
        if reverse == "joint":
            return law.log().expand(*x_t.shape, K)
        reach = torch.stack([chain.q_bar_matrix(time) for time in t.tolist()])  # (B, K, K)
        columns = torch.stack([matrix.T[row] for matrix, row in zip(reach, x_t, strict=True)])
        return (law * columns).log()

    return denoiser


@pytest.mark.parametrize("reverse", ["joint", "posterior_mean"])
@pytest.mark.parametrize("steps", [20, "log"])
def test_samples_have_the_law_of_the_data(family, reverse, steps):
    make, _ = family
    law = torch.tensor([0.5, 0.3, 0.0, 0.2, 0.0], dtype=torch.float64)
    chain = make(continuous.linear())
    diffusion = d3.D3PM(chain, reverse=reverse)
    times = d3.timesteps.grid(20, "log") if steps == "log" else steps
    denoiser = exact_denoiser(chain, law, reverse)
    x = diffusion.sample(denoiser, (4, 500), times, seeds=torch.arange(4))
    count = torch.bincount(x.flatten(), minlength=K)
    assert not count[law == 0].any()
    expected = law * x.numel()
    statistic = ((count - expected) ** 2 / expected)[law > 0].sum()
    assert statistic < 25  # chi-square of 2 degrees: 4e-6


def test_the_sampler_is_told_its_times():
    chain = transitions.absorbing(K, continuous.cosine(), 4, data_has_mask=True)
    diffusion, seen, told = d3.D3PM(chain), [], []

    def denoiser(x_t, t):
        assert t.dtype == torch.float64
        seen.append(t[0].item())
        logits = torch.zeros(*x_t.shape, K)
        logits[..., 4] = -torch.inf
        return logits

    x = diffusion.sample(denoiser, (2, 3), [1, 0.5, 0.1], callback=lambda x, t: told.append(t))
    assert seen == [1.0, 0.5, 0.1]
    assert told == [1.0, 0.5, 0.1, 0.0]
    assert not (x == 4).any()
    again = [diffusion.sample(denoiser, (2, 3), 7, seeds=torch.tensor([3, 4])) for _ in range(2)]
    assert torch.equal(*again)
    likeliest = diffusion.sample(denoiser, (2, 3), 7, last="argmax")
    assert not (likeliest == 4).any()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (None, "steps is needed"),
        ([0.5], "times must begin at T = 1.0"),
        ([1.0, 0.5, 0.5], "times must fall"),
        ([1.0, 0.5, 0.0], "times must fall"),
        ([1.0, torch.nan], "times must fall"),
    ],
)
def test_wrong_steps_are_refused(steps, message):
    diffusion = d3.D3PM(transitions.uniform(K, continuous.linear()))
    with pytest.raises(ValueError, match=message):
        diffusion.sample(lambda x_t, t: None, (1, 2), steps)


def test_training_times_cover_the_interval():
    diffusion = d3.D3PM(transitions.uniform(K, continuous.linear()))
    t = diffusion.sample_t(1000, t_min=0.25)
    assert t.dtype == torch.float64
    assert 0.25 <= t.min() < 0.3
    assert 0.95 < t.max() < 1
    spread = diffusion.sample_t(1000, low_discrepancy=True).sort().values
    gaps = spread.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1e-3), rtol=1e-9, atol=1e-12)
    generator = torch.Generator().manual_seed(1)
    first = diffusion.sample_t(3, generator=generator)
    assert torch.equal(first, diffusion.sample_t(3, generator=generator.manual_seed(1)))
    with pytest.raises(ValueError, match="t_min must lie in"):
        diffusion.sample_t(3, t_min=1.0)


def test_the_mean_of_the_density_is_the_bound_of_many_steps(family):
    """For data of one law, with a denoiser that does not know it."""
    make, _ = family
    schedule, logits = continuous.log_linear(1e-2), torch.tensor([0.5, 0.1, 0.3, -0.2, -torch.inf])
    many = 1000
    t = (torch.arange(many, dtype=torch.float64) + 0.5) / many
    chain, stepped = make(schedule), make(schedule.betas(many))
    from_x0 = torch.stack([chain.q_bar_matrix(time)[1] for time in t.tolist()])
    totals = []
    for transition, times in ((chain, t), (stepped, torch.arange(1, many + 1))):
        total = 0
        for x_t in range(K):
            reached = from_x0[:, x_t]
            counts = reached > 1e-12
            tokens = torch.full((int(counts.sum()), 1), x_t)
            loss = functional.loss(
                transition,
                logits.double().expand(*tokens.shape, K),
                torch.ones_like(tokens),
                tokens,
                times[counts],
                reduction="none",
            )
            total += (reached[counts] * loss[:, 0]).sum()
        totals.append(total / many if transition is chain else total)
    assert abs(totals[0] / totals[1] - 1) < 2e-2


def test_grids_of_times():
    assert d3.timesteps.grid(4) == [1.0, 0.75, 0.5, 0.25]
    cosine, log = d3.timesteps.grid(3, "cosine"), d3.timesteps.grid(3, "log", 1e-2)
    torch.testing.assert_close(torch.tensor(cosine), torch.tensor([1, 0.75**0.5, 0.5]))
    torch.testing.assert_close(torch.tensor(log), torch.tensor([1, 0.1, 0.01]))
    assert d3.timesteps.grid(1, "log") == [1.0]
    for call in (
        lambda: d3.timesteps.grid(3, "linear"),
        lambda: d3.timesteps.grid(0),
        lambda: d3.timesteps.grid(3, "log", 0.0),
    ):
        with pytest.raises(ValueError, match="must"):
            call()
