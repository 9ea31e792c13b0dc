"""Models of runs on the Hugging Face Hub, by its own mixin."""

from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from .config import Statistics
from .device import pick_device
from .model import load, restore
from .tasks import to_options

__all__ = ["HubModel"]


class HubModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="d3pm_fast",
    tags=["discrete-diffusion", "d3pm"],
):
    """The denoiser of a run, with ``save_pretrained``, ``push_to_hub`` and ``from_pretrained``.

    Args:
        options: the options of the run as plain values.
        statistics: of the training data, see :meth:`TrainConfig.statistics`.

    Attributes:
        trained: the model, as :func:`d3pm_fast.train.load` returns it.
    """

    def __init__(self, options: dict[str, Any], statistics: Statistics) -> None:
        super().__init__()
        self.trained = restore(options, statistics, None)
        self.denoiser, self.diffusion = self.trained.denoiser, self.trained.diffusion

    @classmethod
    def of_run(cls, path: str | Path) -> "HubModel":
        """Return the model of a run; arguments and errors as :func:`d3pm_fast.train.load`."""
        trained = load(Path(path), pick_device("cpu"))
        model = cls(to_options(trained.config), trained.statistics)
        model.denoiser.load_state_dict(trained.denoiser.state_dict())
        return model

    def forward(self, x_t: Tensor, t: Tensor, *mask: Tensor) -> Tensor:
        """Return the logits of x_0, ``(B, *S, K)``, of x_t ``(B, *S)`` and t ``(B,)``."""
        logits: Tensor = self.denoiser(x_t, t, *mask)
        return logits
