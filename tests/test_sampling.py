"""The ancestral sampler: its law by enumeration of every path, and what it promises."""

import warnings

import pytest
import torch
from helpers.chains import FIRST_STEP, REVERSE, make_chain, one_hot, true_p_posterior
from helpers.dense_chains import make_dense_chain
from helpers.laws import assert_follows, assert_rate
from helpers.paths import (
    as_denoiser,
    every_state,
    exact_log_predictions,
    model_law,
    product_law,
)

import d3pm_fast as d3
from d3pm_fast import timesteps
from d3pm_fast._reuse import Reuse
from d3pm_fast.samplers import confidence, first_hitting
from d3pm_fast.sampling import ancestral

BETAS = torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64)
RANK_ONE = ["uniform", "absorbing_middle", "marginal_with_zeros", "mask_and_uniform"]
FAMILIES = [*RANK_ONE, "gaussian", "with_mask", "sparse"]
K, T, TOKENS, DRAWS = 3, 3, 2, 6_000


def make(family):
    return (make_chain if family in RANK_ONE else make_dense_chain)(family, K, BETAS)


def random_table(num_classes=K, num_tokens=TOKENS, seed=0):
    """Logits of every time and state, ``(T + 1, K^P, P, K)``."""
    shape = T + 1, num_classes**num_tokens, num_tokens, num_classes
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def numbers(x, num_classes=K):
    """The number of the state that each item is in, as a column."""
    return sum(x[:, n] * num_classes ** (x.shape[1] - 1 - n) for n in range(x.shape[1]))[:, None]


@pytest.mark.parametrize("steps", [None, 2, (3, 1)])
@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_law_is_that_of_all_paths(family, reverse, first_step, steps):
    chain, states, table = make(family), every_state(K, TOKENS), random_table()
    model = {"reverse": reverse, "first_step": first_step}
    law = model_law(chain, table.__getitem__, states, timesteps.path(T, steps), **model)
    x = d3.D3PM(chain.transition, **model).sample(
        as_denoiser(table.__getitem__, K), (DRAWS, TOKENS), steps, torch.Generator().manual_seed(1)
    )
    assert_follows(numbers(x), law[None])


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", ["uniform", "absorbing_middle", "gaussian"])
def test_the_last_step_may_take_the_likeliest_class(family, reverse, first_step):
    chain, states, table = make(family), every_state(K, TOKENS), random_table()
    model = {"reverse": reverse, "first_step": first_step}
    rows = [
        true_p_posterior(chain, table[1, :, n], states[:, n], 0, 1, **model) for n in range(TOKENS)
    ]
    likeliest = one_hot(torch.stack(rows, dim=1).argmax(-1), K)
    before = model_law(chain, table.__getitem__, states, [3, 2, 1], **model)
    x = d3.D3PM(chain.transition, **model).sample(
        as_denoiser(table.__getitem__, K),
        (DRAWS, TOKENS),
        generator=torch.Generator().manual_seed(2),
        last="argmax",
    )
    assert_follows(numbers(x), (before @ product_law(likeliest, states))[None])


def test_of_equally_likely_classes_the_lowest_is_taken(impl):
    diffusion = d3.D3PM(make("uniform").transition, first_step="logits", impl=impl)
    logits = torch.tensor([0.0, 1.0, 1.0])
    x = diffusion.sample(lambda x_t, t: logits.expand(*x_t.shape, K), (5, 4), last="argmax")
    assert (x == 1).all()


def test_rare_classes_come_at_their_rate(cpu):
    """Through all steps of an absorbing chain a token has the class that was predicted."""
    chain = d3.transitions.absorbing(4, BETAS, 3, data_has_mask=True)
    draws = 2_000_000
    logits = torch.tensor([0.0, 1e-6, 1e-5, 0.0], dtype=torch.float64).log()
    logits[0] = 0
    x = d3.D3PM(chain, first_step="posterior", impl=cpu).sample(
        lambda x_t, t: logits.float().expand(*x_t.shape, 4),
        (2, draws // 2),
        generator=torch.Generator().manual_seed(0),
    )
    counts = torch.bincount(x.flatten(), minlength=4)
    assert counts[3] == 0
    assert_rate(int(counts[1]), draws * 1e-6)
    assert_rate(int(counts[2]), draws * 1e-5)


@pytest.mark.parametrize("first_step", FIRST_STEP)
def test_an_absorbing_chain_fills_in_by_the_conditional_law(first_step):
    chain, states = make_chain("absorbing_last", 4, BETAS), every_state(4, TOKENS)
    law = torch.zeros(4, 4, dtype=torch.float64)
    law[:3, :3] = torch.tensor([[0.30, 0.00, 0.10], [0.05, 0.20, 0.05], [0.00, 0.05, 0.25]])
    predictions = [exact_log_predictions(chain, law.flatten(), states, t) for t in range(T + 1)]
    given = torch.tensor([0, 1, 2]).repeat(10_000)
    tokens = torch.stack([torch.zeros_like(given), given], dim=1)
    x = d3.D3PM(chain.transition, first_step=first_step).sample(
        as_denoiser(predictions.__getitem__, 4),
        tuple(tokens.shape),
        generator=torch.Generator().manual_seed(3),
        known=(tokens, torch.tensor([[False, True]]).expand_as(tokens)),
    )
    assert torch.equal(x[:, 1], given)
    assert_follows(x[:, 0].view(-1, 3), (law[:, :3] / law[:, :3].sum(0)).T)


@pytest.mark.parametrize("family", ["uniform", "gaussian"])
def test_known_tokens_are_held_in_every_step(family):
    tokens, mask = torch.randint(K, (6, 5), dtype=torch.uint8), torch.rand(6, 5) < 0.5
    seen = []
    x = d3.D3PM(make(family).transition).sample(
        lambda x_t, t: torch.zeros(*x_t.shape, K),
        (6, 5),
        known=(tokens, mask),
        callback=lambda x, s: seen.append(x),
    )
    assert len(seen) == T + 1
    assert all(torch.equal(x[mask], tokens[mask].long()) for x in seen)
    assert torch.equal(seen[-1], x)


def test_a_denoiser_that_looks_at_no_time_is_called_for_what_changed():
    chain = d3.transitions.absorbing(5, d3.schedules.jsd(40), 4)
    table = torch.randn(5, 5)
    table[:, 4] = -torch.inf
    called, states = [], []

    def denoiser(x_t, t):
        called.append(len(x_t))
        return table[x_t] + x_t.sum(1)[:, None, None] % 3 * table[0].clamp(min=-5)

    options = {"seeds": torch.arange(3), "callback": lambda x, s: states.append(x)}
    diffusion = d3.D3PM(chain)
    expected = diffusion.sample(denoiser, (3, 6), **options)
    assert called == [3] * 40
    changed = [3] + [int((x != y).any(1).sum()) for x, y in zip(states, states[1:-1], strict=False)]
    called.clear()
    x = diffusion.sample(denoiser, (3, 6), **options, time_independent=True)
    assert torch.equal(x, expected)
    assert called == [n for n in changed if n]
    assert sum(called) <= 3 * 7


def test_pairs_of_parameters_are_reused_too():
    kept = Reuse(lambda x, t: d3.functional.Logistic(x.float(), -x.float(), True))
    x, t = torch.tensor([[1, 2], [3, 4]]), torch.ones(2)
    first = kept(x, t)
    y = torch.tensor([[1, 2], [3, 5]])
    second = kept(y, t)
    assert isinstance(second, d3.functional.Logistic)
    assert torch.equal(second.loc, y.float())
    assert torch.equal(second.log_scale, -y.float())
    assert second.edge_corrected is True
    assert torch.equal(first.loc, x.float())


def test_seeds_stand_for_their_generator():
    diffusion = d3.D3PM(make("uniform").transition)

    def denoiser(x_t, t):
        return one_hot(x_t, K) + t[:, None, None] / 6

    generator = torch.Generator().manual_seed(5)
    seeds = d3.draw_seeds(4, torch.Generator().manual_seed(5))
    expected = diffusion.sample(denoiser, (4, 6), generator=generator)
    assert torch.equal(diffusion.sample(denoiser, (4, 6), seeds=seeds), expected)
    some = [3, 1]
    assert torch.equal(diffusion.sample(denoiser, (2, 6), seeds=seeds[some]), expected[some])


@pytest.mark.parametrize("shape", [(4,), (0, 3), (3, 0)])
def test_shapes_without_positions_or_items(shape):
    diffusion = d3.D3PM(make("uniform").transition)
    for time_independent in (False, True):
        x = diffusion.sample(
            lambda x_t, t: torch.zeros(*x_t.shape, K), shape, time_independent=time_independent
        )
        assert x.shape == shape


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_likeliest_class_is_that_of_the_logits_also_where_probabilities_round(
    dtype, first_step
):
    chain = d3.transitions.uniform(256, d3.schedules.cosine(10))
    logits = (torch.randn(500, 256) * 0.1).to(dtype)
    diffusion = d3.D3PM(chain, first_step=first_step)
    x = diffusion.sample(lambda x_t, t: logits, (500,), steps=[10], last="argmax")
    assert torch.equal(logits.gather(1, x[:, None])[:, 0], logits.amax(1))


def test_a_denoiser_may_write_into_the_same_tensor_again():
    room = torch.empty(4, 6, K)

    def denoiser(x_t, t):
        made = room[: len(x_t)]
        made.copy_(one_hot(x_t, K) * (1 + torch.arange(6.0)[:, None]))
        return made

    diffusion = d3.D3PM(make("absorbing_middle").transition)
    seeds = torch.arange(4)
    expected = diffusion.sample(denoiser, (4, 6), seeds=seeds)
    again = diffusion.sample(denoiser, (4, 6), seeds=seeds, time_independent=True)
    assert torch.equal(again, expected)


@pytest.mark.parametrize("sampler", [ancestral, first_hitting, confidence])
def test_masks_that_are_left_are_warned_of_with_the_remedy(sampler):
    diffusion = d3.D3PM(d3.transitions.absorbing(4, BETAS, 3, data_has_mask=True))
    logits, seeds = torch.zeros(4), torch.arange(8)

    def draw(**options):
        return sampler(diffusion, lambda x_t, t: logits.expand(*x_t.shape, 4), (8, 5), **options)

    with pytest.warns(UserWarning, match=r"the mask, class 3, .* data_has_mask=False where"):
        assert (draw(seeds=seeds) == 3).any()
    logits[3] = -torch.inf
    some = torch.arange(5).expand(8, 5) < 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (draw(seeds=seeds) < 3).all()
        if sampler is not confidence:  # which fills in known masks as any others
            x = draw(seeds=seeds, known=(torch.full((8, 5), 3), some))
            assert torch.equal(x == 3, some)
