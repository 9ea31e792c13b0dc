"""Dense chains from their definitions: explicit matrices in float64, multiplied out."""

import math
from dataclasses import dataclass

import torch

from d3pm_fast import schedules, transitions
from d3pm_fast.chains.sparse import sparse_rate_chain

FAMILIES = [
    "gaussian",
    "gaussian_banded",
    "band",
    "nearest_neighbor",
    "sparse",
    "sparse_masked",
    "sinkhorn",
    "substitution",
    "from_matrices",
    "from_rate",
    "mixture",
    "with_mask",
]
NUM_STEPS = 6
MIXING = [name for name in FAMILIES if name not in ("sparse_masked", "from_matrices", "with_mask")]


@dataclass(frozen=True)
class DenseChain:
    """``Q_t = matrices[t - 1]``, (T, K, K), and the transition under test."""

    transition: transitions.DenseTransition
    matrices: torch.Tensor

    @property
    def num_steps(self):
        return len(self.matrices)

    @property
    def num_classes(self):
        return self.matrices.shape[1]

    def product(self, s, t):
        """``Q_{s+1} ... Q_t``, multiplied out."""
        result = torch.eye(self.num_classes).double()
        for matrix in self.matrices[s:t]:
            result = result @ matrix
        return result

    def forward(self, rows, s, t):
        return rows @ self.product(s, t)

    def columns(self, x_t, s, t):
        """``Q_{s->t}[:, x_t]`` as rows (N, K)."""
        return self.product(s, t)[:, x_t].T

    def edge_times(self):
        """1, 2, T - 1 and T."""
        return sorted({1, min(2, self.num_steps), max(1, self.num_steps - 1), self.num_steps})


def gaussian_matrix(num_classes, beta, limit=None):
    """Entry by entry as in D3PM, appendix A.2.3."""
    limit = num_classes - 1 if limit is None else limit

    def weight(n):
        return math.exp(-4 * n * n / ((num_classes - 1) ** 2 * beta)) if abs(n) <= limit else 0.0

    total = sum(weight(n) for n in range(-num_classes + 1, num_classes))
    matrix = torch.zeros(num_classes, num_classes).double()
    for i in range(num_classes):
        for j in range(num_classes):
            matrix[i, j] = weight(i - j) / total if i != j else 0.0
        matrix[i, i] = 1 - matrix[i].sum()
    return matrix


def make_late_chain(family):
    """Five classes and 16 steps, at the last of which the rows of Qbar_s are alike if ever."""
    betas = torch.cat([torch.linspace(0.05, 0.6, NUM_STEPS), torch.full((10,), 0.9)]).double()
    return make_dense_chain(family, 5, betas)


def make_dense_chain(family, num_classes, betas=None):
    """A chain of ``num_classes`` classes, its mask counted in."""
    k, generator = num_classes, torch.Generator().manual_seed(0)
    betas = torch.linspace(0.05, 0.6, NUM_STEPS).double() if betas is None else betas
    eye = torch.eye(k).double()
    if family.startswith("gaussian"):
        limit = max(k // 3, 1) if family == "gaussian_banded" else None
        made = transitions.discretized_gaussian(k, betas, band_limit=limit)
        return DenseChain(made, torch.stack([gaussian_matrix(k, float(b), limit) for b in betas]))
    if family == "band":
        width = max(k // 4, 1)
        near = (torch.arange(k)[:, None] - torch.arange(k)).abs() <= width
        moves = near.double() / k * betas[:, None, None] * (1 - eye)
        matrices = moves + torch.diag_embed(1 - moves.sum(-1))
        return DenseChain(transitions.band(k, betas, width), matrices)
    if family in ("nearest_neighbor", "from_rate"):
        times = betas.cumsum(0)
        if family == "from_rate":
            rate = torch.rand(k, k, generator=generator).double()
            made = transitions.from_rate(rate - torch.diag(rate.sum(1)), times)
        else:
            points = torch.linspace(0, 1, k)[:, None].double() ** 2
            neighbors = min(2, k - 1)
            rate = torch.zeros(k, k).double()
            for j in range(k):
                order = (points[:, 0] - points[j, 0]).abs().argsort(stable=True)
                for i in order[order != j][:neighbors]:
                    rate[i, j] += 0.5 / neighbors
                    rate[j, i] += 0.5 / neighbors
            made = transitions.nearest_neighbor(points, neighbors, times)
        rate = rate * (1 - eye)
        rate = rate - torch.diag(rate.sum(1))
        steps = [torch.matrix_exp(rate * b) for b in betas]
        return DenseChain(made, torch.stack(steps))
    if family.startswith("sparse"):
        rate = torch.rand(k, k, generator=generator).double() * (1 - eye)
        rate = rate.where(rate > 0.5, 0) + torch.diag(torch.ones(k - 1).double(), 1)
        law = torch.full((k,), 1 / k, dtype=torch.float64)
        if family == "sparse_masked":
            rate[-1], rate[:, -1] = 0, 0.5
            rate[-1, -1] = 0
            law = eye[-1]
        made = sparse_rate_chain(
            family, rate.to_sparse().coalesce(), betas.cumsum(0), law,
            k - 1 if family == "sparse_masked" else -1,
        )  # fmt: skip
        rate = rate - torch.diag(rate.sum(1))
        return DenseChain(made, torch.stack([torch.matrix_exp(rate * b) for b in betas]))
    if family == "sinkhorn":
        made = transitions.nearest_neighbor(torch.rand(k, 2, generator=generator), k - 1, betas,
                                            method="sinkhorn")  # fmt: skip
        move = (1 - eye) / (k - 1)  # all others are neighbours
        return DenseChain(made, torch.stack([(1 - b) * eye + b * move for b in betas]))
    if family == "substitution":
        scores = torch.randn(k, k, generator=generator).double()
        move = torch.softmax(scores * math.log(2) / 2, dim=1)
        made = transitions.substitution(scores, betas)
        return DenseChain(made, torch.stack([(1 - b) * eye + b * move for b in betas]))
    if family == "from_matrices":
        # An upper triangle: some pairs are impossible.
        rows = torch.rand(len(betas), k, k, generator=generator).double().triu() + 0.5 * eye
        rows = rows / rows.sum(-1, keepdim=True)
        return DenseChain(transitions.from_matrices(rows), rows)
    if family == "mixture":
        parts = [transitions.uniform(k, betas), transitions.discretized_gaussian(k, betas)]
        made = transitions.mixture(parts, [0.3, 0.7])
        uniform = (1 - betas)[:, None, None] * eye + betas[:, None, None] / k
        gaussian = torch.stack([gaussian_matrix(k, float(b)) for b in betas])
        return DenseChain(made, 0.3 * uniform + 0.7 * gaussian)
    assert family == "with_mask"
    masking = schedules.jsd(len(betas))
    inner = transitions.discretized_gaussian(k - 1, betas)
    matrices = torch.zeros(len(betas), k, k).double()
    for t, (beta, mask) in enumerate(zip(betas, masking, strict=True)):
        if k > 2:
            matrices[t, :-1, :-1] = (1 - mask) * gaussian_matrix(k - 1, float(beta))
        matrices[t, :-1, -1] = mask
        matrices[t, -1, -1] = 1
    made = transitions.with_mask(inner, masking, data_has_mask=True)
    return DenseChain(made, matrices)


def one_way_chain(structure):
    """Five classes of which the higher never lead to the lower; by a full or a sparse matrix."""
    rate = torch.diag(torch.tensor([0.5, 0.3, 0.7, 0.2]).double(), 1)
    rate[0, 3] = 0.4
    if structure == "sparse":
        law = torch.full((5,), 0.2, dtype=torch.float64)
        times = torch.tensor([0.5, 0.9, 2.0], dtype=torch.float64)
        made = sparse_rate_chain("one way", rate.to_sparse().coalesce(), times, law, -1)
        steps = torch.tensor([0.5, 0.4, 1.1], dtype=torch.float64)
        rate = rate - torch.diag(rate.sum(1))
        return DenseChain(made, torch.stack([torch.matrix_exp(rate * step) for step in steps]))
    matrix = torch.eye(5).double() + rate
    matrices = (matrix / matrix.sum(1, keepdim=True)).expand(3, 5, 5)
    return DenseChain(transitions.from_matrices(matrices), matrices)


def sure_of_what_cannot_lead(chain, t, level):
    """All pairs but those that every class leads to, and logits ``level`` above the others there.

    Returns x_0, x_t, the logits, and in float64 those of the same prediction once such classes
    are dropped.
    """
    leads = chain.product(0, t) > 0
    x0, x_t = leads.nonzero().T
    some = ~leads.T[x_t].all(dim=1)
    x0, x_t = x0[some], x_t[some]
    logits = torch.randn(len(x0), chain.num_classes)
    possible = leads.T[x_t]
    logits = torch.where(possible, logits - level, logits + level)
    left = logits.double().masked_fill(~possible, -torch.inf)
    return x0, x_t, logits, left - left.amax(dim=1, keepdim=True)
