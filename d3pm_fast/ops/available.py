"""What there is of each implementation here, and what is missing."""

from typing import NamedTuple

import torch

from .. import _compiled, _environment, _triton
from .._checks import check_choice
from ..choices import IMPLS
from .register import OPERATIONS


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


def available() -> Implementations:
    """Look at what is installed, and for a GPU."""
    cpu, triton, cuda = _cpu(), _triton_kernels(), _cuda()
    reference = Available("all tensors", "plain PyTorch; the slowest")
    asked = check_choice("D3PM_FAST_IMPL", _environment.IMPL or "auto", IMPLS)
    if asked == "auto":
        takes = f"{'cpu' if cpu.serves else 'reference'} for CPU tensors"
        if not _why_no_gpu():
            found = {"triton": triton, "cuda": cuda}
            on_gpu = [name for name, one in found.items() if one.serves == "GPU tensors"]
            takes += f", {' or '.join(on_gpu) or 'reference'} for GPU tensors"
    else:
        takes = f"{asked}: D3PM_FAST_IMPL asks for it"
    return Implementations(Available("all tensors", takes), reference, cpu, triton, cuda)


def _cpu() -> Available:
    if _compiled.cpu is None:
        return Available("", _compiled.why_no_cpu)
    instructions = _compiled.cpu.instruction_set()
    return Available("CPU tensors", f"built; vector instructions: {instructions}")


def _triton_kernels() -> Available:
    why_not, found = _triton.why_not(), f"Triton {_triton.installed()}"
    if why_not:
        return Available("", why_not)
    if _environment.INTERPRET:
        interpreted = f"{found} in its interpreter (TRITON_INTERPRET=1): slow, for tests"
        return Available("CPU tensors", interpreted)
    return _on_gpu(found)


def _cuda() -> Available:
    if _compiled.cuda is None:
        return Available("", _compiled.why_no_cuda)
    chains = " and ".join(OPERATIONS["loss"].structures("cuda"))
    return _on_gpu(f"built, for {chains} chains")


def _on_gpu(found: str) -> Available:
    why_not = _why_no_gpu()
    return Available("", f"{found}, but {why_not}") if why_not else Available("GPU tensors", found)


def _why_no_gpu() -> str:
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return "this PyTorch is built without CUDA"
    return "PyTorch finds no GPU"
