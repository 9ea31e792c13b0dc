"""Toy models by enumeration: every x_t of a few tokens, every path from x_T to x_0."""

import itertools

import torch

from d3pm_fast import functional

from .chains import true_p_posterior


def every_state(num_classes, num_tokens):
    """All K^P values of P tokens, int64 ``(K^P, P)``; a state's row is its number."""
    return torch.tensor(list(itertools.product(range(num_classes), repeat=num_tokens)))


def product_law(rows, states):
    """Laws of independent tokens ``(N, P, K)`` as laws of the states, ``(N, K^P)``."""
    tokens = range(states.shape[1])
    return torch.stack([rows[:, n, states[:, n]] for n in tokens]).prod(0)


def forward_law(chain, states, s, t):
    """``q(x_t | x_s)`` of every pair of states, ``(K^P, K^P)``."""
    return product_law(chain.product(s, t)[states], states)


def exact_log_predictions(chain, law, states, t):
    """``log q(x_0 | x_t)`` of each token under a law of the states, ``(K^P, P, K)``."""
    joint = forward_law(chain, states, 0, t).T * law
    predicted = torch.stack([joint @ hot for hot in one_hot_states(states, chain)], dim=1)
    return (predicted / joint.sum(1)[:, None, None]).nan_to_num(1).log()


def one_hot_states(states, chain):
    return torch.nn.functional.one_hot(states, chain.num_classes).double().unbind(1)


def as_denoiser(logits_of, num_classes):
    """The denoiser that looks its logits ``(K^P, P, K)`` of each t up by the state."""

    def denoise(x_t, t):
        number = torch.zeros(len(x_t), dtype=torch.int64)
        for token in x_t.unbind(1):
            number = number * num_classes + token
        times, which = t.unique(return_inverse=True)
        return torch.stack([logits_of(int(time)) for time in times])[which, number]

    return denoise


def model_law(chain, logits_of, states, times, **model):
    """``p(x_0)`` of every state: the sum over all paths at the times T > ... > 0."""
    stationary = chain.transition.stationary()
    law = product_law(stationary.expand(1, states.shape[1], -1), states)[0]
    for t, s in itertools.pairwise(times):
        logits = logits_of(t)
        rows = [
            true_p_posterior(chain, logits[:, n], states[:, n], s, t, **model)
            for n in range(states.shape[1])
        ]
        law = law @ product_law(torch.stack(rows, dim=1), states).nan_to_num(0)
    return law


def terms_of_every_state(diffusion, chain, logits_of, states, steps, monkeypatch):
    """What the bound makes of every x_0 and x_t.

    Returns the terms, float64 ``(K^P, K^P, n)`` by x_0, x_t and step, their probabilities
    ``q(x_t | x_0)``, and the prior ``(K^P,)``.
    """
    n = len(states)
    monkeypatch.setattr(functional, "q_sample", lambda *_, **__: states)
    denoiser = as_denoiser(logits_of, chain.num_classes)
    bounds = [
        diffusion.elbo(denoiser, x0.expand(n, -1), steps=steps, batch_size=n) for x0 in states
    ]
    monkeypatch.undo()
    times = bounds[0].times.tolist()
    weights = torch.stack([forward_law(chain, states, 0, t) for t in times], dim=-1)
    terms = torch.stack([bound.terms for bound in bounds])
    return terms.where(weights > 0, 0), weights, torch.stack([b.prior[0] for b in bounds])
