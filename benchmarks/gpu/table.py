"""Tables that several processes add rows to, each written as soon as it is known."""

import csv
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints


class Table:
    """A CSV file with a row type of its own."""

    def __init__(self, path: Path, row: type[Any]) -> None:
        self.path, self._row = path, row
        self._types = [get_type_hints(row)[name] for name in row._fields]

    def append(self, row: NamedTuple) -> None:
        """Add a row at the end, whoever else adds one."""
        with suppress(FileExistsError), self.path.open("x", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(self._row._fields)
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row)

    def read(self) -> list[Any]:
        """Return the rows, none where there is no file."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            lines = list(csv.reader(file))[1:]
        return [
            self._row(*(kind(text) for kind, text in zip(self._types, line, strict=True)))
            for line in lines
        ]
