"""Steps whose loss or gradient is not finite leave no trace but a count."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

from meshgpt_pytorch.training.loop import MeshTrainer
from meshgpt_pytorch.training.skipping import SkippedSteps
from tests.training.runs import assert_same_state


def break_steps(trainer: MeshTrainer, is_broken: Callable[[int], bool], number: float) -> None:
    """Multiply the loss of some steps with a number that is not finite."""
    compute = trainer.compute_losses

    def losses(model: Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        found = compute(model, arguments)
        if is_broken(trainer.step):
            found["loss"] = found["loss"] * number
        return found

    trainer.compute_losses = losses


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_step_that_is_not_finite_is_skipped(
    make_trainer: Any, number: float, max_grad_norm: float | None
) -> None:
    states = {}

    def keep(record: Mapping[str, float]) -> None:
        parameters = {k: p.clone() for k, p in trainer.unwrapped_model.named_parameters()}
        states[record["step"]] = (parameters, trainer.learning_rate.steps_done)

    trainer = make_trainer(
        ema_kwargs={"update_every": 1, "beta": 0.5},
        max_grad_norm=max_grad_norm,
        warmup_steps=10,
        on_step=keep,
    )
    break_steps(trainer, lambda step: step == 1, number)
    trainer()
    assert [record.get("skipped", 0.0) for record in trainer.history] == [0, 1, 0, 0]
    assert not math.isfinite(trainer.history[1]["loss"])
    torch.testing.assert_close(states[1][0], states[2][0], rtol=0, atol=0)
    assert [steps for _, steps in states.values()] == [1, 1, 2, 3]
    for model in (trainer.unwrapped_model, trainer.average.model):
        assert all(weight.isfinite().all() for weight in model.parameters())
    lines = (trainer.checkpoint_folder / f"{trainer.checkpoint_name}.history.jsonl").read_text()
    assert "NaN" not in lines and "Infinity" not in lines
    assert json.loads(lines.splitlines()[1])["loss"] is None


def test_training_stops_after_too_many_skipped_steps(make_trainer: Any) -> None:
    trainer = make_trainer(
        num_train_steps=9, max_skipped_steps=3, checkpoint_every=1, grad_accum_every=2
    )
    # two in a row are borne; then three are too many
    break_steps(trainer, lambda step: step in (1, 2, 4, 5, 6), math.nan)
    last = f"{trainer.checkpoint_name}.ckpt.4"
    message = (
        rf"at step 7, the last of 3 skipped.*the items \[\d, \d, \d, \d\].*go on from .*{last}"
    )
    with pytest.raises(RuntimeError, match=message):
        trainer()
    saved = [path.name for path in trainer.checkpoint_folder.glob("*.ckpt.*")]
    assert last in saved and not any(name.endswith((".5", ".6", ".7")) for name in saved)
    resumed = make_trainer()
    resumed.load(trainer.last_checkpoint)
    assert_same_state(resumed.unwrapped_model, trainer.unwrapped_model)


def test_a_checkpoint_that_is_due_in_a_skipped_step_comes_with_the_next_good_one(
    make_trainer: Any,
) -> None:
    trainer = make_trainer(checkpoint_every=2)
    break_steps(trainer, lambda step: step == 1, math.nan)
    trainer()
    assert trainer.checkpoints.steps() == [3, 4]


def test_a_run_that_ends_with_a_skipped_step_leaves_a_checkpoint(make_trainer: Any) -> None:
    trainer = make_trainer(checkpoint_every=2, num_train_steps=2)
    break_steps(trainer, lambda step: step == 1, math.nan)
    trainer()
    assert trainer.checkpoints.steps() == [2]


def test_without_a_checkpoint_none_is_named(make_trainer: Any) -> None:
    trainer = make_trainer(max_skipped_steps=1)
    break_steps(trainer, lambda step: True, math.nan)
    with pytest.raises(RuntimeError, match=r"no checkpoint was written before"):
        trainer()


class Scaler:
    """A loss scale."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_scale(self) -> float:
        return self.scale


def test_overflow_that_the_scale_explains_does_not_count() -> None:
    skipped = SkippedSteps(limit=2)
    overflow = {"step": 1, "loss": 1.0, "skipped": 1.0}
    for _ in range(20):
        assert not skipped.are_too_many(overflow, Scaler(2.0**10))
    assert not skipped.are_too_many(overflow, Scaler(1.0))
    assert skipped.are_too_many({**overflow, "loss": math.nan}, Scaler(2.0**10))
