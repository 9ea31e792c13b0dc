"""The command line: ``python -m benchmarks --help``."""

import argparse
import sys
from collections.abc import Sequence

from .arguments import duration, new_file, whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, and only then load what measures: ``--help`` does not wait for it."""
    options = parse(arguments)
    try:
        from .program import run
    except ModuleNotFoundError as error:
        sys.exit(f'the benchmarks need {error.name}: pip install -e ".[dev]"')
    return run(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time d3pm_fast beside other ways to compute the same, in interleaved rounds.",
    )
    add = parser.add_argument
    add("cases", nargs="*", metavar="WORD", help="only cases with every WORD in their name")
    add("--providers", nargs="+", metavar="NAME", help="only these beside ours; --list shows all")
    add("--quick", action="store_true", help="2 seconds an interleaved run")
    add("--seconds", type=duration, default=15.0, help="budget of an interleaved run (%(default)s)")
    add("--threads", type=whole(1), default=2, help="of PyTorch and of the kernels (%(default)s)")
    add("--json", type=new_file, metavar="PATH", help="write the results there too")
    add("--list", action="store_true", help="print the names of cases and providers, and stop")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
