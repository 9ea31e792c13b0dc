"""The operations on shaped logits: as on the logits that are made, whatever the chunks."""

import math
import signal
import subprocess
import sys

import pytest
import torch
from helpers.compare import assert_close
from helpers.laws import assert_follows
from helpers.shaped import grid, make, naive_row

import d3pm_fast as d3
from d3pm_fast import functional, schedules, transitions
from d3pm_fast.functional import Shaped
from d3pm_fast.predictions import chunks as of_chunks

T = 6
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MODELS = [{}, {"reverse": "posterior_mean"}, {"first_step": "posterior"}]
SLOW_CASES = [(67, torch.bfloat16), (67, torch.float64), (3000, torch.float32)]


def chains():
    return {
        "uniform": transitions.uniform(12, schedules.cosine(T)),
        "absorbing": transitions.absorbing(12, schedules.jsd(T), mask_id=4, data_has_mask=True),
        "gaussian": transitions.discretized_gaussian(12, schedules.linear(T, 0.1, 0.4)),
    }


def problem(name, dtype=torch.float64, shape=(5, 3)):
    chain = chains()[name]
    x_t = functional.q_sample(chain, torch.randint(12, shape), torch.full(shape[:1], T - 1))
    t = torch.arange(shape[0]) % T + 1
    shaped = Shaped(
        grid(*shape, 12, seed=1).to(dtype), grid(*shape, 12, seed=2).to(dtype), 1.5, 0.7, 9, 0.9
    )
    return chain, shaped, x_t, t


@pytest.fixture(params=[1, 1 << 21], ids=["an item a chunk", "one chunk"])
def chunks(request, monkeypatch):
    monkeypatch.setitem(of_chunks.CHUNK_BYTES, "cpu", request.param)


@pytest.mark.parametrize("reverse", ["joint", "posterior_mean"])
@pytest.mark.parametrize("name", chains())
def test_posteriors_and_draws_are_those_of_the_made_logits(name, reverse, impl, chunks):
    chain, shaped, x_t, t = problem(name)
    made = make("reference", shaped)
    seeds = torch.arange(len(t))
    for s in (None, torch.zeros_like(t)):
        args = x_t, t, s
        found = functional.p_posterior(chain, shaped, *args, reverse=reverse, impl=impl)
        truth = functional.p_posterior(chain, made, *args, reverse=reverse, impl="reference")
        assert_close(found, truth, torch.float64, ulps=256, scale=truth.abs() + 1)
        drawn = [
            functional.p_sample(chain, logits, *args, reverse=reverse, seeds=seeds, impl=impl)
            for logits in (shaped, made)
        ]
        assert torch.equal(*drawn)


OPTIONS = {
    "temperature": {"temperature": 0.7},
    "top 50": {"top_k": 50},
    "nucleus": {"top_p": 0.9},
    "all": {"guidance": 2.5, "temperature": 0.8, "top_k": 20, "top_p": 0.95},
}


@pytest.mark.unserved(
    where=lambda kernels, num_classes, dtype, **_: (
        kernels != "cpu" and (num_classes, dtype) not in SLOW_CASES
    ),
    reason="too slow here",
)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("num_classes", [2, 3, 67, 256, 3000, 8192])
@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_are_those_of_rows_shaped_first(dtype, num_classes, options, kernels):
    if kernels == "triton" or num_classes == 3000:
        count = 1
    else:
        count = 60 if kernels == "cpu" and num_classes < 1000 else 3
    rows = 3 * torch.randn(2, T, count, num_classes, dtype=torch.float64)
    t, seeds = torch.arange(T) + 1, torch.arange(T)
    x0 = torch.randint(num_classes - 1, (T, count))
    for mask_id, chain in (
        (None, transitions.uniform(num_classes, schedules.cosine(T))),
        (num_classes - 1, transitions.absorbing(num_classes, schedules.jsd(T), num_classes - 1)),
    ):
        if mask_id is not None:
            rows[..., mask_id] = -torch.inf
        logits, other = rows.to(dtype)
        shaped = Shaped(logits, other if "guidance" in options else None, **options)
        made = make(kernels, shaped)
        x_t = functional.q_sample(chain, x0, t, seeds=seeds)
        for model in MODELS:
            drawn, expected = (
                functional.p_sample(chain, given, x_t, t, seeds=seeds, impl=kernels, **model)
                for given in (shaped, made)
            )
            assert torch.equal(drawn, expected)
            assert not torch.equal(drawn, x_t)


DRAW_BESIDE_MEMORY_OF_NO_ONE = """
import ctypes, mmap, sys
import numpy, torch
import d3pm_fast as d3
from d3pm_fast.functional import Shaped, p_sample

numpy.seterr(all="ignore")
impl, time = sys.argv[1], int(sys.argv[2])
num_classes, tokens = mmap.PAGESIZE // 4, 32
chain = d3.transitions.absorbing(num_classes, d3.schedules.jsd(4), mask_id=0)
x_t = torch.arange(tokens).view(1, tokens) % 4
memory = mmap.mmap(-1, tokens * mmap.PAGESIZE)
logits = torch.frombuffer(memory, dtype=torch.float32).view(1, tokens, num_classes)
for n in x_t[0].nonzero().flatten().tolist():
    at, size = ctypes.c_void_p(logits[0, n].data_ptr()), ctypes.c_size_t(mmap.PAGESIZE)
    assert ctypes.CDLL(None).mprotect(at, size, 0) == 0
shaped = Shaped(logits, logits, 2.0, 0.5, 9, 0.9)
drawn = p_sample(chain, shaped, x_t, torch.tensor([time]), first_step="logits", impl=impl)
assert torch.equal(drawn[x_t > 0], x_t[x_t > 0])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects memory by Linux's call")
def test_rows_of_tokens_that_stay_are_not_read(kernels):
    """They lie in pages that cannot be; the step to t = 0 reads all rows, and must fail."""
    if kernels == "cuda" or (kernels == "triton" and torch.cuda.is_available()):
        pytest.skip("reads all rows, or not this machine's memory")
    for time, status in ((3, 0), (1, -signal.SIGSEGV)):
        command = [sys.executable, "-c", DRAW_BESIDE_MEMORY_OF_NO_ONE, kernels, str(time)]
        assert subprocess.run(command).returncode == status


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"temperature": 0.5, "top_p": 0.8}])
def test_draws_follow_the_posterior_of_the_shaped_prediction(cpu, options):
    """The law by hand: a uniform chain's matrices, and the naive row's softmax."""
    k, draws = 6, 20_000
    chain = transitions.uniform(k, [0.3, 0.4])
    shaped = Shaped(torch.randn(1, k).double(), torch.randn(1, k).double(), 2.0, **options)
    row, kept = naive_row(shaped.logits[0].tolist(), shaped.unconditional[0].tolist(), shaped)
    weights = torch.zeros(k).double()
    weights[kept] = torch.tensor(row).double()[kept].softmax(0)
    step, before = chain.q_matrix(2), chain.q_bar_matrix(1)
    law = step[:, 2] * (weights @ before)
    many = shaped._replace(
        **{name: getattr(shaped, name).expand(draws, 1, k) for name in ("logits", "unconditional")}
    )
    x_t, t = torch.full((draws, 1), 2), torch.full((draws,), 2)
    drawn = functional.p_sample(chain, many, x_t, t, impl=cpu)
    assert_follows(drawn, (law / law.sum())[None])
    drawn = functional.p_sample(chain, many, x_t, t, 0 * t, first_step="logits", impl=cpu)
    assert_follows(drawn, weights[None])


def test_an_item_s_draw_does_not_depend_on_the_others(impl):
    chain, shaped, x_t, t = problem("uniform", torch.float32)
    seeds = torch.arange(len(t))
    whole = functional.p_sample(chain, shaped, x_t, t, seeds=seeds, impl=impl)
    for n in range(len(t)):
        item = slice(n, n + 1)
        alone = shaped._replace(
            logits=shaped.logits[item], unconditional=shaped.unconditional[item]
        )
        drawn = functional.p_sample(chain, alone, x_t[item], t[item], seeds=seeds[item], impl=impl)
        assert torch.equal(drawn, whole[item])


def test_any_layout_is_taken(cpu):
    chain, shaped, x_t, t = problem("uniform")
    turned = shaped._replace(
        logits=shaped.logits.mT.contiguous().mT,
        unconditional=shaped.unconditional.transpose(0, 1).contiguous().transpose(0, 1),
    )
    values = [functional.p_posterior(chain, s, x_t, t, impl=cpu) for s in (shaped, turned)]
    assert torch.equal(*values)


def test_a_denoiser_may_return_shaped_logits(cpu):
    diffusion = d3.D3PM(chains()["absorbing"])
    logits = torch.randn(12)

    def greedy(x_t, t):
        return Shaped(logits.expand(*x_t.shape, 12), top_k=1)

    x = diffusion.sample(greedy, (3, 7))
    assert bool((x == logits.argmax()).all())


def test_an_empty_batch_has_no_draws(impl):
    chain = chains()["uniform"]
    x_t = torch.zeros(0, 3).long()
    shaped = Shaped(torch.zeros(0, 3, 12), top_k=2, top_p=0.5)
    drawn = functional.p_sample(chain, shaped, x_t, torch.zeros(0).long(), impl=impl)
    assert drawn.shape == (0, 3)


def test_draws_compile_into_one_graph(cpu):
    chain, shaped, x_t, t = problem("uniform", torch.float32)
    seeds = torch.arange(len(t))

    def draw(logits, unconditional):
        made = shaped._replace(logits=logits, unconditional=unconditional)
        return functional.p_sample(chain, made, x_t, t, seeds=seeds, impl=cpu)

    torch._dynamo.reset()
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*shaped[:2]), draw(*shaped[:2]))


def test_a_loss_takes_no_shaped_logits():
    chain, shaped, x_t, t = problem("uniform")
    with pytest.raises(TypeError, match=r"logits must be those of the model.*got Shaped"):
        functional.loss(chain, shaped, x_t, x_t, t)


def test_a_gradient_that_there_is_not_is_named(impl):
    chain, shaped, x_t, t = problem("uniform")
    shaped.unconditional.requires_grad_()
    with pytest.raises(ValueError, match="p_posterior of Shaped logits has no gradient"):
        functional.p_posterior(chain, shaped, x_t, t, impl=impl)
    with torch.no_grad():
        functional.p_posterior(chain, shaped, x_t, t, impl=impl)
    assert functional.p_sample(chain, shaped, x_t, t, impl=impl).shape == x_t.shape


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": [0.0]}, TypeError, "logits must be a tensor, got list"),
        ({"logits": torch.zeros(5, 3, 12).long()}, TypeError, "logits must be float32.*int64"),
        (
            dict.fromkeys(("logits", "unconditional"), torch.zeros(5, 3, 11)),
            ValueError,
            r"logits must have shape \(5, 3, 12\), got \(5, 3, 11\)",
        ),
        ({"unconditional": torch.zeros(5, 12)}, ValueError, "unconditional must have shape"),
        ({"unconditional": torch.zeros(5, 3, 12).half()}, TypeError, "unconditional must be"),
        ({"unconditional": 0.0}, TypeError, "unconditional must be a tensor, got float"),
        ({"unconditional": None}, ValueError, "guidance 1.5 needs unconditional logits"),
        ({"guidance": math.nan}, ValueError, "guidance must be finite"),
        ({"guidance": "3"}, TypeError, "guidance must be a number, got str"),
        ({"temperature": 0}, ValueError, "temperature must be positive, got 0; .*argmax.*top_k=1"),
        ({"temperature": -1.0}, ValueError, "temperature must be positive, got -1.0"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_k": 2.0}, TypeError, "top_k must be an integer, got float"),
        ({"top_p": 0.0}, ValueError, r"top_p must lie in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, ValueError, r"top_p must lie in \(0, 1\], got 1.5"),
    ],
)
def test_bad_input_is_named(change, error, message):
    chain, shaped, x_t, t = problem("uniform")
    for operation in (functional.p_sample, functional.p_posterior):
        with pytest.raises(error, match=message):
            operation(chain, shaped._replace(**change), x_t, t)
