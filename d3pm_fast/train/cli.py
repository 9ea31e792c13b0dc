"""The command ``d3pm-fast``: one subcommand a task, its options from a dataclass."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``d3pm-fast``; what the user can mend is said in a sentence, without a traceback."""
    try:
        import tyro

        from .evaluate import EvalConfig, evaluate
        from .generate import SampleConfig, sample
        from .loop import train
        from .tasks import TASKS
    except ModuleNotFoundError as error:
        raise SystemExit(f'd3pm-fast needs {error.name}: pip install "d3pm_fast[train]"') from error
    config = tyro.extras.subcommand_cli_from_dict(
        {**TASKS, "sample": SampleConfig, "eval": EvalConfig},
        prog="d3pm-fast",
        description=__doc__,
        args=sys.argv[1:] if arguments is None else arguments,
    )
    try:
        if isinstance(config, SampleConfig):
            sample(config)
        elif isinstance(config, EvalConfig):
            evaluate(config)
        else:
            train(config)
    except (OSError, ValueError) as error:
        raise SystemExit(f"d3pm-fast: {error}") from error
    except KeyboardInterrupt:
        then = "" if isinstance(config, SampleConfig) else "; the same command goes on"
        raise SystemExit(f"d3pm-fast: stopped{then}") from None
