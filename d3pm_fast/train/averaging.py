"""The average of a network's weights over its training, with which samples are drawn."""

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .distributed import alike


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of a network's weights.

    After n steps the decay is at most ``(1 + n) / (10 + n)``, so that an early average has
    forgotten the weights that training began with.
    """

    def average(means: list[Tensor], weights: list[Tensor], num_averaged: Tensor) -> None:
        n = int(num_averaged)
        take_in = get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))
        for some, others in zip(alike(means), alike(weights), strict=True):
            take_in(some, others, num_averaged)

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)  # type: ignore[arg-type]
