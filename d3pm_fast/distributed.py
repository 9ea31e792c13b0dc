"""What the ranks of a run have to agree on."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ._checks import check_tokens

__all__ = ["global_count"]


def global_count(mask_or_tokens: Tensor, group: Any = None) -> Tensor:
    """Return how many tokens count, on all ranks together, as the ``denominator=`` of a loss.

    The host does not wait for it. Where the trainer averages gradients over ranks, as DDP and FSDP
    do, divide it by the number of ranks: the average is then the gradient of the mean over all
    tokens. With accumulation, count those of all micro-batches of a step.

    Args:
        mask_or_tokens: bool, True where a token counts; or integers, all of which count. Any shape,
            which may differ between ranks, also of no elements.
        group: of the data parallel processes; None for the default one. All of them make the call.

    Returns:
        float64 ``()``, on the device. Of this process alone where no group is initialized.
    """
    if mask_or_tokens.dtype == torch.bool:
        count = mask_or_tokens.sum(dtype=torch.float64)
    else:
        check_tokens("mask_or_tokens", mask_or_tokens)
        size, device = mask_or_tokens.numel(), mask_or_tokens.device
        count = torch.full((), size, dtype=torch.float64, device=device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count, group=group)
    return count
