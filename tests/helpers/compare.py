"""Comparisons whose tolerance is a number of units in the last place, never a bare constant."""

import torch


def compute_dtype(dtype):
    """What a result for logits of ``dtype`` is calculated in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit(dtype):
    """One unit in the last place of numbers near 1, of the dtype it is calculated in."""
    return torch.finfo(compute_dtype(dtype)).eps


def storage_error(dtype):
    """The rounding of a result to ``dtype``, where that is less precise than the calculation."""
    return 0.5 * torch.finfo(dtype).eps if torch.finfo(dtype).bits == 16 else 0.0


def assert_close(actual, truth, dtype, ulps=8, scale=None, baseline=None, factor=2):
    """Fail unless each error is within ``ulps`` at the value's scale.

    Args:
        actual: the result under test; where the truth is infinite or NaN it must be the same.
        truth: float64.
        dtype: of the logits; its compute dtype is what an ulp is of.
        ulps: how many units.
        scale: the magnitude an ulp is taken at, broadcastable; None for ``|truth|``.
        baseline: the same result by plain PyTorch, whose largest error is allowed ``factor`` times.
        factor: see ``baseline``.
    """
    actual, truth = actual.detach().double(), truth.detach().double()
    assert actual.shape == truth.shape
    finite = truth.isfinite()
    same = (actual == truth) | (actual.isnan() & truth.isnan())
    assert bool((same | finite).all()), "the infinite or undefined values differ"
    scale = (truth.abs() if scale is None else scale.double().expand_as(truth))[finite]
    allowed = ulps * unit(dtype) * scale + torch.finfo(compute_dtype(dtype)).tiny
    if actual.dtype != dtype:
        allowed = allowed + storage_error(dtype) * truth[finite].abs()
    if baseline is not None:
        allowed = allowed + factor * (baseline.detach().double() - truth)[finite].abs().max()
    error = (actual - truth)[finite].abs()
    if not bool((error <= allowed).all()):
        worst = int((error / allowed).nan_to_num(torch.inf).argmax())
        raise AssertionError(
            f"{int((~(error <= allowed)).sum())} of {error.numel()} values are off; the worst is "
            f"{actual[finite][worst]:.9g}, should be {truth[finite][worst]:.9g}: error "
            f"{error[worst]:.3g}, allowed {allowed[worst]:.3g}"
        )


def assert_gradient_close(actual, truth, dtype, ulps=16, floor=0.0):
    """Fail unless each row is close to the truth in relative L2 and in its largest error.

    Both are measured in ulps of the row's scale: its norm, and its largest entry. One rounding to
    ``dtype`` comes on top.

    Args:
        actual: ``(..., K)``.
        truth: ``(..., K)``, float64.
        dtype: of the logits.
        ulps: how many units of the compute dtype.
        floor: the least scale of a row, a number or ``(...,)``: the size of the terms that the
            row's entries are differences of. 0 demands full relative precision of every row.
    """
    actual, truth = actual.detach().double(), truth.detach().double()
    assert actual.shape == truth.shape
    assert bool(truth.isfinite().all()), "the truth of a gradient must be finite"
    assert bool(actual.isfinite().all()), "the gradient is not finite"
    least = torch.finfo(dtype).tiny * torch.finfo(dtype).eps  # the smallest subnormal number
    for name, order in (("relative L2", 2), ("largest", torch.inf)):
        error = torch.linalg.vector_norm(actual - truth, order, dim=-1)
        size = torch.linalg.vector_norm(truth, order, dim=-1)
        scale = size.maximum(torch.as_tensor(floor, dtype=torch.float64))
        allowed = ulps * unit(dtype) * scale + least * truth.shape[-1] ** (0.5 if order == 2 else 0)
        allowed = allowed + storage_error(dtype) * size
        if not bool((error <= allowed).all()):
            worst = int((error / allowed).flatten().argmax())
            largest = truth.reshape(-1, truth.shape[-1])[worst].abs().max()
            units = error.flatten()[worst] / max(scale.flatten()[worst], least) / unit(dtype)
            raise AssertionError(
                f"the {name} error of {int((error > allowed).sum())} of {error.numel()} rows is "
                f"too large; in row {worst}, of scale {largest:.3g}, it is {units:.3g} ulps"
            )


def gradient_mutations(truth):
    """What a comparison must not pass for the gradient: name and mutant."""
    largest = torch.nn.functional.one_hot(truth.abs().argmax(-1), truth.shape[-1]).bool()
    return {
        "all entries zero": torch.zeros_like(truth),
        "off-target entries zero": truth.where(largest, 0),
        "its sign flipped": -truth,
        "1 % too much": 1.01 * truth,
    }


def assert_comparison_catches_mutations(truth, dtype, **options):
    """Fail unless :func:`assert_gradient_close` rejects every mutant of a gradient."""
    assert bool((truth != 0).any()), "a gradient of zeros has no mutants"
    for name, mutant in gradient_mutations(truth).items():
        try:
            assert_gradient_close(mutant.to(dtype), truth, dtype, **options)
        except AssertionError:
            continue
        raise AssertionError(f"the comparison lets a gradient pass with {name}")


def check_gradient(actual, truth, dtype, **options):
    """Compare a gradient, and prove that the comparison could have failed."""
    assert_comparison_catches_mutations(truth, dtype, **options)
    assert_gradient_close(actual, truth, dtype, **options)


def agree(loss, expected, leaf):
    """Fail unless loss and gradient agree to 1e-12, relative to the largest loss and row."""
    ulps = 4500  # of float64
    assert_close(loss, expected, torch.float64, ulps=ulps, scale=expected.detach().abs().max())
    found, truth = (
        torch.autograd.grad(value.sum(), leaf, retain_graph=True)[0] for value in (loss, expected)
    )
    largest = torch.linalg.vector_norm(truth, dim=-1).max()
    check_gradient(found, truth, torch.float64, ulps=ulps, floor=largest)


def same_bits(x, y):
    """Return whether two tensors hold the same bits, NaN equal to NaN."""
    bits = [value.contiguous().reshape(-1).view(torch.uint8) for value in (x, y)]
    return x.dtype == y.dtype and x.shape == y.shape and torch.equal(*bits)
