"""The results as plain-text tables and as JSON."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import d3pm_fast as d3

from .cases import OURS, Case
from .goals import Goal, goals, gradient_bytes
from .timing import Timing

Key = tuple[Case, str]

BUSY = 0.1  # cores that other processes may use before the timings are doubted
BUSY_WARNING = """\
WARNING: other processes kept {:.1f} cores busy during the timings. Threads that wait for each
other then cost milliseconds a call: trust no time and no ratio, and repeat on a quiet machine."""
MEMORY_TITLE = """\
Peak memory of loss and backward, above the inputs: what PyTorch's allocator hands out
(our kernels hold besides 4 bytes a row for a mean or sum, and 16 KiB or a row a thread)"""


@dataclass
class Report:
    """What a run has measured so far."""

    machine: dict[str, Any]
    timings: dict[Key, Timing] = field(default_factory=dict)
    bytes_moved: dict[Case, int] = field(default_factory=dict)
    memory: dict[Key, int] = field(default_factory=dict)
    wrong: dict[Key, float] = field(default_factory=dict)
    others: dict[Case, float | None] = field(default_factory=dict)  # cores busy with other work
    missing: list[Key] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def goals(self) -> list[Goal]:
        return goals(self.timings, self.memory)

    @property
    def most_others(self) -> float:
        """The most cores that other processes used in any interleaved run."""
        return max((cores or 0.0 for cores in self.others.values()), default=0.0)

    def ratio(self, case: Case, provider: str, to: str = OURS) -> float | None:
        """Return a provider's time as a multiple of another's."""
        if (case, to) not in self.timings:
            return None
        return self.timings[case, provider].median / self.timings[case, to].median

    def slower(self) -> list[tuple[Case, str, float]]:
        """Return where we take longer: case, provider, our time as a multiple of its time."""
        found = [
            (case, name, 1 / ratio)
            for case, name in self.timings
            if (ratio := self.ratio(case, name)) is not None and ratio < 1
        ]
        return sorted(found, key=lambda row: -row[2])


def describe_machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    name, reason = d3.implementation("auto")
    return {
        "processor": _processor(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "d3pm_fast": d3.__version__,
        "implementation": f"{name} ({reason})",
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns, the first to the left and the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def text_of_machine(report: Report) -> str:
    """Return the machine's description."""
    return "\n".join(f"{key}: {value}" for key, value in report.machine.items())


def text_of_case(report: Report, case: Case) -> str:
    """Return the case's table of times, slowest provider last."""
    header = ["provider", "median ms", "IQR", "rounds", "x ours", "GB/s", "of copy"]
    names = sorted(
        (name for timed, name in report.timings if timed == case),
        key=lambda name: report.timings[case, name].median,
    )
    rows = [_row(report, case, name) for name in names]
    rows += [[name, *"------"] for missing, name in report.missing if missing == case]
    title = f"{case.name}, {_size(report.bytes_moved[case])} to move"
    if (report.others.get(case) or 0.0) > BUSY:
        title += f", other work on {report.others[case]:.1f} cores"
    return f"{title}\n{table(header, rows)}"


def text_of_summary(report: Report) -> str:
    """Return memory, goals, and where we lose."""
    sections = []
    if report.memory:
        sections.append((MEMORY_TITLE, _memory(report)))
    if report.goals:
        sections.append(("Goals", _goals(report)))
    sections.append(("Where we are slower", _slower(report)))
    if report.wrong:
        sections.append(("Not timed: disagrees with ours", _wrong(report)))
    if report.most_others > BUSY:
        sections.append((BUSY_WARNING.format(report.most_others), ""))
    return "\n\n".join(f"{title}\n{text}".rstrip() for title, text in sections)


def as_json(report: Report) -> dict[str, Any]:
    """Return everything in plain types; times in seconds, sizes in bytes."""
    return {
        "machine": report.machine,
        "seconds": report.seconds,
        "cases": [_case_as_json(report, case) for case in report.bytes_moved],
        "goals": [{**goal._asdict(), "verdict": goal.verdict} for goal in report.goals],
        "slower": [
            {"case": case.name, "provider": name, "times_slower": times}
            for case, name, times in report.slower()
        ],
        "wrong": [
            {"case": case.name, "provider": name, "distance": distance}
            for (case, name), distance in report.wrong.items()
        ],
    }


def _case_as_json(report: Report, case: Case) -> dict[str, Any]:
    providers = {
        name: {
            **timing._asdict(),
            "ratio_to_ours": report.ratio(case, name),
            "peak_memory": report.memory.get((case, name)),
        }
        for (timed, name), timing in report.timings.items()
        if timed == case
    }
    return {
        "case": case.name,
        **vars(case),
        "bytes_moved": report.bytes_moved[case],
        "cores_busy_with_other_work": report.others.get(case),
        "providers": providers,
    }


def _row(report: Report, case: Case, name: str) -> list[str]:
    timing = report.timings[case, name]
    of_copy = report.ratio(case, "copy", to=name) if (case, "copy") in report.timings else None
    return [
        name,
        f"{1e3 * timing.median:.3f}",
        f"{timing.spread:.0%}",
        str(timing.rounds),
        _times(report.ratio(case, name)),
        f"{report.bytes_moved[case] / timing.median / 1e9:.2f}",
        "-" if of_copy is None else f"{of_copy:.1%}",
    ]


def _memory(report: Report) -> str:
    header = ["case, provider", "peak", "gradients", "bytes a row above one"]
    rows = []
    for (case, name), peak in report.memory.items():
        one = gradient_bytes(case)
        above = (peak - one) / case.num_tokens
        rows.append([f"{case.name}, {name}", _size(peak), f"{peak / one:.2f}", f"{above:.1f}"])
    return table(header, rows)


def _goals(report: Report) -> str:
    rows = []
    for goal in report.goals:
        bound = f"{'>=' if goal.at_least else '<='} {goal.bound:g}"
        measured = "-" if goal.measured is None else f"{goal.measured:.2f}"
        rows.append([goal.text, bound, measured, goal.verdict])
    return table(["goal", "bound", "measured", "verdict"], rows)


def _slower(report: Report) -> str:
    rows = [[f"{case.name}, {name}", f"{times:.2f}"] for case, name, times in report.slower()]
    return table(["case, provider", "ours / provider"], rows) if rows else "nowhere"


def _wrong(report: Report) -> str:
    rows = [[f"{case.name}, {name}", f"{far:.3g}"] for (case, name), far in report.wrong.items()]
    return table(["case, provider", "distance from ours"], rows)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.3f} MB"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
