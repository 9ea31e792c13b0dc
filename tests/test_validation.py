"""Every bad input: the type of the error, the argument's name, what was expected, what came."""

import copy
import inspect
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import d3pm_fast as d3
from d3pm_fast import _environment, choices, functional, schedules, transitions

K, T, B, P = 5, 7, 2, 3
CHAIN = d3.transitions.absorbing(K, d3.schedules.jsd(T), mask_id=4)


def good():
    return {
        "logits": torch.zeros(B, P, K),
        "x0": torch.zeros(B, P, dtype=torch.int64),
        "x_t": torch.zeros(B, P, dtype=torch.int64),
        "t": torch.ones(B, dtype=torch.int64),
    }


BAD_TENSORS = [
    ("logits", [0.0], TypeError, "logits must be a tensor, got list"),
    ("logits", torch.zeros(B, P, K, dtype=torch.int64), TypeError, "float.*got torch.int64"),
    ("logits", torch.zeros(B, P, K + 1), ValueError, r"logits.*\(2, 3, 5\), got \(2, 3, 6\)"),
    (
        "logits",
        torch.zeros(B, K, P),
        ValueError,
        r"logits.*\(2, 3, 5\), got \(2, 5, 3\).*classes in dimension 1 say class_dim=1",
    ),
    ("x0", torch.zeros(B, P), TypeError, "x0 must be an integer tensor, got torch.float32"),
    ("x0", torch.tensor(0), ValueError, r"x0 must have shape \(B, \*S\), got a scalar"),
    ("x_t", torch.zeros(B, P), TypeError, "x_t must be an integer tensor, got torch.float32"),
    ("x_t", torch.zeros(B, P + 1, dtype=torch.int64), ValueError, r"\(2, 4"),
    (
        "x_t",
        torch.zeros(B, P, K),
        ValueError,
        r"x_t must hold class numbers.*take x_t.argmax\(-1\)",
    ),
    ("x_t", torch.full((B, P), K), IndexError, r"x_t must lie in \[0, 5\), got 5"),
    ("x_t", torch.full((B, P), -1), IndexError, r"x_t must lie in \[0, 5\), got -1"),
    ("t", torch.ones(B), TypeError, "t must be an integer tensor, got torch.float32"),
    ("t", torch.ones(B + 1, dtype=torch.int64), ValueError, r"\(2,\) or \(2, 3\), got \(3,\)"),
    (
        "t",
        torch.zeros(B, dtype=torch.int64),
        IndexError,
        r"t must lie in \[1, 8\), got 0 at.*; the data are t = 0, times of noise are 1..T",
    ),
    ("t", torch.full((B,), T + 1), IndexError, r"t must lie in \[1, 8\), got 8"),
    ("t", torch.full((B,), -1), IndexError, r"t must lie in \[1, 8\), got -1"),
]
BAD_X0 = [
    ("x0", torch.zeros(B, P, K), ValueError, r"x0 must hold class numbers.*take x0.argmax\(-1\)"),
    ("x0", torch.zeros(B, P, K).long(), ValueError, r"got one-hot vectors \(2, 3, 5\): take x0"),
    ("x0", torch.full((B, P), K), IndexError, r"x0 must lie in \[0, 5\), got 5"),
    ("x0", torch.full((B, P), -1), IndexError, r"x0 must lie in \[0, 5\), got -1 at index"),
]
CALLS = {
    functional.loss: ("logits", "x0", "x_t", "t"),
    functional.q_posterior: ("x0", "x_t", "t"),
    functional.p_posterior: ("logits", "x_t", "t"),
    functional.p_sample: ("logits", "x_t", "t"),
}
CASES = [
    pytest.param(call, *case, id=f"{call.__name__}-{case[0]}-{case[3]}")
    for call, names in CALLS.items()
    for case in BAD_TENSORS + BAD_X0
    if case[0] in names
]


@pytest.mark.parametrize(("call", "name", "value", "error", "message"), CASES)
def test_bad_tensors_are_named(call, name, value, error, message, impl):
    arguments = {**good(), name: value}
    with pytest.raises(error, match=message):
        call(CHAIN, *(arguments[n] for n in CALLS[call]), impl=impl)


@pytest.mark.parametrize(
    ("x0", "t", "error", "message"),
    [
        (torch.full((B, P), K), torch.ones(B).long(), IndexError, r"x0 must lie in \[0, 5\)"),
        (torch.zeros(B, P), torch.ones(B).long(), TypeError, "x0 must be an integer tensor"),
        (
            torch.zeros(B, P, K),
            torch.ones(B).long(),
            TypeError,
            r"x0 must be an integer tensor.*of one-hot vectors take x0.argmax\(-1\)",
        ),
        (torch.zeros(B, P).long(), torch.full((B,), T + 1), IndexError, r"t must lie in \[0, 8\)"),
        (torch.zeros(B, P).long(), torch.full((B,), -1), IndexError, r"\[0, 8\), got -1"),
        (torch.zeros(B, P).long(), torch.ones(B), TypeError, "t must be an integer tensor"),
    ],
)
def test_bad_tensors_of_q_sample_are_named(x0, t, error, message, impl):
    with pytest.raises(error, match=message):
        functional.q_sample(CHAIN, x0, t, impl=impl)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"reverse": "both"}, ValueError, "reverse must be one of 'joint', 'posterior_mean', got"),
        ({"first_step": "?"}, ValueError, "first_step must be one of 'posterior', 'logits', got"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', 'b"),
        ({"impl": "fpga"}, ValueError, "impl must be one of 'auto', 'reference', 'cpu'"),
        ({"impl": "cuda"}, RuntimeError, "impl='cuda' needs the compiled CUDA module"),
        ({"mask": torch.ones(B, P)}, TypeError, "mask must be a bool tensor.*got torch.float32"),
        ({"mask": torch.ones(B).bool()}, ValueError, r"mask.*\(2, 3\), got \(2,\)"),
    ],
)
def test_bad_options_of_the_loss_are_named(option, error, message):
    with pytest.raises(error, match=message):
        functional.loss(CHAIN, *good().values(), **option)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"seeds": torch.zeros(B)}, TypeError, "seeds must be an int64 tensor"),
        ({"seeds": torch.zeros(B + 1).long()}, ValueError, r"seeds.*\(2,\), got \(3,\)"),
        (
            {"seeds": torch.zeros(B).long(), "generator": torch.Generator()},
            ValueError,
            "seeds or a generator, not both",
        ),
    ],
)
def test_bad_options_of_p_sample_are_named(option, error, message, impl):
    x = good()
    with pytest.raises(error, match=message):
        functional.p_sample(CHAIN, x["logits"], x["x_t"], x["t"], impl=impl, **option)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"s": torch.ones(B).long()}, IndexError, r"s must lie in \[0, t\), got s = 1 with t = 1"),
        ({"s": torch.full((B,), -1)}, IndexError, r"s must lie in \[0, t\), got s = -1"),
        ({"s": torch.zeros(B, P).long()}, ValueError, r"s must have shape \(2,\), got \(2, 3\)"),
        ({"s": torch.zeros(B)}, TypeError, "s must be an integer tensor"),
        ({"t": torch.full((B,), T + 1)}, IndexError, r"t must lie in \[1, 8\), got 8"),
    ],
)
@pytest.mark.parametrize("call", CALLS)
def test_bad_steps_that_skip_times_are_named(call, change, error, message, impl):
    arguments = {**good(), "s": torch.zeros(B).long(), **change}
    with pytest.raises(error, match=message):
        call(CHAIN, *(arguments[n] for n in (*CALLS[call], "s")), impl=impl)


def test_a_bad_dtype_of_q_posterior_is_named():
    x = good()
    with pytest.raises(TypeError, match=r"dtype must be float32.*got torch.int32"):
        functional.q_posterior(CHAIN, x["x0"], x["x_t"], x["t"], dtype=torch.int32)


def test_tensors_on_other_devices_are_named():
    x = good()
    with pytest.raises(ValueError, match="x_t must be on the device of logits, cpu, got meta"):
        functional.loss(CHAIN, x["logits"], x["x0"], x["x_t"].to("meta"), x["t"])


def test_an_impossible_pair_is_nan_and_the_full_checks_raise(impl, monkeypatch):
    x = {**good(), "x_t": torch.ones(B, P, dtype=torch.int64)}  # 0 cannot become 1
    assert functional.loss(CHAIN, *x.values(), reduction="none", impl=impl).isnan().all()
    arguments = (x["x0"], x["x_t"], x["t"])
    assert functional.q_posterior(CHAIN, *arguments, impl=impl).isnan().all()
    monkeypatch.setattr(_environment, "CHECK", True)
    with pytest.raises(ValueError, match="x_t = 1 cannot come from x0 = 0 at t = 1"):
        functional.loss(CHAIN, *x.values(), impl=impl)
    mask = torch.zeros(B, P, dtype=torch.bool)
    assert functional.loss(CHAIN, *x.values(), mask=mask, reduction="sum", impl=impl) == 0


def test_the_first_nan_of_an_impossible_pair_is_warned_of(impl):
    chain = d3.transitions.absorbing(K, d3.schedules.jsd(T), mask_id=4)
    x = {**good(), "x_t": torch.tensor([[0, 4, 4], [0, 1, 0]])}
    mask = x["x_t"] != 1
    nan = torch.full((B, P, K), torch.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert functional.loss(chain, *x.values(), mask=mask, impl=impl).isfinite()
        assert functional.loss(chain, nan, *list(x.values())[1:], mask=mask, impl=impl).isnan()
    for reduction in ("mean", "sum", "none", "batch"):
        again = copy.deepcopy(chain)
        message = r"loss is NaN: x_t = 1 cannot come from x0 = 0 at t = 1 \(token 4\)"
        with pytest.warns(UserWarning, match=message):
            functional.loss(again, *x.values(), reduction=reduction, impl=impl)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            functional.loss(again, *x.values(), reduction=reduction, impl=impl)


def test_a_nan_is_not_looked_at_where_values_cannot_be_read(impl):
    x = {**good(), "x_t": torch.ones(B, P, dtype=torch.int64)}  # 0 cannot become 1
    chain = d3.transitions.absorbing(K, d3.schedules.jsd(T), mask_id=4)

    def loss(logits, *tokens):
        return functional.loss(chain, logits[None], *(x[None] for x in tokens), impl=impl)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grads = torch.func.vmap(torch.func.grad(loss))(*x.values())
    assert grads.shape == (B, P, K)


def test_the_full_checks_pass_good_input(impl, monkeypatch):
    monkeypatch.setattr(_environment, "CHECK", True)
    assert functional.loss(CHAIN, *good().values(), impl=impl).isfinite()


def predictions_with_a_nan():
    nan = torch.zeros(B, P, K)
    nan[1, 2, 0] = torch.nan
    yield nan, r"\(1, 2, 0\)"
    yield functional.Shaped(nan, temperature=0.5), r"\(1, 2, 0\)"
    yield functional.Shaped(torch.zeros(B, P, K), nan, 2.0), r"\(1, 2, 0\)"
    yield (torch.zeros(B, P), nan[..., 0]), r"\(1, 2\)"


@pytest.mark.parametrize(("prediction", "where"), list(predictions_with_a_nan()))
@pytest.mark.parametrize("function", [functional.p_sample, functional.p_posterior])
def test_the_full_checks_find_a_nan_to_draw_from(function, prediction, where, impl, monkeypatch):
    x = good()
    arguments = (CHAIN, prediction, x["x_t"], x["t"])
    function(*arguments, impl=impl)
    monkeypatch.setattr(_environment, "CHECK", True)
    with pytest.raises(ValueError, match=f"logits must not be NaN, got one at index {where}"):
        function(*arguments, impl=impl)


@pytest.mark.parametrize("last", ["sample", "argmax"])
def test_the_full_checks_find_a_nan_of_a_denoiser(last, monkeypatch):
    diffusion = d3.D3PM(CHAIN)

    def denoiser(x_t, t):
        return torch.full((*x_t.shape, K), torch.nan if t[0] == 1 else 0.0)

    with pytest.raises(ValueError, match="logits must have a softmax, got NaN"):
        diffusion.sample(denoiser, (B, P), last=last)
    monkeypatch.setattr(_environment, "CHECK", True)
    with pytest.raises(ValueError, match="logits must not be NaN"):
        diffusion.sample(denoiser, (B, P), last=last)


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        (4, TypeError, r"shape must be a tuple of integers \(B, \*S\), got int"),
        ("44", TypeError, "shape must be a tuple of integers .* got str"),
        ((), ValueError, r"shape must be \(B, \*S\), got \(\)"),
        ((2, -1), ValueError, r"shape\[1\] must be at least 0, got -1"),
        ((2, 1.5), TypeError, r"shape\[1\] must be an integer, got float"),
    ],
)
def test_bad_shapes_of_samples_are_named(shape, error, message):
    diffusion = d3.D3PM(CHAIN)
    for sample in (d3.sampling.ancestral, d3.samplers.first_hitting, d3.samplers.confidence):
        with pytest.raises(error, match=message):
            sample(diffusion, lambda x_t, t: torch.zeros(*x_t.shape, K), shape)


@pytest.mark.parametrize("instructions", ["foo", "", "AVX2"])
def test_an_unknown_instruction_set_is_named(instructions):
    command = [sys.executable, "-c", "import d3pm_fast"]
    environment = {**os.environ, "D3PM_FAST_ISA": instructions}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    expected = f"D3PM_FAST_ISA must be one of 'baseline', 'avx2', 'avx512', got {instructions!r}"
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == f"ValueError: {expected}"


def test_the_environment_is_read_at_import():
    settings = {"D3PM_FAST_IMPL": "reference", "D3PM_FAST_CHECK": "1"}
    code = "from d3pm_fast import _environment as e; print(e.IMPL, e.CHECK)"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert run.stdout.split() == ["reference", "True"], run.stderr


def test_sources_that_hide_what_is_installed_are_named(tmp_path):
    sources, installed = tmp_path / "checkout" / "d3pm_fast", tmp_path / "site" / "d3pm_fast"
    package = Path(d3.__file__).parent
    shutil.copytree(package, sources, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    installed.mkdir(parents=True)
    (installed / "_cpu.so").touch()
    code = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in repr(f)]\n"
        "import d3pm_fast as d3; print(d3.implementation()); d3.implementation('cpu')"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed.parent), "PYTHONWARNINGS": "default"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=sources.parent, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    remedy = f"d3pm_fast is imported from the sources in {sources}, which hide the one that is"
    assert f"cpu        nothing      {remedy}" in run.stdout
    for said in (
        "UserWarning: the compiled kernels are not found: ",
        "needs the compiled CPU module; ",
    ):
        assert f"{said}{remedy} installed in {installed.parent}; work in ano" in run.stderr


def test_the_environment_chooses_the_implementation(monkeypatch):
    monkeypatch.setattr(_environment, "IMPL", "reference")
    assert d3.implementation("auto") == ("reference", "D3PM_FAST_IMPL asks for it")
    assert d3.implementation().auto.reason == "reference: D3PM_FAST_IMPL asks for it"
    monkeypatch.setattr(_environment, "IMPL", "abacus")
    for arguments in [(), ("auto",)]:
        with pytest.raises(ValueError, match="D3PM_FAST_IMPL must be one of"):
            d3.implementation(*arguments)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda b: d3.transitions.uniform(1, b), ValueError, "num_classes must be at least 2"),
        (lambda b: d3.transitions.uniform(2.5, b), TypeError, "num_classes must be an integer"),
        (lambda b: d3.transitions.uniform(3, 2 * b), ValueError, r"betas must lie in \[0, 1\]"),
        (lambda b: d3.transitions.uniform(3, b[None]), ValueError, r"betas must have shape \(T,\)"),
        (lambda b: d3.transitions.uniform(3, b * torch.nan), ValueError, "betas must lie in"),
        (
            lambda b: d3.transitions.uniform(27, "cosine"),
            TypeError,
            r"betas must be a tensor or an array of.*, got 'cosine': take schedules.cosine\(T\)",
        ),
        (
            lambda b: d3.transitions.discretized_gaussian(3, S.cosine),
            TypeError,
            "betas must be a tensor or an array of numbers, got function",
        ),
        (lambda b: d3.transitions.absorbing(3, b, 3), IndexError, r"mask_id.*\[0, 3\), got 3"),
        (lambda b: d3.transitions.absorbing(3, b, -1), ValueError, "mask_id must be at least 0"),
        (lambda b: d3.transitions.marginal(3, b, [0.5, 0.5]), ValueError, r"pi.*\(3,\), got \(2,"),
        (lambda b: d3.transitions.marginal(2, b, [1.5, -0.5]), ValueError, "pi.*not negative"),
        (lambda b: d3.transitions.marginal(2, b, [0.5, 0.6]), ValueError, "pi must sum to 1"),
        (
            lambda b: d3.transitions.mask_and_uniform(3, b, 0, [0.5]),
            ValueError,
            "uniform_share must have one entry a step, 7, got 1",
        ),
        (
            lambda b: d3.transitions.mask_and_uniform(3, b, 0, 1.5),
            ValueError,
            r"uniform_share must lie in \[0, 1\], got 1.5",
        ),
        (lambda b: d3.D3PM("uniform"), TypeError, "transition must be a d3pm_fast transition"),
        (lambda b: d3.D3PM(CHAIN, reverse="x"), ValueError, "reverse must be one of"),
        (lambda b: CHAIN.q_matrix(0), IndexError, r"t must lie in \[1, 7\], got 0"),
        (lambda b: CHAIN.q_bar_matrix(T + 1), IndexError, r"t must lie in \[0, 7\], got 8"),
    ],
)
def test_bad_chains_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make(torch.full((T,), 0.6))


S = d3.schedules


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: S.linear(0), ValueError, "num_steps must be at least 1, got 0"),
        (lambda: S.cosine(-3), ValueError, "num_steps must be at least 1, got -3"),
        (lambda: S.jsd(2.5), TypeError, "num_steps must be an integer, got float"),
        (lambda: S.sigmoid("9"), TypeError, "num_steps must be an integer, got str"),
        (lambda: S.linear(5, start=-0.1), ValueError, r"start must lie in \[0, 1\], got -0.1"),
        (lambda: S.quadratic(5, end=1.5), ValueError, r"end must lie in \[0, 1\], got 1.5"),
        (lambda: S.quadratic(5, start=-1e-4), ValueError, r"start must lie in \[0, 1\]"),
        (lambda: S.sigmoid(5, end=float("nan")), ValueError, r"end must lie in.*got nan"),
        (lambda: S.cosine(5, offset=-0.1), ValueError, "offset must be at least 0, got -0.1"),
        (lambda: S.cosine(5, offset=float("nan")), ValueError, "offset must be at least 0"),
        (lambda: S.cosine(5, max_beta=1.1), ValueError, r"max_beta must lie in \[0, 1\]"),
        (lambda: S.cosine_squared(5, max_beta=-1), ValueError, "max_beta must lie in"),
        (lambda: S.cosine_multinomial(5, offset=-1), ValueError, "offset must be at least 0"),
        (lambda: S.from_betas([]), ValueError, r"betas must have shape \(T,\).*got \(0,\)"),
        (lambda: S.from_betas([[0.5]]), ValueError, r"betas must have shape.*got \(1, 1\)"),
        (lambda: S.from_betas([0.1, -0.2]), ValueError, r"betas.*got -0.2 at t = 2"),
        (lambda: S.from_betas([0.1, 1.2]), ValueError, r"betas.*got 1.2 at t = 2"),
        (lambda: S.from_betas([0.1, float("nan")]), ValueError, r"betas.*got nan at t = 2"),
        (lambda: S.from_alpha_bars([0.5, 0.6]), ValueError, "alpha_bar_2 = 0.6 is above alpha_b"),
        (lambda: S.from_alpha_bars([1.5]), ValueError, r"alpha_bars must lie in \[0, 1\], got 1.5"),
        (lambda: S.from_alpha_bars([]), ValueError, r"alpha_bars must have shape \(T,\)"),
    ],
)
def test_bad_schedules_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda d: d3.timesteps.uniform(0, 4), ValueError, "num_steps must be at least 1, got 0"),
        (lambda d: d3.timesteps.low_discrepancy(1.5, 4), TypeError, "num_steps must be an integer"),
        (lambda d: d3.timesteps.strided(7, 8), ValueError, "steps must be at most T = 7, got 8"),
        (lambda d: d3.timesteps.strided(7, 0), ValueError, "steps must be at least 1, got 0"),
        (lambda d: d3.timesteps.path(7, [6, 2]), ValueError, r"begin at T = 7, got \[6\]"),
        (lambda d: d3.timesteps.path(7, []), ValueError, r"begin at T = 7, got \[\]"),
        (lambda d: d3.timesteps.path(7, [7, 3, 3]), ValueError, "must fall.*got 3 after 3"),
        (lambda d: d3.timesteps.path(7, [7, 0]), ValueError, "stay above 0, got 0 after 0"),
        (lambda d: d3.timesteps.path(7, [7, 2.5]), TypeError, "times must be an integer"),
        (lambda d: d.sample(None, (2, 3), last="mode"), ValueError, "last must be one of"),
        (
            lambda d: d.sample(None, (2,), known=(torch.zeros(3).long(), torch.ones(3).bool())),
            ValueError,
            r"known\[0\] must have shape \(2,\), got \(3,\)",
        ),
        (
            lambda d: d.sample(None, (2,), known=(torch.zeros(2).long(), torch.ones(2))),
            TypeError,
            r"known\[1\] must be a bool tensor",
        ),
        (
            lambda d: d.sample(None, (2,), known=(torch.zeros(2), torch.ones(2).bool())),
            TypeError,
            r"known\[0\] must be an integer tensor",
        ),
        (
            lambda d: d.sample(None, (2,), known=(torch.full((2,), K), torch.ones(2).bool())),
            IndexError,
            r"known\[0\] must lie in",
        ),
        (
            lambda d: d.sample(None, (2,), seeds=torch.zeros(3).long()),
            ValueError,
            r"seeds must have shape \(2,\)",
        ),
        (lambda d: d.sample(None, (2, 3), steps=8), ValueError, "steps must be at most T = 7"),
        (lambda d: d.sample(None, (2, 3), steps=0), ValueError, "steps must be at least 1"),
        (lambda d: d.sample(None, (-1, 3)), ValueError, r"shape\[0\] must be at least 0, got -1"),
        (lambda d: d3.D3PM(CHAIN, first_step="x"), ValueError, "first_step must be one of"),
        (lambda d: d3.D3PM(CHAIN, impl="x"), ValueError, "impl must be one of 'auto'"),
    ],
)
def test_bad_times_and_settings_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make(d3.D3PM(CHAIN))


TYPES_OF_CHOICES = {
    "reverse": choices.Reverse,
    "first_step": choices.FirstStep,
    "impl": choices.Impl,
    "reduction": choices.Reduction,
    "last": choices.Last,
    "method": choices.GraphMethod,
}


def test_choices_have_types_that_an_editor_can_complete():
    modules = functional, transitions, d3.sampling, d3.samplers, d3.evaluation, d3
    public = [getattr(module, name) for module in modules for name in module.__all__]
    methods = [member for _, member in inspect.getmembers(d3.D3PM, inspect.isfunction)]
    callables = [d3.D3PM, *methods, *filter(inspect.isfunction, public)]
    found = [
        (name, parameter.annotation)
        for called in callables
        for name, parameter in inspect.signature(called).parameters.items()
        if name in TYPES_OF_CHOICES
    ]
    assert {name for name, _ in found} == TYPES_OF_CHOICES.keys()
    for name, annotation in found:
        assert annotation in (TYPES_OF_CHOICES[name], TYPES_OF_CHOICES[name] | None)


def test_a_denoiser_of_the_wrong_shape_is_named():
    diffusion = d3.D3PM(CHAIN)
    with pytest.raises(ValueError, match=r"logits must have shape \(2, 3, 5\), got \(2, 5, 3\)"):
        diffusion.sample(lambda x_t, t: torch.zeros(2, K, P), (B, P))


def test_a_failed_call_leaves_the_logits_and_their_gradient_alone(impl):
    x = good()
    logits = x["logits"].requires_grad_()
    bad = x["x0"].clone()
    bad[-1, -1] = K
    with pytest.raises(IndexError):
        functional.loss(CHAIN, logits, bad, x["x_t"], x["t"], impl=impl)
    assert logits.grad is None
    assert bool((logits == 0).all())


def test_a_tuple_that_is_no_prediction_is_refused(impl):
    chain = transitions.uniform(5, [0.1, 0.2])
    x, t, loc = torch.zeros(2, 3).long(), torch.ones(2).long(), torch.zeros(2, 3)
    for wrong, error, message in (
        ((loc,), ValueError, "must be (loc, log_scale), got one of 1"),
        ((loc, loc, True, 1), ValueError, "must be (loc, log_scale), got one of 4"),
        ((loc, loc, "x"), TypeError, "edge_corrected must be a bool, got str"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            functional.loss(chain, wrong, x, x, t, impl=impl)


def test_floating_point_tokens_may_be_one_hot_or_not():
    diffusion, x0 = d3.D3PM(CHAIN), torch.zeros(B, K)
    for call in (
        lambda: functional.prior(CHAIN, x0),
        lambda: diffusion.elbo(lambda x, t: torch.zeros(*x.shape, K), x0),
    ):
        with pytest.raises(TypeError, match=r"an integer tensor.*of one-hot vectors take x0"):
            call()


@pytest.mark.parametrize("name", ["vb_weight", "ce_weight"])
def test_a_weight_is_a_finite_number(name, impl):
    chain = transitions.uniform(5, [0.1, 0.2])
    x, t, logits = torch.zeros(2, 3).long(), torch.ones(2).long(), torch.zeros(2, 3, 5)
    with pytest.raises(TypeError, match=f"{name} must be a number, got str"):
        functional.loss(chain, logits, x, x, t, impl=impl, **{name: "a"})
    with pytest.raises(ValueError, match=f"{name} must be finite, got nan"):
        functional.loss(chain, logits, x, x, t, impl=impl, **{name: float("nan")})


def test_what_is_no_chain_is_refused():
    chain = transitions.uniform(5, [0.1, 0.2])
    with pytest.raises(TypeError, match="transitions must hold chains, got int"):
        transitions.mixture([1, 2], [0.5, 0.5])
    with pytest.raises(ValueError, match="transitions must be a sequence of at least one chain"):
        transitions.mixture(chain, [1.0])
    with pytest.raises(TypeError, match="t must be an integer, got float"):
        chain.q_bar_matrix(1.5)
    with pytest.raises(TypeError, match="mask_rate must be a number, got str"):
        transitions.nearest_neighbor(torch.rand(5, 2), 2, [0.1], mask_rate="a")
    with pytest.raises(ValueError, match="matrices must not require a gradient"):
        transitions.from_matrices(chain.q_matrix(1)[None].requires_grad_())
    with pytest.raises(ValueError, match=r"rows of matrix_of_beta\(0\) must sum to 1"):
        schedules.mutual_information(lambda beta: torch.ones(3, 3), 5)
