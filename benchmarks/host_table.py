"""What the pages of ``docs/hosts`` say about time and memory, from one run of the benchmarks.

``python -m benchmarks --threads 1 --json results.json hosts`` measures, and
``python -m benchmarks.host_table results.json`` writes ``benchmarks/results/hosts.csv`` and the
lines of the pages. A line ends with a link to how it was measured.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from d3pm_fast._files import replaced

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "benchmarks" / "results" / "hosts.csv"
PAGES = ROOT / "docs" / "hosts"
LINK = "[How this was measured](index.md#speed)."
PROVIDERS = "ours", "theirs", "our bound"  # the last one where it is another loss


class Row(NamedTuple):
    """Times in milliseconds and peaks of memory in MB, in the order of ``PROVIDERS``."""

    host: str
    batch: int
    positions: int
    num_classes: int
    milliseconds: tuple[float, ...]
    megabytes: tuple[float, ...]


def from_report(path: Path) -> list[Row]:
    """Return what a report in JSON has of the hosts."""
    rows = []
    for case in json.loads(path.read_text())["cases"]:
        if case["operation"] == "hosts":
            found = [case["providers"][name] for name in PROVIDERS if name in case["providers"]]
            sizes = case["family"], case["batch"], case["positions"], case["num_classes"]
            times = tuple(1e3 * provider["median"] for provider in found)
            rows.append(Row(*sizes, times, tuple(p["peak_memory"] / 1e6 for p in found)))
    return rows


def write(rows: Sequence[Row], path: Path = TABLE) -> None:
    """Write the table, a line for each provider."""
    with replaced(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ("host", "batch", "positions", "num_classes", "provider", "milliseconds", "megabytes")
        )
        for *sizes, milliseconds, megabytes in rows:
            for line in zip(PROVIDERS, milliseconds, megabytes, strict=False):
                writer.writerow((*sizes, line[0], *map(plain, line[1:])))


def read(path: Path = TABLE) -> list[Row]:
    """Return the rows of the table."""
    with path.open(newline="") as file:
        lines = list(csv.reader(file))[1:]
    rows = []
    for (host, *sizes), group in groupby(lines, key=lambda line: line[:4]):
        columns = zip(*(line[5:] for line in group), strict=True)
        milliseconds, megabytes = (tuple(map(float, column)) for column in columns)
        rows.append(Row(host, *map(int, sizes), milliseconds, megabytes))
    return rows


def plain(number: float) -> str:
    """Return a number with three digits."""
    return f"{float(f'{number:.3g}'):g}"


def sentence(row: Row) -> str:
    """Return what a page says of a row."""
    ours, theirs, *bound = map(plain, row.milliseconds)
    our_peak, their_peak, *_ = map(plain, row.megabytes)
    subject = "loss and gradient of GenMD4" if row.host == "genmd4" else "loss and gradient"
    ratio = row.milliseconds[1] / row.milliseconds[0]
    text = (
        f"On one thread, {subject} for {row.batch} x {row.positions} tokens of {row.num_classes} "
        f"classes\ntake {ours} ms here and {theirs} ms as that program has them "
        f"({ratio:.1f} times). At their peak\nthey hold {our_peak} MB and {their_peak} MB beside "
        "the logits."
    )
    if bound:
        text += f" The bound, in one pass, takes {bound[0]} ms."
    return f"{text} {LINK}"


def page_of(host: str) -> Path:
    """Return the page that has a host's line."""
    return PAGES / f"{'md4' if host == 'genmd4' else host}.md"


def put(row: Row) -> None:
    """Replace the lines of a page about a row; their first one says what was measured."""
    page, new = page_of(row.host), sentence(row)
    text = page.read_text()
    start = text.index(new.partition("\n")[0])
    end = text.index(LINK, start) + len(LINK)
    with replaced(page) as file:
        file.write(text[:start] + new + text[end:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, write the table and the lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_table")
    parser.add_argument("report", type=Path, help="of python -m benchmarks --json")
    options = parser.parse_args(arguments)
    try:
        rows = from_report(options.report)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"{options.report} is no report of python -m benchmarks --json: {error}")
    write(rows)
    for row in read():
        put(row)


if __name__ == "__main__":
    main()
