"""The structures of chains, and what an operation is given of a chain of each."""

from typing import Any, NamedTuple

from torch import Tensor

from .handles import of_handle

__all__ = [
    "DENSE",
    "RANK_ONE",
    "SPARSE",
    "DenseMarginal",
    "MatrixStep",
    "RankOneMarginal",
    "RankOneStep",
    "SparseMarginal",
    "Structure",
]


class RankOneStep(NamedTuple):
    """The steps ``x_t -> x_s`` of the tokens, of a rank-one chain.

    Attributes:
        rows: int64 ``(B,)`` or ``(B, *S)``: the row of the table with each token's step.
        table: float64 ``(n, 7)``, see :meth:`.rank_one.RankOneTransition.step_coefficients`; a step
            that does not exist has a row of NaN, or one outside the table.
        pi: float64 ``(K,)``, what a redrawn token is drawn from; None for 1/K.
        pi_cdf: float64 ``(K,)``, its running sums; None for 1/K.
        mask_id: the mask's class, or -1.
        num_classes: K; rows of logits may end before the last class, where that is forbidden.
        forbidden: the class that data never hold, whose logits count as -inf; -1 for none.
    """

    rows: Tensor
    table: Tensor
    pi: Tensor | None
    pi_cdf: Tensor | None
    mask_id: int
    num_classes: int
    forbidden: int

    @property
    def of_tokens(self) -> tuple[str, ...]:
        """Which fields are of tokens."""
        return ("rows",)


class RankOneMarginal(NamedTuple):
    """``q(x_t | x_0)`` of the tokens, of a rank-one chain.

    Attributes:
        rows: int64 ``(B,)`` or ``(B, *S)``: the row of the table with each token's time.
        table: float64 ``(T + 1, 3)``, see
            :meth:`.rank_one.RankOneTransition.product_coefficients`.
        pi_cdf: float64 ``(K,)``; None for 1/K.
        mask_id: the mask's class, or -1.
        num_classes: K.
    """

    rows: Tensor
    table: Tensor
    pi_cdf: Tensor | None
    mask_id: int
    num_classes: int


class MatrixStep(NamedTuple):
    """The steps ``x_t -> x_s`` of the tokens, of a chain of matrices.

    In continuous time s may be t itself: there are rates, then, in the place of ``Q_{s->t}``.

    Attributes:
        t: int64, in continuous time float64, ``(B,)`` or ``(B, *S)``.
        s: of the shape of t; None for t - 1.
        handle: the number that the chain is registered under.
    """

    t: Tensor
    s: Tensor | None
    handle: int

    @property
    def of_tokens(self) -> tuple[str, ...]:
        """Which fields are of tokens."""
        return "t", "s"

    @property
    def chain(self) -> Any:
        """The chain itself."""
        return of_handle(self.handle)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.chain.num_classes  # type: ignore[no-any-return]


class DenseMarginal(NamedTuple):
    """``q(x_t | x_0)`` of the tokens, of a chain whose matrices are made.

    Attributes:
        t: int64, in continuous time float64, ``(B,)`` or ``(B, *S)``.
        handle: the number that the chain is registered under.
    """

    t: Tensor
    handle: int

    @property
    def chain(self) -> Any:
        """The chain itself."""
        return of_handle(self.handle)


class SparseMarginal(DenseMarginal):
    """``q(x_t | x_0)`` of the tokens, of a chain of jumps by a sparse matrix."""


class Structure(NamedTuple):
    """A kind of chain that has kernels of its own.

    Attributes:
        name: as it is spoken of.
        prefix: of the names of its registered operations.
        step: the record of its steps.
        marginal: the record of its marginals.
    """

    name: str
    prefix: str
    step: type
    marginal: type


RANK_ONE = Structure("rank-one", "", RankOneStep, RankOneMarginal)
DENSE = Structure("dense", "dense_", MatrixStep, DenseMarginal)
SPARSE = Structure("sparse", "sparse_", MatrixStep, SparseMarginal)
