"""What follows from the times: which implementation is the faster one, and a picture."""

import csv
import importlib.util
import math
import statistics
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from d3pm_fast._files import replaced

from ..cases import FAMILIES
from .checks import checks
from .counted import counted
from .problems import BY, LOGITS_DTYPES
from .rates import rates
from .timing import Row, failures, times

FARTHEST = 8  # kernels that are printed


class Faster(NamedTuple):
    """The faster implementation of an operation."""

    operation: str
    dtype: str
    num_classes: int
    implementation: str


def summarize(out: Path) -> int:
    """Write ``faster.csv`` and the picture, print what went wrong, and return if any did."""
    rows = times(out).read()
    with replaced(out / "faster.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Faster._fields)
        writer.writerows(faster(rows))
    if rows and importlib.util.find_spec("matplotlib"):
        draw([row for row in rows if row.operation == "loss"], out / "roofline.png")
    hold_against_count(out)
    found = checks(out).read()
    print(f"\n{sum(row.outcome == 'right' for row in found)} of {len(found)} checks are right")
    wrong = [row for row in found if row.outcome != "right"] + failures(out).read()
    for row in wrong:
        print(*row)
    return int(bool(wrong) or not found or not rows)


def hold_against_count(out: Path) -> None:
    """Print which assumption of the count is wrong, and the kernels that are far from theirs."""
    for rate in rates(out).read():
        print(f"{rate.name:24} {rate.measured:10.4g} {rate.unit}, {rate.ratio:.2f} of the assumed")
    kernels = counted(out).read()
    for bound in dict.fromkeys(row.bound for row in kernels):
        ratios = sorted(row.ratio for row in kernels if row.bound == bound)
        middle, least, most = statistics.median(ratios), ratios[0], ratios[-1]
        print(
            f"{len(ratios)} kernels bound by {bound}: {middle:.2f} times what was counted, "
            f"{least:.2f} to {most:.2f}"
        )
    for row in sorted(kernels, key=lambda row: row.ratio, reverse=True)[:FARTHEST]:
        print(*row)


def faster(rows: list[Row]) -> list[Faster]:
    """Return the faster implementation where both were timed, over all families of chains."""
    advantages: dict[tuple[str, str, int], float] = {}  # of CUDA C++, in logarithms
    for task, group in groupby(rows, key=lambda row: row[:4]):
        found = {row.provider: row for row in group}
        if found.keys() >= set(BY.values()):
            operation, _, num_classes, dtype = task
            triton, cuda = (found[BY[impl]] for impl in ("triton", "cuda"))
            advantage = math.log(triton.median_us / cuda.median_us)
            key = operation, dtype, num_classes
            advantages[key] = advantages.get(key, 0.0) + advantage
    return [Faster(*key, "cuda" if x > 0 else "triton") for key, x in advantages.items()]


def draw(rows: list[Row], path: Path) -> None:
    """Draw the share of a copy's speed that each provider reaches, by the number of classes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [(family, dtype) for family in FAMILIES for dtype in LOGITS_DTYPES]
    figure, axes = plt.subplots(2, math.ceil(len(panels) / 2), figsize=(10, 7), sharey=True)
    for (family, dtype), axis in zip(panels, axes.flat, strict=True):
        of_panel = [row for row in rows if (row.family, row.dtype) == (family, dtype)]
        for name in dict.fromkeys(row.provider for row in of_panel):
            points = [(row.num_classes, row.of_copy) for row in of_panel if row.provider == name]
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        axis.set(title=f"{family}, {dtype}", xscale="log", yscale="log", xlabel="classes")
        axis.set_ylabel("of a copy's speed")
        if of_panel:
            axis.legend(fontsize="small")
    figure.tight_layout()
    with replaced(path, "wb") as file:
        figure.savefig(file, dpi=120)
    plt.close(figure)
