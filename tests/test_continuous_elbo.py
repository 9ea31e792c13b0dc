"""The bound in continuous time: against its integral by explicit matrices, and against paths."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers.chains import true_p_posterior
from helpers.continuous import FAMILIES, JUMP, K, make_continuous_chain, true_density
from helpers.laws import FALSE_ALARM
from helpers.moving import make_moving_chain
from helpers.paths import every_state, forward_law, model_law
from scipy import stats

import d3pm_fast as d3
from d3pm_fast import _files, evaluation, functional, transitions
from d3pm_fast.schedules import continuous

REVERSE = ["joint", "posterior_mean"]
TOKENS = 2
X0 = torch.tensor([0, 1])
STATES = every_state(K, TOKENS)
LINEAR = continuous.linear()
NODES, WEIGHTS = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(24))


def network(seed=0):
    """Logits that depend on t and on all tokens, of every state: ``(K^P, P, K)``."""
    generator = torch.Generator().manual_seed(seed)
    at_0, slope = torch.randn(2, *STATES.shape, K, dtype=torch.float64, generator=generator)
    return lambda t: at_0 + slope * t


def denoiser_of(logits_of):
    """The same as a denoiser."""
    at_0, at_1 = logits_of(0.0), logits_of(1.0)

    def denoise(x_t, t):
        state = x_t[:, 0] * K + x_t[:, 1]
        return at_0[state] + (at_1 - at_0)[state] * t[:, None, None]

    return denoise


class Truth:
    """The terms of a bound for X0: their means, and the variances of one draw of each."""

    def __init__(self, chain, logits_of, ends, reverse):
        self.chain, self.logits_of, self.reverse = chain, logits_of, reverse
        first = self.moments(self.negative_log_likelihoods(ends[0]), ends[0])
        means, variances = [first[0]], [(first[1] - first[0] ** 2) / 2]
        for low, high in itertools.pairwise(ends):
            moments = torch.zeros(2, dtype=torch.float64)
            for node, weight in zip(NODES, WEIGHTS, strict=True):
                t = float(low + (high - low) * (1 + node) / 2)
                moments += weight / 2 * self.moments(self.densities(t), t)
            length = high - low
            means.append(length * moments[0])
            variances.append(length**2 * (moments[1] - moments[0] ** 2))
        end = chain.product(0, 1.0)[X0]
        prior = torch.where(end > 0, end * (end / chain.law.where(end > 0, 1)).log(), 0).sum()
        self.means, self.variances, self.prior = torch.stack(means), torch.stack(variances), prior

    def moments(self, values, t):
        """Of a value of each x_t: the mean and the mean square."""
        number = int(X0[0] * K + X0[1])
        law = forward_law(self.chain, STATES, 0, t)[number]
        values = values.where(law > 0, 0)
        return torch.stack([law @ values, law @ values.square()])

    def densities(self, t):
        rows = self.logits_of(t)
        tokens = [
            true_density(
                self.chain, rows[:, n], X0[n].expand(len(STATES)), STATES[:, n], t, self.reverse
            )
            for n in range(TOKENS)
        ]
        return sum(tokens)

    def negative_log_likelihoods(self, t):
        rows, model = self.logits_of(t), {"reverse": self.reverse}
        steps = [
            true_p_posterior(self.chain, rows[:, n], STATES[:, n], 0, t, **model)[:, X0[n]]
            for n in range(TOKENS)
        ]
        return -sum(p.log() for p in steps)

    @property
    def bound(self):
        return self.means.sum() + self.prior


def parts(t_min, num_times):
    return torch.linspace(t_min, 1, num_times, dtype=torch.float64).tolist()


def estimates(chain, logits_of, num_times, t_min, reverse, count, seed=1):
    """The bound of X0, so many times."""
    diffusion = d3.D3PM(chain.transition, reverse)
    return diffusion.elbo(
        denoiser_of(logits_of),
        X0.expand(count, TOKENS),
        num_times=num_times,
        t_min=t_min,
        generator=torch.Generator().manual_seed(seed),
        batch_size=count,
    )


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("schedule", [continuous.linear(), continuous.log_linear(1e-2)], ids=repr)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_term_is_the_integral_of_its_part(family, schedule, reverse):
    chain, logits_of, t_min, count = make_continuous_chain(family, schedule), network(), 0.05, 8000
    truth = Truth(chain, logits_of, parts(t_min, 5), reverse)
    found = estimates(chain, logits_of, 5, t_min, reverse, count)
    critical = stats.norm.isf(FALSE_ALARM / 2 / 5)
    error = found.terms.mean(0) - truth.means
    assert (error.abs() < critical * found.terms.std(0) / count**0.5).all()
    torch.testing.assert_close(found.prior, truth.prior.expand(count), rtol=1e-12, atol=1e-14)
    assert found.times.tolist() == pytest.approx(parts(t_min, 5))
    assert found.times.dtype == torch.float64
    assert found.taken.all()


@pytest.mark.parametrize("num_times", [3, 40])
@pytest.mark.parametrize("family", ["uniform", "absorbing"])
def test_the_standard_error_is_that_of_the_sum(family, num_times):
    """Its square is on average the variance, and what it is known to be too large by."""
    chain, logits_of, t_min = make_continuous_chain(family, continuous.cosine()), network(), 0.02
    truth = Truth(chain, logits_of, parts(t_min, num_times), "joint")
    means, variance = truth.means[1:], truth.variances.sum()
    reported = variance + (means - means.roll(1)).square().sum() / 2
    assert num_times == 3 or reported < 1.02 * variance
    sets, size = 300, 64
    found = estimates(chain, logits_of, num_times, t_min, "joint", sets * size)
    error, square = found.nats - truth.bound, found.standard_error.square()
    critical = stats.norm.isf(FALSE_ALARM / 2 / 3)
    for sample, expected in ((error.square(), variance), (square, reported)):
        assert abs(sample.mean() - expected) < critical * sample.std() / len(sample) ** 0.5
    if num_times == 40:
        z = error.view(sets, size).sum(1) / square.view(sets, size).sum(1).sqrt()
        low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], sets)
        assert low < z.square().sum() < high


@pytest.mark.parametrize("t_min", [1e-3, 0.1, 0.6])
@pytest.mark.parametrize("schedule", [continuous.linear(), JUMP], ids=["linear", "jump"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_sum_does_not_depend_on_where_the_integral_ends(family, schedule, t_min):
    """Where the model is the true reverse process of a law of independent tokens."""
    chain = make_continuous_chain(family, schedule)
    law = torch.tensor([0.4, 0.25, 0.2, 0.15, 0.0], dtype=torch.float64)
    logits, count = law.log().expand(*STATES.shape, K), 20_000
    expected = -law[X0].log().sum()
    found = d3.D3PM(chain.transition).elbo(
        lambda x_t, t: logits[0].expand(len(x_t), TOKENS, K),
        X0.expand(count, TOKENS),
        num_times=9,
        t_min=t_min,
        generator=torch.Generator().manual_seed(2),
        batch_size=count,
    )
    limit = stats.norm.isf(FALSE_ALARM / 2) * found.nats.std() / count**0.5
    assert abs(found.nats.mean() - expected) < limit
    below = found.terms[:, 0].mean()
    assert t_min < 0.1 or below > 5 * limit  # it would be missed
    exact = Truth(chain, lambda t: logits, parts(t_min, 30), "joint").bound
    torch.testing.assert_close(exact, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("t_min", [0.02, 0.4])
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_no_less_than_the_negative_log_likelihood(family, reverse, t_min):
    """That of steps that are short down to t_min, by enumeration of every path."""
    chain, logits_of = make_continuous_chain(family, continuous.linear()), network(3)
    log_p = []
    for steps in (60, 120):
        times = [*torch.linspace(1, t_min, steps + 1, dtype=torch.float64).tolist(), 0]
        p = model_law(chain, logits_of, STATES, times, reverse=reverse)
        assert abs(p.sum() - 1) < 1e-10
        log_p.append(float(p[int(X0[0] * K + X0[1])].log()))
    limit = 2 * log_p[1] - log_p[0]  # the error falls like the length of a step
    rest = abs(limit - log_p[1])
    assert rest < 0.1
    gap = Truth(chain, logits_of, parts(t_min, 8), reverse).bound + limit
    assert gap > rest


@pytest.mark.parametrize("family", ["uniform", "absorbing", "gidd"])
def test_bounds_of_more_and_more_steps_lie_above_their_samplers(family):
    """Both by enumeration of every x_t; in the limit they are the integral, and the sampler's."""
    is_gidd, forbidden = family == "gidd", torch.zeros(K, dtype=torch.float64)
    make = make_moving_chain if is_gidd else partial(make_continuous_chain, schedule=LINEAR)
    chain, t_min, free = make(family), 0.05, network(5)
    if is_gidd:
        forbidden[chain.transition.mask_id] = -torch.inf

    def logits_of(t):
        return free(t) + forbidden

    number = int(X0[0] * K + X0[1])

    def mean(t, s):
        """Of the loss of X0, a term of the bound, or a density."""
        law = forward_law(chain, STATES, 0, t)[number]
        x0, times = X0.expand(len(STATES), TOKENS), torch.full((len(STATES),), t).double()
        s = None if s is None else torch.full_like(times, s)
        loss = functional.loss(
            chain.transition, logits_of(t), x0, STATES, times, s, reduction="batch"
        )
        return law @ loss.where(law > 0, 0)

    prior = functional.prior(chain.transition, X0[None])[0]
    bounds, samplers = [], []
    for steps in (8, 32, 128):
        times = [*torch.linspace(1, t_min, steps + 1, dtype=torch.float64).tolist(), 0.0]
        bounds.append(prior + sum(mean(t, s) for t, s in itertools.pairwise(times)))
        samplers.append(-model_law(chain, logits_of, STATES, times)[number].log())
        assert bounds[-1] > samplers[-1]
    pieces = itertools.pairwise(torch.linspace(t_min, 1, 5, dtype=torch.float64).tolist())
    integral = mean(t_min, 0.0) + sum(
        weight * (high - low) / 2 * mean(float(low + (high - low) * (1 + node) / 2), None)
        for low, high in pieces
        for node, weight in zip(NODES, WEIGHTS, strict=True)
    )
    gaps = [float(bound - prior - integral) for bound in bounds]
    assert 3 < gaps[1] / gaps[2] < 5  # they fall like the length of a step
    limit, rest = samplers[2] + (samplers[2] - samplers[1]) / 3, abs(samplers[2] - samplers[1])
    assert rest < 0.05
    assert prior + integral > limit + rest


def test_steps_have_the_bound_of_the_sampler_that_takes_them():
    schedule = continuous.cosine()
    x0, seeds = torch.randint(K, (6, 3)), torch.arange(6)
    logits = torch.randn(K, K, dtype=torch.float64)
    for make, _ in FAMILIES.values():
        pair = d3.D3PM(make(K, schedule)), d3.D3PM(make(K, schedule.betas(8)))
        x0 = x0.clamp(max=3)
        for steps, num_times in ((8, None), (8, 4)):
            found, expected = (
                d.elbo(lambda x_t, t: logits[x_t], x0, steps, num_times, seeds=seeds) for d in pair
            )
            torch.testing.assert_close(found.terms, expected.terms, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(found.times * 8, expected.times.double())
            assert torch.equal(found.taken, expected.taken)
        few = pair[0].elbo(lambda x_t, t: logits[x_t], x0, [1, 0.25])
        assert few.times.tolist() == [0.25, 1.0]
        assert few.standard_error is None


def test_an_item_depends_on_neither_the_batch_nor_the_calls():
    diffusion = d3.D3PM(transitions.mask_and_uniform(K, continuous.linear(), 2, data_has_mask=True))
    denoiser, x0, seeds = denoiser_of(network()), torch.randint(K, (6, 2)), torch.arange(6)
    options = {"num_times": 5}
    whole = diffusion.elbo(denoiser, x0, seeds=seeds, **options)
    for batch_size in (1, 5):
        again = diffusion.elbo(denoiser, x0, seeds=seeds, batch_size=batch_size, **options)
        assert torch.equal(again.terms, whole.terms)
    part = diffusion.elbo(denoiser, x0[[5, 0]], seeds=seeds[[5, 0]], **options)
    assert torch.equal(part.nats, whole.nats[[5, 0]])
    assert torch.equal(part.standard_error, whole.standard_error[[5, 0]])
    empty = diffusion.elbo(denoiser, x0[:0], **options)
    assert empty.terms.shape == (0, 5)
    assert empty.nats.shape == empty.standard_error.shape == (0,)


def test_padding_and_units():
    diffusion = d3.D3PM(transitions.absorbing(K, continuous.linear(), K - 1))
    x0, seeds = torch.tensor([[0, 99], [1, 2]]), torch.tensor([3, 4])
    logits, seen = torch.randn(K), []

    def denoiser(x_t, t):
        seen.append(x_t[t < 0.01])
        return logits.expand(*x_t.shape, K)

    mask = torch.tensor([[True, False], [True, True]])
    padded = diffusion.elbo(denoiser, x0, num_times=4, mask=mask, seeds=seeds)
    alone = diffusion.elbo(denoiser, x0[:1, :1], num_times=4, seeds=seeds[:1])
    assert torch.equal(padded.terms[:1], alone.terms)
    assert padded.num_tokens.tolist() == [1, 2]
    bits = padded.nats / math.log(2) / torch.tensor([1, 2])
    torch.testing.assert_close(padded.bits_per_dim, bits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "num_times or steps is needed"),
        ({"num_times": 2}, "num_times must be at least 3, got 2"),
        ({"num_times": 4, "t_min": 0.0}, r"t_min must lie in \(0, 1\), got 0.0"),
        ({"num_times": 4, "t_min": 1.0}, r"t_min must lie in \(0, 1\), got 1.0"),
        ({"steps": 4, "num_times": 5}, "num_times must be at most 4, got 5"),
        ({"steps": [0.5]}, "times must begin at T = 1.0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    diffusion = d3.D3PM(transitions.uniform(K, continuous.linear()))
    with pytest.raises(ValueError, match=message):
        diffusion.elbo(lambda x_t, t: torch.zeros(*x_t.shape, K), X0[None], **options)


def test_the_bound_of_a_data_set(tmp_path):
    diffusion = d3.D3PM(transitions.uniform(K, continuous.linear()))
    denoiser, path = denoiser_of(network()), tmp_path / "x"
    items = torch.randint(K, (5, TOKENS))
    options = {"num_times": 4, "save_every": 2}
    some = evaluation.evaluate(diffusion, denoiser, items[:3], path, **options)
    whole = evaluation.evaluate(diffusion, denoiser, items, path, **options)
    at_once = evaluation.evaluate(diffusion, denoiser, items, tmp_path / "y", num_times=4)
    assert torch.equal(some.terms, whole.terms[:3])
    for name in ("terms", "times", "standard_error", "bits_per_dim"):
        assert torch.equal(getattr(whole, name), getattr(at_once, name))
    assert _files.load(path, "file of bounds", {"settings"})["settings"]["t_min"] == 1e-3
    with pytest.raises(evaluation.OtherEvaluation, match=r"t_min = 0\.001, asked for is 0\.1"):
        evaluation.evaluate(diffusion, denoiser, items, path, t_min=0.1, **options)
    steps = evaluation.evaluate(diffusion, denoiser, items, tmp_path / "z", steps=3)
    torch.testing.assert_close(steps.times, torch.tensor([1, 2, 3]).double() / 3)
