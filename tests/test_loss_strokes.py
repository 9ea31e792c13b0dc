"""The loss in four strokes: each by its definition, all together equal to the fused kernel."""

import pytest
import torch
from helpers.chains import FAMILIES, REVERSE, likely_pairs, make_chain
from helpers.compare import assert_close, check_gradient, same_bits
from hypothesis import given
from hypothesis import strategies as st

from d3pm_fast import ops
from d3pm_fast.chains.structures import RANK_ONE
from d3pm_fast.records import Loss, Model, Shard, Weights

# More classes than the kernels put across vectors or into one tile of float64: the order of all
# sums is then that of the strokes.
LONG = 300


@pytest.fixture(params=["cpu", "triton"])
def by(request):
    """The implementations that have the strokes."""
    return request.getfixturevalue(request.param)


def call_of(chain, logits, x0, x_t, t, reverse="joint", direct=False, mask=None, ce=0.1):
    model = Model(reverse == "posterior_mean", direct)
    step = chain.transition.step_record(t, None)
    return Loss(logits, x0, mask, x_t, step, model, Weights(1.0, ce))


def random_call(family, num_classes, dtype=torch.float64, count=1, scale=2.0, **options):
    chain = make_chain(family, num_classes)
    x0, x_t, t = likely_pairs(chain, chain.edge_times(), count)
    logits = (scale * torch.randn(len(t), num_classes)).to(dtype)
    return call_of(chain, logits, x0, x_t, t, **options)


def kernel(operation, by):
    return operation.kernel(by, RANK_ONE.name)


def shards_of(of, *cuts):
    """The call in shards that begin at 0 and at each cut."""
    parts = of.logits.tensor_split(cuts, dim=-1)
    return [
        (of._replace(logits=part.contiguous()), Shard(first))
        for part, first in zip(parts, (0, *cuts), strict=True)
    ]


def in_strokes(of, by, *cuts):
    """The losses that the shards come to, and the gradient of the whole row."""
    shards = shards_of(of, *cuts)
    statistics = ops.merged([kernel(ops.loss_statistics, by)(*shard) for shard in shards])
    line = kernel(ops.loss_solve, by)(*shards[0], statistics)
    sums = sum(kernel(ops.loss_sums, by)(*shard, statistics, line) for shard in shards)
    losses, gradients = zip(
        *(kernel(ops.loss_gradient, by)(*shard, statistics, sums) for shard in shards),
        strict=True,
    )
    assert all(same_bits(loss, losses[0]) for loss in losses), "the shards differ in their loss"
    return losses[0], torch.cat(gradients, -1)


def fused(of, by):
    return kernel(ops.loss_and_grad, by)(of, "none", False)


def assert_alike(of, by, *cuts, ulps=64):
    """Compare strokes on shards with the fused kernel, where the numbers are finite."""
    dtype = of.logits.dtype
    loss, gradient = in_strokes(of, by, *cuts)
    expected, expected_gradient = (result.double() for result in fused(of, by))
    assert_close(loss, expected, dtype, ulps=ulps, scale=expected.abs() + 1)
    check_gradient(gradient, expected_gradient, dtype, ulps=ulps, floor=0.1)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_fused_kernel_is_their_composition(by, family, reverse, direct):
    of = random_call(family, LONG, reverse=reverse, direct=direct)
    for found, expected in zip(in_strokes(of, by), fused(of, by), strict=True):
        assert same_bits(found, expected)


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_may_be_cut_into_shards(by, family, reverse):
    assert_alike(random_call(family, 11, reverse=reverse), by, 1, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_classes", [2, 37, LONG])
@pytest.mark.parametrize("family", ["uniform", "marginal_with_zeros", "mask_and_uniform"])
def test_every_dtype(by, family, num_classes, dtype):
    of = random_call(family, num_classes, dtype)
    assert_alike(of, by, num_classes // 3, num_classes // 2)


@given(
    st.sampled_from(FAMILIES),
    st.sampled_from(REVERSE),
    st.sampled_from([torch.float64, torch.float32]),
    st.integers(2, 600).flatmap(lambda k: st.tuples(st.just(k), st.sets(st.integers(1, k)))),
    st.sampled_from([0.0, 1.0, 30.0, 1e4]),
)
def test_any_shards_of_any_row(cpu, family, reverse, dtype, sizes, scale):
    num_classes, cuts = sizes
    of = random_call(family, num_classes, dtype, scale=scale, reverse=reverse, ce=0.0)
    loss, gradient = in_strokes(of, cpu, *sorted(cuts))
    expected, expected_gradient = (result.double() for result in fused(of, cpu))
    assert_close(loss, expected, dtype, ulps=256, scale=expected.abs() + 1)
    error = (gradient.double() - expected_gradient).norm(dim=-1)
    size = expected_gradient.norm(dim=-1).clamp(min=1)
    assert bool((error <= 256 * torch.finfo(dtype).eps * size).all())


def test_statistics_are_those_of_their_definition(by):
    of = random_call("mask_and_uniform", 9)
    mask_id = of.step.mask_id
    for part, shard in shards_of(of, 4, 5):
        found = kernel(ops.loss_statistics, by)(part, shard)
        for n, (x0, x_t) in enumerate(zip(of.x0.tolist(), of.x_t.tolist(), strict=True)):
            row = dict(enumerate(part.logits[n].tolist(), start=shard.first))
            top = max(row.values())
            mask = None if mask_id in (x0, x_t) else mask_id
            special = [row.get(j, -torch.inf) for j in (x0, x_t, mask)]
            rest = [logit - top for j, logit in row.items() if j not in (x0, x_t, mask_id)]
            total = torch.tensor(rest, dtype=torch.float64).exp().sum()
            expected = torch.tensor([top, total, *special], dtype=torch.float64)
            assert_close(found[n], expected, torch.float64)


@pytest.mark.parametrize("family", ["uniform", "marginal", "mask_and_uniform"])
def test_line_and_sums_are_those_of_their_definition(by, family):
    chain = make_chain(family, 7)
    x0, x_t, t = likely_pairs(chain, [2, 5], 3)
    of = call_of(chain, 2 * torch.randn(len(t), 7, dtype=torch.float64), x0, x_t, t)
    whole = of, Shard(0)
    statistics = kernel(ops.loss_statistics, by)(*whole)
    line = kernel(ops.loss_solve, by)(*whole, statistics)
    sums = kernel(ops.loss_sums, by)(*whole, statistics, line)
    pi = torch.full((7,), 1 / 7, dtype=torch.float64) if of.step.pi is None else of.step.pi
    for n, (start, end, time) in enumerate(zip(x0.tolist(), x_t.tolist(), t.tolist(), strict=True)):
        reached = chain.product(0, time - 1)
        column = chain.matrix(time)[:, end]
        q = column * reached[start]
        p = column * (of.logits[n].softmax(-1) @ reached)
        g = (p / p.sum()) / (q / q.sum()) - 1
        rest = [j for j in range(7) if j not in (start, end, of.step.mask_id)]
        ratio, shift, slope = line[n]
        e = (of.logits[n] - of.logits[n].max()).exp()
        lift = slope * e / pi
        assert_close((ratio + lift)[rest], 1 + g[rest], torch.float64, ulps=32)
        assert_close((shift + lift)[rest], g[rest], torch.float64, ulps=64, scale=1 + g[rest].abs())
        expected = torch.stack(((pi * (g - g.log1p()))[rest].sum(), (e * g / (1 + g))[rest].sum()))
        assert_close(sums[n], expected, torch.float64, ulps=64, scale=1 + expected.abs())


def test_sums_are_zero_and_read_nothing_where_none_are_needed(by):
    of = random_call("absorbing_last", 6)
    whole = of._replace(logits=torch.full_like(of.logits, torch.nan)), Shard(0)
    line = kernel(ops.loss_solve, by)(of, Shard(0), torch.zeros(len(of.x0), 5).double())
    assert torch.equal(line, torch.tensor([1.0, 1, 0]).double().expand_as(line))
    sums = kernel(ops.loss_sums, by)(*whole, torch.zeros(len(of.x0), 5).double(), line)
    assert not sums.any()


def test_tokens_that_do_not_count_and_pairs_that_cannot_be(by):
    of = random_call("absorbing_last", 6, count=4)
    mask = torch.arange(len(of.x0)) % 3 > 0
    wrong = torch.where(of.x0 < 4, of.x0 + 1, 0)  # neither x_0 nor the mask
    of = of._replace(mask=mask, x_t=torch.where(torch.arange(len(of.x0)) % 4 == 1, wrong, of.x_t))
    of.logits[~mask] = torch.nan
    loss, gradient = in_strokes(of, by, 2, 5)
    expected, expected_gradient = fused(of, by)
    assert bool(expected.isnan().any())
    assert not loss[~mask].any()
    assert_close(loss, expected, torch.float64, ulps=64, scale=1 + expected.nan_to_num().abs())
    assert torch.equal(gradient.isnan(), expected_gradient.isnan())


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")  # the interpreter's
@pytest.mark.parametrize("row", [[torch.nan, 0.0, 1.0, 2.0], [-torch.inf] * 4])
def test_a_row_that_is_no_law_has_no_loss(by, row):
    of = random_call("uniform", 4)
    of.logits[0] = torch.tensor(row)
    loss, gradient = in_strokes(of, by, 1, 2)
    assert loss.isnan().tolist() == fused(of, by)[0].isnan().tolist()
    assert bool(loss[0].isnan() & gradient[0].isnan().all())


def test_a_shard_may_have_nothing_but_forbidden_classes(by):
    of = random_call("mask_and_uniform", 6)
    of.logits[:, 2:4] = -torch.inf
    of = of._replace(x0=of.x0.clamp(max=1))
    loss, gradient = in_strokes(of, by, 2, 4)
    expected, expected_gradient = fused(of, by)
    assert_close(loss, expected, torch.float64, ulps=64, scale=1 + expected.abs())
    assert_close(gradient, expected_gradient, torch.float64, ulps=64, scale=torch.ones(6))


def test_a_bad_class_is_an_error_in_every_stroke(cpu):
    of = random_call("uniform", 4)
    of.x_t[1] = 4
    numbers = (torch.zeros(len(of.x0), n, dtype=torch.float64) for n in (5, 3, 2))
    statistics, line, sums = numbers
    for operation, given_numbers in (
        (ops.loss_statistics, ()),
        (ops.loss_solve, (statistics,)),
        (ops.loss_sums, (statistics, line)),
        (ops.loss_gradient, (statistics, sums)),
    ):
        with pytest.raises(IndexError, match="x_t"):
            kernel(operation, cpu)(of, Shard(0), *given_numbers)


def test_opcheck_finds_nothing(cpu):
    of = random_call("marginal", 5)
    whole = of, Shard(0)
    statistics = kernel(ops.loss_statistics, cpu)(*whole)
    line = kernel(ops.loss_solve, cpu)(*whole, statistics)
    sums = kernel(ops.loss_sums, cpu)(*whole, statistics, line)
    flat = *of[:4], *of.step, *of.model, *of.weights, of.is_density, of.with_terms, 0
    for name, numbers in (
        ("statistics", ()),
        ("solve", (statistics,)),
        ("sums", (statistics, line)),
        ("gradient", (statistics, sums)),
    ):
        operation = getattr(torch.ops.d3pm_fast, f"loss_{name}").default
        torch.library.opcheck(operation, (*flat, *numbers))
