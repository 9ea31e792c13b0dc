"""Fashion-MNIST (Xiao et al. 2017) as images of a few grey levels."""

import gzip
import zlib
from pathlib import Path

import numpy as np
import pooch
import torch
from torch import Tensor

PLACES = (Path("/usr/share/datasets/fashion-mnist"), Path("~/.cache/d3pm_fast").expanduser())
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FILES = {
    "train": ("train-images-idx3-ubyte.gz", "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    "test": ("t10k-images-idx3-ubyte.gz", "md5:bef4ecab320f06d8554ea6380940ec79"),
}


def load(split: str, levels: int, folder: Path | None = None) -> Tensor:
    """Return the images of a split, quantized, uint8 ``(N, 28, 28)`` with values in [0, levels).

    Args:
        split: ``"train"`` or ``"test"``.
        levels: grey levels, 2..256.
        folder: where the IDX files are; None for the usual places, or else a download.

    Raises:
        FileNotFoundError: the images are nowhere to be had.
        ValueError: the file is not what its name says.
    """
    return quantize(torch.from_numpy(read_idx(find(split, folder))), levels)


def find(split: str, folder: Path | None = None) -> Path:
    """Return the file of a split, downloaded where no folder has it."""
    name, checksum = FILES[split]
    for place in PLACES if folder is None else (folder,):
        if (place / name).is_file():
            return place / name
    try:
        if folder is not None:
            raise FileNotFoundError(f"{folder} has no {name}")
        return Path(pooch.retrieve(URL + name, checksum, name, PLACES[-1], progressbar=True))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no Fashion-MNIST images ({error}). Three ways to get them: the package "
            "dataset-fashion-mnist on Debian and Ubuntu (apt-get install dataset-fashion-mnist); "
            f"--data DIR, a folder with {' and '.join(n for n, _ in FILES.values())} (eval needs "
            f"only the latter); or an internet connection, to download them from {URL}"
        ) from error


def read_idx(path: Path) -> np.ndarray:
    """Return the images of a gzipped IDX file, uint8 ``(N, H, W)``."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    header = np.frombuffer(content[:16], dtype=">i4")
    if len(header) < 4 or header[0] != 0x803 or len(content) != 16 + np.prod(header[1:]):
        raise ValueError(f"{path} is not an IDX file of images")
    return np.frombuffer(content[16:], dtype=np.uint8).reshape(header[1:]).copy()


def quantize(images: Tensor, levels: int) -> Tensor:
    """Return uint8 grey values 0..255 as levels 0..levels-1, each as wide as the others."""
    return (images.int() * levels // 256).to(torch.uint8)


def palette(levels: int, masked: bool) -> np.ndarray:
    """Return the colour of each class, uint8 ``(K, 3)``: mid-bin greys, and blue for the mask."""
    grey = ((np.arange(levels) + 0.5) * 256 / levels).astype(np.uint8)
    colours = np.repeat(grey[:, None], 3, axis=1)
    return np.vstack([colours, np.array([[70, 100, 170]], np.uint8)]) if masked else colours
