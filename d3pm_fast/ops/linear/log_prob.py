"""Log-probabilities of tokens and entropies, with their gradients, some rows at a time.

In plain PyTorch, which its compilers look into.
"""

import torch
from torch import Tensor

from ...records import Head
from ...reference.logspace import compute_dtype
from .rows import Gradients, chunks, in_own_dtype, zero_gradients


def log_prob_of_rows(hidden: Tensor, head: Head, tokens: Tensor) -> Tensor:
    """Return ``log softmax(logits)[token]`` and the entropy of each row, ``(N, 2)``, nats.

    Args:
        hidden: ``(N, D)``.
        head: of the logits.
        tokens: int64 ``(N,)``.
    """
    results = hidden.new_empty(len(hidden), 2, dtype=compute_dtype(head.dtype))
    for chunk in chunks(hidden, in_own_dtype(head), copies=_copies(head)):
        log_s = chunk.logits.log_softmax(dim=-1, dtype=results.dtype)
        results[chunk.rows, 0] = log_s.gather(-1, tokens[chunk.rows].unsqueeze(-1)).squeeze(-1)
        results[chunk.rows, 1] = -(log_s.exp() * _finite(log_s)).sum(dim=-1)
    return results


def log_prob_gradient(hidden: Tensor, head: Head, tokens: Tensor, upstream: Tensor) -> Gradients:
    """Return the gradients from those of the results, ``(N, 2)``.

    ``d log s_x / d logit_j = [j = x] - s_j`` and ``d H / d logit_j = -s_j (log s_j + H)``.
    """
    gradients = zero_gradients(hidden, head)
    head = in_own_dtype(head)
    for chunk in chunks(hidden, head, copies=_copies(head)):
        of_token, of_entropy = upstream[chunk.rows].unsqueeze(1).unbind(-1)
        log_s = chunk.logits.log_softmax(dim=-1, dtype=upstream.dtype)
        s = log_s.exp()
        pull = _finite(log_s)
        entropy = -(s * pull).sum(dim=-1, keepdim=True)
        pull.add_(entropy).mul_(of_entropy).add_(of_token).mul_(s).neg_()
        pull.scatter_add_(-1, tokens[chunk.rows].unsqueeze(-1), of_token)
        gradients.add(chunk, head, chunk.logits.copy_(pull))
    return gradients


def _finite(log_s: Tensor) -> Tensor:
    """Return log s in place, with 0 for the log of 0: ``0 log 0 = 0``."""
    return log_s.masked_fill_(log_s == -torch.inf, 0)


def _copies(head: Head) -> int:
    """Return how many tensors of a chunk's logits there are: three more, of the results' dtype."""
    return 1 + 3 * compute_dtype(head.dtype).itemsize // head.dtype.itemsize
