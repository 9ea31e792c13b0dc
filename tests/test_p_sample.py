"""Draws of the reverse step: their law, and what they depend on."""

import pytest
import torch
from helpers.chains import FAMILIES, FIRST_STEP, REVERSE, make_chain, true_p_posterior
from scipy import stats

import d3pm_fast as d3
from d3pm_fast import functional
from d3pm_fast.reference.philox import uniforms

# Whoever acts a GPU is too slow for tests that draw many numbers.
ALSO_BY = ("triton", "cuda") if torch.cuda.is_available() else ()
K = 5
DRAWS = 20_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw_many(chain, logits, x_t, s, t, impl, seed=0, draws=DRAWS, **model):
    """Draw from one row of logits many times, each time at another position."""
    target = None if s is None else torch.tensor([s])
    return functional.p_sample(
        chain.transition,
        logits.expand(1, draws, K),
        torch.full((1, draws), x_t),
        torch.tensor([t]),
        target,
        generator=generator(seed),
        impl=impl,
        **model,
    ).flatten()


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_law_is_the_model_s_posterior(family, reverse, impl):
    chain = make_chain(family, K)
    steps = [(None, 1), (None, 2), (0, 3), (1, 4), (2, 6), (None, 6)]
    tests = 0
    for s, t in steps:
        for x_t in (0, 2, 4):
            logits = torch.randn(K, generator=generator(t))
            target = t - 1 if s is None else s
            model = {"reverse": reverse, "first_step": "logits"}
            law = true_p_posterior(chain, logits[None], torch.tensor([x_t]), target, t, **model)[0]
            drawn = draw_many(chain, logits, x_t, s, t, impl, seed=10 * t + x_t, **model)
            counts = torch.bincount(drawn, minlength=K)
            assert (counts[law == 0] == 0).all()
            if (law > 1e-9).sum() > 1:
                expected = law[law > 0] / law.sum() * DRAWS
                assert stats.chisquare(counts[law > 0], expected).pvalue > 1e-3 / 18
                tests += 1
    assert tests > 0


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("family", ["uniform", "mask_and_uniform"])
def test_the_first_step_rules_every_step_to_the_data(family, first_step, impl):
    chain = make_chain(family, K)
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -2.0])
    for s, t in [(None, 1), (0, 5)]:
        law = true_p_posterior(chain, logits[None], torch.tensor([2]), 0, t, first_step=first_step)
        drawn = draw_many(chain, logits, 2, s, t, impl, seed=t, first_step=first_step)
        counts = torch.bincount(drawn, minlength=K)
        assert stats.chisquare(counts, law[0] * DRAWS).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_classes", [27, 67])
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_kernel_and_reference_draw_the_same_but_for_ties(
    family, reverse, num_classes, dtype, kernels
):
    chain = make_chain(family, num_classes).transition
    count = 500 if kernels == "cpu" else 12
    logits = (2 * torch.randn(6, count, num_classes)).to(dtype)
    t = torch.arange(6) + 1
    x_t = functional.q_sample(chain, torch.randint(num_classes, (6, count)), t)
    drawn = [
        functional.p_sample(
            chain, logits, x_t, t, reverse=reverse, generator=generator(), impl=impl
        )
        for impl in ("reference", kernels)
    ]
    assert (drawn[0] != drawn[1]).sum() <= (0 if dtype == torch.float64 else 1)


@pytest.mark.exhaustive(
    where=lambda kernels, num_classes, family: (
        kernels == "triton" and num_classes == 9000 and family == "mask_and_uniform"
    )
)
@pytest.mark.parametrize("num_classes", [2, 27, 33, 64, 1000, 9000])
@pytest.mark.parametrize("family", ["marginal_with_zeros", "mask_and_uniform"])
def test_rows_of_any_length_are_drawn_alike(family, num_classes, kernels):
    """9000: beyond the rows that a program holds whole."""
    chain = make_chain(family, num_classes).transition
    logits = 2 * torch.randn(6, 3, num_classes)
    logits[:, 1, num_classes // 2 :] = -torch.inf
    t = torch.arange(6) + 1
    x_t = functional.q_sample(chain, torch.randint(num_classes, (6, 3)), t)
    drawn = [
        functional.p_sample(chain, logits, x_t, t, 0 * t, generator=generator(), impl=impl)
        for impl in ("reference", kernels)
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6, 1.0])
@pytest.mark.parametrize("family", ["absorbing_first", "mask_and_uniform_by_step"])
def test_any_share_of_masked_tokens_is_drawn_as_by_the_reference(family, share, by_token, cpu):
    """In runs of tokens that begin and end within an item, some at t = 1 and some later."""
    chain = make_chain(family, K).transition
    x_t = (chain.mask_id + torch.randint(1, K, (4, 150))) % K
    logits = 2 * torch.randn(4, 150, K, dtype=torch.float64)
    x_t = torch.where(torch.rand(x_t.shape) < share, chain.mask_id, x_t)
    t = torch.randint(1, 7, x_t.shape) if by_token else torch.tensor([1, 2, 4, 6])
    drawn = [
        functional.p_sample(chain, logits, x_t, t, generator=generator(), impl=impl)
        for impl in ("reference", cpu)
    ]
    assert torch.equal(*drawn)


def test_forbidden_classes_are_never_drawn(impl):
    chain = make_chain("absorbing_last", K)
    logits = torch.tensor([0.0, -torch.inf, 1.0, 0.5, -torch.inf])
    drawn = draw_many(chain, logits, 4, 0, 6, impl)
    assert set(drawn.unique().tolist()) == {0, 2, 3}
    only = torch.full((K,), -torch.inf)
    only[3] = -7.0
    assert (draw_many(chain, only, 4, 0, 6, impl) == 3).all()


def test_an_unmasked_token_stays_and_its_logits_are_not_read(impl):
    chain = make_chain("absorbing_last", K).transition
    x_t = torch.tensor([[1, 2, 0]])
    logits = torch.full((1, 3, K), torch.nan) if impl == "cpu" else torch.zeros(1, 3, K)
    drawn = functional.p_sample(chain, logits, x_t, torch.tensor([4]), impl=impl)
    assert torch.equal(drawn, x_t)


def test_d16_rare_classes_come_at_their_rate(cpu):
    """A float32 Gumbel trick would cut the tail; 2e7 draws of a class of probability 1e-6."""
    chain = d3.transitions.absorbing(3, d3.schedules.jsd(4), 2)
    logits = torch.tensor([0.0, -13.815510557964274, -torch.inf])
    draws = 20_000_000
    drawn = functional.p_sample(
        chain,
        logits.expand(20, draws // 20, 3),
        torch.full((20, draws // 20), 2),
        torch.full((20,), 4),
        torch.zeros(20, dtype=torch.int64),
        generator=generator(),
        impl=cpu,
    )
    low, high = stats.poisson(draws * 1e-6).interval(1 - 1e-6)
    assert low <= int((drawn == 1).sum()) <= high


def test_a_rare_class_has_exactly_its_own_numbers(cpu):
    """The numbers above 1 - 1e-5 belong to the last class, and no others do."""
    chain = d3.transitions.absorbing(3, [1.0], 2)
    probability = 1e-5
    logits = torch.tensor([0.0, torch.log(torch.tensor(probability)), -torch.inf])
    seeds = torch.arange(1)
    count = 3_000_000
    drawn = functional.p_sample(
        chain,
        logits.expand(1, count, 3),
        torch.full((1, count), 2),
        torch.tensor([1]),
        seeds=seeds,
        impl=cpu,
    ).flatten()
    _, draw = uniforms(seeds, 0, count)
    total = 1 + float(logits[1].double().exp())
    clear = (draw * total - 1).abs() > 1e-10
    assert torch.equal(drawn[clear], (draw * total >= 1).long()[clear])
    assert drawn.sum() > 0


def test_two_calls_on_one_generator_draw_what_one_call_draws(impl):
    chain = make_chain("marginal", K).transition
    logits, x_t, t = torch.randn(8, 5, K), torch.randint(K, (8, 5)), torch.full((8,), 3)
    whole = functional.p_sample(chain, logits, x_t, t, generator=generator(), impl=impl)
    again = generator()
    parts = [
        functional.p_sample(chain, logits[p], x_t[p], t[p], generator=again, impl=impl)
        for p in (slice(0, 3), slice(3, 8))
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_the_number_of_threads_does_not_matter(cpu):
    chain = make_chain("uniform", 64).transition
    logits, x_t = torch.randn(16, 100, 64), torch.randint(64, (16, 100))
    drawn = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        drawn.append(
            functional.p_sample(
                chain, logits, x_t, torch.full((16,), 2), generator=generator(), impl=cpu
            )
        )
    assert torch.equal(*drawn)


def test_seeds_steps_and_positions_give_other_draws(impl):
    chain = make_chain("uniform", K).transition
    logits, x_t, t = torch.zeros(1, 400, K), torch.zeros(1, 400).long(), torch.tensor([6])
    arguments = (chain, logits, x_t, t, torch.zeros(1).long())
    drawn = [
        functional.p_sample(*arguments, seeds=torch.tensor([seed]), step=step, impl=impl)
        for seed, step in [(1, 0), (2, 0), (1, 1)]
    ]
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        assert 0.05 < (drawn[i] == drawn[j]).double().mean() < 0.4


def test_the_last_digits_of_a_draw_count(impl):
    """The rarest of 2^20 numbers meets a class that is 1 % larger than what it leaves, only.

    Numbers of 24 bits are a hundred times too coarse for that.
    """
    seeds, count = torch.tensor([7]), 2**20
    _, draw = uniforms(seeds, 0, count)
    position = int(draw.argmax())
    left = 1 - float(draw[position])
    assert left < 1e-5
    chain = d3.transitions.uniform(2, [0.5])
    x_t, t = torch.zeros(1, count, dtype=torch.int64), torch.tensor([1])
    for share, expected in [(1.01 * left, 1), (0.99 * left, 0)]:
        logits = torch.tensor([1 - share, share], dtype=torch.float64).log()
        args = chain, logits.expand(1, count, 2), x_t, t
        drawn = functional.p_sample(*args, first_step="logits", seeds=seeds, impl=impl)
        assert int(drawn[0, position]) == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_the_dtype_of_the_tokens_is_kept(dtype, impl):
    chain = make_chain("mask_and_uniform", K).transition
    logits, x_t, t = torch.randn(4, 6, K), torch.randint(K, (4, 6)), torch.tensor([1, 2, 5, 6])
    wide = functional.p_sample(chain, logits, x_t, t, seeds=torch.arange(4), impl=impl)
    narrow = functional.p_sample(
        chain, logits, x_t.to(dtype), t.to(dtype), seeds=torch.arange(4), impl=impl
    )
    assert narrow.dtype == dtype
    assert torch.equal(narrow.long(), wide)


def test_both_times_may_differ_from_token_to_token(impl):
    chain = make_chain("mask_and_uniform", K).transition
    logits, x_t = torch.randn(3, 4, K), torch.randint(K, (3, 4))
    t = torch.randint(3, 7, (3, 4))
    s = t - torch.randint(1, 4, (3, 4))
    seeds = torch.arange(3)
    drawn = functional.p_sample(chain, logits, x_t, t, s, seeds=seeds, impl=impl)
    for n in range(4):
        column = functional.p_sample(chain, logits, x_t, t[:, n], s[:, n], seeds=seeds, impl=impl)
        assert torch.equal(column[:, n], drawn[:, n])


def test_a_step_back_by_one_is_the_same_with_and_without_s(impl):
    chain = make_chain("mask_and_uniform_by_step", K).transition
    logits, x_t, t = torch.randn(6, 50, K), torch.randint(K, (6, 50)), torch.arange(1, 7)
    drawn = [
        functional.p_sample(chain, logits, x_t, t, s, seeds=torch.arange(6), impl=impl)
        for s in (None, t - 1)
    ]
    assert torch.equal(*drawn)
