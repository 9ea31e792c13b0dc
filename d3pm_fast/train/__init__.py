"""The training program, ``d3pm-fast``, and the models that it makes."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import Trained

__all__ = ["load"]


def load(path: str | Path, device: str = "cpu") -> "Trained":
    """Return the model of a run.

    Args:
        path: the folder of a run of ``d3pm-fast train``, or its ``model.safetensors``.
        device: a PyTorch device.

    Returns:
        A named tuple. ``denoiser`` is the network with averaged weights, in evaluation mode; it
        maps ``(x_t (B, *S), t (B,))`` to logits ``(B, *S, K)``. ``diffusion`` is the
        :class:`d3pm_fast.D3PM` that it was trained with. ``config`` has the options of the run,
        ``statistics`` what it knows of the training data.

    Raises:
        FileNotFoundError: there is no such model.
        ModuleNotFoundError: ``pip install "d3pm_fast[train]"`` is missing.
        ValueError: the file is damaged, no model, or one of another version; or the device is
            not available.
    """
    from . import model
    from .device import pick_device

    return model.load(Path(path), pick_device(device))
