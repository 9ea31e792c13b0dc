"""The metrics of a run: a line of JSON a step, and what else was asked for with ``--log``."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Literal

from .. import _files

__all__ = ["LogKind", "check_installed", "open_log", "read"]

LogKind = Literal["none", "csv", "tensorboard", "wandb"]
Line = dict[str, Any]
Write = Callable[[Line], None]
NAME = "metrics.jsonl"
MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


def read(out: Path, last_step: int | None = None) -> list[Line]:
    """Return the metrics of the run in ``out``, up to a step; a line cut short is left out."""
    path = out / NAME
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return [line for line in lines if last_step is None or line["step"] <= last_step]


def check_installed(kind: LogKind) -> None:
    """Raise ValueError where the package that this kind of log needs is not installed."""
    try:
        if kind in MODULES:
            import_module(MODULES[kind])
    except ImportError as error:
        raise ValueError(f"--log {kind} needs a package: pip install {kind}") from error


@contextmanager
def open_log(out: Path, kind: LogKind, before: list[Line], options: Line) -> Iterator[Write]:
    """Yield what writes the metrics of a step, behind those of the steps ``before``."""
    _files.write_text(out / NAME, "".join(json.dumps(line) + "\n" for line in before))
    with (
        open(out / NAME, "a", encoding="utf-8") as lines,
        KINDS[kind](out, before, options) as write_more,
    ):

        def write(line: Line) -> None:
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            write_more(line)

        yield write


@contextmanager
def _none(out: Path, before: list[Line], options: Line) -> Iterator[Write]:
    yield lambda line: None


@contextmanager
def _csv(out: Path, before: list[Line], options: Line) -> Iterator[Write]:
    path = out / "metrics.csv"
    with _files.replaced(path) as file:
        for line in before:
            _write_row(file, line)
    with open(path, "a", newline="") as file:
        yield lambda line: _write_row(file, line)


def _write_row(file: IO[str], line: Line) -> None:
    writer = csv.DictWriter(file, line)
    if file.tell() == 0:
        writer.writeheader()
    writer.writerow(line)


@contextmanager
def _tensorboard(out: Path, before: list[Line], options: Line) -> Iterator[Write]:
    from torch.utils.tensorboard import SummaryWriter

    step = before[-1]["step"] if before else 0
    with SummaryWriter(out / "tensorboard", purge_step=step + 1) as writer:

        def write(line: Line) -> None:
            for name, value in line.items():
                if name != "step" and value is not None:
                    writer.add_scalar(name, value, line["step"])

        yield write


@contextmanager
def _wandb(out: Path, before: list[Line], options: Line) -> Iterator[Write]:
    import wandb

    with wandb.init(project="d3pm-fast", name=out.name, dir=out, config=options) as run:
        yield lambda line: run.log(line, step=line["step"])


KINDS = {"none": _none, "csv": _csv, "tensorboard": _tensorboard, "wandb": _wandb}
