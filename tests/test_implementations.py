"""The choice between Triton and CUDA C++ on a GPU; no GPU is needed."""

from types import SimpleNamespace

import pytest
import torch

import d3pm_fast as d3
from d3pm_fast import _compiled, _triton
from d3pm_fast.ops import implementations

BETAS = d3.schedules.cosine(5)
DEFAULT = "GPU tensors; the default"


@pytest.fixture(autouse=True)
def both_installed(monkeypatch):
    """A machine with both."""
    monkeypatch.setattr(_triton, "WHY_NOT", "")
    monkeypatch.setattr(_compiled, "cuda", SimpleNamespace(device="cuda"))


def choice(operation="loss", impl="auto"):
    chain = d3.transitions.uniform(256, BETAS)
    return d3.implementation(impl, "cuda", chain, operation=operation)


def test_triton_is_the_default():
    assert choice() == ("triton", DEFAULT)
    assert choice("products_scan") == ("triton", DEFAULT)


def test_a_request_comes_before_it(monkeypatch):
    assert choice(impl="triton") == ("triton", "the call asks for it")
    assert choice(impl="cuda") == ("cuda", "the call asks for it")
    gaussian = d3.transitions.discretized_gaussian(4, BETAS)
    assert d3.implementation("auto", "cuda", gaussian).name == "triton"
    monkeypatch.setattr(_compiled, "cuda", None)
    assert choice() == ("triton", DEFAULT)


def test_without_triton_cuda_serves_what_it_has(monkeypatch):
    monkeypatch.setattr(_triton, "WHY_NOT", "Triton is not installed")
    assert choice() == ("cuda", "GPU tensors; Triton is not installed")
    gaussian = d3.transitions.discretized_gaussian(4, BETAS)
    found = d3.implementation("auto", "cuda", gaussian)
    assert found == ("reference", "Triton is not installed; nothing else serves such a chain")
    monkeypatch.setattr(_compiled, "cuda", None)
    assert choice().name == "reference"


def test_what_an_implementation_has_no_kernels_for_is_refused():
    gaussian = d3.transitions.discretized_gaussian(4, BETAS)
    with pytest.raises(RuntimeError, match="impl='cuda' serves rank-one chains"):
        d3.implementation("cuda", "cuda", gaussian)
    with pytest.raises(ValueError, match="operation must be one of"):
        choice("guess")


def test_every_function_names_its_operation(monkeypatch):
    asked = []

    def implementation(impl, device, transition=None, *, operation):
        asked.append(operation)
        return implementations.Implementation("reference", "")

    monkeypatch.setattr("d3pm_fast.ops.implementation", implementation)
    monkeypatch.setattr("d3pm_fast.products.implementation", implementation)
    chain, half = d3.transitions.uniform(4, BETAS), torch.bfloat16
    x, t = torch.zeros(2, 3).long(), torch.tensor([1, 3])
    logits = torch.zeros(2, 3, 4, dtype=half)
    d3.functional.loss(chain, logits, x, x, t)
    d3.functional.loss(chain, (logits[..., 0], logits[..., 1]), x, x, t)
    d3.functional.p_posterior(chain, logits, x, t)
    d3.functional.q_posterior(chain, x, x, t, dtype=half)
    d3.functional.p_sample(chain, logits, x, t)
    d3.functional.q_sample(chain, x, t)
    d3.cumulative_products(torch.eye(4)[None])
    assert asked == [
        "loss", "loss", "p_posterior", "q_posterior", "p_sample", "q_sample", "products_scan",
    ]  # fmt: skip


def test_the_choice_is_no_break_of_a_compiled_graph():
    chain = d3.transitions.uniform(256, BETAS)

    def name_and_twice(x):
        made = d3.implementation("auto", "cuda", chain, operation="loss")
        return 2 * x if made.name == "triton" else x

    torch._dynamo.reset()
    compiled = torch.compile(name_and_twice, fullgraph=True, backend="eager")
    assert float(compiled(torch.ones(()))) == 2.0
