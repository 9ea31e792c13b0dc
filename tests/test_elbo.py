"""The whole bound: true by enumeration of every path, and what it promises of its draws."""

import itertools
import math
import sys

import pytest
import torch
from helpers.chains import FAMILIES, FIRST_STEP, REVERSE, make_chain, one_hot
from helpers.dense_chains import DenseChain, make_dense_chain
from helpers.laws import FALSE_ALARM, assert_follows
from helpers.paths import (
    as_denoiser,
    every_state,
    exact_log_predictions,
    model_law,
    terms_of_every_state,
)
from scipy import stats

import d3pm_fast as d3
from benchmarks.memory import peak_bytes
from d3pm_fast import functional, timesteps, transitions

MIXING = torch.tensor([0.2, 0.1, 0.5, 1.0], dtype=torch.float64)  # x_T has forgotten x_0
DENSE = ["gaussian", "band", "sparse", "from_rate", "mixture", "with_mask"]
TOYS = [(family, 3, 2) for family in [*FAMILIES, *DENSE]]  # K classes, tokens
TOYS += [("absorbing_last", 4, 3), ("matrices", 2, 3)]


def make(family, num_classes):
    if family in FAMILIES:
        return make_chain(family, num_classes, MIXING)
    if family == "matrices":
        return forgetting_matrices(num_classes)
    return make_dense_chain(family, num_classes, MIXING)


def forgetting_matrices(num_classes):
    """Random matrices, the last of which has forgotten where it came from."""
    rows = torch.rand(4, num_classes, num_classes, dtype=torch.float64)
    rows[-1] = rows[-1, 0]
    matrices = rows / rows.sum(-1, keepdim=True)
    return DenseChain(transitions.from_matrices(matrices), matrices)


def random_law(num_states):
    return torch.softmax(torch.randn(num_states, dtype=torch.float64), dim=0)


def by_time(make_logits, num_steps):
    """Logits of each time, made once."""
    return {t: make_logits(t) for t in range(1, num_steps + 1)}.__getitem__


@pytest.mark.parametrize("steps", [None, 2, (4, 3, 1)])
@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize(("family", "num_classes", "num_tokens"), TOYS)
def test_its_expectation_is_no_less_than_the_negative_log_likelihood(
    family, num_classes, num_tokens, reverse, first_step, steps, monkeypatch
):
    chain, states = make(family, num_classes), every_state(num_classes, num_tokens)
    law = random_law(len(states))

    def make_logits(t):
        """Not quite what a perfect denoiser says, so that the bound is near the truth."""
        exact = exact_log_predictions(chain, law, states, t).clamp(min=-5)
        return exact + 0.2 * torch.randn_like(exact)

    logits_of = by_time(make_logits, 4)
    diffusion = d3.D3PM(chain.transition, reverse, first_step)
    found = terms_of_every_state(diffusion, chain, logits_of, states, steps, monkeypatch)
    terms, weights, prior = found
    bound = (terms * weights).sum((1, 2)) + prior
    model = {"reverse": reverse, "first_step": first_step}
    p = model_law(chain, logits_of, states, timesteps.path(4, steps), **model)
    assert abs(p.sum() - 1) < 1e-12
    assert bool((bound >= -p.log() - 1e-12).all())
    assert bound.isfinite().any()


@pytest.mark.parametrize("steps", [None, 1, 3])
@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", [*FAMILIES, "matrices", "with_mask"])
def test_it_is_the_negative_log_likelihood_where_the_model_is_the_true_reverse(
    family, reverse, first_step, steps, monkeypatch
):
    """One token. The posterior mean of the true ``q(x_0 | x_t)`` is the true reverse step; the
    joint step is where the prediction is the data's law, whatever x_t."""
    chain, states = make(family, 4), every_state(4, 1)
    law = random_law(4)

    def make_logits(t):
        last = t == timesteps.strided(4, steps)[-2]
        if reverse == "joint" and not (last and first_step == "logits"):
            return law.log().expand(4, 1, 4)
        return exact_log_predictions(chain, law, states, t)

    diffusion = d3.D3PM(chain.transition, reverse, first_step)
    found = terms_of_every_state(
        diffusion, chain, by_time(make_logits, 4), states, steps, monkeypatch
    )
    terms, weights, prior = found
    bound = (terms * weights).sum((1, 2)) + prior
    torch.testing.assert_close(bound, -law.log(), rtol=1e-10, atol=0)


def look_up(num_steps, num_classes, num_tokens, seed=0):
    """A denoiser that looks at everything, and its logits by time."""
    generator = torch.Generator().manual_seed(seed)
    shape = num_steps + 1, num_classes**num_tokens, num_tokens, num_classes
    table = torch.randn(shape, dtype=torch.float64, generator=generator)
    return as_denoiser(table.__getitem__, num_classes), table.__getitem__


@pytest.mark.parametrize("family", ["uniform", "gaussian"])
def test_each_x_t_follows_its_law_whatever_the_others(family):
    chain = make(family, 3)
    seen = []

    def denoiser(x_t, t):
        seen.append(x_t)
        return torch.zeros(*x_t.shape, 3)

    x0 = torch.tensor([[0, 2]]).expand(3000, 2)
    diffusion = d3.D3PM(chain.transition)
    diffusion.elbo(denoiser, x0, batch_size=3000, generator=torch.Generator().manual_seed(0))
    laws = [chain.product(0, t)[[0, 2]] for t in (1, 2, 3, 4)]
    assert_follows(torch.cat(seen, dim=1), torch.cat(laws))
    pairs = torch.cat([x * 3 + y for x, y in itertools.pairwise(seen)], dim=1)
    products = [x[:, :, None] * y[:, None, :] for x, y in itertools.pairwise(laws)]
    assert_follows(pairs, torch.cat(products).flatten(1))


def long_chain():
    betas = torch.linspace(0.05, 0.4, 10, dtype=torch.float64)
    return make_chain("uniform", 3, betas)


@pytest.mark.parametrize(
    ("steps", "num_times", "runs"),
    [
        (None, 3, [4, 5]),
        (None, 5, [2, 2, 2, 3]),
        (None, 9, [1, 1, 1, 1, 1, 1, 1, 2]),
        (6, 4, [1, 2, 2]),
        ((10, 7, 6, 2), 3, [1, 2]),
    ],
)
def test_an_estimate_is_unbiased_and_knows_its_error(steps, num_times, runs, monkeypatch):
    chain, states = long_chain(), every_state(3, 1)
    _, random_logits = look_up(10, 3, 1)

    def logits_of(t):
        """So that neighbouring steps are more alike than others."""
        return (2 if t < 6 else 0.1) * random_logits(t)

    denoiser = as_denoiser(logits_of, 3)
    diffusion = d3.D3PM(chain.transition, first_step="posterior")
    terms, weights, prior = terms_of_every_state(
        diffusion, chain, logits_of, states, steps, monkeypatch
    )
    terms, weights = terms[1], weights[1]
    mean = (terms * weights).sum(0)
    within = (weights * (terms - mean).square()).sum(0)
    cut = list(zip(mean[1:].split(runs), within[1:].split(runs), strict=True))
    held = torch.stack([m.sum() for m, _ in cut])
    variance = within[0] / 2 + sum(
        len(m) * (m.square() + w).sum() - m.sum().square() for m, w in cut
    )
    reported = variance + (held - held.roll(1)).square().sum() / 2

    count = 20_000
    x0 = torch.ones(count, 1, dtype=torch.int64)
    generator = torch.Generator().manual_seed(1)
    found = diffusion.elbo(
        denoiser, x0, steps, num_times, generator=generator, batch_size=2 * count
    )
    critical = stats.norm.isf(FALSE_ALARM / 2 / 3)
    error = found.nats - mean.sum() - prior[1]
    for sample, expected in (
        (error, 0),
        (error.square(), variance),
        (found.standard_error.square(), reported),
    ):
        assert abs(sample.mean() - expected) < critical * sample.std() / count**0.5
    taken = (found.terms != 0).long()
    assert taken[:, 0].all()
    for run in taken[:, 1:].split(runs, dim=1):
        assert (run.sum(1) == 1).all()
        assert_follows(run.argmax(1)[:, None], torch.full((1, run.shape[1]), 1 / run.shape[1]))


@pytest.mark.parametrize(("steps", "num_times"), [(None, 3), (None, 6), (None, 9), (7, 4)])
def test_an_estimate_is_the_bound_on_average_over_all_choices_of_steps(
    steps, num_times, monkeypatch
):
    diffusion = d3.D3PM(long_chain().transition)
    denoiser, _ = look_up(10, 3, 2)
    number = ((torch.arange(20, dtype=torch.float64) + 0.5) / 20)[:, None].repeat(1, 10)
    number[:, timesteps.path(10, steps)[-2] - 1] = 0.3  # the x_t of the whole bound, twice
    same = torch.full_like(number, 0.3)
    x0 = torch.tensor([[2, 0]]).expand(20, 2)

    def estimate(num_times):
        uniforms = number.flatten(), same.flatten()
        monkeypatch.setattr(sys.modules["d3pm_fast.elbo"], "uniforms", lambda *_: uniforms)
        return diffusion.elbo(denoiser, x0, steps, num_times)

    whole, some = estimate(None), estimate(num_times)
    for name in ("terms", "nats"):
        expected, found = getattr(whole, name), getattr(some, name).mean(0)
        torch.testing.assert_close(found, expected[0], rtol=1e-12, atol=0)


def test_an_item_depends_on_neither_the_batch_nor_the_calls():
    diffusion = d3.D3PM(make("mask_and_uniform", 3).transition)
    denoiser, _ = look_up(4, 3, 2)
    x0, seeds = torch.randint(3, (6, 2)), torch.arange(6)
    for options in ({}, {"num_times": 3}, {"steps": 2}):
        whole = diffusion.elbo(denoiser, x0, seeds=seeds, **options)
        for batch_size in (1, 5):
            again = diffusion.elbo(denoiser, x0, seeds=seeds, batch_size=batch_size, **options)
            assert torch.equal(again.terms, whole.terms)
        for some in ([4], [5, 0, 2]):
            part = diffusion.elbo(denoiser, x0[some], seeds=seeds[some], **options)
            assert torch.equal(part.terms, whole.terms[some])
            assert torch.equal(part.nats, whole.nats[some])


def test_an_estimate_takes_its_terms_from_the_whole_sum():
    diffusion = d3.D3PM(long_chain().transition)
    denoiser, _ = look_up(10, 3, 2)
    x0, seeds = torch.randint(3, (5, 2)), torch.arange(5)
    whole = diffusion.elbo(denoiser, x0, seeds=seeds)
    some = diffusion.elbo(denoiser, x0, seeds=seeds, num_times=4)
    drawn = some.terms != 0
    drawn[:, 0] = False
    assert (drawn.sum(1) == 3).all()
    torch.testing.assert_close(some.terms[drawn], whole.terms[drawn] * 3, rtol=1e-12, atol=0)
    torch.testing.assert_close(some.nats, some.terms.sum(1) + some.prior, rtol=1e-12, atol=0)
    assert whole.standard_error is None
    assert some.standard_error.shape == (5,)
    assert diffusion.elbo(denoiser, x0, num_times=10).standard_error is None
    assert diffusion.elbo(denoiser, x0, steps=2, num_times=2).standard_error is None


def test_padding_changes_nothing_and_is_not_counted():
    chain = make("absorbing_last", 4).transition
    diffusion = d3.D3PM(chain)
    logits = torch.randn(4, 4)

    def denoiser(x_t, t):
        seen.extend(x_t[x_t[:, -1] > 3].tolist())
        return logits[x_t.clamp(0, 3)]

    seen = []
    seeds = torch.tensor([3, 4])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x0 = torch.tensor([[0, 1, 99], [2, -7, 99]])
    padded = diffusion.elbo(denoiser, x0, mask=mask, seeds=seeds)
    assert {tuple(row[2:]) for row in seen} == {(99,)}
    assert {row[1] for row in seen} >= {-7}
    for item, length in ((0, 2), (1, 1)):
        one = slice(item, item + 1)
        alone = diffusion.elbo(denoiser, x0[one, :length], seeds=seeds[one])
        assert torch.equal(alone.terms, padded.terms[one])
        assert torch.equal(alone.bits_per_dim, padded.bits_per_dim[one])
    assert padded.num_tokens.tolist() == [2, 1]


def test_its_sums_are_float64_and_its_units_are_nats_and_bits():
    diffusion = d3.D3PM(make_chain("uniform", 5).transition)
    x0, seeds = torch.randint(5, (3, 2, 4)), torch.arange(3)
    seen = []

    def denoiser(x_t, t):
        logits = torch.randn(*x_t.shape, 5)
        seen.append(diffusion.loss(logits, x0, x_t, t, reduction="none"))
        return logits

    found = diffusion.elbo(denoiser, x0, seeds=seeds, batch_size=3)
    terms = torch.stack([tokens.double().sum((1, 2)) for tokens in seen], dim=1)
    assert torch.equal(found.terms, terms)
    assert torch.equal(found.prior, diffusion.prior(x0))
    torch.testing.assert_close(found.nats, terms.sum(1) + found.prior, rtol=1e-15, atol=0)
    torch.testing.assert_close(found.bits_per_dim, found.nats / 8 / math.log(2))
    assert found.times.tolist() == [1, 2, 3, 4, 5, 6]
    assert found.nats.dtype == torch.float64
    assert diffusion.elbo(denoiser, x0, steps=3, batch_size=3).times.tolist() == [2, 4, 6]


def test_a_denoiser_may_give_the_parameters_of_a_logistic():
    diffusion = d3.D3PM(make("gaussian", 16).transition)
    x0, seeds = torch.randint(16, (3, 5)), torch.arange(3)

    def parameters(x_t, t):
        return x_t / 8 - 1, torch.ones(x_t.shape)

    def logits(x_t, t):
        return functional.logistic_logits(*parameters(x_t, t), 16)

    found = diffusion.elbo(parameters, x0, seeds=seeds)
    expected = diffusion.elbo(logits, x0, seeds=seeds)
    torch.testing.assert_close(found.terms, expected.terms, rtol=1e-6, atol=0)


@pytest.mark.parametrize("positions", [(), (4,), (2, 2)])
def test_position_axes_and_integer_dtypes_are_all_alike(positions):
    diffusion = d3.D3PM(make("uniform", 3).transition)
    x0 = torch.randint(3, (2, *positions), dtype=torch.uint8)
    found = diffusion.elbo(lambda x_t, t: one_hot(x_t, 3), x0, progress=True)
    assert found.terms.shape == (2, 4)
    assert found.num_tokens.tolist() == [math.prod(positions)] * 2
    empty = diffusion.elbo(lambda x_t, t: one_hot(x_t, 3), x0[:0])
    assert empty.terms.shape == (0, 4)
    estimate = diffusion.elbo(lambda x_t, t: one_hot(x_t, 3), x0[:0], num_times=3)
    assert estimate.standard_error.shape == (0,)


def test_it_keeps_no_graph():
    weight = torch.zeros(3, requires_grad=True)
    diffusion = d3.D3PM(make("uniform", 3).transition)
    found = diffusion.elbo(lambda x_t, t: weight.expand(*x_t.shape, 3), torch.zeros(2, 4).long())
    assert not found.nats.requires_grad


def test_its_memory_grows_with_t_by_the_terms_alone():
    x0, logits = torch.zeros(4, 200, dtype=torch.int64), torch.zeros(4, 200, 32)

    def peak(num_steps):
        diffusion = d3.D3PM(transitions.uniform(32, d3.schedules.cosine(num_steps)))
        return peak_bytes(lambda: diffusion.elbo(lambda x_t, t: logits, x0, batch_size=4))

    more = peak(100) - peak(10)
    assert more < 30 * 4 * 90 * 8  # a Philox draw has some 20 integers a number
    assert more < logits.nbytes


def bad_calls():
    x0 = torch.zeros(2, 3, dtype=torch.int64)
    seeds = torch.zeros(2, dtype=torch.int64)
    yield {"num_times": 5}, x0, ValueError, "num_times must be at most 4, got 5"
    yield {"num_times": 3, "steps": 2}, x0, ValueError, "num_times must be at most 2, got 3"
    yield {"num_times": 2}, x0, ValueError, "num_times must be at least 3, got 2"
    yield {"num_times": 1, "steps": 2}, x0, ValueError, "num_times must be at least 2, got 1"
    yield {"steps": 5}, x0, ValueError, "steps must be at most T = 4, got 5"
    yield {"batch_size": 0}, x0, ValueError, "batch_size must be at least 1, got 0"
    yield {"mask": x0}, x0, TypeError, "mask must be a bool tensor"
    yield {"seeds": seeds[:1]}, x0, ValueError, r"seeds must have shape \(2,\), got \(1,\)"
    yield {"seeds": seeds, "generator": torch.Generator()}, x0, ValueError, "not both"
    yield {}, x0.double(), TypeError, "x0 must be an integer tensor"
    yield {}, x0 + 3, IndexError, r"x0 must lie in \[0, 3\), got 3"


@pytest.mark.parametrize(("options", "x0", "error", "message"), list(bad_calls()))
def test_bad_arguments_are_named(options, x0, error, message):
    diffusion = d3.D3PM(make("uniform", 3).transition)
    with pytest.raises(error, match=message):
        diffusion.elbo(lambda x_t, t: one_hot(x_t, 3), x0, **options)
