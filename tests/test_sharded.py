"""Logits whose classes are sharded over ranks: what 2 and 4 processes made, against one process."""

import pytest
import torch
from helpers import shards
from helpers.compare import assert_close, check_gradient, same_bits, unit
from helpers.once import once

from d3pm_fast import distributed, functional
from d3pm_fast._no_law import NoLaw

LOSSES = shards.CASES["loss"][1]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.exhaustive)])
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


@pytest.mark.parametrize("name", shards.STEPS)
def test_posteriors_and_their_gradients_are_those_of_one_process(made, name):
    case = shards.STEPS[name]
    whole, (_, x_t, t), options = case.inputs()
    whole.requires_grad_()
    options["impl"] = "reference"
    truth = functional.p_posterior(shards.CHAINS[case.chain], whole, x_t, t, **options)
    finite = truth.isfinite()
    above = shards.upstream_of(whole.shape)[finite]
    (true_gradient,) = torch.autograd.grad(truth[finite], whole, above)
    parts, gradients = zip(*(rank["posterior"][name] for rank in made), strict=True)
    log_p = torch.cat(parts, dim=-1)
    assert bool((log_p[..., shards.K :] == -torch.inf).all())
    log_p = log_p[..., : shards.K]
    assert_close(log_p, truth, torch.float64, ulps=4500, scale=1 + truth.nan_to_num(0, 0, 0).abs())
    gradient = joined(gradients, shards.K)
    largest = torch.linalg.vector_norm(true_gradient, dim=-1).max()
    check_gradient(gradient, true_gradient, torch.float64, ulps=4500, floor=largest)


@pytest.mark.parametrize("name", shards.DRAWS)
def test_draws_are_those_of_whole_logits_for_any_number_of_ranks(made, name):
    case = shards.DRAWS[name]
    whole, (_, x_t, t), options = case.inputs()
    options |= {"seeds": torch.arange(len(x_t)), "impl": "reference"}
    expected = functional.p_sample(shards.CHAINS[case.chain], whole, x_t, t, **options)
    assert all(torch.equal(rank["draws"][name], expected) for rank in made)
    assert bool((expected != x_t).any())


@pytest.mark.parametrize("name", shards.PREDICTIONS)
def test_predictions_are_those_of_whole_logits_for_any_number_of_ranks(made, name):
    case = shards.PREDICTIONS[name]
    whole, (_, x_t, t), options = case.inputs()
    options |= {"seeds": torch.arange(len(x_t)), "impl": "reference"}
    expected = functional.predict(case.transition, whole, x_t, t, **options)
    for rank in made:
        found = functional.PredictedTokens(*rank["predictions"][name])
        assert torch.equal(found.token, expected.token)
        assert torch.equal(found.argmax, expected.argmax)
        rtol = 1e-6 if case.dtype == torch.float32 else 1e-12
        for value, other, first in zip(found, expected, made[0]["predictions"][name], strict=True):
            assert value.dtype == other.dtype
            assert torch.equal(value, first)
            torch.testing.assert_close(value, other, rtol=rtol, atol=0)


@pytest.mark.parametrize("name", shards.PLACED)
def test_a_dtensor_has_a_gradient_placed_as_it_is(made, name):
    case = shards.PLACED[name]
    values, gradients, are_placed, parts = zip(
        *(rank["dtensor"][name] for rank in made), strict=True
    )
    assert all(are_placed)
    whole, tokens, options = case.inputs()
    for part in set(parts):
        mine = [n for n, other in enumerate(parts) if other == part]
        logits, *tokens_here = whole, *tokens
        if case.placements[0].is_shard(0):
            logits, *tokens_here = (x.tensor_split(2)[part] for x in (whole, *tokens))
        logits = logits.clone().requires_grad_()
        chain = shards.CHAINS[case.chain]
        truth = functional.loss(chain, logits, *tokens_here, **options)
        (expected,) = torch.autograd.grad(truth, logits)
        assert all(same_bits(values[n], values[mine[0]]) for n in mine)
        assert_close(values[mine[0]], truth, torch.float64, ulps=4500)
        if len(case.placements) == 2 and not case.placements[0].is_shard(0):
            mine = mine[: len(mine) // 2]
        found = [gradients[n] for n in mine]
        if case.placements[-1].is_replicate():
            found = found[:1]
        found = torch.cat(found, dim=-1)
        if expected.numel() == 0:
            assert found.shape == expected.shape
            continue
        largest = torch.linalg.vector_norm(expected, dim=-1).max()
        check_gradient(found, expected, torch.float64, ulps=4500, floor=largest)


@pytest.mark.parametrize("name", shards.HEADS)
def test_a_sharded_head(made, name):
    case = shards.HEADS[name]
    values, of_hidden, parts, are_placed = zip(*(rank["head"][name] for rank in made), strict=True)
    assert all(are_placed)
    assert all(same_bits(value, values[0]) for value in values)
    assert all(same_bits(gradient, of_hidden[0]) for gradient in of_hidden)
    leaves = [x.double().requires_grad_() for x in case.leaves()]
    truth = case.value(torch.nn.functional.linear(*leaves), impl="reference")
    expected = torch.autograd.grad(truth, leaves, case.factors(truth))
    found = of_hidden[0], *(torch.cat(shares) for shares in zip(*parts, strict=True))
    if case.dtype == torch.float64:
        scale = truth.detach().abs() + 1
        assert_close(values[0], truth, case.dtype, ulps=4500, scale=scale)
        for x, y in zip(found, expected, strict=True):
            if y.numel() > 0 and bool(y.any()):
                check_gradient(x.flatten(), y.flatten(), case.dtype, ulps=4500)
            else:
                assert not x.any()
        return
    for x, y in zip(found, expected, strict=True):
        error = (x.double() - y).norm() / y.norm()
        assert error <= 8 * max(torch.finfo(case.dtype).eps, 16 * unit(case.dtype))


@pytest.mark.parametrize("name", ["uniform", "absorbing"])
def test_steps_of_a_sharded_head(made, name):
    same, equal, gradients = zip(*(rank["head's steps"][name] for rank in made), strict=True)
    assert all(same)
    assert all(equal)
    case = shards.Head(name)
    hidden, weight, bias = case.leaves()
    _, (_, x_t, t), _ = case.inputs()
    logits = torch.nn.functional.linear(hidden.requires_grad_(), weight, bias)
    log_p = functional.p_posterior(shards.CHAINS[name], logits, x_t, t)
    (expected,) = torch.autograd.grad(log_p.exp().square().sum(), hidden)
    for gradient in gradients:
        check_gradient(gradient.flatten(), expected.flatten(), torch.float64, ulps=4500)


def test_tokens_are_counted_over_all_ranks(made):
    size = len(made)
    for n, rank in enumerate(made):
        count = rank["count"]
        assert count["mask"].dtype == torch.float64
        assert count["mask"].shape == ()
        assert count["mask"] == sum(range(0, 2 * size, 2))
        assert count["no tokens"] == 12 * sum(range(size))
        assert count["group"] == (1 if n == 0 else sum(range(2, size + 1)))


def test_averaged_gradients_are_those_of_the_mean_over_all_tokens(made):
    _, tokens, _ = shards.Case("uniform", shape=(2, 3)).inputs()
    gradients, masks, logits = zip(*(rank["count"]["gradient"] for rank in made), strict=True)
    whole, mask = torch.cat(logits).requires_grad_(), torch.cat(masks)
    tokens = (torch.cat([x] * len(made)) for x in tokens)
    loss = functional.loss(shards.CHAINS["uniform"], whole, *tokens, mask=mask)
    (truth,) = torch.autograd.grad(loss, whole)
    check_gradient(torch.cat(gradients) / len(made), truth, torch.float64, ulps=64, floor=0.1)


def test_the_count_of_one_process():
    assert distributed.global_count(torch.tensor([True, False, True])) == 2
    with pytest.raises(TypeError, match="mask_or_tokens must be an integer tensor"):
        distributed.global_count(torch.ones(3))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("partial", ValueError, "got P"),
        ("no law", NoLaw, "logits must have a softmax, got nothing but -inf at index (0, 0)"),
        ("NaN", NoLaw, "logits must have a softmax, got NaN at index (0, 0)"),
        ("no column of the mask", ValueError, "sharded logits must be of all 10 classes"),
        ("positions", ValueError, "on mesh dimension 'tp': redistribute them"),
        ("classes twice", ValueError, "sharded over classes on one mesh dimension"),
        ("tokens as a DTensor", TypeError, "x0 must be a plain tensor, of the items of this rank"),
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
        ("head, other tokens", ValueError, "x0 must be the same on all ranks of the group"),
        ("head, features", ValueError, "weight as a DTensor must be sharded over classes"),
        ("head, replicated", ValueError, "weight as a DTensor must be sharded over classes"),
        ("head, plain bias", ValueError, "bias must be placed as weight is"),
        ("head, tiles", ValueError, "a sharded head needs schedule='rows'"),
        ("head, dense", ValueError, "a sharded head needs a rank-one chain"),
        ("head, other K", ValueError, "weight must have 11 rows on all ranks, got 10"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(made, name, kind, message):
    for rank in made:
        found, sentence = rank["refused"][name]
        assert (found, message in sentence) == (kind.__name__, True), (found, sentence)
