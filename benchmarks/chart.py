"""The chart of the loss: the time of each provider as a multiple of F.cross_entropy's.

``python -m benchmarks.chart`` draws ``benchmarks/results/loss.csv``. To draw new times, measure
them with ``python -m benchmarks --json results.json loss`` and call
``python -m benchmarks.chart results.json``, which writes the CSV first.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from d3pm_fast._files import replaced

from .arguments import new_file
from .cases import FAMILIES

TABLE = Path(__file__).parent / "results" / "loss.csv"
CHART = Path(__file__).parents[1] / "docs" / "_static" / "loss.png"
UNIT = "cross_entropy"

# Provider: its label, marker and colour.
STYLES = {
    "copy": ("copy of the bytes", "|", "tab:grey"),
    "ours": ("d3pm_fast", "o", "tab:blue"),
    "closed form eager": ("closed form, eager", "^", "tab:orange"),
    "closed form compiled": ("closed form, compiled", "v", "tab:red"),
    "dense eager": ("dense, eager", "s", "tab:purple"),
}

Times = dict[tuple[str, str], float]


def from_report(path: Path) -> Times:
    """Return the loss's median milliseconds by case and provider, of a report in JSON."""
    return {
        (case["case"], provider): 1e3 * timing["median"]
        for case in json.loads(path.read_text())["cases"]
        if case["operation"] == "loss" and case["family"] in FAMILIES
        for provider, timing in case["providers"].items()
    }


def read(path: Path = TABLE) -> Times:
    """Return the milliseconds of the table by case and provider."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row["case"], row["provider"]): float(row["milliseconds"]) for row in rows}


def write(times: Times, path: Path = TABLE) -> None:
    """Write the table."""
    with replaced(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("case", "provider", "milliseconds"))
        writer.writerows((*key, f"{time:.2f}") for key, time in times.items())


def draw(times: Times, path: Path = CHART) -> None:
    """Draw a line for each case, with a mark for each provider."""
    cases = list(dict.fromkeys(case for case, _ in times))
    figure, axes = plt.subplots(figsize=(6.6, 4.2), layout="constrained")
    for provider, (label, marker, colour) in STYLES.items():
        found = [n for n, case in enumerate(cases) if (case, provider) in times]
        ratios = [times[cases[n], provider] / times[cases[n], UNIT] for n in found]
        size = 10 if provider == "ours" else 7
        axes.plot(ratios, found, marker, label=label, color=colour, markersize=size)
        if provider == "ours":
            for n, ratio in zip(found, ratios, strict=True):
                place = {"xytext": (0, 8), "textcoords": "offset points", "ha": "right"}
                axes.annotate(f"{ratio:.2f}", (ratio, n), color=colour, fontsize=9, **place)
    axes.axvline(1, color="black", linewidth=1, label="F.cross_entropy")
    ticks = [0.2, 0.5, 1, 2, 5, 10, 20]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(cases)), [case.removeprefix("loss ") for case in cases])
    axes.set_ylim(len(cases) - 0.5, -0.7)
    axes.grid(alpha=0.3)
    axes.set_xlabel("time as a multiple of F.cross_entropy (left is faster)")
    axes.set_ylabel("items x positions x classes, chain")
    axes.set_title("Loss and gradient, float32, two CPU cores", loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    with replaced(path, "wb") as file:
        figure.savefig(file, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the chart, of new times where a report is given."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chart", description=__doc__.splitlines()[0]
    )
    parser.add_argument("report", type=Path, nargs="?", help="of python -m benchmarks --json")
    parser.add_argument("--out", type=new_file, default=CHART, help="the PNG (%(default)s)")
    options = parser.parse_args(arguments)
    if options.report is None:
        draw(read(), options.out)
        return
    try:
        times = from_report(options.report)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"{options.report} is no report of python -m benchmarks --json: {error}")
    if not times or any((case, UNIT) not in times for case, _ in times):
        parser.error(f"{options.report} has no times of the loss, or none of {UNIT} beside them")
    draw(times, options.out)
    write(times)


if __name__ == "__main__":
    main()
