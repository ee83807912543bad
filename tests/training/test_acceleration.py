"""How processes work together is checked before anything is trained."""

from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from meshgpt_pytorch.training.acceleration import check_processes


def test_processes_that_know_nothing_of_each_other_are_refused(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as accelerate and torchrun set it; without a GPU accelerate then sees one process in each
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"2 processes were started.*'cpu': True"):
        make_trainer(accelerator_kwargs={"cpu": False})


def working_as(kind: DistributedType, **state: Any) -> Accelerator:
    """Return an accelerator that takes its processes to work together in some way."""
    accelerator = Accelerator(cpu=True)
    AcceleratorState._shared_state.update({"distributed_type": kind, **state})
    return accelerator


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM])
def test_engines_that_take_the_steps_themselves_are_refused(kind: DistributedType) -> None:
    with pytest.raises(RuntimeError, match=f"got {kind.value}.*distributed_type: FSDP"):
        check_processes(working_as(kind))


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
