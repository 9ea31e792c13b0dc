"""The three products of a head: ``H W^T + b``, ``G W`` and ``G^T H``, for G the gradient of logits.

Each is PyTorch's own matmul. What is summed over chunks is summed in float32, of float64 in
float64; where no matmul of 16 bits adds to float32, as on CPUs, each chunk's product is rounded
first. PyTorch's matmuls of float16 on CPUs take up to a hundred times those of float32: there
blocks of classes are widened.
"""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from ...reference.logspace import compute_dtype

BLOCK = 1 << 22  # numbers of a block of classes, that are widened


def logits_into(out: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Write the logits ``(n, K)``."""
    if not _is_slow(hidden):
        if bias is None:
            torch.mm(hidden, weight.T, out=out)
        else:
            torch.addmm(bias, hidden, weight.T, out=out)
        return
    wide = hidden.float()
    for part in _blocks(weight):
        made = wide @ weight[part].float().T
        out[:, part] = made if bias is None else made.add_(bias[part])


def pull_hidden(out: Tensor, grad: Tensor, weight: Tensor) -> None:
    """Write the gradient of hidden, ``(n, D)``."""
    if not _is_slow(grad):
        torch.mm(grad, weight, out=out)
        return
    total = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
    for part in _blocks(weight):
        total.addmm_(grad[:, part].float(), weight[part].float())
    out.copy_(total)


def write_weight(out: Tensor, grad: Tensor, hidden: Tensor) -> None:
    """Write the gradient of the weights of some classes, all rows at once."""
    if _is_slow(grad):
        out.copy_(grad.T.float() @ hidden.float())
    else:
        torch.mm(grad.T, hidden, out=out)


def add_product(total: Tensor, x: Tensor, y: Tensor) -> None:
    """Add ``x y`` in place to a sum in float32, or in float64."""
    if x.dtype == total.dtype:
        total.addmm_(x, y)
    elif _adds_to_float32(x.device.type, x.dtype):
        _add_product(total, x, y)
    else:
        wide = y.float() if _is_slow(y) else y
        for part in _blocks(total):
            total[part] += x[part].to(wide.dtype) @ wide


def add_to_bias(total: Tensor, grad: Tensor) -> None:
    """Add the gradient of the bias, ``(K,)``, in place."""
    total += grad.sum(dim=0, dtype=total.dtype)


def pull_linear(hidden: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of hidden, weight and bias from that of logits ``(B, *S, K)``."""
    rows = grad.flatten(0, -2)
    of_hidden = torch.empty_like(hidden)
    dtype = compute_dtype(weight.dtype)
    of_weight = torch.zeros_like(weight, dtype=dtype)
    pull_hidden(of_hidden.view(-1, hidden.shape[-1]), rows, weight)
    add_product(of_weight, rows.T, hidden.flatten(0, -2))
    return of_hidden, of_weight, rows.sum(dim=0, dtype=dtype)


@cache
def _adds_to_float32(device: str, dtype: torch.dtype) -> bool:
    """Return whether a matmul of 16 bits adds to float32 on a kind of device."""
    factor = torch.ones(1, 1, dtype=dtype, device=device)
    try:
        _add_product(factor.float(), factor, factor)
    except (AttributeError, RuntimeError):
        return False
    return True


def _add_product(total: Tensor, x: Tensor, y: Tensor) -> None:
    torch.ops.aten.addmm.dtype_out(total, x, y, total.dtype, out=total)


def _is_slow(x: Tensor) -> bool:
    return x.dtype == torch.float16 and x.device.type == "cpu"


def _blocks(weight: Tensor) -> Iterator[slice]:
    """Yield blocks of the rows of ``(K, D)``."""
    size = max(BLOCK // max(weight.shape[1], 1), 1)
    for start in range(0, len(weight), size):
        yield slice(start, start + size)
