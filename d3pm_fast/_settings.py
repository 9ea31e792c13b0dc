"""The settings of a ``D3PM`` in a state dict, so that weights do not meet others unawares."""

import math
import warnings

import torch
from torch import Tensor

from .chains.fingerprint import number_of_name
from .diffusion import Diffusion

__all__ = ["as_tensor", "warn_of_others"]

FORMAT = 1
TOLERANCE = 1e-9  # of fingerprints; rounding does some 1e-12 to them


def as_tensor(diffusion: Diffusion) -> Tensor:
    """Return the settings as float64 ``(8,)``: a tensor of one shape is what all writers take."""
    numbers = map(_number, _settings(diffusion).values())
    all_numbers = [FORMAT, *numbers, diffusion.transition.fingerprint]
    return torch.tensor(all_numbers, dtype=torch.float64, device="cpu")


def warn_of_others(saved: Tensor, diffusion: Diffusion) -> None:
    """Warn where saved settings differ; those that were rounded or are of another format do not."""
    here = as_tensor(diffusion)
    if saved.is_meta or saved.dtype != here.dtype or saved.shape != here.shape:
        return
    version, *found, chain = saved.tolist()
    if version != FORMAT:
        return
    others = [
        _difference(name, value, number)
        for (name, value), number in zip(_settings(diffusion).items(), found, strict=True)
        if number != _number(value)
    ]
    if not others and not math.isclose(chain, here[-1], rel_tol=TOLERANCE):
        others = ["other transition probabilities"]
    if others:
        warnings.warn(
            f"the state dict was saved with {', '.join(others)}: its weights were trained for "
            "another diffusion than this one",
            stacklevel=2,
        )


def _number(value: str | int) -> int:
    return number_of_name(value) if isinstance(value, str) else value


def _difference(name: str, value: str | int, saved: float) -> str:
    if isinstance(value, str):
        return f"another {name} than {value!r}"
    return f"{name} = {saved:g} in place of {value}"


def _settings(diffusion: Diffusion) -> dict[str, str | int]:
    chain = diffusion.transition
    return {
        "family": chain.family,
        "num_classes": chain.num_classes,
        "num_steps": chain.num_steps or 0,
        "mask_id": chain.mask_id,
        "reverse": diffusion.reverse,
        "first_step": diffusion.first_step,
    }
