"""Marks on a few classes of each row of a tile: bits of the thread that has the class.

A thread's numbers are some vectors of 16 bytes of its row; 32 numbers share a word. That one of
them is marked is then the test of a bit that the compiler knows.
"""

import triton
import triton.language as tl

from .math import INTERPRETED, has_ptx
from .tile import on_tile


@triton.jit
def mark(j, HIGH: tl.constexpr, LOW: tl.constexpr, KIND: tl.constexpr):
    """Return a tile's words with a mark on class j of each row, counted from the tile's first.

    KIND is the type that the rows have in memory.
    """
    WIDE: tl.constexpr = 128 // KIND.primitive_bitwidth
    VECTOR: tl.constexpr = WIDE if LOW > WIDE else LOW
    PER: tl.constexpr = 32 // VECTOR  # vectors whose bits a word has
    high, low = tl.arange(0, HIGH)[:, None, None], tl.arange(0, LOW)[None, None, :]
    at = on_tile(j).to(tl.uint32)  # of a class before the tile, beyond it
    bit = 1 << (at // LOW % PER * VECTOR + at % VECTOR).to(tl.int32)
    of_thread = tl.where(at % LOW // VECTOR == low // VECTOR, bit, 0)
    return tl.where(at // LOW // PER == high // PER, of_thread, 0)


@triton.jit
def bit_of(HIGH: tl.constexpr, LOW: tl.constexpr, KIND: tl.constexpr):
    """Return the bit of each class of a tile in its word."""
    WIDE: tl.constexpr = 128 // KIND.primitive_bitwidth
    VECTOR: tl.constexpr = WIDE if LOW > WIDE else LOW
    high, low = tl.arange(0, HIGH)[:, None, None], tl.arange(0, LOW)[None, None, :]
    return 1 << (high % (32 // VECTOR) * VECTOR + low % VECTOR)


@triton.jit
def hidden(x, words, bit):
    """Return the numbers of a tile, -inf where there is a mark."""
    if INTERPRETED or x.dtype == tl.float64 or not has_ptx():
        return tl.where((words & bit) != 0, float("-inf"), x)
    else:  # LLVM would collect the tests of a vector, and take them apart again
        return tl.inline_asm_elementwise(
            "{.reg .pred p; .reg .b32 t; and.b32 t, $2, $3; setp.eq.b32 p, t, 0;"
            " selp.f32 $0, $1, 0fFF800000, p;}",
            "=f,f,r,r", [x, words, bit], tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
