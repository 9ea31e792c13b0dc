"""Samplers that choose which tokens to unmask: against loops over tokens, on the same draws."""

import math

import pytest
import torch
from helpers.laws import assert_follows

import d3pm_fast as d3
from d3pm_fast import functional, schedules, timesteps
from d3pm_fast.functional import Shaped
from d3pm_fast.samplers import Transcript, unmask
from d3pm_fast.schedules import continuous

K, B, P, T = 6, 5, 9, 12
MASK = K - 1
DISCRETE = d3.transitions.absorbing(K, schedules.jsd(T), MASK)
CONTINUOUS = d3.transitions.absorbing(K, continuous.cosine(), MASK)
PROMPTS = torch.randint(K - 1, (B, P)), torch.arange(P) < torch.tensor([0, 2, 5, 8, 9])[:, None]
INFILLED = torch.randint(K - 1, (B, P)), torch.rand(B, P) < 0.4


def denoiser_of(seed=0):
    """Logits that depend on all tokens of an item and on the time."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(P, K, P, K, generator=generator, dtype=torch.float64)

    def denoiser(x_t, t):
        seen = torch.nn.functional.one_hot(x_t, K).double()
        return torch.einsum("bpk,pkql->bql", seen, weights) * (1 + t.double().view(-1, 1, 1) / 20)

    return denoiser


def slow_unmask(chain, denoiser, seeds, known=None, **options):
    """An item at a time, a token at a time; returns x and when each token was unmasked."""
    results = []
    for n, seed in enumerate(seeds):
        tokens, held = (None, [False] * P) if known is None else (known[0][n], known[1][n].tolist())
        results.append(slow_item(chain, denoiser, seed, tokens, held, **options))
    return tuple(torch.tensor(each) for each in zip(*results, strict=True))


def slow_item(
    chain, denoiser, seed, tokens, held, steps=None, order="confidence", threshold=None,
    entropy_bound=None, block=P, take="sample", remask=False, shaped=None,
):  # fmt: skip
    x = [int(tokens[p]) if held[p] else MASK for p in range(P)]
    free = [p for p in range(P) if not held[p]]
    adapts = steps is None and (threshold is not None or entropy_bound is not None)
    times = None if adapts else timesteps.path(chain.num_steps, steps)
    num_blocks = -(-P // block)
    of_block = min(block, P) if adapts else len(times) - 1
    when, sure, call = [-1] * P, {}, 0
    all_times = range(1, T + 1) if chain.has_steps else None
    for number in range(num_blocks):
        here = [p for k, p in enumerate(free) if k // block == number]
        for turn in range(of_block):
            masked = [p for p in here if x[p] == MASK]
            if masked:
                t = times[turn] if times and num_blocks == 1 else None
                if t is None:
                    share = sum(x[p] == MASK for p in free) / len(free)
                    t = first_time(chain, share, all_times)
                t = torch.tensor([t], dtype=chain.time_dtype)
                logits = denoiser(torch.tensor([x]), t)
                drawn, facts = slow_predictions(
                    chain, logits, x, t, seed, num_blocks * of_block - call, take, shaped
                )
                for p in masked:
                    sure[p] = facts[p][order]
                opens = here if remask else masked
                ranked = sorted(opens, key=lambda p: -sure[p])
                count = 1
                if times:
                    stay = round(len(here) * share_at(chain, times[turn + 1]))
                    count = len(opens) - stay
                chosen = set(ranked[: max(count, 0)])
                if threshold is not None:
                    chosen |= {p for p in opens if p in masked and facts[p]["p_max"] >= threshold}
                    chosen |= {p for p in opens if p not in masked}
                if entropy_bound is not None:
                    before = 0.0
                    for p in ranked:
                        if before <= entropy_bound:
                            chosen.add(p)
                        before += -facts[p]["entropy"]
                for p in opens:
                    new = (drawn[p] if p in masked else x[p]) if p in chosen else MASK
                    if new != x[p]:
                        when[p] = call
                    x[p] = new
            call += 1
    return x, when


def share_at(chain, t):
    masked = [
        float(chain.product_coefficients(torch.tensor([time], dtype=chain.time_dtype))[0, 2])
        for time in (t, T if chain.has_steps else 1.0)
    ]
    return masked[0] / masked[1]


def first_time(chain, share, all_times):
    if all_times is not None:
        return next(t for t in all_times if share_at(chain, t) >= share)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share_at(chain, middle) <= share else (low, middle)
    return high


def slow_predictions(chain, logits, x, t, seed, step, take, shaped):
    """What each token is drawn as, and what orders go by, from the whole softmax."""
    logits = logits.clone()
    logits[..., MASK] = -math.inf
    given = logits if shaped is None else Shaped(logits, **shaped)
    drawn = functional.p_sample(
        chain, given, torch.tensor([x]), t, 0 * t, first_step="logits", seeds=seed[None], step=step
    )[0]
    raw = logits[0].log_softmax(-1)
    law = raw if shaped is None else (logits[0] / shaped["temperature"]).log_softmax(-1)
    if take == "argmax":
        drawn = raw.argmax(-1)
    facts = []
    for p in range(P):
        first, second = raw[p].exp().sort(descending=True).values[:2].tolist()
        entropy = -float(torch.special.entr(raw[p].exp()).sum())
        facts.append(
            {
                "confidence": float(law[p, drawn[p]]),
                "raw_confidence": float(raw[p, drawn[p]]),
                "margin": first - second,
                "entropy": entropy,
                "p_max": first,
            }
        )
    return drawn.tolist(), facts


CASES = {
    "all steps": {},
    "few steps": {"steps": 4},
    "times": {"steps": (12, 5, 2)},
    "raw": {"steps": 5, "order": "raw_confidence", "shaped": {"temperature": 3.0}},
    "hot": {"steps": 5, "shaped": {"temperature": 3.0}},
    "margin": {"steps": 5, "order": "margin"},
    "entropy, argmax": {"steps": 5, "order": "entropy", "take": "argmax"},
    "masked again": {"steps": 6, "remask": True},
    "threshold": {"threshold": 0.9},
    "threshold and steps": {"threshold": 0.9, "steps": 3},
    "masked again, threshold": {"threshold": 0.7, "steps": 6, "remask": True},
    "bound": {"entropy_bound": 0.4, "order": "entropy"},
    "no bound": {"entropy_bound": 100.0},
    "blocks": {"steps": 2, "block": 4},
    "blocks of one": {"steps": 1, "block": 1},
    "blocks, threshold": {"threshold": 0.8, "block": 3, "take": "argmax"},
    "blocks, bound": {"entropy_bound": 0.2, "block": 2, "order": "entropy"},
}


@pytest.mark.parametrize("known", [None, PROMPTS, INFILLED], ids=["none", "prompts", "infilled"])
@pytest.mark.parametrize("chain", [DISCRETE, CONTINUOUS], ids=["steps", "continuous"])
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_slow_one(name, chain, known):
    options, seeds, denoiser = dict(CASES[name]), torch.arange(B) + 7, denoiser_of()
    if chain is CONTINUOUS:
        if name == "all steps":
            options["steps"] = 12
        if name == "times":
            options["steps"] = (1.0, 0.7, 0.2)
    expected, when = slow_unmask(chain, denoiser, seeds, known, **options)
    shaped, record = options.pop("shaped", None), Transcript()
    given = denoiser
    if shaped is not None:

        def given(x_t, t):
            return Shaped(denoiser(x_t, t), **shaped)

    more = {"known": known, "seeds": seeds, "record": record}
    x = unmask(d3.D3PM(chain), given, (B, P), **options, **more)
    assert torch.equal(x, expected)
    assert torch.equal(record.call, when)
    unknown = torch.ones(B, P).bool() if known is None else ~known[1]
    assert bool((record.log_prob[unknown] < 0).all())
    assert bool((record.log_prob[~unknown] == 0).all())


def test_the_random_order_is_one_of_all():
    """Which of three tokens comes first: a third of the items each, whatever is predicted."""
    chain = d3.transitions.absorbing(4, schedules.jsd(3), 3)
    logits = torch.tensor([[9.0, 0, 0, 0], [0, 0, 0, 0], [1.0, 0, 0, 0]])
    record = Transcript()
    unmask(
        d3.D3PM(chain), lambda x_t, t: logits.expand(*x_t.shape, 4), (3000, 3),
        order="random", seeds=torch.arange(3000), record=record,
    )  # fmt: skip
    counts = torch.bincount(record.call.argmin(dim=1), minlength=3)
    assert bool(((counts - 1000).abs() < 4 * 26).all())  # standard deviations


def test_one_by_one_at_random_is_the_law_of_a_denoiser_without_times():
    """Two tokens of two classes: half of the items begin with either."""
    chain = d3.transitions.absorbing(3, schedules.jsd(2), 2)
    table = torch.randn(3, 3, 2, 3, dtype=torch.float64)
    table[..., 2] = -torch.inf
    p = table.softmax(-1)
    law = torch.tensor(
        [
            (p[2, 2, 0, a] * p[a, 2, 1, b] + p[2, 2, 1, b] * p[2, b, 0, a]) / 2
            for a in range(2)
            for b in range(2)
        ]
    )
    x = unmask(
        d3.D3PM(chain), lambda x_t, t: table[x_t[:, 0], x_t[:, 1]], (20_000, 2),
        order="random", seeds=torch.arange(20_000),
    )  # fmt: skip
    assert_follows((2 * x[:, 0] + x[:, 1])[:, None], law[None])


def test_changes_are_told_and_nothing_else():
    told, states = [], []
    x = unmask(
        d3.D3PM(DISCRETE), denoiser_of(), (B, P), threshold=0.5, seeds=torch.arange(B),
        on_change=lambda changed: told.append(changed),
        callback=lambda x, left: states.append(x),
    )  # fmt: skip
    assert len(states) == len(told) + 1
    for before, after, changed in zip(states, states[1:], told, strict=False):
        assert torch.equal(before != after, changed)
        assert bool(changed.any())
    assert torch.equal(states[-1], x)


def test_nothing_is_left_of_a_run_that_breaks_off():
    calls, record = [], Transcript()

    def denoiser(x_t, t):
        calls.append(t)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return denoiser_of()(x_t, t)

    with pytest.raises(RuntimeError, match="out of memory"):
        unmask(d3.D3PM(DISCRETE), denoiser, (B, P), record=record)
    assert (record.call, record.log_prob) == (None, None)


def test_no_token_is_masked_or_there():
    known = torch.zeros(B, P).long(), torch.ones(B, P).bool()

    def denoiser(x_t, t):
        raise AssertionError("no token is left to ask for")

    x = unmask(d3.D3PM(DISCRETE), denoiser, (B, P), known=known)
    assert torch.equal(x, known[0])
    for shape in ((0, P), (B, 0)):
        assert unmask(d3.D3PM(DISCRETE), denoiser, shape, block=2).shape == shape


def test_items_do_not_depend_on_the_batch():
    options = {"threshold": 0.6, "block": 4}
    whole = unmask(d3.D3PM(DISCRETE), denoiser_of(), (B, P), seeds=torch.arange(B), **options)
    for n in range(B):
        alone = unmask(d3.D3PM(DISCRETE), denoiser_of(), (1, P), seeds=torch.tensor([n]), **options)
        assert torch.equal(alone, whole[n : n + 1])


def test_a_head_in_place_of_logits():
    hidden_of = torch.randn(K, 3, dtype=torch.float64)
    weight = torch.randn(K, 3, dtype=torch.float64)
    options = {"steps": 4, "seeds": torch.arange(B)}

    def hidden(x_t):
        return hidden_of[x_t].cumsum(dim=1)

    x, y = (
        unmask(d3.D3PM(DISCRETE), denoiser, (B, P), **options)
        for denoiser in (
            lambda x_t, t: functional.Linear(hidden(x_t), weight),
            lambda x_t, t: hidden(x_t) @ weight.T,
        )
    )
    assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": "best"}, "order must be"),
        ({"take": "best"}, "take must be"),
        ({"threshold": 1.5}, "threshold"),
        ({"entropy_bound": -1.0}, "entropy_bound must not be negative"),
        ({"block": 0}, "block"),
        ({"threshold": 0.5, "noise": 1.0}, "need steps"),
        ({"entropy_bound": 0.5, "remask": True}, "need steps"),
    ],
)
def test_wrong_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        unmask(d3.D3PM(DISCRETE), denoiser_of(), (B, P), **options)


def test_other_chains_are_refused():
    chain = d3.transitions.uniform(K, schedules.linear(T))
    with pytest.raises(ValueError, match="the chain must be absorbing, got uniform"):
        unmask(d3.D3PM(chain), denoiser_of(), (B, P))
