"""Losses of other papers, each as it is written there: the bound's density in continuous time.

``test_hosts.py`` has more of them: DUO, block diffusion, and those of programs in T steps.
"""

import math

import pytest
import torch
from helpers.compare import agree
from torch.nn.functional import cross_entropy, one_hot

from d3pm_fast import functional, transitions
from d3pm_fast.schedules import continuous

ALSO_BY = ("triton", "cuda")  # the fixture impl; see conftest.py
K = 6
MASK = K - 1
SCHEDULES = {  # ours, and alpha as the papers have it
    "log_linear": (continuous.log_linear(1e-3), lambda t: 1 - 0.999 * t),
    "cosine": (continuous.cosine(), lambda t: (math.pi / 2 * t).cos()),
    "polynomial": (continuous.polynomial(2), lambda t: 1 - t**2),
}


def drift(function, t):
    """A function of time and its slope, ``(B, 1)``."""
    t = t[:, None].clone().requires_grad_()
    value = function(t)
    return value.detach(), torch.autograd.grad(value.sum(), t)[0]


class Problem:
    """Tokens of four times; x_t is x_0, a class that it is not, or the mask."""

    def __init__(self, with_mask):
        visible = K - with_mask
        self.t = torch.tensor([0.1, 0.4, 0.8, 0.99], dtype=torch.float64)
        self.x0 = torch.randint(visible, (4, 6))
        moved = (self.x0 + torch.randint(1, visible, (4, 6))) % visible
        place = torch.arange(6)
        self.x_t = self.x0.where(place < 2, moved)
        if with_mask:
            self.x_t = self.x_t.where(place < 4, MASK)
        self.leaf = torch.randn(4, 6, K, dtype=torch.float64, requires_grad=True)
        is_mask = torch.arange(K) == MASK if with_mask else torch.zeros(K, dtype=torch.bool)
        self.logits = self.leaf.masked_fill(is_mask, -torch.inf)

    def without_moves(self):
        """As an absorbing chain has it."""
        self.x_t = self.x_t.where((self.x_t == self.x0) | (self.x_t == MASK), MASK)
        return self

    @property
    def entropy(self):
        return cross_entropy(self.logits.movedim(-1, 1), self.x0, reduction="none")

    def agrees(self, chain, published, impl, t=None):
        loss = functional.loss(
            chain, self.leaf, self.x0, self.x_t, self.t if t is None else t,
            reduction="none", impl=impl,
        )  # fmt: skip
        agree(loss, published, self.leaf)


@pytest.mark.parametrize("name", SCHEDULES)
def test_masked_diffusion(impl, name):
    """MDLM, MD4: ``-alpha' / (1 - alpha)`` times the cross-entropy of masked tokens."""
    schedule, alpha_of = SCHEDULES[name]
    case = Problem(with_mask=True).without_moves()
    alpha, slope = drift(alpha_of, case.t)
    published = (-slope / (1 - alpha) * case.entropy).where(case.x_t == MASK, 0)
    case.agrees(transitions.absorbing(K, schedule, MASK), published, impl)


def test_each_block_may_have_its_time(impl):
    """Block diffusion: masked diffusion of every block, at times of its own."""
    case = Problem(with_mask=True).without_moves()
    times = torch.stack([case.t, 0.7 * case.t, 1 - case.t], dim=1).repeat_interleave(2, dim=1)
    published = (case.entropy / times).where(case.x_t == MASK, 0)
    case.agrees(transitions.absorbing(K, continuous.linear(), MASK), published, impl, times)


def test_llada_leaves_a_factor_out(impl):
    """It divides by p_mask(t) and not by ``p_mask / p_mask'``: the ratio is 1 / (1 - eps)."""
    eps = 1e-3
    p_mask = continuous.from_alpha(
        lambda t: (1 - eps) * (1 - t), one_minus_alpha=lambda t: eps + (1 - eps) * t
    )
    case = Problem(with_mask=True).without_moves()
    llada = case.entropy / ((1 - eps) * case.t + eps)[:, None]
    published = (1 - eps) * llada.where(case.x_t == MASK, 0)
    case.agrees(transitions.absorbing(K, p_mask, MASK), published, impl)


def score_entropy(score, ratio, x_t):
    """SEDD: ``sum_{j != x_t} s_j - r_j log s_j + r_j (log r_j - 1)``."""
    constant = torch.special.xlogy(ratio, ratio) - ratio
    terms = score - torch.special.xlogy(ratio, score.where(ratio > 0, 1)) + constant
    return terms.where(torch.arange(K) != x_t[..., None], 0).sum(-1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_score_entropy_of_an_absorbing_chain(impl, name):
    """SEDD, with its constant: ``sigma'`` times that of masked tokens, ``alpha = exp(-sigma)``."""
    schedule, alpha_of = SCHEDULES[name]
    case = Problem(with_mask=True).without_moves()
    sigma, slope = drift(lambda t: -alpha_of(t).log(), case.t)
    odds = 1 / sigma.expm1()[..., None]
    score, ratio = odds * case.logits.softmax(-1), odds * one_hot(case.x0, K)
    published = slope * score_entropy(score, ratio, case.x_t)
    published = published.where(case.x_t == MASK, 0)
    case.agrees(transitions.absorbing(K, schedule, MASK), published, impl)


@pytest.mark.parametrize("name", SCHEDULES)
def test_score_entropy_of_a_uniform_chain(impl, name):
    """SEDD, with its constant: ``sigma' / K`` times that of all tokens."""
    schedule, alpha_of = SCHEDULES[name]
    case = Problem(with_mask=False)
    sigma, slope = drift(lambda t: -alpha_of(t).log(), case.t)
    odds, here = 1 / sigma.expm1()[..., None], case.x_t[..., None]
    laws = 1 + K * odds * case.logits.softmax(-1), 1 + K * odds * one_hot(case.x0, K)
    score, ratio = (law / law.gather(-1, here) for law in laws)
    published = slope / K * score_entropy(score, ratio, case.x_t)
    case.agrees(transitions.uniform(K, schedule), published, impl)


@pytest.mark.parametrize("name", SCHEDULES)
def test_uniform_diffusion(impl, name):
    """UDLM, eq. 19."""
    schedule, alpha_of = SCHEDULES[name]
    case = Problem(with_mask=False)
    alpha, slope = drift(alpha_of, case.t)
    data, model = (
        K * alpha[..., None] * x + 1 - alpha[..., None]
        for x in (one_hot(case.x0, K), case.logits.softmax(-1))
    )
    here = case.x_t[..., None]
    data_z, model_z = data.gather(-1, here), model.gather(-1, here)
    logs = (data / data_z * (model_z / model * data / data_z).log()).sum(-1)
    published = -slope / (K * alpha) * ((K / model_z - K / data_z).squeeze(-1) + logs)
    case.agrees(transitions.uniform(K, schedule), published, impl)


@pytest.mark.parametrize(("p_uniform", "gamma"), [(0.1, 1.0), (0.2, 0.5), (0.5, 1.5)])
def test_generalized_interpolation(impl, p_uniform, gamma):
    """GIDD: ``w_t (KL + IS)``; w_t has a value for the mask, for x_0, and for other classes."""
    case = Problem(with_mask=True)
    t = case.t[:, None]
    c = 2**gamma * p_uniform / (1 - p_uniform) * (t * (1 - t)) ** (gamma / 2)
    share, noise = c[..., None] / (K - 1), one_hot(torch.tensor(MASK), K)
    kept, rest = (1 - t)[..., None], share * (1 - noise) + t[..., None] * noise
    laws = one_hot(case.x0, K), case.logits.softmax(-1)
    data, model = ((kept * law + rest) / (1 + c)[..., None] for law in laws)
    grown = gamma * (1 - 2 * t) / (2 * t * (1 - t)) + 1 / (1 - t)  # c' / c + 1 / (1 - t)
    weight = grown.expand(4, 6).where(case.x_t != case.x0, c * grown / ((K - 1) * (1 - t) + c))
    weight = weight.where(case.x_t != MASK, 1 / (t * (1 - t)))
    here = case.x_t[..., None]
    ratio = (data / model).gather(-1, here).squeeze(-1)
    divergence = (data * (data / model).log()).sum(-1)
    published = weight * (divergence + ratio - ratio.log() - 1)
    case.agrees(transitions.gidd(K, MASK, p_uniform, gamma), published, impl)


def steps_of(chain, case, num_steps):
    """``T KL(q(x_s | x_t, x_0) || p(x_s | x_t))``, s = t - 1 / T, by explicit matrices."""
    each = []
    for t, x0, x_t, logits in zip(case.t.tolist(), case.x0, case.x_t, case.logits, strict=True):
        before, step = chain.q_bar_matrix(t - 1 / num_steps), chain.q_matrix(t, t - 1 / num_steps)
        laws = one_hot(x0, K).double(), logits.softmax(-1)
        q, p = ((law @ before) * step.mT[x_t] for law in laws)
        q, p = (joint / joint.sum(-1, keepdim=True) for joint in (q, p))
        logs = torch.special.xlogy(q, q / p.where(q > 0, 1))
        each.append(num_steps * logs.sum(-1))
    return torch.stack(each)


def test_steps_of_a_mask_have_the_density_exactly(impl):
    """For an alpha that falls evenly: T times the chance to be unmasked in a step is ``1 / t``."""
    case = Problem(with_mask=True).without_moves()
    chain = transitions.absorbing(K, continuous.linear(), MASK)
    for num_steps in (100, 1000):
        case.agrees(chain, steps_of(chain, case, num_steps), impl)


def test_steps_of_a_uniform_chain_tend_to_the_density(impl):
    """The difference falls like 1 / T, of loss and gradient."""
    case, chain = Problem(with_mask=False), transitions.uniform(K, continuous.linear())
    case.t[-1] = 0.9
    limit = functional.loss(
        chain, case.leaf, case.x0, case.x_t, case.t, reduction="none", impl=impl
    )
    (slope,) = torch.autograd.grad(limit.sum(), case.leaf)
    scaled = []
    for num_steps in (100, 1000, 10_000):
        value = steps_of(chain, case, num_steps)
        (gradient,) = torch.autograd.grad(value.sum(), case.leaf, retain_graph=True)
        errors = (value - limit) / limit, (gradient - slope) / slope.norm()
        scaled.append([num_steps * error.detach().abs().max() for error in errors])
    scaled = torch.tensor(scaled)
    assert (scaled > 0.1).all()
    torch.testing.assert_close(scaled, scaled[-1:].expand_as(scaled), rtol=0.02, atol=0)
