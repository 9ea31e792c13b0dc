"""The whole bound of an item, all of 1000 steps, beside the denoiser calls that it is made of."""

import math
from functools import lru_cache

import torch
from torch import Tensor

import d3pm_fast as d3
from d3pm_fast.train.unet import CategoricalUNet

from .cases import LONG, OURS, Inputs, Operation, Provider, Run, as_pytest, cases

CASES = cases("elbo", (1, 256, 16), (1, 256, 256), families=(LONG,))
BATCH_SIZE = 64


@lru_cache
def denoiser(num_classes: int, num_steps: int) -> CategoricalUNet:
    """Return the network that ``d3pm-fast train`` trains, as it begins."""
    return CategoricalUNet(num_classes, num_steps).eval()


def ours(i: Inputs) -> Run:
    network = denoiser(i.case.num_classes, i.transition.num_steps)
    side = math.isqrt(i.case.positions)
    images = i.x0.view(-1, side, side)
    diffusion = d3.D3PM(i.transition)
    return lambda: diffusion.elbo(network, images, batch_size=BATCH_SIZE).nats


def denoiser_alone(i: Inputs) -> Run:
    """As many calls, of as many images."""
    network = denoiser(i.case.num_classes, i.transition.num_steps)
    side = math.isqrt(i.case.positions)
    times = torch.arange(1, i.transition.num_steps + 1).repeat_interleave(i.case.batch)
    images = i.x_t.view(-1, side, side)[:1].expand(len(times), side, side)
    calls = list(zip(images.split(BATCH_SIZE), times.split(BATCH_SIZE), strict=True))

    @torch.no_grad()
    def run() -> None:
        for x_t, t in calls:
            network(x_t, t)

    return run


def bytes_moved(i: Inputs) -> int:
    """Read the logits of every step."""
    return i.logits.nbytes * i.transition.num_steps


def distance(ours: Tensor, other: Tensor, _: Inputs) -> float:
    """Return the largest difference in nats; both are draws."""
    return float((ours - other).abs().max())


ELBO = Operation(
    "elbo",
    CASES,
    {OURS: Provider(ours), "denoiser alone": Provider(denoiser_alone)},
    bytes_moved,
    distance,
)
test_elbo = as_pytest(ELBO)
