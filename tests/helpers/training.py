"""What the tests of training runs share."""

import json
import os
import signal


def go_until(run, step):
    """Let a run go on and be told to stop after so many steps."""
    train_step = run.train_step

    def stopped_at():
        line = train_step()
        if run.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return line

    run.train_step = stopped_at
    run.go()


def losses(out):
    """The loss of each step of the run in a folder."""
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
