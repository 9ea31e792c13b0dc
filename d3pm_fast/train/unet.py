"""The network for images: a small time-conditioned U-Net, and the one over categorical images."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import Sharded
from ..records import Sharding
from .layers import keep_tokens, sinusoids

__all__ = ["CategoricalUNet", "UNet"]


class UNet(nn.Module):
    """A U-Net that maps ``(x_t, t)``, x_t an image of any channels, to an image.

    Each level halves the image and, but for the first, doubles the width, up to 4 times the first
    one; sides that the halvings do not divide are padded with zeros.

    Args:
        inside: channels of x_t.
        outside: channels of what comes out.
        num_steps: T; None in continuous time.
        width: channels at full resolution, a multiple of 16.
        depth: residual blocks a level, on the way down and again on the way up.
        attention: self-attention at the lowest resolution.
    """

    LEVELS = 3

    def __init__(
        self,
        inside: int,
        outside: int,
        num_steps: int | None,
        width: int = 32,
        depth: int = 1,
        attention: bool = True,
    ) -> None:
        super().__init__()
        self.num_steps = num_steps
        widths = [width * 2**level for level in range(self.LEVELS)]
        self.features = features = 4 * width
        self.time = nn.Sequential(
            nn.Linear(features, features), nn.SiLU(), nn.Linear(features, features), nn.SiLU()
        )
        self.enter = nn.Conv2d(inside, width, 3, padding=1)
        self.down = nn.ModuleList(
            Blocks(ResidualBlock(w, w, features) for _ in range(depth)) for w in widths
        )
        self.shrink = nn.ModuleList(
            nn.Conv2d(w, wider, 3, stride=2, padding=1) for w, wider in pairwise(widths)
        )
        self.middle = Attention(widths[-1]) if attention else nn.Identity()
        self.grow = nn.ModuleList(nn.Conv2d(wider, w, 1) for w, wider in pairwise(widths))
        self.up = nn.ModuleList(
            Blocks(ResidualBlock(2 * w if i == 0 else w, w, features) for i in range(depth))
            for w in widths
        )
        self.leave = nn.Sequential(normalization(width), nn.SiLU(), nn.Conv2d(width, outside, 1))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return ``(B, outside, H, W)`` from ``(B, inside, H, W)`` and t, ``(B,)``."""
        return self.image(x_t, self.time_features(t))

    def time_features(self, t: Tensor) -> Tensor:
        """Return what the blocks know of the time, ``(B, features)``."""
        features: Tensor = self.time(sinusoids(t / (self.num_steps or 1), self.features))
        return features

    def image(self, h: Tensor, time: Tensor) -> Tensor:
        """Return ``(B, outside, H, W)`` from ``(B, inside, H, W)`` and ``(B, features)``."""
        height, width = h.shape[2:]
        multiple = 2 ** (self.LEVELS - 1)
        h = F.pad(h, (0, -width % multiple, 0, -height % multiple))
        h = self.enter(h)
        kept = []
        for level in range(self.LEVELS):
            if level:
                h = self.shrink[level - 1](h)
            h = self.down[level](h, time)
            kept.append(h)
        h = self.middle(h)
        for level in reversed(range(self.LEVELS)):
            if level < self.LEVELS - 1:
                h = F.interpolate(self.grow[level](h), scale_factor=2)
            h = torch.cat([h, kept[level]], 1)
            h = self.up[level](h, time)
        padded: Tensor = self.leave(h)
        return padded[..., :height, :width]


class CategoricalUNet(UNet):
    """The U-Net that maps ``(x_t, t)``, x_t an image of classes, to the logits of x_0.

    The classes come in through an embedding. What comes out is added to a learned,
    time-dependent multiple of ``onehot(x_t)``.

    Args:
        num_classes: K, the mask counted in.
        num_steps: T; None in continuous time.
        width: channels at full resolution, a multiple of 16.
        depth: residual blocks a level, on the way down and again on the way up.
        attention: self-attention at the lowest resolution.
        mask_id: a class that is never predicted (its logit is -inf), or None.
    """

    def __init__(
        self,
        num_classes: int,
        num_steps: int | None,
        width: int = 32,
        depth: int = 1,
        attention: bool = True,
        mask_id: int | None = None,
    ) -> None:
        super().__init__(width, num_classes, num_steps, width, depth, attention)
        self.mask_id = mask_id
        self.embed = nn.Embedding(num_classes, width)
        self.keep = nn.Linear(self.features, 1)
        self.sharding: Sharding | None = None

    @property
    def head(self) -> nn.Conv2d:
        """The last layer."""
        return self.leave[-1]  # type: ignore[return-value]

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor | Sharded:  # type: ignore[override]
        """Return the logits of x_0.

        Args:
            x_t: integers ``(B, H, W)`` in [0, K).
            t: ``(B,)`` in 1..T, or in [0, 1].

        Returns:
            ``(B, H, W, K)``, contiguous; :class:`Sharded` where processes share out the classes.
        """
        time = self.time_features(t)
        h = self.image(self.embed(x_t.long()).permute(0, 3, 1, 2), time).permute(0, 2, 3, 1)
        return keep_tokens(h, self.keep(time), x_t, self.mask_id, self.sharding)


class Blocks(nn.ModuleList):
    """Residual blocks, one after the other."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return ``(B, outside, H, W)`` from ``(B, inside, H, W)`` and ``(B, features)``."""
        for block in self:
            x = block(x, time)
        return x


class ResidualBlock(nn.Module):
    """Two convolutions, the second one scaled and shifted by the time, around a skip."""

    def __init__(self, inside: int, outside: int, features: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            normalization(inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1)
        )
        self.time = nn.Linear(features, 2 * outside)
        self.norm = normalization(outside)
        self.second = nn.Conv2d(outside, outside, 3, padding=1)
        self.skip = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return ``(B, outside, H, W)`` from ``(B, inside, H, W)`` and ``(B, features)``."""
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        h = self.norm(self.first(x)) * (1 + scale) + shift
        residual: Tensor = self.skip(x) + self.second(F.silu(h))
        return residual


class Attention(nn.Module):
    """Self-attention among the places of an image."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = normalization(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, C, H, W)``, as it came in."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.out(y.transpose(-1, -2).reshape(b, c, h, w))
        return x + mixed


def normalization(channels: int) -> nn.GroupNorm:
    """Return a normalization over groups of 16 channels."""
    return nn.GroupNorm(channels // 16, channels)
