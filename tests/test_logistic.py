"""The discretized logistic parameterization: against 60 digits, at any scale, and its options."""

import functools

import pytest
import torch
from helpers.compare import assert_close, assert_gradient_close, gradient_mutations, same_bits
from helpers.logistic import exact_bins
from hypothesis import given
from hypothesis import strategies as st

from d3pm_fast import functional

# Around the vectors of 4, 8 and 16 classes, bytes, and a prime beyond 1024 summed at a time.
ALSO_BY = ("triton",)  # the fixture impl; see conftest.py
SIZES = [2, 3, 5, 16, 17, 27, 200, 201, 256, 257, 1000, 4099]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
CASES = [(k, torch.float32) for k in SIZES]
CASES += [(k, dtype) for k in (3, 17, 257) for dtype in DTYPES if dtype != torch.float32]
EDGES = [False, True]


def calculated_in(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def assert_logits_close(logits, truth, dtype, ulps=4, rounding=0.0):
    """Within ulps of the logit itself, or of 1 where it is smaller, and of ``rounding``."""
    scale = truth.abs().clamp(min=1) + rounding
    assert_close(logits, truth, calculated_in(dtype), ulps=ulps, scale=scale)


def reference_rounding(loc, log_scale, dtype, impl):
    """What the reference loses in float64, where the kernels lose nothing, ``(N, 1)``.

    It rounds the distance of a border and loc, and sigmoids whose difference is the gradient.
    """
    if impl != "reference" or dtype != torch.float64:
        return torch.zeros(len(loc), 1)
    return ((1 + loc.abs()) * (2 - log_scale).exp()).unsqueeze(-1)


def logits_and_gradients(loc, log_scale, upstream, impl, edge_corrected):
    """The logits, and the gradients for ``upstream``, both in a tuple."""
    leaves = [v.detach().clone().requires_grad_() for v in (loc, log_scale)]
    logits = functional.logistic_logits(
        *leaves, upstream.shape[-1], edge_corrected=edge_corrected, impl=impl
    )
    return logits.detach(), torch.autograd.grad(logits, leaves, upstream.to(logits.dtype))


def check_gradients(gradients, bins, upstream, dtype, ulps=24, rounding=0.0):
    """Each token's gradients within ulps of what they are sums of, and no mutant passes."""
    parts = ((bins.by_loc, bins.loc_terms), (bins.by_log_scale, bins.log_scale_terms))
    for gradient, (derivative, terms) in zip(gradients, parts, strict=True):
        truth = (upstream * derivative).sum(-1, keepdim=True)
        floor = (upstream.abs() * (terms * (1 + rounding) + rounding)).sum(-1)
        assert_gradient_close(gradient.unsqueeze(-1), truth, dtype, ulps=ulps, floor=floor)
        mutants = gradient_mutations(truth)
        del mutants["off-target entries zero"]  # there is one entry
        for mutant in mutants.values():
            with pytest.raises(AssertionError):
                assert_gradient_close(mutant.to(dtype), truth, dtype, ulps=ulps, floor=floor)


@functools.cache
def ordinary_rows(num_classes, dtype, edge_corrected):
    """Parameters as a network gives them, and the truth."""
    generator = torch.Generator().manual_seed(num_classes)
    num_tokens = 2 if num_classes > 500 else 4
    loc = torch.rand(num_tokens, generator=generator, dtype=torch.float64) * 2.4 - 1.2
    log_scale = 2 * torch.randn(num_tokens, generator=generator, dtype=torch.float64)
    loc, log_scale = loc.to(dtype), log_scale.to(dtype)
    upstream = torch.randn(num_tokens, num_classes, generator=generator)
    return (
        loc,
        log_scale,
        upstream.double(),
        exact_bins(loc, log_scale, num_classes, edge_corrected),
    )


@functools.cache
def hard_rows(num_classes, dtype, edge_corrected):
    """On a bin, between two, at the ends, far away; from almost a point to almost flat."""
    locs = [0.0, 1 / (num_classes - 1), 1.0, -1.0, 0.3, 1.7, -30.0, 1e4, -1e4]
    scales = [-20.0, -7.3, -2.0, 0.1, 2.0, 6.0, 20.0]
    pairs = torch.cartesian_prod(*(torch.tensor(v, dtype=torch.float64) for v in (locs, scales)))
    loc, log_scale = pairs.to(dtype).unbind(-1)
    return loc, log_scale, exact_bins(loc, log_scale, num_classes, edge_corrected)


@pytest.mark.parametrize("edge_corrected", EDGES)
@pytest.mark.parametrize(("num_classes", "dtype"), CASES)
def test_every_size_and_dtype_is_within_ulps(impl, num_classes, dtype, edge_corrected):
    loc, log_scale, upstream, bins = ordinary_rows(num_classes, dtype, edge_corrected)
    logits, gradients = logits_and_gradients(loc, log_scale, upstream, impl, edge_corrected)
    rounding = reference_rounding(loc, log_scale, dtype, impl)
    assert logits.dtype == calculated_in(dtype)
    assert all(gradient.dtype == dtype for gradient in gradients)
    assert_logits_close(logits, bins.logits, dtype, rounding=rounding)
    check_gradients(gradients, bins, upstream, dtype, rounding=rounding)


@pytest.mark.parametrize("edge_corrected", EDGES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("num_classes", [2, 5, 18])
def test_hard_rows_keep_their_digits(impl, num_classes, dtype, edge_corrected):
    """The guarantee does not depend on the input: no tail, scale or distance loses digits.

    That float32 logits of a narrow scale are still right says that the edges are not differences
    of rounded numbers.
    """
    loc, log_scale, bins = hard_rows(num_classes, dtype, edge_corrected)
    logits = functional.logistic_logits(
        loc, log_scale, num_classes, edge_corrected=edge_corrected, impl=impl
    )
    rounding = reference_rounding(loc, log_scale, dtype, impl)
    assert_logits_close(logits, bins.logits, dtype, rounding=rounding)


@pytest.mark.parametrize("edge_corrected", EDGES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("num_classes", [2, 5, 18])
def test_every_bin_of_a_hard_row_has_its_own_gradient(impl, num_classes, dtype, edge_corrected):
    """One upstream entry at a time: no other bin can hide an error, however deep in a tail."""
    loc, log_scale, bins = hard_rows(num_classes, dtype, edge_corrected)
    rounding = reference_rounding(loc, log_scale, dtype, impl)
    for k in range(num_classes):
        upstream = torch.zeros(len(loc), num_classes, dtype=torch.float64)
        upstream[:, k] = 1
        _, gradients = logits_and_gradients(loc, log_scale, upstream, impl, edge_corrected)
        check_gradients(gradients, bins, upstream, dtype, rounding=rounding)


@pytest.mark.parametrize("edge_corrected", EDGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_finite_for_all_finite_parameters(impl, dtype, edge_corrected):
    most = torch.finfo(dtype).max
    locs = [0.0, 0.5, 1.0, -3.0, 1e4, -1e4, most, -most]
    scales = [0.0, -20.0, 20.0, -80.0, 80.0, -1e3, 1e3, most, -most]
    loc, log_scale = torch.cartesian_prod(*(torch.tensor(v, dtype=dtype) for v in (locs, scales))).T
    for num_classes in (2, 17, 256):
        logits = functional.logistic_logits(
            loc, log_scale, num_classes, edge_corrected=edge_corrected, impl=impl
        )
        assert bool(logits.isfinite().all())
        assert bool((logits <= 0).all())


@pytest.mark.parametrize("num_classes", SIZES)
def test_masses_sum_to_what_the_bins_cover(impl, num_classes):
    loc = torch.tensor([0.0, 0.9, -1.3, 0.2, 5.0])
    log_scale = torch.tensor([0.0, -3.0, 1.0, 4.0, 2.0])
    outside = num_classes / (num_classes - 1)
    ends = [(x - loc.double()) * (2 - log_scale.double()).exp() for x in (-outside, outside)]
    covered = torch.sigmoid(ends[1]) - torch.sigmoid(ends[0])
    for edge_corrected, total in ((False, covered), (True, torch.ones(5))):
        logits = functional.logistic_logits(
            loc, log_scale, num_classes, edge_corrected=edge_corrected, impl=impl
        )
        assert_close(logits.double().exp().sum(-1), total, torch.float32, ulps=16)


def test_only_the_outer_bins_are_corrected(impl):
    loc, log_scale, *_ = ordinary_rows(17, torch.float32, False)
    plain, corrected = (
        functional.logistic_logits(loc, log_scale, 17, edge_corrected=choice, impl=impl)
        for choice in EDGES
    )
    assert torch.equal(plain[:, 1:-1], corrected[:, 1:-1])
    assert bool((plain[:, [0, -1]] <= corrected[:, [0, -1]]).all())


@pytest.mark.parametrize("edge_corrected", EDGES)
@pytest.mark.parametrize("num_classes", [2, 3, 19])
def test_gradients_pass_gradcheck(impl, num_classes, edge_corrected):
    loc = torch.randn(6, dtype=torch.float64, requires_grad=True)
    log_scale = torch.tensor([-1.0, 0.0, 1.0, 2.0, 3.0, 5.0]).double().requires_grad_()

    def compute(*parameters):
        return functional.logistic_logits(
            *parameters, num_classes, edge_corrected=edge_corrected, impl=impl
        )

    assert torch.autograd.gradcheck(compute, (loc, log_scale))


@given(
    loc=st.floats(-1e4, 1e4, width=32),
    log_scale=st.floats(-20, 20, width=32),
    num_classes=st.integers(2, 300),
    edge_corrected=st.booleans(),
)
def test_the_mirrored_distribution_has_mirrored_logits(
    impl, loc, log_scale, num_classes, edge_corrected
):
    there, here = functional.logistic_logits(
        torch.tensor([loc, -loc]),
        torch.full((2,), log_scale),
        num_classes,
        edge_corrected=edge_corrected,
        impl=impl,
    )
    assert bool(here.isfinite().all())
    assert bool((here <= 0).all())
    assert_logits_close(here[None], there.flip(0).double()[None], torch.float32)
    rising = here.argmax()  # log-concave: up to the mode and down again
    slack = 8 * torch.finfo(torch.float32).eps * here.abs().clamp(min=1)[1:]
    if not edge_corrected:
        assert bool((here.diff()[:rising] >= -slack[:rising]).all())
        assert bool((here.diff()[rising:] <= slack[rising:]).all())


@pytest.mark.parametrize("positions", [(), (6,), (2, 3), (0,)])
def test_position_axes_and_layouts_are_all_alike(impl, positions):
    loc, log_scale = torch.randn(2, *reversed(positions), 4).mT if positions else torch.randn(2, 4)
    upstream = torch.randn(*loc.shape, 21)
    logits, gradients = logits_and_gradients(loc, log_scale, upstream, impl, False)
    assert logits.shape == (*loc.shape, 21)
    flat = (loc.flatten(), log_scale.flatten(), upstream.flatten(0, -2))
    flat_logits, flat_gradients = logits_and_gradients(*flat, impl, False)
    assert torch.equal(logits.flatten(0, -2), flat_logits)
    for gradient, expected in zip(gradients, flat_gradients, strict=True):
        assert torch.equal(gradient.flatten(), expected)


def test_any_number_of_threads_gives_the_same_bits(cpu):
    parameters = torch.randn(2, 500)
    upstream = torch.randn(500, 257)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(logits_and_gradients(*parameters, upstream, cpu, True))
    (logits, gradients), (other_logits, other_gradients) = found
    assert same_bits(logits, other_logits)
    assert all(map(same_bits, gradients, other_gradients))


@pytest.mark.parametrize("wanted", [0, 1])
def test_one_parameter_alone_may_want_its_gradient(impl, wanted):
    parameters = list(torch.randn(2, 5))
    upstream = torch.randn(5, 9)
    _, both = logits_and_gradients(*parameters, upstream, impl, False)
    parameters[wanted].requires_grad_()
    logits = functional.logistic_logits(*parameters, 9, impl=impl)
    logits.backward(upstream)
    assert torch.equal(parameters[wanted].grad, both[wanted])
    assert parameters[1 - wanted].grad is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_finds_nothing(dtype, cpu):
    parameters = tuple(torch.randn(2, 3, 4).to(dtype))
    upstream = torch.randn(3, 4, 9, dtype=calculated_in(dtype))
    torch.library.opcheck(torch.ops.d3pm_fast.logistic_logits.default, (*parameters, 9, False))
    torch.library.opcheck(
        torch.ops.d3pm_fast.logistic_gradient.default, (*parameters, upstream, True)
    )


def test_logits_and_gradients_compile_into_one_graph(cpu):
    def compute(*parameters):
        return functional.logistic_logits(*parameters, 9, impl=cpu).logsumexp(-1)

    found = []
    torch._dynamo.reset()
    for function in (compute, torch.compile(compute, fullgraph=True, backend="aot_eager")):
        leaves = [v.requires_grad_() for v in torch.linspace(-1, 1, 10).view(2, 5).clone()]
        value = function(*leaves)
        found.append((value, *torch.autograd.grad(value.sum(), leaves)))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(eager, compiled)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loc": [0.0]}, TypeError, "loc must be a tensor, got list"),
        ({"loc": torch.zeros(2, 3).long()}, TypeError, "loc must be float32.*got torch.int64"),
        ({"loc": torch.tensor(0.0)}, ValueError, r"loc must have shape \(B, \*S\), got a scalar"),
        ({"log_scale": 0.0}, TypeError, "log_scale must be a tensor, got float"),
        ({"log_scale": torch.zeros(2)}, ValueError, r"log_scale.*\(2, 3\), got \(2,\)"),
        (
            {"log_scale": torch.zeros(2, 3).double()},
            TypeError,
            "log_scale must be torch.float32 as loc is, got torch.float64",
        ),
        (
            {"log_scale": torch.zeros(2, 3, device="meta")},
            ValueError,
            "log_scale must be on the device of loc, cpu, got meta",
        ),
        ({"num_classes": 1}, ValueError, "num_classes must be at least 2, got 1"),
        ({"num_classes": 2.5}, TypeError, "num_classes must be an integer, got float"),
        ({"impl": "fpga"}, ValueError, "impl must be one of 'auto'"),
    ],
)
def test_bad_input_is_named(change, error, message):
    good = {"loc": torch.zeros(2, 3), "log_scale": torch.zeros(2, 3), "num_classes": 5}
    with pytest.raises(error, match=message):
        functional.logistic_logits(**{**good, **change})
