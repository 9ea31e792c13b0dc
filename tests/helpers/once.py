"""What takes long to build, once for all the processes that share the tests of a run."""

import os
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock


def once(name, make):
    """Return a folder of the run that ``make(folder)`` has filled; the first that asks fills it."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid())
    folder = Path(tempfile.gettempdir()) / f"d3pm_fast_{name}_{run}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            try:
                make(folder)
            except BaseException:
                shutil.rmtree(folder)
                raise
    return folder
