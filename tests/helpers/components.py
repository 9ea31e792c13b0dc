"""What decides a token's draw of p(x_s | x_t), by the C++ header and by Triton's functions."""

import ctypes
import os
import subprocess
from pathlib import Path

import torch
import triton
import triton.language as tl
from d3pm_fast.kernels.rank_one.p_sample import component, stays, token_of
from d3pm_fast.kernels.rank_one.step import chain_of, load_coefficients

from .once import once

ROOT = Path(__file__).parents[2]
# A machine that fuses a product and a sum rounds them once: not here, nor in the interpreter.
FLAGS = "-std=c++17 -O2 -ffp-contract=off -shared -fPIC -Wall -Wextra -Werror"


def build(folder):
    compiler, source = os.environ.get("CXX", "c++"), ROOT / "tests/cpu/component.cpp"
    command = [compiler, *FLAGS.split(), f"-I{ROOT / 'csrc'}", source]
    subprocess.run([*command, "-o", folder / "component.so"], check=True)


def by_header(step, num_classes, x_t, numbers):
    """Whether tokens stay whatever their rows, and their components, (N, 2).

    The numbers are (N, 3): that of the choice, what the row has at x_t, and what it has in all.
    """
    library = ctypes.CDLL(str(once("component", build) / "component.so"))
    out = torch.empty(len(x_t), 2, dtype=torch.int32)
    library.components(
        ctypes.c_int64(len(x_t)),
        pointer(step.table),
        pointer(step.pi),
        ctypes.c_double(1 / num_classes),
        ctypes.c_int64(step.mask_id),
        *map(pointer, (x_t, numbers, out)),
    )
    return out


def pointer(tensor):
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def by_triton(step, x_t, numbers):
    """The same, by ``kernels/rank_one/p_sample.py``."""
    out = torch.empty(len(x_t), 2, dtype=torch.int32)
    block = triton.next_power_of_2(len(x_t))
    chain = chain_of(len(x_t), step, torch.float64)
    decide[(1,)](chain, x_t, numbers, out, len(x_t), block)
    return out


@triton.jit
def decide(chain, x_t, numbers, out, num_tokens, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    inside = at < num_tokens
    step = load_coefficients(chain, at, num_tokens)
    classes = tl.load(x_t + at, mask=inside, other=0)
    token = token_of(chain, step, classes, True)
    choice = tl.load(numbers + 3 * at, mask=inside, other=0.0)
    mass_xt = tl.load(numbers + 3 * at + 1, mask=inside, other=0.0)
    total = tl.load(numbers + 3 * at + 2, mask=inside, other=1.0)
    tl.store(out + 2 * at, stays(token, choice).to(tl.int32), mask=inside)
    tl.store(out + 2 * at + 1, component(token, choice, mass_xt, total), mask=inside)


@triton.jit
def almost_one(random, tokens, inside):
    """Stands for the uniforms: 0 for the choice, and 1 - 1e-9 for the class."""
    zero = tl.zeros_like(tokens).to(tl.float64)
    return zero, zero + 0.999999999
