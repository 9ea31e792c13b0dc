"""The bound of a test set: finished items are kept in a file, and a stopped run goes on there."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import _files
from ._checks import check_count, check_tokens
from ._random import seeded
from .d3pm import D3PM
from .elbo import ELBO
from .functional import draw_seeds
from .predictions import Predicted

__all__ = ["OtherEvaluation", "evaluate"]


class OtherEvaluation(ValueError):
    """A file has the bounds of an evaluation with other settings or items.

    Attributes:
        name: the argument of :func:`evaluate` that differs.
        saved: its value in the file.
        asked: its value in the call.
    """

    def __init__(self, path: Path, name: str, saved: Any, asked: Any) -> None:
        values = f"{name} = {saved!r}, asked for is {asked!r}"
        differs = f"another {name}" if name in ("x0", "mask") else values
        super().__init__(f"{path} was made with {differs}: choose another file, or remove it")
        self.name, self.saved, self.asked = name, saved, asked


def evaluate(
    diffusion: D3PM,
    denoiser: Callable[[Tensor, Tensor], Predicted],
    x0: Tensor,
    path: Path,
    *,
    steps: int | None = None,
    num_times: int | None = None,
    t_min: float = 1e-3,
    mask: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 64,
    save_every: int = 16,
    about: str = "",
    progress: bool = False,
) -> ELBO:
    """Return the bound of every item of a test set, those from ``path`` that are finished.

    The result does not depend on where a run was stopped, and more items may follow later: a
    file of the first 100 is a part of that of the first 1000.

    Args:
        diffusion: the chain and the model's reverse step.
        denoiser: maps ``(x_t (n, *S) int64, t (n,) int64)`` to logits ``(n, *S, K)``, or to a
            pair of parameters, see :class:`d3pm_fast.functional.Logistic`. In continuous time t
            is float64. Put it in evaluation mode yourself.
        x0: the items, ``(N, *S)``, N at least 1; a few at a time go to the module's device.
        path: the file; written whole or not at all.
        steps: how many steps the model takes, evenly strided; None for all T, in continuous time
            for the integral.
        num_times: how many of the steps are taken for each item, at least 3, for an estimate
            without a bias; None takes all of them. An integral needs it. See
            :func:`d3pm_fast.elbo.elbo`.
        t_min: of an integral, where it ends, in (0, 1).
        mask: bool ``(N, *S)``, True where a token counts.
        seed: of all draws.
        batch_size: the most x_t in one denoiser call.
        save_every: items between two times that the file is written.
        about: what tells this evaluation from others and ``repr(diffusion)`` does not: a digest
            of the weights, the schedule.
        progress: show a progress bar.

    Returns:
        The bounds, on the CPU.

    Raises:
        OtherEvaluation: the file is of an evaluation with other settings or items.
        ValueError: no items.
    """
    check_tokens("x0", x0, diffusion.num_classes)
    check_count("number of items in x0", len(x0))
    check_count("save_every", save_every)
    settings: dict[str, Any] = {
        "diffusion": repr(diffusion),
        "steps": steps,
        "num_times": num_times,
        "seed": seed,
        "about": about,
    }
    if not diffusion.transition.has_steps:
        settings["t_min"] = t_min
    bound = _finished(path, settings, x0, mask)
    done = 0 if bound is None else min(len(bound.terms), len(x0))
    seeds = draw_seeds(len(x0), seeded(seed))
    device = diffusion.transition.device
    with tqdm(total=len(x0), initial=done, unit="item", disable=not progress) as bar:
        for first in range(done, len(x0), save_every):
            items = slice(first, first + save_every)
            more = diffusion.elbo(
                denoiser,
                x0[items].to(device),
                steps,
                num_times,
                None if mask is None else mask[items].to(device),
                seeds=seeds[items].to(device),
                batch_size=batch_size,
                t_min=t_min,
            )
            bound = _each([more] if bound is None else [bound, more], torch.cat)
            of = {"x0": x0[: items.stop], "mask": None if mask is None else mask[: items.stop]}
            _files.save(path, {"settings": settings, **of, "bound": vars(bound)})
            bar.update(len(more.terms))
    assert bound is not None
    return _each([bound], lambda values: values[0][: len(x0)])


def _finished(path: Path, settings: dict[str, Any], x0: Tensor, mask: Tensor | None) -> ELBO | None:
    """Return what the file has, if it is of these items and settings."""
    if not path.exists():
        return None
    state = _files.load(path, "file of bounds", {"settings", "x0", "mask", "bound"})
    for name, value in settings.items():
        was = state["settings"].get(name)
        if was != value:
            raise OtherEvaluation(path, name, was, value)
    for name, asked in (("x0", x0), ("mask", mask)):
        saved = state[name]
        same = saved is asked is None
        if saved is not None and asked is not None:
            count = min(len(saved), len(asked))
            same = torch.equal(saved[:count], asked[:count].cpu())
        if not same:
            raise OtherEvaluation(path, name, saved, asked)
    return ELBO(**state["bound"])


def _each(bounds: list[ELBO], make: Callable[[list[Tensor]], Tensor]) -> ELBO:
    """Return the bound that is made of all bounds' numbers of items, field by field."""
    fields: dict[str, Tensor | None] = {}
    for name in ("terms", "taken", "prior", "num_tokens", "standard_error"):
        values = [getattr(bound, name) for bound in bounds]
        fields[name] = None if values[0] is None else make([value.cpu() for value in values])
    return replace(bounds[0], times=bounds[0].times.cpu(), **fields)  # type: ignore[arg-type]
