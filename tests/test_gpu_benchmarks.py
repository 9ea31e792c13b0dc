"""What ``python -m benchmarks.gpu`` does, with tiny tensors on a CPU that acts the device."""

import os
import subprocess
import sys
import time

import numpy
import pytest
import torch

from d3pm_fast import functional

pytest.importorskip("triton")
from benchmarks.gpu import checks, counted, device, dry, problems, rates, run, summary, timing
from benchmarks.gpu.problems import BESIDE_COMPILED, BY, Task
from benchmarks.slot_calls import every_key
from benchmarks.slot_table import Key

# The interpreter's: see conftest.py.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
TRITON, CUDA = BY.values()
WAYS = ["in blocks, PyTorch", "loop, PyTorch"]
LOSS = Task("loss", "uniform", 5, "float32")


@pytest.fixture
def acted(monkeypatch):
    """The device, acted as in a dry run."""
    if torch.cuda.is_available():
        pytest.skip("Triton's kernels are compiled here")
    with numpy.errstate():
        dry.act(monkeypatch.setattr)
        yield


@pytest.mark.parametrize(
    ("task", "ours", "others"),
    [
        (LOSS, [TRITON, CUDA], ["closed form eager", "cross_entropy", "dense eager"]),
        (Task("p_sample", "absorbing", 5, "bfloat16"), [TRITON, CUDA], []),
        (Task("p_posterior", "absorbing", 5, "bfloat16"), [TRITON, CUDA], []),
        (Task("dense loss", "gaussian", 16, "float32"), [TRITON], ["dense eager", "two products"]),
        (
            Task("products", "any", 5, "float64"),
            [TRITON, CUDA],
            WAYS,
        ),
        (Task(BESIDE_COMPILED, "uniform", 5, "float32"), [TRITON], ["closed form compiled"]),
    ],
    ids=lambda value: value[0] if value else "",
)
def test_every_operation_is_timed_and_written(acted, tmp_path, task, ours, others):
    timing.measure([task], tmp_path, time.monotonic() + 60)
    rows = timing.times(tmp_path).read()
    floor = [timing.FLOOR] * (task.operation in ("dense loss", "products"))
    assert [row.provider for row in rows] == [*ours, *others, "copy", *floor]
    assert {row[:4] for row in rows} == {task}
    assert all(0 < row.lower_us <= row.median_us <= row.upper_us for row in rows)
    assert not timing.failures(tmp_path).path.exists()


def test_what_matters_most_comes_first_and_every_operation_comes():
    tasks = list(problems.tasks(problems.SIZES))
    assert len(set(tasks)) == len(tasks)
    assert tasks[0] == Task("loss", "uniform", 256, "bfloat16")
    order = ["loss", "p_sample", "dense loss", "products", "p_posterior", BESIDE_COMPILED]
    assert list(dict.fromkeys(task.operation for task in tasks)) == order
    checked = {task[1:] for task in checks.cases(problems.SIZES)}
    assert checked >= {task[1:] for task in tasks}


@pytest.mark.parametrize("operation", [*counted.CALLS_OF, "copy"])
def test_each_kernel_is_held_against_its_count(acted, tmp_path, monkeypatch, operation):
    key = next(key for key in every_key() if key.operation == operation)
    key = key if operation in ("copy", "q_sample") else key._replace(num_classes=27)
    monkeypatch.setattr(counted, "keys", lambda *_: [key])
    counted.measure("H200", [27], ["triton"], tmp_path, time.monotonic() + 60)
    (row,) = counted.counted(tmp_path).read()
    assert row[:6] == key[:6]
    least = {"memory": row.memory_us, "pipe": row.pipe_us, "latency": row.latency_us}
    assert row.bound == max(least, key=least.__getitem__)
    assert row.ratio == pytest.approx(row.measured_us / least[row.bound], rel=2e-3)
    found = rates.rates(tmp_path).read()
    assert [rate.unit.split()[0] for rate in found] == ["B/s", "instructions", "instructions", "s"]
    assert all(rate.measured > 0 for rate in found)


def test_data_take_the_way_that_is_counted(acted):
    def of(chain, path):
        key = Key("triton", counted.LOSS, chain, path, 27, "float32", "sm_90")
        return counted.inputs_of(key)

    near, far = of("uniform", "full"), of("uniform", "fast")
    assert near.logits.argmax(-1).equal(near.x0)
    assert not (far.logits.argmax(-1) == far.x0).any()
    flat, settled = of("absorbing", "flat"), of("absorbing", "settled")
    assert (flat.x_t == 26).all()
    assert settled.x_t.equal(settled.x0)


def test_the_summary_says_which_rate_is_not_as_assumed(tmp_path, capsys):
    rates.rates(tmp_path).append(rates.Rate("bandwidth of a copy", "B/s", 4e12, 2e12))
    of = "triton", "p_sample", "uniform", "full"
    for size, ratio, bound in ((27, 2.0, "memory"), (256, 1.5, "memory"), (1024, 1.1, "pipe")):
        row = counted.Counted(*of, size, "float32", 1.0, ratio, bound, 1.0, 1.0, 1.0)
        counted.counted(tmp_path).append(row)
    summary.hold_against_count(tmp_path)
    said = capsys.readouterr().out
    assert "0.50 of the assumed" in said
    assert "2 kernels bound by memory: 1.75 times what was counted, 1.50 to 2.00" in said
    assert "1 kernels bound by pipe: 1.10 times" in said


def fails():
    raise ValueError("out of\nluck")


def made(**runs):
    return lambda task: problems.Problem(8, {"good": int, **runs}, 64, 16)


def test_what_fails_is_written_down_and_the_rest_goes_on(acted, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "make", made(bad=fails))
    timing.measure([LOSS], tmp_path, time.monotonic() + 60)
    assert [row.provider for row in timing.times(tmp_path).read()] == ["good", "copy"]
    assert timing.failures(tmp_path).read() == [(*LOSS, "bad", "ValueError: out of luck")]
    monkeypatch.setattr(timing, "make", fails)
    other = LOSS._replace(num_classes=6)
    timing.measure([LOSS, other], tmp_path, time.monotonic() + 60)  # LOSS has its times
    assert [row[2:5] for row in timing.failures(tmp_path).read()] == [
        (5, "float32", "bad"), (6, "float32", timing.ALL)
    ]  # fmt: skip


def test_behind_a_lost_device_another_process_goes_on(acted, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "make", made(bad=lambda: monkeypatch.setattr(*dead)))
    dead = device, "is_alive", lambda: False
    with pytest.raises(SystemExit) as ended:
        timing.measure([LOSS], tmp_path, time.monotonic() + 60)
    assert ended.value.code == device.LOST
    monkeypatch.setattr(device, "is_alive", lambda: True)
    timing.measure([LOSS], tmp_path, time.monotonic() + 60)
    assert [row.provider for row in timing.times(tmp_path).read()] == ["good", "copy"]


def test_no_task_is_started_once_time_is_up(acted, tmp_path):
    timing.measure([LOSS], tmp_path, time.monotonic() - 1)
    checks.check([LOSS], tmp_path, time.monotonic() - 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("operation", sorted({task.operation for task in checks.cases([5])}))
def test_every_check_is_right(acted, tmp_path, operation):
    tasks = [task for task in checks.cases([5]) if task.operation == operation]
    few = {task.family: task for task in tasks}.values()  # the last of each
    checks.check(list(few), tmp_path, time.monotonic() + 60)
    found = checks.checks(tmp_path).read()
    assert {row.implementation for row in found} == {"triton", "cuda"}
    assert len(found) == sum(1 if task.family == "gaussian" else 2 for task in few)
    assert {row.outcome for row in found} == {"right"}


def test_a_wrong_kernel_and_one_that_fails_are_found(acted, tmp_path, monkeypatch):
    loss = functional.loss

    def planted(*args, impl, **options):
        if impl == "cuda":
            fails()
        return loss(*args, impl=impl, **options) * (1.001 if impl == "triton" else 1)

    monkeypatch.setattr(functional, "loss", planted)
    checks.check([LOSS], tmp_path, time.monotonic() + 60)
    outcomes = [row.outcome for row in checks.checks(tmp_path).read()]
    assert outcomes == ["wrong", "ValueError: out of luck"]
    assert summary.summarize(tmp_path) == 1


def test_infinite_values_must_be_the_same():
    truth = torch.tensor([1.0, -torch.inf])
    assert checks.error_of(truth, truth.double()) == 0
    assert checks.error_of(torch.tensor([1.0, -50.0]), truth.double()) == torch.inf
    assert checks.error_of(torch.tensor([torch.nan, -torch.inf]), truth.double()) == torch.inf


def test_the_floor_is_that_of_the_problem(acted):
    problem = problems.make(Task("dense loss", "gaussian", 16, "float32"))
    logits, tokens = 2 * 3 * 16 * 4, 2 * 3 * 8
    assert problem.floor_us == pytest.approx((2 * logits + 2 * tokens) / 4.8e12 * 1e6, rel=1e-3)


def test_a_chip_without_a_datasheet_has_no_floor(acted, monkeypatch):
    monkeypatch.setattr(device, "name", lambda: "an abacus")
    assert problems.floor_us() is None


def test_a_part_goes_on_behind_a_lost_device_and_is_stopped_in_time(tmp_path):
    lost_once = f"""
import os, sys
exists = os.path.exists({str(tmp_path / "lost")!r})
open({str(tmp_path / "lost")!r}, "w").close()
sys.exit(0 if exists else {device.LOST})
"""
    python = [sys.executable, "-c"]
    log = tmp_path / "log.txt"
    part = run.Part("part", 0, [[*python, lost_once], [*python, "print('said')"]], log)
    assert run.run(part, 60, dry=True) == device.LOST
    assert log.read_text() == "said\n"
    assert (tmp_path / "lost").exists()
    endless = run.Part("part", 0, [[*python, "import time; time.sleep(60)"]], log)
    start = time.monotonic()
    assert run.run(endless, 0.5, dry=True) == 0
    assert time.monotonic() - start < 10
    assert "KeyboardInterrupt" in log.read_text()


def test_the_sources_in_the_working_directory_do_not_count_as_installed(monkeypatch):
    monkeypatch.chdir(run.ROOT)
    assert run.is_installed(sys.executable)
    assert not run.is_installed(sys.executable, "-S")  # without site-packages


def test_the_commands_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name, **_: f"/bin/{name}")
    options = run.parse(["--out", str(tmp_path), "--sizes", "27", "256"])
    parts = {part.name: part for part in run.parts(options)}
    names = ["describe", "checks and counts", "tests of a GPU alone", "times", "kernels"]
    assert [*parts][:5] == names
    assert parts["sanitizer"].commands[0][0] == "/bin/compute-sanitizer"
    *checks, count = parts["checks and counts"].commands
    assert "counts" in count
    for share, command in enumerate(checks):
        child = run.parse([word.replace(run.SECONDS_LEFT, "77") for word in command[3:]])
        assert (child.part, child.sizes, child.seconds) == ("checks", [27, 256], 77)
        assert child.share == [share, len(checks)]
    files = [word for word in parts["tests"].commands[0] if word.startswith("tests/")]
    assert files
    assert all((run.ROOT / file).exists() for file in files)
    source = (run.ROOT / "tests/test_p_sample.py").read_text()
    assert run.SANITIZED.split()[0] in source
    with pytest.raises(SystemExit):
        run.parse([])


@pytest.mark.slow
def test_programs_are_compiled_without_a_device(tmp_path):
    command = """
import sys
from pathlib import Path
from benchmarks.gpu import dry
from benchmarks.gpu.problems import Task
from benchmarks.slot_table import Key
tasks = [Task("loss", "absorbing", 64, "bfloat16"), Task("products", "any", 27, "float32")]
keys = [Key("triton", "p_sample", "uniform", "full", 64, "float32", "sm_90")]
sys.exit(dry.compile_all(tasks, tasks, keys, Path(sys.argv[1])))
"""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", command, tmp_path]
    subprocess.run(command, check=True, cwd=run.ROOT, env=environment)
    found = dry.programs(tmp_path).read()  # those of the times and of the checks are the same
    assert [row.operation for row in found] == ["loss", "products", "p_sample"]
    assert {(row.outcome, row.local) for row in found} == {(dry.COMPILED, 0)}
    assert all(row.registers > 16 for row in found)


def timed(operation, family, num_classes, dtype, provider, median):
    return timing.Row(operation, family, num_classes, dtype, 8, provider, median, *[1.0] * 5)


def test_the_faster_of_two_is_found_over_all_families(tmp_path):
    rows = [
        timed("loss", "uniform", 27, "float32", TRITON, 10.0),
        timed("loss", "uniform", 27, "float32", CUDA, 4.0),
        timed("loss", "absorbing", 27, "float32", TRITON, 10.0),
        timed("loss", "absorbing", 27, "float32", CUDA, 20.0),
        timed("loss", "uniform", 256, "float32", TRITON, 10.0),
        timed("loss", "uniform", 256, "float32", CUDA, 11.0),
        timed("dense loss", "gaussian", 256, "float32", TRITON, 10.0),
        timed("products", "any", 64, "float64", TRITON, 3.0),
        timed("products", "any", 64, "float64", CUDA, 2.0),
        timed("products", "any", 64, "float64", "copy", 1.0),
    ]
    expected = [
        summary.Faster("loss", "float32", 27, "cuda"),  # 2.5 times as fast, and half as fast
        summary.Faster("loss", "float32", 256, "triton"),
        summary.Faster("products", "float64", 64, "cuda"),
    ]
    assert summary.faster(rows) == expected
    for row in rows:
        timing.times(tmp_path).append(row)
    assert summary.summarize(tmp_path) == 1  # nothing was checked
    written = (tmp_path / "faster.csv").read_text().splitlines()
    assert written[1:] == [",".join(map(str, row)) for row in expected]
