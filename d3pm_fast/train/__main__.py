"""``python -m d3pm_fast.train`` is ``d3pm-fast train``, and with the name of a task that task."""

import sys

from .cli import TRAINS, main

arguments = sys.argv[1:]
main(arguments if arguments[:1] and arguments[0] in TRAINS else ["train", *arguments])
