"""An exponential moving average of a model's weights (ema-pytorch)."""

from collections.abc import Mapping
from typing import Any

import torch
from ema_pytorch import EMA
from torch import Tensor

from meshgpt_pytorch.checkpoint import SavedModule


class AveragedModel:
    """Keep a copy of a model whose weights are the moving average of the model's.

    ema-pytorch leaves out what is not a float, so that a codebook's flag "initialised" stayed
    False in the copy, which then threw its codebook away; such buffers are copied here. Where a
    flag changes, the buffers beside it were just filled, and are copied too: an average with what
    was there before would be of nothing.
    """

    def __init__(self, model: SavedModule, ema_kwargs: Mapping[str, Any]) -> None:
        """Copy the model, to the device where it is.

        Args:
            model: model in training.
            ema_kwargs: arguments of ``ema_pytorch.EMA``, apart from the model.
        """
        self.online_model = model
        self.ema = EMA(model, **{**ema_kwargs, "include_online_model": False})

    @property
    def model(self) -> SavedModule:
        """The averaged model."""
        averaged: SavedModule = self.ema.ema_model
        return averaged

    @torch.no_grad()
    def update(self) -> None:
        """Take one step of the model into the average."""
        self.ema.update()
        pairs = zip(self.model.modules(), self.online_model.modules(), strict=True)
        for averaged, online in pairs:
            update_buffers(
                dict(averaged.named_buffers(recurse=False)),
                dict(online.named_buffers(recurse=False)),
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counters; the weights are saved with the model."""
        return {"step": self.ema.step, "initted": self.ema.initted}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the counters."""
        self.ema.step.copy_(state["step"])
        self.ema.initted.copy_(state["initted"])


def update_buffers(averaged: Mapping[str, Tensor], online: Mapping[str, Tensor]) -> None:
    """Copy what is no float; and the floats too, where a flag differs, without asking the host."""
    flags = [name for name, buffer in averaged.items() if buffer.dtype == torch.bool]
    changed = [(averaged[name] != online[name]).any() for name in flags]
    for name, buffer in averaged.items():
        if not buffer.is_floating_point() and not buffer.is_complex():
            buffer.copy_(online[name])
        elif changed:
            buffer.copy_(torch.where(torch.stack(changed).any(), online[name], buffer))
