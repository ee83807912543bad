"""The learning rate of every step, weight decay, and the optimizer's options."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from meshgpt_pytorch.checkpoint import load_training_state, save_training_state
from meshgpt_pytorch.training.optimizer import LearningRate, build_optimizer, load_optimizer_state

RATE = 3e-3
STEPS = 12

# scheduler, its arguments, and the curve that they describe
CURVES: dict[str, tuple[Any, dict[str, Any], Callable[[int], float]]] = {
    "none": (None, {}, lambda i: RATE),
    "cosine": (
        lr_scheduler.CosineAnnealingLR,
        {"T_max": STEPS},
        lambda i: RATE * (1 + math.cos(math.pi * i / STEPS)) / 2,
    ),
    "step": (
        lr_scheduler.StepLR,
        {"step_size": 3, "gamma": 0.5},
        lambda i: RATE * 0.5 ** (i // 3),
    ),
}


def make(warmup_steps: int = 0, scheduler: Any = None, **scheduler_kwargs: Any) -> LearningRate:
    torch.manual_seed(0)
    optimizer = build_optimizer(nn.Linear(2, 2), learning_rate=RATE)
    return LearningRate(
        optimizer,
        scheduler=scheduler,
        scheduler_kwargs=scheduler_kwargs,
        warmup_steps=warmup_steps,
    )


def run(rate: LearningRate, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(rate.value)
        rate.optimizer.step()
        rate.step()
    return rates


@pytest.mark.parametrize("warmup_steps", [0, 1, 5])
@pytest.mark.parametrize("name", CURVES)
def test_learning_rate_follows_the_curve_that_the_arguments_describe(
    name: str, warmup_steps: int
) -> None:
    scheduler, arguments, curve = CURVES[name]
    rates = run(make(warmup_steps, scheduler, **arguments), STEPS)
    warmup = [min(1.0, (i + 1) / warmup_steps) if warmup_steps else 1.0 for i in range(STEPS)]
    assert rates == pytest.approx([curve(i) * warmup[i] for i in range(STEPS)], rel=1e-12)


@pytest.mark.parametrize("warmup_steps", [1, 7, 1000])
def test_warmup_reaches_the_learning_rate_exactly(warmup_steps: int) -> None:
    rates = run(make(warmup_steps), warmup_steps + 1)
    assert rates[-2] == rates[-1] == RATE
    assert all(before < after for before, after in pairwise(rates[:-1]))


SCHEDULERS = {
    **{name: (scheduler, kwargs) for name, (scheduler, kwargs, _) in CURVES.items()},
    "exponential": (lr_scheduler.ExponentialLR, {"gamma": 0.9}),
    "milestones": (lr_scheduler.MultiStepLR, {"milestones": [2, 4], "gamma": 0.1}),
    "function": (lr_scheduler.LambdaLR, {"lr_lambda": lambda step: 0.9**step}),
    "one cycle": (lr_scheduler.OneCycleLR, {"max_lr": 0.1, "total_steps": STEPS + 1}),
    "restarts": (lr_scheduler.CosineAnnealingWarmRestarts, {"T_0": 3}),
}


@pytest.mark.parametrize("warmup_steps", [0, 5])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_curve_goes_on_across_a_resume(tmp_path: Path, name: str, warmup_steps: int) -> None:
    scheduler, arguments = SCHEDULERS[name]
    whole = run(make(warmup_steps, scheduler, **arguments), STEPS)
    for split in (1, 4, 9):
        first = make(warmup_steps, scheduler, **arguments)
        rates = run(first, split)
        state = {"optimizer": first.optimizer.state_dict(), "rate": first.state_dict()}
        save_training_state(tmp_path / "state", state)
        state = load_training_state(tmp_path / "state")
        second = make(warmup_steps, scheduler, **arguments)
        load_optimizer_state(second.optimizer, state["optimizer"])
        second.load_state_dict(state["rate"])
        assert rates + run(second, STEPS - split) == whole


def test_scheduler_may_be_added_on_resume() -> None:
    first = make()
    run(first, 3)
    second = make(0, lr_scheduler.ExponentialLR, gamma=0.5)
    second.load_state_dict(first.state_dict())
    assert run(second, 3) == pytest.approx([RATE, RATE / 2, RATE / 4])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cosine", {"T_max": 2 * STEPS}),
        ("step", {"step_size": 2, "gamma": 0.5}),
        ("exponential", {"gamma": 0.9}),
        ("none", {}),
    ],
)
def test_another_schedule_is_followed_from_the_saved_step(
    name: str, arguments: dict[str, Any]
) -> None:
    first = make(2, lr_scheduler.CosineAnnealingLR, T_max=STEPS)
    run(first, 5)
    scheduler = SCHEDULERS[name][0]
    second = make(2, scheduler, **arguments)
    load_optimizer_state(second.optimizer, first.optimizer.state_dict())
    with pytest.warns(UserWarning, match=rf"from its step 5, not .*'T_max': {STEPS}"):
        second.load_state_dict(first.state_dict())
    assert run(second, STEPS) == run(make(2, scheduler, **arguments), 5 + STEPS)[5:]


def test_setting_that_a_checkpoint_overrules_is_said() -> None:
    state = make().state_dict()
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, learning_rate=1.0, weight_decay=0.1)
    rate = LearningRate(optimizer)
    with pytest.warns(UserWarning, match=r"checkpoint's learning_rate 0\.003, not the trainer's 1"):
        rate.load_state_dict(state)
    assert rate.value == RATE
    with pytest.warns(UserWarning, match=r"checkpoint's weight_decay 0, not the trainer's 0\.1"):
        load_optimizer_state(optimizer, make().optimizer.state_dict())


def test_scheduler_that_waits_for_a_metric_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got ReduceLROnPlateau.*choose another"):
        make(0, lr_scheduler.ReduceLROnPlateau)


def test_weight_decay_is_for_matrices_only() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    build_optimizer(model, learning_rate=0.1, weight_decay=0.5).step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new, old * (0.95 if old.ndim == 2 else 1.0))


def test_weight_decay_of_everything_is_an_option() -> None:
    optimizer = build_optimizer(
        nn.Linear(2, 2),
        learning_rate=0.1,
        weight_decay=0.5,
        optimizer_kwargs={"omit_gammas_and_betas_from_wd": False},
    )
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 0]


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    groups = build_optimizer(model, learning_rate=0.1).param_groups
    assert [parameter for group in groups for parameter in group["params"]] == [model.weight]
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        build_optimizer(model.requires_grad_(False), learning_rate=0.1)


def test_optimizer_options_are_honoured() -> None:
    optimizer_kwargs = {"amsgrad": True, "eps": 1e-6, "betas": (0.8, 0.9)}
    optimizer = build_optimizer(
        nn.Linear(2, 2), learning_rate=0.1, optimizer_kwargs=optimizer_kwargs
    )
    assert all(optimizer.defaults[name] == value for name, value in optimizer_kwargs.items())
    default = build_optimizer(nn.Linear(2, 2), learning_rate=0.1)
    assert default.defaults["betas"] == (0.9, 0.99)


@pytest.mark.parametrize("name", ["momentum", "lr", "weight_decay"])
def test_unknown_optimizer_option_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"optimizer_kwargs must be among .* got \['{name}'\]"):
        build_optimizer(nn.Linear(2, 2), learning_rate=0.1, optimizer_kwargs={name: 0.1})


def test_any_class_of_optimizer_may_be_named() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    optimizer = build_optimizer(
        model,
        learning_rate=0.1,
        weight_decay=0.5,
        optimizer=torch.optim.SGD,
        optimizer_kwargs={"momentum": 0.9},
    )
    assert type(optimizer) is torch.optim.SGD
    settings = [(group["lr"], group["momentum"]) for group in optimizer.param_groups]
    assert settings == [(0.1, 0.9)] * 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert build_optimizer(model, learning_rate=0.1, optimizer=torch.optim.Adam).defaults[
        "betas"
    ] == (0.9, 0.999)


def test_function_may_build_the_optimizer() -> None:
    def build(groups: Any, **options: Any) -> torch.optim.Optimizer:
        assert options == {"lr": 0.1, "weight_decay": 0.0, "eps": 1e-5}
        return torch.optim.Adam(groups, **options)

    kwargs = {"optimizer": build, "optimizer_kwargs": {"eps": 1e-5}}
    optimizer = build_optimizer(nn.Linear(2, 2), learning_rate=0.1, **kwargs)
    assert isinstance(optimizer, torch.optim.Adam)


def test_ready_optimizer_keeps_its_settings() -> None:
    model = nn.Linear(2, 2)
    ready = torch.optim.SGD(model.parameters(), lr=0.7)
    assert build_optimizer(model, learning_rate=0.1, weight_decay=0.5, optimizer=ready) is ready
    rate = LearningRate(ready, warmup_steps=2)
    assert run(rate, 3) == [0.35, 0.7, 0.7]


def test_optimizer_that_does_not_fit_is_refused() -> None:
    model = nn.Linear(2, 2)
    ready = torch.optim.SGD(model.parameters(), lr=0.7)
    with pytest.raises(ValueError, match=r"got a ready SGD; pass optimizer=SGD"):
        build_optimizer(
            model, learning_rate=0.1, optimizer=ready, optimizer_kwargs={"momentum": 0.9}
        )
    with pytest.raises(ValueError, match="got parameters of another"):
        build_optimizer(nn.Linear(2, 2), learning_rate=0.1, optimizer=ready)
    with pytest.raises(ValueError, match="got LBFGS, which runs the model itself in a closure"):
        build_optimizer(model, learning_rate=0.1, optimizer=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match=r"SparseAdam has no weight decay, got weight_decay=0\.1"):
        build_optimizer(
            model, learning_rate=0.1, weight_decay=0.1, optimizer=torch.optim.SparseAdam
        )
