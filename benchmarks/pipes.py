"""How long a multiprocessor is busy with a warp's instructions, and what that leaves of bandwidth.

Each of a multiprocessor's four parts starts one instruction of a warp at a clock, so that 4 slots
a clock are what everything shares. Behind them every kind of instruction has a pipe, with a rate
of its own, in instructions of a warp a clock and multiprocessor (throughput of arithmetic
instructions, CUDA C++ programming guide):

- float: FFMA, FMUL, FADD, and IMAD and HFMA2, which also move registers. 2 on sm_80; on sm_90 and
  sm_100 4, of which IMAD, HFMA2 and pairs (FFMA2) have 2;
- integer: comparisons, selections, logic, shifts, additions, minima, packing of bfloat16: 2;
- special: MUFU (exponential, logarithm, reciprocal) and conversions: 1/2;
- double: 1 on sm_80, 2 on sm_90 and sm_100;
- memory: loads, stores, exchanges between threads, constants: 1; 16 bytes a lane take 4 clocks;
- tensor: products of matrices, as many multiplications as datasheets say, half as many of tf32;
- uniform instructions and branches are counted as slots alone.

The busiest pipe gives a least time; what depends on one another, waits at barriers and is
scheduled unevenly adds to it.
"""

from collections import Counter
from typing import NamedTuple

from .chips import Chip
from .sass import Instruction

ISSUE = 4
HALF_FLOAT = {"IMAD", "IMUL", "HFMA2", "HADD2", "HMUL2", "FFMA2", "FADD2", "FMUL2"}
FLOAT = {"FFMA", "FMUL", "FADD"} | HALF_FLOAT
SPECIAL = {"MUFU", "F2F", "F2I", "I2F", "FRND", "POPC", "FLO", "BREV"}
DOUBLE = {"DFMA", "DMUL", "DADD", "DSETP", "DMNMX"}
MEMORY = {
    *("LDG", "STG", "LD", "ST", "LDS", "STS", "LDL", "STL", "LDSM", "STSM", "LDC", "ATOMG"),
    *("ATOMS", "RED", "REDG", "SHFL", "REDUX", "CREDUX", "VOTE", "MATCH", "S2R", "LDGSTS"),
}
SLOT_ALONE = {
    *("BRA", "EXIT", "BSSY", "BSYNC", "BAR", "CALL", "RET", "WARPSYNC", "BREAK", "BMOV", "DEPBAR"),
    *("HMMA", "IMMA", "DMMA", "HGMMA", "QGMMA", "NANOSLEEP", "MEMBAR", "SYNCS", "R2UR"),
    *("WARPGROUP", "FENCE", "LDGDEPBAR"),
}
TENSOR = {"sm_80": 1024, "sm_90": 2048, "sm_100": 4096}  # multiplications of 16 bits a clock
MOST_WARPS, MOST_BLOCKS, REGISTERS = 64, 32, 65536
SHARED = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10}
RESERVED = 1 << 10  # of shared memory, by each block
COPY = 0.9  # of a datasheet's bandwidth, what a copy reaches
LATENCY = 700e-9  # seconds that a read takes while the memory is busy


class Busy(NamedTuple):
    """What a warp's way through a program takes of a multiprocessor."""

    slots: int
    pipe: str  # the busiest
    clocks: float  # that it is busy


def busy(counts: Counter[Instruction], target: str) -> Busy:
    """Count by pipes."""
    of = Counter[str]()
    for each, count in counts.items():
        if each.base != "NOP":
            of["issue"] += count
            of[_pipe(each)] += count
            if each.base in HALF_FLOAT:
                of["half float"] += count
            if each.moves_global(16):
                of["memory"] += 3 * count
            of["tensor"] += each.multiplications * (2 if "TF32" in each.name else 1) * count
    is_old = target == "sm_80"
    clocks = {
        "issue": of["issue"] / ISSUE,
        "float": of["float"] / 2 if is_old else max(of["float"] / 4, of["half float"] / 2),
        "integer": of["integer"] / 2,
        "special": of["special"] * 2,
        "double": of["double"] / (1 if is_old else 2),
        "memory": of["memory"],
        "tensor": of["tensor"] / TENSOR[target],
    }
    pipe = max(clocks, key=clocks.__getitem__)
    return Busy(of["issue"], pipe, clocks[pipe])


def _pipe(each: Instruction) -> str:
    kinds = {"float": FLOAT, "special": SPECIAL, "double": DOUBLE, "memory": MEMORY}
    found = next((pipe for pipe, names in kinds.items() if each.base in names), None)
    if found is not None:
        return found
    is_slot_alone = each.base in SLOT_ALONE or each.base.startswith("U")
    return "slot alone" if is_slot_alone else "integer"


def resident_warps(registers: int, warps: int, shared: int, target: str) -> int:
    """Return how many warps a multiprocessor holds of blocks of so many.

    ``registers`` are a thread's and given out by eights, ``shared`` bytes a block's.
    """
    of_block = -(-registers // 8) * 8 * 32 * warps
    blocks = min(
        REGISTERS // of_block,
        MOST_WARPS // warps,
        MOST_BLOCKS,
        SHARED[target] // (shared + RESERVED),
    )
    return blocks * warps


def seconds_of(
    clocks: float, bytes_moved: float, reads: float, in_flight: int, chip: Chip
) -> dict[str, float]:
    """Return the least times of an element by what bounds them: memory, pipe and latency.

    Args:
        clocks: that the busiest pipe of a multiprocessor takes for an element.
        bytes_moved: for an element, read and written.
        reads: the share of them that is read.
        in_flight: bytes that a multiprocessor has asked memory for at a time.
        chip: which one.
    """
    waits = bytes_moved * reads * LATENCY / (in_flight * chip.multiprocessors) if reads else 0.0
    moves = bytes_moved / (COPY * chip.bandwidth)
    return {"memory": moves, "pipe": clocks / chip.clocks, "latency": waits}


def share_of_copy(seconds: dict[str, float]) -> float:
    """Return the share of a copy's bandwidth that a kernel can reach at most in these times."""
    return seconds["memory"] / max(seconds.values())
