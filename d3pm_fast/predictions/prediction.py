"""What a denoiser predicts of x_0: K logits a token, or parameters that logits are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..autograd import LossOperation
from ..derivatives import Differentiable, Inputs, Items
from ..ops import Operation, p_sample
from ..reference.logspace import compute_dtype
from .chunks import chunks, in_chunks

__all__ = ["Prediction"]

FindKernel = Callable[[Operation], Any]


class Prediction(ABC):
    """What a denoiser predicts, as the operations see it.

    A kind of prediction says what is right of it (``check``), makes the logits of some items
    (``logits``), pulls their gradient back (``pull``), and puts together what each chunk of items
    gives its parameters (``collect``).
    Logits exist for a chunk of items at a time.

    Attributes:
        num_classes: K.
    """

    num_classes: int

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...] | None:
        """The shape ``(B, *S)`` of the tokens that are predicted; None where it has none."""

    @property
    @abstractmethod
    def parameters(self) -> tuple[Tensor, ...]:
        """What it is differentiated in, checked."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.parameters[0].dtype

    @property
    def result_dtype(self) -> torch.dtype:
        """Of log-probabilities that are made of it."""
        return compute_dtype(self.dtype)

    @abstractmethod
    def check(self, shape: torch.Size) -> None:
        """Raise unless it predicts tokens of a shape ``(B, *S)``."""

    def check_model(self) -> None:
        """Raise where it is not the model's own prediction, which alone has a loss."""
        return

    def check_gradient(self) -> None:
        """Raise where a gradient is asked of a prediction that has none."""
        return

    @abstractmethod
    def check_no_nan(self) -> None:
        """Raise for a NaN; reads the values."""

    @abstractmethod
    def double(self) -> Prediction:
        """Return it in float64."""

    @abstractmethod
    def served_by(self, implementation: str) -> Prediction:
        """Return it contiguous, to be made into logits by an implementation."""

    @abstractmethod
    def masked(self, mask: Tensor) -> Prediction:
        """Return it without a gradient for tokens that do not count, whatever they are."""

    @abstractmethod
    def logits(self, *parameters: Tensor) -> Tensor:
        """Return the logits ``(n, *S, K)`` of the parameters of some items."""

    @abstractmethod
    def pull(self, parameters: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the parameters of some items from that of their logits."""

    @abstractmethod
    def meaning(self, *parameters: Tensor) -> Tensor:
        """Return the logits of all items by plain PyTorch."""

    @abstractmethod
    def row(self, token: tuple[int, ...]) -> Tensor:
        """Return the logits of a token, ``(K,)``, by plain PyTorch."""

    def collect(self, parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return the parameters' gradients from those of each chunk: of tokens, one by one."""
        return tuple(torch.cat(of_chunks) for of_chunks in zip(*parts, strict=True))

    def sampled(self, find: FindKernel, call: Callable[..., Tensor], items: Items) -> Tensor:
        """Return draws, by what an implementation has for this kind of prediction.

        Args:
            find: returns the kernel of an operation, None where there is none.
            call: maps a kernel, logits, the items, and what the kernel takes last, to draws.
            items: what goes with the logits along the batch.
        """
        return self.applied(partial(call, find(p_sample)), items)

    def applied(self, operation: Callable[..., Tensor], items: Items) -> Tensor:
        """Return an operation's result on logits and items, without a gradient."""
        count = len(self.parameters)

        def on_chunk(*part: Any) -> Tensor:
            return operation(self.logits(*part[:count]), *part[count:])

        return in_chunks(self._item_bytes(items), on_chunk, *self.parameters, *items)

    def loss(self, of_logits: LossOperation) -> LossOperation:
        """Return the loss of the prediction from that of logits."""

        def value(inputs: Inputs, items: Items, _reduction: str) -> Tensor:
            def on_chunk(*part: Any) -> Tensor:
                logits = self.logits(*part[: len(inputs)])
                return of_logits.value((logits,), part[len(inputs) :], "none")

            return in_chunks(self._item_bytes(items), on_chunk, *inputs, *items)

        def with_gradient(inputs: Inputs, items: Items, *_: Any) -> tuple[Tensor, ...]:
            assert of_logits.with_gradient is not None
            losses, parts = [], []
            for part in chunks(self._item_bytes(items), *inputs, *items):
                own, rest = part[: len(inputs)], part[len(inputs) :]
                loss, grad = of_logits.with_gradient((self.logits(*own),), rest, "none", False)
                losses.append(loss)
                parts.append(self.pull(own, grad))
            return torch.cat(losses), *self.collect(parts)

        return LossOperation(value, with_gradient, self._meaning_of(of_logits), reduces=False)

    def differentiable(self, of_logits: Differentiable) -> Differentiable:
        """Return an operation on the prediction from that on logits."""

        def value(inputs: Inputs, items: Items) -> Tensor:
            def on_chunk(*part: Any) -> Tensor:
                logits = self.logits(*part[: len(inputs)])
                return of_logits.value((logits,), part[len(inputs) :])

            return in_chunks(self._item_bytes(items), on_chunk, *inputs, *items)

        def gradient(inputs: Inputs, items: Items, upstream: Tensor) -> Inputs:
            assert of_logits.gradient is not None
            parts = []
            for above, *part in chunks(self._item_bytes(items), upstream, *inputs, *items):
                own, rest = tuple(part[: len(inputs)]), tuple(part[len(inputs) :])
                (grad,) = of_logits.gradient((self.logits(*own),), rest, above)
                parts.append(self.pull(own, grad))
            return tuple(grad.to(inputs[0].dtype) for grad in self.collect(parts))

        known = None if of_logits.gradient is None else gradient
        return Differentiable(value, known, self._meaning_of(of_logits))

    def _meaning_of(self, of_logits: Any) -> Callable[[Items], Callable[..., Tensor]]:
        def meaning(items: Items) -> Callable[..., Tensor]:
            of = of_logits.reference(items)
            return lambda *parameters: of(self.meaning(*parameters))

        return meaning

    def _item_bytes(self, items: Items) -> int:
        tokens = items[0]
        assert tokens is not None
        return tokens[:1].numel() * self.num_classes * 4
