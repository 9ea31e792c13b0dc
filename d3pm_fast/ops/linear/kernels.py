"""Whose kernels make a loss of the logits."""

from typing import Any, NamedTuple

from ..register import Operation


class Kernels(NamedTuple):
    """Those of an implementation, on the chains of a structure."""

    implementation: str
    structure: str

    def of(self, operation: Operation) -> Any:
        """Return the kernel of an operation."""
        return operation.kernel(*self)

    def serve(self, operation: Operation) -> bool:
        """Return whether there is one."""
        return operation.is_served(*self)
