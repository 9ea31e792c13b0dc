"""Rank-one transitions against explicit matrices, and near the edges against 60 digits."""

import copy

import pytest
import torch
from helpers.chains import FAMILIES, make_chain
from helpers.exact import exact_products, exact_step
from hypothesis import given
from hypothesis import strategies as st

from d3pm_fast import schedules, transitions

SCHEDULES = {
    "cosine": schedules.cosine(20),
    "jsd": schedules.jsd(20),
    "tiny": torch.full((20,), 1e-8, dtype=torch.float64),
    "huge": torch.full((20,), 1 - 1e-8, dtype=torch.float64),
    "one in the middle": torch.tensor([0.1, 0.2, 1.0, 0.3, 0.4], dtype=torch.float64),
    "tiny after one": torch.tensor([0.5, 1.0, 1e-8, 1e-8], dtype=torch.float64),
    "zero": torch.tensor([0.0, 0.3, 0.0, 1.0, 0.0], dtype=torch.float64),
}


def relative(actual, truth, rtol):
    torch.testing.assert_close(actual, truth, rtol=rtol, atol=1e-300)


@pytest.mark.parametrize("num_classes", [2, 5, 16])
@pytest.mark.parametrize("family", FAMILIES)
def test_q_matrix_is_its_definition(family, num_classes):
    chain = make_chain(family, num_classes)
    for t in range(1, chain.num_steps + 1):
        relative(chain.transition.q_matrix(t), chain.matrix(t), 1e-13)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_q_bar_matrix_is_the_product_of_all_steps(family, schedule):
    chain = make_chain(family, 5, SCHEDULES[schedule])
    for t in range(chain.num_steps + 1):
        torch.testing.assert_close(
            chain.transition.q_bar_matrix(t), chain.product(0, t), rtol=1e-13, atol=1e-15
        )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_products_keep_their_digits_near_zero_and_one(family, schedule):
    chain = make_chain(family, 4, SCHEDULES[schedule])
    for t, (bar, ubar) in enumerate(exact_products(chain)):
        matrix = chain.transition.q_bar_matrix(t)
        spread = torch.tensor([float(u) for u in ubar], dtype=torch.float64)
        relative(
            matrix - torch.diag(matrix.diag()) + torch.diag(spread), spread.expand(4, 4), 1e-12
        )
        keep = torch.tensor(float(bar), dtype=torch.float64)
        relative(chain.transition.product_table[t, 0], keep, 1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_single_steps_keep_their_digits(family, schedule):
    chain = make_chain(family, 4, SCHEDULES[schedule])
    for t in range(1, chain.num_steps + 1):
        keep, spread = exact_step(chain, t)
        spread = torch.tensor([float(u) for u in spread], dtype=torch.float64)
        matrix = chain.transition.q_matrix(t)
        relative(
            matrix - torch.diag(matrix.diag()) + torch.diag(spread), spread.expand(4, 4), 1e-12
        )
        relative(
            chain.transition.step_table[t, 0], torch.tensor(float(keep), dtype=torch.float64), 1e-12
        )


@pytest.mark.parametrize("schedule", ["cosine", "jsd", "one in the middle", "zero"])
@pytest.mark.parametrize("family", FAMILIES)
def test_coefficients_of_any_two_times_are_those_of_the_product_between(family, schedule):
    chain = make_chain(family, 4, SCHEDULES[schedule])
    transition = chain.transition
    for t in range(1, chain.num_steps + 1):
        for s in range(t):
            row = transition.step_coefficients(torch.tensor(s), torch.tensor(t))
            step = transition._matrix(*row[:3])
            torch.testing.assert_close(step, chain.product(s, t), rtol=1e-12, atol=1e-15)
            before = transition._matrix(*row[3:6])
            torch.testing.assert_close(before, chain.product(0, s), rtol=1e-12, atol=1e-15)
            assert row[6] == s


@pytest.mark.parametrize("family", FAMILIES)
def test_table_of_steps_is_the_coefficients_of_each_step(family):
    transition = make_chain(family, 4).transition
    t = torch.arange(1, transition.num_steps + 1)
    assert torch.equal(transition.step_table[1:], transition.step_coefficients(t - 1, t))
    assert bool(transition.step_table[0].isnan().all())


@pytest.mark.parametrize("num_steps", [1, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_sum_to_one(family, num_steps):
    """D4: K = 256, T = 1000 lost 4e-4 of each row where tables were multiplied in float32."""
    transition = make_chain(family, 256, schedules.linear(num_steps)).transition
    for t in {1, (num_steps + 1) // 2, num_steps}:
        for matrix in (transition.q_matrix(t), transition.q_bar_matrix(t)):
            assert float((matrix.sum(1) - 1).abs().max()) < 1e-12
            assert bool((matrix >= 0).all())


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mask_and_uniform_by_step"])
def test_stationary_vector_does_not_change(family):
    chain = make_chain(family, 6)
    stationary = chain.transition.stationary()
    relative(stationary.sum(), torch.ones(()).double(), 1e-14)
    for t in chain.edge_times():
        torch.testing.assert_close(stationary @ chain.matrix(t), stationary, rtol=1e-13, atol=1e-17)


@pytest.mark.parametrize("family", FAMILIES)
def test_stationary_is_the_law_of_x_t_when_nothing_is_left(family):
    chain = make_chain(family, 6, schedules.cosine(10))
    stationary = chain.transition.stationary()
    torch.testing.assert_close(
        chain.product(0, 10), stationary.expand(6, 6), rtol=1e-12, atol=1e-15
    )


def test_stationary_of_a_chain_that_never_moves_is_its_base():
    chain = transitions.uniform(4, [0.0, 0.0])
    assert chain.stationary().tolist() == [0.25] * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_beta_of_one_forgets_all_that_was(family):
    chain = make_chain(family, 4, [0.1, 1.0, 0.2])
    for t in (2, 3):
        rows = chain.transition.q_bar_matrix(t)
        assert torch.equal(rows, rows[:1].expand(4, 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_beta_of_zero_changes_nothing(family):
    chain = make_chain(family, 4, [0.0, 0.3, 0.0])
    identity = torch.eye(4).double()
    assert torch.equal(chain.transition.q_matrix(1), identity)
    assert torch.equal(chain.transition.q_bar_matrix(1), identity)
    assert torch.equal(chain.transition.q_bar_matrix(3), chain.transition.q_bar_matrix(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_q_bar_at_zero_is_the_identity(family):
    assert torch.equal(make_chain(family, 4).transition.q_bar_matrix(0), torch.eye(4).double())


@pytest.mark.parametrize("mask_id", [0, 2, 4])
def test_absorbing_leaks_into_no_other_state(mask_id):
    """D1: forbidden transitions have probability exactly 0, at every t."""
    chain = transitions.absorbing(5, schedules.cosine(50), mask_id)
    allowed = torch.eye(5).bool()
    allowed[:, mask_id] = True
    for t in range(1, 51):
        for matrix in (chain.q_matrix(t), chain.q_bar_matrix(t)):
            assert bool((matrix[~allowed] == 0).all())
            assert matrix[mask_id, mask_id] == pytest.approx(1, rel=1e-15)


def test_marginal_never_enters_a_class_of_probability_zero():
    chain = transitions.marginal(3, schedules.jsd(10), [0.5, 0.0, 0.5])
    for t in range(1, 11):
        assert bool((chain.q_bar_matrix(t)[[0, 2], 1] == 0).all())


def test_marginal_divides_by_its_float64_sum():
    pi = torch.rand(300)
    pi /= pi.sum()
    found = transitions.marginal(300, [0.5], pi).pi
    assert abs(float(found.sum()) - 1) < 1e-15
    torch.testing.assert_close(found, pi.double() / pi.double().sum(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_mask_and_uniform_has_both_parents_as_its_limits(share):
    betas = schedules.cosine(8)
    chain = transitions.mask_and_uniform(4, betas, 1, share)
    parent = transitions.uniform(4, betas) if share else transitions.absorbing(4, betas, 1)
    for t in range(1, 9):
        assert torch.equal(chain.q_bar_matrix(t), parent.q_bar_matrix(t))


def test_share_of_each_step_may_be_one_number():
    betas = schedules.cosine(8)
    chains = [transitions.mask_and_uniform(4, betas, 1, g) for g in (0.3, [0.3] * 8)]
    for t in range(1, 9):
        torch.testing.assert_close(
            chains[0].q_bar_matrix(t), chains[1].q_bar_matrix(t), rtol=1e-13, atol=1e-16
        )


def test_uniform_stores_nothing_of_size_k():
    chain = transitions.uniform(10**15, schedules.jsd(10))
    tables = [v for v in vars(chain).values() if isinstance(v, torch.Tensor)]
    assert max(table.numel() for table in tables) == 11 * 7


@pytest.mark.parametrize(
    "cast", [torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.float]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_cast_rounds_the_tables(family, cast):
    chain = make_chain(family, 5).transition
    before = [chain.step_table.clone(), chain.product_table.clone(), chain.stationary()]
    cast(chain)
    after = [chain.step_table, chain.product_table, chain.stationary()]
    for table, kept in zip(after, before, strict=True):
        assert table.dtype == torch.float64
        assert torch.equal(table.nan_to_num(), kept.nan_to_num())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_is_equal_and_apart(family):
    chain = make_chain(family, 5).transition
    twin = copy.deepcopy(chain)
    assert torch.equal(twin.product_table, chain.product_table)
    assert twin.product_table.data_ptr() != chain.product_table.data_ptr()


def test_repr_names_the_family_and_its_sizes():
    text = repr(transitions.absorbing(9, schedules.jsd(7), 8))
    for part in ("absorbing", "num_classes=9", "num_steps=7", "mask_id=8"):
        assert part in text


@given(
    family=st.sampled_from(FAMILIES),
    num_classes=st.integers(2, 12),
    betas=st.lists(st.just(0.0) | st.floats(1e-140, 1), min_size=1, max_size=8),
)
def test_products_of_any_betas_are_stochastic_and_exact(family, num_classes, betas):
    chain = make_chain(family, num_classes, betas)
    for t in range(len(betas) + 1):
        matrix = chain.transition.q_bar_matrix(t)
        assert bool((matrix >= 0).all())
        torch.testing.assert_close(matrix, chain.product(0, t), rtol=1e-12, atol=1e-14)
