"""The choice between Triton and CUDA C++ on a GPU, by a table made here; no GPU is needed."""

from types import SimpleNamespace

import pytest
import torch

import d3pm_fast as d3
from d3pm_fast import _compiled
from d3pm_fast.ops import implementations, preferred
from d3pm_fast.ops.preferred import Preference

TABLE = [
    Preference("loss", "float32", 8192, "triton"),
    Preference("loss", "float32", 256, "cuda"),
    Preference("loss", "bfloat16", 256, "triton"),
    Preference("products", "float32", 64, "cuda"),
]
BETAS = d3.schedules.cosine(5)
DEFAULT = "GPU tensors; the default"


@pytest.fixture(autouse=True)
def both_installed(monkeypatch, tmp_path):
    """A machine with both, and a table that was written and read again."""
    monkeypatch.setattr(implementations, "_WHY_NO_TRITON", "")
    monkeypatch.setattr(_compiled, "cuda", SimpleNamespace(device="cuda"))
    preferred.write(TABLE, tmp_path / "preferred.csv")
    monkeypatch.setattr(preferred, "PREFERENCES", preferred.read(tmp_path / "preferred.csv"))


def choice(operation="loss", num_classes=256, dtype=torch.float32, impl="auto"):
    chain = d3.transitions.uniform(num_classes, BETAS)
    return d3.implementation(impl, "cuda", chain, operation=operation, dtype=dtype)


def test_the_table_decides_by_operation_classes_and_dtype():
    assert choice(num_classes=2).name == "cuda"
    assert choice(num_classes=256).name == "cuda"
    assert choice(num_classes=257).name == "triton"
    assert choice(dtype=torch.bfloat16).name == "triton"


def test_the_reason_is_the_row():
    reason = "GPU tensors; measured as faster for loss, float32, up to 256 classes"
    assert choice(num_classes=27) == ("cuda", reason)
    assert choice(num_classes=300).reason.endswith("up to 8192 classes")


@pytest.mark.parametrize(
    "call",
    [
        {"num_classes": 8193},
        {"dtype": torch.float64},
        {"dtype": None},
        {"operation": "p_sample"},
    ],
)
def test_what_was_not_measured_is_the_default(call):
    assert choice(**call) == ("triton", DEFAULT)


def test_products_are_asked_for_by_their_number_of_classes():
    call = {"operation": "products", "dtype": torch.float32}
    assert d3.implementation("auto", "cuda", num_classes=64, **call).name == "cuda"
    assert d3.implementation("auto", "cuda", num_classes=65, **call).name == "triton"


def test_a_request_and_the_lack_of_a_choice_come_before_the_table(monkeypatch):
    assert choice(impl="triton") == ("triton", "the call asks for it")
    gaussian = d3.transitions.discretized_gaussian(4, BETAS)
    call = {"operation": "loss", "dtype": torch.float32}
    assert d3.implementation("auto", "cuda", gaussian, **call).name == "triton"
    monkeypatch.setattr(_compiled, "cuda", None)
    assert choice() == ("triton", DEFAULT)


def test_every_function_names_its_operation(monkeypatch):
    asked = []

    def implementation(impl, device, transition=None, *, operation, dtype, num_classes=0):
        asked.append((operation, dtype))
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
        ("loss", half), ("loss", None), ("p_posterior", half), ("q_posterior", half),
        ("p_sample", half), ("q_sample", None), ("products", torch.float32),
    ]  # fmt: skip


def test_the_choice_is_no_break_of_a_compiled_graph():
    chain = d3.transitions.uniform(256, BETAS)

    def name_and_twice(x):
        made = d3.implementation("auto", "cuda", chain, operation="loss", dtype=x.dtype)
        return 2 * x if made.name == "cuda" else x

    torch._dynamo.reset()
    compiled = torch.compile(name_and_twice, fullgraph=True, backend="eager")
    assert float(compiled(torch.ones(()))) == 2.0


def test_the_librarys_own_table_names_what_there_is():
    for row in preferred.read(preferred.TABLE):
        assert row.implementation in ("triton", "cuda")
        assert getattr(torch, row.dtype).is_floating_point
