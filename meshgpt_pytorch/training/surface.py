"""What users reach for on a trainer, beside training itself."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate import Accelerator
from torch.nn import Module

from meshgpt_pytorch.checkpoint import SavedModule
from meshgpt_pytorch.training.averaging import AveragedModel
from meshgpt_pytorch.training.options import Record
from meshgpt_pytorch.training.plots import plot_history
from meshgpt_pytorch.training.reporting import Reporter
from meshgpt_pytorch.training.whole_model import WholeModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TrainerSurface:
    """Models, history, trackers and the place among processes of a trainer, which inherits it."""

    checkpoint_name: ClassVar[str]

    accelerator: Accelerator
    average: AveragedModel | None
    model: Module
    reporter: Reporter
    step: int
    whole: WholeModel

    @property
    def history(self) -> list[Record]:
        """One record of numbers for each step, from the first on."""
        return self.reporter.history

    @property
    def unwrapped_model(self) -> SavedModule:
        """The model itself, without what accelerate puts around it.

        Where processes share its weights (FSDP), the main process has it as it was when it was last
        saved, validated, sampled or trained to the end; the others have only their shares.
        """
        return self.whole.model

    @property
    def averaged_model(self) -> SavedModule:
        """The moving average of the model, where one is kept; else the model itself."""
        return self.unwrapped_model if self.average is None else self.average.model

    @property
    def device(self) -> torch.device:
        """Where the model is trained."""
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.accelerator.is_main_process

    @property
    def is_local_main(self) -> bool:
        """Whether this process is the first of its machine."""
        return self.accelerator.is_local_main_process

    def wait(self) -> None:
        """Wait for all processes."""
        self.accelerator.wait_for_everyone()

    def print(self, msg: str) -> None:
        """Write a line above the progress bar, from the main process."""
        self.reporter.say(msg)

    def log(self, **numbers: float) -> None:
        """Send numbers to the trackers, at the present step."""
        self.accelerator.log(numbers, step=self.step)

    def plot(self) -> "Figure":
        """Draw losses, accuracies and the learning rate; a notebook shows what is returned.

        Raises:
            RuntimeError: matplotlib is not installed.
            ValueError: nothing was trained yet.
        """
        return plot_history(self.history, title=self.checkpoint_name)

    def wandb_tracking(
        self, project: str, run: str | None = None, hps: Mapping[str, Any] | None = None
    ) -> AbstractContextManager[None]:
        """Track what is trained inside a ``with`` block in a wandb run.

        Args:
            project: wandb project.
            run: name of the run.
            hps: hyperparameters to store with the run.
        """
        return self.reporter.tracking(project, run, hps, kind="wandb")

    def tracking(
        self, project: str, hps: Mapping[str, Any] | None = None
    ) -> AbstractContextManager[None]:
        """Track inside a ``with`` block in all that ``accelerator_kwargs["log_with"]`` names."""
        return self.reporter.tracking(project, None, hps, kind=None)
