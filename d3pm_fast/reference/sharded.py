"""Logits whose classes are sharded over the ranks of a process group: they are gathered."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._collectives import GatherRows
from ..records import ShardedLoss, Sharding
from .loss import loss


def whole_logits(logits: Tensor, sharding: Sharding) -> Tensor:
    """Return the logits of all classes from those of this rank's shard."""
    lacking = sharding.size - logits.shape[-1]
    rows = pad(logits, (0, lacking), value=-torch.inf)
    gathered: Tensor = GatherRows.apply(rows, sharding.group)  # type: ignore[no-untyped-call]
    return gathered[..., : sharding.num_logits]


def sharded_loss(of: ShardedLoss[Any], reduction: str) -> Tensor:
    """Return the loss of the whole logits."""
    whole = whole_logits(of.of.logits, of.sharding)
    return loss(of.of._replace(logits=whole), reduction)
