"""A head and the loss of its logits as one module, whose logits are never stored as a whole."""

from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from .choices import LinearSchedule
from .d3pm import D3PM
from .functional import Linear, LogProb, log_prob

__all__ = ["LinearLoss"]


class LinearLoss(nn.Module):
    """A linear head that goes straight on to the loss, see :class:`d3pm_fast.functional.Linear`.

    As a module it is what FSDP2 gathers the head's parameters for: shard it by ``fully_shard``, or,
    where the head is tied to an embedding, the module that holds both.

    Args:
        in_features: D.
        num_classes: K; one less leaves out a mask that is the last class and that data never hold.
        diffusion: whose loss it is.
        bias: whether the head has one.
        memory_budget: bytes of logits at a time, see :class:`d3pm_fast.functional.Linear`.
        schedule: what there is of the logits at a time, see there.
        device: of the head.
        dtype: of the head.

    Attributes:
        head: ``torch.nn.Linear(D, K)``.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        diffusion: D3PM,
        bias: bool = False,
        memory_budget: int | None = None,
        schedule: LinearSchedule = "rows",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.head = nn.Linear(in_features, num_classes, bias, device, dtype)
        self.diffusion, self.memory_budget, self.schedule = diffusion, memory_budget, schedule

    @classmethod
    def wrap(
        cls,
        head: nn.Linear,
        diffusion: D3PM,
        memory_budget: int | None = None,
        schedule: LinearSchedule = "rows",
    ) -> "LinearLoss":
        """Return the loss of a head that there is, whose parameters it shares.

        Args:
            head: its ``weight`` ``(K, D)`` may be that of an embedding.
            diffusion: whose loss it is.
            memory_budget: bytes of logits at a time.
            schedule: what there is of the logits at a time.
        """
        if not isinstance(head, nn.Linear):
            raise TypeError(f"head must be a torch.nn.Linear, got {type(head).__name__}")
        size, options = (head.in_features, head.out_features), (memory_budget, schedule)
        made = cls(*size, diffusion, False, *options, device="meta")
        made.head = head
        return made

    def prediction(self, hidden: Tensor, num_open: SupportsIndex | None = None) -> Linear:
        """Return what stands in the place of logits: for ``sample``, ``elbo`` and the others.

        Args:
            hidden: ``(B, *S, D)``.
            num_open: how many tokens may have a loss, see :class:`d3pm_fast.functional.Linear`.
        """
        head, how = self.head, (self.memory_budget, self.schedule)
        return Linear(hidden, head.weight, head.bias, *how, num_open)

    def forward(
        self,
        hidden: Tensor,
        *tokens: Any,
        num_open: SupportsIndex | None = None,
        **options: Any,
    ) -> Tensor:
        """Return the loss.

        Args:
            hidden: ``(B, *S, D)``.
            tokens: ``x0``, ``x_t``, ``t`` and what else :meth:`D3PM.loss` takes.
            num_open: how many tokens may have a loss, of :meth:`D3PM.count_open`.
            options: as :meth:`D3PM.loss` has them.
        """
        return self.diffusion.loss(self.prediction(hidden, num_open), *tokens, **options)

    def log_prob(self, hidden: Tensor, tokens: Tensor) -> LogProb:
        """Return :func:`d3pm_fast.functional.log_prob` of tokens."""
        return log_prob(self.prediction(hidden), tokens)
