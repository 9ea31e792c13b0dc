"""The vectors' mathematics does nothing that C++ leaves undefined, whatever a lane holds."""

import os
import subprocess
from pathlib import Path

from helpers.once import once

ROOT = Path(__file__).parents[1]
FLAGS = "-std=c++17 -O1 -fsanitize=undefined -fno-sanitize-recover=all"
WARNINGS = "-Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-psabi"


def build(folder):
    compiler, source = os.environ.get("CXX", "c++"), ROOT / "tests/cpu/mathematics.cpp"
    flags = [*FLAGS.split(), *WARNINGS.split(), f"-I{ROOT}", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *flags, source, "-o", folder / "mathematics"], check=True)


def test_no_lane_overflows(instructions):
    program = once("mathematics", build) / "mathematics"
    run = subprocess.run([program, str(instructions)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
