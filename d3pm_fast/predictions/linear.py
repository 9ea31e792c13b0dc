"""A prediction of x_0 by what a head makes logits of, which are never stored as a whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import index
from typing import Any, NamedTuple, SupportsIndex

import torch
from torch import Tensor

from .. import derivatives, ops, reference
from .._checks import (
    check_choice,
    check_count,
    check_float,
    check_no_nan,
    check_same_device,
    check_shape,
)
from .._no_law import NoLaw
from ..autograd import LossOperation
from ..chains import Transition
from ..chains.structures import RANK_ONE
from ..choices import LINEAR_SCHEDULES, LinearSchedule
from ..derivatives import Inputs, Items
from ..records import Head, LinearLoss, TokenRandom, unshaped_of
from ..reductions import of_loss
from .logits import LogitsPrediction
from .prediction import Classes, FindKernel, Operations, Prediction

__all__ = ["Linear"]

BUDGET = {"cpu": 128 << 20, "cuda": 512 << 20}  # bytes of logits at a time

_OPERATIONS = Operations(
    ops.linear_loss, ops.linear_loss_and_grad, ops.p_posterior, ops.p_posterior_grad, ops.p_sample
)


class Linear(NamedTuple):
    """The logits ``hidden weight^T + bias`` of a linear head, made some rows at a time.

    In place of logits wherever these are taken. Of a language model they are most of a training
    step's memory. Here a loss makes them for a part of the tokens, turns them into their gradient
    in the same place, and multiplies that with weight and hidden at once. On a CPU tokens whose
    loss is 0 whatever is predicted, as unmasked ones of an absorbing chain, are left out before;
    on a GPU, too, where ``num_open`` says how many are left.
    Gradients are those of ``F.linear(hidden, weight, bias)``, that of the weight summed in float32.
    Under ``torch.autocast`` products are in its dtype, as those of ``F.linear``.

    Attributes:
        hidden: ``(B, *S, D)``, float32, float64, bfloat16 or float16.
        weight: ``(K, D)``, of the dtype of hidden unless under autocast; of a chain whose data
            never hold the last class also ``(K - 1, D)``. It may be a DTensor sharded over classes,
            as of a tensor parallel head, for rank-one chains and with ``schedule="rows"``.
        bias: as many as the weight has rows; None for 0.
        memory_budget: bytes of logits at a time; None for 512 MiB on a GPU and 128 MiB on a CPU.
            Where chunks have few rows, the weight and its gradient are read too often.
        schedule: of a loss. ``"rows"`` has all classes of some rows at a time, ``"tiles"`` some
            classes of all rows: the least memory, for that is the gradient of the weight in its own
            dtype, written once; the logits are made two or three times. For rank-one chains.
        num_open: how many tokens may have a loss, of :meth:`d3pm_fast.D3PM.count_open` or any
            number that is not below it: the others are then left out of the products on a GPU,
            too. Where it is too small, the loss is NaN. It is read where nothing but the bound is
            asked for, no cross-entropy and no terms. None for all tokens on a GPU; on a CPU they
            are counted.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    memory_budget: int | None = None
    schedule: LinearSchedule = "rows"
    num_open: SupportsIndex | None = None


class LinearPrediction(Prediction):
    """Hidden states, and the head that all tokens share."""

    def __init__(self, given: Linear, classes: Classes) -> None:
        self.given, self.classes = given, classes
        self.num_shared = 1 if given.bias is None else 2
        self._mask: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the tokens."""
        hidden = self.given.hidden
        return tuple(hidden.shape[:-1]) if isinstance(hidden, Tensor) else None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Hidden states, the weight, and the bias if there is one."""
        return tuple(x for x in self.given[:3] if x is not None)

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits."""
        kind = self.given.hidden.device.type
        if self.given.hidden.dtype != torch.float64 and torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return self.given.hidden.dtype

    @property
    def operations(self) -> Operations:
        """Those of logits, but for the loss, which is one of all that makes them."""
        return _OPERATIONS

    @property
    def chunk_bytes(self) -> int:
        """Of the logits at a time."""
        budget = self.given.memory_budget
        kind = self.given.hidden.device.type
        return BUDGET.get(kind, BUDGET["cuda"]) if budget is None else budget

    @property
    def num_rows(self) -> int:
        """How many rows the weight has: K, or one less where that class is forbidden."""
        number, forbidden, *_ = self.classes
        return number - 1 if forbidden == number - 1 == len(self.given.weight) else number

    def check(self, shape: torch.Size) -> None:
        """Raise unless hidden is ``(*shape, D)``, and the head is of it and has K rows."""
        hidden, weight, bias, budget, schedule, num_open = self.given
        check_float("hidden", hidden)
        check_float("weight", weight)
        if hidden.shape[:-1] != shape or hidden.ndim < 2:
            expected = ", ".join((*map(str, shape), "D"))
            raise ValueError(f"hidden must have shape ({expected}), got {tuple(hidden.shape)}")
        num_rows = self.num_rows
        check_shape("weight", weight, (num_rows, hidden.shape[-1]))
        if bias is not None:
            check_float("bias", bias)
            check_shape("bias", bias, (num_rows,))
        check_same_device(hidden=hidden, weight=weight, bias=bias)
        for name, x in (("hidden", hidden), ("weight", weight), ("bias", bias)):
            placements = getattr(x, "placements", None)
            if placements is not None:
                raise ValueError(
                    f"{name} must be a whole tensor, got a DTensor with {placements}: call the "
                    "loss in a module whose parameters FSDP gathers, as d3pm_fast.LinearLoss"
                )
        self._check_dtypes()
        if budget is not None:
            check_count("memory_budget", budget)
        check_choice("schedule", schedule, LINEAR_SCHEDULES)
        if num_open is not None:
            check_count("num_open", num_open, least=0)

    def _check_dtypes(self) -> None:
        hidden, *head = self.parameters
        if self.dtype != hidden.dtype or torch.is_autocast_enabled(hidden.device.type):
            return
        for name, x in zip(("weight", "bias"), head, strict=False):
            if x.dtype != hidden.dtype:
                raise TypeError(f"{name} must be {hidden.dtype} as hidden is, got {x.dtype}")

    def check_loss(self, transition: Transition, ce_weight: float | Tensor) -> None:
        """Raise where the schedule does not serve the chain."""
        if self.given.schedule == "tiles" and transition.structure != RANK_ONE.name:
            raise ValueError(
                f"schedule='tiles' serves rank-one chains, got {transition.family}: take 'rows'"
            )

    def check_no_nan(self) -> None:
        """Raise for a NaN."""
        for name, x in zip(("hidden", "weight", "bias"), self.parameters, strict=False):
            check_no_nan(name, x)

    def double(self) -> LinearPrediction:
        """Return it in float64."""
        return self._with(*(x.double() for x in self.parameters))

    def served_by(self, implementation: str, _reads_classes_first: bool = False) -> Prediction:
        """Return it contiguous; in plain PyTorch, and for its transforms, the logits."""
        if implementation == "reference" or derivatives.are_asked(*self.parameters):
            hidden, *head = self.parameters
            if self._mask is not None:
                hidden = hidden.where(self._mask.unsqueeze(-1), 0)
            return LogitsPrediction(self.meaning(hidden, *head), self.classes)
        has_tiles = ops.loss_sums.is_served(implementation, RANK_ONE.name)
        if self.given.schedule == "tiles" and not has_tiles:
            raise ValueError(f"impl={implementation!r} has no schedule 'tiles': take 'rows'")
        return self._with(*(x.contiguous() for x in self.parameters))

    def masked(self, mask: Tensor) -> LinearPrediction:
        """Return it; for tokens that do not count kernels make no logits, plain PyTorch does."""
        made = self._with(*self.parameters)
        made._mask = mask
        return made

    def loss_record(self, inputs: Inputs, others: tuple[Any, ...]) -> Any:
        """Return what a loss is of, from the parameters and what comes after them."""
        hidden, *head = inputs
        return LinearLoss(hidden, self.head(*head), *others)

    def head(self, weight: Tensor, bias: Tensor | None = None) -> Head:
        """Return the record of a head of these parameters."""
        hidden, *shared = (x.requires_grad for x in self.parameters)
        number = -1 if self.given.num_open is None else index(self.given.num_open)
        logits = self.num_classes, self.dtype, self._filled, self.chunk_bytes, number
        return Head(weight, bias, *logits, self.given.schedule, hidden, any(shared))

    def loss(self, of_logits: LossOperation) -> LossOperation:
        """Return the loss; factors of tokens are in the gradients before these add up."""
        assert of_logits.with_gradient is not None
        made = of_logits.with_gradient

        def with_gradient(
            inputs: Inputs, items: Items, reduction: str, late: bool
        ) -> tuple[Tensor, ...]:
            return made(inputs, items, reduction, late)[: 1 + len(inputs)]

        def gradient(inputs: Inputs, items: Items, upstream: Tensor) -> Inputs:
            *others, factors = items
            above = of_loss(upstream, of_logits.with_terms)
            above = above if factors is None else above * factors
            _, *grads = with_gradient(inputs, (*others, above.contiguous()), "sum", False)
            return tuple(grad.to(x.dtype) for grad, x in zip(grads, inputs, strict=True))

        return of_logits._replace(with_gradient=with_gradient, gradient=gradient)

    def sampled(self, find: FindKernel, call: Callable[..., Tensor], items: Items) -> Tensor:
        """Return draws; of a part of the positions at a time where an item has too many logits."""
        x_t, t, s, seeds = items
        assert x_t is not None
        num_positions = x_t[:1].numel()
        size = max(self.chunk_bytes // (4 * self.num_classes), 1)
        if num_positions <= size:
            return super().sampled(find, call, items)
        hidden, *head = self.parameters
        drawn = []
        for first in range(0, num_positions, size):
            x_part, *times = (_positions(x, x_t.shape, first, size) for x in (x_t, t, s))
            part = self._with(hidden.flatten(1, -2)[:, first : first + size], *head)
            at = partial(call, position=first)
            drawn.append(Prediction.sampled(part, find, at, (x_part, *times, seeds)))
        return torch.cat(drawn, dim=1).view(x_t.shape)

    def predicted(
        self, kernel: Any, known: Tensor, random: TokenRandom, samples: bool
    ) -> tuple[Tensor, Tensor]:
        """Return what an implementation's ``predict`` says of tokens, some rows at a time."""
        hidden, *head = self.parameters
        flat = TokenRandom(random.seeds.flatten(), random.positions.flatten(), random.step)
        shaping = unshaped_of(self.num_classes, self.classes.forbidden)
        try:
            found = ops.predict_of_rows(
                kernel,
                hidden.flatten(0, -2),
                self.head(*head),
                known.flatten(),
                flat,
                samples,
                shaping,
            )
        except NoLaw as error:
            where = torch.unravel_index(torch.tensor(error.index), known.shape)
            raise NoLaw(error.found, tuple(map(int, where))) from None
        tokens, numbers = (x.unflatten(0, known.shape) for x in found)
        return tokens, numbers

    def logits(self, *parameters: Tensor) -> Tensor:
        """Return the logits of some items."""
        return self.meaning(*parameters)

    def pull(self, parameters: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the parameters, those of the head in float32 at least."""
        hidden, weight, *_ = parameters
        grads = ops.pull_linear(hidden, weight, grad[..., : len(weight)])
        return grads[: len(parameters)]

    def meaning(self, *parameters: Tensor) -> Tensor:
        """Return the logits of all items."""
        hidden, weight, *bias = parameters
        made = self.num_classes, self._filled
        return reference.linear_logits(hidden, weight, bias[0] if bias else None, *made)

    def row(self, token: tuple[int, ...]) -> Tensor:
        """Return the logits of a token."""
        hidden, *head = self.parameters
        return self.meaning(hidden[token], *head)

    @property
    def _filled(self) -> int:
        return self.classes.forbidden if self.classes.is_filled else -1

    def _with(self, *parameters: Tensor) -> LinearPrediction:
        hidden, weight, *bias = parameters
        given = Linear(hidden, weight, bias[0] if bias else None, *self.given[3:])
        return LinearPrediction(given, self.classes)


def _positions(x: Tensor | None, shape: tuple[int, ...], first: int, size: int) -> Tensor | None:
    """Return some positions of what is of tokens, ``(B, n)``; what is of items stays."""
    if x is None or x.shape != shape:
        return x
    return x.flatten(1)[:, first : first + size].contiguous()


def as_linear(given: Linear) -> LinearPrediction:
    """Return a prediction without a chain, of as many classes as the weight has rows, unchecked."""
    num_classes = len(given.weight) if isinstance(given.weight, Tensor) else 0
    return LinearPrediction(given, Classes(num_classes, -1, -1, False))
