"""What a release says of itself in several files, and the workflows that make it."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))


def test_all_files_tell_the_same_version_and_date():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert headings[:2] == ["Unreleased", f"{citation['version']} ({citation['date-released']})"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_targets_of_the_makefile(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert commands
    for command in commands:
        make, target, *_ = command.split()
        assert make == "make"
        assert target in phony.split()


def test_workflows_test_the_pythons_that_have_wheels():
    tested = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]
    (wheels,) = re.findall(r"^PYTHONS = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert tested["strategy"]["matrix"]["python"] == wheels.split()
    assert PROJECT["requires-python"] == f">={wheels.split()[0]}"
