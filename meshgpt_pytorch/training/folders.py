"""A trainer's checkpoint: a folder with models, the state of training and the history."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from meshgpt_pytorch.checkpoint import (
    CONFIG_FILE,
    CheckpointError,
    SavedModule,
    atomic_path,
    clean_up,
    discard,
    load_training_state,
    recover,
    save_training_state,
    write_config,
)
from meshgpt_pytorch.training.options import Record

FORMAT_VERSION = 1
NAMES = ("latest", "best")


class Stateful(Protocol):
    """A part of a trainer that goes on from a saved state."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers, numbers and tensors."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Restore what `state_dict` returned."""


class Checkpoint(NamedTuple):
    """A folder, and what is in it beside models."""

    folder: Path
    state: dict[str, Any]
    history: list[Record]


def save_checkpoint(
    path: str | PathLike[str],
    models: Mapping[str, SavedModule],
    state: Mapping[str, Any],
    history: list[Record],
    *,
    overwrite: bool = True,
) -> None:
    """Write a checkpoint folder in one step.

    Args:
        path: the folder.
        models: models by the name of their file; "model" is the one in training.
        state: plain containers, numbers and tensors.
        history: a record for each step.
        overwrite: whether a folder of that name is replaced.

    Raises:
        FileExistsError: the path exists and `overwrite` is False.
    """
    with atomic_path(path, overwrite=overwrite) as folder:
        folder.mkdir()
        for name, model in models.items():
            model.save(folder / f"{name}.safetensors")
        save_training_state(
            folder / "trainer_state.pt", {**state, "format_version": FORMAT_VERSION}
        )
        lines = "".join(f"{json.dumps(record)}\n" for record in history)
        (folder / "history.jsonl").write_text(lines)
        more = {"step": state["step"], "val_loss": latest_validation(history)}
        write_config(folder, {**models["model"].summary(), **more})


def latest_validation(history: list[Record]) -> float | None:
    """Return the validation loss that was measured last, if it is a number at all."""
    losses = [record["val_loss"] for record in history if "val_loss" in record]
    return losses[-1] if losses and math.isfinite(losses[-1]) else None


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read what is in a checkpoint folder beside models.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: it is no folder, or a file in it is damaged or of a newer version.
    """
    if not folder.exists():
        raise FileNotFoundError(f"no checkpoint at {folder}")
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} must be the folder of a checkpoint, got a file; a model alone is loaded "
            f"with model.load or init_and_load"
        )
    state = load_training_state(folder / "trainer_state.pt")
    version = state.get("format_version") if isinstance(state, dict) else None
    if not isinstance(version, int):
        raise CheckpointError(
            f"{folder / 'trainer_state.pt'} must hold the state of a trainer, got "
            f"{sorted(state) if isinstance(state, dict) else type(state).__name__}; resume from "
            f"another checkpoint"
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format version {version}, wanted up to {FORMAT_VERSION}; upgrade "
            f"meshgpt-pytorch"
        )
    try:
        lines = (folder / "history.jsonl").read_text().splitlines()
        history = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'history.jsonl'} must hold a JSON record a line, got {error}; resume from "
            f"another checkpoint"
        ) from error
    return Checkpoint(folder, state, history)


class CheckpointFolder:
    """The checkpoints that a trainer writes as it goes: which there are, and which are kept.

    One trainer at a time may write checkpoints of one name into a folder.
    """

    def __init__(self, folder: Path, name: str, *, keep: int | None = None) -> None:
        """Name the folder; nothing is read or written yet.

        Args:
            folder: where the checkpoints are.
            name: what they are called, ``<name>.ckpt.<step>``.
            keep: how many of the newest are kept beside the best; None keeps all.
        """
        self.folder = folder
        self.prefix = f"{name}.ckpt."
        self.keep = keep

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint after a step."""
        return self.folder / f"{self.prefix}{step}"

    def steps(self) -> list[int]:
        """List the steps that there are checkpoints of, in order."""
        paths = self.folder.glob(f"{self.prefix}*")
        numbers = [path.name.removeprefix(self.prefix) for path in paths if path.is_dir()]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def put_in_order(self, which: str | PathLike[str] = "latest") -> None:
        """Put back or delete what a trainer that was killed while saving left behind.

        Args:
            which: a checkpoint that may lie elsewhere, or 'latest' or 'best'.
        """
        if which in NAMES:
            clean_up(self.folder, self.prefix)
        else:
            recover(which)

    def latest(self) -> Path:
        """Return the checkpoint of the highest step.

        Raises:
            FileNotFoundError: there is none.
        """
        steps = self.steps()
        if not steps:
            raise FileNotFoundError(
                f"no checkpoint {self.prefix}<step> in {self.folder}; train first, or name a path"
            )
        return self.path(steps[-1])

    def best(self) -> Path:
        """Return the checkpoint with the lowest validation loss, the earlier of equal ones.

        Raises:
            FileNotFoundError: there is none with a validation loss.
        """
        losses = dict(self._validated())
        if not losses:
            raise FileNotFoundError(
                f"no checkpoint {self.prefix}<step> in {self.folder} has a validation loss; give "
                f"the trainer a val_dataset, or load('latest')"
            )
        return min(losses, key=lambda path: losses[path])

    def _validated(self) -> Iterator[tuple[Path, float]]:
        """Yield the checkpoints with a validation loss, in order."""
        for path in map(self.path, self.steps()):
            # one that a person put there or edited must not end a run
            with suppress(OSError, ValueError, TypeError, KeyError):
                loss = json.loads((path / CONFIG_FILE).read_text())["val_loss"]
                if loss is not None:
                    yield path, float(loss)

    def prune(self) -> None:
        """Delete all checkpoints but the newest ones and the best."""
        if self.keep is None:
            return
        paths = [self.path(step) for step in self.steps()]
        kept = set(paths[-self.keep :])
        if any(True for _ in self._validated()):
            kept.add(self.best())
        for path in paths:
            if path not in kept:
                discard(path)

    def find(self, which: str | PathLike[str]) -> Path:
        """Return the path of a checkpoint: 'latest', 'best', or a path as it is.

        Raises:
            FileNotFoundError: there is no latest or best one.
        """
        if which in NAMES:
            return self.latest() if which == "latest" else self.best()
        return Path(which)
