"""A trainer's checkpoint: a folder with models, the state of training and the history."""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from meshgpt_pytorch.checkpoint import (
    CheckpointError,
    SavedModule,
    atomic_path,
    load_training_state,
    save_training_state,
)
from meshgpt_pytorch.training.options import Record

FORMAT_VERSION = 1


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
        models: models by the name of their file.
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


def read_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """Read what is in a checkpoint folder beside models.

    Raises:
        FileNotFoundError: there is no such folder.
        CheckpointError: it is no folder, or a file in it is damaged or of a newer version.
    """
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"no checkpoint at {folder}")
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} must be the folder of a checkpoint, got a file; a model alone is loaded "
            f"with model.load or init_and_load"
        )
    state = load_training_state(folder / "trainer_state.pt")
    if state["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format version {state['format_version']}, wanted up to "
            f"{FORMAT_VERSION}; upgrade meshgpt-pytorch"
        )
    lines = (folder / "history.jsonl").read_text().splitlines()
    return Checkpoint(folder, state, [json.loads(line) for line in lines])
