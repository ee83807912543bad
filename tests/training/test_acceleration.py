"""How processes work together is checked before anything is trained."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin

from meshgpt_pytorch.training.acceleration import check_processes
from meshgpt_pytorch.training.zero import ZeroStepping


def test_processes_that_know_nothing_of_each_other_are_refused(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as accelerate and torchrun set it; without a GPU accelerate then sees one process in each
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"2 processes were started.*'cpu': True"):
        make_trainer(accelerator_kwargs={"cpu": False})


def test_accumulation_by_accelerate_is_refused(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = r"gradient_accumulation_steps must be left out, got 4.*pass grad_accum_every"
    with pytest.raises(ValueError, match=message):
        make_trainer(accelerator_kwargs={"cpu": True, "gradient_accumulation_steps": 4})
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ValueError, match=message):
        make_trainer()


def working_as(kind: DistributedType, **state: Any) -> Accelerator:
    """Return an accelerator that takes its processes to work together in some way."""
    accelerator = Accelerator(cpu=True)
    AcceleratorState._shared_state.update({"distributed_type": kind, **state})
    return accelerator


def test_engines_that_take_the_steps_themselves_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"got MEGATRON_LM.*distributed_type: FSDP"):
        check_processes(working_as(DistributedType.MEGATRON_LM))


def deepspeed(mixed_precision: str = "no", **options: Any) -> Accelerator:
    """Return an accelerator with a configuration of DeepSpeed."""
    plugin = DeepSpeedPlugin(**options)
    plugin.set_mixed_precision(mixed_precision)
    plugin.select(_from_accelerator_state=True)
    return working_as(DistributedType.DEEPSPEED, deepspeed_plugins=plugin)


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_may_share_moments_and_gradients(stage: int) -> None:
    check_processes(deepspeed(zero_stage=stage))


SCHEDULER = {"zero_optimization": {"stage": 2}, "scheduler": {"type": "WarmupLR", "params": {}}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zero_stage": 0}, "zero_stage 1 or 2, got 0.*MULTI_GPU"),
        ({"zero_stage": 3}, "zero_stage 1 or 2, got 3.*FSDP"),
        ({"offload_optimizer_device": "cpu"}, "nothing offloaded, got.*offload_optimizer"),
        ({"mixed_precision": "bf16"}, "mixed_precision 'no', got 'bf16'"),
        ({"gradient_accumulation_steps": 4}, "left out, got 4; pass grad_accum_every"),
        ({"hf_ds_config": SCHEDULER}, "no scheduler of its own"),
    ],
)
def test_deepspeed_is_refused_where_it_would_train_otherwise(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        check_processes(deepspeed(**options))


def test_an_old_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshgpt_pytorch.training.zero.OLDEST_VERSION", "1000.0")
    with pytest.raises(RuntimeError, match=r"1000.0 or newer.*pip install -U deepspeed"):
        check_processes(deepspeed())


def test_deepspeed_is_refused_where_a_step_leaves_parameters_out() -> None:
    with pytest.raises(RuntimeError, match="got quantizer_warmup_steps"):
        check_processes(deepspeed(), may_skip_parameters=True)


@pytest.mark.parametrize(
    ("optimizer", "options", "message"),
    [
        (torch.optim.Adafactor, {}, "must be one of.*got Adafactor"),
        (torch.optim.AdamW, {"gradient_clipping": 2.0}, "got 1.0 and gradient_clipping 2.0"),
    ],
)
def test_what_deepspeed_would_do_otherwise_is_refused(
    optimizer: type[torch.optim.Optimizer], options: dict[str, Any], message: str
) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=message):
        ZeroStepping(
            deepspeed(**options),
            model,
            optimizer(model.parameters()),
            max_grad_norm=1.0,
            batch_size=1,
        )


def test_a_group_without_parameters_is_refused_with_deepspeed() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([{"params": model.parameters()}, {"params": []}])
    with pytest.raises(ValueError, match="got one without; leave out omit_gammas"):
        ZeroStepping(deepspeed(), model, optimizer, max_grad_norm=1.0, batch_size=1)


@pytest.mark.parametrize(("version", "efficient"), [(1, False), (2, True)])
def test_ways_to_share_weights_that_cannot_be_saved_are_refused(
    version: int, efficient: bool
) -> None:
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version, cpu_ram_efficient_loading=efficient
    )
    with pytest.raises(RuntimeError, match=f"got {version} and {efficient}; see examples/"):
        check_processes(working_as(DistributedType.FSDP, fsdp_plugin=plugin))


def test_weights_that_are_not_shared_after_all_are_said(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.warns(
        UserWarning, match=r"told to share the weights \(FSDP\), and does not on cpu"
    ):
        make_trainer()
