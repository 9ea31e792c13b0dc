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
    raw = _Law.of(shaped_logits(logits, shaping.without_cuts(logits.shape[-1])).double())
    made = _Law.of(shaped_logits(logits, shaping).double())
    token = raw.argmax
    if samples:
        token = draw_in_tiles((made.rows - made.largest).exp(), random)
    log_p, raw_log_p = (law.log_prob(token.clamp(min=0)) for law in (made, raw))
    found = torch.stack((log_p, raw_log_p, *raw.numbers()), dim=-1)
    has_law = found[..., -1:].isfinite()
    tokens = torch.stack((token, raw.argmax), dim=-1).where(has_law, NONE)
    if logits.device.type == "cpu":
        read = tokens[..., 0].where(known == NONE, 0)
        check_drawn(read, known, lambda token: shaped_row(token, logits, shaping))
    is_read = (known == NONE).unsqueeze(-1)
    is_known = (known >= 0).unsqueeze(-1)
    of_known = found.new_tensor(SURE).where(is_known, torch.nan)
    tokens = tokens.where(is_read, known.unsqueeze(-1).where(is_known, NONE))
    found = found.where(has_law, torch.nan).where(is_read, of_known)
    return tokens, found.to(compute_dtype(logits.dtype))


class _Law(NamedTuple):
    """The softmax of rows ``(*S, K)``: all that is relative to its largest class.

    Attributes:
        rows: the logits.
        argmax: the first largest, ``(*S,)``.
        largest: its logit, ``(*S, 1)``.
        rest: all other logits less that one; -inf for itself.
        others: what their exponentials add up to, beside the 1 of the largest, ``(*S,)``.
    """

    rows: Tensor
    argmax: Tensor
    largest: Tensor
    rest: Tensor
    others: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "_Law":
        argmax = rows.argmax(dim=-1)
        at = argmax.unsqueeze(-1)
        largest = rows.gather(-1, at)
        rest = rows.scatter(-1, at, -torch.inf) - largest
        return cls(rows, argmax, largest, rest, rest.exp().sum(dim=-1))

    def log_prob(self, token: Tensor) -> Tensor:
        of_token = (self.rows.gather(-1, token.unsqueeze(-1)) - self.largest).squeeze(-1)
        return of_token - self.others.log1p()

    def numbers(self) -> tuple[Tensor, ...]:
        """Return p_max, margin, entropy and lse."""
        weights = self.rest.exp()
        surprise = weights * self.rest.masked_fill(weights == 0, 0)
        total, log_total = 1 + self.others, self.others.log1p()
        margin = -self.rest.amax(dim=-1).expm1() / total
        entropy = log_total - surprise.sum(dim=-1) / total
        return 1 / total, margin, entropy, self.largest.squeeze(-1) + log_total
