"""The comparisons that the other tests rest on: what they accept, and that they can fail."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from helpers import covering
from helpers.chains import (
    FAMILIES,
    FIRST_STEP,
    REVERSE,
    every_pair,
    gradient_terms,
    make_chain,
    true_loss,
    true_p_posterior,
    true_q_posterior,
)
from helpers.compare import (
    assert_close,
    assert_comparison_catches_mutations,
    assert_gradient_close,
    gradient_mutations,
    same_bits,
)
from helpers.exact import exact_loss, exact_products
from helpers.laws import assert_follows, assert_rate, chi_square

ROW = torch.tensor([[0.5, -0.2, -0.3], [1e-6, -2e-6, 1e-6]], dtype=torch.float64)


def test_rows_of_every_true_matrix_sum_to_one():
    for family in FAMILIES:
        chain = make_chain(family, 5)
        for t in range(1, chain.num_steps + 1):
            torch.testing.assert_close(chain.matrix(t).sum(1), torch.ones(5).double())


@pytest.mark.parametrize("family", FAMILIES)
def test_true_products_agree_with_sixty_digits(family):
    chain = make_chain(family, 5)
    for t, (bar, ubar) in enumerate(exact_products(chain)):
        spread = torch.tensor([float(u) for u in ubar], dtype=torch.float64)
        exact = torch.eye(5).double() * float(bar) + spread
        torch.testing.assert_close(chain.product(0, t), exact, rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_without_matrices_agree_with_matrices(family):
    chain = make_chain(family, 65)
    rows = torch.rand(3, 65, dtype=torch.float64)
    x_t = torch.tensor([0, 32, 64])
    torch.testing.assert_close(chain.forward(rows, 1, 4), rows @ chain.product(1, 4))
    torch.testing.assert_close(chain.columns(x_t, 1, 4), chain.product(1, 4)[:, x_t].T)


@pytest.mark.parametrize("family", FAMILIES)
def test_true_posterior_is_that_of_the_joint_law(family):
    """Bayes by counting: ``q(x_s, x_t | x_0)`` summed over everything else."""
    chain = make_chain(family, 4)
    x0, x_t = every_pair(chain, 3)
    q = true_q_posterior(chain, x0, x_t, 1, 3)
    joint = chain.product(0, 1)[:, :, None] * chain.product(1, 3)[None]
    torch.testing.assert_close(q, joint[x0, :, x_t] / joint.sum(1)[x0, x_t][:, None])


@pytest.mark.parametrize("family", FAMILIES)
def test_true_posterior_mean_is_the_mean_of_posteriors(family):
    chain = make_chain(family, 4)
    logits = torch.randn(4, 4).double()
    x_t = torch.arange(4)
    p = true_p_posterior(chain, logits, x_t, 2, 3, "posterior_mean")
    weights = torch.softmax(logits, -1)
    for n in range(4):
        possible = chain.product(0, 3)[:, n] > 0
        x0 = possible.nonzero().flatten()
        if len(x0) < 4:
            continue  # the mean is then over what can lead to x_t, and stays there
        q = true_q_posterior(chain, x0, x_t[n].expand(len(x0)), 2, 3)
        torch.testing.assert_close(p[n], (weights[n][:, None] * q).sum(0))


@pytest.mark.parametrize("first_step", FIRST_STEP)
@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_loss_agrees_with_the_matrices(family, reverse, first_step):
    chain = make_chain(family, 3)
    for t in chain.edge_times():
        x0, x_t = every_pair(chain, t)
        logits = torch.randn(len(x0), 3).double().requires_grad_()
        options = {"reverse": reverse, "first_step": first_step, "vb_weight": 0.7, "ce_weight": 0.2}
        loss = true_loss(chain, logits, x0, x_t, t, **options)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        exact, exact_gradient, terms = exact_loss(
            chain, logits.detach(), x0, x_t, torch.full_like(x0, t), **options
        )
        torch.testing.assert_close(loss.detach(), exact, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient, exact_gradient, rtol=1e-12, atol=1e-14)
        sizes = gradient_terms(chain, logits.detach(), x0, x_t, t, reverse, first_step)
        torch.testing.assert_close(0.7 * sizes, terms, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", gradient_mutations(ROW))
def test_gradient_comparison_rejects_each_mutant(name):
    with pytest.raises(AssertionError):
        assert_gradient_close(gradient_mutations(ROW)[name], ROW, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_gradient_comparison_accepts_the_truth_rounded_once(dtype):
    row = ROW if dtype != torch.float16 else ROW * 100
    assert_gradient_close(row.to(dtype), row, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_mutations_are_caught_in_every_dtype(dtype):
    assert_comparison_catches_mutations(ROW[:1], dtype)


def test_mutation_check_notices_a_blind_comparison():
    with pytest.raises(AssertionError, match="lets a gradient pass"):
        assert_comparison_catches_mutations(ROW, torch.float32, floor=1e9)


def test_gradient_comparison_sees_one_small_row_among_large_ones():
    wrong = ROW.clone()
    wrong[1] = 0
    with pytest.raises(AssertionError, match="row 1"):
        assert_gradient_close(wrong, ROW, torch.float64)


def test_gradient_comparison_rejects_nan():
    with pytest.raises(AssertionError, match="not finite"):
        assert_gradient_close(ROW.where(ROW > 0, torch.nan), ROW, torch.float64)


def test_close_takes_ulps_at_the_scale_of_the_value():
    truth = torch.tensor([1e-12, 1.0]).double()
    assert_close(truth * (1 + 4e-7), truth, torch.float32, ulps=4)
    with pytest.raises(AssertionError, match=r"worst is 1\.0"):
        assert_close(truth * (1 + 6e-7), truth, torch.float32, ulps=4)
    with pytest.raises(AssertionError):
        assert_close(truth + 1e-12, truth, torch.float32, ulps=4)


def test_close_allows_what_the_baseline_missed():
    truth = torch.tensor([1.0]).double()
    assert_close(truth + 1.9e-3, truth, torch.float32, baseline=truth + 1e-3)
    with pytest.raises(AssertionError):
        assert_close(truth + 2.1e-3, truth, torch.float32, baseline=truth + 1e-3)


def test_close_demands_the_same_infinities():
    infinite = torch.tensor([torch.inf, -torch.inf, torch.nan]).double()
    assert_close(infinite, infinite, torch.float64)
    for wrong in (infinite.roll(1), torch.zeros(3)):
        with pytest.raises(AssertionError, match="infinite"):
            assert_close(wrong, infinite, torch.float64)


def test_same_bits_tells_zeros_apart_and_takes_nan_as_itself():
    zeros, nans = torch.zeros(2), torch.full((2,), torch.nan)
    assert same_bits(nans, nans.clone())
    assert not same_bits(zeros, -zeros)
    assert not same_bits(zeros, zeros.double())


LAW = [[0.5, 0.3, 0.2, 0.0], [0.1, 0.0, 0.9 - 1e-7, 1e-7]]


def _draws(law, count=20000):
    generator = torch.Generator().manual_seed(0)
    return torch.multinomial(torch.tensor(law), count, replacement=True, generator=generator).T


def test_law_accepts_its_own_draws():
    assert_follows(_draws(LAW), LAW)


def test_law_rejects_draws_of_another_one():
    other = [LAW[0], [0.12, 0.0, 0.88, 0.0]]
    with pytest.raises(AssertionError, match="token 1"):
        assert_follows(_draws(other), LAW)


def test_law_rejects_a_single_impossible_draw():
    samples = _draws(LAW)
    samples[7, 0] = 3
    with pytest.raises(AssertionError, match="probability 0"):
        assert_follows(samples, LAW)


def test_law_rejects_too_many_of_a_rare_class():
    samples = _draws(LAW)
    samples[:5, 1] = 3
    with pytest.raises(AssertionError, match="token 1"):
        assert_follows(samples, LAW)


def test_p_values_are_uniform_for_true_draws():
    law = torch.tensor([0.4, 0.3, 0.2, 0.1])
    draws = torch.multinomial(law.expand(500, 4), 400, replacement=True)
    values = [chi_square(row.bincount(minlength=4).numpy(), law.double().numpy()) for row in draws]
    below = sum(v < 0.2 for v in values)
    assert_rate(below, 100)


def test_rate_rejects_what_poisson_would_not_give():
    assert_rate(95, 100)
    with pytest.raises(AssertionError):
        assert_rate(150, 100)


class Item(SimpleNamespace):
    __hash__ = object.__hash__


# At the least as many items as the two largest parameters have pairs of values.
@pytest.mark.parametrize(
    ("sizes", "most"), [((2, 3, 4), 12), ((4, 2, 3, 2), 12), ((4, 8, 2, 2), 32), ((3, 5), 15)]
)
def test_a_covering_part_of_a_grid_has_every_pair_of_values(sizes, most):
    values = [[object() for _ in range(size)] for size in sizes]
    grid = [
        Item(
            nodeid=f"test[{'-'.join(map(str, place))}]",
            callspec=SimpleNamespace(
                params={f"p{axis}": values[axis][i] for axis, i in enumerate(place)}
            ),
            place=place,
        )
        for place in itertools.product(*map(range, sizes))
    ]
    part = covering.part(grid)
    assert part == [item for item in grid if item in part]
    for one, other in itertools.combinations(range(len(sizes)), 2):
        met = {(item.place[one], item.place[other]) for item in part}
        assert len(met) == sizes[one] * sizes[other]
    assert len(part) <= most
    alone = [Item(nodeid=f"test_{i}") for i in range(3)]
    assert covering.part(alone) == alone
