"""What an epsilon inside the logarithms does to the bound of a trained model.

Published code (Austin et al. 2021, ``q_posterior_logits``) takes ``log(Q_t[:, x_t] + eps)`` and
``log(row + eps)`` with eps = 1e-6, where ``row`` is ``Qbar_{t-1}[x_0, :]`` or the predicted one,
and normalizes their sum. Here the same is done in float64, on the same x_t and predictions as
the exact bound, so that nothing but the epsilon differs.

``python -m benchmarks.epsilon CHECKPOINT...`` writes ``benchmarks/results/epsilon.csv``.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d3pm_fast import D3PM, draw_seeds
from d3pm_fast._files import replaced
from d3pm_fast.train import fashion_mnist, model
from d3pm_fast.train.images import ImageConfig

from .arguments import new_file, whole

TABLE = Path(__file__).parent / "results" / "epsilon.csv"
EPSILON = 1e-6


class Row(NamedTuple):
    """One model: means over the images, in bits per dimension."""

    family: str
    images: int
    times_per_image: int
    exact: float
    with_epsilon: float
    difference_percent: float


class WithEpsilon(D3PM):
    """A diffusion of the joint reverse step whose loss adds an epsilon as published code does."""

    def __init__(self, diffusion: D3PM, epsilon: float = EPSILON) -> None:
        super().__init__(diffusion.transition, "joint", "logits", diffusion.impl)
        self.epsilon = epsilon
        times = range(1, self.num_steps + 1)
        self.q = torch.stack([self.transition.q_matrix(t) for t in times])
        self.q_bar = torch.stack([self.transition.q_bar_matrix(t - 1) for t in times])

    def loss(self, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, **_: Any) -> Tensor:
        """The loss of each token of images, float64 ``(B, H, W)``."""
        log_s = torch.log_softmax(logits.double(), dim=-1)
        which = (t - 1).view(-1, 1, 1)
        column = self.q.mT[which, x_t]
        predicted = (log_s.exp().flatten(1, 2) @ self.q_bar[t - 1]).view_as(log_s)
        log_q, log_p = (
            torch.log_softmax((column + self.epsilon).log() + (row + self.epsilon).log(), dim=-1)
            for row in (self.q_bar[which, x0], predicted)
        )
        divergence = (log_q.exp() * (log_q - log_p)).sum(dim=-1)
        first = -log_s.gather(-1, x0.unsqueeze(-1)).squeeze(-1)
        return first.where(which == 0, divergence)


def measure(path: Path, images: int, times: int, folder: Path | None = None) -> Row:
    """Bound the first test images with and without the epsilon."""
    config, _, denoiser, exact = model.load(path, torch.device("cpu"))
    if not isinstance(config, ImageConfig):
        raise ValueError(f"{path} is of no images")
    if (exact.reverse, exact.first_step) != ("joint", "logits"):
        raise ValueError(f"{path}: the published loss has reverse='joint', first_step='logits'")
    x0 = fashion_mnist.load("test", config.levels, folder)[:images]
    seeds = draw_seeds(len(x0), torch.Generator().manual_seed(0))
    bounds = (
        diffusion.elbo(denoiser, x0, num_times=times, seeds=seeds, progress=True)
        for diffusion in (exact, WithEpsilon(exact))
    )
    bits, changed = (float(bound.bits_per_dim.mean()) for bound in bounds)
    found = (round(value, 4) for value in (bits, changed, 100 * (changed / bits - 1)))
    return Row(config.transition, len(x0), times, *found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the checkpoints and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.epsilon", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="of d3pm-fast train")
    add("--images", type=whole(1), default=200, help="test images, the first ones (%(default)s)")
    add("--times", type=whole(3), default=20, help="times an image, see D3PM.elbo (%(default)s)")
    add("--data", type=Path, help="folder of the images' IDX files")
    add("--out", type=new_file, default=TABLE, help="the table (%(default)s)")
    options = parser.parse_args(arguments)
    sizes = options.images, options.times, options.data
    try:
        rows = [measure(path, *sizes) for path in options.checkpoints]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    with replaced(options.out) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
