"""Train, sample and evaluate discrete diffusion models of images and of text.

``d3pm-fast COMMAND --help`` shows the options of a command, ``d3pm-fast --version`` the version.
"""

import argparse
import signal
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

if TYPE_CHECKING:
    from .config import TrainConfig

TRAINS = ("train", "train-text")
GOES_ON = (*TRAINS, "eval")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``d3pm-fast``; what the user can mend is said in a sentence, without a traceback."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if arguments == ["--version"]:
        from .. import __version__

        print(f"d3pm-fast {__version__}")
        return
    command = arguments[0] if arguments else ""
    name = f"d3pm-fast {command}".rstrip()
    try:
        from .process import exit_status, interrupted_by_signals

        with interrupted_by_signals():
            run, config = parse(arguments)
            run(config)
    except ModuleNotFoundError as error:
        raise SystemExit(f'd3pm-fast needs {error.name}: pip install "d3pm_fast[train]"') from error
    except OSError as error:
        system = error.filename is not None and error.strerror
        said = f"{error.filename}: {error.strerror}" if system else error
        raise SystemExit(f"{name}: {said}") from error
    except ValueError as error:
        raise SystemExit(f"{name}: {error}") from error
    except KeyboardInterrupt as error:
        then = "; the same command goes on" if command in GOES_ON else ""
        print(f"{name}: stopped{then}", file=sys.stderr)
        (number,) = error.args or (signal.SIGINT,)
        raise SystemExit(exit_status(number)) from None


def parse(arguments: Sequence[str]) -> tuple[Callable[[Any], None], Any]:
    """Return what the command line asks for, and its options."""
    import tyro

    from .evaluate import EvalConfig, evaluate
    from .generate import SampleConfig, sample
    from .loop import train
    from .runs import RunsConfig, list_runs
    from .tasks import TASKS

    commands: dict[str, tuple[type, Callable[[Any], None]]] = {
        **{name: (task, train) for name, task in TASKS.items()},
        "sample": (SampleConfig, sample),
        "eval": (EvalConfig, evaluate),
        "runs": (RunsConfig, list_runs),
    }
    if not arguments or arguments[0] not in commands:
        subcommands: Any = tuple(
            Annotated[config, tyro.conf.subcommand(name)] for name, (config, _) in commands.items()
        )
        union: Any = Union[subcommands]  # noqa: UP007
        tyro.cli(union, prog="d3pm-fast", description=__doc__, args=arguments)
    command, *options = arguments
    made, run = commands[command]
    defaults = read_config(command, TASKS[command], options) if command in TASKS else {}
    try:
        # Of a class tyro would itself report what its constructor raises.
        return run, tyro.cli(partial(made, **defaults), prog=f"d3pm-fast {command}", args=options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error}; see d3pm-fast {command} --help") from error


def read_config(
    command: str, task: type["TrainConfig"], arguments: Sequence[str]
) -> dict[str, Any]:
    """Return the options in the file of ``--config``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    try:
        path = parser.parse_known_args(arguments)[0].config
    except argparse.ArgumentError:  # tyro says it
        return {}
    if path is None:
        return {}
    try:
        options = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"--config {path} is not TOML: {error}") from error
    if (other := options.pop("command", command)) != command:
        raise ValueError(f"--config {path} is of the command {other}, not of {command}")
    keys = {field.name: field.default for field in fields(task) if field.name != "config"}
    for key in options.keys() - keys:
        close = get_close_matches(key, [*keys, "command"], n=1)
        meant = f"; do you mean {close[0]}?" if close else ""
        raise ValueError(f"--config {path} has the unknown key {key}{meant}")
    for key, default in keys.items():
        if default is MISSING and key not in options:
            raise ValueError(f"--config {path} lacks the key {key}")
    try:
        return vars(task.from_dict(options))
    except (TypeError, ValueError) as error:
        raise ValueError(f"--config {path}: {error}") from error
