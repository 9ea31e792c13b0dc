"""Shaped logits: against rows of Python's floats, and what is drawn from them."""

import math

import pytest
import torch
from helpers.compare import assert_close, compute_dtype, same_bits
from helpers.laws import assert_follows
from hypothesis import given
from hypothesis import strategies as st

import d3pm_fast as d3
from d3pm_fast import chunks as of_chunks
from d3pm_fast import functional, ops, schedules, transitions
from d3pm_fast.functional import Shaped
from d3pm_fast.shaped import maker_of

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
    "cold top 9 and nucleus": {"temperature": 0.7, "top_k": 9, "top_p": 0.8},
}
T = 6


def grid(*shape, forbidden=0.1, seed=0):
    """Multiples of 1/8, which every dtype holds, with many ties; some are -inf."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = (24 * values).round().clamp(-127, 127) / 8
    is_forbidden = torch.rand(shape, generator=generator) < forbidden
    is_forbidden[..., 0] = False
    return values.masked_fill(is_forbidden, -torch.inf)


def make(impl, shaped):
    """The shaped logits by an implementation, where its tensors have to be."""
    device = "cuda" if impl == "triton" and torch.cuda.is_available() else "cpu"
    tensors = (None if tensor is None else tensor.to(device) for tensor in shaped[:2])
    return maker_of(shaped, ops.shaped.operation(impl))(*tensors).cpu()


def naive_row(row, other, shaped):
    """The mixed and divided row, and the classes that are kept in order, in Python's floats."""
    if other is not None:
        row = [
            -math.inf if -math.inf in (c, u) else u + shaped.guidance * (c - u)
            for c, u in zip(row, other, strict=True)
        ]
    row = [x / shaped.temperature for x in row]
    ranked = sorted(range(len(row)), key=lambda j: (-row[j], j))[: shaped.top_k]
    if shaped.top_p is None:
        return row, ranked
    masses = [math.exp(row[j] - row[ranked[0]]) for j in ranked]
    total, kept, reached = math.fsum(masses), [], 0.0
    for j, mass in zip(ranked, masses, strict=True):
        if reached >= shaped.top_p * total:
            break
        kept.append(j)
        reached += mass
    return row, kept


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
        if shaped.top_p is not None:
            down, up = (shaped.top_p * (1 + sign * slack) for sign in (-1, 1))
            fewest = naive_row(row, other, shaped._replace(top_p=down))[1]
            most = naive_row(row, other, shaped._replace(top_p=up))[1]
        kept = [j for j in most if found[j] > -math.inf]
        possible = [j for j in most if truth[j] > -math.inf]
        assert kept == possible[: len(kept)], "not the largest, or not the first of equal ones"
        assert len(kept) >= sum(truth[j] > -math.inf for j in fewest)
        assert int(found.isfinite().sum()) == len(kept)
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
    dtype=st.sampled_from(DTYPES),
)
def test_any_row_is_the_naive_one(impl, values, temperature, top_k, top_p, dtype):
    shaped = Shaped(torch.tensor([values], dtype=dtype), None, 1.0, temperature, top_k, top_p)
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
        opposite = torch.where(logits == 0.0, -torch.inf, 0.0)
        made = make(
            impl, Shaped(logits, opposite.where(logits == -torch.inf, -torch.inf), guidance)
        )
        assert bool((made == -torch.inf).all())


def test_of_equal_logits_exactly_k_are_kept_the_first(impl):
    logits = torch.zeros(1, 21)
    logits[0, 3::2] = -0.0
    logits[0, 7] = 1.0
    for k in (1, 2, 8, 20):
        kept = make(impl, Shaped(logits, top_k=k)).isfinite()[0].nonzero().flatten().tolist()
        assert kept == sorted([7, *(j for j in range(21) if j != 7)][:k])


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


@pytest.mark.parametrize("num_classes", [9000, 17_000])
def test_long_rows_are_the_reference_s(kernels, num_classes):
    """Beyond the rows that a program of a GPU holds whole."""
    logits, other = (grid(1, num_classes, seed=seed).float() for seed in (1, 2))
    shaped = Shaped(logits, other, 2.0, 0.8, top_k=num_classes // 3, top_p=0.95)
    assert torch.equal(make(kernels, shaped), make("reference", shaped))


def chains():
    return {
        "uniform": transitions.uniform(12, schedules.cosine(T)),
        "absorbing": transitions.absorbing(12, schedules.jsd(T), mask_id=4),
        "gaussian": transitions.discretized_gaussian(12, schedules.linear(T, 0.1, 0.4)),
    }


def problem(name, dtype=torch.float64, shape=(5, 3)):
    chain = chains()[name]
    x_t = functional.q_sample(chain, torch.randint(12, shape), torch.full(shape[:1], T - 1))
    t = torch.arange(shape[0]) % T + 1
    shaped = Shaped(
        grid(*shape, 12, seed=1).to(dtype), grid(*shape, 12, seed=2).to(dtype), 1.5, 0.7, 9, 0.9
    )
    return chain, shaped, x_t, t


@pytest.fixture(params=[1, 1 << 21], ids=["an item a chunk", "one chunk"])
def chunks(request, monkeypatch):
    monkeypatch.setitem(of_chunks.CHUNK_BYTES, "cpu", request.param)


@pytest.mark.parametrize("reverse", ["joint", "posterior_mean"])
@pytest.mark.parametrize("name", chains())
def test_posteriors_and_draws_are_those_of_the_made_logits(name, reverse, impl, chunks):
    if impl == "cuda" and name == "gaussian":
        pytest.skip("it serves rank-one chains")
    chain, shaped, x_t, t = problem(name)
    made = make("reference", shaped)
    seeds = torch.arange(len(t))
    for s in (None, torch.zeros_like(t)):
        args = x_t, t, s
        found = functional.p_posterior(chain, shaped, *args, reverse=reverse, impl=impl)
        truth = functional.p_posterior(chain, made, *args, reverse=reverse, impl="reference")
        assert_close(found, truth, torch.float64, ulps=256, scale=truth.abs() + 1)
        drawn = [
            functional.p_sample(chain, logits, *args, reverse=reverse, seeds=seeds, impl=impl)
            for logits in (shaped, made)
        ]
        assert torch.equal(*drawn)


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"temperature": 0.5, "top_p": 0.8}])
def test_draws_follow_the_posterior_of_the_shaped_prediction(cpu, options):
    """The law by hand: a uniform chain's matrices, and the naive row's softmax."""
    k, draws = 6, 20_000
    chain = transitions.uniform(k, [0.3, 0.4])
    shaped = Shaped(torch.randn(1, k).double(), torch.randn(1, k).double(), 2.0, **options)
    row, kept = naive_row(shaped.logits[0].tolist(), shaped.unconditional[0].tolist(), shaped)
    weights = torch.zeros(k).double()
    weights[kept] = torch.tensor(row).double()[kept].softmax(0)
    step, before = chain.q_matrix(2), chain.q_bar_matrix(1)
    law = step[:, 2] * (weights @ before)
    many = shaped._replace(
        **{name: getattr(shaped, name).expand(draws, 1, k) for name in ("logits", "unconditional")}
    )
    x_t, t = torch.full((draws, 1), 2), torch.full((draws,), 2)
    drawn = functional.p_sample(chain, many, x_t, t, impl=cpu)
    assert_follows(drawn, (law / law.sum())[None])
    drawn = functional.p_sample(chain, many, x_t, t, 0 * t, impl=cpu)
    assert_follows(drawn, weights[None])


def test_an_item_s_draw_does_not_depend_on_the_others(impl):
    chain, shaped, x_t, t = problem("uniform", torch.float32)
    seeds = torch.arange(len(t))
    whole = functional.p_sample(chain, shaped, x_t, t, seeds=seeds, impl=impl)
    for n in range(len(t)):
        item = slice(n, n + 1)
        alone = shaped._replace(
            logits=shaped.logits[item], unconditional=shaped.unconditional[item]
        )
        drawn = functional.p_sample(chain, alone, x_t[item], t[item], seeds=seeds[item], impl=impl)
        assert torch.equal(drawn, whole[item])


def test_layouts_and_threads_give_the_same_bits(cpu):
    logits, other = grid(2, 40, 300, seed=3).float()
    shaped = Shaped(logits, other, 2.0, 0.8, 50, 0.9)
    expected = make(cpu, shaped)
    torch.set_num_threads(2)
    assert same_bits(make(cpu, shaped), expected)
    chain, shaped, x_t, t = problem("uniform")
    turned = shaped._replace(logits=shaped.logits.transpose(0, 1).contiguous().transpose(0, 1))
    values = [functional.p_posterior(chain, s, x_t, t, impl=cpu) for s in (shaped, turned)]
    assert torch.equal(*values)


def test_a_denoiser_may_return_shaped_logits(cpu):
    diffusion = d3.D3PM(chains()["absorbing"])
    logits = torch.randn(12)

    def greedy(x_t, t):
        return Shaped(logits.expand(*x_t.shape, 12), top_k=1)

    x = diffusion.sample(greedy, (3, 7))
    assert bool((x == logits.argmax()).all())


def test_an_empty_batch_has_no_draws(impl):
    chain = chains()["uniform"]
    x_t = torch.zeros(0, 3).long()
    shaped = Shaped(torch.zeros(0, 3, 12), top_k=2, top_p=0.5)
    drawn = functional.p_sample(chain, shaped, x_t, torch.zeros(0).long(), impl=impl)
    assert drawn.shape == (0, 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_finds_nothing(dtype, cpu):
    logits, other = torch.randn(2, 3, 4, 9).to(dtype)
    for unconditional in (None, other):
        arguments = logits, unconditional, 2.0, 0.5, 4, 0.9
        torch.library.opcheck(torch.ops.d3pm_fast.shaped_logits.default, arguments)


def test_draws_compile_into_one_graph(cpu):
    chain, shaped, x_t, t = problem("uniform", torch.float32)
    seeds = torch.arange(len(t))

    def draw(logits, unconditional):
        made = shaped._replace(logits=logits, unconditional=unconditional)
        return functional.p_sample(chain, made, x_t, t, seeds=seeds, impl=cpu)

    torch._dynamo.reset()
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*shaped[:2]), draw(*shaped[:2]))


def test_a_loss_takes_no_shaped_logits():
    chain, shaped, x_t, t = problem("uniform")
    with pytest.raises(TypeError, match=r"logits must be those of the model.*got Shaped"):
        functional.loss(chain, shaped, x_t, x_t, t)


def test_a_gradient_that_there_is_not_is_named(impl):
    chain, shaped, x_t, t = problem("uniform")
    shaped.unconditional.requires_grad_()
    with pytest.raises(ValueError, match="p_posterior of Shaped logits has no gradient"):
        functional.p_posterior(chain, shaped, x_t, t, impl=impl)
    with torch.no_grad():
        functional.p_posterior(chain, shaped, x_t, t, impl=impl)
    assert functional.p_sample(chain, shaped, x_t, t, impl=impl).shape == x_t.shape


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": [0.0]}, TypeError, "logits must be a tensor, got list"),
        ({"logits": torch.zeros(5, 3, 12).long()}, TypeError, "logits must be float32.*int64"),
        (
            dict.fromkeys(("logits", "unconditional"), torch.zeros(5, 3, 11)),
            ValueError,
            r"logits must have shape \(5, 3, 12\), got \(5, 3, 11\)",
        ),
        ({"unconditional": torch.zeros(5, 12)}, ValueError, "unconditional must have shape"),
        ({"unconditional": torch.zeros(5, 3, 12).half()}, TypeError, "unconditional must be"),
        ({"unconditional": 0.0}, TypeError, "unconditional must be a tensor, got float"),
        ({"unconditional": None}, ValueError, "guidance 1.5 needs unconditional logits"),
        ({"guidance": math.nan}, ValueError, "guidance must be finite"),
        ({"guidance": "3"}, TypeError, "guidance must be a number, got str"),
        ({"temperature": 0}, ValueError, "temperature must be positive, got 0; .*argmax.*top_k=1"),
        ({"temperature": -1.0}, ValueError, "temperature must be positive, got -1.0"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_k": 2.0}, TypeError, "top_k must be an integer, got float"),
        ({"top_p": 0.0}, ValueError, r"top_p must lie in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, ValueError, r"top_p must lie in \(0, 1\], got 1.5"),
    ],
)
def test_bad_input_is_named(change, error, message):
    chain, shaped, x_t, t = problem("uniform")
    for operation in (functional.p_sample, functional.p_posterior):
        with pytest.raises(error, match=message):
            operation(chain, shaped._replace(**change), x_t, t)
