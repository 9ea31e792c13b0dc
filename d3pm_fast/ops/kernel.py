"""Kernels as PyTorch knows them: registered, with a schema that a Python signature gives.

A kernel has the signature of its operation, in which records (:mod:`d3pm_fast.records`) stand for
several arguments; PyTorch's dispatcher, which knows no records, has their fields one by one.
"""

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any, get_origin, get_type_hints

import torch
from torch import Tensor
from torch.compiler import is_compiling

__all__ = ["Kernel", "triton_kernel"]

library = torch.library.Library("d3pm_fast", "DEF")

_SCHEMA = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    torch.dtype: "ScalarType",
    tuple[Tensor, Tensor]: "(Tensor, Tensor)",
    tuple[Tensor, Tensor, Tensor, Tensor]: "(Tensor, Tensor, Tensor, Tensor)",
}


class Kernel:
    """Code that serves an operation on the chains of a structure, registered with PyTorch.

    Args:
        name: in ``torch.ops.d3pm_fast``.
        fake: the operation without its numbers; its signature is the kernel's.
        of: for type variables of that signature, the records of the structure.
        direct: the code.
        key: PyTorch's dispatch key.
    """

    def __init__(
        self, name: str, fake: Callable[..., Any], of: dict[Any, type], direct: Any, key: str
    ) -> None:
        hints = get_type_hints(fake)
        result = _SCHEMA[hints.pop("return")]
        fields = [field for pair in hints.items() for field in _fields(*pair, of)]
        signature = ", ".join(f"{_SCHEMA[hint]} {field}" for field, hint in fields)
        layouts = [_layout(hint, of) for hint in hints.values()]
        self._direct = direct
        library.define(f"{name}({signature}) -> {result}")
        library.impl(name, lambda *flat: direct(*_built(layouts, iter(flat))), key)
        torch.library.register_fake(
            f"d3pm_fast::{name}", lambda *flat: fake(*_built(layouts, iter(flat))), lib=library
        )
        self._registered = getattr(torch.ops.d3pm_fast, name)

    def __call__(self, *args: Any) -> Any:
        """Call the operation; past PyTorch's dispatcher where there is nothing for it to do."""
        first = args[0]
        if type(first if isinstance(first, Tensor) else first[0]) is Tensor and _is_idle():
            return self._direct(*args)
        return self._registered(*_flat(args, []))


def triton_kernel(path: str) -> Callable[..., Any]:
    """Return a function of d3pm_fast.kernels, whose module is imported when it is first called."""
    module, _, name = path.rpartition(".")

    @cache
    def found() -> Callable[..., Any]:
        return getattr(import_module(f"d3pm_fast.kernels.{module}"), name)  # type: ignore[no-any-return]

    return lambda *args: found()(*args)


def _is_idle() -> bool:
    """Return whether no compiler, transform or mode looks at what is called."""
    return not (
        is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
    )


# Of an argument: None, or its record and the layouts of the record's fields.
Layout = tuple[Any, "list[Layout]"] | None


def _fields(name: str, hint: Any, of: dict[Any, type]) -> Iterator[tuple[str, Any]]:
    """Yield the names and types that an argument has for the dispatcher."""
    hint = of.get(hint, hint)
    if hint in _SCHEMA:
        yield name, hint
        return
    for pair in get_type_hints(get_origin(hint) or hint).items():
        yield from _fields(*pair, of)


def _layout(hint: Any, of: dict[Any, type]) -> Layout:
    hint = of.get(hint, hint)
    if hint in _SCHEMA:
        return None
    record = get_origin(hint) or hint
    return record._make, [_layout(field, of) for field in get_type_hints(record).values()]


def _built(layouts: list[Layout], values: Iterator[Any]) -> list[Any]:
    """Return arguments, or the fields of a record, from what comes from the dispatcher."""
    return [
        next(values) if layout is None else layout[0](_built(layout[1], values))
        for layout in layouts
    ]


def _flat(values: Any, into: list[Any]) -> list[Any]:
    for value in values:
        if isinstance(value, tuple):
            _flat(value, into)
        else:
            into.append(value)
    return into
