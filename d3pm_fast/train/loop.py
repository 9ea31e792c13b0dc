"""The training loop.

All randomness is a function of the seed and the step, so that a run that was stopped anywhere
goes on from its last checkpoint as if it never had been.
"""

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from . import checkpoint, figures
from .config import TrainConfig
from .device import autocast, pick_device, place
from .generate import draw
from .held_out import bits_per_token
from .items import Items
from .tasks import to_options

WARM_UP = 200


def train(config: TrainConfig) -> None:
    """Train, or go on with, the run in ``config.out``; write checkpoints, metrics and samples."""
    Run(config).go()


class Run:
    """The state of a training run and what one step does to it."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.device = pick_device(config.device)
        self.items, self.held_out = config.load()
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
        torch.manual_seed(config.seed)
        self.denoiser = config.denoiser().to(self.device)
        self.average = AveragedModel(
            self.denoiser, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True
        )
        self.optimizer = torch.optim.AdamW(
            self.denoiser.parameters(),
            config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.step = 0
        self.metrics: list[dict[str, Any]] = []

    def go(self) -> None:
        """Train to the end, or to the first Ctrl-C or SIGTERM, from the last checkpoint."""
        out = self.config.out
        out.mkdir(parents=True, exist_ok=True)
        self.resume()
        print(f"{self.diffusion.transition}\nimplementation {self.config.impl}, {self.device}")
        print(f"step {self.step} of {self.total}; files go to {out}", flush=True)
        with (
            stop_requested() as stopped,
            open(out / "metrics.jsonl", "w") as log,
            tqdm(total=self.end, initial=self.step, unit="step", smoothing=0.05) as bar,
        ):
            log.writelines(json.dumps(line) + "\n" for line in self.metrics)
            while self.step < self.end and not stopped():
                line = self.train_step()
                self.metrics.append(line)
                log.write(json.dumps(line) + "\n")
                bar.update()
                bar.set_postfix_str(self.progress())
                if self.step % self.config.checkpoint_every == 0 or stopped():
                    log.flush()
                    self.save()
                if self.step % (self.config.sample_every * self.steps_per_epoch) == 0:
                    self.draw()
        self.save()
        if self.step < self.end:
            print(f"stopped at step {self.step}; the same command goes on from here")
            return
        files = self.draw()
        if self.step < self.total:
            print(f"stopped at step {self.step}; with more --max-steps it goes on from here")
        else:
            print(f"held out: at most {self.evaluate():.3f} bits per {self.config.UNIT}")
        print("done:", *files)

    def train_step(self) -> dict[str, Any]:
        """Take one step and return its metrics."""
        started = time.perf_counter()
        config = self.config
        generator = torch.Generator().manual_seed((config.seed << 32) + self.step)
        batch = self.batch().to(self.device)
        x0, mask = batch.x0, batch.mask
        t = self.diffusion.sample_t(len(x0), low_discrepancy=True, generator=generator)
        x_t = self.diffusion.q_sample(x0, t, generator=generator)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * self.rate()
        with autocast(config.precision, self.device):
            logits = batch.predict(self.denoiser, x_t, t)
        vb, ce = config.timesteps * config.vb_weight, config.timesteps * config.ce_weight
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.diffusion.loss(logits, x0, x_t, t, vb_weight=vb, ce_weight=ce, mask=mask)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), config.clip)
        self.optimizer.step()
        self.average.update_parameters(self.denoiser)
        with torch.no_grad():
            bound = config.timesteps * self.diffusion.loss(logits, x0, x_t, t, mask=mask)
        self.step += 1
        seconds = time.perf_counter() - started
        return {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "loss": loss.item(),
            "bits_per_dim": bound.item() / math.log(2),
            "gradient_norm": norm.item(),
            "items_per_second": len(x0) / seconds,
        }

    def batch(self) -> Items:
        """Return the items of this step, in an order of each epoch's own."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        if place == 0 or not hasattr(self, "order"):
            order = torch.Generator().manual_seed((self.config.seed << 32) + (1 << 31) + epoch)
            self.order = torch.randperm(len(self.items), generator=order)
        size = self.config.batch_size
        return self.items[self.order[place * size : (place + 1) * size]]

    def rate(self) -> float:
        """Return this step's share of the peak learning rate."""
        warm_up = min(1.0, (self.step + 1) / WARM_UP)
        return warm_up * 0.5 * (1 + math.cos(math.pi * self.step / self.total))

    def progress(self) -> str:
        """Return what the progress bar says, over the last 50 steps."""
        recent = self.metrics[-50:]
        bits = sum(m["bits_per_dim"] for m in recent) / len(recent)
        speed = sum(m["items_per_second"] for m in recent) / len(recent)
        return f"{bits:.3f} bits/{self.config.UNIT}, {speed:.0f} items/s"

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoint.save(
            self.config.out / checkpoint.NAME,
            {
                "config": to_options(self.config),
                "step": self.step,
                "statistics": self.statistics,
                "denoiser": self.denoiser.state_dict(),
                "average": self.average.module.state_dict(),
                "averaged_steps": int(self.average.n_averaged),
                "optimizer": self.optimizer.state_dict(),
            },
        )

    def resume(self) -> None:
        """Take over the checkpoint and the metrics in the run's folder, if there are any.

        Raises:
            ValueError: the checkpoint was trained with other options or on other data.
        """
        path = self.config.out / checkpoint.NAME
        if not path.exists():
            return
        state = checkpoint.load(path)
        check_same(state["config"], to_options(self.config), path)
        if state["statistics"] != self.statistics:
            raise ValueError(
                f"{path} was trained on other data: choose another --out, or remove the old run"
            )
        with checkpoint.of_this_version(path):
            self.denoiser.load_state_dict(state["denoiser"])
            self.average.module.load_state_dict(state["average"])
            self.average.n_averaged.fill_(state["averaged_steps"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
        log = self.config.out / "metrics.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
        self.metrics = [line for line in lines if line["step"] <= self.step]

    def draw(self) -> list[Path]:
        """Show samples of the averaged weights, plot loss.png, and return the files."""
        out = self.config.out
        files = draw(
            self.config,
            partial(self.diffusion.sample, steps=self.config.steps_to_sample),
            self.average.module,
            self.statistics,
            out,
            self.config.sample_count,
            self.config.seed,
            self.device,
        )
        figures.curve(out / "loss.png", self.metrics, self.config.UNIT)
        return [*files, out / "loss.png"]

    def evaluate(self) -> float:
        """Return the averaged weights' bound on the items held out, in bits a token."""
        return bits_per_token(
            self.diffusion,
            self.average.module,
            self.held_out,
            self.config.batch_size,
            self.config.precision,
            self.device,
            self.config.seed,
        )


# Options that may differ from those of the checkpoint a run goes on from.
FREE = {
    "out",
    "data",
    "device",
    "max_steps",
    "checkpoint_every",
    "sample_every",
    "sample_count",
    "sample_steps",
}


def check_same(saved: dict[str, Any], asked: dict[str, Any], path: Path) -> None:
    """Raise ValueError if a checkpoint's options are not the ones asked for."""
    for name, value in asked.items():
        if name not in FREE and saved.get(name) != value:
            raise ValueError(
                f"{path} was trained with {name} = {saved.get(name)!r}, asked for is {value!r}: "
                "choose another --out, or remove the old run"
            )


@contextmanager
def stop_requested() -> Iterator[Any]:
    """Yield a function that tells whether Ctrl-C or SIGTERM came; a second one ends at once."""
    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
