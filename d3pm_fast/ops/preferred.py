"""Which implementation for GPUs is the faster one, as measured: ``preferred.csv``.

``python -m benchmarks.gpu`` writes such a table; the library reads its own when it is imported.
A row serves an operation in a dtype, of as many classes as it says or fewer, down to the row
below it. While nothing has been measured there are no rows.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import torch

from .._files import replaced

TABLE = Path(__file__).with_name("preferred.csv")


class Preference(NamedTuple):
    """The faster implementation of an operation with up to so many classes."""

    operation: str
    dtype: str  # such as "float32"
    most_classes: int
    implementation: str


def read(path: Path) -> list[Preference]:
    """Return a table's rows, those of few classes first."""
    with path.open(newline="") as file:
        rows = [
            Preference(operation, dtype, int(most_classes), name)
            for operation, dtype, most_classes, name in list(csv.reader(file))[1:]
        ]
    return sorted(rows, key=lambda row: row.most_classes)


def write(rows: list[Preference], path: Path) -> None:
    """Write a table."""
    with replaced(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Preference._fields)
        writer.writerows(rows)


PREFERENCES = read(TABLE)


def preferred(operation: str, num_classes: int, dtype: torch.dtype) -> Preference | None:
    """Return the row that serves a call, None for none."""
    for row in PREFERENCES:
        same = row.operation == operation and f"torch.{row.dtype}" == str(dtype)
        if same and num_classes <= row.most_classes:
            return row
    return None
