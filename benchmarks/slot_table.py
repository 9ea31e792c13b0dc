"""The table of issue slots, ``results/issue_slots.csv``; ``issue_slots.py`` makes it."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from d3pm_fast._files import replaced

from .chips import CHIPS

TABLE = Path(__file__).parent / "results" / "issue_slots.csv"


class Key(NamedTuple):
    """What a row is about."""

    implementation: str
    operation: str
    chain: str
    path: str  # of sass.Path
    num_classes: int
    dtype: str
    target: str


class Row(NamedTuple):
    """An element is a logit, and a token for ``q_sample``; registers are a thread's."""

    implementation: str
    operation: str
    chain: str
    path: str
    num_classes: int
    dtype: str
    target: str
    slots: float  # instructions of a warp for an element, times 32
    pipe: str  # the busiest one of a multiprocessor
    clocks: float  # that it is busy for 1000 elements
    registers: int
    warps: int  # on a multiprocessor at a time
    in_flight: int  # bytes that a multiprocessor has asked memory for at a time, at most
    copy: dict[str, float]  # by chip, the share of a copy's bandwidth that all this allows

    @property
    def key(self) -> Key:
        return Key(*self[: len(Key._fields)])


HEAD = [*Row._fields[:-1], *CHIPS]
NUMBERS = {"num_classes": int, "slots": float, "clocks": float} | dict.fromkeys(
    ("registers", "warps", "in_flight"), int
)


def read(path: Path = TABLE) -> dict[Key, Row]:
    """Return a table by keys."""
    with path.open(newline="") as file:
        rows = [_row(of) for of in csv.DictReader(file)]
    return {row.key: row for row in rows}


def _row(of: dict[str, str]) -> Row:
    values: list[Any] = [NUMBERS.get(name, str)(of[name]) for name in Row._fields[:-1]]
    return Row(*values, {chip: float(of[chip]) for chip in CHIPS if of[chip]})


def write(rows: Iterable[Row], path: Path) -> None:
    """Write a table."""
    with replaced(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEAD)
        writer.writerows([*row[:-1], *(row.copy.get(chip, "") for chip in CHIPS)] for row in rows)
