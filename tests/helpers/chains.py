"""Chains from their definition: explicit K x K matrices in float64, multiplied and enumerated.

Nothing here calls the library's mathematics; ``Chain.transition`` is what is under test.
"""

from dataclasses import dataclass

import torch

from d3pm_fast import transitions

FAMILIES = [
    "uniform",
    "absorbing_first",
    "absorbing_middle",
    "absorbing_last",
    "marginal",
    "marginal_with_zeros",
    "mask_and_uniform",
    "mask_and_uniform_by_step",
]
REVERSE = ["joint", "posterior_mean"]
FIRST_STEP = ["logits", "posterior"]


@dataclass(frozen=True)
class Chain:
    """``Q_t = (1 - beta_t) I + beta_t 1 v_t^T`` by ``betas`` (T,) and ``vectors`` (T, K)."""

    transition: transitions.RankOneTransition
    betas: torch.Tensor
    vectors: torch.Tensor

    @property
    def num_steps(self):
        return len(self.betas)

    @property
    def num_classes(self):
        return self.vectors.shape[1]

    def matrix(self, t):
        beta, vector = self.betas[t - 1], self.vectors[t - 1]
        return (1 - beta) * torch.eye(self.num_classes).double() + beta * vector

    def product(self, s, t):
        """``Q_{s+1} ... Q_t``, multiplied out."""
        result = torch.eye(self.num_classes).double()
        for step in range(s + 1, t + 1):
            result = result @ self.matrix(step)
        return result

    def forward(self, rows, s, t):
        """``rows Q_{s+1} ... Q_t`` for rows (N, K); step by step where K x K is too much."""
        if self.num_classes <= 64:
            return rows @ self.product(s, t)
        for beta, vector in zip(self.betas[s:t], self.vectors[s:t], strict=True):
            rows = (1 - beta) * rows + beta * rows.sum(-1, keepdim=True) * vector
        return rows

    def columns(self, x_t, s, t):
        """``Q_{s->t}[:, x_t]`` as rows (N, K)."""
        if self.num_classes <= 64:
            return self.product(s, t)[:, x_t].T
        columns = one_hot(x_t, self.num_classes)
        for step in range(t, s, -1):
            beta, vector = self.betas[step - 1], self.vectors[step - 1]
            columns = (1 - beta) * columns + beta * columns @ vector[:, None]
        return columns

    def edge_times(self):
        """1, 2, T - 1 and T."""
        return sorted({1, min(2, self.num_steps), max(1, self.num_steps - 1), self.num_steps})


def rising_betas(num_steps=6):
    """Betas that are neither equal nor special, the last of them large."""
    return torch.linspace(0.05, 0.6, num_steps, dtype=torch.float64)


def make_chain(family, num_classes, betas=None):
    betas = rising_betas() if betas is None else torch.as_tensor(betas, dtype=torch.float64)
    ones = torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    if family == "uniform":
        transition, vector = transitions.uniform(num_classes, betas), ones
    elif family.startswith("absorbing"):
        mask_id = {"first": 0, "middle": num_classes // 2, "last": num_classes - 1}[
            family.removeprefix("absorbing_")
        ]
        transition = transitions.absorbing(num_classes, betas, mask_id, data_has_mask=True)
        vector = one_hot(mask_id, num_classes)
    elif family.startswith("marginal"):
        vector = 1.0 + torch.arange(num_classes, dtype=torch.float64)
        if family == "marginal_with_zeros":
            vector[:: max(2, num_classes // 4)] = 0
        vector /= vector.sum()
        transition = transitions.marginal(num_classes, betas, vector)
    else:
        mask_id = num_classes // 2
        share = 0.3
        if family == "mask_and_uniform_by_step":
            share = torch.linspace(0.9, 0.1, len(betas), dtype=torch.float64)
        transition = transitions.mask_and_uniform(
            num_classes, betas, mask_id, share, data_has_mask=True
        )
        column = torch.as_tensor(share, dtype=torch.float64).reshape(-1, 1)
        vector = column * ones + (1 - column) * one_hot(mask_id, num_classes)
    return Chain(transition, betas, vector.expand(len(betas), num_classes))


def one_hot(index, num_classes):
    return torch.nn.functional.one_hot(torch.as_tensor(index), num_classes).double()


def every_pair(chain, t):
    """All ``(x_0, x_t)`` that the chain can make at t, as two flat tensors."""
    pairs = (chain.product(0, t) > 0).nonzero()
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()


def likely_pairs(chain, times, count, seed=0):
    """``x_0``, an ``x_t`` drawn from the chain, and t: ``count`` for each of ``times``."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randint(chain.num_classes, (len(times) * count,), generator=generator)
    t = torch.tensor(times).repeat_interleave(count)
    laws = [
        chain.forward(one_hot(part, chain.num_classes), 0, time)
        for part, time in zip(x0.split(count), times, strict=True)
    ]
    x_t = torch.multinomial(torch.cat(laws), 1, generator=generator).flatten()
    return x0, x_t, t


def true_q_posterior(chain, x0, x_t, s, t):
    """``q(x_s | x_t, x_0)`` by Bayes, ``(N, K)``."""
    joint = chain.columns(x_t, s, t) * chain.forward(one_hot(x0, chain.num_classes), 0, s)
    return joint / joint.sum(-1, keepdim=True)


def true_p_posterior(chain, logits, x_t, s, t, reverse="joint", first_step="posterior"):
    """``p(x_s | x_t)`` with ``s = softmax(logits)``, ``(N, K)``, differentiable."""
    predicted = torch.softmax(logits.double(), dim=-1)
    if s == 0 and first_step == "logits":
        return predicted
    column = chain.columns(x_t, s, t)
    if reverse == "posterior_mean":
        reach = chain.columns(x_t, 0, t)  # Qbar_t[i, x_t]
        predicted = torch.where(reach > 0, predicted / reach.where(reach > 0, 1), 0)
    joint = column * chain.forward(predicted, 0, s)
    # A state that nothing else leads to was never left, whatever the model says.
    alone = (column > 0).sum(-1, keepdim=True) == 1
    joint = joint.where(~alone, (column > 0).double())
    return joint / joint.sum(-1, keepdim=True)


def true_loss(
    chain,
    logits,
    x0,
    x_t,
    t,
    reverse="joint",
    first_step="posterior",
    vb_weight=1.0,
    ce_weight=0.0,
    s=None,
):
    """``vb KL(q || p) + ce CE`` of tokens at one time t, ``(N,)``, differentiable."""
    s = t - 1 if s is None else s
    q = true_q_posterior(chain, x0, x_t, s, t)
    p = true_p_posterior(chain, logits, x_t, s, t, reverse, first_step)
    ratio = (q / p.where(q > 0, 1)).where(q > 0, 1)
    loss = vb_weight * (q * ratio.log()).sum(-1)
    if ce_weight == 0:
        return loss
    cross_entropy = torch.nn.functional.cross_entropy(logits.double(), x0, reduction="none")
    return loss + ce_weight * cross_entropy


def gradient_terms(chain, logits, x0, x_t, t, reverse="joint", first_step="posterior"):
    """The size of the terms of each row's gradient, ``(N,)``, see :func:`exact.exact_loss`."""
    if t == 1 and first_step == "logits":
        return torch.zeros(len(x0), dtype=torch.float64)  # s - 1 is -(the sum of the others)
    predicted = torch.softmax(logits.double(), dim=-1)
    column = chain.columns(x_t, t - 1, t)
    if reverse == "posterior_mean":
        reach = chain.columns(x_t, 0, t)
        predicted = torch.where(reach > 0, predicted / reach.where(reach > 0, 1), 0)
        predicted = predicted / predicted.sum(-1, keepdim=True)
    f = chain.forward(predicted, 0, t - 1)
    z = (column * f).sum(-1, keepdim=True)
    q = true_q_posterior(chain, x0, x_t, t - 1, t)
    r = (column / z - (q / f).where(q > 0, 0)).nan_to_num(0, 0, 0).abs()
    bar = (1 - torch.as_tensor(chain.betas[: t - 1], dtype=torch.float64)).prod()
    around = (predicted * r).sum(-1, keepdim=True)
    return torch.linalg.vector_norm(bar * predicted * (r + around), dim=-1)
