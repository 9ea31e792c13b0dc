"""BLOSUM62: how readily one amino acid stands for another.

Sources: Henikoff and Henikoff 1992 (PNAS 89, 10915-10919), figure 2, as NCBI distributes it
(matrix ``BLOSUM62``, half-bit units, blocks database 5.0); background frequencies from NCBI's
BLAST (``BLOSUM62_bg`` in ``matrix_frequency_data.c``), rounded to ten decimals.
"""

import torch

__all__ = ["AMINO_ACIDS", "BLOSUM62", "BLOSUM62_BACKGROUND"]

AMINO_ACIDS = "ARNDCQEGHILKMFPSTWYV"
"""The order of the classes: one-letter codes of the standard amino acids."""

_LOWER_TRIANGLE = """
 4
-1  5
-2  0  6
-2 -2  1  6
 0 -3 -3 -3  9
-1  1  0  0 -3  5
-1  0  0  2 -4  2  5
 0 -2  0 -1 -3 -2 -2  6
-2  0  1 -1 -3  0  0 -2  8
-1 -3 -3 -3 -1 -3 -3 -4 -3  4
-1 -2 -3 -4 -1 -2 -3 -4 -3  2  4
-1  2  0 -1 -3  1  1 -2 -1 -3 -2  5
-1 -1 -2 -3 -1  0 -2 -3 -2  1  2 -1  5
-2 -3 -3 -3 -2 -3 -3 -3 -1  0  0 -3  0  6
-1 -2 -2 -1 -3 -1 -1 -2 -2 -3 -3 -1 -2 -4  7
 1 -1  1  0 -1  0  0  0 -1 -2 -2  0 -1 -2 -1  4
 0 -1  0 -1 -1 -1 -1 -2 -2 -1 -1 -1 -1 -2 -1  1  5
-3 -3 -4 -4 -2 -2 -3 -2 -2 -3 -2 -3 -1  1 -4 -3 -2 11
-2 -2 -2 -3 -2 -1 -2 -3  2 -1 -1 -2 -1  3 -3 -2 -2  2  7
 0 -3 -3 -3 -1 -2 -2 -3 -3  3  1 -2  1 -1 -2 -2  0 -3 -1  4
"""


def _symmetric() -> torch.Tensor:
    scores = torch.zeros(20, 20, dtype=torch.float64, device="cpu")
    for i, row in enumerate(_LOWER_TRIANGLE.split("\n")[1:-1]):
        values = scores.new_tensor([float(score) for score in row.split()])
        scores[i, : i + 1] = values
        scores[: i + 1, i] = values
    return scores


BLOSUM62 = _symmetric()
"""float64 ``(20, 20)``: scores in half bits, ``2 log2(q_ij / (p_i p_j))`` rounded to integers."""

BLOSUM62_BACKGROUND = torch.tensor(
    [
        *(0.0742162051, 0.0516144861, 0.0446458085, 0.0536260008, 0.0246874572),
        *(0.0342596506, 0.0543119257, 0.0741469415, 0.0262129848, 0.0679173676),
        *(0.0989078685, 0.0581556823, 0.0249901976, 0.0474184597, 0.0385380033),
        *(0.0572290295, 0.0508913646, 0.0130299561, 0.0322815123, 0.0729190982),
    ],
    dtype=torch.float64,
    device="cpu",
)
"""float64 ``(20,)``: how frequent each amino acid is in the blocks, p above."""
