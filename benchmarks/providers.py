"""The other ways: dense tables with an epsilon, closed forms in log space, Gumbel noise, copies.

Each class computes tables once, as a user's module would, and has one method an operation.
``t`` is (B,) in 1..T, tokens are (B, P), logits (B, P, K), all float32 or int64. The model is
p of D3PM's eq. 4 for t >= 2 and the softmax of the logits for t = 1.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from d3pm_fast.transitions import RankOneTransition, Transition

from .host_chains import MASKED_UNIFORM, WITH_MASK

BACKEND = "inductor"
DENSE_TABLE_LIMIT = 1 << 30  # bytes of one T x K x K table
BELOW_EPS = MASKED_UNIFORM, WITH_MASK  # most of their entries are


def loss_and_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient, of a fresh leaf that shares the logits' memory."""
    leaf = logits.detach().requires_grad_()
    value = loss(leaf)
    value.backward()
    return value.detach(), leaf.grad


def copy(num_bytes: int) -> Callable[[], Tensor]:
    """Return a copy that moves ``num_bytes`` in all: it reads one half and writes the other."""
    source = torch.ones(max(num_bytes // 2, 1), dtype=torch.uint8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``function`` under ``torch.compile``, without a break of the graph."""
    return torch.compile(function, fullgraph=True, dynamic=False, backend=BACKEND)


def gumbel_argmax(log_p: Tensor) -> Tensor:
    """Draw from each row by adding a Gumbel number to every entry."""
    noise = torch.rand_like(log_p).clamp(min=torch.finfo(log_p.dtype).tiny)
    return (log_p - torch.log(-torch.log(noise))).argmax(dim=-1)


class Dense:
    """As most public code does it: one-hot vectors, matrices of every step, eps in the logs."""

    EPS = 1e-6

    def __init__(self, transition: Transition) -> None:
        times = range(transition.num_steps + 1)
        self.num_classes = transition.num_classes
        self.q_bar = torch.stack([transition.q_bar_matrix(t).float() for t in times])
        steps = [transition.q_matrix(max(t, 1)).T.float() for t in times]
        self.q_transposed = torch.stack(steps)

    @staticmethod
    def fits(transition: Transition) -> bool:
        """Whether the tables are of a size that a user could keep, and EPS is below the entries."""
        num_bytes = 4 * transition.num_steps * transition.num_classes**2
        return num_bytes <= DENSE_TABLE_LIMIT and transition.family not in BELOW_EPS

    def log_posterior(self, x0_probs: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the unnormalized log posterior for a distribution over x_0."""
        likelihood = self.q_transposed[t[:, None], x_t]
        prior = torch.einsum("bpk,bkj->bpj", x0_probs, self.q_bar[t - 1])
        return torch.log(likelihood + self.EPS) + torch.log(prior + self.EPS)

    def loss(self, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        one_hot = F.one_hot(x0, self.num_classes).float()
        first = (t == 1)[:, None, None]
        log_q = self.log_posterior(one_hot, x_t, t)
        log_p = self.log_posterior(torch.softmax(logits, dim=-1), x_t, t)
        log_p = torch.where(first, logits, log_p)
        q, p = torch.softmax(log_q, dim=-1), torch.log_softmax(log_p, dim=-1)
        divergence = (q * (torch.log(q + self.EPS) - p)).sum(dim=-1)
        decoder = -(one_hot * p).sum(dim=-1)
        return torch.where(t[:, None] == 1, decoder, divergence).mean()

    def q_sample(self, x0: Tensor, t: Tensor) -> Tensor:
        return gumbel_argmax(torch.log(self.q_bar[t[:, None], x0] + self.EPS))


@lru_cache(maxsize=1)
def dense(transition: Transition) -> Dense | None:
    """Return the tables of a transition, or None where they do not fit."""
    return Dense(transition) if Dense.fits(transition) else None


class ClosedForm:
    """As a careful user would write a family down: no matrices, everything in log space.

    t = 1 is replaced in the end, so the step's table is read at t >= 2, where all logs are finite.
    """

    step: Tensor  # (T + 1, n): logs of the numbers that the step to t - 1 needs

    def __init__(self, transition: RankOneTransition) -> None:
        self.classes = torch.arange(transition.num_classes, device=transition.device)
        self.mask_id = transition.mask_id
        self.q_bar_keep = transition.product_table[:, 0].float()

    def loss(self, logits: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        log_s = torch.log_softmax(logits, dim=-1)
        cross_entropy = -log_s.gather(-1, x0.unsqueeze(-1)).squeeze(-1)
        divergence = self.divergence(log_s, x0, x_t, t)
        return torch.where(t[:, None] == 1, cross_entropy, divergence).mean()

    def log_p(self, logits: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        log_s = torch.log_softmax(logits, dim=-1)
        return torch.where(t[:, None, None] == 1, log_s, self.log_p_later(log_s, x_t, t))

    def q_sample_gumbel(self, x0: Tensor, t: Tensor) -> Tensor:
        return gumbel_argmax(self.log_q_bar(x0, t))

    def p_sample_gumbel(self, logits: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return gumbel_argmax(self.log_p(logits, x_t, t))

    def p_sample_multinomial(self, logits: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        p = self.log_p(logits, x_t, t).exp()
        return torch.multinomial(p.flatten(0, 1), 1).view(x_t.shape)

    def is_kept(self, x0: Tensor, t: Tensor) -> Tensor:
        """Draw which tokens q(x_t | x_0) keeps: the mixture form needs no row of K entries."""
        return torch.rand(x0.shape) < self.q_bar_keep[t][:, None]

    def is_class(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1) == self.classes

    def logs(self, t: Tensor) -> tuple[Tensor, ...]:
        """Return the columns of ``step`` at max(t, 2), each (B, 1, 1)."""
        return self.step[t.clamp(min=2)][:, None].split(1, dim=-1)


class ClosedUniform(ClosedForm):
    """The uniform chain: a matrix is its entry on the diagonal and its entry off it."""

    def __init__(self, transition: RankOneTransition) -> None:
        super().__init__(transition)
        k = transition.num_classes
        keep, spread, _, bar_keep, bar_spread, _, _ = transition.step_table.unbind(-1)
        columns = keep + spread / k, spread / k, bar_keep + bar_spread / k, bar_spread / k, bar_keep
        self.step = torch.stack(columns, dim=-1).log().float()
        bar_keep, bar_spread, _ = transition.product_table.unbind(-1)
        columns = bar_keep + bar_spread / k, bar_spread / k
        self.product = torch.stack(columns, dim=-1).log().float()

    def divergence(self, log_s: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        log_same, log_other, log_bar_same, log_bar_other, _ = self.logs(t)
        likelihood = torch.where(self.is_class(x_t), log_same, log_other)
        prior = torch.where(self.is_class(x0), log_bar_same, log_bar_other)
        log_q = torch.log_softmax(likelihood + prior, dim=-1)
        return (log_q.exp() * (log_q - self.log_p_later(log_s, x_t, t))).sum(dim=-1)

    def log_p_later(self, log_s: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        log_same, log_other, _, log_bar_other, log_bar_keep = self.logs(t)
        likelihood = torch.where(self.is_class(x_t), log_same, log_other)
        log_f = torch.logaddexp(log_bar_keep + log_s, log_bar_other)
        return torch.log_softmax(likelihood + log_f, dim=-1)

    def log_q_bar(self, x0: Tensor, t: Tensor) -> Tensor:
        log_same, log_other = self.product[t][:, None].split(1, dim=-1)
        return torch.where(self.is_class(x0), log_same, log_other)

    def q_sample_mixture(self, x0: Tensor, t: Tensor) -> Tensor:
        return torch.where(self.is_kept(x0, t), x0, torch.randint_like(x0, len(self.classes)))


class ClosedAbsorbing(ClosedForm):
    """The absorbing chain: a masked token's posterior has two entries, any other's has one."""

    def __init__(self, transition: RankOneTransition) -> None:
        super().__init__(transition)
        _, _, to_mask, bar_keep, _, bar_mask, _ = transition.step_table.unbind(-1)
        self.step = torch.stack([to_mask, bar_keep, bar_mask], dim=-1).log().float()

    def divergence(self, log_s: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        log_beta, log_bar_keep, log_bar_mask = (x.squeeze(-1) for x in self.logs(t))
        log_data = log_beta + log_bar_keep + log_s.gather(-1, x0.unsqueeze(-1)).squeeze(-1)
        log_s_mask = log_s[..., self.mask_id]
        log_mask = torch.logaddexp(log_bar_keep + log_s_mask, log_bar_mask)
        log_other = log_beta + log_bar_keep + torch.log(-torch.expm1(log_s_mask))
        log_total = torch.logaddexp(log_mask, log_other)
        q_data = torch.sigmoid(log_beta + log_bar_keep - log_bar_mask)
        q_mask = torch.sigmoid(log_bar_mask - log_beta - log_bar_keep)
        divergence = q_data * (q_data.log() - log_data) + q_mask * (q_mask.log() - log_mask)
        return torch.where(x_t == self.mask_id, divergence + log_total, 0.0)

    def log_p_later(self, log_s: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        log_beta, log_bar_keep, log_bar_mask = self.logs(t)
        log_mask = torch.logaddexp(log_bar_keep + log_s, log_bar_mask)
        is_mask = self.classes == self.mask_id
        log_joint = torch.where(is_mask, log_mask, log_beta + log_bar_keep + log_s)
        stays = torch.where(self.is_class(x_t), 0.0, -torch.inf)
        masked = (x_t == self.mask_id).unsqueeze(-1)
        return torch.where(masked, torch.log_softmax(log_joint, dim=-1), stays)

    def log_q_bar(self, x0: Tensor, t: Tensor) -> Tensor:
        keep = self.q_bar_keep[t][:, None, None]
        is_mask = self.classes == self.mask_id
        return torch.where(self.is_class(x0), keep, torch.where(is_mask, 1 - keep, 0.0)).log()

    def q_sample_mixture(self, x0: Tensor, t: Tensor) -> Tensor:
        return torch.where(self.is_kept(x0, t), x0, self.mask_id)


@lru_cache(maxsize=1)
def closed_form(transition: RankOneTransition) -> ClosedForm:
    """Return the closed form of a uniform or an absorbing chain."""
    return (ClosedUniform if transition.family == "uniform" else ClosedAbsorbing)(transition)


def has_closed_form(transition: Transition) -> bool:
    """Whether it is written down here."""
    return transition.family in ("uniform", "absorbing")
