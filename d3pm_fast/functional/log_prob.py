"""Log-probabilities of given tokens, and entropies, without the logits of all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import autograd, derivatives, ops
from .._checks import check_range, check_same_device, check_shape, check_tokens
from ..derivatives import Differentiable, Inputs, Items
from ..predictions import Linear, as_linear
from ..reference.logspace import compute_dtype
from .arguments import can_be_read, contiguous

# In quotes on inner functions: the compilers of PyTorch 2.4 to 2.6 cannot build annotations.


class LogProb(NamedTuple):
    """What a prediction says of tokens, in nats: float64 for float64 logits, float32 for others.

    Attributes:
        log_prob: ``(B, *S)``: ``log softmax(logits)[token]``.
        entropy: ``(B, *S)``: ``-sum s log s`` of ``s = softmax(logits)``.
    """

    log_prob: Tensor
    entropy: Tensor


def log_prob(logits: Tensor | Linear, tokens: Tensor) -> LogProb:
    """Return the log-probability of each token, and the entropy of its distribution.

    Both are differentiable, as reinforcement learning takes them. Of :class:`Linear` the logits are
    made some rows at a time, for the gradient once more.

    Args:
        logits: ``(B, *S, K)``, or :class:`Linear` in their place.
        tokens: integers ``(B, *S)`` in [0, K).

    Raises:
        IndexError: a token out of range, on the CPU.
    """
    if not isinstance(logits, Linear):
        num_classes = logits.shape[-1] if isinstance(logits, Tensor) else 0
        check_tokens("tokens", tokens, num_classes)
        check_shape("logits", logits, (*tokens.shape, num_classes))
        check_same_device(logits=logits, tokens=tokens)
        _check_values(tokens, num_classes)
        return LogProb(*_of_logits(logits, tokens.long()).unbind(-1))
    prediction = as_linear(logits)
    check_tokens("tokens", tokens, prediction.num_classes, prediction.shape)
    prediction.check(tokens.shape)
    check_same_device(hidden=logits.hidden, tokens=tokens)
    _check_values(tokens, prediction.num_classes)

    def rows_of(inputs: "Inputs", items: "tuple[Any, ...]") -> "tuple[Tensor, Any, Tensor]":
        (hidden, *head), (token,) = inputs, items
        return hidden.flatten(0, -2), prediction.head(*head), token.flatten()

    def value(inputs: "Inputs", items: "Items") -> "Tensor":
        return ops.log_prob_of_rows(*rows_of(inputs, items)).view(*inputs[0].shape[:-1], 2)

    def gradient(inputs: "Inputs", items: "Items", upstream: "Tensor") -> "Inputs":
        hidden = inputs[0]
        grads = ops.log_prob_gradient(*rows_of(inputs, items), upstream.reshape(-1, 2))
        grads = grads._replace(hidden=grads.hidden.view(-1, *hidden.shape[1:]))
        return tuple(grad.to(x.dtype) for grad, x in zip(grads, inputs, strict=False))

    def meaning(items: "tuple[Any, ...]") -> "Callable[..., Tensor]":
        return lambda *parameters: _of_logits(prediction.meaning(*parameters), *items)

    operation = Differentiable(value, gradient, meaning)
    inputs, items = prediction.parameters, (contiguous(tokens),)
    if derivatives.are_asked(*inputs):
        return LogProb(*meaning(items)(*inputs).unbind(-1))
    return LogProb(*autograd.differentiable(operation, inputs, items).unbind(-1))


def _check_values(tokens: Tensor, num_classes: int) -> None:
    if can_be_read(tokens):
        check_range("tokens", tokens, 0, num_classes)


def _of_logits(logits: Tensor, tokens: Tensor) -> Tensor:
    log_s = logits.log_softmax(dim=-1, dtype=compute_dtype(logits.dtype))
    of_token = log_s.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    finite = log_s.masked_fill(log_s == -torch.inf, 0)
    return torch.stack((of_token, -(log_s.exp() * finite).sum(dim=-1)), dim=-1)
