"""Drawing t, and the times of a sampler."""

import pytest
import torch
from helpers.laws import assert_follows
from hypothesis import given
from hypothesis import strategies as st

from d3pm_fast import timesteps

DRAWS = [timesteps.uniform, timesteps.low_discrepancy]


@pytest.mark.parametrize("draw", DRAWS)
def test_times_are_int64_between_1_and_t(draw):
    t = draw(5, 1000)
    assert t.dtype == torch.int64
    assert t.shape == (1000,)
    assert set(t.tolist()) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("draw", DRAWS)
def test_a_single_step_has_one_time(draw):
    assert draw(1, 3).tolist() == [1, 1, 1]


@pytest.mark.parametrize("draw", DRAWS)
def test_an_empty_batch_has_no_times(draw):
    assert draw(7, 0).shape == (0,)


@pytest.mark.parametrize("draw", DRAWS)
def test_the_generator_decides(draw):
    one, two = (draw(1000, 64, torch.Generator().manual_seed(3)) for _ in range(2))
    other = draw(1000, 64, torch.Generator().manual_seed(4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("draw", DRAWS)
def test_each_item_is_uniform_on_1_to_t_with_t_itself(draw):
    """D3: the last time is drawn as often as any other."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([draw(6, 3, generator) for _ in range(6000)])
    assert_follows(draws - 1, torch.full((3, 6), 1 / 6).double())


@pytest.mark.parametrize(("num_steps", "batch"), [(4, 12), (10, 30), (7, 7)])
def test_low_discrepancy_covers_every_time_equally(num_steps, batch):
    for _ in range(20):
        counts = timesteps.low_discrepancy(num_steps, batch).bincount(minlength=num_steps + 1)[1:]
        assert (counts - batch // num_steps).abs().max() <= 1
        assert counts.sum() == batch


@given(st.integers(1, 300), st.data())
def test_strided_goes_from_t_to_zero_in_even_strides(num_steps, data):
    """D12: no noise level is left out at the top, none at the bottom."""
    steps = data.draw(st.integers(1, num_steps))
    times = timesteps.strided(num_steps, steps)
    strides = {a - b for a, b in zip(times, times[1:], strict=False)}
    assert times[0] == num_steps
    assert times[-1] == 0
    assert len(times) == steps + 1
    assert min(strides) >= 1
    assert max(strides) - min(strides) <= 1


def test_strided_by_default_makes_every_step():
    assert timesteps.strided(4) == [4, 3, 2, 1, 0]


def test_a_path_is_strided_or_as_given():
    assert timesteps.path(10, 4) == timesteps.strided(10, 4)
    assert timesteps.path(4) == [4, 3, 2, 1, 0]
    for times in ([10, 7, 1], range(10, 0, -3), torch.tensor([10])):
        assert timesteps.path(10, times) == [*map(int, times), 0]
