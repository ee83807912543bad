"""AdamW with weight decay on matrices only, and the learning rate of each step."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch.nn import Module
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from meshgpt_pytorch.training.options import SchedulerFactory

DEFAULT_BETAS = (0.9, 0.99)


def build_optimizer(
    model: Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    optimizer_kwargs: Mapping[str, Any] | None = None,
) -> AdamW:
    """Make AdamW over the parameters that are not frozen.

    Args:
        model: its parameters with ``requires_grad`` are trained.
        learning_rate: base of the schedule.
        weight_decay: applied to matrices (2 axes and more); gains and biases are left alone.
        optimizer_kwargs: further arguments of ``torch.optim.AdamW``, and
            ``omit_gammas_and_betas_from_wd``: False decays gains and biases too. The betas are
            (0.9, 0.99) by default.

    Raises:
        ValueError: an argument that AdamW does not have, or that the trainer itself sets; or no
            parameter to train.
    """
    optimizer_kwargs = {"betas": DEFAULT_BETAS, **(optimizer_kwargs or {})}
    only_matrices = optimizer_kwargs.pop("omit_gammas_and_betas_from_wd", True)
    known = set(inspect.signature(AdamW).parameters) - {"params", "lr", "weight_decay"}
    unknown = sorted(optimizer_kwargs.keys() - known)
    if unknown:
        raise ValueError(
            f"optimizer_kwargs must be among {sorted(known)}, got {unknown}; learning_rate and "
            f"weight_decay are arguments of the trainer"
        )

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("the model has no parameter with requires_grad=True, so none to train")
    decayed = [parameter for parameter in trained if parameter.ndim >= 2 or not only_matrices]
    others = [parameter for parameter in trained if parameter.ndim < 2 and only_matrices]
    # two groups at all times, so that the states of any two runs have one form
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return AdamW(groups, lr=learning_rate, weight_decay=weight_decay, **optimizer_kwargs)


class LearningRate:
    """Set the learning rate of each step: a torch scheduler's, times a linear warm-up.

    The scheduler counts from the first step and never sees the warm-up. Step i (from 0) of the
    warm-up has the factor (i + 1) / warmup_steps, so that its last step has the full rate.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        scheduler: SchedulerFactory | None = None,
        scheduler_kwargs: Mapping[str, Any] | None = None,
        warmup_steps: int = 0,
    ) -> None:
        """Attach to an optimizer and set the rate of its first step.

        Args:
            optimizer: all its groups are scheduled.
            scheduler: class of torch.optim.lr_scheduler; a constant rate if None.
            scheduler_kwargs: its arguments, apart from the optimizer.
            warmup_steps: steps until the full rate; 0 for none.

        Raises:
            ValueError: a scheduler that waits for a metric.
        """
        if scheduler is ReduceLROnPlateau:
            raise ValueError(
                "scheduler must depend on the step alone, got ReduceLROnPlateau, which waits for a "
                "metric; choose another class of torch.optim.lr_scheduler"
            )
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.steps_done = 0
        self.base_rate = float(optimizer.param_groups[0]["lr"])
        self.scheduler: LRScheduler | None = (
            None if scheduler is None else scheduler(optimizer, **(scheduler_kwargs or {}))
        )
        self.full_rates = [group["lr"] for group in optimizer.param_groups]
        self._apply_warmup()

    @property
    def value(self) -> float:
        """The learning rate of the coming step (of the first group)."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        """Move on to the next step's rate."""
        self.steps_done += 1
        if self.scheduler is not None:
            # many schedulers multiply the rate they find: let them find their own
            self._set_rates(self.full_rates)
            self.scheduler.step()
            self.full_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._apply_warmup()

    def _apply_warmup(self) -> None:
        if self.steps_done < self.warmup_steps:
            factor = (self.steps_done + 1) / self.warmup_steps
            self._set_rates([rate * factor for rate in self.full_rates])
        else:
            self._set_rates(self.full_rates)

    def _set_rates(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to go on."""
        return {
            "steps_done": self.steps_done,
            "base_rate": self.base_rate,
            "full_rates": self.full_rates,
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved rate and place in the schedule; the warm-up is that of this run.

        Warns:
            UserWarning: this run was told another learning rate.
        """
        if state["base_rate"] != self.base_rate:
            warn_of_setting("learning_rate", state["base_rate"], self.base_rate)
        self.steps_done = state["steps_done"]
        self.full_rates = list(state["full_rates"])
        if self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self._apply_warmup()


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load moments and settings of a saved optimizer.

    Args:
        optimizer: made by `build_optimizer`, perhaps wrapped by accelerate.
        state: its saved state dict.

    Warns:
        UserWarning: this run was told another weight decay.
    """
    wanted = optimizer.param_groups[0]["weight_decay"]
    optimizer.load_state_dict(dict(state))
    loaded = optimizer.param_groups[0]["weight_decay"]
    if loaded != wanted:
        warn_of_setting("weight_decay", loaded, wanted)


def warn_of_setting(name: str, loaded: float, wanted: float) -> None:
    """Say that a checkpoint's setting goes before the trainer's."""
    warnings.warn(
        f"training goes on with the checkpoint's {name} {loaded:g}, not the trainer's {wanted:g}; "
        f"to start with a new one, load the model alone: model.load(folder / 'model.safetensors')",
        stacklevel=4,
    )
