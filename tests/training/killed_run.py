"""Train in processes that are killed at random moments, each going on where the last one was.

Run by test_interruption.py: writes down at which step each process started, and whether the run
that was killed so often ends as one that was not.
"""

import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from meshgpt_pytorch.trainer import MeshAutoencoderTrainer
from tests.training.runs import make_autoencoder, small_run, without_speed

KILLS = 30


def build(folder: Path, num_train_steps: int, *, saves: bool = True) -> MeshAutoencoderTrainer:
    """Build a trainer that saves after each step, twice, or never."""

    def save_again(_: object) -> None:
        if saves:
            trainer.save(folder / "rolling")

    options = {**small_run(folder), "num_train_steps": num_train_steps}
    trainer = MeshAutoencoderTrainer(
        make_autoencoder(resnet_dropout=0.2),
        **options,
        checkpoint_every=1 if saves else num_train_steps + 1,
        keep_checkpoints=2,
        on_step=save_again,
    )
    return trainer


def live(folder: Path, kind: str) -> None:
    """Go on with the run, from one of its two checkpoints, until killed."""
    trainer = build(folder, 10**6)
    with suppress(FileNotFoundError):
        trainer.load(folder / "rolling" if kind == "rolling" else "latest")
    with (folder / "starts").open("a") as starts:
        starts.write(f"{kind} {trainer.step}\n")
    trainer()


def time_of_a_life(folder: Path) -> float:
    """Measure how long a process takes for a start, a step and the saving of it."""
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        build(folder, 1)()
        os._exit(0)
    os.waitpid(process, 0)
    return time.monotonic() - started


def kill_again_and_again(folder: Path, longest_life: float) -> None:
    """Start a process, kill it after a random time, and so on."""
    clock = random.Random(0)
    starts = folder / "starts"
    starts.touch()
    for number in range(KILLS):
        before = starts.stat().st_size
        process = os.fork()
        if process == 0:
            live(folder, "rolling" if number % 2 else "latest")
        # every third may be killed before it has begun to train
        while number % 3 and starts.stat().st_size == before:
            time.sleep(0.001)
        time.sleep(clock.uniform(0, longest_life))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise RuntimeError(f"process {number} ended by itself")


def main(folder: Path) -> None:
    """Compare a run that is killed with one that is not."""
    torch.set_num_threads(1)
    kill_again_and_again(folder / "killed", time_of_a_life(folder / "timed"))
    trainer = build(folder / "killed", 10**6)
    trainer.load("latest")
    killed = build(folder / "killed", trainer.step + 2)
    killed.load("latest")
    killed()
    whole = build(folder / "whole", trainer.step + 2, saves=False)
    whole()
    states = killed.unwrapped_model.state_dict(), whole.unwrapped_model.state_dict()
    report = {
        "starts": [line.split() for line in (folder / "killed" / "starts").open()],
        "same_weights": all(torch.equal(states[0][name], states[1][name]) for name in states[1]),
        "same_history": without_speed(killed.history) == without_speed(whole.history),
        "names": sorted(path.name for path in (folder / "killed" / "checkpoints").iterdir()),
        "steps": trainer.step + 2,
    }
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    for name in ("killed", "timed", "whole"):
        (Path(sys.argv[1]) / name).mkdir()
    main(Path(sys.argv[1]))
