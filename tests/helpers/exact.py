"""The loss and its gradient in 60 decimal digits and more, for rows where float64 would cancel."""

import mpmath
import torch
from mpmath import mpf

DIGITS = 60


def exact_products(chain, last=None):
    """``(abar_t, ubar_t)`` of ``Qbar_t = abar_t I + 1 ubar_t^T`` for t = 0..last (default T)."""
    last = chain.num_steps if last is None else last
    with mpmath.workdps(DIGITS):
        bars = [(mpf(1), [mpf(0)] * chain.num_classes)]
        for t in range(1, last + 1):
            keep, spread = exact_step(chain, t)
            bar, ubar = bars[-1]
            bars.append((keep * bar, [keep * b + u for b, u in zip(ubar, spread, strict=True)]))
    return bars


def exact_step(chain, t):
    """``(a_t, u_t)`` of ``Q_t = a_t I + 1 u_t^T``."""
    beta, vector = mpf(chain.betas[t - 1].item()), [mpf(v) for v in chain.vectors[t - 1].tolist()]
    total = mpmath.fsum(vector)
    return 1 - beta, [beta * v / total for v in vector]


def exact_loss(
    chain, logits, x0, x_t, t, reverse="joint", first_step="logits", vb_weight=1.0, ce_weight=0.0
):
    """Loss ``(N,)``, gradient ``(N, K)`` and its terms ``(N,)`` of rows at their own times, float64.

    With ``r_j = Q_t[j, x_t] / Z - q_j / f_j`` the bound's gradient is
    ``s_i (abar r_i + sum_j ubar_j r_j)``. Its entries can be smaller than the terms of this sum,
    whose size is the third result, and then hold only the digits that are left.
    """
    losses, gradients, sizes = [], [], []
    columns = (logits.double(), x0, x_t, t)
    for row in zip(*map(torch.Tensor.tolist, columns), strict=True):
        with mpmath.workdps(DIGITS + _digits_between(row[0])):
            cross, cross_gradient = _cross_entropy(row[0], row[1])
            bound, bound_gradient, terms = _bound(chain, *row, reverse, first_step)
            losses.append(float(vb_weight * bound + ce_weight * cross))
            pairs = zip(bound_gradient, cross_gradient, strict=True)
            gradients.append([float(vb_weight * b + ce_weight * c) for b, c in pairs])
            sizes.append(float(vb_weight * mpmath.norm(terms)))
    return tuple(torch.tensor(v, dtype=torch.float64) for v in (losses, gradients, sizes))


def _digits_between(logits):
    """How far apart the probabilities are; float64 has no numbers below 1e-324 anyway."""
    finite = [value for value in logits if value > -float("inf")]
    return min(700, int(max(finite) - min(finite)))


def _softmax(logits):
    weights = [mpmath.exp(mpf(value)) for value in logits]
    total = mpmath.fsum(weights)
    return [w / total for w in weights]


def _cross_entropy(logits, x0):
    probabilities = _softmax(logits)
    return -mpmath.log(probabilities[x0]), [
        p - (i == x0) for i, p in enumerate(probabilities)
    ]


def _bound(chain, logits, x0, x_t, t, reverse, first_step):
    if t == 1 and first_step == "logits":
        return *_cross_entropy(logits, x0), [0]
    classes = range(chain.num_classes)
    keep, spread = exact_step(chain, t)
    bar, ubar = exact_products(chain, t - 1)[-1]
    column = [spread[x_t] + (keep if j == x_t else 0) for j in classes]
    if sum(c > 0 for c in column) == 1:
        return mpf(0), [mpf(0)] * chain.num_classes, [0]

    predicted = _softmax(logits)
    if reverse == "posterior_mean":
        reach = [keep * (bar * (i == x_t) + ubar[x_t]) + spread[x_t] for i in classes]
        tilted = [p / r for p, r in zip(predicted, reach, strict=True)]
        total = mpmath.fsum(tilted)
        predicted = [p / total for p in tilted]
    model = [bar * p + u for p, u in zip(predicted, ubar, strict=True)]
    truth = [bar * (j == x0) + u for j, u in enumerate(ubar)]
    z = mpmath.fsum(c * f for c, f in zip(column, model, strict=True))
    zq = mpmath.fsum(c * d for c, d in zip(column, truth, strict=True))
    q = [c * d / zq for c, d in zip(column, truth, strict=True)]
    p = [c * f / z for c, f in zip(column, model, strict=True)]
    loss = mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(q, p, strict=True) if a > 0)

    r = [c / z - (a / f if a > 0 else 0) for c, a, f in zip(column, q, model, strict=True)]
    least = mpf(10) ** (5 - mpmath.mp.dps)  # what a difference of equal numbers leaves
    r = [v if abs(v) > least * c / z else mpf(0) for v, c in zip(r, column, strict=True)]
    shared = mpmath.fsum(u * v for u, v in zip(ubar, r, strict=True))
    pulls = [bar * v + shared for v in r]
    mean = mpmath.fsum(s * v for s, v in zip(predicted, pulls, strict=True))
    around = mpmath.fsum(u * abs(v) for u, v in zip(ubar, r, strict=True))
    terms = [s * (bar * abs(v) + around) for s, v in zip(predicted, r, strict=True)]
    return loss, [s * (v - mean) for s, v in zip(predicted, pulls, strict=True)], terms
