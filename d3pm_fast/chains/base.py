"""What every transition offers, whatever its structure."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_integer
from .fingerprint import fingerprint

__all__ = ["Transition", "running_sums"]


class Transition(nn.Module):
    """A chain ``Q_1 .. Q_T`` over K classes.

    All numbers are float64. They are made on the CPU, whatever PyTorch's default device and
    dtype are, and follow the module to a device, but ``module.half()`` or
    ``module.to(torch.bfloat16)`` do not round them, and a state dict does not hold them.

    Attributes:
        structure: its name in ``chains/structures.py``, by which kernels are chosen.
        family: the name of the function that made it.
        num_classes: K.
        num_steps: T; None in continuous time.
        mask_id: the mask's class, or -1 where the family has none.
        data_has_mask: whether data may hold the mask. Where not, its logit counts as -inf, and
            its gradient is 0.
        steps_forbid: whether steps tell kernels of the class that data never hold, so that its
            logit is not read. If not, kernels get a copy of the logits with -inf there.
        fingerprint: a number that depends on the family, K, T and all probabilities; equal chains
            have it in common up to some 1e-12.
        needs_float64: whether its probabilities are too small for float32, so that whatever the
            dtype of the logits they are calculated with in float64.
        redraws: whether tokens go to other classes than the mask.
        asks_tokens: whether what operations are given depends on the tokens, see ``of_tokens``.
    """

    structure: str
    steps_forbid = False
    fingerprint: float
    needs_float64 = False
    redraws = True
    asks_tokens = False
    _TABLES: tuple[str, ...] = ()  # attributes that move to a device, tensors or None

    def __init__(
        self,
        family: str,
        num_classes: int,
        num_steps: int,
        mask_id: int = -1,
        data_has_mask: bool = True,
    ) -> None:
        super().__init__()
        self.family = family
        self.num_classes = num_classes
        self.num_steps = num_steps
        self.mask_id = mask_id
        self.data_has_mask = data_has_mask or mask_id < 0

    @property
    def has_steps(self) -> bool:
        """Whether times are integers 1..T; else they are numbers in [0, 1]."""
        return self.num_steps is not None

    @property
    def last_time(self) -> int:
        """T, or 1 in continuous time."""
        return self.num_steps if self.has_steps else 1

    @property
    def time_dtype(self) -> torch.dtype:
        """The dtype of times, int64, or float64 in continuous time."""
        return torch.int64 if self.has_steps else torch.float64

    @property
    def forbidden(self) -> int:
        """The class that data never hold, or -1."""
        return -1 if self.data_has_mask else self.mask_id

    def _defined_by(self, *parts: Any) -> None:
        """Set the fingerprint of a chain that these numbers, and its sizes, define."""
        sizes = self.num_classes, self.num_steps or 0, self.mask_id
        self.fingerprint = fingerprint(self.family, *sizes, *parts)

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the numbers are."""

    @abstractmethod
    def stationary(self) -> Tensor:
        """Return the distribution that x_T tends to whatever x_0 was, float64 ``(K,)``."""

    @abstractmethod
    def prior(self) -> Tensor:
        """Return ``KL(q(x_T | x_0) || stationary)`` in nats for each x_0, float64 ``(K,)``."""

    @abstractmethod
    def step_record(self, t: Tensor, s: Tensor | None = None) -> Any:
        """Return what operations are given of the steps ``x_t -> x_s``, s None for t - 1."""

    def loss_record(self, t: Tensor, s: Tensor | None = None) -> tuple[Any, bool]:
        """Return what a loss is given of steps, and whether it is of the bound's density at t."""
        return self.step_record(t, s), False

    @abstractmethod
    def marginal_record(self, t: Tensor) -> Any:
        """Return what operations are given of ``q(x_t | x_0)``."""

    def of_tokens(self, record: Any, x0: Tensor | None = None, x_t: Tensor | None = None) -> Any:
        """Return a record of steps to x_t, or of marginals from x_0, as these tokens have it.

        ``(B, *S)``. Most chains have one for all tokens. A loss, whose data are checked, leaves x_0
        out.
        """
        return record

    @abstractmethod
    def log_reach(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Return ``log Qbar_t[x_0, x_t]``, float64, for integers of one shape, all trusted."""

    def q_matrix(self, t: int) -> Tensor:
        """Return ``Q_t``, float64 ``(K, K)``, for looking and for tests.

        Args:
            t: 1..T.

        Raises:
            IndexError: t is not in 1..T.
        """
        return self._q_matrix(self._check_time(t, least=1)).clone()

    def q_bar_matrix(self, t: int) -> Tensor:
        """Return ``Qbar_t = Q_1 ... Q_t``, float64 ``(K, K)``, for looking and for tests.

        Args:
            t: 0..T; ``Qbar_0`` is the identity.

        Raises:
            IndexError: t is not in 0..T.
        """
        return self._q_bar_matrix(self._check_time(t, least=0)).clone()

    def log_q_matrix(self, t: int) -> Tensor:
        """Return ``log Q_t``, float64 ``(K, K)``, also of entries below float64's range.

        Args:
            t: 1..T.

        Raises:
            IndexError: t is not in 1..T.
        """
        return self._log_q_matrix(self._check_time(t, least=1)).clone()

    def extra_repr(self) -> str:
        """Return the family and its sizes, for ``repr``."""
        mask = f", mask_id={self.mask_id}" if self.mask_id >= 0 else ""
        return f"{self.family}, num_classes={self.num_classes}, num_steps={self.num_steps}{mask}"

    @abstractmethod
    def _q_matrix(self, t: int) -> Tensor: ...

    @abstractmethod
    def _q_bar_matrix(self, t: int) -> Tensor: ...

    def _log_q_matrix(self, t: int) -> Tensor:
        """Return ``log Q_t``, also of entries below float64's range."""
        return self._q_matrix(t).log()

    def _check_time(self, t: int, least: int) -> int:
        t = check_integer("t", t)
        if not least <= t <= self.num_steps:
            raise IndexError(f"t must lie in [{least}, {self.num_steps}], got {t}")
        return t

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        is_empty = self.device.type == "meta"
        here = "cpu" if is_empty else self.device
        device = fn(torch.empty(0, dtype=torch.int64, device=here)).device
        if is_empty and device.type != "meta":
            raise RuntimeError(
                "a chain that was moved to the meta device has no numbers left: build it anew, "
                "which under torch.device('meta') too gives one on the CPU"
            )
        for name in self._TABLES:
            table = getattr(self, name)
            if table is not None:
                setattr(self, name, table.to(device))
        return self


def running_sums(rows: Tensor) -> Tensor:
    """Return the running sums of a distribution, or of each row of a matrix.

    They are 1 from the last possible class on: no number below 1 can pass it.
    """
    possible_from_here = (rows > 0).flip(-1).cumsum(-1).flip(-1)
    return rows.cumsum(-1).masked_fill(possible_from_here <= (rows > 0), 1.0)
