"""Samples of pairs against the law that they should follow."""

from pathlib import Path

import matplotlib
import torch
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def compare(law: Tensor, model: Tensor, truth: Tensor, path: Path) -> tuple[float, float]:
    """Print and plot how far two samples are from a law, in total variation.

    The truth's own sample is the yardstick: no model of the law can be expected to do better.

    Args:
        law: the probability of each pair, ``(K, K)``.
        model: pairs drawn from the model, integers ``(N, 2)``.
        truth: as many drawn from the law.
        path: where the plot goes.

    Returns:
        The distances of the model's sample and of the truth's.
    """
    tables = {
        "law": law,
        "model": frequencies(model, len(law)),
        "truth": frequencies(truth, len(law)),
    }
    distances = {name: total_variation(table, law) for name, table in tables.items()}
    print(f"total variation of {len(model)} pairs to the law:")
    print(f"  drawn from the model {distances['model']:.4f}")
    print(f"  drawn from the law   {distances['truth']:.4f}")

    figure, panels = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    for panel, (name, table) in zip(panels, tables.items(), strict=True):
        panel.imshow(table.numpy(), vmin=0, vmax=law.max())
        panel.set(title=f"{name}, total variation {distances[name]:.4f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(f"wrote {path}")
    return distances["model"], distances["truth"]


def frequencies(pairs: Tensor, num_classes: int) -> Tensor:
    """Return how often each pair occurs, float64 ``(K, K)``, of integers ``(N, 2)``."""
    first, second = pairs.unbind(1)
    counts = torch.bincount(first * num_classes + second, minlength=num_classes**2).double()
    return counts.view(num_classes, num_classes) / len(pairs)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Return half the sum of the absolute differences."""
    return 0.5 * (p - q).abs().sum().item()
