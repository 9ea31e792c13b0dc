"""What a bound and a sampler have to know of a diffusion model."""

from typing import Protocol

from .chains import Transition
from .choices import ClassDim, FirstStep, Impl, Reverse

__all__ = ["Diffusion"]


class Diffusion(Protocol):
    """A chain and the choices beside it; a :class:`d3pm_fast.D3PM` is one.

    Attributes:
        transition: the chain.
        reverse: the reverse step.
        first_step: the model of every step to time 0.
        class_dim: where logits have the classes.
        impl: the implementation of every call.
    """

    transition: Transition
    reverse: Reverse
    first_step: FirstStep
    class_dim: ClassDim
    impl: Impl
