"""The benchmarks on tiny shapes: all providers agree with us, and the report says what it must."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import floors, program, slot_table
from benchmarks.__main__ import parse
from benchmarks.bench_hosts import COMPOSED
from benchmarks.bench_loss import LOSS
from benchmarks.cases import GAUSSIAN_FULL, OURS, Case, Provider, cases, make_inputs, prepare
from benchmarks.epsilon import WithEpsilon
from benchmarks.goals import Goal, goals
from benchmarks.host_chains import HOST_CHAINS, MASKED_UNIFORM, WITH_MASK
from benchmarks.memory import peak_bytes
from benchmarks.report import Report, table, text_of_summary
from benchmarks.timing import OtherWork, Timing, interleave, summarize
from d3pm_fast import D3PM, schedules, transitions

ROOT = Path(__file__).parents[1]
TINY = [
    case
    for name, operation in program.OPERATIONS.items()
    for case in cases(
        name,
        (1, 4, 11) if name == "elbo" else (3, 64, 11),
        families=sorted({case.family for case in operation.cases} - {GAUSSIAN_FULL}),
    )
]
MISSING = {host: {"our bound"} for host in HOST_CHAINS.keys() - COMPOSED}
MISSING |= {MASKED_UNIFORM: {"closed form eager", "dense eager"}, WITH_MASK: {"dense eager"}}
EAGER = sorted(
    {
        name
        for operation in program.OPERATIONS.values()
        for name in operation.providers
        if "compiled" not in name and name != OURS
    }
)


def run(*options, chosen=TINY):
    return program.run(parse([*options, "--seconds", "0", "--threads", "1"]), chosen)


def test_every_operation_is_timed_and_reported(tmp_path, capsys):
    path = tmp_path / "results.json"
    assert run("--providers", *EAGER, "--json", str(path)) == 0
    text, data = capsys.readouterr().out, json.loads(path.read_text())
    assert [case["case"] for case in data["cases"]] == [case.name for case in TINY]
    for case in data["cases"]:
        expected = {OURS, *EAGER} & program.OPERATIONS[case["operation"]].providers.keys()
        expected -= MISSING.get(case["family"], set())
        assert case["providers"].keys() == expected
        assert case["bytes_moved"] > 0
        assert all(timing["median"] > 0 for timing in case["providers"].values())
    assert data["machine"]["threads"] == 1
    for title in ("Where we are slower", "Peak memory", "of copy"):
        assert title in text
    runs = len({case.group for case in TINY})
    plan = f"{len(TINY)} cases, {runs} interleaved runs of 0 seconds: about 0 seconds of timing"
    assert text.startswith(plan)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own
def test_the_compiled_loss_agrees(capsys):
    chosen = cases("loss", (2, 16, 11))
    assert run("uniform", "--providers", "closed form compiled", chosen=chosen) == 0
    assert "closed form compiled" in capsys.readouterr().out


def test_cases_are_chosen_by_words(capsys):
    assert run("--list", "loss", "absorbing") == 0
    listed, _, providers = capsys.readouterr().out.partition("\n\n")
    assert listed == "loss 3x64x11 absorbing"
    assert providers.splitlines() == ["providers:", *sorted(LOSS.providers)]
    with pytest.raises(SystemExit, match="no case has 'abacus' in its name"):
        run("abacus")
    with pytest.raises(SystemExit, match="no provider of these cases is called 'abacus': there ar"):
        run("loss", "--providers", "abacus")


def test_a_wrong_provider_is_not_timed(monkeypatch, capsys):
    def twice(inputs):
        ours = LOSS.providers[OURS].make(inputs)
        return lambda: tuple(2 * x for x in ours())

    monkeypatch.setitem(LOSS.providers, "copy", Provider(twice, tolerance=0.1))
    assert run("loss", "uniform", "--providers", "copy") == 1
    before, after = capsys.readouterr().out.split("Not timed: disagrees with ours")
    assert "copy  " not in before
    assert "loss 3x64x11 uniform, copy" in after


def test_dense_tables_that_do_not_fit_are_left_out():
    case = Case("loss", "uniform", 1, 2, 4096)
    assert prepare(LOSS, case, ["dense eager"]) == {"dense eager": None}


@pytest.mark.parametrize("family", ["uniform", "absorbing"])
def test_inputs_are_possible_and_half_corrupted(family):
    inputs = make_inputs(Case("loss", family, 8, 512, 27))
    losses = [x for run in prepare(LOSS, inputs.case, [OURS]).values() for x in run()]
    assert all(x.isfinite().all() for x in losses)
    assert 0.3 < (inputs.x_t != inputs.x0).double().mean() < 0.7


def test_rounds_are_shuffled_and_call_every_run_once():
    called = []
    runs = {name: lambda name=name: called.append(name) for name in "abc"}
    timings = interleave(runs, budget=0, min_rounds=9)
    assert [timings[name].rounds for name in "abc"] == [9, 9, 9]
    rounds = ["".join(called[i : i + 3]) for i in range(9, len(called), 3)]
    assert all(sorted(once) == ["a", "b", "c"] for once in rounds)
    assert len(set(rounds)) > 1


def test_timing_is_the_median_and_the_quartiles():
    timing = summarize([5.0, 1.0, 2.0, 4.0, 3.0])
    assert timing == Timing(3.0, 2.0, 4.0, 5)
    assert timing.spread == pytest.approx(2 / 3)
    assert not timing.is_stable
    assert Timing(1.0, 0.99, 1.01, 100).is_stable


def test_peak_memory_is_exact():
    x = torch.zeros(1000, 1000)

    def call():
        y = x + 1
        z = y + 1
        del y
        return z.sum()

    assert 8_000_000 <= peak_bytes(call) < 8_001_000
    assert 4_000_000 <= peak_bytes(lambda: x + 1) < 4_001_000


def test_goals_and_losses_are_told_apart():
    uniform, absorbing = cases("loss", (8, 1024, 256))
    report = Report({})
    for case, name, seconds in [
        (uniform, OURS, 1.0),
        (uniform, "dense eager", 40.0),
        (uniform, "cross_entropy", 0.5),
        (absorbing, OURS, 0.5),
    ]:
        report.timings[case, name] = Timing(seconds, seconds, seconds, 9)
    measured = {goal.text: goal for goal in goals(report.timings, {(uniform, OURS): 10_000_000})}
    verdicts = {
        text: goal.verdict for text, goal in measured.items() if goal.verdict != "not measured"
    }
    assert verdicts == {
        "loss 8x1024x256 uniform: dense eager / ours": "met",
        "loss 8x1024x256 uniform: ours / cross_entropy": "not met",
        "loss 8x1024x256 absorbing: our uniform / our absorbing": "met",
        "loss 8x1024x256 uniform: bytes a row above one gradient": "not met",
    }
    assert {text for text in measured if text not in verdicts} == {
        "loss 8x1024x256 uniform: closed form compiled / ours"
    }  # its case ran, and it did not
    assert report.slower() == [(uniform, "cross_entropy", 2.0)]
    assert Goal("anything", 1.0, True, None).verdict == "not measured"
    assert "Goals" in text_of_summary(report)
    assert "Goals" not in text_of_summary(Report({}))


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="known on Linux only")
def test_other_work_is_seen_and_told():
    others = OtherWork()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        time.sleep(0.5)
        process.kill()
    assert others.cores() > 0.2
    case = TINY[0]
    quiet, busy = Report({}, others={case: 0.0}), Report({}, others={case: 1.3})
    assert "WARNING" not in text_of_summary(quiet)
    assert "other processes kept 1.3 cores busy" in text_of_summary(busy)


def test_tables_are_aligned():
    assert table(["a", "bb"], [["ccc", "d"]]) == "a    bb\n---  --\nccc   d"


def test_without_what_development_needs_the_extra_is_named():
    code = (
        "import runpy, sys; sys.modules['tqdm'] = None; sys.argv[1:] = ['--list']; "
        "runpy.run_module('benchmarks', run_name='__main__')"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == 'the benchmarks need tqdm: pip install -e ".[dev]"\n'


def test_pytest_benchmark_finds_the_cases():
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only"]
    command += ["--collect-only", "-q"]
    # One of several test processes would have it take no times.
    alone = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    options = {"capture_output": True, "text": True, "check": True, "env": alone}
    found = subprocess.run(command, cwd=ROOT, **options).stdout
    for operation in program.OPERATIONS.values():
        for case in operation.cases:
            assert f"[{case.name}-{OURS}]" in found


def test_a_dense_floor_is_that_of_two_products_of_tf32():
    work = floors.work_of_chain("loss and gradient", 256, "float32")
    assert work.bytes_each == 2 * 1024 + 16  # logits and gradient; x_0 and x_t
    assert work.operations_each == 3 * 2 * (2 * 256**2)
    assert work.matrix_bytes_per_step == (3 * 8 + 3 * 2) * 256**2  # also three parts of Qbar_s
    floor = floors.floor_of(work, "H100")
    assert floor.bound_by == "arithmetic"
    assert floor.floor_us == pytest.approx(1e6 * work.operations_each / 494.7e12 * 1e6, rel=1e-3)
    small = floors.floor_of(floors.work_of_chain("loss", 32, "float32"), "H100")
    assert small.bound_by == "memory"
    assert small.floor_us == pytest.approx(1e6 * 144 / 3.35e12 * 1e6, rel=1e-3)


def test_the_table_of_floors_is_made_from_that_of_issue_slots():
    head, *rows = csv.reader(floors.TABLE.read_text().splitlines())
    assert tuple(head) == floors.HEAD
    works = [*floors.rank_one(), *floors.written_down()]
    counted = [floors.floor_of(work, chip).row for work in works for chip in floors.CHIPS]
    assert rows == [list(map(str, row)) for row in counted]
    assert {work.operation for work in floors.rank_one()} >= {"loss and gradient, absorbing"}


def test_a_floor_of_a_rank_one_chain_is_the_busiest_pipes():
    key = "triton", "loss and gradient", "uniform", "full", 256, "bfloat16", "sm_90"
    row = slot_table.Row(*key, 128.0, "issue", 1000.0, 128, 16, 8192, {})
    work = floors.work_of_rank_one(row)
    assert work.operations_each == 256  # a clock for each of the classes
    floor = floors.floor_of(work, "H100")
    assert floor.bound_by == "arithmetic"
    assert floor.floor_us == pytest.approx(1e6 * 256 / (132 * 1.755e9) * 1e6, rel=1e-3)


@pytest.mark.parametrize("family", ["uniform", "gaussian"])
def test_the_published_loss_differs_by_the_epsilon_alone(family):
    make = {"uniform": transitions.uniform, "gaussian": transitions.discretized_gaussian}[family]
    exact = D3PM(make(16, schedules.cosine(50)), first_step="logits")
    x0 = torch.randint(16, (8, 2, 3))
    t = torch.tensor([1, 2, 3, 5, 10, 25, 49, 50])
    x_t = exact.q_sample(x0, t)
    args = torch.randn(8, 2, 3, 16, dtype=torch.float64), x0, x_t, t
    expected = exact.loss(*args, reduction="none")
    without = WithEpsilon(exact, 1e-300).loss(*args)
    torch.testing.assert_close(without, expected, rtol=1e-9, atol=1e-12)
    published = WithEpsilon(exact).loss(*args)
    assert torch.equal(published[:1], without[:1])
    assert not torch.allclose(published, expected, rtol=1e-6, atol=0)
