"""``D3PM``: a transition and the choices that its loss, posterior and sampler share."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from . import _settings, functional, timesteps
from ._checks import check_choice
from ._loadable import loadable
from .chains import Transition
from .choices import (
    CLASS_DIMS,
    FIRST_STEPS,
    IMPLS,
    REVERSES,
    ClassDim,
    FirstStep,
    Impl,
    Last,
    Reduction,
    Reverse,
)
from .elbo import ELBO, elbo
from .predictions import Predicted
from .sampling import ancestral

__all__ = ["D3PM"]


@loadable
class D3PM(nn.Module):
    """A discrete denoising diffusion model, all but its network (Austin et al. 2021).

    The methods are :mod:`d3pm_fast.functional` with the transition, the reverse step and the
    first step filled in once, so that loss and sampler cannot disagree. ``.to(device)`` moves the
    tables; no ``.to(dtype)`` rounds them.

    Of a chain in continuous time all times are floats in [0, 1], in the place of integers, and
    posteriors and reverse steps need s.

    There are no weights. A state dict holds one small tensor, by which weights that are loaded
    beside another chain, T, reverse step or first step give a ``UserWarning``, never an error;
    one without it loads as well. A file of the whole module (``torch.save(diffusion, path)``)
    can be read with ``weights_only=True``.

    Args:
        transition: a chain of :mod:`d3pm_fast.transitions`.
        reverse: ``"joint"`` (eq. 4) or ``"posterior_mean"``.
        first_step: ``"posterior"`` or ``"logits"``, the model of ``p(x_0 | x_1)``.
        impl: the implementation of every call, see :func:`d3pm_fast.implementation`.
        class_dim: where logits have the classes, those of denoisers too: -1 for ``(B, *S, K)``,
            or 1 for ``(B, K, *S)``, as a U-Net and ``F.cross_entropy`` have them. Posteriors then
            have them there, too. Wherever ``(B, *S, K)`` is said below, it is that shape. Such
            logits are read without a copy where the classes are next to each other in memory, as
            in ``torch.channels_last``, and by the loss of a rank-one chain on a CPU; else they are
            copied once.
    """

    def __init__(
        self,
        transition: Transition,
        reverse: Reverse = "joint",
        first_step: FirstStep = "posterior",
        impl: Impl = "auto",
        class_dim: ClassDim = -1,
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
        self.class_dim = check_choice("class_dim", class_dim, CLASS_DIMS)

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return self.transition.num_classes

    @property
    def num_steps(self) -> int:
        """T, the number of steps of the chain; None in continuous time."""
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
        layout = "" if self.class_dim == -1 else f", class_dim={self.class_dim}"
        choices = f"reverse={self.reverse!r}, first_step={self.first_step!r}, impl={self.impl!r}"
        return choices + layout

    def sample_t(
        self,
        batch: int,
        low_discrepancy: bool = False,
        generator: torch.Generator | None = None,
        t_min: float = 0.0,
    ) -> Tensor:
        """Draw training times, each of them uniform on 1..T, or in continuous time on [t_min, 1).

        Args:
            batch: B, how many.
            low_discrepancy: spread the times of a batch evenly over 1..T (Kingma et al. 2021,
                VDM, appendix I.1), so that the loss varies less; else they are independent.
            generator: None for PyTorch's default generator of the module's device.
            t_min: in [0, 1), of continuous time.

        Returns:
            int64 ``(B,)``, in continuous time float64, on the module's device.
        """
        drawn_on = self._device if generator is None else generator.device
        if not self.transition.has_steps:
            t = timesteps.continuous(batch, low_discrepancy, t_min, generator, str(drawn_on))
            return t.to(self._device)
        draw = timesteps.low_discrepancy if low_discrepancy else timesteps.uniform
        return draw(self.num_steps, batch, generator, str(drawn_on)).to(self._device)

    def q_sample(
        self,
        x0: Tensor,
        t: Tensor,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
        step: int = 0,
        mask: Tensor | None = None,
        position_offset: int = 0,
    ) -> Tensor:
        """Draw ``x_t ~ q(x_t | x_0)``, the corrupted data (D3PM, eq. 3).

        Args:
            x0: the data, integers ``(B, *S)`` in [0, K).
            t: times, integers ``(B,)`` or ``(B, *S)`` in 0..T; at t = 0 the data come back.
            generator: where the seeds come from; None for PyTorch's default generator.
            seeds: int64 ``(B,)`` in place of a generator, see :func:`d3pm_fast.draw_seeds`: the
                draw of an item depends on its own seed, ``step`` and the position in it alone.
            step: a counter in [0, 2^63) that tells draws of the same seeds apart.
            mask: bool ``(B, *S)``, True where a token is drawn. The others come back as they are,
                and may hold anything.
            position_offset: the position in its item of the first token that is given of each,
                where these are a part of the positions, as the shard of a sequence; positions of
                several axes count as flattened.

        Returns:
            ``(B, *S)`` in the dtype of x0.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: a wrong shape, device or option.
            IndexError: a class or a time out of range, where values are read: on the CPU, or with
                ``D3PM_FAST_CHECK=1``. Elsewhere the result of such a token is -1.
        """
        return functional.q_sample(
            self.transition,
            x0,
            t,
            mask=mask,
            generator=generator,
            seeds=seeds,
            step=step,
            position_offset=position_offset,
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
        """Return ``log q(x_s | x_t, x_0)``, the posterior of the chain, in nats (D3PM, eq. 3).

        Args:
            x0: the data, integers ``(B, *S)`` in [0, K).
            x_t: the corrupted data, integers ``(B, *S)`` in [0, K).
            t: times, integers ``(B,)`` or ``(B, *S)`` in 1..T.
            s: times that the steps lead to, of the shape of t, in 0..t-1; None for t - 1.
            dtype: of the result, a float type; None for PyTorch's default dtype.

        Returns:
            ``(B, *S, K)``: -inf where the posterior is zero, NaN for a pair ``(x_0, x_t)`` that the
            chain cannot make.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: a wrong shape, device or option.
            IndexError: a class or a time out of range, where values are read: on the CPU, or with
                ``D3PM_FAST_CHECK=1``. Elsewhere the result of such a token is NaN.
        """
        return functional.q_posterior(
            self.transition,
            x0,
            x_t,
            t,
            s,
            dtype=dtype,
            class_dim=self.class_dim,
            impl=self.impl,
        )

    def p_posterior(
        self, logits: Predicted, x_t: Tensor, t: Tensor, s: Tensor | None = None
    ) -> Tensor:
        """Return ``log p(x_s | x_t)``, the reverse step of the model, in nats (D3PM, eq. 4).

        Args:
            logits: the denoiser's prediction of x_0, ``(B, *S, K)``: float32, float64, bfloat16 or
                float16, ``-inf`` for a forbidden class. In their place
                :class:`d3pm_fast.functional.Logistic` or :class:`d3pm_fast.functional.Score`, or
                :class:`d3pm_fast.functional.Shaped`, then without a gradient.
            x_t: the corrupted data, integers ``(B, *S)`` in [0, K).
            t: times, integers ``(B,)`` or ``(B, *S)`` in 1..T.
            s: times that the steps lead to, of the shape of t, in 0..t-1; None for t - 1.

        Returns:
            ``(B, *S, K)`` in the dtype of the logits, differentiable in them; of
            parameters in their place, float32 or float64. NaN for every class where the logits have
            no softmax, or forbid all that leads to x_t.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: a wrong shape, device or option.
            IndexError: a class or a time out of range, where values are read: on the CPU, or with
                ``D3PM_FAST_CHECK=1``. Elsewhere the result of such a token is NaN.
        """
        return functional.p_posterior(
            self.transition,
            logits,
            x_t,
            t,
            s,
            reverse=self.reverse,
            first_step=self.first_step,
            class_dim=self.class_dim,
            impl=self.impl,
        )

    def loss(
        self,
        logits: Predicted,
        x0: Tensor,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        vb_weight: float | Tensor = 1.0,
        ce_weight: float | Tensor = 0.0,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        reduction: Reduction = "mean",
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        """Return ``vb_weight L_{t-1} + ce_weight (-log softmax(logits)[x_0])``, in nats.

        ``L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))`` for t >= 2 and
        ``L_0 = -log p(x_0 | x_1)`` for t = 1 (D3PM, eq. 1 and 5), without an epsilon. Averaged over
        tokens and over t ~ U(1..T), T times the term is the sum of the bound. With ``s`` the term
        is ``KL(q(x_s | x_t, x_0) || p(x_s | x_t))``, for s = 0 ``-log p(x_0 | x_t)``. In
        continuous time without s it is the bound's density at t, whose integral over t is the
        bound.

        Args:
            logits: the denoiser's prediction of x_0, ``(B, *S, K)``: float32, float64, bfloat16 or
                float16, ``-inf`` for a forbidden class. In their place
                :class:`d3pm_fast.functional.Logistic`, or in continuous time
                :class:`d3pm_fast.functional.Score`.
            x0: the data, integers ``(B, *S)`` in [0, K).
            x_t: the corrupted data, integers ``(B, *S)`` in [0, K).
            t: times, integers ``(B,)`` or ``(B, *S)`` in 1..T.
            s: times that the steps lead to, of the shape of t, in 0..t-1; None for t - 1.
            vb_weight: weight of the term of the bound, a number or a tensor of shape ``()``.
            ce_weight: weight of the cross-entropy (the paper's lambda), likewise. A tensor is not
                read, so that it may change in compiled code and may be learned; each term then
                takes a pass over the logits.
            mask: bool ``(B, *S)``, True where a token counts. The other tokens have loss and
                gradient 0, and may hold anything.
            weights: ``(B,)`` or ``(B, *S)``, any float: a factor of each token's loss.
            reduction: ``"mean"`` over the tokens that count, ``"sum"``, ``"none"`` for ``(B, *S)``,
                or ``"batch"`` for ``(B,)``, the sum over positions.
            denominator: what ``"mean"`` divides by in place of how many tokens count: a number, or
                a tensor of shape ``()``, which is not read.

        Returns:
            float64 for float64 logits, float32 for all others; differentiable in the logits. NaN
            for a pair ``(x_0, x_t)`` that the chain cannot make.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: a wrong shape, device or option.
            IndexError: a class or a time out of range, where values are read: on the CPU, or with
                ``D3PM_FAST_CHECK=1``. Elsewhere the result of such a token is NaN.
        """
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
            weights=weights,
            reduction=reduction,
            denominator=denominator,
            class_dim=self.class_dim,
            impl=self.impl,
        )

    def loss_terms(self, *args: Any, **options: Any) -> functional.LossTerms:
        """Return the loss and its two terms, ``(loss, vb, ce)``, from one pass over the logits.

        The terms have the mask, the weights and the reduction of the loss, but not ``vb_weight``
        and ``ce_weight``; they are detached, and of all tokens that count.

        Args:
            args: the prediction, x0, x_t, t and s, as :meth:`loss` has them.
            options: as :meth:`loss` has them.
        """
        settings: dict[str, Any] = {
            "reverse": self.reverse,
            "first_step": self.first_step,
            "class_dim": self.class_dim,
            "impl": self.impl,
        }
        return functional.loss_terms(self.transition, *args, **options, **settings)

    def count_open(
        self,
        x0: Tensor,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> functional.Count:
        """Count the tokens whose bound is not 0 whatever is predicted, as masked ones are.

        For :class:`d3pm_fast.functional.Linear`, which leaves the others out. Call it when x_t is
        drawn: on a GPU the count is made there while you go on.

        Args:
            x0: the data, integers ``(B, *S)`` in [0, K).
            x_t: the corrupted data, integers ``(B, *S)`` in [0, K).
            t: times, as :meth:`loss` has them.
            s: times that the steps lead to, as :meth:`loss` has them.
            mask: bool ``(B, *S)``, True where a token counts.
            weights: ``(B,)`` or ``(B, *S)``, factors of tokens.

        Returns:
            an integer for ``int()``, which waits for the count alone.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: a wrong shape, device or option.
        """
        return functional.count_open(
            self.transition,
            x0,
            x_t,
            t,
            s,
            first_step=self.first_step,
            mask=mask,
            weights=weights,
        )

    def prior(self, x0: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``KL(q(x_T | x_0) || stationary)`` in nats, the prior term ``L_T`` (D3PM, eq. 1).

        Args:
            x0: the data, integers ``(B, *S)`` in [0, K).
            mask: bool ``(B, *S)``, True where a token counts.

        Returns:
            float64 ``(B,)``, the sum over positions. NaN for an item with a class out of range.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: a wrong shape or device.
            IndexError: a class out of range, where values are read: on the CPU, or with
                ``D3PM_FAST_CHECK=1``.
        """
        return functional.prior(self.transition, x0, mask)

    def elbo(
        self,
        denoiser: Callable[[Tensor, Tensor], Predicted],
        x0: Tensor,
        steps: int | Iterable[float] | None = None,
        num_times: int | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
        batch_size: int = 64,
        progress: bool = False,
        t_min: float = 1e-3,
        position_offset: int = 0,
    ) -> ELBO:
        """Return the negative evidence lower bound of each item, or an estimate (D3PM, eq. 1).

        Each x_t is drawn once. Without a gradient. In continuous time it is the integral of the
        density from t_min to 1, and the term of the step from t_min to 0; or the bound of steps.

        Args:
            denoiser: maps ``(x_t (n, *S) int64, t (n,) int64)`` to logits ``(n, *S, K)``, or to
                :class:`d3pm_fast.functional.Logistic`. The n may be of several items and times.
                In continuous time t is float64. Put it in evaluation mode yourself.
            x0: the data, integers ``(B, *S)`` in [0, K), on the module's device.
            steps: how many steps the model takes, evenly strided, or the times that they start
                from, falling from T; None for all T, in continuous time for the integral. Fewer
                steps have a bound of their own.
            num_times: how many of the steps are taken for each item, at least 3, for an estimate
                without a bias, with its standard error; None takes all of them. An integral
                needs it: how many times the density is taken at, and one for the step to 0. See
                :func:`d3pm_fast.elbo.elbo`.
            mask: bool ``(B, *S)``, True where a token counts. The denoiser sees the others as they
                are in x0.
            generator: where the seeds come from; None for PyTorch's default generator.
            seeds: int64 ``(B,)`` in place of a generator, see :func:`d3pm_fast.draw_seeds`.
            batch_size: the most x_t in one call of the denoiser.
            progress: show a progress bar.
            t_min: of an integral, where it ends, in (0, 1); the sum is a bound for every t_min.
            position_offset: the position in its item of the first token that is given of each,
                where these are a part of the positions, as the shard of a sequence. All parts take
                the same steps, and their terms and priors add up to those of the item.

        Returns:
            :class:`d3pm_fast.elbo.ELBO`: float64, in nats, and ``bits_per_dim``.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: a wrong shape, device or option.
            IndexError: a class out of range, where values are read: on the CPU, or with
                ``D3PM_FAST_CHECK=1``. Elsewhere the result of such a token is NaN.
        """
        return elbo(
            self,
            denoiser,
            x0,
            steps=steps,
            num_times=num_times,
            t_min=t_min,
            mask=mask,
            generator=generator,
            seeds=seeds,
            position_offset=position_offset,
            batch_size=batch_size,
            progress=progress,
        )

    def p_sample(
        self,
        logits: Predicted,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
        step: int = 0,
        position_offset: int = 0,
    ) -> Tensor:
        """Draw ``x_s ~ p(x_s | x_t)``, a reverse step (D3PM, eq. 4 and appendix A.3).

        Exact to the tails: a class of probability 1e-9 comes at that rate.

        Args:
            logits: the denoiser's prediction of x_0, ``(B, *S, K)``: float32, float64, bfloat16 or
                float16, ``-inf`` for a forbidden class. In their place
                :class:`d3pm_fast.functional.Logistic` or
                :class:`d3pm_fast.functional.Shaped`.
            x_t: the corrupted data, integers ``(B, *S)`` in [0, K).
            t: times, integers ``(B,)`` or ``(B, *S)`` in 1..T.
            s: times that the steps lead to, of the shape of t, in 0..t-1; None for t - 1.
            generator: where the seeds come from; None for PyTorch's default generator.
            seeds: int64 ``(B,)`` in place of a generator, see :func:`d3pm_fast.draw_seeds`: the
                draw of an item depends on its own seed, ``step`` and the position in it alone.
            step: a counter in [0, 2^63) that tells draws of the same seeds apart.
            position_offset: the position in its item of the first token that is given of each,
                where these are a part of the positions, as the shard of a sequence; positions of
                several axes count as flattened.

        Returns:
            ``(B, *S)`` in the dtype of x_t. On a GPU -1 (255 as uint8) where the logits have no
            softmax, or forbid all that leads to x_t.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: a wrong shape, device or option; on the CPU, logits without a softmax, or
                that forbid all that leads to x_t.
            IndexError: a class or a time out of range, where values are read: on the CPU, or with
                ``D3PM_FAST_CHECK=1``. Elsewhere the result of such a token is -1.
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
            position_offset=position_offset,
            class_dim=self.class_dim,
            impl=self.impl,
        )

    def predict(
        self,
        logits: Predicted,
        x_t: Tensor,
        t: Tensor,
        mask: Tensor | None = None,
        take: Last = "sample",
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
        step: int = 0,
        position_offset: int = 0,
    ) -> functional.PredictedTokens:
        """Draw each x_0 that is not known, and say how sure the prediction of it is.

        What a sampler chooses by which tokens to unmask, and with what, from one read of the
        logits.

        Args:
            logits: the denoiser's prediction of x_0, as :meth:`p_sample` takes it.
            x_t: the corrupted data, integers ``(B, *S)`` in [0, K).
            t: times, integers ``(B,)`` or ``(B, *S)`` in 1..T.
            mask: bool ``(B, *S)``: the tokens whose rows are read; None for the masked ones of an
                absorbing chain, and for all of any other.
            take: ``"sample"``, or ``"argmax"`` for the likeliest class as the token.
            generator: where the seeds come from; None for PyTorch's default generator.
            seeds: int64 ``(B,)`` in place of a generator, see :func:`d3pm_fast.draw_seeds`.
            step: a counter in [0, 2^63) that tells draws of the same seeds apart.
            position_offset: the position in its item of the first token that is given of each.

        Returns:
            :class:`d3pm_fast.functional.PredictedTokens`, each field ``(B, *S)``.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: a wrong shape, device or option; on the CPU, logits without a softmax.
            IndexError: a class or a time out of range, where values are read. Elsewhere such a
                token is -1, and its numbers are NaN.
        """
        return functional.predict(
            self.transition,
            logits,
            x_t,
            t,
            mask=mask,
            take=take,
            generator=generator,
            seeds=seeds,
            step=step,
            position_offset=position_offset,
            class_dim=self.class_dim,
            impl=self.impl,
        )

    def sample(
        self,
        denoiser: Callable[[Tensor, Tensor], Predicted],
        shape: tuple[int, ...],
        steps: int | Iterable[float] | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
        callback: Callable[[Tensor, Any], None] | None = None,
        last: Last = "sample",
        known: tuple[Tensor, Tensor] | None = None,
        time_independent: bool = False,
        seeds: Tensor | None = None,
        position_offset: int = 0,
    ) -> Tensor:
        """Draw new data: x_T from the stationary distribution, then each ``x_s ~ p(x_s | x_t)``.

        An item depends on its own seed alone, whatever the batch.

        Args:
            denoiser: maps ``(x_t (B, *S) int64, t (B,) int64)`` to logits ``(B, *S, K)``, or to
                what else :meth:`p_sample` takes. Put it in evaluation mode yourself.
            shape: ``(B, *S)``.
            steps: how many times the denoiser is called, at evenly strided times, or the times
                themselves, falling from T; None for all T. In continuous time, T = 1, one of
                them is needed, see :func:`d3pm_fast.timesteps.grid`.
            generator: where the seeds come from; None for PyTorch's default generator.
            progress: show a progress bar.
            callback: called with ``(x_T, T)`` and then with each ``(x_s, s)``.
            last: ``"sample"``, or ``"argmax"`` for the likeliest class of each token in the step
                to 0, as in the paper's code.
            known: ``(tokens, mask)``, integers and bool ``(B, *S)``: where the mask is True, x is
                held at these tokens in every step, and the others are filled in. A heuristic
                unless the chain is absorbing, see :func:`d3pm_fast.sampling.ancestral`.
            time_independent: the denoiser promises not to look at t. It is then called only for
                the items that the last step has changed.
            seeds: int64 ``(B,)`` in place of a generator, see :func:`d3pm_fast.draw_seeds`.
            position_offset: the position in its item of the first token that is given of each,
                where these are a part of the positions, as the shard of a sequence; positions of
                several axes count as flattened.

        Returns:
            x_0, int64 ``(B, *S)``, on the module's device.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: a wrong shape, device or option.
            IndexError: a known token out of range, where values are read: on the CPU, or with
                ``D3PM_FAST_CHECK=1``.
        """
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
            position_offset=position_offset,
            progress=progress,
            callback=callback,
        )

    def sample_prior(
        self, shape: tuple[int, ...], seeds: Tensor, position_offset: int = 0
    ) -> Tensor:
        """Draw x_T from the stationary distribution of the chain.

        Args:
            shape: ``(B, *S)``.
            seeds: int64 ``(B,)`` on the module's device, see :func:`d3pm_fast.draw_seeds`.
            position_offset: the position in its item of the first token of each.

        Returns:
            int64 ``(B, *S)``, on the module's device.
        """
        step, offset = (self.num_steps or 0) + 1, position_offset
        return functional.sample_prior(self.transition, shape, seeds, step, position_offset=offset)

    @property
    def _device(self) -> torch.device:
        return self.transition.device
