"""Steps of the optimizer: gradients of several batches, clipped together, change the weights."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from math import inf
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from meshgpt_pytorch.checkpoint.sharding import gather_shares
from meshgpt_pytorch.training.optimizer import load_optimizer_state


class Stepping:
    """Take steps with a model and an optimizer that accelerate prepared.

    Attributes:
        model, optimizer: as accelerate wrapped them.
    """

    model: Module
    optimizer: Any

    def __init__(
        self,
        accelerator: Accelerator,
        model: Module,
        optimizer: Optimizer,
        *,
        max_grad_norm: float | None,
    ) -> None:
        """Give each process the main one's weights, and let accelerate prepare the model.

        Args:
            accelerator: has not prepared anything yet.
            model: on its device.
            optimizer: of its parameters.
            max_grad_norm: of all parameters together; None for no clipping.
        """
        self.accelerator = accelerator
        self.max_grad_norm = max_grad_norm
        # processes may have drawn other weights, and not every way of sharing them looks
        for tensor in (*model.parameters(), *model.buffers()):
            broadcast(tensor.data)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Run one batch of a step; processes exchange gradients in the last one only."""
        return nullcontext() if is_last else self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss to those of the batches before."""
        self.accelerator.backward(loss)

    def clip_gradients(self) -> Tensor:
        """Return the norm of the gradient, a scalar, as it was before it was clipped."""
        limit = inf if self.max_grad_norm is None else self.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        whole: Tensor = gather_shares(torch.as_tensor(norm))
        return whole

    def step(self, *, is_finite: bool) -> bool:
        """Change the weights if loss and gradient are finite; return whether that was done."""
        # a scaler of half precision skips by itself, and has to see why
        if is_finite or self.accelerator.scaler is not None:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return is_finite and not self.accelerator.optimizer_step_was_skipped

    def take_up_weights(self) -> None:
        """Go on from the weights that the model has now."""

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state in one piece; to be called by every process."""
        state: dict[str, Any] = gather_shares(self.optimizer.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, of this or any other way to take steps.

        Warns:
            UserWarning: this run was told another weight decay.
        """
        load_optimizer_state(self.optimizer, state)
