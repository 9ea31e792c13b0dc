"""What a denoiser predicts of x_0: K logits a token, or parameters that logits are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from .._no_law import check_drawn
from ..autograd import LossOperation, counted, scaled
from ..chains import Transition
from ..choices import ClassDim
from ..derivatives import Differentiable, Inputs, Items, split
from ..records import Loss, TokenRandom, unshaped_of
from ..reductions import at_least_one, of_loss, reduced
from ..reference.logspace import compute_dtype, filled
from .chunks import CHUNK_BYTES, Result, chunks, in_chunks

__all__ = ["Classes", "Prediction"]

FindKernel = Callable[[ops.Operation], Any]


class Classes(NamedTuple):
    """What is predicted.

    Attributes:
        number: K.
        forbidden: the class that data never hold, whatever a prediction says of it; -1 for none.
        dim: where the caller has the classes of logits, for errors: they are moved to the end.
        is_filled: whether kernels need -inf at that class, for they do not leave it out.
    """

    number: int
    forbidden: int
    dim: ClassDim
    is_filled: bool

    def filled(self, logits: Tensor) -> Tensor:
        """Return logits as kernels need them: the same, or a copy with -inf."""
        return filled(logits, self.number, self.forbidden) if self.is_filled else logits


class Operations(NamedTuple):
    """What the public functions call for a kind of prediction.

    Attributes:
        loss: the loss.
        loss_and_grad: the loss and its gradient.
        p_posterior: ``log p(x_s | x_t)``.
        p_posterior_grad: its gradient; None where it is plain PyTorch.
        p_sample: draws of it.
    """

    loss: ops.Operation
    loss_and_grad: ops.Operation
    p_posterior: ops.Operation
    p_posterior_grad: ops.Operation | None
    p_sample: ops.Operation


_OF_LOGITS = Operations(
    ops.loss, ops.loss_and_grad, ops.p_posterior, ops.p_posterior_grad, ops.p_sample
)


class Prediction(ABC):
    """What a denoiser predicts, as the operations see it.

    A kind of prediction says what is right of it (``check``), makes the logits of some items
    (``logits``) and pulls their gradient back (``pull``). Logits exist for a chunk of items at a
    time. The gradients that all chunks give a parameter are joined where each token has its own
    part of it, and summed where all tokens share it.

    Attributes:
        classes: what is predicted.
        num_shared: how many of the parameters, the last ones, all tokens share; the others have
            the batch as their first axis.
        predicts_x0: whether there are logits of x_0, and so a cross-entropy.
    """

    classes: Classes
    num_shared = 0
    predicts_x0 = True

    @property
    def num_classes(self) -> int:
        """K."""
        return self.classes.number

    @property
    def operations(self) -> Operations:
        """The operations on its logits, or what it has in their place."""
        return _OF_LOGITS

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
    def chunk_bytes(self) -> int:
        """Of the logits at a time: what the cache holds until it is read."""
        return CHUNK_BYTES.get(self.parameters[0].device.type, CHUNK_BYTES["cuda"])

    @property
    def result_dtype(self) -> torch.dtype:
        """Of log-probabilities that are made of it."""
        return compute_dtype(self.dtype)

    @abstractmethod
    def check(self, shape: torch.Size) -> None:
        """Raise unless it predicts tokens of a shape ``(B, *S)``."""

    def check_chain(self, transition: Transition) -> None:
        """Raise where it has no meaning for a chain."""
        return

    def check_loss(self, transition: Transition, ce_weight: float | Tensor) -> None:
        """Raise where it has no such loss; none but the model's own prediction has one."""
        return

    def check_gradient(self) -> None:
        """Raise where a gradient is asked of a prediction that has none."""
        return

    @abstractmethod
    def check_no_nan(self) -> None:
        """Raise for a NaN; reads the values."""

    def check_drawn(self, drawn: Tensor, x_t: Tensor) -> None:
        """Raise where draws made of it came from what is no law; reads the values."""
        check_drawn(drawn, x_t, self.row)

    def result(self, log_p: Tensor) -> Tensor:
        """Return log-probabilities as the caller has logits."""
        return log_p

    def step_record(self, transition: Transition, x_t: Tensor, t: Tensor, s: Tensor | None) -> Any:
        """Return the steps ``x_t -> x_s`` that its law is of."""
        return transition.of_tokens(transition.step_record(t, s), x_t=x_t)

    @abstractmethod
    def double(self) -> Prediction:
        """Return it in float64."""

    def whole(self) -> Prediction:
        """Return it with logits of all classes, for operations whose result has them all."""
        return self

    @abstractmethod
    def served_by(self, implementation: str, reads_classes_first: bool = False) -> Prediction:
        """Return it contiguous, to be made into logits by an implementation.

        Logits may be so as ``(B, K, *S)`` where they can be read as these.
        """

    @abstractmethod
    def masked(self, mask: Tensor) -> Prediction:
        """Return it without a gradient for tokens that do not count, whatever they are."""

    @abstractmethod
    def logits(self, *parameters: Tensor) -> Tensor:
        """Return the logits ``(n, *S, K)`` of some items, from their parts of the parameters."""

    @abstractmethod
    def pull(self, parameters: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of what ``logits`` was given from that of the logits."""

    @abstractmethod
    def meaning(self, *parameters: Tensor) -> Tensor:
        """Return the logits of all items by plain PyTorch."""

    @abstractmethod
    def row(self, token: tuple[int, ...]) -> Tensor:
        """Return the logits of a token, ``(K,)``, by plain PyTorch."""

    def loss_record(self, inputs: Inputs, others: tuple[Any, ...]) -> Any:
        """Return what its loss is of, from the parameters and what comes after them."""
        (logits,) = inputs
        return Loss(logits, *others)

    def sampled(self, find: FindKernel, call: Callable[..., Tensor], items: Items) -> Tensor:
        """Return draws, by what an implementation has for this kind of prediction.

        Args:
            find: returns the kernel of an operation, None where there is none.
            call: maps a kernel, logits, the items, and what the kernel takes last, to draws; and
                where the items are a part of the positions, the first ``position``.
            items: what goes with the logits along the batch.
        """
        return self.applied(partial(call, find(self.operations.p_sample)), items)

    def predicted(
        self, kernel: Any, known: Tensor, random: TokenRandom, samples: bool
    ) -> tuple[Tensor, Tensor]:
        """Return what an implementation's ``predict`` says of tokens, shaped by nothing."""

        def on_chunk(
            logits: Tensor, known: Tensor, seeds: Tensor, positions: Tensor
        ) -> tuple[Tensor, Tensor]:
            numbers = TokenRandom(seeds, positions, random.step)
            shaping = unshaped_of(logits.shape[-1], self.classes.forbidden)
            return kernel(logits, known, numbers, samples, shaping)  # type: ignore[no-any-return]

        return self.applied(on_chunk, (known, random.seeds, random.positions))

    def applied(self, operation: Callable[..., Result], items: Items) -> Result:
        """Return an operation's result on logits and items, without a gradient."""
        return self._in_chunks(operation, self.parameters, items)

    def loss(self, of_logits: LossOperation) -> LossOperation:
        """Return the loss of the prediction from that of logits."""
        with_gradient_of_logits, with_terms = of_logits.with_gradient, of_logits.with_terms

        def collected(tokens: Tensor, reduction: str, items: Items) -> Tensor:
            if reduction == "none":
                return tokens
            return reduced(tokens, reduction, counted(items), with_terms)

        def value(inputs: Inputs, items: Items, reduction: str) -> Tensor:
            def on_chunk(logits: Tensor, *part: Any) -> Tensor:
                return of_logits.value((logits,), part, "none")

            return collected(self._in_chunks(on_chunk, inputs, items), reduction, items)

        def of_tokens(
            inputs: Inputs, items: Items, upstream: Tensor | None
        ) -> tuple[Tensor, Inputs]:
            losses = []

            def on_chunk(own: Inputs, part: Items, above: Tensor | None) -> Inputs:
                assert with_gradient_of_logits is not None
                loss, grad = with_gradient_of_logits((self.logits(*own),), part, "none", False)
                losses.append(loss)
                return self.pull(own, grad if above is None else scaled(grad, above))

            grads = self._collected(on_chunk, inputs, items, upstream)
            return torch.cat(losses), grads

        def with_gradient(
            inputs: Inputs, items: Items, reduction: str, late: bool
        ) -> tuple[Tensor, ...]:
            tokens, grads = of_tokens(inputs, items, None)
            if reduction == "mean" and not late:
                count = at_least_one(counted(items))
                grads = tuple(grad.div_(count) for grad in grads)
            return collected(tokens, reduction, items), *grads

        def gradient(inputs: Inputs, items: Items, upstream: Tensor) -> Inputs:
            _, grads = of_tokens(inputs, items, of_loss(upstream, with_terms))
            return tuple(grad.to(inputs[0].dtype) for grad in grads)

        meaning = self._meaning_of(of_logits)
        of_all = gradient if self.num_shared else None
        return LossOperation(
            value, with_gradient, meaning, of_all is not None, with_terms, gradient=of_all
        )

    def differentiable(self, of_logits: Differentiable) -> Differentiable:
        """Return an operation on the prediction from that on logits."""

        def value(inputs: Inputs, items: Items) -> Tensor:
            def on_chunk(logits: Tensor, *part: Any) -> Tensor:
                return of_logits.value((logits,), part)

            return self._in_chunks(on_chunk, inputs, items)

        def gradient(inputs: Inputs, items: Items, upstream: Tensor) -> Inputs:
            def on_chunk(own: Inputs, part: Items, above: Tensor) -> Inputs:
                assert of_logits.gradient is not None
                (grad,) = of_logits.gradient((self.logits(*own),), part, above)
                return self.pull(own, grad)

            grads = self._collected(on_chunk, inputs, items, upstream)
            return tuple(grad.to(x.dtype) for grad, x in zip(grads, inputs, strict=True))

        known = None if of_logits.gradient is None else gradient
        return Differentiable(value, known, self._meaning_of(of_logits))

    def _meaning_of(self, of_logits: Any) -> Callable[[Items], Callable[..., Tensor]]:
        def meaning(items: Items) -> Callable[..., Tensor]:
            of = of_logits.reference(items)
            return lambda *parameters: of(self.meaning(*parameters))

        return meaning

    def _in_chunks(
        self, operation: Callable[..., Result], parameters: Inputs, items: Items
    ) -> Result:
        """Return an operation's result on the logits of all items, and on these."""
        own, shared = split(parameters, len(parameters) - self.num_shared)

        def on_chunk(*part: Any) -> Result:
            some, parts = split(part, len(items))
            return operation(self.logits(*parts, *shared), *some)

        return in_chunks(self._chunk_size(items), on_chunk, *items, *own)

    def _collected(
        self,
        gradients: Callable[..., Inputs],
        parameters: Inputs,
        items: Items,
        upstream: Tensor | None,
    ) -> Inputs:
        """Return the parameters' gradients from those that ``gradients`` makes for each chunk.

        Where tokens share a parameter, factors of tokens have to be in before: in ``upstream``.
        """
        own, shared = split(parameters, len(parameters) - self.num_shared)
        of_chunks: list[Inputs] = []
        totals: Inputs = ()
        for *part, above in chunks(self._chunk_size(items), *items, *own, upstream):
            some, parts = split(tuple(part), len(items))
            grads, of_shared = split(gradients((*parts, *shared), some, above), len(own))
            of_chunks.append(grads)
            if totals:
                of_shared = tuple(x + y for x, y in zip(totals, of_shared, strict=True))
            totals = of_shared
        return *map(torch.cat, zip(*of_chunks, strict=True)), *totals

    def _chunk_size(self, items: Items) -> int:
        """Return how many items a chunk has."""
        tokens = items[0]
        assert tokens is not None
        return self.chunk_bytes // max(tokens[:1].numel() * self.num_classes * 4, 1)
