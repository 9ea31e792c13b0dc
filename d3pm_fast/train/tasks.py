"""What can be learned: one command a task."""

from typing import Any

from .config import TrainConfig
from .images import ImageConfig
from .text import TextConfig

TASKS: dict[str, type[TrainConfig]] = {"train": ImageConfig, "train-text": TextConfig}


def to_options(config: TrainConfig) -> dict[str, Any]:
    """Return a task and its options as plain values."""
    command = next(name for name, task in TASKS.items() if type(config) is task)
    return {"command": command, **config.to_dict()}


def from_options(options: dict[str, Any]) -> TrainConfig:
    """Return what ``to_options`` was given."""
    values = dict(options)
    return TASKS[values.pop("command")].from_dict(values)
