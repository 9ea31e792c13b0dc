"""Draws of x_t: their law, and what they depend on."""

import pytest
import torch
from helpers.chains import FAMILIES, make_chain, one_hot
from helpers.dense_chains import make_dense_chain
from helpers.laws import assert_rate
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import d3pm_fast as d3
from d3pm_fast import functional
from d3pm_fast.reference.philox import philox, uniforms

# Whoever acts a GPU is too slow for tests that draw many numbers.
ALSO_BY = ("triton", "cuda") if torch.cuda.is_available() else ()
MANY = 1_000_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, words):
    result = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(word) for word in result) == words


def test_uniforms_have_53_bits_and_depend_on_seed_step_and_position():
    seeds = torch.tensor([5, -7])
    choice, draw = uniforms(seeds, 3, 8)
    assert ((choice >= 0) & (choice < 1)).all()
    assert (choice * 2**53 == (choice * 2**53).round()).all()
    assert (choice * 2**32 != (choice * 2**32).round()).all()
    assert len(set(choice.tolist() + draw.tolist())) == 16
    other, _ = uniforms(seeds, 4, 8)
    assert not (choice == other).any()
    alone, _ = uniforms(seeds[1:], 3, 4)
    assert torch.equal(choice[4:], alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_kernel_and_reference_draw_the_same(family, kernels):
    chain = make_chain(family, 17)
    x0 = torch.randint(17, (6, 50, 3))
    t = torch.arange(6) + 1
    drawn = [
        functional.q_sample(chain.transition, x0, t, generator=generator(), impl=impl)
        for impl in ("reference", kernels)
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_law_is_the_row_of_the_product(family, impl):
    chain = make_chain(family, 5)
    times = chain.edge_times()
    draws = 20_000
    for t in times:
        for x0 in range(5):
            x = torch.full((1, draws), x0)
            drawn = functional.q_sample(
                chain.transition, x, torch.tensor([t]), generator=generator(t), impl=impl
            )
            law = chain.product(0, t)[x0]
            counts = torch.bincount(drawn.flatten(), minlength=5)
            assert (counts[law == 0] == 0).all()
            if (law > 0).sum() > 1:
                test = stats.chisquare(counts[law > 0], law[law > 0] * draws)
                assert test.pvalue > 1e-3 / (len(times) * 5)


def test_a_class_of_probability_1e_6_comes_at_its_rate(cpu):
    base = torch.tensor([1 - 1e-6, 1e-6], dtype=torch.float64)
    chain = d3.transitions.marginal(2, [1.0], base)
    x0 = torch.zeros(20, MANY, dtype=torch.int64)
    drawn = functional.q_sample(chain, x0, torch.ones(20).long(), generator=generator(), impl=cpu)
    low, high = stats.poisson(20).interval(1 - 1e-6)
    assert low <= int(drawn.sum()) <= high


def test_a_class_of_probability_1e_12_has_its_own_numbers():
    """No cap at 24 or 32 bits: the class owns the numbers that the cdf leaves above 1 - 1e-12."""
    base = torch.tensor([1 - 1e-12, 1e-12], dtype=torch.float64)
    chain = d3.transitions.marginal(2, [1.0], base)
    draw = torch.tensor([1 - 2e-12, 1 - 5e-13], dtype=torch.float64)
    assert torch.searchsorted(chain.pi_cdf, draw, right=True).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("seed", "word2", "word3"), [(0, 0xBC57AC4C, 0x9B00DBD8), (0x299F31D0A4093822, None, None)]
)
def test_a_draw_is_53_bits_of_philox(impl, seed, word2, word3):
    """With 2^53 classes and nothing kept, the class is the random number itself."""
    if word2 is None:
        zero = torch.zeros((), dtype=torch.int64)
        words = philox((zero,) * 4, (torch.tensor(0xA4093822), torch.tensor(0x299F31D0)))
        word2, word3 = int(words[2]), int(words[3])
    chain = d3.transitions.uniform(2**53, [1.0])
    one, seeds = torch.ones(1, dtype=torch.int64), torch.tensor([seed])
    drawn = functional.q_sample(chain, one, one, seeds=seeds, impl=impl)
    assert int(drawn) == word3 << 21 | word2 >> 11


def test_classes_of_probability_1e_9_come_at_their_rate(cpu):
    """Of 10^5 such classes between common ones, 10^7 draws meet 1000, nearly all different.

    Numbers of 24 bits would meet the same few of them again and again.
    """
    rare, draws = 100_000, 10_000_000
    base = torch.full((2 * rare,), 1e-9, dtype=torch.float64)
    base[1::2] = (1 - 1e-9 * rare) / rare
    chain = d3.transitions.marginal(2 * rare, [1.0], base)
    x0, t = torch.zeros(10, draws // 10, dtype=torch.int64), torch.ones(10, dtype=torch.int64)
    drawn = functional.q_sample(chain, x0, t, generator=generator(), impl=cpu)
    seen = drawn[drawn % 2 == 0]
    assert_rate(len(seen), 1000)
    assert len(seen.unique()) >= 0.97 * len(seen)


@given(
    family=st.sampled_from(FAMILIES),
    num_classes=st.integers(2, 300),
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    seed=st.integers(-(2**63), 2**63 - 1),
    step=st.integers(0, 2**63 - 1),
)
def test_any_seed_and_step_draw_classes_and_the_same_everywhere(
    family, num_classes, shape, seed, step, kernels
):
    chain = make_chain(family, num_classes).transition
    x0, t = torch.randint(num_classes, shape), torch.randint(0, 7, shape[:1])
    seeds = torch.full(shape[:1], seed)
    drawn = [
        functional.q_sample(chain, x0, t, seeds=seeds, step=step, impl=impl)
        for impl in ("reference", kernels)
    ]
    assert torch.equal(*drawn)
    assert bool(((drawn[0] >= 0) & (drawn[0] < num_classes)).all())


def test_d1_forbidden_states_are_never_drawn(impl):
    chain = d3.transitions.absorbing(256, d3.schedules.jsd(10), 255)
    x0 = torch.full((10, 2000), 7)
    drawn = functional.q_sample(chain, x0, torch.arange(10) + 1, impl=impl)
    assert set(drawn.unique().tolist()) == {7, 255}
    assert (drawn[-1] == 255).all()


def test_at_time_0_the_data_comes_back(impl):
    chain = make_chain("uniform", 5)
    x0 = torch.randint(5, (2, 9))
    assert torch.equal(
        functional.q_sample(chain.transition, x0, torch.zeros(2).long(), impl=impl), x0
    )


def test_two_calls_on_one_generator_draw_what_one_call_draws(impl):
    chain = make_chain("mask_and_uniform", 9).transition
    x0, t = torch.randint(9, (8, 5)), torch.full((8,), 3)
    whole = functional.q_sample(chain, x0, t, generator=generator(), impl=impl)
    again = generator()
    parts = [
        functional.q_sample(chain, x0[part], t[part], generator=again, impl=impl)
        for part in (slice(0, 3), slice(3, 8))
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_the_number_of_threads_does_not_matter(cpu):
    chain = make_chain("marginal", 9).transition
    x0, t = torch.randint(9, (64, 500)), torch.full((64,), 4)
    drawn = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        drawn.append(functional.q_sample(chain, x0, t, generator=generator(), impl=cpu))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_the_dtype_of_the_tokens_is_kept(dtype, impl):
    chain = make_chain("uniform", 5).transition
    x0 = torch.randint(5, (4, 6))
    t = torch.tensor([1, 2, 3, 4])
    wide = functional.q_sample(chain, x0, t, generator=generator(), impl=impl)
    narrow = functional.q_sample(chain, x0.to(dtype), t.to(dtype), generator=generator(), impl=impl)
    assert narrow.dtype == dtype
    assert torch.equal(narrow.long(), wide)


def test_times_may_differ_from_token_to_token(impl):
    chain = make_chain("absorbing_last", 5)
    x0, t = torch.randint(4, (3, 4)), torch.randint(1, 7, (3, 4))
    seeds = torch.arange(3)
    drawn = functional.q_sample(chain.transition, x0, t, seeds=seeds, impl=impl)
    for position in range(4):
        column = functional.q_sample(chain.transition, x0, t[:, position], seeds=seeds, impl=impl)
        assert torch.equal(column[:, position], drawn[:, position])


def test_rows_of_helpers_agree_with_one_hot_products():
    chain = make_chain("marginal", 4)
    assert torch.allclose(chain.forward(one_hot(torch.arange(4), 4), 0, 3), chain.product(0, 3))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16])
@pytest.mark.parametrize("family", ["mask_and_uniform", "gaussian"])
def test_what_a_mask_leaves_out_comes_back_whatever_it_is(family, dtype, impl):
    make = make_chain if family in FAMILIES else make_dense_chain
    chain = make(family, 5).transition
    x0, t, seeds = torch.randint(5, (4, 6)), torch.tensor([3, 4, 5, 6]), torch.arange(4)
    mask = torch.rand(4, 6) < 0.5
    padded = x0.where(mask, torch.tensor([-100, 5, 2, 10_000])[:, None]).to(dtype)
    diffusion = d3.D3PM(chain, impl=impl)
    whole = functional.q_sample(chain, x0, t, seeds=seeds, step=7, impl=impl)
    for drawn in (
        functional.q_sample(chain, padded, t, mask=mask, seeds=seeds, step=7, impl=impl),
        diffusion.q_sample(padded, t, seeds=seeds, step=7, mask=mask),
    ):
        assert drawn.dtype == dtype
        assert torch.equal(drawn.long(), whole.where(mask, padded.long()))
    assert torch.equal(diffusion.q_sample(x0, t, seeds=seeds, step=7), whole)
    with pytest.raises(IndexError, match=r"x0 must lie in \[0, 5\), got -100"):
        diffusion.q_sample(padded, t, mask=torch.ones_like(mask))
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        diffusion.q_sample(padded, t, mask=mask.long())
