"""The training loop.

All randomness is a function of the seed and the step, so that a run that was stopped anywhere
goes on from its last checkpoint as if it never had been. It is drawn for the whole batch, so that
any number of processes take the same steps.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .. import _files
from .._random import mixed_seed, seeded
from ..chains.structures import RANK_ONE
from ..functional import draw_seeds
from . import checkpoint, distributed, figures, model, records
from .averaging import averaged
from .config import T_MIN, TrainConfig
from .device import autocast, place
from .generate import draw
from .held_out import bits_per_token
from .items import Items
from .process import exit_status, locked, stop_requested
from .running import RunningBound
from .scaling import GradientScale
from .tasks import to_options

WARM_UP = 200
ORDER, NOISE = 1, 2  # keys of the seed
FIRST_PREVIEW, PREVIEW_COUNT = 100, 16  # steps, the next ones twice as late each; items


def train(config: TrainConfig) -> None:
    """Train, or go on with, the run in ``config.out``; write checkpoints, metrics and samples.

    Raises:
        SystemExit: a signal asked to stop; with its exit status.
    """
    with distributed.joined(config.device):
        run = Run(config)
        run.go()
    if run.stopped_by:
        raise SystemExit(exit_status(run.stopped_by))


class Piece(NamedTuple):
    """What a process has found of a piece of a batch.

    Attributes:
        means: its share of the mean loss and of the mean cross-entropy, ``(2,)``.
        t: the times ``(B,)``.
        nats: the bound's term of each item, the sum over the tokens that count, ``(B,)``.
        tokens: how many those are, ``(B,)``.
    """

    means: Tensor
    t: Tensor
    nats: Tensor
    tokens: Tensor


class Run:
    """The state of a training run and what one step does to it."""

    def __init__(self, config: TrainConfig) -> None:
        records.check_installed(config.log)
        checkpoint.check_folder(config.out)
        self.config = config
        self.device = distributed.pick_own_device(config.device)
        self.items, self.held_out = distributed.first_alone(config.load)
        self.steps_per_epoch = len(self.items) // config.batch_size
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"--batch-size must be at most {len(self.items)}, as many items as there are to "
                f"learn from, got {config.batch_size}"
            )
        self.total = config.epochs * self.steps_per_epoch
        self.end = self.total if config.max_steps is None else min(config.max_steps, self.total)
        self.statistics = config.statistics(self.items)
        self.diffusion = place(config.diffusion(self.statistics), self.device)
        torch.manual_seed(mixed_seed(config.seed))
        self.denoiser = config.denoiser().to(self.device)
        self.average = averaged(self.denoiser, config.ema)
        if config.fsdp:
            distributed.shard(self.denoiser)
            distributed.shard(self.average.module)
        self.shares = not config.tensor_parallel or distributed.world() == 1
        if not self.shares:
            self.share_head()
        self.network = distributed.replicated(self.denoiser)
        self.optimizer = torch.optim.AdamW(
            self.denoiser.parameters(),
            config.learning_rate,
            weight_decay=config.weight_decay,
            fused=self.shares,
        )
        self.scale = GradientScale(enabled=config.precision == "float16")
        self.step = self.saved = 0
        self.stopped_by = 0  # a signal
        self.metrics: list[dict[str, Any]] = []
        self.bound = RunningBound(config.num_steps)
        marginals = torch.tensor(self.statistics["marginals"], dtype=torch.float64)
        prior = self.diffusion.transition.prior().cpu()[: len(marginals)]
        self.prior = float(marginals @ prior)

    def share_head(self) -> None:
        """Leave each process a part of the head's classes, and all items.

        Raises:
            ValueError: the chain's loss is not made of such parts.
        """
        transition = self.diffusion.transition
        if transition.structure != RANK_ONE.name:
            raise ValueError(
                f"--tensor-parallel needs a chain of rank one, as absorbing is, got {transition}"
            )
        distributed.share_head(self.denoiser)
        distributed.share_head(self.average.module)

    def go(self) -> None:
        """Train to the end, or until told to stop, from the last checkpoint.

        Raises:
            ValueError: the run cannot go on from what is in its folder, or another process is at
                work there; the loss became infinite or NaN.
        """
        with self.folder():
            self.resume()
            distributed.say(f"{self.diffusion.transition}\n{self.place()}")
            distributed.say(f"step {self.step} of {self.total}; files go to {self.config.out}")
            with stop_requested() as stopped, self.log() as log:
                self.advance(log, stopped)
                self.stopped_by = distributed.agreed(stopped())
            if self.stopped_by or self.step < self.end:
                distributed.say(f"stopped at step {self.step}; the same command goes on from here")
            else:
                self.finish()

    def place(self) -> str:
        """Return where the run computes, and by what."""
        number = distributed.world()
        processes = "" if number == 1 else f", {number} processes"
        return f"implementation {self.config.impl}, {self.device}{processes}"

    @contextmanager
    def folder(self) -> Iterator[None]:
        """Have the folder of the run for its processes alone."""
        out = self.config.out
        with ExitStack() as kept:
            if distributed.is_first():
                out.mkdir(parents=True, exist_ok=True)
                kept.enter_context(locked(out, "choose another --out, or wait until it ends"))
            distributed.wait()
            yield

    @contextmanager
    def log(self) -> Iterator[records.Write]:
        """Yield what writes the metrics of a step, which the first process does."""
        if not distributed.is_first():
            yield lambda line: None
            return
        out, options = self.config.out, to_options(self.config)
        given = {k: v for k, v in options.items() if v is not None and k != "config"}
        _files.write_text(out / "config.toml", tomli_w.dumps(given))
        with records.open_log(out, self.config.log, self.metrics, options) as log:
            yield log

    def advance(self, log: records.Write, stopped: Any) -> None:
        """Train to the end or until ``stopped()``."""
        with (
            # Whoever reads the output may end first, as after Ctrl-C in a pipe.
            suppress(BrokenPipeError),
            tqdm(
                total=self.end,
                initial=self.step,
                unit="step",
                smoothing=0.05,
                disable=not distributed.is_first(),
            ) as bar,
        ):
            stop = distributed.agreed(stopped())
            while self.step < self.end and not stop:
                line = self.train_step()
                self.metrics.append(line)
                log(line)
                stop = distributed.agreed(stopped() or not self.shows(bar))
                if self.step % self.config.checkpoint_every == 0 or stop:
                    self.save()
                if is_preview(self.step) and self.step < self.end:
                    self.draw(self.config.out / "preview", PREVIEW_COUNT)
        if self.step > self.saved:
            self.save()

    def finish(self) -> None:
        """Draw samples, and bound the items held out where the run is whole."""
        out = self.config.out
        samples = out / "samples" / f"step-{self.step}"
        if not distributed.agreed(distributed.is_first() and samples.exists()):
            distributed.say("wrote", *self.draw(samples, self.config.sample_count))
        if self.step < self.total:
            distributed.say(
                f"stopped at step {self.step}; with more --max-steps it goes on from here"
            )
            return
        bits = self.evaluate()
        if bits is None:
            return
        found = {"step": self.step, "bits": bits, "unit": self.config.UNIT}
        _files.write_text(out / "held_out.json", json.dumps(found) + "\n")
        print(f"held out: at most {bits:.3f} bits per {self.config.UNIT}")
        print(f"done: {out}; with more --epochs it goes on from here")

    def train_step(self) -> dict[str, Any]:
        """Take one step and return its metrics.

        Raises:
            ValueError: the loss or its gradient is infinite or NaN; the weights are as before.
        """
        started = time.perf_counter()
        config = self.config
        batch = self.batch()
        generator = seeded(config.seed, NOISE, self.step)
        t = self.diffusion.sample_t(
            len(batch), low_discrepancy=True, generator=generator, t_min=T_MIN
        )
        seeds = draw_seeds(len(batch), generator).to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        pieces = []
        for rows in (parts := distributed.parts(config.accumulate, self.shares)):
            with distributed.gathering(self.network, is_last=rows is parts[-1]):
                pieces.append(self.learn(batch, rows, t, seeds))
        self.scale.undo(self.denoiser.parameters(), distributed.world() if self.shares else 1)
        clipped = distributed.clip_gradient(self.denoiser, config.clip)
        loss, cross_entropy, sums = self.measured(pieces)
        norm = clipped.item()
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.scale.can_shrink()):
            raise ValueError(
                f"the loss is {loss} and its gradient's norm {norm} at step "
                f"{self.step}; the last checkpoint is kept. A smaller --learning-rate, or "
                "--precision float32, may help"
            )
        self.scale.update(math.isfinite(norm))
        if math.isfinite(norm):
            self.optimizer.step()
            self.average.update_parameters(self.denoiser)
        self.bound.update(sums)
        running = self.bound.nats()
        self.step += 1
        return {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "loss": loss,
            "bound": None if running is None else (running + self.prior) / math.log(2),
            "cross_entropy": cross_entropy / math.log(2),
            "gradient_norm": norm if math.isfinite(norm) else None,
            "items_per_second": len(batch) / (time.perf_counter() - started),
        }

    def learn(self, batch: Items, rows: slice, t: Tensor, seeds: Tensor) -> Piece:
        """Add the gradient of some rows of a batch, and return what is found of them."""
        config, count = self.config, batch.count()
        is_empty = not range(len(batch))[rows]
        if is_empty:  # which networks do not take: an item of which no token counts
            rows = slice(1)
        part, t = batch[rows].to(self.device), t[rows]
        mask = torch.zeros_like(part.x0, dtype=torch.bool) if is_empty else part.mask
        x_t = self.diffusion.q_sample(part.x0, t, seeds=seeds[rows])
        with autocast(config.precision, self.device):
            logits = part.predict(self.network, x_t, t)
        loss_of = partial(self.diffusion.loss, logits, part.x0, x_t, t, mask=mask)
        vb, ce = config.duration * config.vb_weight, config.timesteps * config.ce_weight
        loss = loss_of(vb_weight=vb, ce_weight=ce, denominator=count)
        loss.backward(torch.full_like(loss, self.scale.factor))
        with torch.no_grad():
            terms = loss_of(reduction="batch")
            cross_entropy = loss_of(vb_weight=0.0, ce_weight=1.0, denominator=count)
        means = torch.stack([loss.detach(), cross_entropy])
        return Piece(means, t, terms, Items(part.x0, mask).lengths())

    def measured(self, pieces: list[Piece]) -> tuple[float, float, Tensor]:
        """Return the loss of the whole batch, its cross-entropy, and what it adds to the bound."""
        means, *of_items = zip(*pieces, strict=True)
        distributed.wait()  # hears of a dead process before it is waited for on a GPU
        sums = self.bound.sums_of(*(torch.cat(values) for values in of_items))
        both = torch.stack(means).double().sum(0).cpu()
        numbers = torch.cat([both, sums.flatten()])
        if self.shares:
            distributed.total(numbers)
        loss, cross_entropy = numbers[:2].tolist()
        return loss, cross_entropy, numbers[2:].view_as(sums)

    def batch(self) -> Items:
        """Return the items of this step, in an order of each epoch's own."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if place == 0 or not hasattr(self, "order"):
            order = seeded(self.config.seed, ORDER, epoch)
            self.order = torch.randperm(len(self.items), generator=order)
        size = self.config.batch_size
        return self.items[self.order[place * size : (place + 1) * size]]

    def rate(self) -> float:
        """Return this step's share of the peak learning rate."""
        warm_up = min(1.0, (self.step + 1) / WARM_UP)
        return warm_up * 0.5 * (1 + math.cos(math.pi * self.step / self.total))

    def shows(self, bar: tqdm) -> bool:
        """Move the progress bar on; return whether somebody reads it."""
        try:
            bar.update()
            bar.set_postfix_str(self.progress())
        except BrokenPipeError:
            return False
        return True

    def progress(self) -> str:
        """Return what the progress bar says."""
        recent = self.metrics[-50:]
        bound, speed = recent[-1]["bound"], sum(m["items_per_second"] for m in recent) / len(recent)
        entropy = sum(m["cross_entropy"] for m in recent) / len(recent)
        known = "" if bound is None else f"bound {bound:.3f}, "
        return f"{known}cross-entropy {entropy:.3f} bits/{self.config.UNIT}, {speed:.0f} items/s"

    def save(self) -> None:
        """Write the checkpoint, and the model with averaged weights."""
        out = self.config.out
        state = {
            "options": to_options(self.config),
            "step": self.step,
            "statistics": self.statistics,
            "bound": self.bound.state_dict(),
            "scale": self.scale.state_dict(),
        }
        checkpoint.save_all(out, state, self.weights())
        average = self.whole_average()
        if distributed.is_first():
            model.save(out / model.NAME, self.config, self.statistics, average)
        self.saved = self.step

    def weights(self) -> dict[str, Any]:
        """Return the weights, their average and the optimizer's state, which is 0 at first."""
        optimizer = self.optimizer.state_dict()
        if not optimizer["state"]:
            optimizer["state"] = {
                index: {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                }
                for index, weight in enumerate(map(Tensor.detach, self.denoiser.parameters()))
            }
        return {
            "denoiser": self.denoiser.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": optimizer,
        }

    def whole_average(self) -> nn.Module:
        """Return the network of averaged weights, put together from all processes' parts."""
        average: nn.Module = self.average.module
        if not distributed.is_sharded(average):
            return average
        weights = {name: distributed.whole(part) for name, part in average.state_dict().items()}
        network = self.config.denoiser().to(self.device)
        network.load_state_dict(weights)
        return network

    def resume(self) -> None:
        """Take over the checkpoint and the metrics in the run's folder, if there are any.

        Raises:
            ValueError: the checkpoint was trained with other options or on other data.
        """
        path = self.config.out / checkpoint.NAME
        if not path.exists():
            if (self.config.out / model.NAME).exists():
                raise ValueError(
                    f"{self.config.out} has a model without its checkpoint, and would lose it: "
                    "choose another --out"
                )
            return
        state = checkpoint.load(path)
        checkpoint.check_same(state["options"], to_options(self.config), path)
        if state["statistics"] != self.statistics:
            raise ValueError(
                f"{path} was trained on other data: choose another --out, or remove the old run"
            )
        if state["step"] > self.total:
            raise ValueError(
                f"{path} has {state['step'] / self.steps_per_epoch:g} epochs behind it, asked for "
                f"are {self.config.epochs}"
            )
        with checkpoint.of_this_version(path):
            weights = checkpoint.load_weights(path, state, self.weights())
            self.denoiser.load_state_dict(weights["denoiser"])
            self.average.load_state_dict(weights["average"])
            self.optimizer.load_state_dict(weights["optimizer"])
            for group in self.optimizer.param_groups:
                group["fused"] = self.shares
            self.bound.load_state_dict(state["bound"])
            self.scale.load_state_dict(state.get("scale", self.scale.state_dict()))
            self.step = self.saved = state["step"]
        self.metrics = records.read(self.config.out, self.step)

    def draw(self, folder: Path, count: int) -> list[Path]:
        """Show samples of the averaged weights, plot loss.png, and return the files."""
        config, average = self.config, self.whole_average()
        if not distributed.is_first():
            return []
        sampler = partial(self.diffusion.sample, steps=config.steps_to_sample)
        files = draw(
            config, sampler, average, self.statistics, folder, count, config.seed, self.device
        )
        plot = config.out / "loss.png"
        figures.curve(plot, self.metrics, config.UNIT)
        return [*files, plot]

    def evaluate(self) -> float | None:
        """Return the averaged weights' bound on the items held out, in bits a token.

        It is computed by the first process; others return None.
        """
        average = self.whole_average()
        if not distributed.is_first():
            return None
        return bits_per_token(
            self.diffusion,
            average,
            self.held_out,
            self.config.batch_size,
            self.config.precision,
            self.device,
            self.config.seed,
        )


def is_preview(step: int) -> bool:
    """Return whether samples are shown after this step."""
    return step % FIRST_PREVIEW == 0 and (step // FIRST_PREVIEW).bit_count() == 1
