"""What ``python -m benchmarks`` does: checks, times and reports the chosen cases."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from itertools import groupby

import torch
from tqdm import tqdm

from d3pm_fast._files import replaced

from .bench_dense import DENSE
from .bench_elbo import ELBO
from .bench_hosts import HOSTS
from .bench_linear_loss import LINEAR_LOSS
from .bench_logistic import LOGISTIC
from .bench_loss import LOSS
from .bench_p_sample import P_SAMPLE
from .bench_posterior import POSTERIOR
from .bench_predict import PREDICT
from .bench_products import PRODUCTS
from .bench_q_sample import Q_SAMPLE
from .bench_shaped import SHAPED
from .bench_sparse import SPARSE
from .cases import OURS, Case, Run, make_inputs, prepare
from .memory import peak_bytes
from .report import (
    Key,
    Report,
    as_json,
    describe_machine,
    text_of_case,
    text_of_machine,
    text_of_summary,
)
from .timing import OtherWork, interleave

ALL = (
    LOSS,
    LINEAR_LOSS,
    Q_SAMPLE,
    P_SAMPLE,
    SHAPED,
    POSTERIOR,
    PREDICT,
    DENSE,
    LOGISTIC,
    PRODUCTS,
    SPARSE,
    ELBO,
    HOSTS,
)
OPERATIONS = {operation.name: operation for operation in ALL}
CASES = [case for operation in OPERATIONS.values() for case in operation.cases]


def run(options: argparse.Namespace, cases: Sequence[Case] = CASES) -> int:
    """Measure the chosen cases and print the report; 1 if a provider disagrees with ours."""
    torch.set_num_threads(options.threads)
    chosen = [case for case in cases if all(word in case.name for word in options.cases)]
    if not chosen:
        sys.exit(f"no case has {' '.join(options.cases)!r} in its name; --list shows all")
    offered = {case.operation: OPERATIONS[case.operation].providers for case in chosen}
    names = sorted({name for providers in offered.values() for name in providers})
    for name in options.providers or []:
        if name not in names:
            there_are = ", ".join(map(repr, names))
            sys.exit(f"no provider of these cases is called {name!r}: there are {there_are}")
    if options.list:
        print(*(case.name for case in chosen), sep="\n")
        print("\nproviders:", *names, sep="\n")
        return 0
    budget = 2.0 if options.quick else options.seconds
    print(f"{text_of_plan(chosen, budget)}\n", flush=True)
    report = measure(chosen, options.providers, budget)
    print(text_of_summary(report))
    print(f"\n{report.seconds:.0f} seconds")
    if options.json:
        with replaced(options.json) as file:
            file.write(json.dumps(as_json(report), indent=2) + "\n")
    return 1 if report.wrong else 0


def text_of_plan(cases: Sequence[Case], budget: float) -> str:
    """Return how much there is to do, and how long that takes, as far as it is known before."""
    runs = len(groups_of(cases))
    return (
        f"{len(cases)} cases, {runs} interleaved runs of {budget:g} seconds: about "
        f"{_duration(runs * budget)} of timing; checks, tables and compilation come on top"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def groups_of(cases: Sequence[Case]) -> list[list[Case]]:
    """Return the cases of each interleaved run."""
    return [list(group) for _, group in groupby(cases, key=lambda case: case.group)]


def measure(cases: Sequence[Case], providers: Sequence[str] | None, budget: float) -> Report:
    """Check, time and print the cases, those of one group in one interleaved run."""
    report, start = Report(describe_machine()), time.perf_counter()
    names = None if providers is None else [OURS, *providers]
    print(text_of_machine(report))
    for group in tqdm(groups_of(cases), desc="benchmarks", unit="run", leave=False, disable=None):
        torch.compiler.reset()
        runs: dict[Key, Run] = {}
        for case in group:
            runs |= checked_runs(report, case, names)
        others = OtherWork()
        report.timings |= interleave(runs, budget)
        report.others |= dict.fromkeys(group, others.cores())
        for case in group:
            tqdm.write(f"\n{text_of_case(report, case)}", file=sys.stdout)
        if group[0].operation in (LOSS.name, LINEAR_LOSS.name, DENSE.name, HOSTS.name):
            report.memory |= measure_memory(runs)
    print()
    report.seconds = time.perf_counter() - start
    return report


def checked_runs(report: Report, case: Case, names: list[str] | None) -> dict[Key, Run]:
    """Return the case's providers that agree with ours; the report takes note of the others."""
    operation, inputs = OPERATIONS[case.operation], make_inputs(case)
    prepared = prepare(operation, case, names)
    expected = prepared[OURS]()
    runs: dict[Key, Run] = {}
    for name, run in prepared.items():
        tolerance = operation.providers[name].tolerance
        if run is None:
            report.missing.append((case, name))
            continue
        far = 0.0 if tolerance is None else operation.distance(expected, run(), inputs)
        if tolerance is None or far <= tolerance:
            runs[case, name] = run
        else:
            report.wrong[case, name] = far
    report.bytes_moved[case] = operation.bytes_moved(inputs)
    return runs


def measure_memory(runs: dict[Key, Run]) -> dict[Key, int]:
    """Return the peak of every provider that computes a loss."""
    return {key: peak_bytes(run) for key, run in runs.items() if key[1] != "copy"}
