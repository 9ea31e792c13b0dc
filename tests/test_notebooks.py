"""The notebooks run from top to bottom, and are kept with what a full run showed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from d3pm_fast.train import fashion_mnist

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def each_notebook(test):
    return pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)(test)


ALL = [
    pytest.param(notebook, marks=[] if notebook.stem == "quickstart" else pytest.mark.exhaustive)
    for notebook in NOTEBOOKS
]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", ALL, ids=[notebook.stem for notebook in NOTEBOOKS])
def test_it_runs_from_top_to_bottom(notebook, tmp_path):
    pytest.importorskip("papermill")
    try:
        fashion_mnist.find("train")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    out = tmp_path / "out.ipynb"
    run = [sys.executable, "-m", "papermill", "--no-progress-bar", "-p", "QUICK", "True"]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*run, "--cwd", notebook.parent, notebook, out],
        env=environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


@each_notebook
def test_it_shows_what_a_full_run_did(notebook):
    content = json.loads(notebook.read_text())
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    parameters = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert ["".join(c["source"]).splitlines()[0][:13] for c in parameters] == ["QUICK = False"]
    assert not [c for c in cells if "injected-parameters" in c["metadata"].get("tags", [])]
    assert str(Path.home()) not in notebook.read_text()
