"""The optimizer, with weight decay on matrices only, and the learning rate of each step."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch.nn import Module
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from meshgpt_pytorch.checkpoint.sharding import share_as
from meshgpt_pytorch.training.options import OptimizerFactory, SchedulerFactory

DEFAULT_BETAS = (0.9, 0.99)


def build_optimizer(
    model: Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    optimizer_kwargs: Mapping[str, Any] | None = None,
    optimizer: Optimizer | OptimizerFactory | None = None,
) -> Optimizer:
    """Make an optimizer over the parameters that are not frozen, or check a ready one.

    Args:
        model: its parameters with ``requires_grad`` are trained.
        learning_rate: base of the schedule.
        weight_decay: applied to matrices (2 axes and more); gains and biases are left alone.
        optimizer_kwargs: further arguments of the optimizer's class, and
            ``omit_gammas_and_betas_from_wd``: False decays gains and biases too. The betas of the
            default class are (0.9, 0.99) unless given.
        optimizer: class of an optimizer, ``torch.optim.AdamW`` by default; or a ready optimizer of
            the model's parameters, whose own learning rate and weight decay count.

    Raises:
        ValueError: an argument that the class does not have, or that the trainer itself sets; no
            parameter to train; an optimizer of another model, or one that asks for a closure.
    """
    if isinstance(optimizer, Optimizer):
        return check_ready_optimizer(optimizer, model, optimizer_kwargs)
    build = AdamW if optimizer is None else optimizer
    defaults = {"betas": DEFAULT_BETAS} if optimizer is None else {}
    optimizer_kwargs = {**defaults, **(optimizer_kwargs or {})}
    only_matrices = optimizer_kwargs.pop("omit_gammas_and_betas_from_wd", True)
    parameters = inspect.signature(build).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    known = set(parameters) - {"params", "lr", "weight_decay"}
    unknown = sorted(optimizer_kwargs.keys() - known)
    if unknown and not (takes_any and not {"lr", "weight_decay"} & set(unknown)):
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
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others}]
    if takes_any or "weight_decay" in parameters:
        groups[1]["weight_decay"] = 0.0
        optimizer_kwargs["weight_decay"] = weight_decay
    elif weight_decay:
        raise ValueError(
            f"{getattr(build, '__name__', build)} has no weight decay, got weight_decay="
            f"{weight_decay}; pass 0, or another optimizer"
        )
    return require_no_closure(build(groups, lr=learning_rate, **optimizer_kwargs))


def check_ready_optimizer(
    optimizer: Optimizer, model: Module, optimizer_kwargs: Mapping[str, Any] | None
) -> Optimizer:
    """Check that an optimizer made by the user trains the model."""
    kind = type(optimizer).__name__
    if optimizer_kwargs:
        raise ValueError(
            f"optimizer_kwargs {dict(optimizer_kwargs)} are for a class of optimizers, got a ready "
            f"{kind}; pass optimizer={kind}, or set them where you build it"
        )
    own = set(model.parameters())
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(parameter not in own for parameter in trained):
        raise ValueError(
            "the optimizer must be over parameters of the model to train, got parameters of "
            "another; build it with model.parameters(), after the model was loaded or copied"
        )
    return require_no_closure(optimizer)


def require_no_closure(optimizer: Optimizer) -> Optimizer:
    """Refuse optimizers that run the model themselves, such as LBFGS."""
    # the class, since schedulers wrap the method of an object
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f"the optimizer must step from gradients alone, got {type(optimizer).__name__}, which "
            f"runs the model itself in a closure; choose another class of torch.optim"
        )
    return optimizer


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

    def skip_to(self, step: int) -> None:
        """Move on to the rate of a step that was reached without this schedule."""
        with warnings.catch_warnings():
            # torch warns of a schedule that runs ahead of its optimizer, which is what is wanted
            warnings.simplefilter("ignore")
            while self.steps_done < step:
                self.step()

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

        Another schedule than the saved one is followed from its own rate at the saved step.

        Warns:
            UserWarning: this run was told another learning rate or schedule.
        """
        saved, own = map(schedule_settings, (state["scheduler"], self.state_dict()["scheduler"]))
        # a schedule that is added starts where the rate is
        if saved is not None and saved != own:
            warnings.warn(
                f"training goes on with the trainer's schedule {own}, from its step "
                f"{state['steps_done']}, not with the checkpoint's {saved}",
                stacklevel=4,
            )
            self.skip_to(state["steps_done"])
            self._apply_warmup()
            return
        if state["base_rate"] != self.base_rate:
            warn_of_setting("learning_rate", state["base_rate"], self.base_rate)
        self.steps_done = state["steps_done"]
        self.full_rates = list(state["full_rates"])
        if self.scheduler is not None and state["scheduler"] is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self._apply_warmup()


def schedule_settings(state: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what a scheduler was told, out of its state: neither rates nor the place in it."""
    if state is None:
        return None
    moving = {"base_lrs", "last_epoch", "T_cur", "T_i"}
    return {
        name: value
        for name, value in state.items()
        if name not in moving and not name.startswith("_")
    }


def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load moments and settings of a saved optimizer.

    Args:
        optimizer: made by `build_optimizer`, perhaps wrapped by accelerate.
        state: its saved state dict.

    Warns:
        UserWarning: this run was told another weight decay.
    """
    wanted = optimizer.param_groups[0].get("weight_decay", 0.0)
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    moments = {
        number: {name: share_as(item, parameters[number]) for name, item in items.items()}
        for number, items in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
    loaded = optimizer.param_groups[0].get("weight_decay", 0.0)
    if loaded != wanted:
        warn_of_setting("weight_decay", loaded, wanted)


def warn_of_setting(name: str, loaded: float, wanted: float) -> None:
    """Say that a checkpoint's setting goes before the trainer's."""
    warnings.warn(
        f"training goes on with the checkpoint's {name} {loaded:g}, not the trainer's {wanted:g}; "
        f"to start with a new one, load the model alone: model.load(folder / 'model.safetensors')",
        stacklevel=4,
    )
