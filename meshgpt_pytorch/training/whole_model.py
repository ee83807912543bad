"""The model in training as one piece, also where processes share its weights (FSDP)."""

from copy import deepcopy

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from meshgpt_pytorch.checkpoint import SavedModule
from meshgpt_pytorch.checkpoint.sharding import gather_shares


class WholeModel:
    """The model itself; or a copy on the main process, where each process has a share of it.

    A model whose weights are shared runs, and can be saved, only by all processes together. The
    copy is for what the main process does alone: average, validate, sample, save.
    """

    def __init__(self, accelerator: Accelerator, model: SavedModule) -> None:
        """Copy the model if it is about to be shared.

        Args:
            accelerator: has not prepared the model yet.
            model: on its device.
        """
        self.trained = model
        self.is_shared = accelerator.distributed_type == DistributedType.FSDP
        self.copy: SavedModule | None = None
        if self.is_shared and accelerator.is_main_process:
            self.copy = deepcopy(model)

    @property
    def model(self) -> SavedModule:
        """The model in one piece; in other processes than the main one, what there is of it."""
        return self.trained if self.copy is None else self.copy

    @torch.no_grad()
    def gather(self) -> None:
        """Bring a copy up to date; to be called by every process."""
        if not self.is_shared:
            return
        whole = gather_shares(self.trained.state_dict())
        if self.copy is not None:
            self.copy.load_state_dict(whole)
