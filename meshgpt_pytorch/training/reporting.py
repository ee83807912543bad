"""What a run says of itself: a progress bar, the history, a file of JSON lines, and trackers."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm

from meshgpt_pytorch.training.options import Record

SHOWN_IN_BAR = ("loss", "learning_rate", "faces_per_second", "val_loss")


def to_json(record: Record) -> str:
    """Write a record as one line; JSON has no nan and no infinity, so these become null."""
    return json.dumps({name: value if isfinite(value) else None for name, value in record.items()})


class Reporter:
    """Report one record a step, from the main process.

    ``<name>.history.jsonl`` in the folder is only ever added to: a resumed run repeats the steps
    after its checkpoint, and the last line of a step counts.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, *, name: str, progress: bool
    ) -> None:
        self.accelerator = accelerator
        self.path = folder / f"{name}.history.jsonl"
        self.name = name
        self.progress = progress
        self.history: list[Record] = []
        self.bar: tqdm[Any] | None = None

    @contextmanager
    def running(self, step: int, num_steps: int) -> Iterator[None]:
        """Show the progress bar during a block."""
        hidden = not (self.progress and self.accelerator.is_main_process)
        with tqdm(total=num_steps, initial=step, desc=self.name, disable=hidden) as bar:
            self.bar = bar
            try:
                yield
            finally:
                self.bar = None

    def report(self, record: Record) -> None:
        """Add one step's numbers to the history, its file, the bar and the trackers."""
        self.history.append(record)
        if not self.accelerator.is_main_process:
            return
        with self.path.open("a") as file:
            file.write(f"{to_json(record)}\n")
        numbers = {name: value for name, value in record.items() if name != "step"}
        self.accelerator.log(numbers, step=int(record["step"]))
        if self.bar is not None:
            shown = {name: f"{record[name]:.4g}" for name in SHOWN_IN_BAR if name in record}
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update()

    def say(self, message: str) -> None:
        """Write a line above the bar."""
        if self.progress and self.accelerator.is_main_process:
            tqdm.write(message)

    @contextmanager
    def tracking(
        self, project: str, run: str | None, hps: Mapping[str, Any] | None, kind: str | None
    ) -> Iterator[None]:
        """Open the trackers that accelerate was told of, and close them after a block."""
        self.accelerator.init_trackers(project, config=None if hps is None else dict(hps))
        trackers = list(self.accelerator.trackers)
        try:
            if kind is not None and kind not in [tracker.name for tracker in trackers]:
                raise ValueError(
                    f"{kind} is not among the trackers {[tracker.name for tracker in trackers]}; "
                    f"build the trainer with use_wandb_tracking=True, or "
                    f"accelerator_kwargs={{'log_with': {kind!r}}}"
                )
            if run is not None:
                for tracker in trackers:
                    if tracker.name == "wandb" and self.accelerator.is_main_process:
                        tracker.tracker.name = run
            yield
        finally:
            for tracker in trackers:
                tracker.finish()
            self.accelerator.trackers = []
