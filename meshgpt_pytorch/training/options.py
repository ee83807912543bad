"""What both trainers can be told, checked before anything is built."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Record = dict[str, float]
OptimizerFactory = Callable[..., Optimizer]
SchedulerFactory = Callable[..., LRScheduler]
StepHook = Callable[[Record], bool | None]


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """Options of a training run; the trainers' docstrings say what each means.

    Raises:
        ValueError: an option outside its range.
    """

    num_train_steps: int | None
    num_epochs: int | None
    batch_size: int
    grad_accum_every: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float | None
    optimizer: Optimizer | OptimizerFactory | None
    optimizer_kwargs: Mapping[str, Any] | None
    scheduler: SchedulerFactory | None
    scheduler_kwargs: Mapping[str, Any] | None
    warmup_steps: int
    ema_kwargs: Mapping[str, Any] | None
    accelerator_kwargs: Mapping[str, Any] | None
    val_every: int
    val_num_batches: int | None
    checkpoint_every: int
    checkpoint_folder: str | PathLike[str]
    data_kwargs: Sequence[str]
    use_wandb_tracking: bool
    progress: bool
    time_limit: float | None
    seed: int | None
    on_step: StepHook | None
    keep_checkpoints: int | None
    max_skipped_steps: int
    num_workers: int
    bucket_by_length: bool
    compile: bool
    sample_every: int | None
    num_samples: int

    def __post_init__(self) -> None:
        if (self.num_train_steps is None) == (self.num_epochs is None):
            raise ValueError(
                f"exactly one of num_train_steps and num_epochs must be given, got "
                f"{self.num_train_steps} and {self.num_epochs}"
            )
        counts = ("batch_size", "grad_accum_every", "val_every", "checkpoint_every")
        for name in (*counts, "max_skipped_steps", "num_samples"):
            self._require_positive(name)
        for name in ("num_train_steps", "num_epochs"):
            if getattr(self, name) is not None:
                self._require_positive(name)
        for name in (
            "val_num_batches",
            "max_grad_norm",
            "time_limit",
            "sample_every",
            "keep_checkpoints",
        ):
            if getattr(self, name) is not None:
                self._require_positive(name, remedy=" or None")
        for name in ("learning_rate", "weight_decay", "warmup_steps", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.scheduler is None and self.scheduler_kwargs:
            raise ValueError(
                f"scheduler_kwargs {dict(self.scheduler_kwargs)} need a scheduler, got None; pass "
                f"scheduler=, a class of torch.optim.lr_scheduler"
            )

    def _require_positive(self, name: str, remedy: str = "") -> None:
        if getattr(self, name) <= 0:
            raise ValueError(f"{name} must be above 0{remedy}, got {getattr(self, name)}")
