"""Noise schedules against formulas written down a second time, in 30 digits."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf

from d3pm_fast import schedules, transitions

STEPS = [1, 2, 7, 1000]


@pytest.fixture(autouse=True)
def thirty_digits():
    with mpmath.workdps(30):
        yield


def alpha_bars(betas):
    """``(1 - beta_1) ... (1 - beta_t)`` for t = 0..T, multiplied out."""
    bars = [mpf(1)]
    for beta in betas.tolist():
        bars.append(bars[-1] * (1 - mpf(beta)))
    return bars


def betas_of(bars):
    return [1 - after / before for before, after in zip(bars, bars[1:], strict=False)]


def assert_equals(actual, truth, rtol=1e-13):
    truth = torch.tensor([float(v) for v in truth], dtype=torch.float64)
    torch.testing.assert_close(actual, truth, rtol=rtol, atol=1e-300)


def cosine_bars(num_steps, offset, power):
    """``(g(t/T) / g(0))^power`` with ``g(r) = cos((r + s)/(1 + s) pi/2)``; 0 at t = T."""
    offset = mpf(offset)
    g = [
        mpmath.cos((mpf(t) / num_steps + offset) / (1 + offset) * mpmath.pi / 2)
        for t in range(num_steps)
    ]
    return [(value / g[0]) ** power for value in g] + [mpf(0)]


ALL = {
    "linear": schedules.linear,
    "quadratic": schedules.quadratic,
    "sigmoid": schedules.sigmoid,
    "cosine": schedules.cosine,
    "cosine_multinomial": schedules.cosine_multinomial,
    "cosine_squared": schedules.cosine_squared,
    "jsd": schedules.jsd,
}


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("name", ALL)
def test_every_schedule_is_float64_of_length_t_within_0_and_1(name, num_steps):
    betas = ALL[name](num_steps)
    assert betas.dtype == torch.float64
    assert betas.shape == (num_steps,)
    assert bool(((betas >= 0) & (betas <= 1)).all())


@pytest.mark.parametrize("num_steps", STEPS[1:])
@pytest.mark.parametrize("name", ALL)
def test_betas_of_every_schedule_grow(name, num_steps):
    assert bool((ALL[name](num_steps).diff() >= 0).all())


@pytest.mark.parametrize("num_steps", STEPS)
def test_linear_is_a_straight_line(num_steps):
    expected = [mpf(0.02) + (1 - mpf(0.02)) * t / max(num_steps - 1, 1) for t in range(num_steps)]
    assert_equals(schedules.linear(num_steps, 0.02, 1.0), expected)


def test_linear_defaults_are_those_of_ddpm():
    betas = schedules.linear(1000)
    assert betas[0] == 1e-4
    assert betas[-1] == 0.02


@pytest.mark.parametrize("num_steps", STEPS)
def test_quadratic_is_a_straight_line_of_square_roots(num_steps):
    low, high = mpmath.sqrt(mpf(1e-4)), mpmath.sqrt(mpf(0.02))
    expected = [(low + (high - low) * t / max(num_steps - 1, 1)) ** 2 for t in range(num_steps)]
    assert_equals(schedules.quadratic(num_steps), expected)


@pytest.mark.parametrize("num_steps", STEPS)
def test_sigmoid_is_the_logistic_curve_between_minus_six_and_six(num_steps):
    x = [-6 + mpf(12) * t / max(num_steps - 1, 1) for t in range(num_steps)]
    low, high = mpf(1e-4), mpf(0.02)
    expected = [low + (high - low) / (1 + mpmath.exp(-v)) for v in x]
    assert_equals(schedules.sigmoid(num_steps), expected)


@pytest.mark.parametrize("offset", [0.0, 0.008, 0.5])
@pytest.mark.parametrize("num_steps", STEPS)
def test_cosine_is_the_papers_not_squared(num_steps, offset):
    assert_equals(
        schedules.cosine(num_steps, offset), betas_of(cosine_bars(num_steps, offset, 1)), rtol=1e-11
    )


@pytest.mark.parametrize("offset", [0.0, 0.008, 0.5])
@pytest.mark.parametrize("num_steps", STEPS)
def test_cosine_squared_is_that_of_improved_ddpm(num_steps, offset):
    assert_equals(
        schedules.cosine_squared(num_steps, offset),
        betas_of(cosine_bars(num_steps, offset, 2)),
        rtol=1e-11,
    )


@pytest.mark.parametrize("num_steps", STEPS)
def test_cosine_multinomial_is_that_of_multinomial_diffusion(num_steps):
    squared = cosine_bars(num_steps, 0.008, 2)
    ratios = [after / before for before, after in zip(squared, squared[1:], strict=False)]
    expected = [1 - mpmath.sqrt(max(ratio, mpf("0.001"))) for ratio in ratios]
    assert_equals(schedules.cosine_multinomial(num_steps), expected, rtol=1e-11)


@pytest.mark.parametrize("name", ["cosine", "cosine_squared", "jsd"])
def test_nothing_of_the_data_is_left_at_t(name):
    """D3, D19: the grid is t/T, and the last step takes all that is left."""
    betas = ALL[name](100)
    assert betas[-1] == 1.0
    assert bool((betas[:-1] < 1).all())


@pytest.mark.parametrize("name", ["cosine", "cosine_squared"])
def test_max_beta_bounds_every_beta_and_changes_no_other(name):
    free, bounded = ALL[name](50), ALL[name](50, max_beta=0.3)
    assert torch.equal(bounded, free.clamp(max=0.3))


@pytest.mark.parametrize("num_steps", STEPS)
def test_jsd_loses_the_same_share_of_the_tokens_each_step(num_steps):
    """D13: alpha_bar_t = 1 - t/T to the last step."""
    bars = alpha_bars(schedules.jsd(num_steps))
    for t, bar in enumerate(bars):
        assert abs(bar - (1 - mpf(t) / num_steps)) < 1e-13


@pytest.mark.parametrize("name", ALL)
def test_alpha_bars_round_trip(name):
    betas = ALL[name](40)
    bars = torch.tensor([float(b) for b in alpha_bars(betas)[1:]], dtype=torch.float64)
    assert_equals(schedules.from_alpha_bars(bars), [mpf(b) for b in betas.tolist()], rtol=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_any_betas_survive_their_alpha_bars(values):
    bars = torch.tensor(values, dtype=torch.float64).sort(descending=True).values
    betas = schedules.from_alpha_bars(bars)
    torch.testing.assert_close((1 - betas).cumprod(0), bars, rtol=1e-12, atol=1e-15)


def test_beta_is_one_where_nothing_is_left_to_lose():
    betas = schedules.from_alpha_bars([0.5, 0.0, 0.0])
    assert betas.tolist() == [0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    "values",
    [[0.1, 0.2], (0.1, 0.2), np.array([0.1, 0.2]), torch.tensor([0.1, 0.2], dtype=torch.float64)],
    ids=["list", "tuple", "numpy", "tensor"],
)
def test_your_own_betas_come_back_exactly(values):
    assert schedules.from_betas(values).tolist() == [0.1, 0.2]


def test_your_own_betas_are_copied():
    values = torch.tensor([0.1, 0.2], dtype=torch.float64)
    betas = schedules.from_betas(values)
    values.zero_()
    assert betas.tolist() == [0.1, 0.2]


def test_betas_of_a_tensor_that_needs_a_gradient_are_detached():
    betas = schedules.from_betas(torch.tensor([0.5], requires_grad=True))
    assert not betas.requires_grad


def share_left(law, matrix):
    """``I(x_t; x_0) / H(x_0)`` in 30 digits."""
    p = [mpf(v) for v in law.tolist()]
    q = [[mpf(v) for v in row] for row in matrix.tolist()]
    total = mpf(0)
    for j in range(len(p)):
        m = mpmath.fsum(p[i] * q[i][j] for i in range(len(p)))
        for i in range(len(p)):
            if p[i] * q[i][j] > 0:
                total += p[i] * q[i][j] * mpmath.log(q[i][j] / m)
    return total / -mpmath.fsum(v * mpmath.log(v) for v in p if v > 0)


def data_law(num_classes, empty=()):
    law = 1.0 + torch.arange(num_classes, dtype=torch.float64)
    law[list(empty)] = 0
    return law / law.sum()


def absorbing_matrix(beta):
    return transitions.absorbing(5, [beta], 4).q_matrix(1)


ABSORBING_RATE = absorbing_matrix(1.0) - torch.eye(5).double()


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_mutual_information_of_a_mask_is_jsd(num_steps):
    """D13: the grid is t/T. D3PM, appendix A.7: exactly 1/(T - t + 1)."""
    betas = schedules.mutual_information(absorbing_matrix, num_steps, data_law(5, empty=[4]))
    torch.testing.assert_close(betas, schedules.jsd(num_steps), rtol=1e-12, atol=0)
    assert betas[-1] == 1.0


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_mutual_information_times_of_a_mask_are_logarithms(num_steps):
    law = data_law(5, empty=[4])
    times = schedules.mutual_information_times(ABSORBING_RATE, num_steps, law, remainder=1e-3)
    left = [1 - mpf(t) / num_steps for t in range(1, num_steps)] + [mpf(1e-3)]
    assert_equals(times, [-mpmath.log(share) for share in left], rtol=1e-11)


@pytest.mark.parametrize("law", [None, data_law(6)], ids=["uniform", "given"])
@pytest.mark.parametrize("family", ["uniform", "discretized_gaussian"])
def test_mutual_information_loses_the_same_share_each_step(family, law):
    def matrix(beta):
        return getattr(transitions, family)(6, [beta]).q_matrix(1)

    betas = schedules.mutual_information(matrix, 8, law)
    product, sixths = torch.eye(6).double(), torch.full((6,), 1 / 6, dtype=torch.float64)
    reached = False
    for t, beta in enumerate(betas.tolist(), start=1):
        product = product @ matrix(beta)
        left = share_left(sixths if law is None else law, product)
        reached = reached or beta == 1.0
        if not reached:
            assert abs(left - (1 - mpf(t) / 8)) < 1e-14
    assert betas[-1] == 1.0
    assert bool((betas[:4] < 0.5).all())


def test_mutual_information_times_solve_for_any_rate():
    rate = transitions.nearest_neighbor_rate(torch.randn(10, 3, dtype=torch.float64), 4)
    law = data_law(10, empty=[3])
    times = schedules.mutual_information_times(rate, 6, law)
    assert bool((times.diff() > 0).all())
    for t, time in enumerate(times.tolist(), start=1):
        left = share_left(law, transitions.rate_exponential(rate, time))
        truth = 1 - mpf(t) / 6 if t < 6 else mpf(1e-5)
        assert abs(left / truth - 1) < 1e-9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.mutual_information(absorbing_matrix, 0), "num_steps"),
        (lambda: schedules.mutual_information(absorbing_matrix, 3, [0.5, 0.5]), "p0"),
        (lambda: schedules.mutual_information(absorbing_matrix, 3, [0, 1, 0, 0, 0]), "two classes"),
        (lambda: schedules.mutual_information_times(ABSORBING_RATE, 0), "num_steps"),
        (lambda: schedules.mutual_information_times(ABSORBING_RATE, 3, [1.0]), "p0"),
        (lambda: schedules.mutual_information_times(ABSORBING_RATE, 3, remainder=0.0), "remainder"),
        (lambda: schedules.mutual_information_times(ABSORBING_RATE, 3, remainder=0.5), "remainder"),
        (lambda: schedules.mutual_information_times(torch.zeros(3, 3), 3), "3 sets of classes"),
    ],
)
def test_mutual_information_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
