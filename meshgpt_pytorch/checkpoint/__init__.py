"""Every file format of weights."""

from meshgpt_pytorch.checkpoint.atomic import atomic_path
from meshgpt_pytorch.checkpoint.files import (
    CheckpointError,
    load_training_state,
    save_training_state,
)
from meshgpt_pytorch.checkpoint.module import LoadReport, SavedModule

__all__ = [
    "CheckpointError",
    "LoadReport",
    "SavedModule",
    "atomic_path",
    "load_training_state",
    "save_training_state",
]
