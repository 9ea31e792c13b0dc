"""The table of operations, by an operation that does next to nothing."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import d3pm_fast as d3
from d3pm_fast import Implementations, ops, schedules, transitions
from d3pm_fast.chains.structures import DENSE, RANK_ONE, SPARSE, MatrixStep, RankOneStep
from d3pm_fast.choices import IMPLS
from d3pm_fast.ops.register import IMPLEMENTATIONS, OPERATIONS, Entry, Operation
from d3pm_fast.records import AnyStep, Random

RANK_ONE_CHAIN = transitions.uniform(3, schedules.cosine(4))
DENSE_CHAIN = transitions.band(3, schedules.cosine(4), 1)


def fake_shifted(x: Tensor, step: AnyStep, random: Random, names: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(())


@pytest.fixture(scope="module")
def shifted():
    """Adds the counter to x, and notes what it was given."""
    operation = Operation("shifted", fake_shifted)
    operation.given = []

    def kernel(x, step, random, names):
        operation.given.append((type(step), type(random), names))
        return x + random.step, x.sum()

    operation.serve("cpu", kernel, [RANK_ONE])
    operation.serve("cpu", kernel, [DENSE, SPARSE])
    operation.serve("reference", kernel, [RANK_ONE])
    yield operation
    del OPERATIONS["shifted"]


def arguments(chain, x):
    return x, chain.step_record(torch.ones(2).long()), Random(torch.zeros(2).long(), 5), "ab"


def test_the_dispatcher_is_given_the_fields_of_records(shifted):
    assert str(torch.ops.d3pm_fast.shifted.default._schema) == (
        "d3pm_fast::shifted(Tensor x, Tensor rows, Tensor table, Tensor? pi, Tensor? pi_cdf, "
        "int mask_id, int num_classes, int forbidden, Tensor seeds, int step, "
        "int position_offset, str names) -> (Tensor, Tensor)"
    )
    assert str(torch.ops.d3pm_fast.dense_shifted.default._schema) == (
        "d3pm_fast::dense_shifted(Tensor x, Tensor t, Tensor? s, int handle, "
        "Tensor seeds, int step, int position_offset, str names) -> (Tensor, Tensor)"
    )


@pytest.mark.parametrize(
    ("chain", "record"), [(RANK_ONE_CHAIN, RankOneStep), (DENSE_CHAIN, MatrixStep)]
)
def test_a_kernel_is_given_records(shifted, chain, record):
    kernel, x = shifted.kernel("cpu", chain.structure), torch.zeros(2)
    registered = torch.ops.d3pm_fast.shifted if record is RankOneStep else None
    shifted.given.clear()
    made = kernel(*arguments(chain, x))
    assert torch.equal(made[0], x + 5)
    if registered is not None:
        _, step, random, names = arguments(chain, x)
        assert torch.equal(registered(x, *step, *random, names)[0], x + 5)
    assert set(shifted.given) == {(record, Random, "ab")}


def test_compilers_and_fake_tensors_see_the_operation(shifted):
    kernel = shifted.kernel("cpu", RANK_ONE.name)

    def twice(x):
        return 2 * kernel(*arguments(RANK_ONE_CHAIN, x))[0]

    torch._dynamo.reset()
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 12.0))
    shifted.given.clear()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        made, total = kernel(*arguments(RANK_ONE_CHAIN, mode.from_tensor(torch.ones(2))))
    assert (made.shape, total.shape) == ((2,), ())
    assert not shifted.given  # its fake alone was asked


def test_the_table_says_who_serves_what(shifted):
    assert shifted.is_served("cpu", SPARSE.name)
    assert shifted.is_served("reference", RANK_ONE.name)
    assert not shifted.is_served("reference", DENSE.name)
    assert not shifted.is_served("cuda", RANK_ONE.name)
    assert shifted.structures("cpu") == ["rank-one", "dense", "sparse"]


def test_an_implementation_is_an_entry(shifted, monkeypatch):
    missing = ["no beads"]
    entry = Entry(
        name="abacus", prefix="abacus_", key="CompositeExplicitAutograd", devices=lambda: ("xpu",),
        tensors="beads", missing=lambda: missing[0], error="impl='abacus' has {}",
        found=lambda: "10 rods",
    )  # fmt: skip
    monkeypatch.setitem(IMPLEMENTATIONS, "abacus", entry)
    shifted.serve("abacus", lambda x, *_: (x + 1, x.sum()), [DENSE])
    assert "-> (Tensor, Tensor)" in str(torch.ops.d3pm_fast.abacus_dense_shifted.default._schema)
    assert torch.equal(
        shifted.kernel("abacus", "dense")(*arguments(DENSE_CHAIN, torch.zeros(2)))[0],
        torch.ones(2),
    )

    def choice(chain):
        return d3.implementation("auto", "xpu", chain, operation="shifted")

    assert choice(DENSE_CHAIN) == ("reference", "no beads")
    assert entry.supports("xpu", shifted, "dense") == "impl='abacus' has no beads"
    missing[0] = ""
    serves_dense = "impl='abacus' serves dense chains; use 'auto' or 'triton'"
    assert choice(DENSE_CHAIN) == ("abacus", "XPU tensors; the default")
    assert choice(RANK_ONE_CHAIN) == ("reference", serves_dense)
    assert entry.supports("xpu", shifted, "dense") == ""
    assert entry.supports("cpu", shifted, "dense") == "impl='abacus' needs beads, got cpu"


def test_types_name_the_implementations_of_the_table():
    assert IMPLS == Implementations._fields == ("auto", "reference", *IMPLEMENTATIONS)


def test_a_mode_sees_the_operation(shifted):
    class Noted(TorchDispatchMode):
        seen = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += (str(func),)
            return func(*args, **(kwargs or {}))

    with Noted() as mode:
        shifted.kernel("cpu", RANK_ONE.name)(*arguments(RANK_ONE_CHAIN, torch.ones(2)))
    assert "d3pm_fast.shifted.default" in mode.seen


def test_every_kernel_that_is_named_is_there():
    """They are names in strings, which no type checker looks at."""
    pytest.importorskip("triton")
    named = set()
    for source in Path(ops.__file__).parent.glob("*.py"):
        named.update(re.findall(r'triton_kernel\("([\w.]+)"\)', source.read_text()))
    assert len(named) >= 20
    for path in named:
        module, _, name = path.rpartition(".")
        assert callable(getattr(importlib.import_module(f"d3pm_fast.kernels.{module}"), name))
