"""Steps of DeepSpeed (ZeRO): each process has a share of the moments, and updates its share.

Rajbhandari et al. (2020), ZeRO: Memory Optimizations Toward Training Trillion Parameter Models.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import compare_versions
from torch import Tensor, optim
from torch.nn import Module, Parameter
from torch.optim import Optimizer

from meshgpt_pytorch.training.optimizer import load_optimizer_state
from meshgpt_pytorch.training.stepping import Stepping

# the first version that was tried: float32 steps that are not finite are skipped in it
OLDEST_VERSION = "0.19.8"

# what they do to a weight does not depend on its shape, nor on other weights
ELEMENTWISE = (
    optim.Adadelta,
    optim.Adam,
    optim.Adamax,
    optim.AdamW,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
    optim.SGD,
)


def require_zero(accelerator: Accelerator, *, may_skip_parameters: bool) -> None:
    """Check that accelerate's configuration of DeepSpeed is one that keeps the trainers' promises.

    Args:
        accelerator: configured for DeepSpeed.
        may_skip_parameters: whether a step may leave parameters without a gradient.

    Raises:
        RuntimeError: an old version, or a setting with which a step or a checkpoint would be
            another than the same run's without DeepSpeed.
    """
    if compare_versions("deepspeed", "<", OLDEST_VERSION):
        raise RuntimeError(
            f"deepspeed must be {OLDEST_VERSION} or newer, whose steps leave the weights alone "
            f"when the gradient is not finite; pip install -U deepspeed"
        )
    plugin = accelerator.state.deepspeed_plugin
    config = plugin.deepspeed_config
    zero = config["zero_optimization"]
    offloaded = [
        name
        for name in ("offload_optimizer", "offload_param")
        if (zero.get(name) or {}).get("device", "none") != "none"
    ]
    own = [name for name in ("optimizer", "scheduler") if name in config]
    checks = (
        (
            zero["stage"] in (1, 2),
            f"zero_stage 1 or 2, got {zero['stage']}: 0 is distributed_type MULTI_GPU, and to "
            f"share the weights too is distributed_type FSDP",
        ),
        (not offloaded, f"nothing offloaded, got {offloaded}; leave it out"),
        (
            accelerator.mixed_precision == "no",
            f"mixed_precision 'no', got {accelerator.mixed_precision!r}, for which it rounds the "
            f"weights and codebooks themselves; distributed_type MULTI_GPU or FSDP keep them in "
            f"float32",
        ),
        (
            plugin.gradient_accumulation_steps in ("auto", 1),
            f"gradient_accumulation_steps left out, got {plugin.gradient_accumulation_steps}; "
            f"pass grad_accum_every to the trainer",
        ),
        (
            not may_skip_parameters,
            "every parameter in every step, got quantizer_warmup_steps, which leave some out; it "
            "would change them all the same",
        ),
        (not own, f"no {' and no '.join(own)} of its own; they are arguments of the trainer"),
    )
    wrong = [message for is_right, message in checks if not is_right]
    if wrong:
        raise RuntimeError(f"the trainers need DeepSpeed with {'; with '.join(wrong)}")


class ZeroStepping(Stepping):
    """Take steps with DeepSpeed's engine, ZeRO stage 1 or 2, in float32.

    The engine keeps the weights of each parameter group in one row, of which each process updates
    its part. accelerate would take a step in each backward pass; here the engine is asked for one
    when the loop wants it. It skips a step by itself if the gradient is not finite.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: Module,
        optimizer: Optimizer,
        *,
        max_grad_norm: float | None,
        batch_size: int,
    ) -> None:
        """Build the engine; see ``Stepping``.

        Args:
            accelerator: has not prepared anything yet.
            model: on its device.
            optimizer: of its parameters.
            max_grad_norm: of all parameters together; None for no clipping.
            batch_size: for each process; the engine wants to know.

        Raises:
            ValueError: an optimizer to which the shape of a weight matters, or with a group that
                is empty; another norm to clip at in accelerate's configuration.
        """
        if type(optimizer) not in ELEMENTWISE:
            raise ValueError(
                f"DeepSpeed puts weights in one row, so the optimizer must be one of "
                f"{[kind.__name__ for kind in ELEMENTWISE]}, got {type(optimizer).__name__}; "
                f"with another use distributed_type MULTI_GPU or FSDP"
            )
        plugin = accelerator.state.deepspeed_plugin
        if plugin.gradient_clipping not in ("auto", None, max_grad_norm):
            raise ValueError(
                f"max_grad_norm must be that of accelerate's configuration, got {max_grad_norm} "
                f"and gradient_clipping {plugin.gradient_clipping}; leave gradient_clipping out"
            )
        plugin.deepspeed_config.update(
            gradient_clipping=max_grad_norm or 0.0,
            gradient_accumulation_steps=1,
            train_micro_batch_size_per_gpu=batch_size,
            train_batch_size=batch_size * accelerator.num_processes,
        )
        self.parameters: list[list[Parameter]] = [
            list(group["params"]) for group in optimizer.param_groups
        ]
        # it would throw the group out, which schedules and checkpoints count
        if not all(self.parameters):
            raise ValueError(
                "each of the optimizer's groups must have parameters for DeepSpeed, got one without"
                "; leave out omit_gammas_and_betas_from_wd, or use distributed_type MULTI_GPU or "
                "FSDP"
            )
        super().__init__(accelerator, model, optimizer, max_grad_norm=max_grad_norm)
        self.base = optimizer
        self.engine: Any = self.model

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Tell the engine whether the batch is the last one of its step."""
        self.engine.set_gradient_accumulation_boundary(is_last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss, and make it as little finite as the loss.

        The engine looks at the gradient alone when it decides whether to skip a step.
        """
        factor = torch.where(loss.detach().isfinite(), 1.0, torch.nan)
        self.engine.backward(loss * factor, scale_wrt_gas=False)

    def clip_gradients(self) -> Tensor:
        """Return the norm of the gradient; the engine clips in its step."""
        return torch.as_tensor(self.engine.optimizer.scaled_global_norm())

    def step(self, *, is_finite: bool) -> bool:
        """Change the weights, unless the engine finds that the gradient is not finite."""
        self.engine.step()
        is_taken = bool(self.engine.was_step_applied())
        assert is_finite or not is_taken, "a loss that is not finite has such a gradient"
        return is_finite and is_taken

    def take_up_weights(self) -> None:
        """Copy the weights to the rows that the engine updates."""
        self.engine.optimizer.refresh_fp32_params()

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state as torch has it, for whole weights, in every process."""
        state: dict[int, dict[str, Any]] = {}
        groups: list[dict[str, Any]] = []
        settings = self.base.state_dict()["param_groups"]
        for each, (row, parameters) in zip(settings, self._rows(), strict=True):
            start = sum(len(group["params"]) for group in groups)
            numbers = list(range(start, start + len(parameters)))
            groups.append({**each, "params": numbers})
            for name, value in self.base.state.get(row, {}).items():
                is_row = isinstance(value, Tensor) and value.shape == row.shape
                # a counter is the row's; each parameter gets its own, to count on alone
                values = (
                    self._gather(value, parameters)
                    if is_row
                    else [deepcopy(value) for _ in numbers]
                )
                for number, item in zip(numbers, values, strict=True):
                    state.setdefault(number, {})[name] = item
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take this process's part of a whole state; see ``Stepping``."""
        rows = {}
        groups: list[dict[str, Any]] = []
        for number, (settings, (row, parameters)) in enumerate(
            zip(state["param_groups"], self._rows(), strict=True)
        ):
            items = [state["state"].get(each, {}) for each in settings["params"]]
            names = dict.fromkeys(name for item in items for name in item)
            groups.append({**settings, "params": [number]})
            rows[number] = {
                name: self._take_part([item.get(name) for item in items], parameters, row)
                for name in names
            }
        load_optimizer_state(self.base, {"state": rows, "param_groups": groups})

    def _rows(self) -> list[tuple[Tensor, list[Parameter]]]:
        """Return this process's part of each group's row, and the parameters in the row."""
        rows = [group["params"][0] for group in self.base.param_groups]
        return list(zip(rows, self.parameters, strict=True))

    def _gather(self, row: Tensor, parameters: Sequence[Parameter]) -> list[Tensor]:
        """Put together what processes have of a row, and cut it into one tensor a parameter."""
        whole = []
        for parameter in parameters:
            tensor = torch.zeros(parameter.numel(), dtype=row.dtype, device=row.device)
            place = own_place(parameter)
            if place is not None:
                in_tensor, in_row = place
                tensor[in_tensor] = row[in_row]
            whole.append(tensor)
        summed = self.accelerator.reduce(torch.cat(whole), reduction="sum")
        pieces = summed.split([parameter.numel() for parameter in parameters])
        return [
            piece.view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)
        ]

    def _take_part(
        self, values: Sequence[Any], parameters: Sequence[Parameter], row: Tensor
    ) -> Any:
        """Return this process's part of one item of the state; what is no weight's, as it is."""
        first = next(value for value in values if value is not None)
        if not all(
            value is None or (isinstance(value, Tensor) and value.shape == parameter.shape)
            for value, parameter in zip(values, parameters, strict=True)
        ):
            return first
        part = torch.zeros_like(row, dtype=first.dtype)
        for value, parameter in zip(values, parameters, strict=True):
            place = own_place(parameter)
            if value is not None and place is not None:
                in_tensor, in_row = place
                part[in_row] = value.flatten()[in_tensor].to(part.device)
        return part


def own_place(parameter: Parameter) -> tuple[slice, slice] | None:
    """Return which numbers of a parameter this process updates, and where in its row they are."""
    mapping = getattr(parameter, "_hp_mapping", None)
    if mapping is None:
        return None
    places = (mapping.lp_fragment_address, mapping.hp_fragment_address)
    in_tensor, in_row = (slice(each.start, each.start + each.numel) for each in places)
    return in_tensor, in_row
