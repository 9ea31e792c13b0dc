"""Shaped logits by Python's floats, a row at a time, and by each implementation."""

import math
from types import SimpleNamespace

import torch

from d3pm_fast.functional import Shaped
from d3pm_fast.predictions import as_prediction


def grid(*shape, forbidden=0.1, seed=0):
    """Multiples of 1/8, which every dtype holds, with many ties; some are -inf."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = (24 * values).round().clamp(-127, 127) / 8
    is_forbidden = torch.rand(shape, generator=generator) < forbidden
    is_forbidden[..., 0] = False
    return values.masked_fill(is_forbidden, -torch.inf)


def make(impl, shaped):
    """The shaped logits by an implementation, where its tensors have to be."""
    device = "cuda" if impl == "triton" and torch.cuda.is_available() else "cpu"
    tensors = (None if tensor is None else tensor.to(device) for tensor in shaped[:2])
    classes = SimpleNamespace(num_classes=shaped.logits.shape[-1], forbidden=-1)
    on_device = as_prediction(Shaped(*tensors, *shaped[2:]), classes)
    return on_device.served_by(impl).logits(*on_device.parameters).cpu()


def naive_row(row, other, shaped):
    """The mixed and divided row, and the classes that are kept in order, in Python's floats."""
    if other is not None:
        row = [
            -math.inf if -math.inf in (c, u) else u + shaped.guidance * (c - u)
            for c, u in zip(row, other, strict=True)
        ]
    row = [x / shaped.temperature for x in row]
    ranked = sorted(range(len(row)), key=lambda j: (-row[j], j))[: shaped.top_k]
    if shaped.top_p is not None:
        masses = [math.exp(row[j] - row[ranked[0]]) for j in ranked]
        total, kept, reached = math.fsum(masses), [], 0.0
        for j, mass in zip(ranked, masses, strict=True):
            if reached >= shaped.top_p * total:
                break
            kept.append(j)
            reached += mass
        ranked = kept
    if shaped.min_p:
        least = row[ranked[0]] + math.log(shaped.min_p)
        ranked = [j for j in ranked if row[j] >= least]
    return row, ranked
