"""The command ``d3pm-fast``: one subcommand a task, its options from a dataclass."""

import sys
from collections.abc import Callable, Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``d3pm-fast``; what the user can mend is said in a sentence, without a traceback."""
    try:
        import tyro

        from .config import TrainConfig
        from .evaluate import EvalConfig, evaluate
        from .generate import SampleConfig, sample
        from .loop import train
    except ModuleNotFoundError as error:
        raise SystemExit(f'd3pm-fast needs {error.name}: pip install "d3pm_fast[train]"') from error
    tasks: dict[type, Callable[[Any], None]]
    tasks = {TrainConfig: train, SampleConfig: sample, EvalConfig: evaluate}
    config = tyro.extras.subcommand_cli_from_dict(
        dict(zip(("train", "sample", "eval"), tasks, strict=True)),
        prog="d3pm-fast",
        description=__doc__,
        args=sys.argv[1:] if arguments is None else arguments,
    )
    try:
        tasks[type(config)](config)
    except (OSError, ValueError) as error:
        raise SystemExit(f"d3pm-fast: {error}") from error
