"""Train, sample and evaluate discrete diffusion models of images and of text.

``d3pm-fast COMMAND --help`` shows the options of a command, ``d3pm-fast --version`` the version.
"""

import argparse
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Union


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
    command = next((word for word in arguments if not word.startswith("-")), "")
    name = f"d3pm-fast {command}".rstrip()
    try:
        from .process import interrupted_by_signals

        run, config = parse(arguments)
        with interrupted_by_signals():
            run(config)
    except ModuleNotFoundError as error:
        raise SystemExit(f'd3pm-fast needs {error.name}: pip install "d3pm_fast[train]"') from error
    except (OSError, ValueError) as error:
        raise SystemExit(f"{name}: {error}") from error
    except KeyboardInterrupt:
        then = "" if command == "sample" else "; the same command goes on"
        raise SystemExit(f"{name}: stopped{then}") from None


def parse(arguments: Sequence[str]) -> tuple[Callable[[Any], None], Any]:
    """Return what the command line asks for, and its options."""
    import tyro

    from .evaluate import EvalConfig, evaluate
    from .generate import SampleConfig, sample
    from .loop import train
    from .runs import RunsConfig, list_runs
    from .tasks import TASKS

    configs = {**TASKS, "sample": SampleConfig, "eval": EvalConfig, "runs": RunsConfig}
    defaults = read_config(arguments)
    subcommands: Any = tuple(
        Annotated[
            config, tyro.conf.subcommand(name, default=defaults.get(name, tyro.MISSING_NONPROP))
        ]
        for name, config in configs.items()
    )
    union: Any = Union[subcommands]  # noqa: UP007
    config = tyro.cli(union, prog="d3pm-fast", description=__doc__, args=arguments)
    others: dict[type, Callable[[Any], None]] = {
        SampleConfig: sample,
        EvalConfig: evaluate,
        RunsConfig: list_runs,
    }
    return others.get(type(config), train), config


def read_config(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options in the file of ``--config``, under the name of their command."""
    from .tasks import from_options

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
        command, config = options["command"], from_options(options)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (KeyError, TypeError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} is no configuration of d3pm-fast: {error}") from error
    if command not in arguments:
        raise ValueError(f"{path} is a configuration of the command {command}")
    return {command: config}
