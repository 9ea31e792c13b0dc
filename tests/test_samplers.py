"""The samplers of absorbing chains: the first-hitting one's law, the confident one's order."""

import itertools

import pytest
import torch
from helpers.chains import FIRST_STEP, REVERSE, make_chain, one_hot, true_p_posterior
from helpers.continuous import JUMP, make_continuous_chain
from helpers.laws import assert_follows, assert_rate
from helpers.paths import as_denoiser, every_state, exact_log_predictions, model_law, product_law
from scipy import stats

import d3pm_fast as d3
from d3pm_fast import timesteps
from d3pm_fast.samplers import confidence, first_hitting
from d3pm_fast.schedules import continuous

BETAS = torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64)
K, T, TOKENS, DRAWS = 4, 3, 2, 10_000
FAMILIES = ["absorbing_first", "absorbing_middle", "absorbing_last"]


def random_table(chain, num_tokens=TOKENS):
    """Logits of every time and state that never predict the mask, ``(T + 1, K^P, P, K)``."""
    k = chain.num_classes
    table = torch.randn(chain.num_steps + 1, k**num_tokens, num_tokens, k, dtype=torch.float64)
    table[..., chain.transition.mask_id] = -torch.inf
    return table


def numbers(x, num_classes=K):
    return sum(x[:, n] * num_classes ** (x.shape[1] - 1 - n) for n in range(x.shape[1]))[:, None]


def law_of_hits(chain, table, times, num_tokens):
    """``p(x_0)`` of every state: the sum over all steps that the tokens may be unmasked in.

    With ``first_step="posterior"``; a token's step from t to s has the probability
    ``(abar_s - abar_t) / (1 - abar_T)`` of its own.
    """
    k, mask = chain.num_classes, chain.transition.mask_id
    states = every_state(k, num_tokens)
    bars = torch.cat([torch.ones(1).double(), (1 - chain.betas).cumprod(0)])
    steps = list(itertools.pairwise(times))
    chances = [(bars[s] - bars[t]) / (1 - bars[times[0]]) for t, s in steps]
    law = torch.zeros(len(states), dtype=torch.float64)
    for hits in itertools.product(range(len(steps)), repeat=num_tokens):
        state = (states == mask).all(1).double()
        for n, (t, _) in enumerate(steps):
            moves = torch.tensor([hit == n for hit in hits])[:, None]
            drawn = table[t].softmax(-1).where(moves, one_hot(states, k))
            state = state @ product_law(drawn, states)
        law += state * torch.stack([chances[hit] for hit in hits]).prod()
    return law


@pytest.mark.parametrize("steps", [None, 2, (3, 1)])
@pytest.mark.parametrize(("num_classes", "num_tokens"), [(4, 2), (3, 3), (2, 1)])
def test_drawing_the_steps_first_changes_no_law(num_classes, num_tokens, steps):
    """Enumerated both ways, without a number drawn."""
    chain = make_chain("absorbing_last", num_classes, BETAS)
    table, times = random_table(chain, num_tokens), timesteps.path(T, steps)
    states = every_state(num_classes, num_tokens)
    model = {"reverse": "joint", "first_step": "posterior"}
    expected = model_law(chain, table.__getitem__, states, times, **model)
    found = law_of_hits(chain, table, times, num_tokens)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("steps", [None, 1, (3, 1)])
@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_first_hitting_has_the_ancestral_law(family, reverse, first_step, steps):
    chain, states = make_chain(family, K, BETAS), every_state(K, TOKENS)
    table, model = random_table(chain), {"reverse": reverse, "first_step": first_step}
    law = model_law(chain, table.__getitem__, states, timesteps.path(T, steps), **model)
    diffusion = d3.D3PM(chain.transition, **model)
    x = first_hitting(
        diffusion,
        as_denoiser(table.__getitem__, K),
        (DRAWS, TOKENS),
        steps=steps,
        generator=torch.Generator().manual_seed(1),
    )
    assert_follows(numbers(x), law[None])


@pytest.mark.parametrize("first_step", FIRST_STEP)
def test_first_hitting_may_end_with_the_likeliest_class(first_step):
    chain, states = make_chain("absorbing_last", K, BETAS), every_state(K, TOKENS)
    table, model = random_table(chain), {"reverse": "joint", "first_step": first_step}
    rows = [
        true_p_posterior(chain, table[1, :, n], states[:, n], 0, 1, **model) for n in range(TOKENS)
    ]
    likeliest = one_hot(torch.stack(rows, dim=1).argmax(-1), K)
    law = model_law(chain, table.__getitem__, states, [3, 2, 1], **model)
    x = first_hitting(
        d3.D3PM(chain.transition, **model),
        as_denoiser(table.__getitem__, K),
        (DRAWS, TOKENS),
        last="argmax",
        generator=torch.Generator().manual_seed(2),
    )
    assert_follows(numbers(x), (law @ product_law(likeliest, states))[None])


def test_first_hitting_draws_rare_classes_at_their_rate(cpu):
    chain = d3.transitions.absorbing(4, BETAS, 3)
    draws = 1_000_000
    logits = torch.tensor([1.0, 1e-6, 1e-5, 0.0]).log()
    x = first_hitting(
        d3.D3PM(chain, first_step="posterior", impl=cpu),
        lambda x_t, t: logits.expand(*x_t.shape, 4),
        (2, draws // 2),
        generator=torch.Generator().manual_seed(0),
    )
    counts = torch.bincount(x.flatten(), minlength=4)
    assert counts[3] == 0
    assert_rate(int(counts[1]), draws * 1e-6)
    assert_rate(int(counts[2]), draws * 1e-5)


def test_first_hitting_calls_the_denoiser_once_for_a_step_that_unmasks():
    """Many steps, few tokens: as many calls as tokens; every item at its own falling times."""
    chain, (batch, tokens) = d3.transitions.absorbing(3, d3.schedules.jsd(5000), 2), (7, 6)
    called, left = [], []

    def denoiser(x_t, t):
        called.append((x_t, t))
        return torch.tensor([0.0, 0.0, -torch.inf]).expand(*x_t.shape, 3)

    first_hitting(
        d3.D3PM(chain),
        denoiser,
        (batch, tokens),
        seeds=torch.arange(batch),
        callback=lambda x, n: left.append((n, int((x == 2).sum()))),
    )
    assert len(called) == tokens + 1
    for (x_t, t), (later, sooner) in itertools.pairwise(called[:-1]):
        assert len(x_t) == batch
        assert (sooner < t).all()
        assert ((x_t != later).sum(1) == 1).all()
    assert [n for n, _ in left] == list(range(tokens + 1, -1, -1))
    assert [masked for _, masked in left] == [batch * n for n in range(tokens, -1, -1)] + [0]


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("sampler", [first_hitting, confidence])
def test_the_others_are_filled_in_by_the_conditional_law(sampler, first_step):
    """One token is left, so that its order does not count."""
    chain, states = make_chain("absorbing_last", K, BETAS), every_state(K, TOKENS)
    law = torch.zeros(K, K, dtype=torch.float64)
    law[:3, :3] = torch.tensor([[0.30, 0.00, 0.10], [0.05, 0.20, 0.05], [0.00, 0.05, 0.25]])
    predictions = [exact_log_predictions(chain, law.flatten(), states, t) for t in range(T + 1)]
    given = torch.tensor([0, 1, 2]).repeat(8_000)
    tokens = torch.stack([torch.zeros_like(given), given], dim=1)
    x = sampler(
        d3.D3PM(chain.transition, first_step=first_step),
        as_denoiser(predictions.__getitem__, K),
        tuple(tokens.shape),
        generator=torch.Generator().manual_seed(3),
        known=(tokens, torch.tensor([[False, True]]).expand_as(tokens)),
    )
    assert torch.equal(x[:, 1], given)
    assert_follows(x[:, 0].view(-1, 3), (law[:, :3] / law[:, :3].sum(0)).T)


def by_position(sharpness):
    """A denoiser that says 1 of 4 classes, the surer the greater the token's sharpness."""

    def denoiser(x_t, t):
        logits = torch.zeros(*x_t.shape, K, dtype=sharpness.dtype)
        logits[..., 1] = sharpness
        logits[..., 3] = -torch.inf
        return logits

    return denoiser


def unmasked_sets(sharpness, **options):
    """Which tokens are unmasked before each step, of 500 items; steps of one token each."""
    tokens = len(sharpness)
    diffusion = d3.D3PM(d3.transitions.absorbing(K, d3.schedules.jsd(tokens), 3))
    seen = []
    options |= {"callback": lambda x, s: seen.append(x != 3), "seeds": torch.arange(500)}
    x = confidence(diffusion, by_position(sharpness), (500, tokens), **options)
    assert (x != 3).all()
    assert [n for state in seen for n in state.sum(1).unique()] == list(range(tokens + 1))
    return seen


def test_the_surest_tokens_are_unmasked_first():
    sharpness = torch.tensor([22.0, 30.0, 24.0, 28.0, 26.0], dtype=torch.float64)
    seen = unmasked_sets(sharpness, noise=0.0)
    for n, state in enumerate(seen):
        expected = torch.zeros(5, dtype=torch.bool)
        expected[sharpness.argsort(descending=True)[:n]] = True
        assert (state == expected).all()


def test_much_noise_leaves_the_order_to_chance():
    first = unmasked_sets(torch.zeros(5), noise=1e6)[1].long().argmax(1)
    assert_follows(first[:, None], torch.full((1, 5), 0.2))


@pytest.mark.parametrize("remask", [False, True])
def test_tokens_are_masked_again_only_where_asked_for(remask):
    seen = unmasked_sets(torch.full((6,), 1.5), noise=0.0, remask=remask)
    again = sum(int((before & ~after).sum()) for before, after in itertools.pairwise(seen))
    assert (again > 0) == remask


@pytest.mark.parametrize("steps", [1, 3])
def test_as_many_tokens_are_masked_as_the_chain_would(steps):
    chain = d3.transitions.absorbing(K, d3.schedules.cosine(30), 3)
    bars = (1 - d3.schedules.cosine(30)).cumprod(0)
    known = torch.zeros(4, 40, dtype=torch.int64), torch.arange(40).expand(4, 40) < 9
    masked = {}
    confidence(
        d3.D3PM(chain),
        by_position(torch.randn(40)),
        (4, 40),
        steps=steps,
        known=known,
        callback=lambda x, s: masked.__setitem__(s, (x == 3).sum(1)),
    )
    assert list(masked) == timesteps.strided(30, steps)
    for s, count in masked.items():
        share = (1 - bars[s - 1]) / (1 - bars[-1]) if s else 0
        assert (count == round(31 * float(share))).all()


@pytest.mark.parametrize("sampler", [first_hitting, confidence])
def test_items_do_not_depend_on_the_batch(sampler, impl):
    chain = make_chain("absorbing_last", K, BETAS)
    table = random_table(chain)
    diffusion, denoiser = d3.D3PM(chain.transition, impl=impl), as_denoiser(table.__getitem__, K)
    whole = sampler(diffusion, denoiser, (8, 2), generator=torch.Generator().manual_seed(3))
    again = torch.Generator().manual_seed(3)
    parts = [sampler(diffusion, denoiser, (n, 2), generator=again) for n in (3, 5)]
    assert torch.equal(torch.cat(parts), whole)
    seeds = d3.draw_seeds(8, torch.Generator().manual_seed(3))[[6, 2]]
    assert torch.equal(sampler(diffusion, denoiser, (2, 2), seeds=seeds), whole[[6, 2]])


def test_every_implementation_serves_them(kernels):
    """On one item of few tokens: who acts a GPU is slow."""
    chain = d3.transitions.absorbing(K, BETAS, 3)
    denoiser = by_position(torch.arange(3.0))
    drawn = [
        confidence(d3.D3PM(chain, impl=impl), denoiser, (1, 3), seeds=torch.arange(1))
        for impl in ("reference", kernels)
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("shape", [(4,), (0, 3), (3, 0), (2, 3, 2)])
@pytest.mark.parametrize("sampler", [first_hitting, confidence])
def test_any_shape_of_tokens(sampler, shape):
    logits = torch.tensor([0.0, 0.0, 0.0, -torch.inf])
    diffusion = d3.D3PM(d3.transitions.absorbing(K, BETAS, 3))
    x = sampler(diffusion, lambda x_t, t: logits.expand(*x_t.shape, K), shape, progress=True)
    assert x.shape == shape
    assert (x != 3).all()


@pytest.mark.parametrize("sampler", [first_hitting, confidence])
@pytest.mark.parametrize("family", ["uniform", "mask_and_uniform"])
def test_other_chains_are_refused(family, sampler):
    diffusion = d3.D3PM(make_chain(family, K, BETAS).transition)
    with pytest.raises(ValueError, match=f"the chain must be absorbing, got {family}"):
        sampler(diffusion, None, (2, 3))


def continuous_law(chain, logits_of, times):
    """``p(x_0)`` of every state by the chain of steps at these times."""
    states = every_state(chain.num_classes, TOKENS)
    return model_law(chain, logits_of, states, times, reverse="joint", first_step="posterior")


def moving_logits():
    """Logits that change with t and never predict the mask, and the same as a denoiser."""
    at_0, slope = torch.randn(2, 25, TOKENS, 5, dtype=torch.float64)
    at_0[..., 4] = -torch.inf

    def denoiser(x_t, t):
        assert t.dtype == torch.float64
        state = numbers(x_t, 5)[:, 0]
        return at_0[state] + 3 * slope[state] * t[:, None, None]

    return lambda t: at_0 + 3 * slope * t, denoiser


@pytest.mark.parametrize("steps", [4, (1.0, 0.3), None])
@pytest.mark.parametrize("schedule", [continuous.cosine(), JUMP], ids=["cosine", "jump"])
def test_first_hitting_in_continuous_time(schedule, steps):
    """The ancestral law of the same times, or of ever shorter steps where there are none."""
    chain = make_continuous_chain("absorbing", schedule)
    logits_of, denoiser = moving_logits()
    times = timesteps.path(None, 400 if steps is None else steps)
    law = continuous_law(chain, logits_of, times)
    if steps is None:  # their error falls like their length
        law = 2 * law - continuous_law(chain, logits_of, timesteps.path(None, 200))
    left = []
    x = first_hitting(
        d3.D3PM(chain.transition),
        denoiser,
        (DRAWS, TOKENS),
        steps=steps,
        generator=torch.Generator().manual_seed(1),
        callback=lambda x, n: left.append(n),
    )
    assert_follows(numbers(x, 5), law[None])
    assert left == ([2, 1, 0] if steps == (1.0, 0.3) else [3, 2, 1, 0])


def test_the_times_of_tokens_have_the_law_of_the_schedule():
    """And a batch of them is drawn as its items are alone."""
    diffusion, seen = d3.D3PM(d3.transitions.absorbing(K, continuous.cosine(), 3)), []

    def denoiser(x_t, t):
        seen.append(t)
        return torch.tensor([0.0, 0.0, 0.0, -torch.inf]).expand(*x_t.shape, K)

    x = first_hitting(diffusion, denoiser, (5000, 1), seeds=torch.arange(5000))
    times, last = seen
    lost = continuous.cosine().one_minus_alpha(times)  # uniform
    assert stats.kstest(lost.numpy(), "uniform").pvalue > 1e-3
    assert (last == 2.0**-53).all()
    some = first_hitting(diffusion, denoiser, (2, 1), seeds=torch.tensor([70, 4]))
    assert torch.equal(some, x[[70, 4]])


@pytest.mark.parametrize("remask", [False, True])
@pytest.mark.parametrize("steps", [5, timesteps.grid(4, "cosine")])
def test_confidence_masks_as_many_as_a_schedule_of_continuous_time(steps, remask):
    schedule = continuous.cosine_maskgit()
    masked, sharpness = {}, torch.randn(30)
    x = confidence(
        d3.D3PM(d3.transitions.absorbing(K, schedule, 3)),
        by_position(sharpness),
        (4, 30),
        steps=steps,
        remask=remask,
        callback=lambda x, s: masked.__setitem__(s, (x == 3).sum(1)),
    )
    assert list(masked) == timesteps.path(None, steps)
    for s, count in masked.items():
        assert (count == round(30 * float(schedule.one_minus_alpha(s)))).all()
    assert (x != 3).all()


def test_confidence_is_that_of_a_chain_of_steps():
    """The same order and classes, from the same random numbers."""
    schedule, logits = continuous.cosine(), by_position(torch.randn(12))
    chains = (d3.transitions.absorbing(K, betas, 3) for betas in (schedule, schedule.betas(6)))
    found, expected = (
        confidence(d3.D3PM(chain), logits, (50, 12), steps=6, seeds=torch.arange(50))
        for chain in chains
    )
    assert torch.equal(found, expected)


def test_confidence_needs_steps():
    diffusion = d3.D3PM(d3.transitions.absorbing(K, continuous.linear(), 3))
    with pytest.raises(ValueError, match="steps is needed"):
        confidence(diffusion, None, (1, 2))
