"""Every file format of weights."""

from meshgpt_pytorch.checkpoint.atomic import atomic_path, clean_up, discard, recover
from meshgpt_pytorch.checkpoint.errors import CheckpointError
from meshgpt_pytorch.checkpoint.files import load_training_state, save_training_state
from meshgpt_pytorch.checkpoint.hub import CONFIG_FILE, write_config
from meshgpt_pytorch.checkpoint.module import LoadReport, SavedModule
from meshgpt_pytorch.checkpoint.upstream import is_upstream_file, read_upstream_file

__all__ = [
    "CONFIG_FILE",
    "CheckpointError",
    "LoadReport",
    "SavedModule",
    "atomic_path",
    "clean_up",
    "discard",
    "is_upstream_file",
    "load_training_state",
    "read_upstream_file",
    "recover",
    "save_training_state",
    "write_config",
]
