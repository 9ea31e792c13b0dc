"""Programs of NVIDIA GPUs in their own instructions, and the way that a warp takes through them.

:func:`walk` counts how often each instruction is issued to one warp, by these rules:

- An instruction with a predicate counts: it takes its issue slot even where the predicate is false.
- A loop runs as many trips as it is given; a subroutine counts where it is always called.
- A short forward branch around a call of a subroutine is taken where nothing else is decided before
  the call: that is the slow path of a division.
- Where one of two ways moves 16 bytes a lane and the other less as often, the first is taken: the
  other is for rows that are not aligned. So it is where arguments decide and one moves 16 bytes
  more often: the other is a loop for rows that fill no tile.
- In a loop, of two ways that read as much of a row the shorter is taken: the other is for the few
  parts that have classes apart.
- Where arguments decide whether rows are read, outside of a loop, they are not: they are held.
- A branch that depends on data, and on which 64 instructions or more hang, is a choice.
  :class:`Path` says which of its two ways is taken.
- Every other forward branch is not taken: loops are entered, indices are good, tokens are there.

A branch depends on data if a value that was read or exchanged between threads is among what its
predicate was made of. Those are looked for backwards in the order of the listing. Where a program
lets the threads of a warp vote, only votes decide for the whole warp: of the other ways, which
threads choose each for itself, a warp is taken to have threads on the first.
"""

import math
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path as File
from typing import NamedTuple

import triton

TOOLS = File(triton.__file__).parent / "backends" / "nvidia" / "bin"
LEAST_CHOICE = 64  # instructions
LONGEST_CALL = 32
DATA = {"LDG", "LD", "LDS", "LDSM", "SHFL", "REDUX", "CREDUX", "ATOMS", "ATOMG", "MATCH"}
VOTES = {"VOTE", "VOTEU"}
MOVE = "VOTEU.ANY"  # of a predicate that all threads have alike, and no vote
NO_RESULT = {"STG", "ST", "STS", "STSM", "STL", "LDGSTS", "RED"}
NO_RESULT |= {"BRA", "EXIT", "BAR", "BSSY", "BSYNC"}
LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P[\dT]+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
REGISTER = re.compile(r"\b(U?[RP])(\d+)\b(\.64)?")


class Path(Enum):
    """Which way is taken where data decide."""

    FULL = "full"  # always the longer
    FAST = "fast"  # the longer, but the shorter of a choice that has no other within
    FLAT = "flat"  # the shorter, unless rows are copied or results written on the longer alone
    SETTLED = "settled"  # always the shorter


class Instruction(NamedTuple):
    """One of a listing."""

    predicate: str  # "" for none
    name: str
    operands: str

    @property
    def base(self) -> str:
        """Its name without what qualifies it."""
        return self.name.partition(".")[0]

    @property
    def label(self) -> str | None:
        """Where it leads to."""
        found = re.search(r"`\(([^)]+)\)", self.operands)
        return found[1] if found else None

    @property
    def is_conditional(self) -> bool:
        """Whether it may be passed over; a way for warps that are apart (.DIV) counts as such."""
        return bool(self.predicate) or "," in self.operands or ".DIV" in self.name

    @property
    def bytes(self) -> int:
        """What a lane moves by it."""
        width = re.search(r"\.(U8|S8|U16|S16|64|128|256)\b", self.name)
        return int(width[1].lstrip("US")) // 8 if width else 4

    @property
    def votes(self) -> bool:
        """Whether threads vote."""
        return self.base in VOTES and self.name != MOVE

    def moves_global(self, least: int = 1) -> bool:
        """Whether it reads or writes so many bytes a lane of global memory."""
        return self.base in ("LDG", "LDGSTS", "STG") and self.bytes >= least

    @property
    def multiplications(self) -> int:
        """What a warp does of a product of matrices; four warps do a wgmma together."""
        if found := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", self.name):
            return math.prod(map(int, found.groups())) // 4
        found = re.match(r"HMMA\.(16)(8)(8|16)\.", self.name)
        return math.prod(map(int, found.groups())) if found else 0

    def _split(self) -> tuple[list[str], list[str]]:
        """Return its operands that it writes, and those that it reads."""
        operands = [each.strip() for each in self.operands.split(",")]
        if self.base in NO_RESULT:
            return [], operands
        if self.name == MOVE:
            return operands[:1], operands[1:]
        if re.match(r"U?P[\dT]", operands[0]):
            return operands[:2], operands[2:]
        first = 1
        while first < len(operands) and re.fullmatch(r"U?P\d", operands[first]):
            first += 1
        return operands[:first], operands[first:]

    def _masked_predicates(self) -> set[str]:
        mask = int(self.operands.rsplit(",", 1)[-1], 0) if "0x" in self.operands else 0x7F
        return {f"P{i}" for i in range(7) if mask >> i & 1}

    def writes(self) -> set[str]:
        """Return the registers and predicates that it writes."""
        if self.base == "R2P":
            return self._masked_predicates()
        wide = self.base[0] == "D" or re.search(r"\.(64|WIDE|F64)\b", self.name)
        count = 4 if ".128" in self.name else 2 if wide or self.base == "CS2R" else 1
        return _registers(self._split()[0], count)

    def reads(self) -> set[str]:
        """Return those that it reads."""
        found = _registers([*self._split()[1], self.predicate], 2 if self.base[0] == "D" else 1)
        return found | self._masked_predicates() if self.base == "P2R" else found


def _registers(operands: list[str], count: int) -> set[str]:
    return {
        f"{kind}{int(number) + i}"
        for operand in operands
        for kind, number, pair in REGISTER.findall(operand)
        for i in range(1 if kind.endswith("P") else max(count, 2 if pair else 1))
    }


class Program(NamedTuple):
    """The instructions of a kernel and its subroutines."""

    code: list[Instruction]
    labels: dict[str, int]

    def target(self, at: int) -> int | None:
        """Return where a branch or call leads to."""
        label = self.code[at].label
        return None if label is None else self.labels.get(label)

    def loops(self) -> list[int]:
        """Return where the branches back are: with a condition, or behind a way past them."""
        return [
            at
            for at, each in enumerate(self.code)
            if each.base == "BRA" and (to := self.target(at)) is not None and to < at
            if each.is_conditional or self.target(at - 1) == at + 1
        ]

    def body(self, at: int) -> list[Instruction]:
        """Return the instructions of a loop, by its branch back."""
        return self.code[self.target(at) : at]

    def is_choice(self, at: int) -> bool:
        """Return whether a forward branch depends on data and passes over much."""
        to = self.target(at) if _branches(self.code[at]) else None
        if to is None or to - at <= LEAST_CHOICE or self.reads_alike(at, *self.ways(at)):
            return False
        return self.depends_on_data(at)

    def ways(self, at: int) -> tuple[list[Instruction], list[Instruction]]:
        """Return what a forward branch passes over, and what is done instead of that."""
        to = self.target(at)
        last, joined = self.code[to - 1], None
        if last.base == "BRA" and not last.is_conditional:
            joined = self.target(to - 1)
        elif last.base == "EXIT" and not last.predicate:
            joined = len(self.code)
        other = self.code[to:joined] if joined is not None and joined > to else []
        return self.code[at + 1 : to], other

    def reads_alike(self, at: int, *ways: list[Instruction]) -> bool:
        """Return whether two ways in a loop read as much of a row."""
        first, second = (sum(each.moves_global(16) for each in way) for way in ways)
        return first == second > 0 and any(self.target(back) <= at < back for back in self.loops())

    def depends_on_data(self, at: int) -> bool:
        """Return whether the condition of a branch does; of a program that votes, on a vote."""
        deciding = VOTES if any(each.votes for each in self.code) else DATA
        sought = self.code[at].reads()
        for each in reversed(self.code[:at]):
            if sought & each.writes():
                if each.votes or each.base in DATA:
                    return each.base in deciding
                sought = sought - (set() if each.predicate else each.writes()) | each.reads()
        return False


def tool(name: str, option: str, cubin: bytes) -> str:
    """Return what a tool that Triton brings tells of a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / name, option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def resources(cubin: bytes) -> dict[str, tuple[int, int]]:
    """Return the registers of a thread and the shared bytes of a block, by kernel."""
    told = tool("cuobjdump", "-res-usage", cubin)
    found = re.findall(r"Function ([^:]+):\s+REG:(\d+).*?SHARED:(\d+)", told, re.DOTALL)
    return {name: (int(registers), int(shared)) for name, registers, shared in found}


def programs(cubin: bytes) -> dict[str, Program]:
    """Return the kernels of a binary by their names."""
    return listed(tool("nvdisasm", "-c", cubin))


def listed(listing: str) -> dict[str, Program]:
    """Return the kernels of a listing by their names."""
    found: dict[str, Program] = {}
    program = Program([], {})
    for line in listing.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.([^,]+),", line):
            program = found[section[1]] = Program([], {})
        elif label := re.match(r"([.$\w]+):", line):
            program.labels[label[1]] = len(program.code)
        elif instruction := LINE.search(line):
            predicate, name, operands = instruction.groups(default="")
            program.code.append(Instruction(predicate, name, operands.strip()))
    return found


def trace(program: Program, path: Path, trips: Callable[[int], int]) -> Iterator[int]:
    """Yield the instructions of a warp's way; ``trips`` are those of a loop by its branch back."""
    at, callers, left = 0, [], {}
    while at < len(program.code):
        each = program.code[at]
        yield at
        to = program.target(at)
        at += 1
        if each.base == "EXIT" and not each.predicate:
            return
        if each.base == "RET" and callers:
            at = callers.pop()
        elif each.base == "CALL" and to is not None and not each.predicate:
            callers.append(at)
            at = to
        elif each.base == "BRA" and to is not None:
            if to < at:
                left[at] = left.get(at, trips(at - 1)) - 1
                if left[at] > 0:
                    at = to
                else:
                    del left[at]
            elif not each.is_conditional or _is_taken(program, at - 1, to, path):
                at = to


def _branches(each: Instruction) -> bool:
    return each.base == "BRA" and each.is_conditional


def _moves_as_much(*ways: list[Instruction]) -> bool:
    """Return whether one of two ways moves 16 bytes a lane, and the other less as often."""
    narrow, wide = sorted(ways, key=lambda way: sum(each.moves_global(16) for each in way))
    moved = Counter(each.base for each in wide if each.moves_global(16))
    instead = Counter(each.base for each in narrow if each.moves_global())
    return not any(each.moves_global(16) for each in narrow) and moved <= instead


def _is_taken(program: Program, at: int, to: int, path: Path) -> bool:
    """Return whether a forward branch is taken."""
    code = program.code
    if ".DIV" in code[at].name:
        return False
    passed, other = program.ways(at)
    short = passed if len(passed) <= LONGEST_CALL else []
    first = next((each for each in short if each.base == "CALL" or _branches(each)), None)
    if first is not None and first.base == "CALL":
        return True
    if all(any(each.moves_global() for each in way) for way in (passed, other)):
        wide = [sum(each.moves_global(16) for each in way) for way in (passed, other)]
        if program.reads_alike(at, passed, other):
            return len(passed) > len(other)
        decides = _moves_as_much(passed, other) or not program.depends_on_data(at)
        if wide[0] != wide[1] and decides:
            return wide[1] > wide[0]
    if not program.depends_on_data(at):
        reads = any(each.base == "LDG" and each.bytes == 16 for each in passed)
        return reads and not any(at < back < to for back in program.loops())
    longer, shorter = (passed, other) if len(passed) >= len(other) else (other, passed)
    if len(longer) < LEAST_CHOICE:
        return False
    writes = [sum(each.base == "STG" for each in way) for way in (longer, shorter)]
    copies = [any(each.base == "LDGSTS" for each in way) for way in (longer, shorter)]
    if writes[0] > writes[1] or copies == [True, False]:
        skips = path is Path.SETTLED
    elif path is Path.FAST:
        begin = at + 1 if longer is passed else to
        skips = not any(map(program.is_choice, range(begin, begin + len(longer))))
    else:
        skips = path is not Path.FULL
    return skips == (longer is passed)


def walk(program: Program, path: Path, trips: Callable[[int], int]) -> Counter[Instruction]:
    """Return how often a warp is issued each instruction."""
    return Counter(program.code[at] for at in trace(program, path, trips))


def most_in_flight(program: Program, path: Path, trips: Callable[[int], int]) -> int:
    """Return the most bytes of rows a lane has asked memory for before it waits for any of them.

    Rows are what is read 16 bytes at a time, or where nothing is, 4 bytes or less at a time; the
    rest are tokens and their steps. Copies into shared memory are waited for at their barrier.
    """
    loads = [each for each in program.code if each.base in ("LDG", "LDGSTS")]
    is_wide = any(each.bytes >= 16 for each in loads)
    of_rows = {each for each in loads if (each.bytes >= 16 if is_wide else each.bytes <= 4)}
    asked: set[str] = set()
    most = total = 0
    for at in trace(program, path, trips):
        each = program.code[at]
        if asked & each.reads() or each.base == "DEPBAR":
            asked, total = set(), 0
        if each in of_rows:
            asked |= each.writes() if each.base == "LDG" else set()
            total += each.bytes
            most = max(most, total)
    return most
