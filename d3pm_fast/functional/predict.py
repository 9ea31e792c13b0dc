"""What a prediction says of each token, from one read of its logits."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _environment, ops
from .._checks import check_choice, check_mask, check_range, check_same_device, check_tokens
from ..chains import Transition
from ..choices import LASTS, ClassDim, Impl, Last
from ..predictions import Predicted, as_prediction
from ..records import Random
from ..reference.draws import NONE
from ..reference.philox import tokens_of
from .arguments import can_be_read, check_model, choose, contiguous
from .posterior import p_posterior
from .seeds import check_offset, check_seeds


class PredictedTokens(NamedTuple):
    """What a prediction says of x_0, each ``(B, *S)``; probabilities are of one token alone.

    With s the softmax of the logits: the numbers are of s, ``log_prob`` of what :class:`Shaped`
    makes of it. They are float64 for float64 logits, float32 for others, logarithms in nats. What
    is nearly sure has its digits: entropies and margins are right relative to themselves.

    Attributes:
        token: drawn from the shaped s, or the argmax; in the dtype of x_t.
        log_prob: its logarithm of the shaped s.
        raw_log_prob: ``log s[token]``; guidance is in s, temperature and truncation are not.
        argmax: the likeliest class, of equals the lowest; in the dtype of x_t.
        p_max: its probability.
        margin: how much larger that is than the next.
        entropy: ``-sum s log s``.
        lse: the logarithm of the sum of the exponentials of the logits.
    """

    token: Tensor
    log_prob: Tensor
    raw_log_prob: Tensor
    argmax: Tensor
    p_max: Tensor
    margin: Tensor
    entropy: Tensor
    lse: Tensor


def predict(
    transition: Transition,
    logits: Predicted,
    x_t: Tensor,
    t: Tensor,
    *,
    mask: Tensor | None = None,
    take: Last = "sample",
    generator: torch.Generator | None = None,
    seeds: Tensor | None = None,
    step: int = 0,
    position_offset: int = 0,
    class_dim: ClassDim = -1,
    impl: Impl = "auto",
) -> PredictedTokens:
    """Return a draw of each x_0 that is not known, its probability, and how sure the prediction is.

    What a sampler chooses by which tokens to unmask, and with what. Nothing of the size of the
    logits is made. In absorbing chains a token that is not masked is known: its row is not read,
    and it has itself as its class, with probability 1 (``lse`` 0).

    A class is drawn in tiles of 4096 classes, with two random numbers a tile: exact, also for a
    class of probability 1e-9, and the same whatever the batch, the implementation and the number of
    shards, but where a random number is within rounding of the border of two classes.

    Args:
        transition: the chain.
        logits: the denoiser's prediction of x_0, ``(B, *S, K)``.
        x_t: the corrupted data, ``(B, *S)``.
        t: times, ``(B,)`` or ``(B, *S)``, in 1..T.
        mask: bool ``(B, *S)``: the tokens whose rows are read; None for the masked ones of an
            absorbing chain, and for all of any other.
        take: ``"sample"``, or ``"argmax"`` for the likeliest class as the token.
        generator: where the seeds come from; None for PyTorch's default generator.
        seeds: int64 ``(B,)`` in place of a generator: an item's draw depends on its own seed,
            ``step`` and the position in the item alone (:func:`d3pm_fast.draw_seeds`).
        step: a counter in [0, 2^63) that tells draws of the same seeds apart.
        position_offset: the position in its item of the first token that is given of each, where
            these are a part of the positions, as the shard of a sequence.
        class_dim: where the logits have the classes: -1, or 1 for ``(B, K, *S)``.
        impl: which implementation serves the call; ``"cuda"`` does so in plain PyTorch.

    Returns:
        :class:`PredictedTokens`. On a GPU tokens are -1 and numbers NaN where a row that is read
        has NaN, inf or nothing but -inf.

    Raises:
        ValueError: on a CPU for such logits, with the token's index.
    """
    prediction = as_prediction(logits, transition, class_dim)
    check_tokens("x_t", x_t, transition.num_classes, prediction.shape)
    check_model(transition, prediction, x_t, t, "joint", "logits")
    check_choice("take", take, LASTS)
    if mask is not None:
        check_mask(mask, x_t.shape)
        check_same_device(x_t=x_t, mask=mask)
    seeds = check_seeds(seeds, generator, x_t)
    offset = check_offset(position_offset, x_t[:1].numel())
    if not prediction.predicts_x0:
        to_0 = torch.zeros_like(t)
        log_p = p_posterior(
            transition, logits, x_t, t, to_0, first_step="logits", class_dim=class_dim, impl=impl
        )
        prediction = as_prediction(log_p, transition, class_dim)
    if _environment.CHECK:
        prediction.check_no_nan()
    name = choose(impl, "predict", transition, t, 1, x_t=x_t)
    if name == "cpu" and can_be_read(x_t):
        check_range("x_t", x_t, 0, transition.num_classes)
    known = _known(transition, contiguous(x_t), mask)
    with torch.no_grad():
        random = tokens_of(Random(seeds, step, offset), x_t.shape)
        kernel = ops.predict.kernel(name)
        tokens, numbers = prediction.served_by(name).predicted(
            kernel, known, random, take == "sample"
        )
    token, argmax = tokens.to(x_t.dtype).unbind(-1)
    log_prob, raw_log_prob, *others = numbers.unbind(-1)
    return PredictedTokens(token, log_prob, raw_log_prob, argmax, *others)


def _known(transition: Transition, x_t: Tensor, mask: Tensor | None) -> Tensor:
    """Return the class of each token that is known, ``NONE`` for others, less where it is bad."""
    bad = (x_t < 0) | (x_t >= transition.num_classes)
    if mask is None and transition.family == "absorbing":
        mask = x_t == transition.mask_id
    known = torch.full_like(x_t, NONE) if mask is None else x_t.masked_fill(mask, NONE)
    return known.masked_fill(bad, NONE - 1)
