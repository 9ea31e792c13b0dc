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
    chain, logits, x0, x_t, t, reverse="joint", first_step="posterior", vb_weight=1.0, ce_weight=0.0
):
    """Loss ``(N,)``, gradient ``(N, K)`` and its terms ``(N,)`` of rows at their own times.

    With ``r_j = Q_t[j, x_t] / Z - q_j / f_j`` the bound's gradient is
    ``abar s_i (r_i - sum_j s_j r_j)``. Its entries can be smaller than the terms of this sum,
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
    return min(320, int(max(finite) - min(finite)))


def _softmax(logits):
    weights = [mpmath.exp(mpf(value)) for value in logits]
    total = mpmath.fsum(weights)
    return [w / total for w in weights]


def _cross_entropy(logits, x0):
    probabilities = _softmax(logits)
    return -mpmath.log(probabilities[x0]), [p - (i == x0) for i, p in enumerate(probabilities)]


def exact_q_posterior(chain, x0, x_t, t):
    """``log q(x_{t-1} | x_t, x_0)`` of rows at their own times, float64 ``(N, K)``."""
    rows = []
    with mpmath.workdps(DIGITS):
        for triple in zip(x0.tolist(), x_t.tolist(), t.tolist(), strict=True):
            rows.append([float(mpmath.log(q)) if q else -torch.inf for q in _truth(chain, *triple)])
    return torch.tensor(rows, dtype=torch.float64)


def exact_p_posterior(chain, logits, upstream, x_t, t, reverse="joint"):
    """``log p(x_{t-1} | x_t)`` (N, K), its gradient for ``upstream`` (N, K), and its terms (N,).

    A class that ``x_{t-1}`` cannot be has log-probability -inf and no gradient.
    """
    results = []
    columns = (logits.double(), upstream.double(), x_t, t)
    for values, above, here, time in zip(*map(torch.Tensor.tolist, columns), strict=True):
        with mpmath.workdps(DIGITS + _digits_between(values)):
            step = _step_of_model(chain, values, here, time, reverse)
            if step is None:
                alone = [0.0 if j == here else -torch.inf for j in range(chain.num_classes)]
                results.append((alone, [0.0] * chain.num_classes, 0.0))
                continue
            column, _, bar, predicted, model, z = step
            p = [c * f / z for c, f in zip(column, model, strict=True)]
            total = mpmath.fsum(g for g, v in zip(above, p, strict=True) if v)
            # d log f_j / d logit_i = abar s_j ([i = j] - s_i) / f_j
            pulls = [
                (g - v * total) * bar * s / f if v else mpf(0)
                for g, v, s, f in zip(above, p, predicted, model, strict=True)
            ]
            shared = mpmath.fsum(pulls)
            sizes = [
                abs(pull) + s * mpmath.fsum(map(abs, pulls))
                for pull, s in zip(pulls, predicted, strict=True)
            ]
            gradient = [float(v - s * shared) for v, s in zip(pulls, predicted, strict=True)]
            log_p = [float(mpmath.log(v)) if v else -torch.inf for v in p]
            results.append((log_p, gradient, float(mpmath.norm(sizes))))
    return tuple(torch.tensor(v, dtype=torch.float64) for v in zip(*results, strict=True))


def _truth(chain, x0, x_t, t):
    """``q(x_{t-1} | x_t, x_0)``, a list."""
    keep, spread = exact_step(chain, t)
    bar, ubar = exact_products(chain, t - 1)[-1]
    joint = [(spread[x_t] + keep * (j == x_t)) * (bar * (j == x0) + u) for j, u in enumerate(ubar)]
    total = mpmath.fsum(joint)
    return [v / total for v in joint]


def _step_of_model(chain, logits, x_t, t, reverse):
    """``Q_t[:, x_t]``, ubar, abar, s, f and Z; None where nothing but x_t leads to x_t."""
    keep, spread = exact_step(chain, t)
    bar, ubar = exact_products(chain, t - 1)[-1]
    column = [spread[x_t] + keep * (j == x_t) for j in range(chain.num_classes)]
    if sum(c > 0 for c in column) == 1:
        return None
    predicted = _softmax(logits)
    if reverse == "posterior_mean":
        reach = [keep * bar * (i == x_t) + keep * ubar[x_t] + spread[x_t] for i in range(len(ubar))]
        tilted = [p / r for p, r in zip(predicted, reach, strict=True)]
        total = mpmath.fsum(tilted)
        predicted = [p / total for p in tilted]
    model = [bar * p + u for p, u in zip(predicted, ubar, strict=True)]
    z = mpmath.fsum(c * f for c, f in zip(column, model, strict=True))
    return column, ubar, bar, predicted, model, z


def _bound(chain, logits, x0, x_t, t, reverse, first_step):
    if t == 1 and first_step == "logits":
        return *_cross_entropy(logits, x0), [0]
    step = _step_of_model(chain, logits, x_t, t, reverse)
    if step is None:
        return mpf(0), [mpf(0)] * chain.num_classes, [0]
    column, ubar, bar, predicted, model, z = step
    q = _truth(chain, x0, x_t, t)
    p = [c * f / z for c, f in zip(column, model, strict=True)]
    loss = mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(q, p, strict=True) if a > 0)

    r = [c / z - (a / f if a > 0 else 0) for c, a, f in zip(column, q, model, strict=True)]
    least = mpf(10) ** (5 - mpmath.mp.dps)  # what a difference of equal numbers leaves
    r = [v if abs(v) > least * c / z else mpf(0) for v, c in zip(r, column, strict=True)]
    shared = mpmath.fsum(u * v for u, v in zip(ubar, r, strict=True))
    pulls = [bar * v + shared for v in r]
    mean = mpmath.fsum(s * v for s, v in zip(predicted, pulls, strict=True))
    around = mpmath.fsum(s * abs(v) for s, v in zip(predicted, r, strict=True))
    terms = [bar * s * (abs(v) + around) for s, v in zip(predicted, r, strict=True)]
    return loss, [s * (v - mean) for s, v in zip(predicted, pulls, strict=True)], terms
