"""``python -m d3pm_fast.train`` is ``d3pm-fast train``."""

import sys

from .cli import main

main(["train", *sys.argv[1:]])
