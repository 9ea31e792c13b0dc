"""What there is of each implementation here, and what is missing."""

from typing import NamedTuple

import torch

from .. import _environment
from .._checks import check_choice
from ..choices import IMPLS
from .register import IMPLEMENTATIONS, Entry


class Available(NamedTuple):
    """What there is of an implementation.

    Attributes:
        serves: ``"all tensors"``, ``"CPU tensors"`` or ``"GPU tensors"``; ``""`` for none.
        reason: what serves them, or what is missing.
    """

    serves: str
    reason: str


class Implementations(NamedTuple):
    """What there is of every implementation; prints as a table."""

    auto: Available
    reference: Available
    cpu: Available
    triton: Available
    cuda: Available

    def __repr__(self) -> str:
        """Return a line for each: its name, what it serves, and the reason."""
        return "\n".join(
            f"{name:9}  {found.serves or 'nothing':11}  {found.reason}"
            for name, found in self._asdict().items()
        )


def tensors_on(kind: str) -> str:
    """Return what the tensors on a kind of device are called."""
    return f"{'GPU' if kind == 'cuda' else kind.upper()} tensors"


def available() -> Implementations:
    """Look at what is installed, and for a GPU."""
    found = {name: _available(entry) for name, entry in IMPLEMENTATIONS.items()}
    asked = check_choice("D3PM_FAST_IMPL", _environment.IMPL or "auto", IMPLS)
    takes = f"{asked}: D3PM_FAST_IMPL asks for it"
    if asked == "auto":
        kinds = dict.fromkeys(entry.devices()[0] for entry in IMPLEMENTATIONS.values())
        if _why_no_gpu():
            kinds.pop("cuda", None)
        takes = ", ".join(f"{_takes(kind, found)} for {tensors_on(kind)}" for kind in kinds)
    reference = Available("all tensors", "plain PyTorch; the slowest")
    return Implementations(Available("all tensors", takes), reference, **found)


def _available(entry: Entry) -> Available:
    """Return what there is of an implementation; of one that serves two kinds, for the last."""
    if missing := entry.missing():
        return Available("", missing)
    *_, kind = entry.devices()
    if kind == "cuda" and (why_not := _why_no_gpu()):
        return Available("", f"{entry.found()}, but {why_not}")
    return Available(tensors_on(kind), entry.found())


def _takes(kind: str, found: dict[str, Available]) -> str:
    """Return what "auto" may take."""
    offered = (name for name, entry in IMPLEMENTATIONS.items() if entry.devices()[0] == kind)
    return " or ".join(name for name in offered if found[name].serves) or "reference"


def _why_no_gpu() -> str:
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return "this PyTorch is built without CUDA"
    return "PyTorch finds no GPU"
