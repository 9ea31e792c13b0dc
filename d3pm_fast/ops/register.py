"""The table of implementations and operations: which code serves what, on which chains."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .. import _compiled, _environment, _triton
from ..chains.structures import Structure
from ..records import AnyMarginal, AnyStep
from .kernel import Kernel

__all__ = ["IMPLEMENTATIONS", "OPERATIONS", "Entry", "Operation"]


class Entry(NamedTuple):
    """An implementation that has kernels. The reference has none, and serves everything.

    Attributes:
        name: as the argument ``impl`` has it.
        prefix: of the names of its kernels in ``torch.ops.d3pm_fast``.
        key: PyTorch's dispatch key of its kernels.
        devices: returns the kinds of devices that it serves here; ``"auto"`` thinks of the first.
        tensors: those of such a device, in words.
        missing: returns why it is not installed, "" where it is.
        error: says so to a call that asks for it; {} is for why.
        found: returns what is installed.
    """

    name: str
    prefix: str
    key: str
    devices: Callable[[], tuple[str, ...]]
    tensors: str
    missing: Callable[[], str]
    error: str
    found: Callable[[], str]

    def supports(self, kind: str, operation: "Operation", structure: str) -> str:
        """Return why it does not serve an operation, "" where it does.

        Args:
            kind: of the device of the tensors.
            operation: of this table.
            structure: of the chain, its name.
        """
        if not operation.is_served(self.name, structure):
            chains = " and ".join(operation.structures(self.name))
            if not chains:
                return f"impl={self.name!r} has no {operation.name!r}; use 'auto'"
            return f"impl={self.name!r} serves {chains} chains; use 'auto' or 'triton'"
        if missing := self.missing():
            return self.error.format(missing)
        if kind not in self.devices():
            return f"impl={self.name!r} needs {self.tensors}, got {kind}"
        return ""


def _found_triton() -> str:
    slow = " in its interpreter (TRITON_INTERPRET=1): slow, for tests"
    return f"Triton {_triton.installed()}{slow if _environment.INTERPRET else ''}"


# "auto" takes the first that serves a call.
_ALL = [
    Entry(
        name="cpu",
        prefix="",
        key="CPU",
        devices=lambda: ("cpu",),
        tensors="CPU tensors",
        missing=lambda: _compiled.why_no_cpu if _compiled.cpu is None else "",
        error="impl='cpu' needs the compiled CPU module; {}",
        found=lambda: f"built; vector instructions: {_compiled.cpu.instruction_set()}",
    ),
    Entry(
        name="triton",
        prefix="triton_",
        key="CompositeExplicitAutograd",
        devices=lambda: ("cuda", "cpu") if _environment.INTERPRET else ("cuda",),
        tensors="tensors on a GPU",
        missing=lambda: _triton.WHY_NOT,
        error="{}; impl='reference' works without it",
        found=_found_triton,
    ),
    Entry(
        name="cuda",
        prefix="cuda_",
        key="CompositeExplicitAutograd",
        devices=lambda: (_compiled.cuda.device if _compiled.cuda else "cuda",),
        tensors="tensors on a GPU",
        missing=lambda: _compiled.why_no_cuda if _compiled.cuda is None else "",
        error="impl='cuda' needs the compiled CUDA module; {}",
        found=lambda: f"built, for {' and '.join(OPERATIONS['loss'].structures('cuda'))} chains",
    ),
]
IMPLEMENTATIONS = {entry.name: entry for entry in _ALL}
OPERATIONS: dict[str, "Operation"] = {}


class Operation:
    """An operation, and who serves it.

    Args:
        name: as in ``torch.ops.d3pm_fast``, where prefixes come before it.
        fake: the operation without its numbers; its signature is that of every kernel.
    """

    def __init__(self, name: str, fake: Callable[..., Any]) -> None:
        self.name = name
        self._fake = fake
        self._serving: dict[tuple[str, str], Any] = {}
        self._classes_first: set[tuple[str, str]] = set()
        OPERATIONS[name] = self

    def serve(
        self,
        implementation: str,
        kernel: Callable[..., Any],
        structures: Iterable[Structure | None] = (None,),
        is_registered: bool = True,
        reads_classes_first: bool = False,
    ) -> None:
        """Let a kernel serve the chains of structures, registered once for all of them.

        Plain PyTorch, which its compilers look into, is not registered; the reference never is.
        """
        first, *_ = structures = tuple(structures)
        records = {AnyStep: first.step, AnyMarginal: first.marginal} if first else {}
        name = f"{first.prefix if first else ''}{self.name}"
        served: Any = kernel
        if is_registered and implementation != "reference":
            entry = IMPLEMENTATIONS[implementation]
            served = Kernel(f"{entry.prefix}{name}", self._fake, records, kernel, entry.key)
        for structure in structures:
            key = structure.name if structure else "", implementation
            self._serving[key] = served
            if reads_classes_first:
                self._classes_first.add(key)

    def is_served(self, implementation: str, structure: str = "") -> bool:
        """Return whether an implementation has the operation, on chains of a structure if any."""
        return any((name, implementation) in self._serving for name in (structure, ""))

    def reads_classes_first(self, implementation: str, structure: str) -> bool:
        """Return whether logits may be ``(B, K, *S)`` in memory, not only ``(B, *S, K)``."""
        return (structure, implementation) in self._classes_first

    def structures(self, implementation: str) -> list[str]:
        """Return the names of the structures whose chains an implementation serves."""
        return [name for name, served_by in self._serving if served_by == implementation]

    def kernel(self, implementation: str, structure: str = "") -> Any:
        """Return what serves the chains of a structure; for "reference" it is a function."""
        return self._serving[structure, implementation]
