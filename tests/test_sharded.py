"""Logits whose classes are sharded over ranks: what 2 and 4 processes made, against one process."""

import pytest
import torch
from helpers import shards
from helpers.compare import assert_close, check_gradient, same_bits, unit
from helpers.once import once

LOSSES = shards.CASES["loss"][1]


@pytest.fixture(scope="module", params=[2, 4])
def made(request):
    """What each rank got, by kind and name of the case."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("not installed: gloo")
    size = request.param
    folder = once(f"shards{size}", lambda folder: shards.start(folder, size))
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def in_one_process(case, dtype=torch.float64, **changed):
    """The loss of whole logits by plain PyTorch, and its gradient."""
    whole = case.inputs()[0].to(dtype).requires_grad_()
    value = case.value(whole, impl="reference", **changed)
    (gradient,) = torch.autograd.grad(value, whole, case.factors(value))
    return value.detach(), gradient.double()


def joined(gradients, columns):
    """The gradient of all ranks' logits, without that of the padding, which is 0."""
    whole = torch.cat(gradients, dim=-1)
    assert bool((whole[..., columns:] == 0).all()), "classes that there are none of have a gradient"
    return whole[..., :columns]


@pytest.mark.parametrize("name", LOSSES)
def test_all_ranks_have_the_same_loss(made, name):
    values = [rank["loss"][name] for rank in made]
    for value, _, alone in values:
        assert same_bits(value, values[0][0])
        assert same_bits(value, alone) or name in TWO_SUMS
        assert value.dtype == torch.promote_types(LOSSES[name].dtype, torch.float32)


TWO_SUMS = {
    name
    for name, case in LOSSES.items()
    if case.given.get("reduction", "mean") == "mean" and "denominator" not in case.given
}  # of a mean with a gradient, tokens are divided before they are summed


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_those_of_one_process(made, name):
    case = LOSSES[name]
    values, gradients, alone = zip(*(rank["loss"][name] for rank in made), strict=True)
    truth, true_gradient = in_one_process(case)
    gradient = joined(gradients, case.columns)
    assert gradient.dtype == case.dtype
    scale = truth.nan_to_num().abs() + 1
    if case.dtype == torch.float64:
        for value in (values[0], alone[0]):
            assert_close(value, truth, case.dtype, ulps=4500, scale=scale)
        if true_gradient.numel() == 0 or not true_gradient.any():
            assert not gradient.any()
            return
        largest = torch.linalg.vector_norm(true_gradient, dim=-1).max()
        check_gradient(gradient, true_gradient, case.dtype, ulps=4500, floor=largest)
        return
    plain, plain_gradient = in_one_process(case, case.dtype)
    for value in (values[0], alone[0]):
        assert_close(value, truth, case.dtype, ulps=16, scale=scale, baseline=plain)
    for mutant, passes in (
        (gradient.double(), True),
        (torch.zeros_like(true_gradient), False),
        (-gradient.double(), False),
        (1.01 * gradient.double(), False),
    ):
        assert is_as_good(mutant, true_gradient, plain_gradient, case.dtype) == passes


def is_as_good(gradient, truth, plain, dtype):
    """Whether the error is at most twice that of plain PyTorch, and some units of the norm."""
    rounding = max(16 * unit(dtype), torch.finfo(dtype).eps / 2)
    allowed = 2 * (plain - truth).norm() + rounding * truth.norm()
    return bool((gradient - truth).norm() <= allowed)


def test_what_is_on_the_wire(made):
    """Of a gradient, then of it once more, then of the loss alone: bytes a row, each call."""
    for rank in made:
        for name, each in {
            "absorbing": [20],
            "absorbing, continuous": [20],
            "uniform": [16, 8],
            "uniform, float64": [32, 16],
            "uniform, cross-entropy": [16],
            "mask and uniform": [20, 8],
        }.items():
            assert rank["wire"][name] == 3 * each


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("no tensor", TypeError, "local_logits must be a tensor, got list"),
        ("integers", TypeError, "local_logits must be float32"),
        ("other tokens", ValueError, r"local_logits must have shape (2, 3, 10), got (2, 4, 10)"),
        (
            "other tokens, classes first",
            ValueError,
            r"local_logits must have shape (2, 10, 3), got (2, 10, 4)",
        ),
        ("other K", ValueError, "num_classes of Sharded logits must be 10, got 9"),
        ("too few", ValueError, "local_logits must have 10 classes on all ranks, got 1 on each"),
        ("no number", TypeError, "num_classes must be an integer, got str"),
        ("dense", ValueError, "sharded logits need a rank-one chain, got band: gather them"),
        ("cuda", RuntimeError, "impl='cuda' has no 'sharded_loss'; use 'auto'"),
        ("transform", ValueError, "sharded logits have gradients only"),
        ("gradient of a gradient", ValueError, "the gradient of sharded logits has no derivative"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(made, name, kind, message):
    for rank in made:
        found, sentence = rank["refused"][name]
        assert (found, message in sentence) == (kind.__name__, True), (found, sentence)
