"""A run that is killed, ended or out of disk goes on from a whole checkpoint."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from meshgpt_pytorch.trainer import MeshAutoencoderTrainer
from meshgpt_pytorch.training.interruption import noting_sigterm
from tests.helpers import ROOT
from tests.training.runs import (
    Samples,
    assert_same_state,
    make_autoencoder,
    small_run,
    without_speed,
)
from tests.training.test_skipping import break_steps


def test_killed_at_any_moment_the_next_start_goes_on_from_a_whole_checkpoint(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.killed_run", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    # the run got ahead, and neither of its two checkpoints ever fell back
    for kind in ("latest", "rolling"):
        starts = [int(start) for each, start in report["starts"] if each == kind]
        assert starts == sorted(starts)
        assert starts[-1] > 0
    assert report["same_weights"]
    assert report["same_history"]
    assert report["names"] == [
        *sorted(f"mesh-autoencoder.ckpt.{report['steps'] - back}" for back in (0, 1)),
        "mesh-autoencoder.history.jsonl",
    ]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


# in turn too little for the model, for the state of training, and for the last bytes of it
@pytest.mark.parametrize("share", [0.0, 0.4, 0.99])
def test_a_full_disk_leaves_the_old_checkpoint(make_trainer: Any, share: float) -> None:
    trainer = make_trainer(num_train_steps=2, checkpoint_every=2)
    trainer()
    names = sorted(os.listdir(trainer.checkpoint_folder))
    folder = trainer.checkpoints.latest()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    largest = max(map(len, before.values()))

    trainer.reporter.history.append({"step": 3})
    with files_of_at_most(int(share * largest)), pytest.raises(OSError):
        trainer.save(folder)
    assert sorted(os.listdir(trainer.checkpoint_folder)) == names
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    make_trainer().load("latest")


def test_sigterm_saves_and_ends_and_the_run_goes_on(make_trainer: Any, tmp_path: Path) -> None:
    def end(record: dict[str, float]) -> None:
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = make_trainer(checkpoint_folder=tmp_path / "whole")
    whole()
    ended = make_trainer(on_step=end, val_dataset=Samples(), val_every=3)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        ended()
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert ended.last_checkpoint == ended.checkpoints.path(3)
    assert "val_loss" not in ended.history[-1]

    resumed = make_trainer()
    resumed.load("latest")
    assert resumed.step == 3
    resumed()
    assert_same_state(resumed.unwrapped_model, whole.unwrapped_model)
    assert without_speed(resumed.history) == without_speed(whole.history)


def test_sigterm_during_a_validation_saves_the_step_of_it(make_trainer: Any) -> None:
    trainer = make_trainer(val_dataset=Samples(), val_every=2)
    new_meter = trainer.new_meter

    def end() -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return new_meter()

    trainer.new_meter = end
    with pytest.raises(SystemExit):
        trainer()
    assert trainer.last_checkpoint == trainer.checkpoints.path(2)
    assert "val_loss" in trainer.history[-1]


@pytest.mark.parametrize("options", [{}, {"on_step": lambda record: True}])
def test_sigterm_during_the_last_save_ends_the_process(
    make_trainer: Any, options: dict[str, Any]
) -> None:
    trainer = make_trainer(num_train_steps=1, checkpoint_every=1, **options)
    save = trainer.save

    def end(path: Path) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(path)

    trainer.save = end
    with pytest.raises(SystemExit) as caught:
        trainer()
    assert caught.value.code == 143
    assert trainer.checkpoints.steps() == [1]


def test_sigterm_before_a_hook_ends_training_ends_the_process(make_trainer: Any) -> None:
    def end(record: dict[str, float]) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    trainer = make_trainer(on_step=end)
    with pytest.raises(SystemExit):
        trainer()
    assert trainer.checkpoints.steps() == [1]


@pytest.mark.parametrize(("is_codebook_broken", "saved"), [(False, [2]), (True, [])])
def test_sigterm_in_a_skipped_step_saves_what_is_whole(
    tmp_path: Path, is_codebook_broken: bool, saved: list[int]
) -> None:
    model = make_autoencoder(quantizer="rvq")
    trainer = MeshAutoencoderTrainer(model, **small_run(tmp_path))
    break_steps(trainer, lambda step: step == 1, math.nan)
    train_step = trainer._train_step

    def end(batches: Any) -> dict[str, float]:
        record = train_step(batches)
        if "skipped" in record:
            os.kill(os.getpid(), signal.SIGTERM)
            if is_codebook_broken:
                next(each for each in model.buffers() if each.is_floating_point()).fill_(math.nan)
        return record

    trainer._train_step = end
    with pytest.raises(SystemExit):
        trainer()
    assert trainer.step == 2
    assert trainer.checkpoints.steps() == saved


def test_only_the_main_thread_can_note_sigterm() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def run() -> None:
        with noting_sigterm() as sigterm:
            seen.append((sigterm.is_requested, signal.getsignal(signal.SIGTERM)))

    seen: list[tuple[bool, Any]] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
