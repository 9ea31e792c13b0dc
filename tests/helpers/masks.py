"""Data that never hold the mask, and logits with junk there."""

import torch

from d3pm_fast import functional

JUNK = [60.0, float("nan"), float("inf"), -5.0]


def problem(chain, dtype=torch.float64):
    """Data without a mask, x_t, t, s, and logits whose mask is junk, another in each item."""
    k, mask_id = chain.num_classes, chain.mask_id
    x0 = torch.randint(k, (len(JUNK), 3))
    x0 = torch.where(x0 == mask_id, (mask_id + 1) % k, x0)
    if chain.has_steps:
        t, s = torch.tensor([1, 2, 3, 4]), None
    else:
        t = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
        s = 0.6 * t
    x_t = functional.q_sample(chain, x0, t)
    x_t[:, 0] = mask_id
    logits = (2 * torch.randn(*x0.shape, k, dtype=torch.float64)).to(dtype)
    logits[..., mask_id] = torch.tensor(JUNK)[:, None]
    return logits, x0, x_t, t, s


def forbidden(logits, chain):
    """The logits as a user would forbid the mask."""
    clean = logits.clone()
    clean[..., chain.mask_id] = -torch.inf
    return clean
