"""The command ``d3pm-fast``, outside the package, which takes seconds to import."""

import signal


def main() -> None:
    """Run ``d3pm-fast``; Ctrl-C ends it without a traceback while the package is imported."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from d3pm_fast.train.cli import main

    signal.signal(signal.SIGINT, handler)
    main()
