"""``d3pm_fast.implementation()``: what it says of a machine where something is missing."""

import importlib
import runpy
import sys
from types import SimpleNamespace

import pytest
import torch

import d3pm_fast as d3
from d3pm_fast import _compiled, _environment, _triton


@pytest.fixture(autouse=True)
def everything(monkeypatch):
    """A machine with all there can be."""
    cpu = SimpleNamespace(instruction_set=lambda: "avx2")
    monkeypatch.setattr(_compiled, "cpu", cpu)
    monkeypatch.setattr(_compiled, "cuda", SimpleNamespace(device="cuda"))
    install_triton(monkeypatch, "3.6.0")
    monkeypatch.setattr(_environment, "IMPL", "")
    monkeypatch.setattr(_environment, "INTERPRET", False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_a_line_for_each_of_all_there_is():
    assert str(d3.implementation()).splitlines() == [
        "auto       all tensors  cpu for CPU tensors, triton or cuda for GPU tensors",
        "reference  all tensors  plain PyTorch; the slowest",
        "cpu        CPU tensors  built; vector instructions: avx2",
        "triton     GPU tensors  Triton 3.6.0",
        "cuda       GPU tensors  built, for rank-one chains",
    ]


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = d3.implementation()
    assert found.triton == ("", "Triton 3.6.0, but PyTorch finds no GPU")
    assert found.cuda == ("", "built, for rank-one chains, but PyTorch finds no GPU")
    assert found.auto.reason == "cpu for CPU tensors"
    assert "triton     nothing      Triton 3.6.0, but" in str(found)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert d3.implementation().triton.reason.endswith("but this PyTorch is built without CUDA")


def test_without_triton(monkeypatch):
    install_triton(monkeypatch, "")
    found = d3.implementation()
    assert found.triton == ("", "Triton is not installed")
    assert found.auto.reason.endswith("cuda for GPU tensors")
    install_triton(monkeypatch, "3.3.1")
    assert d3.implementation().triton.reason.startswith("Triton 3.3.1 is too old: 3.4 is the old")


def test_in_tritons_interpreter(monkeypatch):
    monkeypatch.setattr(_environment, "INTERPRET", True)
    serves, reason = d3.implementation().triton
    assert serves == "CPU tensors"
    assert "interpreter (TRITON_INTERPRET=1)" in reason


def test_without_compiled_modules(monkeypatch, tmp_path):
    """The sources of a checkout alone, with nothing that they hide."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setitem(sys.modules, "d3pm_fast._cpu", None)
    monkeypatch.setitem(sys.modules, "d3pm_fast._cuda", None)
    look_again(monkeypatch)
    found = d3.implementation()
    assert found.cpu == ("", "not built: install d3pm_fast with a C++17 compiler")
    assert found.cuda == ("", "not built: D3PM_FAST_CUDA=1 pip install . builds it with nvcc")
    assert found.auto.reason == "reference for CPU tensors, triton for GPU tensors"
    with pytest.raises(RuntimeError, match="needs the compiled CPU module; not built: install"):
        d3.implementation("cpu")


def test_with_modules_that_are_hidden(monkeypatch, tmp_path):
    folder = tmp_path / "d3pm_fast"
    folder.mkdir()
    for name in ("_cpu", "_cuda"):
        (folder / f"{name}.so").touch()
        monkeypatch.setitem(sys.modules, f"d3pm_fast.{name}", None)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.warns(UserWarning, match=r"kernels are not found: d3pm_fast is imported from"):
        look_again(monkeypatch)
    found = d3.implementation()
    for serves, reason in (found.cpu, found.cuda):
        assert not serves
        assert f"is installed in {tmp_path}; work in another folder, or pip install -e" in reason


def test_with_a_module_that_does_not_load(monkeypatch):
    def missing(name):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.warns(UserWarning, match="kernels are not found: built, but it does not load"):
        look_again(monkeypatch)
    serves, reason = d3.implementation().cpu
    assert not serves
    assert reason == "built, but it does not load: libgomp.so.1: cannot open shared object file"


def test_any_argument_asks_for_a_call():
    chain = d3.transitions.uniform(3, d3.schedules.jsd(3))
    for call in (
        d3.implementation("auto"),
        d3.implementation(device="cpu"),
        d3.implementation(transition=chain),
        d3.implementation(operation="loss"),
    ):
        assert isinstance(call, d3.Implementation)


def install_triton(monkeypatch, version):
    """Let a version of Triton be installed, "" for none."""
    monkeypatch.setattr(_triton, "installed", lambda: version)
    monkeypatch.setattr(_triton, "WHY_NOT", _triton.why_not())


def look_again(monkeypatch):
    """Let the package look for its modules again, and forget it after the test."""
    found = runpy.run_path(_compiled.__file__)
    for name in ("cpu", "cuda", "why_no_cpu", "why_no_cuda"):
        monkeypatch.setattr(_compiled, name, found[name])
