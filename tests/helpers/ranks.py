"""The recipes of ``docs/trainers.md`` on two ranks, and what every optimizer step of them saw.

``python -m helpers.ranks FOLDER`` is one rank, as ``torchrun`` starts it; :func:`run` starts two.
"""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from d3pm_fast import functional

from .pages import code_of

RANKS, STEPS, ACCUMULATION, BATCH, POSITIONS = 2, 2, 4, 3, 6
ITEMS = RANKS * STEPS * ACCUMULATION * BATCH
FOLDERS = [str(Path(__file__).parents[levels]) for levels in (1, 2)]  # for imports


def run(folder, module="helpers.ranks", size=RANKS):
    """Run a module on so many ranks; each leaves a file in the folder."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(size),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([*FOLDERS, os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", module, folder]
    with (folder / "log.txt").open("w") as log:
        ranks = [
            subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            for rank in map(str, range(size))
        ]
        try:
            ended = [rank.wait(timeout=300) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    assert ended == [0] * size, (folder / "log.txt").read_text()


class Recorder:
    """Keeps of every optimizer step its losses' arguments, the weights and the gradients."""

    def __init__(self):
        self.steps, self.losses, self.weights = [], [], []
        self.loss = functional.loss
        functional.loss = self.record_loss
        register_optimizer_step_pre_hook(self.record_weights)
        register_optimizer_step_post_hook(self.record_step)

    def record_loss(self, transition, logits, *tokens, **options):
        self.losses.append((*tokens[:3], options["mask"]))
        return self.loss(transition, logits, *tokens, **options)

    def record_weights(self, optimizer, *_):
        self.weights = [whole(p.detach()).clone() for p in parameters(optimizer)]

    def record_step(self, optimizer, *_):
        gradients = [whole(p.grad).clone() for p in parameters(optimizer)]
        self.steps.append((self.losses, self.weights, gradients))
        self.losses = []

    def take(self):
        """Return the steps so far, and begin anew."""
        steps, self.steps = self.steps, []
        return steps


def parameters(optimizer):
    """Return an optimizer's parameters."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def whole(x):
    """Return a sharded tensor's whole."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def page():
    """Return the names of the page's own lines, with what its recipes leave open."""
    names = {"__name__": "trainers"}
    execute("Ten lines", names)
    return names | {"seed": 0, "device": "cpu"}


def execute(section, names, *chosen):
    """Execute blocks of a section, all unless chosen."""
    blocks = code_of("trainers.md", section)
    for index in chosen or range(len(blocks)):
        exec(blocks[index], names)


def ddp(names, data):
    """Take steps by DistributedDataParallel."""
    execute("Several processes", names, 0)
    names["batches"] = of_rank(data)
    execute("Several processes", names, 1)


def fsdp(names, data):
    """Take steps by FSDP2; ``names`` are those of DDP."""
    execute("Several processes", names, 2)
    names["batches"] = of_rank(data)
    execute("Several processes", names, 1)


def of_rank(data):
    """Return this rank's batches."""
    return data.view(STEPS, RANKS, -1, POSITIONS)[:, dist.get_rank()]


def lightning(names, data):
    """Take steps by Lightning, on as many processes."""
    execute("Lightning", names)
    L = names["L"]
    L.seed_everything(0)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"accelerator": "cpu", "strategy": "ddp", "devices": RANKS, "max_steps": STEPS}
    batches = torch.utils.data.DataLoader(data, ACCUMULATION * BATCH)
    L.Trainer(**options, enable_model_summary=False).fit(names["Model"](), batches)


def fabric(names, data):
    """Take steps by Lightning Fabric, on as many processes."""
    import lightning.fabric

    options = {"accelerator": "cpu", "strategy": "ddp", "devices": RANKS}
    with_defaults(lightning.fabric, "Fabric", options)
    execute("Lightning Fabric", names, 0)
    names["batches"] = of_rank(data)
    execute("Lightning Fabric", names, 1)


def accelerate(names, data):
    """Take steps by Accelerate, each of several micro-batches."""
    import accelerate

    with_defaults(accelerate, "Accelerator", {"cpu": True})
    execute("Accelerate", names, 0)
    names["batches"] = of_rank(data).reshape(-1, BATCH, POSITIONS)
    execute("Accelerate", names, 1)


def with_defaults(module, name, options):
    """Give a class of a module other defaults."""
    setattr(module, name, partial(getattr(module, name), **options))


def huggingface(names, data):
    """Take steps by the Hugging Face Trainer; items have paddings of many lengths."""
    length = 1 + torch.arange(len(data)) % POSITIONS
    labels = data.where(torch.arange(POSITIONS) < length[:, None], -100)
    names["data"] = [{"labels": row} for row in labels]
    execute("Hugging Face Trainer", names, 0)
    options = {"use_cpu": True, "max_steps": STEPS, "per_device_train_batch_size": BATCH}
    options |= {"save_strategy": "no", "report_to": "none", "max_grad_norm": 0.0}
    names["TrainingArguments"] = partial(names["TrainingArguments"], **options)
    execute("Hugging Face Trainer", names, 1)


def main(folder):
    """Be one of the ranks."""
    torch.set_default_dtype(torch.float64)  # then two ranks and one agree to its digits
    torch.manual_seed(0)
    names = page()
    data = torch.randint(names["MASK"], (ITEMS, POSITIONS))
    recorder, seen = Recorder(), {}
    for recipe in RECIPES:
        recipe(names, data)
        seen[recipe.__name__] = recorder.take()
    torch.save(seen, folder / f"{os.environ['RANK']}.pt")


RECIPES = [ddp, fsdp, lightning, fabric, accelerate, huggingface]

if __name__ == "__main__":
    main(Path(sys.argv[1]))
