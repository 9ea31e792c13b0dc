"""The least time of every operation on a GPU: ``python -m benchmarks.floors`` writes the table.

Bytes are those of every input read once and every output written once, as the operation is
defined. Floating-point operations are counted in the compiled Triton kernel, a multiply-add as two:
what this way of computing it takes, not what the mathematics would need at least. The floor is the
larger of the two times at the chip's datasheet rates.
"""

import csv
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton

from .triton_resources import DTYPES, calls, compiled

TABLE = Path(__file__).parent / "results" / "floors.csv"
SIZES = [32, 256, 1024]
# Bytes and float32 operations a second, of the SXM boards' datasheets.
CHIPS = {
    "A100 80GB": (2.039e12, 19.5e12),
    "H100": (3.35e12, 66.9e12),
    "H200": (4.8e12, 66.9e12),
}
# Rows of numbers and tokens of 8 bytes that an operation reads or writes.
TRAFFIC = {
    "loss": (1, 2),
    "loss and gradient": (2, 2),
    "q_posterior": (1, 2),
    "p_posterior": (2, 1),
    "p_posterior_grad": (3, 1),
    "p_sample": (1, 2),
}
OPERATIONS = {"FFMA": 2, "FMUL": 1, "FADD": 1, "MUFU": 1, "DFMA": 2, "DMUL": 1, "DADD": 1}


class Floor(NamedTuple):
    """The least time of a million tokens, in microseconds, and which of the two it is."""

    operation: str
    num_classes: int
    dtype: str
    bytes_per_token: int
    operations_per_token: int
    chip: str
    floor_us: float
    bound_by: str


def operations_per_token(program: Any, rows: int) -> int:
    """Return the floating-point operations that all threads do for one row."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        command = [tools / "nvdisasm", "-c", file.name]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z]\w*)", listing)
    threads = 32 * program.metadata.num_warps
    return round(sum(OPERATIONS.get(name, 0) for name in names) * threads / rows)


def floors() -> list[Floor]:
    """Count, and divide by the rates."""
    from d3pm_fast.kernels.tile import tile_of

    found = []
    for operation, (rows, tokens) in TRAFFIC.items():
        for size in SIZES:
            for dtype in ("float32", "bfloat16"):
                (program,) = compiled("sm_90", calls(size, DTYPES[dtype])[operation]).values()
                copies = {"p_sample": 4, "loss": 1, "loss and gradient": 1}.get(operation, 2)
                tile = tile_of(size, DTYPES[dtype], copies)
                work = operations_per_token(program, tile.rows)
                moved = rows * size * DTYPES[dtype].itemsize + 8 * tokens
                for chip, (bandwidth, rate) in CHIPS.items():
                    times = {"memory": moved / bandwidth, "arithmetic": work / rate}
                    bound = max(times, key=times.__getitem__)
                    floor = float(f"{times[bound] * 1e12:.4g}")
                    found.append(Floor(operation, size, dtype, moved, work, chip, floor, bound))
    return found


def main() -> None:
    """Write the table."""
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Floor._fields)
        writer.writerows(floors())


if __name__ == "__main__":
    main()
