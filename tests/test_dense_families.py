"""Dense families against their formulas, written entry by entry."""

import copy
import importlib
import math
import pickle

import mpmath
import pytest
import torch
from mpmath import mpf

from d3pm_fast import schedules, transitions

BETAS = torch.tensor([0.02, 0.0, 0.3, 1.0], dtype=torch.float64)


def points(count=12, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, dtype=torch.float64, generator=generator)


def random_steps(num_steps=4, num_classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(num_steps, num_classes, num_classes, generator=generator).double()
    return steps / steps.sum(2, keepdim=True)


FAMILIES = {
    "discretized_gaussian": lambda betas: transitions.discretized_gaussian(9, betas),
    "gaussian within a band": lambda betas: transitions.discretized_gaussian(
        9, betas, band_limit=2
    ),
    "band": lambda betas: transitions.band(9, betas, 2),
    "substitution": lambda betas: transitions.substitution(
        transitions.BLOSUM62, betas, background=transitions.BLOSUM62_BACKGROUND
    ),
    "from_rate": lambda betas: transitions.from_rate(
        torch.tensor([[-2.0, 1.5, 0.5], [0.1, -0.1, 0.0], [0.0, 1.0, -1.0]]),
        2 * betas.cumsum(0),
    ),
    "nearest_neighbor": lambda betas: transitions.nearest_neighbor(points(), 3, betas.cumsum(0)),
    "nearest_neighbor with a mask": lambda betas: transitions.nearest_neighbor(
        points(), 3, betas.cumsum(0), mask_rate=0.5
    ),
    "nearest_neighbor by sinkhorn": lambda betas: transitions.nearest_neighbor(
        points(), 4, betas, method="sinkhorn"
    ),
    "mixture": lambda betas: transitions.mixture(
        [transitions.uniform(9, betas), transitions.band(9, betas, 1)], [0.25, 0.75]
    ),
    "with_mask": lambda betas: transitions.with_mask(transitions.band(6, betas, 1), betas / 2),
}
DOUBLY_STOCHASTIC = [
    "discretized_gaussian",
    "gaussian within a band",
    "band",
    "nearest_neighbor",
    "nearest_neighbor by sinkhorn",
    "mixture",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_sum_to_one_and_nothing_is_negative(family):
    """D4: tables multiplied in float32 lost 4e-4 of a row."""
    chain = FAMILIES[family](BETAS)
    for t in range(1, len(BETAS) + 1):
        for matrix in (chain.q_matrix(t), chain.q_bar_matrix(t)):
            assert matrix.dtype == torch.float64
            assert matrix.shape == (chain.num_classes, chain.num_classes)
            assert bool((matrix >= 0).all())
            assert float((matrix.sum(1) - 1).abs().max()) < 2e-14


@pytest.mark.parametrize("family", DOUBLY_STOCHASTIC)
def test_doubly_stochastic_families_are_symmetric_and_end_uniform(family):
    chain = FAMILIES[family](BETAS)
    for t in range(1, len(BETAS) + 1):
        matrix = chain.q_matrix(t)
        torch.testing.assert_close(matrix, matrix.T, rtol=1e-13, atol=1e-300)
        assert float((matrix.sum(0) - 1).abs().max()) < 2e-14
    assert chain.stationary().tolist() == [1 / chain.num_classes] * chain.num_classes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_zero_is_exactly_the_identity(family):
    chain = FAMILIES[family](BETAS)
    assert torch.equal(chain.q_matrix(2), torch.eye(chain.num_classes).double())


@pytest.mark.parametrize("family", FAMILIES)
def test_no_step_changes_the_stationary_law(family):
    chain = FAMILIES[family](BETAS)
    law = chain.stationary()
    for t in range(1, len(BETAS) + 1):
        torch.testing.assert_close(law @ chain.q_matrix(t), law, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("family", FAMILIES)
def test_long_chains_end_in_the_stationary_law(family):
    chain = FAMILIES[family](torch.full((3,), 0.9, dtype=torch.float64))
    product = chain.q_bar_matrix(3)
    for _ in range(14):
        product = product @ product
    torch.testing.assert_close(
        product, chain.stationary().expand_as(product), rtol=1e-8, atol=1e-12
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_named_copied_and_pickled(family):
    chain = FAMILIES[family](BETAS)
    assert hasattr(transitions, chain.family)
    for twin in (copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))):
        assert torch.equal(twin.q_matrix(3), chain.q_matrix(3))


# The discretized Gaussian and the band


def exact_gaussian(num_classes, beta, band_limit):
    with mpmath.workdps(40):
        weights = [
            mpmath.exp(-4 * mpf(n) ** 2 / ((num_classes - 1) ** 2 * mpf(beta))) if beta else mpf(0)
            for n in range(band_limit + 1)
        ]
        total = 1 + 2 * mpmath.fsum(weights[1:])
        rows = []
        for i in range(num_classes):
            row = [
                weights[abs(i - j)] / total if 0 < abs(i - j) <= band_limit else mpf(0)
                for j in range(num_classes)
            ]
            row[i] = 1 - mpmath.fsum(row)
            rows.append([float(entry) for entry in row])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("beta", [1.0, 0.02, 1e-4, 1e-12, 5e-324, 0.0])
@pytest.mark.parametrize(
    ("num_classes", "band_limit"), [(2, None), (3, 1), (8, None), (8, 3), (16, 15)]
)
def test_gaussian_is_the_papers_for_every_k(num_classes, band_limit, beta):
    """D7: the distance scale is K - 1, not 255; entries far below float32's range are exact."""
    chain = transitions.discretized_gaussian(num_classes, [beta], band_limit=band_limit)
    truth = exact_gaussian(num_classes, beta, band_limit or num_classes - 1)
    torch.testing.assert_close(chain.q_matrix(1), truth, rtol=3e-13, atol=1e-307)


def test_gaussian_of_cifar_sums_to_one_over_a_thousand_steps():
    """D4: K = 256, T = 1000."""
    chain = transitions.discretized_gaussian(256, schedules.linear(1000))
    product = torch.eye(256).double()
    for t in range(1, 1001):
        step = chain.q_matrix(t)
        assert float((step.sum(1) - 1).abs().max()) < 1e-15
        product = product @ step
    assert float((product.sum(1) - 1).abs().max()) < 1e-12


def test_gaussian_keeps_tiny_entries_for_large_ones_beside_them():
    matrix = transitions.discretized_gaussian(256, [1e-4]).q_matrix(1)
    with mpmath.workdps(40):
        weights = [mpmath.exp(-4 * mpf(n) ** 2 / (255**2 * mpf(1e-4))) for n in range(256)]
        truth = float(weights[30] / (1 + 2 * mpmath.fsum(weights[1:])))
    assert 1e-300 < truth < 1e-200
    assert float(matrix[40, 70]) == pytest.approx(truth, rel=1e-12)


@pytest.mark.parametrize(("num_classes", "width"), [(2, 1), (3, 1), (7, 3), (7, 6)])
@pytest.mark.parametrize("beta", [1.0, 0.3, 1e-18])
def test_band_is_the_papers(num_classes, width, beta):
    matrix = transitions.band(num_classes, [beta], width).q_matrix(1)
    for i in range(num_classes):
        others = 0
        for j in range(num_classes):
            if i != j:
                near = abs(i - j) <= width
                others += near
                assert float(matrix[i, j]) == pytest.approx(near * beta / num_classes, rel=1e-15)
        with mpmath.workdps(40):
            keep = float(1 - others * mpf(beta) / num_classes)
        assert float(matrix[i, i]) == pytest.approx(keep, rel=1e-14)


def test_band_of_full_width_is_the_uniform_chain():
    band = transitions.band(6, BETAS, 5)
    uniform = transitions.uniform(6, BETAS)
    for t in range(1, 5):
        torch.testing.assert_close(band.q_matrix(t), uniform.q_matrix(t), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transitions.discretized_gaussian(1, BETAS), "num_classes"),
        (lambda: transitions.discretized_gaussian(4, [1.5]), "betas"),
        (lambda: transitions.discretized_gaussian(4, BETAS, band_limit=0), "band_limit"),
        (lambda: transitions.discretized_gaussian(4, BETAS, band_limit=4), "K - 1 = 3, got 4"),
        (lambda: transitions.band(1, BETAS, 1), "num_classes"),
        (lambda: transitions.band(4, [], 1), "betas"),
        (lambda: transitions.band(4, BETAS, 0), "width"),
        (lambda: transitions.band(4, BETAS, 4), "K - 1 = 3, got 4"),
    ],
)
def test_gaussian_and_band_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Substitution


def test_blosum62_is_that_of_its_source():
    scores, order = transitions.BLOSUM62, transitions.AMINO_ACIDS
    assert order == "ARNDCQEGHILKMFPSTWYV"
    assert torch.equal(scores, scores.T)
    assert scores.diag().tolist() == [4, 5, 6, 6, 9, 5, 5, 6, 8, 4, 4, 5, 5, 6, 7, 4, 5, 11, 7, 4]
    known = {"WY": 2, "IV": 3, "CE": -4, "DE": 2, "KR": 2, "FY": 3, "HY": 2, "PW": -4, "ST": 1}
    for (a, b), score in known.items():
        assert scores[order.index(a), order.index(b)] == score
    assert scores.sum() == -426
    assert scores.min() == -4


def test_background_of_blosum62_agrees_with_its_scores():
    """NCBI's matrix says -0.5209 bits of the expected score before it was rounded."""
    scores, p = transitions.BLOSUM62, transitions.BLOSUM62_BACKGROUND
    assert float(p.sum()) == pytest.approx(1, abs=1e-9)
    pair = p[:, None] * p
    assert float((pair * scores / 2).sum()) == pytest.approx(-0.5209, abs=0.03)
    joint = pair * torch.exp(scores * math.log(2) / 2)
    torch.testing.assert_close(joint.sum(1), p, rtol=0.1, atol=0)


@pytest.mark.parametrize("background", [None, [0.2, 0.3, 0.5]])
def test_substitution_is_its_formula(background):
    scores = [[2.0, -1.0, 0.0], [-1.0, 3.0, -5.0], [0.0, -5.0, 1.0]]
    chain = transitions.substitution(scores, [0.3], scale=0.7, background=background)
    weight = background or [1.0] * 3
    row_sums = []
    for i in range(3):
        row = [weight[j] * math.exp(0.7 * scores[i][j]) for j in range(3)]
        row_sums.append(sum(row))
        for j in range(3):
            expected = 0.7 * (i == j) + 0.3 * row[j] / row_sums[i]
            assert float(chain.q_matrix(1)[i, j]) == pytest.approx(expected, rel=1e-14)
    limit = torch.tensor([w * s for w, s in zip(weight, row_sums, strict=True)]).double()
    torch.testing.assert_close(chain.stationary(), limit / limit.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transitions.substitution(torch.zeros(2, 3), BETAS), "scores"),
        (lambda: transitions.substitution([[0.0, torch.nan], [0.0, 0.0]], BETAS), "scores"),
        (lambda: transitions.substitution(torch.zeros(2, 2), [2.0]), "betas"),
        (lambda: transitions.substitution(torch.zeros(2, 2), BETAS, scale=-1.0), "scale"),
        (
            lambda: transitions.substitution(torch.zeros(2, 2), BETAS, background=[0.5]),
            "background",
        ),
        (
            lambda: transitions.substitution(torch.zeros(2, 2), BETAS, background=[0.0, 1.0]),
            "class 0 is not",
        ),
    ],
)
def test_substitution_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Given matrices


def test_from_matrices_is_what_was_given():
    steps = random_steps()
    chain = transitions.from_matrices(steps)
    product = torch.eye(5).double()
    for t in range(1, 5):
        product = product @ steps[t - 1]
        torch.testing.assert_close(chain.q_matrix(t), steps[t - 1], rtol=1e-15, atol=0)
        torch.testing.assert_close(chain.q_bar_matrix(t), product, rtol=1e-13, atol=0)
    law = chain.stationary()
    torch.testing.assert_close(law @ steps[-1], law, rtol=1e-14, atol=0)


def test_from_matrices_divides_float32_rows_by_their_sum_and_copies():
    steps = random_steps().float()
    chain = transitions.from_matrices(steps)
    before = chain.q_matrix(1)
    assert float((before.sum(1) - 1).abs().max()) < 1e-15
    steps.zero_()
    before.clone()[0] = 0
    assert torch.equal(chain.q_matrix(1), before)


def test_from_matrices_takes_a_stationary_law_where_there_are_several():
    identity = torch.eye(2).double().expand(3, 2, 2)
    with pytest.raises(ValueError, match="2 sets of classes"):
        transitions.from_matrices(identity)
    chain = transitions.from_matrices(identity, stationary=[0.25, 0.75])
    assert chain.stationary().tolist() == [0.25, 0.75]


def changed(value):
    steps = random_steps()
    steps[2, 1, 3] = value
    return steps


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (torch.eye(3), "shape"),
        (torch.ones(2, 3, 4), "shape"),
        (torch.ones(0, 3, 3), "shape"),
        (torch.ones(2, 1, 1), "at least 2 classes"),
        (changed(torch.nan), r"finite.*\(2, 1, 3\)"),
        (changed(-0.1), r"negative.*\(1, 3\) at t = 3"),
        (changed(0.9), "row 1 at t = 3"),
    ],
)
def test_from_matrices_refuses(steps, message):
    with pytest.raises(ValueError, match=message):
        transitions.from_matrices(steps)


# Nearest neighbours


def neighbors_by_loop(embeddings, k):
    rows = []
    for i, a in enumerate(embeddings.tolist()):
        others = sorted((math.dist(a, b), j) for j, b in enumerate(embeddings.tolist()) if i != j)
        rows.append(sorted(j for _, j in others[:k]))
    return rows


@pytest.mark.parametrize("k", [1, 3, 11])
def test_nearest_neighbors_are_those_of_a_loop(k):
    embeddings = points()
    assert transitions.nearest_neighbors(embeddings, k).tolist() == neighbors_by_loop(embeddings, k)


def test_the_lower_index_wins_a_tie():
    grid = torch.cartesian_prod(torch.arange(5), torch.arange(5)).double()
    for k in (1, 3, 6):
        assert transitions.nearest_neighbors(grid, k).tolist() == neighbors_by_loop(grid, k)
    same = torch.zeros(4, 2)
    assert transitions.nearest_neighbors(same, 2).tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


def test_nearest_neighbors_in_chunks_are_the_same(monkeypatch):
    whole = transitions.nearest_neighbors(points(50), 4)
    module = importlib.import_module("d3pm_fast.chains.neighbors")
    monkeypatch.setattr(module, "_CHUNK", 170)
    assert torch.equal(transitions.nearest_neighbors(points(50), 4), whole)


def test_nearest_neighbor_rate_is_the_papers():
    k, embeddings = 3, points()
    neighbors = neighbors_by_loop(embeddings, k)
    rate = transitions.nearest_neighbor_rate(embeddings, k)
    for i in range(12):
        row = [((j in neighbors[i]) + (i in neighbors[j])) / (2 * k) for j in range(12)]
        row[i] = -sum(row)
        assert rate[i].tolist() == pytest.approx(row, rel=1e-15)
    masked = transitions.nearest_neighbor_rate(embeddings, k, mask_rate=0.5)
    assert torch.equal(masked[:12, :12].fill_diagonal_(0), rate.fill_diagonal_(0))
    assert masked[:, 12].tolist() == [0.5] * 12 + [0.0]


def test_nearest_neighbor_multiplies_to_exponentials():
    rate = transitions.nearest_neighbor_rate(points(), 3)
    chain = transitions.nearest_neighbor(points(), 3, [0.5, 2.0])
    for t, time in ((1, 0.5), (2, 2.0)):
        torch.testing.assert_close(
            chain.q_bar_matrix(t), torch.linalg.matrix_exp(time * rate), rtol=1e-10, atol=1e-14
        )


def test_a_mask_beside_the_neighbours_absorbs():
    chain = FAMILIES["nearest_neighbor with a mask"](BETAS)
    assert chain.mask_id == 12
    assert chain.stationary().tolist() == [0.0] * 12 + [1.0]
    survivors = 1 - chain.q_bar_matrix(4)[:12, 12]
    kept = math.exp(-0.5 * float(BETAS.sum()))
    torch.testing.assert_close(survivors, torch.full((12,), kept).double(), rtol=1e-7, atol=0)


def test_sinkhorn_keeps_the_graph():
    rate = transitions.nearest_neighbor_rate(points(), 4)
    step = transitions.nearest_neighbor(points(), 4, [1.0], method="sinkhorn").q_matrix(1)
    assert torch.equal(step > 0, rate > 0)


def test_a_graph_in_parts_is_refused():
    parts = torch.cat([points(6), points(6) + 1000])
    for method in ("exponential", "sinkhorn"):
        with pytest.raises(ValueError, match="2 sets of classes"):
            transitions.nearest_neighbor(parts, 4, BETAS.cumsum(0) / 2, method=method)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transitions.nearest_neighbors(torch.zeros(3), 1), "embeddings"),
        (lambda: transitions.nearest_neighbors(torch.zeros(1, 3), 1), "embeddings"),
        (lambda: transitions.nearest_neighbors(torch.full((3, 2), torch.nan), 1), "embeddings"),
        (lambda: transitions.nearest_neighbors(torch.zeros(3, 2), 0), "num_neighbors"),
        (lambda: transitions.nearest_neighbors(torch.zeros(3, 2), 3), "K - 1 = 2, got 3"),
        (lambda: transitions.nearest_neighbor_rate(points(), 2, mask_rate=0.0), "mask_rate"),
        (lambda: transitions.nearest_neighbor(points(), 2, [2.0, 1.0]), "times"),
        (lambda: transitions.nearest_neighbor(points(), 2, [0.1], method="expm"), "method"),
        (lambda: transitions.nearest_neighbor(points(), 2, [2.0], method="sinkhorn"), "schedule"),
        (
            lambda: transitions.nearest_neighbor(
                points(), 2, [0.1], method="sinkhorn", mask_rate=1.0
            ),
            "mask_rate",
        ),
        (
            lambda: transitions.nearest_neighbor(
                [[0.0], [1.0], [3.0]], 1, [0.1], method="sinkhorn"
            ),
            "doubly stochastic",
        ),
    ],
)
def test_nearest_neighbor_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Combinations


def test_mixture_is_the_weighted_sum_of_its_steps():
    chains = [
        transitions.uniform(9, BETAS),
        transitions.absorbing(9, BETAS, 4),
        transitions.discretized_gaussian(9, BETAS),
    ]
    chain = transitions.mixture(chains, [0.2, 0.3, 0.5])
    for t in range(1, 5):
        expected = sum(w * c.q_matrix(t) for w, c in zip([0.2, 0.3, 0.5], chains, strict=True))
        torch.testing.assert_close(chain.q_matrix(t), expected, rtol=1e-14, atol=1e-300)
    assert chain.mask_id == 4
    law = chain.stationary()
    torch.testing.assert_close(law @ chain.q_matrix(4), law, rtol=1e-14, atol=0)


def test_mixture_of_rank_one_chains_is_mask_and_uniform():
    betas = schedules.cosine(6)
    parts = [transitions.uniform(5, betas), transitions.absorbing(5, betas, 4)]
    chain = transitions.mixture(parts, [0.1, 0.9])
    closed = transitions.mask_and_uniform(5, betas, 4, 0.1)
    for t in range(1, 7):
        torch.testing.assert_close(
            chain.q_bar_matrix(t), closed.q_bar_matrix(t), rtol=1e-13, atol=1e-16
        )
    torch.testing.assert_close(chain.stationary(), closed.stationary(), rtol=1e-13, atol=0)


def test_mixture_of_different_masks_has_none():
    parts = [transitions.absorbing(5, BETAS, m) for m in (0, 4)]
    assert transitions.mixture(parts, [0.5, 0.5]).mask_id == -1


def test_with_mask_is_its_definition():
    inner = transitions.band(4, BETAS, 1)
    masks = torch.tensor([0.1, 0.2, 0.0, 1.0]).double()
    chain = transitions.with_mask(inner, masks)
    assert (chain.num_classes, chain.mask_id) == (5, 4)
    for t in range(1, 5):
        beta = float(masks[t - 1])
        for i in range(5):
            for j in range(5):
                moved = float(inner.q_matrix(t)[i, j]) if max(i, j) < 4 else float(i == j)
                expected = (1 - beta) * moved + beta * (j == 4)
                assert float(chain.q_matrix(t)[i, j]) == pytest.approx(expected, rel=1e-15)
    assert chain.stationary().tolist() == [0, 0, 0, 0, 1]


def test_with_mask_over_a_chain_that_never_moves_is_absorbing():
    betas = schedules.jsd(8)
    still = transitions.uniform(4, [0.0] * 8)
    closed = transitions.absorbing(5, betas, 4)
    chain = transitions.with_mask(still, betas)
    for t in range(1, 9):
        torch.testing.assert_close(
            chain.q_bar_matrix(t), closed.q_bar_matrix(t), rtol=1e-14, atol=1e-16
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transitions.mixture([], []), "at least one"),
        (
            lambda: transitions.mixture(
                [transitions.uniform(3, BETAS), transitions.uniform(4, BETAS)], [0.5, 0.5]
            ),
            r"num_classes, got \[3, 4\]",
        ),
        (
            lambda: transitions.mixture(
                [transitions.uniform(3, BETAS), transitions.uniform(3, [0.1])], [0.5, 0.5]
            ),
            r"num_steps, got \[4, 1\]",
        ),
        (lambda: transitions.mixture([transitions.uniform(3, BETAS)], [0.5]), "weights"),
        (lambda: transitions.mixture([transitions.uniform(3, [0.0])], [1.0]), "sets of classes"),
        (lambda: transitions.with_mask(transitions.uniform(3, BETAS), [0.1]), "one entry a step"),
        (lambda: transitions.with_mask(transitions.uniform(3, [0.1]), [-0.1]), "betas"),
    ],
)
def test_combinations_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()
