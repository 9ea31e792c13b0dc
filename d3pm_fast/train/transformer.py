"""The network for sequences: a small time-conditioned Transformer that sees both sides."""

import torch
from torch import Tensor, nn

from ..functional import Sharded
from ..records import Sharding
from .layers import keep_tokens, sinusoids

__all__ = ["Transformer"]


class Transformer(nn.Module):
    """A bidirectional Transformer that maps ``(x_t, t)`` to the logits of x_0.

    A token enters as an embedding of its class, with a convolution over its neighbours' (without
    it hundreds of steps pass before attention finds them), plus those of its place and the time.
    What comes out is added to a learned, time-dependent multiple of ``onehot(x_t)``.

    Args:
        num_classes: K, the mask counted in.
        num_steps: T; None in continuous time.
        width: features of a token, a multiple of 32.
        depth: layers.
        mask_id: a class that is never predicted (its logit is -inf), or None.
    """

    HEAD_WIDTH = 32
    PLACES = 1000  # the fastest sine of a place then advances by one radian a token

    def __init__(
        self,
        num_classes: int,
        num_steps: int | None,
        width: int = 128,
        depth: int = 2,
        mask_id: int | None = None,
    ) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.width = width
        self.mask_id = mask_id
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.embed = nn.Embedding(num_classes, width)
        self.neighbors = nn.Conv1d(width, width, 5, padding=2)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                width // self.HEAD_WIDTH,
                4 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))
        self.keep = nn.Linear(width, 1)
        self.sharding: Sharding | None = None

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        return self.leave[-1]  # type: ignore[return-value]

    def forward(self, x_t: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor | Sharded:
        """Return the logits of x_0.

        Args:
            x_t: integers ``(B, L)`` in [0, K).
            t: ``(B,)`` in 1..T, or in [0, 1].
            mask: bool ``(B, L)``, False for padding, which no token sees; None for no padding.

        Returns:
            ``(B, L, K)``, contiguous; :class:`Sharded` where processes share out the classes.
        """
        time = self.time(sinusoids(t / (self.num_steps or 1), self.width))
        h = self.embed(x_t.long())
        if mask is not None:
            h = h * mask[..., None]
        h = h + self.neighbors(h.mT).mT
        places = torch.arange(x_t.shape[1], device=x_t.device)
        h = h + sinusoids(places / self.PLACES, self.width) + time[:, None]
        for layer in self.layers:
            h = layer(h, src_key_padding_mask=None if mask is None else ~mask)
        return keep_tokens(self.leave(h), self.keep(time), x_t, self.mask_id, self.sharding)
