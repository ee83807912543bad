"""Two processes that are told to end, and the run that goes on from what they saved.

    accelerate launch --module tests.training.preempted_run <folder> end <whom SIGTERM reaches>
    accelerate launch --module tests.training.preempted_run <folder> go-on

Run by test_processes.py.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from tests.training.resumed_run import build
from tests.training.runs import without_speed

KIND = "transformer"
SIGNALLED = ("one process", "launcher")


def end(folder: Path, signalled: str) -> None:
    """Train until a SIGTERM, which the second process causes after two steps."""
    trainer = build(KIND, folder, 10**6)

    def send(record: dict[str, float]) -> None:
        if record["step"] == 2 and not trainer.is_main:
            os.kill(os.getpid() if signalled == "one process" else os.getppid(), signal.SIGTERM)

    trainer.options = replace(trainer.options, on_step=send)
    trainer()


def go_on(folder: Path) -> dict[str, bool]:
    """Train two steps more, and compare with a run that never ended."""
    resumed = build(KIND, folder, 10**6)
    resumed.load("latest")
    resumed.num_train_steps = resumed.step + 2
    resumed()
    whole = build(KIND, folder / "whole", resumed.step)
    whole()
    states = [each.whole.trained.state_dict() for each in (resumed, whole)]
    history = without_speed(resumed.history), without_speed(whole.history)
    # of the step at which it ended, the run has no validation
    is_same_loss = [one["loss"] == other["loss"] for one, other in zip(*history, strict=True)]
    return {
        "weights": all(torch.equal(states[0][name], states[1][name]) for name in states[0]),
        "losses": all(is_same_loss),
        "later": history[0][-2:] == history[1][-2:],
    }


def main(folder: Path, what: str, signalled: str = "") -> None:
    """End a run, or go on with all that were ended."""
    if what == "end":
        end(folder / signalled, signalled)
        return
    report = {each: go_on(folder / each) for each in SIGNALLED}
    path = folder / f"report.{PartialState().process_index}.json"
    path.write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
