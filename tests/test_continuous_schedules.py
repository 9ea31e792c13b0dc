"""Schedules of continuous time against their formulas in 60 digits, at both ends above all."""

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf

from d3pm_fast import schedules
from d3pm_fast.schedules import continuous

PI = mpmath.pi
FORMULAS = {
    "linear": (continuous.linear(), lambda t: 1 - t),
    "log_linear": (continuous.log_linear(), lambda t: 1 - (1 - mpf(1e-3)) * t),
    "log_linear to the end": (continuous.log_linear(0.0), lambda t: 1 - t),
    "cosine": (continuous.cosine(), lambda t: mpmath.cos(PI / 2 * t)),
    "cosine_squared": (continuous.cosine_squared(), lambda t: mpmath.cos(PI / 2 * t) ** 2),
    "cosine_maskgit": (continuous.cosine_maskgit(), lambda t: 1 - mpmath.cos(PI / 2 * (1 - t))),
    "polynomial": (continuous.polynomial(3), lambda t: 1 - t**3),
    "polynomial, half": (continuous.polynomial(0.5), lambda t: 1 - mpmath.sqrt(t)),
    "geometric": (
        continuous.geometric(1e-4, 20.0),
        lambda t: mpmath.exp(-(mpf(1e-4) ** (1 - t)) * mpf(20) ** t),
    ),
    "linear_sigma": (continuous.linear_sigma(20.0), lambda t: mpmath.exp(-20 * t)),
    "linear_sigma from a noise": (
        continuous.linear_sigma(5.0, 0.25),
        lambda t: mpmath.exp(-(mpf(0.25) + mpf(4.75) * t)),
    ),
}
TIMES = [0.0, 1e-300, 1e-12, 1e-3, 0.25, 0.37, 0.5, 0.9, 1 - 1e-3, 1 - 1e-12, 1.0]


@pytest.fixture(params=FORMULAS)
def formula(request):
    """A schedule, and its alpha in many digits."""
    with mpmath.workdps(700):  # of 1 - alpha(1e-300), too
        yield FORMULAS[request.param]


def assert_equals(actual, truth, rtol=1e-13):
    assert actual.dtype == torch.float64
    truth = torch.tensor([float(value) for value in truth], dtype=torch.float64)
    torch.testing.assert_close(actual, truth, rtol=rtol, atol=0)


def exact_rate(alpha, t):
    """``-alpha'/alpha`` by a difference over a tiny step, its error far below float64's."""
    step = mpf(10) ** -320 if t == 0 else t * mpf(10) ** -40
    after = alpha(t) - alpha(t + step) if t < 1 else alpha(t - step) - alpha(t)
    return after / step / alpha(t) if alpha(t) > mpf(10) ** -300 else mpmath.inf


def test_alpha_and_what_is_lost(formula):
    schedule, alpha = formula
    t = torch.tensor(TIMES, dtype=torch.float64)
    assert_equals(schedule.alpha(t)[:-1], [alpha(mpf(time)) for time in TIMES[:-1]])
    end = float(alpha(mpf(1)))
    assert float(schedule.alpha(1.0)) == pytest.approx(end, rel=1e-14, abs=1e-300)
    assert_equals(schedule.one_minus_alpha(t), [1 - alpha(mpf(time)) for time in TIMES])


def test_rate(formula):
    schedule, alpha = formula
    times = [time for time in TIMES if 0 < time < 1]
    t = torch.tensor(times, dtype=torch.float64)
    assert_equals(schedule.rate(t), [exact_rate(alpha, mpf(time)) for time in times])
    kept = schedule.alpha(torch.ones(()).double())
    assert bool(schedule.rate(1.0).isinf()) == (kept == 0)


@pytest.mark.parametrize("num_steps", [1, 2, 1000])
def test_betas_of_equal_steps(formula, num_steps):
    schedule, alpha = formula
    kept = [mpf(1), *(alpha(mpf(t) / num_steps) for t in range(1, num_steps + 1))]
    betas = [1 - after / before for before, after in zip(kept, kept[1:], strict=False)]
    assert_equals(schedule.betas(num_steps), betas, rtol=1e-11)


def test_finite_schedules_are_those_of_equal_steps():
    def alike(left, right):
        torch.testing.assert_close(left, right, rtol=1e-11, atol=0)

    alike(continuous.linear().betas(100), schedules.jsd(100))
    alike(continuous.cosine().betas(100), schedules.cosine(100, offset=0.0))
    alike(continuous.cosine_squared().betas(100), schedules.cosine_squared(100, offset=0.0))


@given(
    st.sampled_from(sorted(FORMULAS)),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_beta_is_what_a_step_loses(name, a, b):
    schedule, alpha = FORMULAS[name]
    s, t = sorted((a, b))
    with mpmath.workdps(700):
        truth = 1 - alpha(mpf(t)) / alpha(mpf(s)) if alpha(mpf(s)) > 1e-300 else mpf(1)
        # An ulp of alpha, or of 1 - alpha, is all that can be lost.
        least = min(alpha(mpf(s)), 1 - alpha(mpf(t))) * mpf(2) ** -50 / alpha(mpf(s))
        found = float(schedule.beta(s, t))
    assert 0 <= found <= 1
    assert abs(found - truth) <= 1e-13 * truth + least + mpf(1e-300)


def test_any_alpha():
    def alpha(t):
        return 1 - t**2 / 2

    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    by_autograd = continuous.from_alpha(alpha)
    torch.testing.assert_close(by_autograd.rate(t), t / alpha(t), rtol=1e-14, atol=0)
    assert not by_autograd.rate(t).requires_grad
    own = continuous.from_alpha(alpha, lambda t: 7 * t, lambda t: t**2 / 2)
    assert torch.equal(own.rate(t), 7 * t)
    tiny = torch.tensor(1e-9, dtype=torch.float64)
    assert float(own.one_minus_alpha(tiny)) == pytest.approx(5e-19, rel=1e-14)
    assert repr(own).startswith("_OfAlpha(of_t=")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: continuous.log_linear(1.0), "eps must lie in [0, 1)"),
        (lambda: continuous.polynomial(0), "power must be above 0"),
        (lambda: continuous.geometric(0.0, 1.0), "sigma_min"),
        (lambda: continuous.linear_sigma(1.0, 2.0), "sigma_min"),
        (lambda: continuous.from_alpha(lambda t: t), "never grow"),
        (lambda: continuous.from_alpha(lambda t: 2 - t), "lie in [0, 1]"),
        (lambda: continuous.from_alpha(lambda t: 1 - t.float()), "float64"),
        (lambda: continuous.linear().alpha(1.5), "t must lie in [0, 1]"),
        (lambda: continuous.linear().rate(torch.tensor([0.5, torch.nan])), "t must lie"),
        (lambda: continuous.linear().betas(0), "num_steps"),
    ],
)
def test_what_is_no_schedule_is_refused(make, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[").replace(")", r"\)")):
        make()


def test_shapes_and_devices_are_kept():
    t = torch.rand(2, 3, dtype=torch.float64)
    for schedule, _ in FORMULAS.values():
        for value in (schedule.alpha(t), schedule.one_minus_alpha(t), schedule.rate(t)):
            assert value.shape == t.shape
    assert continuous.cosine().alpha(torch.empty(3, device="meta")).is_meta
    assert continuous.linear().times(4).tolist() == [0.25, 0.5, 0.75, 1.0]


def test_schedules_are_plain_values(tmp_path):
    schedule = continuous.geometric(1e-4, 20.0)
    assert schedule == continuous.geometric(sigma_min=1e-4, sigma_max=20.0) != continuous.linear()
    assert repr(continuous.log_linear()) == "log_linear(eps=0.001)"
    torch.save(schedule, tmp_path / "schedule")
    assert torch.load(tmp_path / "schedule", weights_only=True) == schedule
