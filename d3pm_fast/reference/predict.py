"""What a prediction says of each token: a class, its probability, and how sure it is."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._no_law import check_drawn
from ..records import Shaping, TokenRandom
from .draws import NONE, draw_in_tiles
from .logspace import compute_dtype
from .shaped import shaped_logits, shaped_row

SURE = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0)  # the numbers of a token that is known


def predict(
    logits: Tensor, known: Tensor, random: TokenRandom, samples: bool, shaping: Shaping
) -> tuple[Tensor, Tensor]:
    """Return what rows say: two classes, int64 ``(*S, 2)``, and six numbers ``(*S, 6)``.

    The classes are the token and the argmax, the numbers those of
    :class:`d3pm_fast.functional.PredictedTokens` in its order. Where there is no law, or a token is
    bad, they are ``NONE`` and NaN; on a CPU no law raises.

    Args:
        logits: ``(*S, K)``.
        known: int64 ``(*S,)``: the class of a token, whose row is not looked at, or ``NONE``; what
            is less is bad.
        random: of the tokens.
        samples: whether the token is drawn, else it is the argmax.
        shaping: of the law that it is drawn from; the other numbers have its guidance alone.
    """
    rows = shaped_logits(logits, shaping.without_cuts(logits.shape[-1])).double()
    shaped = shaped_logits(logits, shaping).double()
    raw, made = Law.of(rows), Law.of(shaped)
    token = raw.argmax
    if samples:
        token = draw_in_tiles((shaped - made.top.unsqueeze(-1)).exp(), random)
    at = token.clamp(min=0).unsqueeze(-1)
    log_p, raw_log_p = (
        law.log_prob(x.gather(-1, at).squeeze(-1)) for law, x in ((made, shaped), (raw, rows))
    )
    tokens, numbers = results(token, log_p, raw_log_p, raw, known)
    if logits.device.type == "cpu":
        read = tokens[..., 0].where(known == NONE, 0)
        check_drawn(read, known, lambda token: shaped_row(token, logits, shaping))
    return tokens, numbers.to(compute_dtype(logits.dtype))


class Law(NamedTuple):
    """The softmax of rows, relative to the largest class of each, ``(*S,)``.

    Attributes:
        top: the largest logit.
        argmax: the first class that has it.
        second: the next largest logit.
        others: what the exponentials of ``logit - top`` add up to, beside the 1 of the largest.
        surprise: what these times ``logit - top`` add up to.
    """

    top: Tensor
    argmax: Tensor
    second: Tensor
    others: Tensor
    surprise: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Law":
        """Return that of rows ``(*S, K)``."""
        argmax = rows.argmax(dim=-1, keepdim=True)
        top, rest = rows.gather(-1, argmax), rows.scatter(-1, argmax, -torch.inf)
        less = rest - top
        e = less.exp()
        surprise = (e * less.masked_fill(e == 0, 0)).sum(dim=-1)
        top, argmax = top.squeeze(-1), argmax.squeeze(-1)
        return cls(top, argmax, rest.amax(dim=-1), e.sum(dim=-1), surprise)

    def log_prob(self, logit: Tensor) -> Tensor:
        """Return the logarithm of the probability of a class."""
        return logit - self.top - self.others.log1p()

    def numbers(self) -> tuple[Tensor, ...]:
        """Return p_max, margin, entropy and lse."""
        total, log_total = 1 + self.others, self.others.log1p()
        margin = -(self.second - self.top).expm1() / total
        return 1 / total, margin, log_total - self.surprise / total, self.top + log_total


def results(
    token: Tensor, log_p: Tensor, raw_log_p: Tensor, raw: Law, known: Tensor
) -> tuple[Tensor, Tensor]:
    """Return classes and numbers of all tokens, also of known ones and of bad ones."""
    numbers = torch.stack((log_p, raw_log_p, *raw.numbers()), dim=-1)
    has_law = numbers[..., -1:].isfinite()
    tokens = torch.stack((token, raw.argmax), dim=-1).where(has_law, NONE)
    is_read, is_known = ((known == NONE).unsqueeze(-1), (known >= 0).unsqueeze(-1))
    of_known = numbers.new_tensor(SURE).where(is_known, torch.nan)
    tokens = tokens.where(is_read, known.unsqueeze(-1).where(is_known, NONE))
    return tokens, numbers.where(has_law, torch.nan).where(is_read, of_known)
