"""The recipes of ``docs/trainers.md`` do what the page says: on two ranks, all in one run."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from helpers import ranks
from helpers.compare import assert_comparison_catches_mutations, assert_gradient_close
from helpers.once import once

from d3pm_fast import functional

PAGE = ranks.page()
MASK = PAGE["MASK"]
HOSTS = ["accelerate", "lightning", "transformers"]
NAMES = [recipe.__name__ for recipe in ranks.RECIPES]


@pytest.fixture(scope="module")
def seen():
    """What each rank's recipes saw: see ``ranks.Recorder``."""
    missing = [host for host in HOSTS if importlib.util.find_spec(host) is None]
    if missing or not torch.distributed.is_gloo_available():
        pytest.skip(f"not installed: {missing or 'gloo'}")
    folder = once("ranks", ranks.run)
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks.RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", NAMES)
def test_ranks_draw_different_times_and_noise(seen, recipe):
    (x0, x_t, t), (other_x0, other_x_t, other_t) = (tokens(rank[recipe]) for rank in seen)
    assert x0.shape == other_x0.shape == (ranks.ITEMS // ranks.RANKS, ranks.POSITIONS)
    assert not torch.equal(x0, other_x0)
    assert not bool((t == other_t).any())
    # Of the same numbers, a later time would mask all that the earlier one does.
    masked, other_masked = x_t == MASK, other_x_t == MASK
    is_earlier = (t < other_t)[:, None]
    assert bool((is_earlier & masked & ~other_masked).any())
    assert bool((~is_earlier & other_masked & ~masked).any())


def tokens(steps):
    """x0, x_t and t of all losses of all steps."""
    each = zip(*(loss[:3] for losses, _, _ in steps for loss in losses), strict=True)
    return [torch.cat(parts) for parts in each]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", NAMES)
def test_the_gradient_is_that_of_one_process_with_all_data(seen, recipe):
    """The mean over all tokens that count, of all ranks and micro-batches."""
    steps = list(zip(*(rank[recipe] for rank in seen), strict=True))
    assert len(steps) == ranks.STEPS
    for of_ranks in steps:
        weights = of_ranks[0][1]
        truth = gradient_of(weights, [loss for losses, _, _ in of_ranks for loss in losses])
        for rank in of_ranks:
            for found, expected in zip(rank[2], truth, strict=True):
                assert_gradient_close(found.flatten(), expected.flatten(), torch.float64, 64)
        options = {"dtype": torch.float64, "ulps": 64}
        assert_comparison_catches_mutations(truth[1].flatten(), **options)


def gradient_of(weights, losses):
    """Gradient of the mean over the tokens of all losses, by the reference."""
    embed, head, bias = (weight.requires_grad_() for weight in weights)
    total, count = 0.0, 0
    for x0, x_t, t, mask in losses:
        logits = F.pad(F.linear(embed[x_t], head, bias), (0, 1), value=-torch.inf)
        options = {"mask": mask, "reduction": "sum", "impl": "reference"}
        total = total + functional.loss(PAGE["transition"], logits, x0, x_t, t, **options)
        count += x0.numel() if mask is None else int(mask.sum())
    return torch.autograd.grad(total / count, (embed, head, bias))


def test_the_ten_lines_sample_no_mask():
    x = PAGE["diffusion"].sample(PAGE["denoiser"], (64, 16), steps=8)
    assert not bool((x == MASK).any())
