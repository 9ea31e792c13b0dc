"""The programs of benchmarks/ and examples/: arguments come first, and files are written whole."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import chart, epsilon, host_table
from benchmarks.gpu import run as gpu
from d3pm_fast._files import replaced

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def programs():
    """The command of every file that can be run, by name."""
    found = {}
    for path in sorted([*ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("examples/*.py")]):
        if '__name__ == "__main__"' in path.read_text():
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            is_module = name.startswith("benchmarks")
            found[name] = ["-m", name.removesuffix(".__main__")] if is_module else [str(path)]
    return found


PROGRAMS = programs()
NEEDS_TRITON = "benchmarks.issue_slots", "benchmarks.triton_resources"


def content():
    files = [path for path in RESULTS.iterdir() if path.is_file()]
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


HELP_OF_ALL = """
import contextlib, io, json, os, runpy, sys
for name, (*module, program) in json.loads(sys.argv[1]).items():
    sys.argv, said, code = [program, "--help"], io.StringIO(), None
    sys.path[0] = "" if module else os.path.dirname(program)
    with contextlib.redirect_stdout(said):
        try:
            run = runpy.run_module if module else runpy.run_path
            run(program, run_name="__main__")
        except SystemExit as end:
            code = end.code
    assert code == 0 and "--help" in said.getvalue(), (name, code, said.getvalue())
    print(name)
"""


def test_help_starts_nothing():
    has_triton = importlib.util.find_spec("triton") is not None
    asked = {name: PROGRAMS[name] for name in PROGRAMS if has_triton or name not in NEEDS_TRITON}
    before = content()
    command = [sys.executable, "-W", "ignore", "-c", HELP_OF_ALL, json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(asked)
    assert content() == before


def test_help_of_the_benchmarks_waits_for_no_library():
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv[1:] = ['--help']; "
        "runpy.run_module('benchmarks', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (benchmarks.main, ["--threads", "0"], "--threads: must be a whole number of at least 1, g"),
        (benchmarks.main, ["--threads", "two"], "must be a whole number of at least 1, got 'two'"),
        (benchmarks.main, ["--seconds", "soon"], "--seconds: must be a number of seconds, got 'so"),
        (benchmarks.main, ["--seconds", "-1"], "--seconds: must be a number of seconds, got '-1'"),
        (benchmarks.main, ["--json", "no/such/folder.json"], "must be a file in a folder that is"),
        (benchmarks.main, ["--json", str(RESULTS)], "must be a file in a folder that is there"),
        (benchmarks.main, ["--fast"], "unrecognized arguments: --fast"),
        (chart.main, ["no.json"], "no.json is no report of python -m benchmarks --json"),
        (chart.main, [str(RESULTS / "loss.csv")], "is no report of python -m benchmarks --json"),
        (chart.main, ["--out", "no/such/chart.png"], "--out: must be a file in a folder that is"),
        (host_table.main, ["no.json"], "no.json is no report of python -m benchmarks --json"),
        (host_table.main, [str(RESULTS / "hosts.csv")], "no report of python -m benchmarks --json"),
        (epsilon.main, [], "the following arguments are required: CHECKPOINT"),
        (epsilon.main, ["no.pt"], "there is no"),
        (epsilon.main, ["no.pt", "--times", "2"], "--times: must be a whole number of at least 3"),
        (gpu.main, [], "the following arguments are required: --out"),
        (gpu.main, ["--out", __file__], "--out: must be a folder, got the file"),
        (gpu.main, ["--out", ".", "--sizes", "1"], "--sizes: must be a whole number of at least 2"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(main, arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_bad_arguments_of_what_compiles_are_refused(capsys):
    pytest.importorskip("triton")
    from benchmarks import floors, issue_slots, triton_resources

    for main, arguments, said in [
        (floors.main, ["--out", "no/such/folder.csv"], "--out: must be a file in a folder that is"),
        (floors.main, ["now"], "unrecognized arguments: now"),
        (issue_slots.main, ["--target", "abacus"], "invalid choice: 'abacus'"),
        (triton_resources.main, ["--sizes", "1"], "--sizes: must be a whole number of at least 2"),
        (triton_resources.main, ["--targets", "abacus"], "invalid choice: 'abacus'"),
        (triton_resources.main, ["--sizes", "27"], "--targets and --sizes are for --check"),
    ]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_a_file_is_replaced_once_it_is_whole(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with replaced(path) as file:
        file.write("new\n")
        assert path.read_text() == "old"
    assert path.read_bytes() == b"new\n"
    with pytest.raises(KeyboardInterrupt), replaced(path) as file:  # noqa: PT012
        file.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "new\n"
    assert list(tmp_path.iterdir()) == [path]


def stopped(first):
    """Results of which the second one never comes."""
    yield first
    raise KeyboardInterrupt


def test_a_table_that_is_stopped_half_way_stays_as_it_was(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    from benchmarks import floors, issue_slots, triton_resources

    path = tmp_path / "table.csv"
    path.write_text("old")
    work = floors.work_of_chain("loss", 32, "float32")
    monkeypatch.setattr(floors, "rank_one", lambda: stopped(work))
    with pytest.raises(KeyboardInterrupt):
        floors.main(["--out", str(path)])
    monkeypatch.setattr(triton_resources, "programs", lambda *_: stopped(()))
    monkeypatch.setattr(triton_resources, "resources", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        triton_resources.main(["--out", str(path)])
    row = next(iter(issue_slots.read().values()))
    monkeypatch.setattr(issue_slots, "read", lambda _: {})
    monkeypatch.setattr(issue_slots, "counted", lambda _: stopped(row))
    with pytest.raises(KeyboardInterrupt):
        issue_slots.main(["--out", str(path)])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_without_the_loss_is_no_chart(tmp_path, capsys):
    report = tmp_path / "report.json"
    report.write_text('{"cases": [{"case": "elbo", "operation": "elbo", "providers": {}}]}')
    before = content()
    with pytest.raises(SystemExit):
        chart.main([str(report), "--out", str(tmp_path / "chart.png")])
    assert "has no times of the loss" in capsys.readouterr().err
    assert content() == before


def test_no_program_opens_a_table_for_writing_itself():
    opened = re.compile(r"""open\(\s*["']w|write_text|write_bytes""")
    assert not [
        path for path in ROOT.glob("benchmarks/**/*.py") if opened.search(path.read_text())
    ]  # fmt: skip
