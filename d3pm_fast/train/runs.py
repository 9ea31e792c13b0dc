"""The list of runs, each with its bound."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from . import checkpoint, model, records

HEADER = ("run", "task", "chain", "steps", "bits", "of")


@dataclass(frozen=True)
class RunsConfig:
    """List the runs in a folder, with their bounds."""

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs")
    """Where the runs are."""


def list_runs(config: RunsConfig) -> None:
    """Print a line for each run in a folder and the folders in it.

    Raises:
        FileNotFoundError: there is none.
    """
    folders = sorted(path.parent for path in config.folder.rglob(checkpoint.NAME))
    if not folders:
        raise FileNotFoundError(f"there are no runs in {config.folder}")
    rows = [HEADER, *(row(folder) for folder in folders)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print("  ".join(padded).rstrip())


def row(out: Path) -> tuple[str, ...]:
    """Return the cells of a run: the bound of its present model, and of what that is."""
    try:
        state = checkpoint.load(out / checkpoint.NAME)
    except ValueError:
        return str(out), "damaged", "", "", "", ""
    options = state["options"]
    step = state["step"]
    return str(out), options["command"], options["transition"], str(step), *bound(out, step)


def bound(out: Path, step: int) -> tuple[str, str]:
    """Return the bound of a run in bits a token: of eval, of the items held out, or running.

    What is of the model as it was before does not count, nor does a damaged file.
    """
    with suppress(OSError, KeyError, json.JSONDecodeError):
        found = json.loads((out / "eval.json").read_text(encoding="utf-8"))
        if found["sha256"] == model.digest(out):
            return f"{found['bits_per_dim']:.3f}", f"{found['images']} test images"
    with suppress(OSError, KeyError, json.JSONDecodeError):
        found = json.loads((out / "held_out.json").read_text(encoding="utf-8"))
        if found["step"] == step:
            return f"{found['bits']:.3f}", "items held out"
    lines = records.read(out)
    if lines and lines[-1]["bound"] is not None:
        return f"{lines[-1]['bound']:.3f}", "training"
    return "", ""
