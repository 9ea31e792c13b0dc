"""The count of issue slots: the way through a program, the pipes, and the committed table."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path as File

import pytest
from test_triton import TRITON_OF_TABLE

pytest.importorskip("triton")
import triton

from benchmarks import pipes, slot_table
from benchmarks.chips import CHIPS
from benchmarks.sass import Path, Program, listed, most_in_flight, walk
from benchmarks.slot_calls import every_key

ROOT = File(__file__).parents[1]
AGAIN = "python -m benchmarks.issue_slots writes the table again"


def program(*lines: str) -> Program:
    """A kernel of these instructions; a name with a colon is a label, and 70* repeats a line."""
    written = []
    for line in lines:
        count, _, repeated = line.rpartition("*")
        written += [repeated] * int(count or 1)
    listing = [".section .text.kernel,"]
    for number, line in enumerate(written):
        listing.append(line if line.endswith(":") else f"/*{number:04x}*/ {line} ;")
    return listed("\n".join(listing))["kernel"]


def slots(of: Program, path: Path = Path.FULL, trips: int = 1) -> int:
    return walk(of, path, lambda _: trips).total()


LOOP = program("MOV R1, R2", ".L_0:", "FADD R1, R1, R1", "@!P0 BRA `(.L_0)", "EXIT")


def test_a_loop_runs_its_trips():
    assert slots(LOOP, trips=5) == 1 + 5 * 2 + 1


def test_an_inner_loop_starts_anew():
    nested = program(
        ".L_0:", ".L_1:", "FADD R1, R1, R1", "@P1 BRA `(.L_1)", "@P0 BRA `(.L_0)", "EXIT"
    )
    assert slots(nested, trips=3) == 3 * (3 * 2 + 1) + 1


def test_a_slow_path_is_passed_over_and_a_subroutine_counts():
    slow = "@P0 BRA `(.L_0)", "MOV R4, R5", "CALL.REL.NOINC `($divide)", ".L_0:", "EXIT"
    divide = "$divide:", "3*FMUL R1, R1, R1", "RET.REL.NODEC R4 `(kernel)"
    assert slots(program(*slow, *divide)) == 2
    called = program("CALL.REL.NOINC `($divide)", "EXIT", *divide)
    assert slots(called) == 1 + 4 + 1


def test_a_long_way_that_calls_a_subroutine_is_no_slow_path():
    called = "CALL.REL.NOINC `($divide)", "40*FADD R1, R1, R1", ".L_0:", "EXIT", "$divide:", "RET"
    assert slots(program("@P0 BRA `(.L_0)", *called)) == 1 + 2 + 40 + 1


def test_a_division_inside_of_a_branch_is_no_slow_path():
    of = program(
        "@P1 BRA `(.L_1)", "MUFU.RCP R1, R2", "@P0 BRA `(.L_0)", "CALL.REL.NOINC `($divide)",
        ".L_0:", "FMUL R1, R1, R2", ".L_1:", "EXIT",
    )  # fmt: skip
    assert slots(of) == 5


DATA, ARGUMENT = "LDG.E.64 R6, desc[UR4][R2.64]", "LDC R6, c[0x0][0x210]"
BETWEEN = "P2R R7, PR, RZ, 0x2", "ISETP.NE.AND P3, PT, R7, RZ, PT"


@pytest.mark.parametrize(
    ("source", "skipped", "expected"),
    [
        (DATA, "70*FADD R1, R1, R1", [76, 6, 6, 6]),
        (DATA, "60*FADD R1, R1, R1", [66, 66, 66, 66]),  # too little hangs on it
        (DATA, "70*STG.E.128 desc[UR4][R2.64], R8", [76, 76, 76, 6]),  # results
        (ARGUMENT, "70*FADD R1, R1, R1", [76, 76, 76, 76]),  # no choice: a loop that is entered
    ],
)
def test_choices(source, skipped, expected):
    made = source, "ISETP.GE.AND P1, PT, R6, 0x1, PT", *BETWEEN
    of = program(*made, "@!P3 BRA `(.L_0)", skipped, ".L_0:", "EXIT")
    assert [slots(of, path) for path in Path] == expected


@pytest.mark.parametrize(("other", "expected"), [("VOTEU.ANY UP1, P1", 5), ("VOTE.ALL P2, P3", 75)])
def test_a_program_that_votes_chooses_by_votes_and_a_predicate_that_is_moved_is_none(
    other, expected
):
    made = DATA, "ISETP.GE.AND P1, PT, R6, 0x1, PT", other
    of = program(*made, "@!P1 BRA `(.L_0)", "70*FADD R1, R1, R1", ".L_0:", "EXIT")
    assert slots(of, Path.FLAT) == expected


def test_a_predicate_made_of_itself_still_depends_on_data():
    made = DATA, "ISETP.GE.AND P2, PT, R6, 0x1, PT", "PLOP3.LUT P2, PT, P0, P1, P2, 0xb0, 0x0"
    of = program(*made, "@!P2 BRA `(.L_0)", "70*FADD R1, R1, R1", ".L_0:", "EXIT")
    assert [slots(of, path) for path in Path] == [75, 5, 5, 5]


@pytest.mark.parametrize("first", [9, 70])
def test_of_two_ways_the_longer_and_the_shorter_are_found(first):
    of = program(
        DATA, "ISETP.GE.AND P3, PT, R6, 0x1, PT", "@!P3 BRA `(.L_0)", f"{first}*FADD R1, R1, R1",
        "BRA `(.L_1)", ".L_0:", f"{79 - first}*FMUL R1, R1, R1", ".L_1:", "EXIT",
    )  # fmt: skip
    arithmetic = [
        sum(count for each, count in walk(of, path, lambda _: 1).items() if each.base[0] == "F")
        for path in Path
    ]
    assert arithmetic == [70, 9, 9, 9]


def test_the_fast_way_passes_over_the_innermost_choice():
    made = DATA, "ISETP.GE.AND P3, PT, R6, 0x1, PT"
    inner = "@!P3 BRA `(.L_1)", "70*FADD R1, R1, R1", ".L_1:"
    of = program(*made, "@!P3 BRA `(.L_0)", "9*FADD R1, R1, R1", *inner, ".L_0:", "EXIT")
    assert [slots(of, path) for path in Path] == [84, 14, 4, 4]


def test_aligned_rows_go_the_wide_way():
    narrow, wide = "8*LDG.E.U16 R1, desc[UR4][R2.64]", "LDG.E.128 R4, desc[UR4][R2.64]"
    for first, second, expected in [(narrow, wide, 3), (wide, narrow, 4)]:
        ways = first, "BRA `(.L_1)", ".L_0:", second, ".L_1:", "EXIT"
        assert slots(program("@P3 BRA `(.L_0)", *ways)) == expected


def test_a_way_that_writes_no_rows_is_none_for_rows_that_are_not_aligned():
    made = DATA, "ISETP.GE.AND P1, PT, R6, 0x1, PT", "@!P1 BRA `(.L_0)"
    longer = "70*FADD R1, R1, R1", "8*LDG.E.U16 R1, desc[UR4][R2.64]", "BRA `(.L_1)"
    writes = ".L_0:", "STG.E.128 desc[UR4][R2.64], R8", ".L_1:", "EXIT"
    assert slots(program(*made, *longer, *writes), Path.FULL) == 83


OUT_AND_BACK = ["@P4 CALL.REL.NOINC `(.L_0)", "BRA `(.L_2)"]


@pytest.mark.parametrize(
    ("behind", "expected"), [([], 4), (["@P4 BRA `(.L_2)"], 46), (OUT_AND_BACK, 47)]
)
def test_rows_that_are_held_are_not_read_again(behind, expected):
    read = ".L_2:", "LDG.E.128 R8, desc[UR4][R2.64]", "40*FADD R1, R8, R9", *behind
    made = ARGUMENT, "ISETP.GE.AND P3, PT, R6, 0x1, PT"
    assert slots(program(*made, "@!P3 BRA `(.L_0)", *read, ".L_0:", "EXIT")) == expected


def test_reads_in_flight_are_those_before_the_first_wait():
    row = "LDG.E.128 R{}, desc[UR4][R2.64]"
    of = program(
        "LDG.E.64 R20, desc[UR4][R2.64]", row.format(4), row.format(8), "FADD R1, R1, R9",
        row.format(12), "EXIT",
    )  # fmt: skip
    assert most_in_flight(of, Path.FULL, lambda _: 1) == 32


def test_pipes_have_their_rates():
    def clocks(target, *lines):
        found = pipes.busy(walk(program(*lines, "EXIT"), Path.FULL, lambda _: 1), target)
        return found.pipe, found.clocks

    assert clocks("sm_90", "8*FADD R1, R1, R1", "7*SEL R1, R1, R2, P0") == ("issue", 4)
    assert clocks("sm_90", "8*SEL R1, R1, R2, P0") == ("integer", 4)
    assert clocks("sm_90", "8*FADD R1, R1, R1") == ("issue", 9 / 4)
    assert clocks("sm_80", "8*FADD R1, R1, R1") == ("float", 4)
    assert clocks("sm_90", "8*IMAD R1, R1, R1, R1") == ("float", 4)
    assert clocks("sm_90", "8*MUFU.EX2 R1, R1") == ("special", 16)
    assert clocks("sm_90", "8*STG.E.128 desc[UR4][R2.64], R8") == ("memory", 32)
    assert clocks("sm_80", "8*DFMA R2, R4, R6, R8") == ("double", 8)
    # 64 x 128 x 16 numbers by four warps, of which one is counted.
    wgmma = "2*HGMMA.64x128x16.F32.BF16 R24, R88, gdesc[UR12], R24, gsb0"
    assert clocks("sm_90", wgmma) == ("tensor", 2 * 16)
    assert clocks("sm_80", "8*HMMA.16816.F32.BF16 R4, R8, R12, R4") == ("tensor", 8 * 2)
    assert clocks("sm_80", "8*HMMA.1688.F32.TF32 R4, R8, R12, R4") == ("tensor", 8 * 2)
    assert clocks("sm_90", "8*LDGSTS.E.BYPASS.128 [R4], [R2.64], P6") == ("memory", 32)


def test_reads_by_way_of_shared_memory_are_in_flight_until_a_barrier():
    read = "2*LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64], P6"
    of = program(read, "VIADD R4, R4, 0x10", read, "DEPBAR.LE SB0, 0x1", read, "EXIT")
    assert most_in_flight(of, Path.FULL, lambda _: 1) == 64


def test_resident_warps():
    assert pipes.resident_warps(32, 4, 0, "sm_90") == 64
    assert pipes.resident_warps(250, 4, 0, "sm_90") == 8  # 256 each
    assert pipes.resident_warps(32, 1, 0, "sm_90") == 32  # as many blocks
    assert pipes.resident_warps(32, 4, 47 << 10, "sm_90") == 16
    assert pipes.resident_warps(32, 4, 47 << 10, "sm_80") == 12


def test_shares_of_a_copy():
    chip, copy = CHIPS["H100"], pipes.COPY * CHIPS["H100"].bandwidth
    clocks = 8 * chip.clocks / copy  # as long as 8 bytes take

    def share(*of):
        return pipes.share_of_copy(pipes.seconds_of(*of, chip))

    assert share(clocks / 2, 8, 0.5, 1 << 20) == 1
    assert share(2 * clocks, 8, 0.5, 1 << 20) == pytest.approx(0.5)
    needed = copy / 2 * pipes.LATENCY / chip.multiprocessors
    assert share(0.1 * clocks, 8, 0.5, needed / 4) == pytest.approx(0.25)


def test_the_table_has_every_row_in_order():
    assert list(slot_table.read()) == list(every_key())


def test_no_way_misses_the_rows():
    missed = [row.key for row in slot_table.read().values() if row.in_flight == 0]
    assert [key for key in missed if key.path != "settled"] == []


def test_a_table_is_read_as_it_was_written(tmp_path):
    slot_table.write(slot_table.read().values(), tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == slot_table.TABLE.read_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_of_dense_chains_is_within_twice_the_floor_of_its_products(dtype):
    key = slot_table.Key("triton", "loss and gradient", "dense", "full", 256, dtype, "sm_90")
    products = 2 * 6 * 256  # of a logit, two products of six parts
    floor = 1000 * products / pipes.TENSOR["sm_90"]
    assert floor < slot_table.read()[key].clocks < 2 * floor


def test_kernels_that_reach_the_bandwidth_of_a_copy_are_said_to():
    anchors = [row for row in slot_table.read().values() if row.implementation == "anchor"]
    assert len(anchors) == 6
    assert min(share for row in anchors for share in row.copy.values()) > 0.95


def differing(options, tmp_path):
    """Rows that are counted otherwise than the table says, by more than 3 %."""
    out = tmp_path / "issue_slots.csv"
    command = [sys.executable, "-m", "benchmarks.issue_slots", "--out", out, *options]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    table, found = slot_table.read(), slot_table.read(out)
    assert found
    return [
        (*key, row.slots, table[key].slots)
        for key, row in found.items()
        if row.slots != pytest.approx(table[key].slots, rel=0.03)
        or row.clocks != pytest.approx(table[key].clocks, rel=0.03)
    ]


of_the_table = pytest.mark.skipif(
    triton.__version__ != TRITON_OF_TABLE, reason="the table is another Triton's"
)


@of_the_table
def test_programs_take_the_slots_that_the_table_says(tmp_path):
    main = "--operation", "softmax", "loss and gradient", "p_sample", "--num_classes", "1024"
    options = *main, "--dtype", "bfloat16", "--implementation", "anchor", "triton"
    assert differing(options, tmp_path) == [], AGAIN


@of_the_table
@pytest.mark.exhaustive
def test_all_programs_take_the_slots_that_the_table_says(tmp_path):
    assert differing(["--implementation", "anchor", "triton"], tmp_path) == [], AGAIN


def test_counts_add_up():
    of = walk(LOOP, Path.FULL, lambda _: 2)
    assert of == Counter({each: 2 if each.name in ("FADD", "BRA") else 1 for each in LOOP.code})
