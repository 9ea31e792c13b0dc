"""Rank-one chains whose tokens are kept so seldom that float32 has no number for it."""

import pytest
import torch
from helpers.chains import (
    REVERSE,
    Chain,
    every_pair,
    make_chain,
    true_loss,
    true_p_posterior,
    true_q_posterior,
)
from helpers.compare import assert_close, assert_gradient_close

from d3pm_fast import functional, transitions

ALSO_BY = ("triton", "cuda")  # the fixture impl; see conftest.py
K = 4
BETAS = torch.full((181,), 0.5, dtype=torch.float64)  # Abar_t = 2^-t, below float32's range at 150
RARE = torch.tensor([0, 0.3, 0.7 - 1e-15, 1e-15], dtype=torch.float64)
STEPS = [(119, 120), (126, 127), (139, 140), (160, 161), (174, 180), (2, 161)]  # s -> t


def rare():
    """Class 0 is never entered, class 3 as seldom as float32's arithmetic allows."""
    return Chain(transitions.marginal(K, BETAS, RARE), BETAS, RARE.expand(len(BETAS), K))


CHAINS = {
    "absorbing": lambda: make_chain("absorbing_first", K, BETAS),
    "uniform": lambda: make_chain("uniform", K, BETAS),
    "rare": rare,
}


CASES = [(name, torch.float32) for name in CHAINS]
CASES += [("rare", torch.float64), ("absorbing", torch.float64), ("absorbing", torch.bfloat16)]


class Batch:
    """All possible pairs of every step, and logits that now and then forbid a class."""

    def __init__(self, name, dtype):
        self.chain = chain = CHAINS[name]()
        self.pairs = [every_pair(chain, t) for _, t in STEPS]
        sizes = [len(x0) for x0, _ in self.pairs]
        self.x0, self.x_t = map(torch.cat, zip(*self.pairs, strict=True))
        self.s, self.t = torch.tensor(STEPS).T.repeat_interleave(torch.tensor(sizes), dim=1)
        logits = 2 * torch.randn(len(self.t), K)
        forbidden = torch.rand(len(self.t), K) < 0.2
        forbidden[:, 2] = False
        self.logits = logits.masked_fill(forbidden, -torch.inf).to(dtype)
        self.exact = self.logits.double().requires_grad_()
        self.parts = self.exact.split(sizes)

    def truth(self, of):
        """``of(logits, x0, x_t, s, t)`` of each step's tokens, together."""
        rows = zip(self.parts, self.pairs, STEPS, strict=True)
        return torch.cat([of(logits, *pairs, *step) for logits, pairs, step in rows])

    def loss(self, **options):
        return self.truth(
            lambda logits, x0, x_t, s, t: true_loss(
                self.chain, logits, x0, x_t, t, s=s, first_step="posterior", **options
            )
        )

    def log_q(self):
        return self.truth(
            lambda _, x0, x_t, s, t: true_q_posterior(self.chain, x0, x_t, s, t)
        ).log()

    def log_p(self, **options):
        p = self.truth(
            lambda logits, _, x_t, s, t: true_p_posterior(
                self.chain, logits, x_t, s, t, first_step="posterior", **options
            )
        )
        possible = p.detach() > 0
        return p.where(possible, 1).log().where(possible, -torch.inf)


@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.parametrize("reverse", REVERSE)
def test_the_loss(impl, name, reverse, dtype):
    batch = Batch(name, dtype)
    options = {"reverse": reverse, "ce_weight": 0.5}
    truth = batch.loss(**options)
    leaf = batch.logits.requires_grad_()
    tokens = batch.x0, batch.x_t, batch.t, batch.s
    options |= {"reduction": "none", "first_step": "posterior"}
    loss = functional.loss(batch.chain.transition, leaf, *tokens, impl=impl, **options)
    assert_close(loss, truth, dtype, ulps=16, scale=truth.abs() + 1)
    rows = truth < torch.inf
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    (expected,) = torch.autograd.grad(truth[rows].sum(), batch.exact)
    assert_gradient_close(gradient[rows], expected[rows], dtype, ulps=16, floor=1)


@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.parametrize("reverse", REVERSE)
def test_posteriors(impl, name, reverse, dtype):
    batch = Batch(name, dtype)
    step = batch.x_t, batch.t, batch.s
    log_q = functional.q_posterior(batch.chain.transition, batch.x0, *step, dtype=dtype, impl=impl)
    leaf = batch.logits.requires_grad_()
    log_p = functional.p_posterior(
        batch.chain.transition, leaf, *step, reverse=reverse, first_step="posterior", impl=impl
    )
    truth = batch.log_p(reverse=reverse)
    for made, expected in ((log_q, batch.log_q()), (log_p, truth)):
        scale = expected.abs().nan_to_num(posinf=0) + 1
        assert_close(made, expected, dtype, ulps=16, scale=scale)
    upstream = torch.randn(leaf.shape).to(dtype) * (truth > -torch.inf)
    (gradient,) = torch.autograd.grad(log_p, leaf, upstream)
    (expected,) = torch.autograd.grad(truth, batch.exact, upstream.double())
    assert_gradient_close(gradient, expected, dtype, ulps=32, floor=1)


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("name", CHAINS)
def test_draws(kernels, name, reverse):
    batch = Batch(name, torch.float32)
    options = {"seeds": torch.arange(len(batch.t)), "reverse": reverse, "first_step": "posterior"}
    drawn = [
        functional.p_sample(
            batch.chain.transition, batch.logits, batch.x_t, batch.t, batch.s, impl=impl, **options
        )
        for impl in (kernels, "reference")
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("x_t", [0, 1])
def test_what_p_excludes_costs_infinity_however_unlikely_it_is(impl, x_t):
    """x_0 is still there at s with probability 2^-160, and p says never."""
    chain = CHAINS["absorbing" if x_t == 0 else "rare"]()
    x0, time = torch.tensor([1 - x_t]), torch.tensor([161])
    logits = torch.zeros(1, K).index_fill(1, x0, -torch.inf)
    loss = functional.loss(
        chain.transition, logits, x0, torch.tensor([x_t]), time, first_step="posterior", impl=impl
    )
    assert loss == torch.inf


def test_pairs_that_float64_has_no_number_for_either(kernels):
    chain = make_chain("absorbing_first", K, torch.full((1200,), 0.5))
    x, t, s = torch.tensor([1]), torch.tensor([1100]), torch.tensor([550])
    assert bool(functional.q_posterior(chain.transition, x, x, t, s, impl=kernels).isnan().all())
    logits = torch.zeros(1, K)
    loss = functional.loss(chain.transition, logits, x, x, t, s, impl=kernels)
    assert bool(loss.isnan())
