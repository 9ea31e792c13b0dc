"""The three products of a head: ``H W^T + b``, ``G W`` and ``G^T H``, for G the gradient of logits.

Each is PyTorch's own matmul. What is summed over chunks is summed in float32, of float64 in
float64. PyTorch's matmuls of float16 on CPUs take up to a hundred times those of float32: there
blocks of classes are widened.
"""

from collections.abc import Iterator

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


def add_to_weight(total: Tensor, grad: Tensor, hidden: Tensor) -> None:
    """Add the gradient of the weight, ``(K, D)``, in place."""
    if grad.dtype == total.dtype:
        total.addmm_(grad.T, hidden)
    elif grad.is_cuda and hasattr(torch.ops.aten.addmm, "dtype_out"):
        torch.addmm(total, grad.T, hidden, out_dtype=total.dtype, out=total)
    else:
        wide = hidden.float() if _is_slow(grad) else hidden
        for part in _blocks(total):
            total[part] += grad[:, part].T.to(wide.dtype) @ wide


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
    add_to_weight(of_weight, rows, hidden.flatten(0, -2))
    return of_hidden, of_weight, rows.sum(dim=0, dtype=dtype)


def _is_slow(x: Tensor) -> bool:
    return x.dtype == torch.float16 and x.device.type == "cpu"


def _blocks(weight: Tensor) -> Iterator[slice]:
    """Yield blocks of the classes of ``(K, D)``."""
    size = max(BLOCK // max(weight.shape[1], 1), 1)
    for start in range(0, len(weight), size):
        yield slice(start, start + size)
