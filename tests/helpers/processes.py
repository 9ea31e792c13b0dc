"""Training runs of many kinds, by one process or by several in one start of ``torchrun``.

``torchrun ... -m helpers.processes FOLDER`` is one of the processes; :func:`run` starts them.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

from d3pm_fast.train import distributed
from d3pm_fast.train.cli import main
from d3pm_fast.train.images import ImageConfig
from d3pm_fast.train.loop import Run, train
from d3pm_fast.train.text import TextConfig

from .training import images_folder

FOLDERS = [str(Path(__file__).parents[levels]) for levels in (1, 2)]  # for imports
LINES = ["a", "the cat sat on the mat", "b", "hello world", "no", "one two three", "x"]
CASES = {
    "uneven": {},
    "pieces": {"accumulate": 3},
    "few": {"batch_size": 3},
    "sharded": {"fsdp": True},
    "half": {"precision": "float16", "timesteps": 100},  # 100 times the loss: gradients overflow
    "sharded-half": {"precision": "float16", "timesteps": 100, "fsdp": True},
    "sharded-pieces": {"fsdp": True, "accumulate": 2},
    "head": {"tensor_parallel": True},
    "head-half": {"precision": "float16", "timesteps": 100, "tensor_parallel": True},
    "head-pieces": {"tensor_parallel": True, "accumulate": 3},
    "images": {"levels": 4, "width": 16, "epochs": 2, "max_steps": None},
    "sharded-images": {"levels": 4, "width": 16, "max_steps": 3, "fsdp": True},
    "head-images": {"levels": 4, "width": 16, "max_steps": 3, "tensor_parallel": True},
}
STOPPED_AT, DEAD_AT = 3, 6
BEGUN = {  # with which options, and gone on with
    "begun": ({}, {"fsdp": True}),
    "begun-sharded": ({"fsdp": True}, {}),
    "begun-head": ({"tensor_parallel": True}, {"tensor_parallel": True}),
}


def go_on(folder, number, before, last=8):
    """Continue what another number of processes has begun, the sharded one no longer sharded."""
    for case, (_, options) in BEGUN.items():
        config = config_of(case, folder, number, **options, max_steps=last)
        if number == 1 or int(os.environ["RANK"]) == 0:
            shutil.copytree(before / case, config.out)
        distributed.wait()
        train(config)


def begin(folder, number):
    """Begin runs that others go on with."""
    for case, (options, _) in BEGUN.items():
        out = folder / str(number) / "for-others" / case
        train(config_of(case, folder, number, out=out, **options, max_steps=4))


def run(number, folder, before):
    """Run all cases in so many processes, and go on with what was begun in the folder before."""
    (folder / "text.txt").write_text("\n".join(LINES * 4))
    images_folder(folder, 14)
    (folder / str(number)).mkdir()
    if number == 1:
        for case in CASES:
            train(config_of(case, folder, 1))
        begin(folder, 1)
        return
    ended = torchrun(number, "helpers.processes", folder, before)
    (folder / str(number) / "said.txt").write_text(ended.stdout + ended.stderr)
    assert (folder / str(number) / "done").exists(), ended.stderr
    assert ended.returncode != 0  # the last run dies


def torchrun(number, *arguments):
    """Run a module in so many processes of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={number}"]
    command += ["--master-addr=127.0.0.1", f"--master-port={port}", "-m", *map(str, arguments)]
    shared = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    shared["PYTHONPATH"] = os.pathsep.join(FOLDERS)
    with subprocess.Popen(
        command,
        env=os.environ | shared,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            process.terminate()  # which ends its processes
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def config_of(case, folder, number, **changes):
    """The options of a case in so many processes; ``folder`` has the data."""
    options = {
        "data": folder / "text.txt",
        "out": folder / str(number) / case,
        "timesteps": 20,
        "max_steps": 8,
        "batch_size": 5,
        "sample_count": 2,
        "sample_steps": 2,
        "checkpoint_every": 3,
        "precision": "float32",
    }
    options |= CASES.get(case, {}) | changes
    if case.endswith("images"):
        return ImageConfig(**options | {"data": folder})
    return TextConfig(split="lines", context=16, width=32, depth=1, **options)


class Seen:
    """What this process sees of its runs.

    Attributes:
        pieces: of each piece that it learns from, how many items, and their sum of the bound.
        held: how many numbers of the weights and of their average it has.
    """

    def __init__(self):
        self.pieces, self.held = [], 0
        learn = Run.learn

        def noted(run, *args):
            piece = learn(run, *args)
            self.pieces.append((int(piece.tokens.count_nonzero()), piece.nats.sum().item()))
            networks = run.denoiser, run.average.module
            weights = (weight for network in networks for weight in network.parameters())
            self.held = sum(getattr(w, "_local_tensor", w).numel() for w in weights)
            return piece

        Run.learn = noted


def in_step(number, then):
    """Let this process do something in a step of the runs from now on."""
    train_step = Run.train_step

    def acting(run):
        if run.step == number:
            then()
        return train_step(run)

    Run.train_step = acting


def die():
    """Fail as a program does."""
    raise ValueError("no more paper")


def be_one(folder, before):
    """Be one of the processes."""
    distributed.init(torch.device("cpu"))  # once, for all runs
    number, rank = os.environ["WORLD_SIZE"], int(os.environ["RANK"])
    seen = Seen()
    for case in CASES:
        seen.pieces = []
        train(config_of(case, folder, number))
        (folder / number / f"{case}-{rank}.json").write_text(json.dumps(vars(seen)))
    begin(folder, number)
    go_on(folder, number, before)
    if rank == 1:
        in_step(STOPPED_AT, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with suppress(SystemExit):
        train(config_of("stopped", folder, number))
        raise RuntimeError("the run was not stopped")
    if rank == 1:
        in_step(DEAD_AT, die)
    (folder / number / "done").touch()
    dying = ["train-text", "--config", folder / number / "stopped" / "config.toml"]
    main([*map(str, dying)])


if __name__ == "__main__":
    be_one(*map(Path, sys.argv[1:]))
