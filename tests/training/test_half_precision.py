"""Training in float16, whose gradients are scaled lest they vanish."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator

from meshgpt_pytorch.training import loop
from meshgpt_pytorch.training.acceleration import build_accelerator
from meshgpt_pytorch.training.reporting import to_json
from tests.training.runs import assert_same_state, without_speed

HALF = {"cpu": True, "mixed_precision": "fp16"}


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have accelerate do on the CPU what it does on GPUs alone."""

    def build(*args: Any, **kwargs: Any) -> Accelerator:
        with pytest.warns(UserWarning, match="float16"):
            accelerator = build_accelerator(*args, **kwargs)
        accelerator.native_amp = True
        # far too much at first, so that it is halved until the gradients are finite
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=3)
        return accelerator

    monkeypatch.setattr(loop, "build_accelerator", build)


@pytest.mark.usefixtures("scaling")
def test_steps_that_overflow_are_skipped_and_a_run_goes_on_with_its_scale(
    make_trainer: Any,
) -> None:
    options = {"accelerator_kwargs": HALF, "num_train_steps": 14, "ema_kwargs": {}}
    whole = make_trainer(**options, checkpoint_every=1)
    whole()
    skipped = ["skipped" in record for record in whole.history]
    assert skipped[0] and not all(skipped)
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]

    resumed = make_trainer(**options)
    resumed.load(whole.checkpoints.path(skipped.index(False) + 1))
    assert resumed.accelerator.scaler.get_scale() < 2.0**24
    resumed()
    assert resumed.accelerator.scaler.state_dict() == whole.accelerator.scaler.state_dict()
    assert_same_state(resumed.unwrapped_model, whole.unwrapped_model)
    histories = [without_speed(each.history) for each in (resumed, whole)]
    # as text, since a norm that is not a number is not equal to itself
    assert [*map(to_json, histories[0])] == [*map(to_json, histories[1])]


def test_float16_that_does_nothing_on_the_cpu_is_said(make_trainer: Any) -> None:
    with pytest.warns(UserWarning, match="float16 only on GPUs, and trains in float32 on cpu"):
        make_trainer(accelerator_kwargs=HALF)
