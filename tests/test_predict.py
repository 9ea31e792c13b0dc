"""What a prediction says of tokens: the numbers by many digits, the draws' law, what is read."""

import mpmath
import numpy as np
import pytest
import torch
from helpers.laws import assert_follows
from scipy import stats

import d3pm_fast as d3
from d3pm_fast import functional, schedules, transitions
from d3pm_fast.functional import Linear, Logistic, Score, Shaped, predict
from d3pm_fast.reference.draws import TILE

ALSO_BY = ("triton",)  # the fixture impl; see conftest.py
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
T = 6
NUMBERS = ("log_prob", "raw_log_prob", "p_max", "margin", "entropy", "lse")
SHAPED = {
    "temperature": {"temperature": 0.7},
    "cuts": {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
}


def uniform(num_classes):
    return transitions.uniform(num_classes, schedules.linear(T, 0.1, 0.4))


def absorbing(num_classes, mask_id=None):
    mask_id = num_classes - 1 if mask_id is None else mask_id
    return transitions.absorbing(num_classes, schedules.jsd(T), mask_id)


def of_rows(logits, impl, chain=None, **options):
    """What rows ``(n, K)``, or what shapes them, say, each an item of one token."""
    rows = logits.logits if isinstance(logits, Shaped) else logits
    chain = chain or uniform(rows.shape[-1])
    x_t, t = torch.zeros(len(rows)).long(), torch.ones(len(rows)).long()
    options = {"seeds": torch.arange(len(rows)), **options}
    return predict(chain, logits, x_t, t, impl=impl, **options)


def exact(row, token):
    """The numbers of a row of Python's floats, by 60 digits."""
    with mpmath.workdps(60):
        x = [mpmath.mpf(value) for value in row]
        top = max(x)
        e = [mpmath.exp(value - top) for value in x]
        total = mpmath.fsum(e)
        first, second = sorted(e, reverse=True)[:2]
        p = [value / total for value in e if value > 0]
        entropy = -mpmath.fsum(value * mpmath.log(value) for value in p)
        lse = top + mpmath.log(total)
        log_p = x[token] - lse
        numbers = log_p, log_p, first / total, (first - second) / total, entropy, lse
        return [float(value) for value in numbers]


def assert_right(found, truth, dtype, size):
    """Fail unless numbers are right relative to themselves; ``lse`` and logs to the logits' too."""
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for name, value, expected in zip(NUMBERS, found, truth, strict=True):
        scale = abs(expected) + (1e-2 * size if name in ("lse", "log_prob", "raw_log_prob") else 0)
        assert abs(value - expected) <= tolerance * scale + 1e-300, (name, value, expected)


@pytest.mark.parametrize("num_classes", [2, 27, 67])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 3.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_have_their_digits(dtype, scale, num_classes, impl):
    """Also where a class has all but 1e-20 of the probability, and where all are alike."""
    logits = (scale * torch.randn(6, num_classes, dtype=torch.float64)).to(dtype)
    logits[0, 1] += 45
    logits[1, 0] = -torch.inf
    found = of_rows(logits, impl)
    for n, row in enumerate(logits.double()):
        numbers = [float(getattr(found, name)[n]) for name in NUMBERS]
        truth = exact(row.tolist(), int(found.token[n]))
        # Below the least normal number is no probability in float32.
        small = 1e-36 if dtype != torch.float64 else 1e-300
        numbers, truth = ([0.0 if abs(x) < small else x for x in xs] for xs in (numbers, truth))
        assert_right(numbers, truth, dtype, float(row[1:].abs().max()))
        assert int(found.argmax[n]) == int(row.argmax())


@pytest.mark.exhaustive(
    where=lambda impl, num_classes, dtype: (
        num_classes > (TILE + 1 if impl == "triton" else 60_000)
        or (impl == "triton" and dtype != torch.bfloat16)
    )
)
@pytest.mark.parametrize("num_classes", [TILE, TILE + 1, 50257, 151936, 262144])
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_rows(dtype, num_classes, impl):
    if impl == "triton" and num_classes > 60_000 and dtype != torch.bfloat16:
        pytest.skip("too slow here")
    logits = (4 * torch.randn(2, num_classes, dtype=torch.float64)).to(dtype)
    logits[1, num_classes - 1] = 40.0
    logits[1, num_classes // 2] = 40.0
    found = of_rows(logits, impl)
    for n, row in enumerate(logits.double().numpy().astype(np.longdouble)):
        e = np.exp(row - row.max())
        total, token = e.sum(), int(found.token[n])
        lse = row.max() + np.log(total)
        entropy = np.log(total) - (e * (row - row.max())).sum() / total
        first, second = np.sort(e)[::-1][:2]
        truth = row[token] - lse, row[token] - lse, first / total, (first - second) / total
        numbers = [float(getattr(found, name)[n]) for name in NUMBERS]
        assert_right(numbers, [float(x) for x in (*truth, entropy, lse)], dtype, 40)
    assert found.argmax.tolist() == [int(logits[0].argmax()), num_classes // 2]
    assert float(found.margin[1]) == 0.0


@pytest.mark.parametrize("take", ["sample", "argmax"])
@pytest.mark.parametrize("options", SHAPED.values(), ids=SHAPED)
@pytest.mark.parametrize("guidance", [None, 1.5])
@pytest.mark.parametrize("num_classes", [27, 300])
def test_the_law_drawn_from_is_shaped(num_classes, guidance, options, take, impl):
    rows, other = 3 * torch.randn(2, 4, num_classes, dtype=torch.float64)
    shaped = Shaped(rows, None if guidance is None else other, guidance or 1.0, **options)
    raw = rows if guidance is None else other + guidance * (rows - other)
    found = of_rows(shaped, impl, take=take)
    plain = of_rows(raw, "reference", take="argmax")
    made = of_rows(shaped, "reference", take=take)
    assert torch.equal(found.token, made.token)
    if take == "argmax":
        assert torch.equal(found.token, raw.argmax(-1))
    for name in ("argmax", "p_max", "margin", "entropy", "lse"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name))
    token = found.token.unsqueeze(-1)
    torch.testing.assert_close(found.raw_log_prob, raw.log_softmax(-1).gather(-1, token)[:, 0])
    kept = shaped_law(raw, **options)
    torch.testing.assert_close(found.log_prob, kept.log().gather(-1, token)[:, 0])


def shaped_law(rows, temperature, top_k=None, top_p=None, min_p=None):
    """The probabilities after temperature and truncation, written out."""
    law = (rows / temperature).softmax(-1)
    for row in law:
        ranked = row.argsort(descending=True)
        if top_k is not None:
            row[ranked[top_k:]] = 0
        if top_p is not None:
            row /= row.sum()
            row[ranked[row[ranked].cumsum(0) - row[ranked] >= top_p]] = 0
        if min_p is not None:
            row[row < min_p * row.max()] = 0
    return law / law.sum(-1, keepdim=True)


@pytest.mark.exhaustive(
    where=lambda impl, num_classes, dtype, **_: (
        impl == "triton"
        and num_classes > 300
        and (dtype != torch.bfloat16 or num_classes > 2 * TILE)
    )
)
@pytest.mark.parametrize("options", [None, *SHAPED.values()], ids=["plain", *SHAPED])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [5, 300, TILE + 900, 2 * TILE + 1])
def test_all_implementations_draw_the_same(num_classes, dtype, options, impl):
    if impl == "triton" and options and num_classes > TILE and dtype != torch.bfloat16:
        pytest.skip("too slow here")
    slopes = torch.tensor([[0.0], [6.0], [-6.0]])  # the largest is in the last tile, or the first
    logits = 2 * torch.randn(3, num_classes) + slopes * torch.linspace(0, 1, num_classes)
    logits[0, -2] += 20  # nearly all is one class of the last tile
    logits = logits.to(dtype)
    given = logits if options is None else Shaped(logits, **options)
    found, expected = (of_rows(given, name) for name in (impl, "reference"))
    assert torch.equal(found.token, expected.token)
    assert torch.equal(found.argmax, expected.argmax)
    for name in NUMBERS:
        value, other = (getattr(of, name) for of in (found, expected))
        torch.testing.assert_close(value, other, rtol=1e-5, atol=0)


def test_draws_of_one_tile_are_those_of_p_sample(impl):
    logits = torch.randn(40, 67)
    x_t, t, seeds = torch.zeros(40).long(), torch.ones(40).long(), torch.arange(40)
    same = {"seeds": seeds, "impl": impl}
    drawn = functional.p_sample(uniform(67), logits, x_t, t, first_step="logits", **same)
    assert torch.equal(of_rows(logits, impl).token, drawn)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_draws_follow_the_law(dtype, cpu):
    draws, logits = 20_000, torch.tensor([[2.0, 0.0, -1.0, -torch.inf, 1.0, -4.0]])
    rows = logits.to(dtype).expand(draws, 6)
    assert_follows(of_rows(rows, cpu).token[:, None], logits.double().softmax(-1))
    shaped = Shaped(rows, temperature=0.5, min_p=0.05)
    law = shaped_law(logits.double(), 0.5, min_p=0.05)
    assert_follows(of_rows(shaped, cpu).token[:, None], law)


def test_draws_across_tiles_follow_the_law(cpu):
    """In each of three tiles a class of much mass, one of little, and many of next to none."""
    num_classes, draws = 2 * TILE + 500, 4000
    law = torch.full((num_classes,), 0.1 / (num_classes - 6), dtype=torch.float64)
    places = torch.tensor([7, 9, TILE, TILE + 1, 2 * TILE + 3, num_classes - 1])
    law[places] = torch.tensor([0.3, 0.02, 0.25, 0.03, 0.29, 0.01], dtype=torch.float64)
    drawn = torch.cat(
        [
            of_rows(law.log().float().expand(500, -1), cpu, seeds=torch.arange(500) + 500 * n).token
            for n in range(draws // 500)
        ]
    )
    pooled = torch.full((num_classes,), 6).index_copy(0, places, torch.arange(6))
    tile = torch.arange(num_classes) // TILE
    pooled = pooled.where(pooled < 6, 6 + tile)
    pools = torch.zeros(9, dtype=torch.float64).index_add(0, pooled, law)
    assert_follows(pooled[drawn][:, None], pools[None])


@pytest.mark.exhaustive
@pytest.mark.usefixtures("cpu")
def test_rare_classes_of_a_large_vocabulary_come_at_their_rate():
    """K = 262144: one class in each tile of 1/65, and 4000 of 1e-7 each, together 4e-4."""
    num_classes, draws, at_a_time = 262144, 50_000, 50
    tiles = num_classes // TILE
    law = torch.full((num_classes,), 1e-30, dtype=torch.float64)
    heavy = torch.arange(tiles) * TILE + 11 * torch.arange(tiles)
    rare = torch.arange(4000) * 65 + 3
    law[rare], law[heavy] = 1e-7, (1 - 4e-4) / tiles
    rows = law.log().float().expand(at_a_time, -1)
    drawn = torch.cat(
        [
            of_rows(rows, "cpu", seeds=torch.arange(at_a_time) + at_a_time * n).token
            for n in range(draws // at_a_time)
        ]
    )
    counts = torch.bincount(drawn, minlength=num_classes)
    of_heavy, of_rare = counts[heavy], int(counts[rare].sum())
    assert int(of_heavy.sum()) + of_rare == draws
    assert stats.chisquare(of_heavy).pvalue > 1e-3
    low, high = stats.poisson(4e-4 * draws).ppf([5e-4, 1 - 5e-4])
    assert low <= of_rare <= high


def test_known_tokens_are_themselves_whatever_their_rows_hold(impl):
    chain, x_t = absorbing(12, mask_id=4), torch.tensor([[4, 3, 4], [0, 4, 11]])
    logits, t = torch.randn(2, 3, 12), torch.tensor([2, 5])
    spoiled = logits.masked_fill((x_t != 4).unsqueeze(-1), torch.nan)
    seeds = torch.arange(2)
    found, expected = (
        predict(chain, rows, x_t, t, seeds=seeds, impl=impl) for rows in (spoiled, logits)
    )
    for value, other in zip(found, expected, strict=True):
        assert torch.equal(value, other)
    known = x_t != 4
    assert torch.equal(found.token[known], x_t[known])
    assert torch.equal(found.argmax[known], x_t[known])
    for name, number in zip(NUMBERS, (0.0, 0.0, 1.0, 1.0, 0.0, 0.0), strict=True):
        assert bool((getattr(found, name)[known] == number).all())
    assert bool((found.token[~known] != 4).all())  # data never hold the mask
    alone = logits.clone()
    alone[..., 4] = -torch.inf
    assert torch.allclose(found.lse[~known], alone.logsumexp(-1)[~known], rtol=1e-6)


def test_neither_times_nor_a_mask_of_no_token_change_what_is_predicted(impl):
    chain, x_t = absorbing(6), torch.tensor([[5, 3, 5], [5, 5, 0]])
    logits, t = torch.randn(2, 3, 6), torch.tensor([1, T])
    same = {"seeds": torch.arange(2), "impl": impl}
    found = predict(chain, logits, x_t, t, **same)
    of_tokens = predict(chain, logits, x_t, torch.tensor([[1, T, 2], [T - 1, T, 1]]), **same)
    for value, other in zip(found, of_tokens, strict=True):
        assert torch.equal(value, other)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    for given in (logits, Linear(torch.randn(2, 3, 4), torch.randn(6, 4))):
        assert torch.equal(predict(chain, given, x_t, t, mask=nothing, **same).token, x_t)


def test_a_mask_says_which_rows_are_read(impl):
    x_t, t = torch.tensor([[1, 2, 0]]), torch.tensor([3])
    logits = torch.randn(1, 3, 5)
    logits[0, 1] = torch.nan
    mask = torch.tensor([[True, False, True]])
    found = predict(uniform(5), logits, x_t, t, mask=mask, take="argmax", impl=impl)
    assert found.token.tolist() == [[int(logits[0, 0].argmax()), 2, int(logits[0, 2].argmax())]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_law_is_told(value, impl):
    logits = torch.randn(2, 3, 5)
    logits[1, 2, 3] = value
    logits[0, 1] = -torch.inf
    x_t, t = torch.zeros(2, 3).long(), torch.tensor([1, 2])
    if impl != "triton":
        with pytest.raises(ValueError, match=r"nothing but -inf at index \(0, 1\)"):
            predict(uniform(5), logits, x_t, t, impl=impl)
        logits[0, 1] = 0.0
        with pytest.raises(ValueError, match=rf"(?i)got {value} at index \(1, 2\)"):
            predict(uniform(5), logits, x_t, t, impl=impl)
        return
    found = predict(uniform(5), logits, x_t, t, impl=impl)
    for token in ((0, 1), (1, 2)):
        assert int(found.token[token]) == int(found.argmax[token]) == -1
        assert all(bool(getattr(found, name)[token].isnan()) for name in NUMBERS)
    assert int((found.token < 0).sum()) == 2


def test_draws_do_not_depend_on_the_batch(impl):
    rows, seeds = torch.randn(3, 4, 9), torch.arange(3)
    x_t, t = torch.zeros(3, 4).long(), torch.tensor([1, 2, 3])
    same = {"step": 5, "impl": impl}
    whole = predict(uniform(9), rows, x_t, t, seeds=seeds, **same).token
    item = predict(uniform(9), rows[1:2], x_t[1:2], t[1:2], seeds=seeds[1:2], **same).token
    assert torch.equal(item, whole[1:2])
    part = predict(uniform(9), rows[:, 2:], x_t[:, 2:], t, seeds=seeds, position_offset=2, **same)
    assert torch.equal(part.token, whole[:, 2:])
    other = predict(uniform(9), rows, x_t, t, seeds=seeds, step=6, impl=impl).token
    assert not torch.equal(other, whole)


def test_all_kinds_of_predictions(impl):
    chain, t, seeds = absorbing(9, mask_id=8), torch.tensor([2, 6]), torch.arange(2)
    x_t = torch.tensor([[8, 3, 8, 8], [8, 8, 0, 8]])
    same = {"seeds": seeds, "impl": impl}

    def check(given, logits, chain=chain, **options):
        found = predict(chain, given, x_t, t, **same, **options)
        expected = predict(chain, logits, x_t, t, **same)
        assert torch.equal(found.token, expected.token)
        for value, other in zip(found, expected, strict=True):
            torch.testing.assert_close(value, other)

    logits = torch.randn(2, 4, 9, dtype=torch.float64)
    check(logits[..., :8], logits)
    check(logits.movedim(-1, 1), logits, class_dim=1)
    hidden, weight, bias = torch.randn(2, 4, 3).double(), torch.randn(9, 3).double(), logits[0, 0]
    made = torch.nn.functional.linear(hidden, weight, bias)
    check(Linear(hidden, weight, bias), made)
    check(Linear(hidden, weight[:8], bias[:8], memory_budget=3 * 64), made)
    spoiled = hidden.masked_fill((x_t != 8).unsqueeze(-1), torch.nan)
    check(Linear(spoiled, weight, bias), made)
    loc, log_scale = torch.randn(2, 2, 4, dtype=torch.float64)
    check(Logistic(loc, log_scale), functional.logistic_logits(loc, log_scale, 9))
    if impl == "reference":  # alone has steps by scores
        to_0 = functional.p_posterior(chain, Score(logits), x_t, t, 0 * t, first_step="logits")
        check(Score(logits), to_0)


@pytest.mark.parametrize("family", ["gaussian", "with_mask"])
def test_chains_of_matrices(family, impl):
    chain = transitions.discretized_gaussian(7, schedules.linear(T, 0.1, 0.4))
    logits, x_t, t = torch.randn(2, 3, 7), torch.randint(7, (2, 3)), torch.tensor([1, 4])
    if family == "with_mask":
        chain = transitions.with_mask(chain, schedules.jsd(T))
        logits = torch.cat((logits, torch.full((2, 3, 1), 9.0)), dim=-1)
    found = predict(chain, logits, x_t, t, take="argmax", impl=impl)
    assert torch.equal(found.token, logits[..., :7].argmax(-1))


def test_a_head_tells_where_no_law_is(cpu):
    hidden, x_t = torch.zeros(2, 3, 2), torch.tensor([[8, 3, 8], [8, 8, 8]])
    hidden[1, 1] = torch.nan
    linear = Linear(hidden, torch.randn(9, 2), memory_budget=2 * 36)
    with pytest.raises(ValueError, match=r"got NaN at index \(1, 1\)"):
        predict(absorbing(9), linear, x_t, torch.tensor([1, 2]), impl=cpu)


@pytest.mark.usefixtures("cpu")
def test_the_module_asks_for_the_same():
    diffusion = d3.D3PM(absorbing(6), impl="cpu")
    logits, x_t, t = torch.randn(2, 3, 6), torch.full((2, 3), 5), torch.tensor([1, 2])
    found = diffusion.predict(logits, x_t, t, seeds=torch.arange(2), step=3)
    expected = predict(diffusion.transition, logits, x_t, t, seeds=torch.arange(2), step=3)
    for value, other in zip(found, expected, strict=True):
        assert torch.equal(value, other)


def test_wrong_arguments_are_named(impl):
    logits, x_t, t = torch.randn(2, 3, 6), torch.zeros(2, 3).long(), torch.tensor([1, 2])
    for options, error, words in [
        ({"take": "best"}, ValueError, "take must be"),
        ({"mask": torch.ones(2, 3)}, TypeError, "mask"),
        ({"mask": torch.ones(3, 2).bool()}, ValueError, "mask must have shape"),
        ({"position_offset": -1}, ValueError, "position_offset"),
        ({"seeds": torch.arange(3)}, ValueError, "seeds"),
    ]:
        with pytest.raises(error, match=words):
            predict(uniform(6), logits, x_t, t, impl=impl, **options)
    if impl != "triton":
        with pytest.raises(IndexError, match="x_t must lie in"):
            predict(uniform(6), logits, x_t + 6, t, impl=impl)


def test_an_empty_batch(impl):
    found = predict(
        uniform(4), torch.randn(0, 3, 4), torch.zeros(0, 3).long(), torch.zeros(0).long(), impl=impl
    )
    assert all(value.shape == (0, 3) for value in found)


def test_it_compiles_into_one_graph(cpu):
    chain, seeds = absorbing(8), torch.arange(2)

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def both(logits, x_t, t):
        return predict(chain, logits, x_t, t, seeds=seeds, impl=cpu)

    for positions in (3, 5):
        logits, x_t = torch.randn(2, positions, 8), torch.full((2, positions), 7)
        t = torch.tensor([1, 4])
        expected = predict(chain, logits, x_t, t, seeds=seeds, impl=cpu)
        for value, other in zip(both(logits, x_t, t), expected, strict=True):
            assert torch.equal(value, other)


@pytest.mark.parametrize("shapes", [False, True])
@pytest.mark.usefixtures("cpu")
def test_opcheck_finds_nothing(shapes):
    logits, known = torch.randn(2, 3, 9), torch.tensor([[-1, 2, -1], [-1, -1, 0]])
    random = torch.arange(6).view(2, 3), torch.arange(6).view(2, 3), 3
    shaping = (
        (logits.flip(-1), 2.0, 0.5, 4, 0.9, 0.01, 3)
        if shapes
        else (None, 1.0, 1.0, 9, 1.0, 0.0, -1)
    )
    torch.library.opcheck(
        torch.ops.d3pm_fast.predict.default, (logits, known, *random, True, *shaping)
    )
