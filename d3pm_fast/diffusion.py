"""``D3PM``: a transition and the choices that its loss, posterior and sampler share."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from . import _settings, functional, timesteps
from ._checks import check_choice
from ._loadable import loadable
from .choices import FIRST_STEPS, IMPLS, REVERSES, FirstStep, Impl, Last, Reduction, Reverse
from .elbo import ELBO, elbo
from .sampling import ancestral
from .transitions import Transition

__all__ = ["D3PM"]


@loadable
class D3PM(nn.Module):
    """A discrete denoising diffusion model, all but its network (Austin et al. 2021).

    The methods are :mod:`d3pm_fast.functional` with the transition, the reverse step and the
    first step filled in once, so that loss and sampler cannot disagree. ``.to(device)`` moves the
    tables; no ``.to(dtype)`` rounds them.

    There are no weights. A state dict holds one small tensor, by which weights that are loaded
    beside another chain, T, reverse step or first step give a ``UserWarning``, never an error;
    one without it loads as well. A file of the whole module (``torch.save(diffusion, path)``)
    can be read with ``weights_only=True``.

    Args:
        transition: a chain of :mod:`d3pm_fast.transitions`.
        reverse: ``"joint"`` (eq. 4) or ``"posterior_mean"``.
        first_step: ``"posterior"`` or ``"logits"``, the model of ``p(x_0 | x_1)``.
        impl: the implementation of every call, see :func:`d3pm_fast.implementation`.
    """

    def __init__(
        self,
        transition: Transition,
        reverse: Reverse = "joint",
        first_step: FirstStep = "posterior",
        impl: Impl = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(transition, Transition):
            raise TypeError(
                f"transition must be a d3pm_fast transition, got {type(transition).__name__}"
            )
        self.transition = transition
        self.reverse = check_choice("reverse", reverse, REVERSES)
        self.first_step = check_choice("first_step", first_step, FIRST_STEPS)
        self.impl = check_choice("impl", impl, IMPLS)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.transition.num_classes

    @property
    def num_steps(self) -> int:
        """T."""
        return self.transition.num_steps

    def get_extra_state(self) -> Tensor:
        """Return what a state dict holds: the settings, and a fingerprint of the chain."""
        return _settings.as_tensor(self)

    def set_extra_state(self, state: Tensor) -> None:
        """Warn where a state dict was saved with another chain, reverse step or first step."""
        _settings.warn_of_others(state, self)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *lists: list[str],
    ) -> None:
        missing: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, *lists)
        missing_keys += [key for key in missing if not key.endswith("_extra_state")]

    def extra_repr(self) -> str:
        """Return the choices made, for ``repr``."""
        return f"reverse={self.reverse!r}, first_step={self.first_step!r}, impl={self.impl!r}"

    def sample_t(
        self,
        batch: int,
        low_discrepancy: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw training times uniform on 1..T, int64 ``(batch,)``, on the module's device.

        See :func:`d3pm_fast.timesteps.uniform` and :func:`d3pm_fast.timesteps.low_discrepancy`.
        """
        draw = timesteps.low_discrepancy if low_discrepancy else timesteps.uniform
        drawn_on = self._device if generator is None else generator.device
        return draw(self.num_steps, batch, generator, str(drawn_on)).to(self._device)

    def q_sample(
        self,
        x0: Tensor,
        t: Tensor,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
        step: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Draw ``x_t ~ q(x_t | x_0)``; see :func:`d3pm_fast.functional.q_sample`."""
        return functional.q_sample(
            self.transition,
            x0,
            t,
            mask=mask,
            generator=generator,
            seeds=seeds,
            step=step,
            impl=self.impl,
        )

    def q_posterior(
        self,
        x0: Tensor,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return ``log q(x_s | x_t, x_0)``, s = t - 1 unless given.

        See :func:`d3pm_fast.functional.q_posterior`.
        """
        return functional.q_posterior(self.transition, x0, x_t, t, s, dtype=dtype, impl=self.impl)

    def p_posterior(
        self, logits: functional.Prediction, x_t: Tensor, t: Tensor, s: Tensor | None = None
    ) -> Tensor:
        """Return ``log p(x_s | x_t)``, s = t - 1 unless given.

        See :func:`d3pm_fast.functional.p_posterior`.
        """
        return functional.p_posterior(
            self.transition,
            logits,
            x_t,
            t,
            s,
            reverse=self.reverse,
            first_step=self.first_step,
            impl=self.impl,
        )

    def loss(
        self,
        logits: functional.Prediction,
        x0: Tensor,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        vb_weight: float | Tensor = 1.0,
        ce_weight: float | Tensor = 0.0,
        mask: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Return the hybrid loss in nats; see :func:`d3pm_fast.functional.loss`."""
        return functional.loss(
            self.transition,
            logits,
            x0,
            x_t,
            t,
            s,
            reverse=self.reverse,
            first_step=self.first_step,
            vb_weight=vb_weight,
            ce_weight=ce_weight,
            mask=mask,
            reduction=reduction,
            impl=self.impl,
        )

    def prior(self, x0: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the bound's prior term; see :func:`d3pm_fast.functional.prior`."""
        return functional.prior(self.transition, x0, mask)

    def elbo(
        self,
        denoiser: Callable[[Tensor, Tensor], functional.Prediction],
        x0: Tensor,
        steps: int | Iterable[int] | None = None,
        num_times: int | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
        batch_size: int = 64,
        progress: bool = False,
    ) -> ELBO:
        """Return the whole bound of each item; see :func:`d3pm_fast.elbo.elbo`."""
        return elbo(
            self,
            denoiser,
            x0,
            steps=steps,
            num_times=num_times,
            mask=mask,
            generator=generator,
            seeds=seeds,
            batch_size=batch_size,
            progress=progress,
        )

    def p_sample(
        self,
        logits: functional.Prediction,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
        step: int = 0,
    ) -> Tensor:
        """Draw ``x_s ~ p(x_s | x_t)``, s = t - 1 unless given.

        See :func:`d3pm_fast.functional.p_sample`.
        """
        return functional.p_sample(
            self.transition,
            logits,
            x_t,
            t,
            s,
            reverse=self.reverse,
            first_step=self.first_step,
            generator=generator,
            seeds=seeds,
            step=step,
            impl=self.impl,
        )

    def sample(
        self,
        denoiser: Callable[[Tensor, Tensor], functional.Prediction],
        shape: tuple[int, ...],
        steps: int | Iterable[int] | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
        callback: Callable[[Tensor, int], None] | None = None,
        last: Last = "sample",
        known: tuple[Tensor, Tensor] | None = None,
        time_independent: bool = False,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """Draw new data, int64 ``shape``; see :func:`d3pm_fast.sampling.ancestral`."""
        return ancestral(
            self,
            denoiser,
            shape,
            steps=steps,
            last=last,
            known=known,
            time_independent=time_independent,
            generator=generator,
            seeds=seeds,
            progress=progress,
            callback=callback,
        )

    def sample_prior(self, shape: tuple[int, ...], seeds: Tensor) -> Tensor:
        """Draw x_T from the stationary distribution, int64 ``shape``.

        Args:
            shape: ``(B, *S)``.
            seeds: int64 ``(B,)``, see :func:`d3pm_fast.functional.draw_seeds`.
        """
        return functional.sample_prior(self.transition, shape, seeds, self.num_steps + 1)

    @property
    def _device(self) -> torch.device:
        return self.transition.device
