"""The programs whose issue slots are counted: which there are, and how each is compiled."""

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path as File
from typing import Any, NamedTuple

import torch

from d3pm_fast.chains.structures import RankOneMarginal, RankOneStep
from d3pm_fast.records import Loss, Model, Random, TokenRandom, Weights, unshaped_of

from .anchors import anchors
from .sass import Program, programs, resources
from .slot_table import Key
from .triton_calls import DTYPES, TOKENS, dense_calls, empty
from .triton_resources import started

SIZES = [27, 256, 1024, 8192]
SHORT_LOOP = 32  # instructions
OF_EVERY_TARGET = 256, "bfloat16"  # others are counted for sm_90 alone
TARGETS = ["sm_90", "sm_80", "sm_100"]
# Operations, their chains, and the ways through their programs.
WAYS = [
    ("loss and gradient", "uniform", "fast"),
    ("loss and gradient", "uniform", "full"),
    ("loss and gradient", "absorbing", "flat"),
    ("loss and gradient", "marginal", "fast"),
    ("loss and gradient", "marginal", "full"),
    ("loss and gradient", "uniform", "settled"),
    ("loss and gradient", "absorbing", "settled"),
    ("p_posterior", "uniform", "full"),
    ("p_posterior", "absorbing", "flat"),
    ("p_posterior_grad", "uniform", "full"),
    ("p_posterior_grad", "absorbing", "full"),
    ("p_sample", "uniform", "full"),
    ("p_sample", "absorbing", "full"),
    ("q_sample", "uniform", "full"),
]
# Of rows that are read in parts.
LONG = 32768
LONG_WAYS = WAYS[:5]
# What rows say of tokens, also of the vocabulary of a language model.
PREDICTED = [(256, "full"), (1024, "full"), (LONG, "fast"), (157184, "fast")]
# Of chains of matrices.
OF_MATRICES = "loss and gradient", "dense", "full"
ANCHORS = ["copy", "softmax", "cross_entropy"]
CSRC = File(__file__).parents[1] / "csrc"
ELEMENTS = {"float32": "float", "bfloat16": "d3pm::BFloat16"}
# Those of CUDA C++. Of losses and posteriors, chains with a vector pi have programs of their own.
# The longer of two ways of log p stands for uniform and absorbing chains; p_sample has one for all.
CUDA_WAYS = [
    ("loss and gradient", "uniform", "fast"),
    ("loss and gradient", "uniform", "full"),
    ("loss and gradient", "absorbing", "flat"),
    ("loss and gradient", "absorbing", "settled"),
    ("loss and gradient", "marginal", "fast"),
    ("p_posterior", "uniform", "full"),
    ("p_posterior", "marginal", "full"),
    ("p_posterior_grad", "uniform", "full"),
    ("p_posterior_grad", "absorbing", "flat"),
    ("p_posterior_grad", "marginal", "full"),
    ("p_sample", "any", "full"),
]
# Where their kernels are, and patterns of the names of those for whole rows and for few classes.
CUDA = {
    "loss and gradient": ("loss.cu", "loss_of_{rows}.*Lb{has_pi:d}ELi{named}E"),
    "p_posterior": ("posterior.cu", "posterior_of_{rows}.*Lb{has_pi:d}ELb0E{of_few}"),
    "p_posterior_grad": ("posterior.cu", "posterior_of_{rows}.*Lb{has_pi:d}ELb1E{of_few}"),
    "p_sample": ("p_sample.cu", "p_sample_of_{rows}.*Li{named}E"),
}
# Rows of few classes have a program for 27 and one for any number; the longest are a cluster's.
FEW = 64
CUDA_SIZES = [27, FEW, 256, 1024, 8192, LONG]
ROWS_IN_TURN = 4  # by the same threads, where there are many rows


class Kernel(NamedTuple):
    """A compiled kernel and how it is started for elements of some number."""

    program: Program
    trips: Callable[[int], int]  # of a loop, by its branch back
    warps: int  # of a block
    registers: int  # of a thread
    shared: int  # of a block, bytes
    warps_per_element: float


def every_key() -> Iterator[Key]:
    """Yield the rows of the table, in its order."""
    for operation in ANCHORS:
        for dtype in ELEMENTS:
            yield Key("anchor", operation, "", "full", 1024, dtype, "sm_90")
    for (operation, chain, path), size, dtype in product(WAYS, SIZES, ELEMENTS):
        if operation != "q_sample" or (size, dtype) == OF_EVERY_TARGET:
            for target in TARGETS if (size, dtype) == OF_EVERY_TARGET else TARGETS[:1]:
                yield Key("triton", operation, chain, path, size, dtype, target)
    for (operation, chain, path), dtype in product(LONG_WAYS, ELEMENTS):
        yield Key("triton", operation, chain, path, LONG, dtype, TARGETS[0])
    for (size, path), dtype in product(PREDICTED, ELEMENTS):
        yield Key("triton", "predict", "any", path, size, dtype, TARGETS[0])
    for dtype in ELEMENTS:
        yield Key("triton", *OF_MATRICES, 256, dtype, TARGETS[0])
    for (operation, chain, path), size, dtype in product(CUDA_WAYS, CUDA_SIZES, ELEMENTS):
        if size == LONG and operation != "loss and gradient":
            continue
        for target in TARGETS if (size, dtype) == OF_EVERY_TARGET else TARGETS[:1]:
            yield Key("cuda", operation, chain, path, size, dtype, target)


def kernels(key: Key) -> list[Kernel]:
    """Compile what a row is about; without rows that are recomputed, which are few."""
    if key.implementation == "cuda":
        return [_cuda_kernel(key)]
    if key.implementation == "anchor":
        of_anchor = empty(TOKENS, key.num_classes, dtype=DTYPES[key.dtype]), empty(TOKENS)
        run = anchors(*of_anchor)[key.operation]
    else:
        run = _call(key)
    elements = TOKENS * (1 if key.operation == "q_sample" else key.num_classes)
    return [
        _triton_kernel(of.program, of.count, key.num_classes, elements)
        for name, of in started(key.target, run).items()
        if not name.startswith("recompute_")
    ]


def _call(key: Key) -> Callable[[], Any]:
    """Return a call of the library's own; a mask settles tokens of a chain without one."""
    from d3pm_fast.kernels.predictions import predict
    from d3pm_fast.kernels.rank_one import loss, p_sample, posterior, q_sample

    operation, chain, path, num_classes = key[1:5]
    dtype = DTYPES[key.dtype]
    if chain == OF_MATRICES[1]:
        of_matrices = dense_calls(num_classes, dtype)
        return lambda: of_matrices["dense loss"]()
    logits, tokens, runs = empty(TOKENS, num_classes, dtype=dtype), empty(TOKENS), TOKENS // 1024
    rows, table = empty(runs), empty(1001, 7, dtype=torch.float64)
    pi = empty(num_classes, dtype=torch.float64) if chain == "marginal" else None
    mask_id = num_classes - 1 if chain == "absorbing" else -1
    counts = empty(TOKENS, dtype=torch.bool) if mask_id < 0 and path == "settled" else None
    step = RankOneStep(rows, table, pi, pi, mask_id, num_classes, mask_id)
    model, draw = Model(False, True), Random(empty(runs), 3)
    of_loss = Loss(logits, tokens, counts, tokens, step, model, Weights(1.0, 0.01))
    numbers, as_it_is = TokenRandom(tokens, tokens, 3), unshaped_of(num_classes, num_classes - 1)
    base = RankOneMarginal(rows, empty(1001, 3, dtype=torch.float64), pi, mask_id, num_classes)
    return {
        "loss and gradient": lambda: loss.loss(of_loss, "mean", False),
        "p_posterior": lambda: posterior.p_posterior(logits, tokens, step, model),
        "p_posterior_grad": lambda: posterior.p_posterior(logits, tokens, step, model, logits),
        "p_sample": lambda: p_sample.p_sample(logits, tokens, step, model, draw),
        "predict": lambda: predict.predict(logits, tokens, numbers, True, as_it_is),
        "q_sample": lambda: q_sample.q_sample(tokens, base, draw),
    }[operation]


def _triton_kernel(compiled: Any, count: int, num_classes: int, elements: int) -> Kernel:
    """Loops over classes run as often as their step says; shorter loops are unrolled."""
    (name, program), *_ = programs(compiled.asm["cubin"]).items()
    steps = set(map(int, re.findall(r"scf\.for .* step %c(\d+)_i32", compiled.asm["ttgir"]))) - {1}
    if len(steps) > 1:
        raise ValueError(f"loops of {name} have different steps: {sorted(steps)}")
    trips = -(-num_classes // steps.pop()) if steps else 1
    warps = compiled.metadata.num_warps
    registers, _ = resources(compiled.asm["cubin"])[name]
    shared = compiled.metadata.shared
    return Kernel(program, lambda _: trips, warps, registers, shared, count * warps / elements)


def has_nvcc() -> bool:
    """Return whether CUDA C++ can be compiled."""
    return shutil.which("nvcc") is not None


def _found(source: str, pattern: str, key: Key) -> tuple[Program, int, int]:
    """Return a program, its registers and its shared memory."""
    cubin = _nvcc(source, key.dtype, key.target)
    found = {name: of for name, of in programs(cubin).items() if re.search(pattern, name)}
    if len(found) != 1:
        raise ValueError(f"{source} has {len(found)} kernels of the name {pattern}")
    ((name, program),) = found.items()
    return program, *resources(cubin)[name]


def _cuda_kernel(key: Key) -> Kernel:
    """Count as csrc/cuda launches: a thread a row, or whole rows, 64 numbers a thread.

    In the mangled names true is Lb1 and 4 is Li4.
    """
    has_pi, size = key.chain == "marginal", key.num_classes
    itemsize = DTYPES[key.dtype].itemsize
    is_loss, is_gradient = key.operation == "loss and gradient", key.operation.endswith("grad")
    source, pattern = CUDA[key.operation]
    if size <= FEW:
        named = size if size == SIZES[0] else 0
        of = {"rows": "few_classes", "named": named, "of_few": f"Li{named}E"}
        pattern = pattern.format(has_pi=has_pi or not (is_loss or named), **of)
        program, registers, shared = _found(source, pattern, key)
        pad = 16 // itemsize if size % (16 // itemsize) == 0 else 0
        shared += (128 * (size + pad) + 64) * itemsize * (1 + is_gradient)
        return Kernel(program, lambda _: 1, 4, registers, shared, 1 / (32 * size))
    if size > 64 * 256:
        return _cluster_kernel(key, has_pi, itemsize)
    named = 4 if size <= 256 else 16 if size <= 1024 and is_loss else 0
    held = 32 if is_loss and has_pi and not named else 64
    threads = next(n for n in (4, 16, 128, 256) if size <= n * held)
    pattern = pattern.format(rows="whole_rows", has_pi=has_pi, named=named, of_few="")
    program, registers, shared = _found(source, pattern, key)
    in_turn, warps = 1 if is_loss and not named else ROWS_IN_TURN, max(threads, 128) // 32

    def trips(at: int) -> int:
        body = program.body(at)
        if any(each.votes for each in body):
            return in_turn
        adds = len(body) < SHORT_LOOP and any(each.base == "SHFL" for each in body)
        return min(threads, 32).bit_length() - 1 if adds else 1

    shared += 32 * warps // threads * (threads * held + 64) * itemsize * (1 + is_gradient)
    share = threads / (32 * size * in_turn)
    return Kernel(program, trips, warps, registers, shared, share)


def _cluster_kernel(key: Key, has_pi: bool, itemsize: int) -> Kernel:
    """Count rows that four blocks hold together: each thread has every 256th vector of a part."""
    blocks, threads, folds = 4, 256, 2 * 8 * 8 * 2 * 4
    source, _ = CUDA[key.operation]
    program, registers, shared = _found(source, f"loss_of_cluster_rows.*Lb{has_pi:d}E", key)
    warps, part = threads // 32, key.num_classes // blocks
    vectors = part * itemsize // (16 * threads)
    shared += folds + part * itemsize
    share = blocks * warps / key.num_classes

    def trips(at: int) -> int:
        return vectors if any(each.bytes == 16 for each in program.body(at)) else 1

    return Kernel(program, trips, warps, registers, shared, share)


@functools.cache
def _nvcc(source: str, dtype: str, target: str) -> bytes:
    """Compile a file as setup.py does."""
    with tempfile.TemporaryDirectory() as folder:
        made = File(folder, "made.cubin")
        options = ["-std=c++17", "-O3", f"-arch={target}", "-cubin", f"-I{CSRC}"]
        options += [
            "-DD3PM_MODULE=_cuda",
            '-DD3PM_DEVICE="cuda"',
            f"-DD3PM_ELEMENT={ELEMENTS[dtype]}",
        ]
        subprocess.run(["nvcc", *options, CSRC / "cuda" / source, "-o", made], check=True)
        return made.read_bytes()
