"""Set up accelerate: devices, processes, mixed precision and trackers."""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    broadcast_object_list,
    is_wandb_available,
)
from torch.nn import Module
from torch.optim import Optimizer

from meshgpt_pytorch.training.stepping import Stepping
from meshgpt_pytorch.training.zero import ZeroStepping, require_zero

COMPILER = "inductor"


def build_accelerator(
    accelerator_kwargs: Mapping[str, Any] | None,
    *,
    use_wandb_tracking: bool,
    find_unused_parameters: bool = False,
) -> Accelerator:
    """Make an accelerator.

    Args:
        accelerator_kwargs: arguments of ``accelerate.Accelerator``; left as they are.
        use_wandb_tracking: log with wandb.
        find_unused_parameters: let processes look for parameters that a step left out, which
            costs time; without it such a step is an error.

    Warns:
        UserWarning: accelerate was told to share the weights (FSDP), or to train in float16, and
            does not on the CPU.

    Raises:
        ImportError: wandb is asked for and not installed.
        RuntimeError: several processes were started that know nothing of each other, or that work
            together in a way that the trainers do not support.
        ValueError: accelerate was told to accumulate gradients, here or in the environment.
    """
    kwargs = dict(accelerator_kwargs or {})
    if use_wandb_tracking:
        if not is_wandb_available():
            raise ImportError(
                "use_wandb_tracking=True needs wandb, which is not installed; "
                "pip install 'meshgpt-pytorch[tracking]'"
            )
        kwargs["log_with"] = "wandb"
    if find_unused_parameters:
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        kwargs.setdefault("kwargs_handlers", [unused])
    accelerator = Accelerator(**kwargs)
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"accelerate's gradient_accumulation_steps must be left out, got "
            f"{accelerator.gradient_accumulation_steps}, by which it would divide the gradients; "
            f"pass grad_accum_every to the trainer"
        )
    check_processes(accelerator, may_skip_parameters=find_unused_parameters)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        warnings.warn(
            "accelerate uses float16 only on GPUs, and trains in float32 on cpu; pass "
            "mixed_precision='bf16' for half precision there",
            stacklevel=2,
        )
    return accelerator


def check_processes(accelerator: Accelerator, *, may_skip_parameters: bool = False) -> None:
    """Check how accelerate lets processes work together; see `build_accelerator`."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes == 1 < started:
        raise RuntimeError(
            f"{started} processes were started, and accelerate found no device on which they work "
            f"together: each would train a model of its own and write over the others' "
            f"checkpoints; without GPUs pass accelerator_kwargs={{'cpu': True}}"
        )
    kind = accelerator.distributed_type
    if kind == DistributedType.MEGATRON_LM:
        raise RuntimeError(
            f"the trainers must take the optimizer's steps and save its state themselves, got "
            f"{kind.value}, which does both in its own engine; share the weights with FSDP: "
            f"distributed_type: FSDP and fsdp_version: 2 in accelerate's configuration"
        )
    if kind == DistributedType.DEEPSPEED:
        require_zero(accelerator, may_skip_parameters=may_skip_parameters)
    if kind == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2 or plugin.cpu_ram_efficient_loading:
            raise RuntimeError(
                f"sharing the weights needs fsdp_version 2, since 1 renames and flattens them, and "
                f"fsdp_cpu_ram_efficient_loading false, since accelerate fails on the models' "
                f"buffers with it, got {plugin.fsdp_version} and "
                f"{plugin.cpu_ram_efficient_loading}; see examples/accelerate_configs/fsdp.yaml"
            )
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and kind != DistributedType.FSDP:
        warnings.warn(
            f"accelerate was told to share the weights (FSDP), and does not on {accelerator.device}"
            f": each process has the whole model ({kind.value})",
            stacklevel=2,
        )


def prepare_stepping(
    accelerator: Accelerator,
    model: Module,
    optimizer: Optimizer,
    *,
    max_grad_norm: float | None,
    batch_size: int,
) -> Stepping:
    """Prepare model and optimizer for steps in the way that accelerate was configured for."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return ZeroStepping(
            accelerator, model, optimizer, max_grad_norm=max_grad_norm, batch_size=batch_size
        )
    return Stepping(accelerator, model, optimizer, max_grad_norm=max_grad_norm)


def common_seed(seed: int | None) -> int:
    """Return the given seed, or one drawn from torch's generator, alike in all processes."""
    if seed is not None:
        return seed
    drawn = [int(torch.randint(2**31, ()).item())]
    return int(broadcast_object_list(drawn)[0])


def compile_parts(parts: Iterable[Module]) -> None:
    """Compile parts of a model in place, for lengths that change; names of weights stay.

    What reads values or derives graphs stays outside of the parts, so that each is one graph.
    """
    for part in parts:
        part.compile(dynamic=True, backend=COMPILER)


@contextmanager
def without_compilation() -> Iterator[None]:
    """Run a block as if nothing was compiled.

    In eval mode, and with the keys and values of generation, parts would be compiled anew, which
    takes minutes for what runs seldom.
    """
    # torch has it from 2.6 on
    if hasattr(torch.compiler, "set_stance"):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield
