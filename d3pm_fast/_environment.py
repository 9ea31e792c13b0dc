"""Settings from the environment, read once: when the library is imported."""

import os

from ._checks import check_choice

IMPL = os.environ.get("D3PM_FAST_IMPL", "")
CHECK = os.environ.get("D3PM_FAST_CHECK", "0") not in ("", "0")
INTERPRET = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")  # read by Triton too
# How GPUs multiply float32 numbers in products of matrices: "bf16x6", "tf32x3" or "ieee" keep
# their digits, "tf32" is faster and does not.
DOT = os.environ.get("D3PM_FAST_DOT", "bf16x6")
# Read by the C++ too, which takes a word that it does not know for "avx2".
ISA = os.environ.get("D3PM_FAST_ISA", "avx512")
check_choice("D3PM_FAST_ISA", ISA, ("baseline", "avx2", "avx512"))
