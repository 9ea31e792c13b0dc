"""Pictures of a run: sample grids, films of the reverse process, loss curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

ZOOM = 3


def grid(images: Tensor, colours: np.ndarray, columns: int | None = None) -> Image.Image:
    """Return ``(N, H, W)`` class images as one picture; by itself about twice as wide as high."""
    count, height, width = images.shape
    columns = columns or min(count, int(np.ceil(np.sqrt(2 * count))))
    rows = -(-count // columns)
    tiles = np.full((rows * columns, height + 2, width + 2, 3), 255, np.uint8)
    tiles[:count, 1:-1, 1:-1] = colours[images.cpu().numpy()]
    sheet = tiles.reshape(rows, columns, height + 2, width + 2, 3).swapaxes(1, 2)
    picture = Image.fromarray(sheet.reshape(rows * (height + 2), columns * (width + 2), 3))
    return picture.resize((picture.width * ZOOM, picture.height * ZOOM), Image.Resampling.NEAREST)


def film(path: Path, frames: Sequence[Tensor], colours: np.ndarray) -> None:
    """Write ``(N, H, W)`` class images, one after the other, as a looping GIF."""
    pictures = [grid(frame, colours) for frame in frames]
    durations = [80] * (len(pictures) - 1) + [2500]  # milliseconds; the result stays in view
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True
    )


def terms(path: Path, times: np.ndarray, bits: np.ndarray, terms_a_point: int) -> None:
    """Plot what the term of each time adds to the bound, in bits per dimension.

    Neighbouring terms are averaged, for of an estimate each is known to few digits; the first
    step, which alone predicts data, has a point of its own.
    """
    groups = [slice(0, 1)]
    groups += [slice(i, i + terms_a_point) for i in range(1, len(times), terms_a_point)]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([times[g].mean() for g in groups], [bits[g].mean() for g in groups], ".-")
    axes.set(xlabel="t", ylabel="bits per dimension a term", title="Variational bound by time")
    axes.set_yscale("log")
    axes.set_ylim(bottom=1e-8)  # a thousand such steps are nothing
    figure.savefig(path, dpi=120)


def curve(path: Path, metrics: Sequence[dict[str, Any]], unit: str) -> None:
    """Plot the running bound and the running mean of the cross-entropy, in bits per ``unit``."""
    steps = np.array([m["step"] for m in metrics])
    bound = np.array([np.nan if m["bound"] is None else m["bound"] for m in metrics])
    entropy = np.array([m["cross_entropy"] for m in metrics])
    window = max(1, len(metrics) // 50)
    smooth = np.convolve(entropy, np.ones(window) / window, mode="valid")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, bound, label="variational bound (running)")
    axes.plot(steps[window - 1 :], smooth, label=f"cross-entropy, mean of {window} steps")
    axes.set(xlabel="step", ylabel=f"bits per {unit}", title="Training")
    known = np.concatenate([bound[np.isfinite(bound)], smooth])
    if len(known):
        axes.set_ylim(0, 1.2 * float(np.quantile(known, 0.9)))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
