"""Shaped logits: against rows of Python's floats, their ties, limits and what is forbidden."""

import math

import pytest
import torch
from helpers.compare import assert_close, compute_dtype, same_bits
from helpers.shaped import grid, make, naive_row
from hypothesis import given
from hypothesis import strategies as st

from d3pm_fast import functional, transitions
from d3pm_fast.functional import Shaped

ALSO_BY = ("triton",)  # the fixture impl; see conftest.py
SIZES = [2, 3, 8, 17, 64, 300]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
OPTIONS = {
    "nothing": {},
    "cold": {"temperature": 1e-2},
    "hot": {"temperature": 1e2},
    "largest": {"top_k": 1},
    "top 5": {"top_k": 5},
    "more than all": {"top_k": 1000},
    "all": {"top_p": 1.0},
    "nucleus": {"top_p": 0.9},
    "tiny nucleus": {"top_p": 1e-9},
    "nucleus of no float32 number": {"top_p": 1e-60},
    "every probability": {"min_p": 0.0},
    "a tenth of the largest": {"min_p": 0.1},
    "equals of the largest": {"min_p": 1.0},
    "hot, no float32 number": {"temperature": 100.0, "min_p": 1e-60},
    "cold top 9, nucleus and a tenth": {
        "temperature": 0.7,
        "top_k": 9,
        "top_p": 0.95,
        "min_p": 0.1,
    },
    "cold top 9 and nucleus": {"temperature": 0.7, "top_k": 9, "top_p": 0.8},
}


def check(made, shaped, row_scale=1.0):
    """Fail unless the rows are the naive ones, up to a number a row and a hair's breadth of p."""
    dtype = shaped.logits.dtype
    assert made.dtype == compute_dtype(dtype)
    num_classes = made.shape[-1]
    pairs = [
        [None] * shaped.logits[..., 0].numel()
        if tensor is None
        else tensor.double().reshape(-1, num_classes).tolist()
        for tensor in shaped[:2]
    ]
    slack = 64 * torch.finfo(made.dtype).eps
    for found, row, other in zip(made.reshape(-1, num_classes).double(), *pairs, strict=True):
        truth, kept = naive_row(row, other, shaped)
        fewest = most = kept
        if shaped.top_p is not None or shaped.min_p:
            fewest, most = (
                naive_row(
                    row,
                    other,
                    shaped._replace(
                        top_p=shaped.top_p and shaped.top_p * (1 + hair),
                        min_p=shaped.min_p and shaped.min_p * (1 - 8 * hair),
                    ),
                )[1]
                for hair in (-slack, slack)
            )
        kept = [j for j in most if found[j] > -math.inf]
        possible = [j for j in most if truth[j] > -math.inf]
        assert kept == possible[: len(kept)], "not the largest, or not the first of equal ones"
        assert len(kept) >= sum(truth[j] > -math.inf for j in fewest)
        assert int(found.isfinite().sum()) == len(kept)
        assert kept or not possible, "one class at least is left"
        if kept:
            values = torch.tensor(truth, dtype=torch.float64)[kept]
            size = values.abs().max() + row_scale / shaped.temperature
            shift = values[0] - found[kept[0]]
            assert_close(found[kept] + shift, values, made.dtype, ulps=16, scale=size)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("num_classes", SIZES)
def test_rows_are_the_naive_ones(impl, num_classes, options):
    shaped = Shaped(grid(4, num_classes).float(), **options)
    check(make(impl, shaped), shaped)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "top_k": 6, "top_p": 0.9}])
@pytest.mark.parametrize("guidance", [-1.0, 0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_guided_rows_are_the_naive_ones(impl, dtype, guidance, options):
    logits, other = (grid(4, 37, seed=seed).to(dtype) for seed in (1, 2))
    shaped = Shaped(logits, other, guidance, **options)
    check(make(impl, shaped), shaped, row_scale=40 * (1 + abs(guidance)))


@given(
    values=st.lists(st.sampled_from([-math.inf, -2.0, -0.0, 0.0, 0.125, 3.0]), min_size=2),
    temperature=st.floats(1e-2, 1e2),
    top_k=st.none() | st.integers(1, 70),
    top_p=st.none() | st.floats(1e-6, 1.0),
    min_p=st.none() | st.floats(0.0, 1.0),
    dtype=st.sampled_from(DTYPES),
)
def test_any_row_is_the_naive_one(impl, values, temperature, top_k, top_p, min_p, dtype):
    logits = torch.tensor([values], dtype=dtype)
    shaped = Shaped(logits, None, 1.0, temperature, top_k, top_p, min_p)
    check(make(impl, shaped), shaped)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_change_the_logits_are_the_same_bits(impl, dtype):
    logits = grid(5, 19).to(dtype)
    logits[0, 1] = -0.0
    expected = logits.to(compute_dtype(dtype))
    for options in ({}, {"top_k": 19, "top_p": 1.0}, {"top_k": 10**9}):
        assert same_bits(make(impl, Shaped(logits, **options)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_guidance_is_exact_at_both_ends(impl, dtype):
    logits, other = (torch.randn(2, 5, 33, dtype=torch.float64) * 7).to(dtype)
    for guidance, expected in ((0.0, other), (1.0, logits)):
        made = make(impl, Shaped(logits, other, guidance))
        assert torch.equal(made, expected.to(made.dtype))


def test_what_either_forbids_stays_forbidden(impl):
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]])
    other = torch.tensor([[-torch.inf, 0.0, 2.0, -torch.inf]])
    for guidance in (-2.0, 0.0, 1.0, 3.0):
        made = make(impl, Shaped(logits, other, guidance, temperature=0.5, top_p=0.5))
        assert (made > -torch.inf).tolist() == [[False, False, True, False]]
        assert not bool(made.isnan().any())
        opposite = torch.where(logits == -torch.inf, 0.0, -torch.inf)
        made = make(impl, Shaped(logits, opposite, guidance))
        assert bool((made == -torch.inf).all())


def test_of_equal_logits_exactly_k_are_kept_the_first(impl):
    logits = torch.zeros(1, 21)
    logits[0, 3::2] = -0.0
    logits[0, 7] = 1.0
    for k in (1, 2, 8, 20):
        kept = make(impl, Shaped(logits, top_k=k)).isfinite()[0].nonzero().flatten().tolist()
        assert kept == sorted([7, *(j for j in range(21) if j != 7)][:k])


@pytest.mark.parametrize("num_classes", [12, 14, 20, 24, 58])
def test_of_equal_logits_half_the_probability_is_half_of_the_classes(impl, num_classes):
    shaped = Shaped(torch.zeros(1, num_classes), top_p=0.5)
    x_t, t = torch.tensor([0]), torch.tensor([1])
    chain = transitions.uniform(num_classes, [0.5, 1.0])
    log_p = functional.p_posterior(chain, shaped, x_t, t, impl=impl)
    assert log_p.isfinite().tolist() == [[j < num_classes // 2 for j in range(num_classes)]]


@pytest.mark.parametrize(
    ("temperature", "size", "expected"),
    [(1e-300, 3e38, [0, 0.5, 0, 0, 0.5]), (1e300, 1e5, [0.25, 0.25, 0, 0.25, 0.25])],
)
def test_extreme_temperatures_have_their_limits(impl, temperature, size, expected):
    logits = torch.tensor([[0.0, size, -torch.inf, -size, size]])
    law = make(impl, Shaped(logits, temperature=temperature)).softmax(-1)
    torch.testing.assert_close(law, torch.tensor([expected]))


def test_a_number_that_is_none_takes_nothing_with_it(impl):
    logits = grid(3, 12, forbidden=0).float()
    spoiled = logits.clone()
    spoiled[1, 4] = torch.nan
    options = {"temperature": 0.5, "top_k": 5, "top_p": 0.7}
    made, expected = (make(impl, Shaped(rows, **options)) for rows in (spoiled, logits))
    assert torch.equal(made[[0, 2]], expected[[0, 2]])


def test_long_rows_are_the_reference_s(impl):
    """Beyond the rows that a program of a GPU holds whole."""
    logits, other = (grid(1, 5000, seed=seed).float() for seed in (1, 2))
    shaped = Shaped(logits, other, 2.0, 0.8, top_k=1700, top_p=0.95)
    assert torch.equal(make(impl, shaped), make("reference", shaped))


def test_threads_give_the_same_bits(cpu):
    logits, other = grid(2, 400, 300, seed=3).float()
    shaped = Shaped(logits, other, 2.0, 0.8, 50, 0.9)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(make(cpu, shaped))
    assert same_bits(*found)


def test_each_implementation_serves_draws(kernels):
    """Also those that are too slow here for the tests of draws."""
    chain = transitions.uniform(12, [0.2, 0.3])
    shaped = Shaped(grid(2, 3, 12, seed=1), grid(2, 3, 12, seed=2), 1.5, 0.7, 9, 0.9)
    x_t, t, seeds = torch.arange(6).view(2, 3), torch.tensor([1, 2]), torch.arange(2)
    drawn, expected = (
        functional.p_sample(chain, logits, x_t, t, seeds=seeds, impl=name)
        for logits, name in ((shaped, kernels), (make("reference", shaped), "reference"))
    )
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_finds_nothing(dtype, cpu):
    logits, other = torch.randn(2, 3, 4, 9).to(dtype)
    for unconditional in (None, other):
        arguments = logits, unconditional, 2.0, 0.5, 4, 0.9, 0.01, 3
        torch.library.opcheck(torch.ops.d3pm_fast.shaped_logits.default, arguments)
