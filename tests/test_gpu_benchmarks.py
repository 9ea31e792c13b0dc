"""What ``python -m benchmarks.gpu`` does beside timing, on the CPU, with times made up."""

import csv

import pytest
import torch

from benchmarks import gpu
from d3pm_fast.ops import preferred
from d3pm_fast.ops.preferred import Preference

pytest.importorskip("triton")
# The interpreter's: see conftest.py.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def tiny(monkeypatch):
    """Tiny problems on the CPU, Triton's in its interpreter; every call takes a millisecond."""
    if torch.cuda.is_available():
        pytest.skip("Triton's kernels are compiled here")
    sizes = {
        "BYTES_OF_LOGITS": 1 << 8,
        "DENSE_SHAPE": (2, 3, 4),
        "PRODUCTS_STEPS": 3,
        "PRODUCTS_SIZES": [5],
    }
    for name, value in sizes.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(gpu, "peak_bytes", lambda run: 16)
    monkeypatch.setattr(gpu, "interleave", lambda runs: dict.fromkeys(runs, [1e-3] * 3))
    monkeypatch.setattr("benchmarks.bench_loss.compiled", lambda function: function)


def test_every_problem_is_made_timed_and_written(tiny, tmp_path, capsys):
    rows = list(gpu.measure(gpu.problems([5])))
    providers = {}
    for row in rows:
        providers.setdefault((row.operation, row.family, row.dtype), []).append(row.provider)
    ours = gpu.BY["triton"]
    assert providers.pop(("dense loss", "gaussian", "float32")) == [
        ours, "dense compiled", "dense eager", "two products", "copy", gpu.FLOOR
    ]  # fmt: skip
    for dtype in ("float32", "float64"):
        found = providers.pop(("products", "any", dtype))
        assert found == [ours, "in blocks, PyTorch", "loop, PyTorch", "copy", gpu.FLOOR]
    assert providers.keys() == {
        (operation, family, dtype)
        for operation in ("loss", "p_posterior", "p_sample")
        for family in ("uniform", "absorbing")
        for dtype in ("float32", "bfloat16")
    }
    assert all(found[0] == ours and found[-1] == "copy" for found in providers.values())
    assert "1000.0 us" in capsys.readouterr().out

    gpu.write(rows, tmp_path)
    with (tmp_path / "times.csv").open(newline="") as file:
        assert [row["provider"] for row in csv.DictReader(file)] == [row.provider for row in rows]
    assert preferred.read(tmp_path / "preferred.csv") == []  # CUDA C++ was not timed beside


def test_the_floor_is_that_of_the_problem(tiny):
    problem = gpu.dense_loss()
    logits, tokens = 2 * 3 * 4 * 4, 2 * 3 * 8
    assert problem.floor_us == pytest.approx((2 * logits + 2 * tokens) / 3.35e12 * 1e6, rel=1e-3)
    assert gpu.rows_of(problem)[-1].median_us == pytest.approx(problem.floor_us, rel=1e-3)


def test_a_chip_without_a_datasheet_has_no_floor(tiny, monkeypatch):
    monkeypatch.setattr(gpu, "device_name", lambda: "an abacus")
    assert gpu.FLOOR not in {row.provider for row in gpu.rows_of(gpu.products(5, "float32"))}


def test_no_problem_is_started_once_time_is_up(tiny, monkeypatch):
    monkeypatch.setattr(gpu, "MEASURE_SECONDS", -1)
    assert {row.operation for row in gpu.measure(gpu.problems([5]))} == {"dense loss"}


def timed(operation, family, num_classes, dtype, provider, median):
    return gpu.Row(operation, family, 8, num_classes, dtype, provider, median, *[1.0] * 5)


def test_the_faster_of_two_is_preferred_over_all_families():
    triton, cuda = gpu.BY.values()
    rows = [
        timed("loss", "uniform", 27, "float32", triton, 10.0),
        timed("loss", "uniform", 27, "float32", cuda, 4.0),
        timed("loss", "absorbing", 27, "float32", triton, 10.0),
        timed("loss", "absorbing", 27, "float32", cuda, 20.0),
        timed("loss", "uniform", 256, "float32", triton, 10.0),
        timed("loss", "uniform", 256, "float32", cuda, 11.0),
        timed("dense loss", "gaussian", 256, "float32", triton, 10.0),
        timed("products", "any", 64, "float64", triton, 3.0),
        timed("products", "any", 64, "float64", cuda, 2.0),
        timed("products", "any", 64, "float64", "copy", 1.0),
    ]
    assert gpu.preferences(rows) == [
        Preference("loss", "float32", 27, "cuda"),  # 2.5 times as fast, and half as fast
        Preference("loss", "float32", 256, "triton"),
        Preference("products", "float64", 64, "cuda"),
    ]


def test_the_command_line_names_a_folder(capsys):
    options = gpu.parse(["--out", "results", "--sizes", "27", "256"])
    assert (options.out.name, options.sizes, options.skip_tests) == ("results", [27, 256], False)
    with pytest.raises(SystemExit):
        gpu.parse([])
    assert "--out" in capsys.readouterr().err


def test_the_parts_leave_ten_minutes_room_to_install():
    parts = gpu.MEASURE_SECONDS, gpu.TEST_SECONDS, 2 * gpu.SANITIZER_SECONDS
    assert sum(parts) <= 500
    assert all((gpu.ROOT / f"tests/test_{name}.py").exists() for name in gpu.TESTS)
