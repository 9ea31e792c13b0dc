"""Matrix exponentials entry by entry against mpmath, and where chains end."""

import mpmath
import pytest
import torch
from mpmath import mpf

from d3pm_fast import schedules, transitions
from d3pm_fast.chains.limits import closure, stationary_law

RISING = torch.tensor([0.1, 0.5, 2.0, 2.0], dtype=torch.float64)


def rate_of(matrix):
    matrix = torch.as_tensor(matrix, dtype=torch.float64).clone().fill_diagonal_(0)
    return matrix - torch.diag(matrix.sum(1))


def line(num_classes, up=1.0, down=0.3):
    """Moves to the next class and back: the corner needs K - 1 jumps."""
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.float64)
    matrix.diagonal(1).fill_(up)
    matrix.diagonal(-1).fill_(down)
    return rate_of(matrix)


def absorbing_rate(num_classes, speed=1.0):
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.float64)
    matrix[:-1, -1] = speed
    return rate_of(matrix)


def random_rate(num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.rand(num_classes, num_classes, dtype=torch.float64, generator=generator)
    return rate_of(matrix * (matrix > 0.4) * 10 ** (8 * matrix - 6))


RATES = {
    "line": line(7),
    "one way": line(7, down=0.0),
    "absorbing": absorbing_rate(5),
    "random": random_rate(8),
    "two classes": rate_of([[0, 3.0], [1e-9, 0]]),
    "apart": torch.block_diag(line(3), line(2)),
    "nothing": torch.zeros(3, 3, dtype=torch.float64),
}


def exact_exponential(rate, time):
    """``exp(time rate)`` in digits enough for cancellation, from the off-diagonal rates alone."""
    size = len(rate)
    with mpmath.workdps(700):
        matrix = mpmath.matrix(size, size)
        for i in range(size):
            for j in range(size):
                if i != j:
                    matrix[i, j] = mpf(rate[i, j].item()) * mpf(time)
            matrix[i, i] = -mpmath.fsum(matrix[i, j] for j in range(size) if j != i)
        halvings = max(0, int(mpmath.ceil(mpmath.log(mpmath.mnorm(matrix, 1) + 1, 2))))
        matrix /= 2**halvings
        result = term = mpmath.eye(size)
        for n in range(1, 60):
            term = term * matrix / n
            result = result + term
        for _ in range(halvings):
            result = result * result
        return torch.tensor(
            [[float(result[i, j]) for j in range(size)] for i in range(size)], dtype=torch.float64
        )


@pytest.mark.parametrize("time", [0.0, 1e-40, 1e-8, 0.3, 7.0, 2e4])
@pytest.mark.parametrize("name", RATES)
def test_every_entry_is_that_of_the_exponential(name, time):
    rate = RATES[name]
    actual, truth = transitions.rate_exponential(rate, time), exact_exponential(rate, time)
    assert torch.equal(actual == 0, truth == 0)
    # exp(-x) has x times the relative error of x.
    rtol = 1e-13 + 1e-15 * time * float(rate.abs().max())
    torch.testing.assert_close(actual, truth, rtol=rtol, atol=1e-305)
    assert float((actual.sum(1) - 1).abs().max()) < 1e-15


def test_an_entry_of_1e_minus_250_is_accurate():
    """D4: float32 products end at 1e-45, sums with cancellation at 1e-16."""
    rate, time = line(60), 1e-3
    entry = transitions.rate_exponential(rate, time)[0, 59]
    # The one path of 59 jumps; the chance of leaving it changes the rest by 1e-3 or so.
    with mpmath.workdps(60):
        shortest = mpf(time) ** 59 / mpmath.factorial(59)
    assert 0 < entry < 1e-250
    assert float(entry) == pytest.approx(float(shortest), rel=2e-3)
    half = transitions.rate_exponential(rate, time / 2)
    assert float((half @ half)[0, 59]) == pytest.approx(float(entry), rel=1e-13)


def test_long_times_reach_the_stationary_law():
    rate = random_rate(6)
    law = stationary_law(rate)
    limit = transitions.rate_exponential(rate, 1e9)
    torch.testing.assert_close(limit, law.expand(6, 6), rtol=1e-12, atol=0)


def test_absorbing_rate_gives_one_minus_exp():
    """D3PM, appendix A.6: ``beta = 1 - exp(-alpha)``."""
    for time in (1e-20, 0.1, 3.0):
        matrix = transitions.rate_exponential(absorbing_rate(4), time)
        beta = -torch.expm1(torch.tensor(-time, dtype=torch.float64))
        torch.testing.assert_close(matrix[:3, 3], beta.expand(3), rtol=1e-14, atol=0)


def test_from_rate_multiplies_to_the_exponential_of_its_times():
    rate = random_rate(5)
    chain = transitions.from_rate(rate, RISING)
    for t, time in enumerate([0.0, *RISING.tolist()]):
        torch.testing.assert_close(
            chain.q_bar_matrix(t), transitions.rate_exponential(rate, time), rtol=1e-13, atol=0
        )
    assert torch.equal(chain.q_matrix(4), torch.eye(5).double())
    torch.testing.assert_close(chain.stationary(), stationary_law(rate), rtol=1e-14, atol=0)


def test_from_rate_sets_the_diagonal_anew():
    rate = line(4).float().double() + 1e-8 * torch.eye(4).double()
    chain = transitions.from_rate(rate, [1.0])
    assert float((chain.q_matrix(1).sum(1) - 1).abs().max()) < 1e-15


def test_closure_says_what_can_be_reached_and_how_soon():
    reached, steps = closure(line(6, down=0.0))
    assert torch.equal(reached, torch.ones(6, 6).triu().bool())
    assert 5 <= steps <= 8


def test_stationary_law_of_two_classes_is_exact():
    law = stationary_law(rate_of([[0, 3.0], [1e-30, 0]]))
    assert law[0] == pytest.approx(1e-30 / 3, rel=1e-15)
    assert law[1] == 1.0


@pytest.mark.parametrize("name", ["line", "random", "absorbing", "one way"])
def test_stationary_law_keeps_to_itself(name):
    rate = RATES[name]
    law = stationary_law(rate)
    assert float(law.sum()) == pytest.approx(1, rel=1e-15)
    step = transitions.rate_exponential(rate, 0.7)
    torch.testing.assert_close(law @ step, law, rtol=1e-13, atol=1e-18)


def test_stationary_law_of_symmetric_rates_is_exactly_uniform():
    assert stationary_law(line(7, 0.3, 0.3)).tolist() == [1 / 7] * 7


def test_classes_left_for_good_have_no_stationary_probability():
    assert stationary_law(absorbing_rate(5)).tolist() == [0, 0, 0, 0, 1]
    rate = torch.block_diag(torch.zeros(1, 1).double(), line(3, 0.5, 0.5))
    rate[0, 2] = 1.0
    torch.testing.assert_close(
        stationary_law(rate), torch.tensor([0, 1, 1, 1]).double() / 3, rtol=1e-15, atol=0
    )


def test_a_chain_in_parts_needs_a_stationary_law_of_yours():
    with pytest.raises(ValueError, match="2 sets of classes"):
        transitions.from_rate(RATES["apart"], RISING)
    chain = transitions.from_rate(RATES["apart"], RISING, stationary=[0.2] * 5)
    assert chain.stationary().tolist() == [0.2] * 5


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (torch.zeros(3), "shape"),
        (torch.zeros(2, 3), "shape"),
        (torch.zeros(1, 1), "shape"),
        (rate_of([[0, 1.0], [torch.inf, 0]]), "finite"),
        (torch.tensor([[1.0, -1.0], [0.0, 0.0]]), r"not be negative off the diagonal.*\(0, 1\)"),
        (torch.tensor([[-1.0, 1.0], [0.5, 0.5]]), "row 1 sums to 1"),
    ],
)
def test_what_is_no_rate_is_refused(rate, message):
    for call in (
        lambda: transitions.rate_exponential(rate, 1.0),
        lambda: transitions.from_rate(rate, RISING),
        lambda: schedules.mutual_information_times(rate, 4),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("time", [-1.0, float("inf"), float("nan")])
def test_time_must_be_finite_and_not_negative(time):
    with pytest.raises(ValueError, match="time"):
        transitions.rate_exponential(line(3), time)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([], "shape"),
        ([[1.0]], "shape"),
        ([1.0, float("inf")], "finite.* t = 2"),
        ([-1.0, 1.0], "t = 1"),
        ([2.0, 3.0, 1.0], "never fall, got 1 at t = 3"),
    ],
)
def test_times_must_rise(times, message):
    with pytest.raises(ValueError, match=message):
        transitions.from_rate(line(3), times)


@pytest.mark.parametrize("law", [[0.5, 0.5], [0.5, 0.6, 0.0], [1.5, -0.5, 0.0]])
def test_a_stationary_vector_must_be_a_law(law):
    with pytest.raises(ValueError, match="stationary"):
        transitions.from_rate(line(3), RISING, stationary=law)
