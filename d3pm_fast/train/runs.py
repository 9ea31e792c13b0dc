"""The list of runs, each with its bound."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from . import checkpoint, records

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
    """Return the cells of a run: its best known bound, and of what that is."""
    try:
        state = checkpoint.load(out / checkpoint.NAME)
    except ValueError:
        return str(out), "damaged", "", "", "", ""
    options = state["options"]
    return (
        str(out), options["command"], options["transition"], str(state["step"]), *bound(out),
    )  # fmt: skip


def bound(out: Path) -> tuple[str, str]:
    """Return the bound of a run in bits a token: of eval, of the items held out, or running."""
    for name, key in (("eval.json", "bits_per_dim"), ("held_out.json", "bits")):
        if (out / name).is_file():
            found = json.loads((out / name).read_text(encoding="utf-8"))
            of = f"{found['images']} test images" if name == "eval.json" else "items held out"
            return f"{found[key]:.3f}", of
    lines = records.read(out)
    if lines and lines[-1]["bound"] is not None:
        return f"{lines[-1]['bound']:.3f}", "training"
    return "", ""
