"""The compiled random numbers are those of the reference's Philox, to the last bit."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
import torch
from helpers.once import once

from d3pm_fast.reference.philox import philox, uniforms

ROOT = Path(__file__).parents[1]
FLAGS = "-std=c++17 -O2 -shared -fPIC -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-psabi"
STEP, OFFSET, LOW = 2**40 + 3, 2**35 + 7, 2**32 - 1
# Seeds and positions: items of one token, shorter and longer than the 64 made at once.
SHAPES = [(1, 1), (3, 1), (200, 1), (1, 15), (7, 5), (50, 3), (3, 63), (2, 64), (3, 65), (2, 1000)]


def build(folder):
    compiler, source = os.environ.get("CXX", "c++"), ROOT / "tests/cpu/uniforms.cpp"
    flags = [*FLAGS.split(), f"-I{ROOT}", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *flags, source, "-o", folder / "uniforms.so"], check=True)


def drawn(function, kind, seeds, positions, tokens):
    """What a function of tests/cpu/uniforms.cpp draws, float64 (count, 2)."""
    library = ctypes.CDLL(str(once("uniforms", build) / "uniforms.so"))
    out = torch.full((len(tokens), 2), torch.nan, dtype=torch.float64)
    given = len(seeds), STEP, OFFSET, len(seeds) * positions, len(tokens)
    numbers = [ctypes.c_int64(n) for n in given]
    seeds_at, *others = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (seeds, tokens, out))
    library[function](ctypes.c_int64(kind), seeds_at, *numbers, *others)
    return out


def expected(seeds, positions, tokens):
    counter, key = OFFSET + tokens % positions, seeds[tokens // positions]
    step = (torch.full_like(tokens, STEP & LOW), torch.full_like(tokens, STEP >> 32))
    words = philox((counter & LOW, counter >> 32, *step), (key & LOW, key >> 32 & LOW))
    return torch.stack(
        [(words[i + 1] << 21 | words[i] >> 11).double() * 2.0**-53 for i in (0, 2)], dim=-1
    )


def random_seeds(count):
    limits = torch.iinfo(torch.int64)
    return torch.randint(limits.min, limits.max, (count,))


@pytest.mark.parametrize("share", [1.0, 0.3, 0.02])
@pytest.mark.parametrize(("num_seeds", "positions"), SHAPES)
def test_any_tokens_in_rising_order_get_their_numbers(num_seeds, positions, share, instructions):
    seeds, chosen = random_seeds(num_seeds), torch.rand(num_seeds * positions) < share
    chosen[-1] = True
    tokens = chosen.nonzero().flatten()
    found = drawn("uniforms_by_cursor", instructions, seeds, positions, tokens)
    assert torch.equal(found, expected(seeds, positions, tokens))


def test_positions_may_pass_32_bits(instructions):
    seeds, positions = random_seeds(3), 2**33 + 5
    near = torch.tensor([2**32 - 100, positions - 100, 2 * positions - 2**32])[:, None]
    tokens = (near + torch.arange(200)).flatten()
    found = drawn("uniforms_by_cursor", instructions, seeds, positions, tokens)
    assert torch.equal(found, expected(seeds, positions, tokens))


@pytest.mark.parametrize("pair", [0, 1, 2**24 - 1])
def test_a_token_alone_has_pairs_of_numbers(pair, cpu):
    seeds, tokens = random_seeds(7), torch.arange(35)
    found = drawn("uniforms_by_token", pair, seeds, 5, tokens)
    assert torch.equal(found, torch.stack(uniforms(seeds, STEP, 35, pair, OFFSET), dim=-1))
