"""Training times by the history of the losses."""

import pytest
import torch
from helpers.laws import FALSE_ALARM, assert_follows
from scipy import stats

from d3pm_fast.timesteps import ImportanceSampled

T = 6
LOSSES = torch.tensor([5.0, 0.1, 1.0, 0.0, 2.0, 0.4])
T_MIN = 0.1


def informed(num_steps=T, **options):
    """A history of one loss for each time, or for each bin."""
    options = {"bins": T, "t_min": T_MIN, "least": 1, "uniform_share": 0.05} | options
    times = ImportanceSampled(num_steps, **options)
    t = torch.arange(1, T + 1)
    if num_steps is None:
        t = T_MIN + (1 - T_MIN) * (t - 0.5).double() / T
    times.update(t, LOSSES)
    return times


def law():
    return 0.95 * LOSSES.double() / LOSSES.double().sum() + 0.05 / T


@pytest.mark.parametrize("low_discrepancy", [False, True])
@pytest.mark.parametrize("num_steps", [T, None])
def test_times_come_in_proportion_to_the_losses(num_steps, low_discrepancy):
    """In continuous time they are uniform in each bin: a bin has four parts here."""
    times, generator = informed(num_steps), torch.Generator().manual_seed(0)
    torch.testing.assert_close(times.probabilities, law(), rtol=1e-7, atol=0)
    draws, weights = zip(
        *(times.sample_t(2, low_discrepancy, generator) for _ in range(10_000)), strict=True
    )
    t, weight = torch.stack(draws), torch.stack(weights)
    if num_steps is None:
        assert t.dtype == torch.float64
        parts = ((t - T_MIN) / (1 - T_MIN) * 4 * T).long()
        assert_follows(parts, (law() / 4).repeat_interleave(4).expand(2, -1))
        place = parts // 4
    else:
        assert t.dtype == torch.int64
        assert_follows(t - 1, law().expand(2, -1))
        place = t - 1
    torch.testing.assert_close(weight, 1 / (T * law())[place], rtol=1e-7, atol=0)


def estimates(times, loss, count=40_000):
    t, weight = times.sample_t(count, generator=torch.Generator().manual_seed(1))
    return weight * loss(t)


@pytest.mark.parametrize("num_steps", [T, None])
def test_weighted_losses_have_the_mean_of_uniform_times(num_steps):
    """Whatever the history; of the losses that it is made of the variance is the least."""

    def seen(t):
        part = (t - T_MIN) / (1 - T_MIN) * T if num_steps is None else t - 1
        return LOSSES[part.long().clamp(max=T - 1)].double()

    def other(t):
        return 1 + (3 * t.double() / (T if num_steps else 1)).sin()

    middles = T_MIN + (1 - T_MIN) * (torch.arange(6000).double() + 0.5) / 6000
    grid = torch.arange(1, T + 1) if num_steps else middles
    for loss in (seen, other, torch.ones_like):
        sample = estimates(informed(num_steps), lambda t, f=loss: f(t).double())
        error = sample.mean() - loss(grid).double().mean()
        limit = stats.norm.isf(FALSE_ALARM / 2) * sample.std() / len(sample) ** 0.5
        assert abs(error) < limit
    unknown = ImportanceSampled(num_steps, bins=T, t_min=T_MIN)
    assert estimates(informed(num_steps), seen).var() < 0.1 * estimates(unknown, seen).var()


def test_the_history_is_a_mean_that_forgets():
    """A loss at a time: by hand, one after another; the plain mean of the first ones."""
    times = ImportanceSampled(2, decay=0.75, least=5)
    mean = 0.0
    for n, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]):
        assert (times.probabilities == 0.5).all()
        times.update(torch.tensor([1]), torch.tensor([value]))
        share = max(1 / (n + 1), 0.25)
        mean += share * (value**2 - mean)
        assert times.mean_square[0] == pytest.approx(mean)
    assert times.seen.tolist() == [6, 0]
    times.update(torch.tensor([[2, 2], [2, 2], [2, 2]]), torch.full((3, 2), 0.5))
    assert times.mean_square[1] == pytest.approx(0.25)
    ratio = (mean / 0.25) ** 0.5
    expected = 0.99 * ratio / (1 + ratio) + 0.005
    assert times.probabilities[0] == pytest.approx(expected)


def test_times_are_uniform_without_losses():
    for least, update in ((2, LOSSES), (1, torch.zeros(T))):
        times = ImportanceSampled(T, least=least)
        times.update(torch.arange(1, T + 1), update)
        assert (times.probabilities == 1 / T).all()
        t, weight = times.sample_t(7)
        assert t.shape == weight.shape == (7,)
        assert (weight == 1).all()


@pytest.mark.parametrize("num_steps", [T, None])
def test_what_is_no_loss_does_not_count(num_steps):
    times = informed(num_steps)
    before = times.mean_square.clone(), times.seen.clone()
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 7.0, 7.0])
    elsewhere = [0, T + 1] if num_steps else [0.05, -0.5]
    times.update(torch.tensor([1 if num_steps else 0.5] * 3 + elsewhere), values)
    assert torch.equal(times.mean_square, before[0])
    assert torch.equal(times.seen, before[1])
    empty = times.sample_t(0)
    assert empty[0].shape == empty[1].shape == (0,)
    times.update(empty[0], torch.zeros(0))
    assert torch.equal(times.seen, before[1])


def test_the_ends_of_continuous_time_are_in_the_bins():
    times = ImportanceSampled(None, bins=4, t_min=0.0, least=1)
    times.update(torch.tensor([0.0, 0.25, 1.0]), torch.tensor([1.0, 2.0, 3.0]))
    assert times.mean_square.tolist() == [1.0, 4.0, 0.0, 9.0]
    t, _ = times.sample_t(100_000)
    assert 0 < t.min() < t.max() < 1


def test_a_training_run_goes_on_with_its_history():
    times, again = informed(), ImportanceSampled(T, least=1, uniform_share=0.05)
    again.load_state_dict(times.state_dict())
    assert torch.equal(again.probabilities, times.probabilities)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    one, two = (m.sample_t(9, True, g) for m, g in zip((times, again), generators, strict=True))
    assert torch.equal(one[0], two[0])
    assert torch.equal(times.half().probabilities, again.probabilities)
    assert times.to("meta").mean_square.device.type == "meta"
    assert repr(again) == "ImportanceSampled(num_steps=6)"
    assert repr(ImportanceSampled(None)) == "ImportanceSampled(num_steps=None, bins=64, t_min=0.0)"


def test_no_gradient_goes_through_the_history():
    times, loss = ImportanceSampled(T), LOSSES.clone().requires_grad_()
    times.update(torch.arange(1, T + 1), loss)
    assert not times.mean_square.requires_grad


def bad_calls():
    yield lambda: ImportanceSampled(0), ValueError, "num_steps must be at least 1, got 0"
    yield lambda: ImportanceSampled(None, bins=0), ValueError, "bins must be at least 1, got 0"
    yield lambda: ImportanceSampled(T, decay=1.0), ValueError, r"decay must lie in \[0, 1\)"
    yield lambda: ImportanceSampled(T, least=0), ValueError, "least must be at least 1, got 0"
    yield lambda: ImportanceSampled(T, uniform_share=0.0), ValueError, r"must lie in \(0, 1\]"
    yield lambda: ImportanceSampled(None, t_min=1.0), ValueError, r"t_min must lie in \[0, 1\)"
    t = torch.tensor([1, 2])
    yield lambda: informed().update(t.double(), LOSSES[:2]), TypeError, "t must be an integer"
    yield lambda: informed(None).update(t, LOSSES[:2]), TypeError, "t must be a float tensor"
    yield lambda: informed().update(t, LOSSES), ValueError, "loss must have shape"
    yield lambda: informed().update(t, t), TypeError, "loss must be float32"


@pytest.mark.parametrize(("call", "error", "message"), list(bad_calls()))
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
