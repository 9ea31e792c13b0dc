"""What the paper says its loss is: masked language models, BERT, autoregression, VAEs, limits."""

import numpy as np
import pytest
import torch
from helpers.chains import FAMILIES, REVERSE, make_chain, one_hot
from helpers.paths import every_state, terms_of_every_state
from torch.nn.functional import cross_entropy

import d3pm_fast as d3
from d3pm_fast import functional, schedules, transitions

B, P, K = 4, 6, 5
MASK = K - 1


def data():
    """Words, none of which is the mask."""
    return torch.randint(MASK, (B, P))


def without_mask(logits):
    logits = logits.clone()
    logits[..., MASK] = -torch.inf
    return logits


@pytest.mark.parametrize("reverse", REVERSE)
def test_a_masked_language_model_is_the_absorbing_bound_reweighted(reverse):
    """D3PM, section 3.1 and appendix A.3: under the jsd schedule the weight of t is 1/t."""
    num_steps = 20
    chain = transitions.absorbing(K, schedules.jsd(num_steps), MASK)
    x0 = data()
    logits = torch.randn(B, P, K, dtype=torch.float64)
    for time in range(1, num_steps + 1):
        t = torch.full((B,), time)
        x_t = functional.q_sample(chain, x0, t)
        leaf = logits.clone().requires_grad_()
        bound = functional.loss(
            chain, without_mask(leaf), x0, x_t, t, reverse=reverse, first_step="posterior",
            reduction="sum",
        )  # fmt: skip
        masked = x_t == MASK
        language_model = cross_entropy(without_mask(leaf)[masked], x0[masked], reduction="sum")
        torch.testing.assert_close(bound, language_model / time, rtol=1e-12, atol=1e-14)
        gradients = (torch.autograd.grad(v, leaf)[0] for v in (bound * time, language_model))
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def test_bert_is_one_step_of_masks_and_uniform_noise():
    """D3PM, section 3.1: of 15 % of the words 80 % are masked, 10 % random, 10 % as they were.

    The bound is then the cross-entropy of the words, of all of them.
    """
    changed = 0.15 * 0.9
    chain = transitions.mask_and_uniform(
        K, [changed], MASK, uniform_share=0.1 / 0.9, data_has_mask=True
    )
    bert = (1 - changed) * torch.eye(K, dtype=torch.float64) + 0.15 * 0.1 / K
    bert[:, MASK] += 0.15 * 0.8
    torch.testing.assert_close(chain.q_bar_matrix(1), bert, rtol=1e-14, atol=0)

    x0, t = data(), torch.ones(B, dtype=torch.int64)
    logits = torch.randn(B, P, K, dtype=torch.float64)
    x_t = functional.q_sample(chain, x0, t)
    found = functional.loss(chain, logits, x0, x_t, t, first_step="logits")
    torch.testing.assert_close(found, cross_entropy(logits.flatten(0, 1), x0.flatten()))


def test_an_autoregressive_model_is_a_diffusion_that_masks_from_the_right():
    """D3PM, section 3.1. Step n masks token P - n, surely; each token has its own time.

    Of three steps of an absorbing chain the middle one masks: before it a token is at time 2,
    in it at time 3, after it at time 4.
    """
    chain = transitions.absorbing(K, [0.0, 0.0, 1.0, 0.0], MASK)
    x0 = data()
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(P, K**2, K, generator=generator, dtype=torch.float64)

    def denoiser(x):
        """Logits of each token from the two before it, as a causal network has them."""
        before = torch.nn.functional.pad(x, (2, 0), value=0)
        return without_mask(table[torch.arange(P), before[:, :P] * K + before[:, 1:-1]])

    place = torch.arange(P).expand(B, P)
    bound = torch.zeros(B, dtype=torch.float64)
    for step in range(1, P + 1):
        masked = P - step
        x_t = x0.where(place < masked, MASK)
        t = 3 - (place < masked).long() + (place > masked).long()
        bound += functional.loss(chain, denoiser(x_t), x0, x_t, t, reduction="batch")
    log_likelihood = denoiser(x0).log_softmax(-1).gather(-1, x0[..., None]).sum((1, 2))
    torch.testing.assert_close(bound, -log_likelihood, rtol=1e-12, atol=0)


@pytest.mark.parametrize("family", ["uniform", "marginal", "mask_and_uniform"])
def test_one_step_is_a_variational_autoencoder(family, monkeypatch):
    """``E_q(z|x)[-log p(x | z)] + KL(q(z | x) || p(z))``, z = x_1."""
    chain, states = make_chain(family, 3, [0.7]), every_state(3, 2)
    table = torch.randn(2, 9, 2, 3, dtype=torch.float64)
    diffusion = d3.D3PM(chain.transition, first_step="logits")
    found = terms_of_every_state(diffusion, chain, table.__getitem__, states, None, monkeypatch)
    terms, weights, prior = found
    assert terms.shape == (9, 9, 1)
    bound = (terms * weights).sum((1, 2)) + prior

    token = chain.matrix(1)
    encoder = torch.einsum("ac,bd->abcd", token, token).reshape(9, 9)
    decoder = table[1].log_softmax(-1)
    log_p = decoder[:, 0, states[:, 0]] + decoder[:, 1, states[:, 1]]  # by z, then x
    law = chain.transition.stationary()
    latent = torch.outer(law, law).flatten()
    autoencoder = -(encoder * log_p.T).sum(1) + (encoder * (encoder / latent).log()).sum(1)
    torch.testing.assert_close(bound, autoencoder, rtol=1e-12, atol=0)
    assert bool((bound > -torch.logsumexp(log_p + latent.log()[:, None], 0)).all())


@pytest.mark.parametrize("reverse", REVERSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_term_of_the_data_is_the_cross_entropy(family, reverse):
    chain = make_chain(family, K).transition
    logits = torch.randn(B, P, K, dtype=torch.float64)
    x0, t = data(), torch.ones(B, dtype=torch.int64)
    x_t = functional.q_sample(chain, x0, t)
    found = functional.loss(chain, logits, x0, x_t, t, reverse=reverse, first_step="logits")
    torch.testing.assert_close(found, cross_entropy(logits.flatten(0, 1), x0.flatten()))


def prediction(time, x_t):
    """Logits of one token that change smoothly with the time in [0, 1]."""
    logits = torch.tensor([1.2, -0.3, 0.4, 0.1], dtype=torch.float64) - 2 * time
    logits = logits * torch.tensor([1.0, 0.5, -0.7, 0.3], dtype=torch.float64)
    return logits + (1.5 - time) * one_hot(x_t, 4)


def finite_bound(chain, x0):
    """The expectation of all T terms, by enumeration of x_t; the prior is 0."""
    num_steps = chain.num_steps
    t = torch.arange(1, num_steps + 1).repeat_interleave(4)
    x_t = torch.arange(4).repeat(num_steps)
    token = torch.full_like(x_t, x0)
    weight = chain.log_reach(token, x_t, t).exp()
    logits = torch.stack([prediction(i / num_steps, x) for i, x in zip(t, x_t, strict=True)])
    if chain.mask_id >= 0:
        logits[:, chain.mask_id] = -torch.inf
    loss = functional.loss(chain, logits, token, x_t, t, first_step="posterior", reduction="none")
    return float((weight * loss.where(weight > 0, 0)).sum())


def integral(rate):
    """The integral over times in [0, 1], by Gauss and Legendre; the ends take more points."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    s = (nodes + 1) / 2
    times, slope = s**3 * (10 - 15 * s + 6 * s**2), 30 * s**2 * (1 - s) ** 2
    return sum(w / 2 * d * rate(u) for u, d, w in zip(times, slope, weights, strict=True))


def absorbing_rate(u, x0):
    """MDLM (Sahoo et al. 2024): ``-alpha' / (1 - alpha) (-log s[x_0])`` where masked.

    That is so with probability 1 - alpha: here, where alpha = 1 - u, the cross-entropy is left.
    """
    logits = prediction(u, torch.tensor(3))
    return float(cross_entropy(logits[:3], torch.tensor(x0)))


def uniform_rate(u, x0):
    """UDLM (Schiff et al. 2024), letter by letter, in expectation over z; alpha = 1 - u."""
    alpha, k, total = 1 - u, 4, 0.0
    for z in range(k):
        x = k * alpha * one_hot(x0, k) + u
        theta = k * alpha * torch.softmax(prediction(u, torch.tensor(z)), 0) + u
        ratio = x / x[z]
        inner = k / x[z] - k / theta[z] - (ratio * (theta[z] * x / (theta * x[z])).log()).sum()
        total += float(x[z] / k * -1 / (k * alpha) * inner)
    return total


@pytest.mark.parametrize("family", ["absorbing", "uniform"])
def test_many_steps_tend_to_the_bound_in_continuous_time(family):
    """The difference to the integral falls like 1/T: T times it is the same for every T."""
    x0, sizes = 1, np.array([64, 128, 256, 512])
    if family == "absorbing":
        limit = integral(lambda u: absorbing_rate(u, x0))
        chains = [transitions.absorbing(4, schedules.jsd(n), 3) for n in sizes]
    else:
        limit = integral(lambda u: uniform_rate(u, x0))
        chains = [transitions.uniform(4, schedules.jsd(n)) for n in sizes]
    errors = np.array([finite_bound(chain, x0) for chain in chains]) - limit
    assert 1e-5 < errors[-1] / limit < 1e-3
    np.testing.assert_allclose(errors * sizes, errors[-1] * sizes[-1], rtol=0.03)
