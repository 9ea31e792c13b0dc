"""What the tests of training runs share."""

import gzip
import json
import os
import signal
import struct

import numpy as np

from d3pm_fast.train import fashion_mnist


def write_idx(path, images):
    """Write images, uint8 ``(N, H, W)``, as Fashion-MNIST has them."""
    with gzip.open(path, "wb") as file:
        file.write(struct.pack(">4i", 0x803, *images.shape) + images.tobytes())


def images_folder(folder, count):
    """Write IDX files of images with a bright square on black, somewhere; return their folder."""
    rng = np.random.default_rng(0)
    images = np.zeros((count, 28, 28), np.uint8)
    for image in images:
        y, x = rng.integers(4, 16, 2)
        image[y : y + 8, x : x + 8] = 200
    for name, _ in fashion_mnist.FILES.values():
        write_idx(folder / name, images)
    return folder


def go_until(run, step):
    """Let a run go on and be told to stop after so many steps."""
    train_step = run.train_step

    def stopped_at():
        line = train_step()
        if run.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return line

    run.train_step = stopped_at
    run.go()


def losses(out):
    """The loss of each step of the run in a folder."""
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
