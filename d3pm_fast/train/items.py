"""What a run learns from: items of one shape, padded or not."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Items:
    """Tokens, and which of them count.

    Args:
        x0: integers ``(N, *S)`` in [0, K).
        mask: bool ``(N, *S)``, True for a token and False for padding; None where nothing is
            padded.
    """

    x0: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.x0)

    def __getitem__(self, rows: Tensor | slice) -> "Items":
        """Return some of the items."""
        return Items(self.x0[rows], None if self.mask is None else self.mask[rows])

    def to(self, device: torch.device) -> "Items":
        """Return the items on a device, their tokens as int64."""
        return Items(self.x0.to(device).long(), None if self.mask is None else self.mask.to(device))

    def tokens(self) -> Tensor:
        """Return the tokens that count, one after the other."""
        return self.x0.flatten() if self.mask is None else self.x0[self.mask]

    def count(self) -> int:
        """Return how many tokens count."""
        return self.x0.numel() if self.mask is None else int(self.mask.sum())

    def lengths(self) -> Tensor:
        """Return how many tokens of each item count, int64 ``(N,)``."""
        mask = torch.ones_like(self.x0, dtype=torch.bool) if self.mask is None else self.mask
        return mask.flatten(1).sum(1)

    def predict(self, denoiser: Callable[..., Tensor], x_t: Tensor, t: Tensor) -> Tensor:
        """Return ``denoiser(x_t, t)``, or ``denoiser(x_t, t, mask)`` where there is padding."""
        return denoiser(x_t, t) if self.mask is None else denoiser(x_t, t, self.mask)
