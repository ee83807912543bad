"""The loop: losses, accumulation, clipping, what ends it, and what it reports."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.tracking import GeneralTracker
from torch._dynamo.utils import counters
from torch.optim.lr_scheduler import CosineAnnealingLR

from meshgpt_pytorch.trainer import MeshAutoencoderTrainer
from meshgpt_pytorch.training import acceleration
from tests.helpers import pad_batch
from tests.training.runs import MESHES, Samples, assert_same_state, without_speed

# the loop


def test_training_lowers_the_loss_and_records_each_step(make_trainer: Any) -> None:
    trainer = make_trainer(num_train_steps=30)
    before = {name: t.clone() for name, t in trainer.unwrapped_model.state_dict().items()}
    trainer()
    losses = [record["loss"] for record in trainer.history]
    assert [record["step"] for record in trainer.history] == list(range(1, 31))
    assert losses[-1] < losses[0] - 0.3
    assert all(record["learning_rate"] == 1e-2 for record in trainer.history)
    assert any(
        not torch.equal(before[k], v) for k, v in trainer.unwrapped_model.state_dict().items()
    )


def test_history_is_a_file_of_json_lines(make_trainer: Any) -> None:
    trainer = make_trainer()
    trainer.train()
    path = trainer.checkpoint_folder / f"{trainer.checkpoint_name}.history.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == trainer.history


def test_calling_again_does_nothing_more(make_trainer: Any) -> None:
    trainer = make_trainer()
    trainer.forward()
    trainer()
    assert len(trainer.history) == trainer.step == 4


@pytest.mark.parametrize("kind", [tuple, list])
def test_tuples_and_lists_train_as_dicts_do(make_trainer: Any, kind: type) -> None:
    wanted, trainer = make_trainer(), make_trainer(dataset=Samples(kind=kind))
    wanted()
    trainer()
    assert without_speed(trainer.history) == without_speed(wanted.history)


def test_names_of_the_data_set_go_before_those_of_the_trainer(make_trainer: Any) -> None:
    dataset = Samples(kind=tuple)
    dataset.data_kwargs = ["vertices", "faces"]
    trainer = make_trainer(dataset=dataset, data_kwargs=("faces", "vertices"))
    trainer()
    assert trainer.step == 4


def test_entries_that_the_model_does_not_take_are_left_out(make_trainer: Any) -> None:
    wanted = make_trainer()
    trainer = make_trainer(dataset=Samples(names="a.obj", texts="a box", categories="box"))
    wanted()
    trainer()
    assert without_speed(trainer.history) == without_speed(wanted.history)


def test_accumulated_batches_train_as_one_large_batch(make_trainer: Any) -> None:
    # five meshes of unequal size: one batch of five, or five of one
    large = make_trainer(batch_size=5, max_grad_norm=0.5)
    small = make_trainer(batch_size=1, grad_accum_every=5, max_grad_norm=0.5)
    if isinstance(large, MeshAutoencoderTrainer):
        # the quantizer's own loss looks at a batch as a whole
        for trainer in (large, small):
            trainer.unwrapped_model.commit_loss_weight = 0.0
            trainer.unwrapped_model.eval()
    large()
    small()
    name = "recon_loss" if isinstance(large, MeshAutoencoderTrainer) else "loss"
    losses = [[record[name] for record in t.history] for t in (large, small)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    torch.testing.assert_close(
        large.unwrapped_model.state_dict(), small.unwrapped_model.state_dict(), rtol=1e-3, atol=1e-4
    )


def test_gradient_is_clipped_over_all_parameters_together(make_trainer: Any) -> None:
    norms = []
    trainer = make_trainer(max_grad_norm=0.01, weight_decay=0.1, num_train_steps=1)

    def record_norm(*_: Any) -> None:
        gradients = [p.grad for p in trainer.unwrapped_model.parameters() if p.grad is not None]
        norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())

    trainer.optimizer.optimizer.register_step_pre_hook(record_norm)
    trainer()
    assert norms == [pytest.approx(0.01, rel=1e-3)]
    assert trainer.history[0]["grad_norm"] > 0.01


def test_gradient_is_clipped_by_default(make_trainer: Any) -> None:
    trainer = make_trainer()
    is_autoencoder = isinstance(trainer, MeshAutoencoderTrainer)
    assert trainer.options.max_grad_norm == (1.0 if is_autoencoder else 0.5)


def test_epochs_are_turned_into_steps(make_trainer: Any) -> None:
    # two batches of two in five samples
    trainer = make_trainer(num_train_steps=None, num_epochs=3, grad_accum_every=4)
    trainer()
    assert trainer.step == 2
    steps = make_trainer(num_train_steps=2, grad_accum_every=4)
    steps()
    assert without_speed(trainer.history) == without_speed(steps.history)


def test_ready_optimizer_trains_as_its_class_does(make_trainer: Any) -> None:
    by_class = make_trainer(optimizer=torch.optim.SGD, learning_rate=0.1)
    by_class()
    trainer = make_trainer()
    model = trainer.unwrapped_model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ready = make_trainer(model=model, optimizer=torch.optim.SGD(trained, lr=0.1))
    ready()
    assert without_speed(ready.history) == without_speed(by_class.history)
    assert_same_state(ready.unwrapped_model, by_class.unwrapped_model)


def test_learning_rate_curve_is_in_the_history_across_a_resume(make_trainer: Any) -> None:
    options = {
        "warmup_steps": 2,
        "scheduler": CosineAnnealingLR,
        "scheduler_kwargs": {"T_max": 8},
        "num_train_steps": 6,
        "checkpoint_every": 3,
    }
    trainer = make_trainer(**options)
    trainer()
    resumed = make_trainer(**options)
    resumed.load(trainer.checkpoint_folder / f"{trainer.checkpoint_name}.ckpt.3")
    resumed()
    cosine = [1e-2 * (1 + torch.tensor(torch.pi * i / 8).cos().item()) / 2 for i in range(6)]
    for each in (trainer, resumed):
        rates = [record["learning_rate"] for record in each.history]
        assert rates == pytest.approx([cosine[0] / 2, *cosine[1:]], rel=1e-6)


def test_training_switches_the_model_to_train_mode(make_trainer: Any) -> None:
    trainer = make_trainer(num_train_steps=1)
    trainer.unwrapped_model.eval()
    trainer()
    assert trainer.unwrapped_model.training


def test_mixed_precision_trains(make_trainer: Any) -> None:
    trainer = make_trainer(
        accelerator_kwargs={"cpu": True, "mixed_precision": "bf16"}, num_train_steps=30
    )
    trainer()
    assert trainer.history[-1]["loss"] < trainer.history[0]["loss"] - 0.3
    assert all(p.dtype == torch.float32 for p in trainer.unwrapped_model.parameters())


def test_a_model_trained_in_mixed_precision_computes_as_its_file_does(
    make_trainer: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(accelerator_kwargs={"cpu": True, "mixed_precision": "bf16"})
    trainer()
    model = trainer.unwrapped_model.eval()
    vertices, faces = pad_batch(MESHES)
    loss = model(vertices=vertices, faces=faces)
    model.save(tmp_path / "model.safetensors")
    loaded = type(model).init_and_load(tmp_path / "model.safetensors").eval()
    assert torch.equal(loaded(vertices=vertices, faces=faces), loss)


def test_seed_decides_the_whole_run(make_trainer: Any) -> None:
    first, second = make_trainer(seed=3), make_trainer(seed=3)
    first()
    second()
    assert without_speed(first.history) == without_speed(second.history)
    assert_same_state(first.unwrapped_model, second.unwrapped_model)


def test_without_a_seed_torchs_own_decides(make_trainer: Any) -> None:
    histories = []
    for _ in range(2):
        trainer = make_trainer(seed=None)
        trainer()
        histories.append(without_speed(trainer.history))
    assert histories[0] == histories[1]


def test_time_limit_ends_training_between_steps(
    make_trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(time_limit=1e-9, progress=True)
    trainer()
    assert trainer.step == 0
    assert f"{trainer.checkpoint_name}: 0 of 4 steps" in capsys.readouterr().out


def test_hook_sees_each_record_and_may_end_training(make_trainer: Any) -> None:
    seen = []

    def stop_at_two(record: Mapping[str, float]) -> bool:
        seen.append(record["step"])
        return record["step"] == 2

    trainer = make_trainer(on_step=stop_at_two)
    trainer()
    assert seen == [1, 2]
    trainer()
    assert seen == [1, 2, 3, 4]


def test_bar_shows_loss_rate_speed_and_time_left(
    make_trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(progress=True)()
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("4/4", "loss=", "learning_rate=", "faces_per_second="))


def test_mappings_of_the_caller_are_left_alone(make_trainer: Any) -> None:
    kwargs: dict[str, Any] = {
        "accelerator_kwargs": {"cpu": True},
        "optimizer_kwargs": {"eps": 1e-7},
        "ema_kwargs": {"beta": 0.9},
        "scheduler_kwargs": {"T_max": 8},
    }
    make_trainer(scheduler=CosineAnnealingLR, **kwargs)()
    assert kwargs == {
        "accelerator_kwargs": {"cpu": True},
        "optimizer_kwargs": {"eps": 1e-7},
        "ema_kwargs": {"beta": 0.9},
        "scheduler_kwargs": {"T_max": 8},
    }


# torch.compile looks at attributes that warn, and makes a function of autograd as it should not
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor",
    "ignore:Dynamo",
    "ignore:.*function.Function'> should not be instantiated",
)
def test_compiled_parts_train_as_the_model_does(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one graph for each part, without the time that a C++ compiler takes
    monkeypatch.setattr(acceleration, "COMPILER", "aot_eager")
    options = {
        "val_dataset": Samples(),
        "val_every": 1,
        "sample_every": 2,
        "num_samples": 1,
        "checkpoint_every": 1,
        "num_train_steps": 2,
    }
    plain, compiled = make_trainer(**options), make_trainer(**options, compile=True)
    plain()
    torch._dynamo.reset()
    counters.clear()
    compiled()
    num_graphs = counters["stats"]["unique_graphs"]
    assert num_graphs > 0
    assert dict(counters["graph_break"]) == {}
    resumed = make_trainer(**options, compile=True)
    resumed.load(compiled.checkpoints.path(1))
    resumed()
    assert without_speed(resumed.history) == without_speed(compiled.history)
    assert_same_state(resumed.unwrapped_model, compiled.unwrapped_model)
    if not isinstance(compiled, MeshAutoencoderTrainer):
        compiled.generate(max_seq_len=36)
    # validation, samples and generation compile nothing more
    assert counters["stats"]["unique_graphs"] == num_graphs
    val_losses = [[record["val_loss"] for record in each.history] for each in (plain, compiled)]
    assert val_losses[0] == pytest.approx(val_losses[1], rel=1e-5)
    losses = [[record["loss"] for record in each.history] for each in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    names = [list(each.unwrapped_model.state_dict()) for each in (plain, compiled)]
    assert names[0] == names[1]


# trackers


class ListTracker(GeneralTracker):
    """Keeps what accelerate logs."""

    name = "list"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.lines: list[tuple[int | None, dict[str, Any]]] = []
        self.finished = False

    @property
    def tracker(self) -> list[Any]:
        return self.lines

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.lines.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_trackers_get_each_step_inside_the_block(make_trainer: Any) -> None:
    tracker = ListTracker()
    trainer = make_trainer(accelerator_kwargs={"cpu": True, "log_with": tracker})
    with trainer.tracking("meshes", hps={"rate": 1}):
        trainer()
        trainer.log(note=1.0)
    trainer.log(note=2.0)
    assert tracker.config == {"rate": 1}
    assert [step for step, _ in tracker.lines] == [1, 2, 3, 4, 4]
    assert tracker.lines[0][1]["loss"] == trainer.history[0]["loss"]
    assert tracker.finished


def test_tensorboard_gets_each_step(make_trainer: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(
        accelerator_kwargs={"cpu": True, "log_with": "tensorboard", "project_dir": tmp_path}
    )
    with trainer.tracking("meshes", hps={"rate": 1}):
        trainer()
    events = EventAccumulator(str(tmp_path / "meshes"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(r["step"], pytest.approx(r["loss"])) for r in trainer.history]


def test_wandb_is_asked_for_before_it_is_used(make_trainer: Any) -> None:
    trainer = make_trainer()
    with (
        pytest.raises(ValueError, match="use_wandb_tracking=True"),
        trainer.wandb_tracking("meshes", run="first"),
    ):
        trainer()
    assert trainer.step == 0


def test_wandb_tracking_needs_wandb(make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install 'meshgpt-pytorch"):
        make_trainer(use_wandb_tracking=True)


def test_processes_report_their_place(make_trainer: Any) -> None:
    trainer = make_trainer()
    trainer.wait()
    assert trainer.is_main
    assert trainer.is_local_main
    assert trainer.device == torch.device("cpu")
