"""Which checkpoints are kept, which one is named, and files of upstream's trainers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from meshgpt_pytorch.checkpoint import CheckpointError
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.trainer import MeshAutoencoderTrainer, MeshTransformerTrainer
from meshgpt_pytorch.training.folders import CheckpointFolder, latest_validation
from meshgpt_pytorch.transformer.model import MeshTransformer
from tests.helpers import GOLDEN
from tests.training.runs import Samples, assert_same_state, small_run

UPSTREAM = GOLDEN / "upstream_files"


def steps_in(trainer: Any) -> list[int]:
    return trainer.checkpoints.steps()


# newest and best


def test_all_are_kept_unless_told_otherwise(make_trainer: Any) -> None:
    trainer = make_trainer(checkpoint_every=1)
    trainer()
    assert steps_in(trainer) == [1, 2, 3, 4]


def test_the_newest_and_the_best_are_kept(make_trainer: Any) -> None:
    losses = {1: 5.0, 2: 1.0, 3: 3.0, 4: 2.0, 5: 4.0}
    trainer = make_trainer(
        num_train_steps=5,
        checkpoint_every=1,
        keep_checkpoints=2,
        val_dataset=Samples(),
        val_every=1,
    )
    trainer.validate = lambda: {"val_loss": losses[trainer.step]}
    trainer()
    assert steps_in(trainer) == [2, 4, 5]
    assert trainer.checkpoints.latest() == trainer.checkpoints.path(5)
    assert trainer.checkpoints.best() == trainer.checkpoints.path(2)

    other = make_trainer()
    other.load("best")
    assert other.step == 2
    other.load("latest")
    assert other.step == 5
    assert_same_state(other.unwrapped_model, trainer.unwrapped_model)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"val_loss": "low"}'])
def test_a_config_that_was_edited_ends_no_run(make_trainer: Any, text: str | None) -> None:
    def edit(record: dict[str, float]) -> None:
        config = trainer.checkpoints.path(trainer.step) / "config.json"
        config.unlink()
        if text is not None:
            config.write_text(text)

    trainer = make_trainer(checkpoint_every=1, keep_checkpoints=2, on_step=edit)
    trainer()
    assert steps_in(trainer) == [3, 4]


def test_every_end_of_training_leaves_a_checkpoint_of_the_last_step(make_trainer: Any) -> None:
    trainer = make_trainer(on_step=lambda record: record["step"] == 1, checkpoint_every=3)
    trainer()
    assert steps_in(trainer) == [1]
    trainer()
    assert steps_in(trainer) == [1, 3, 4]


def test_a_time_limit_leaves_a_checkpoint(make_trainer: Any) -> None:
    trainer = make_trainer(time_limit=30.0)
    trainer._is_late = lambda started: trainer.step == 2
    trainer()
    assert steps_in(trainer) == [2]


def test_without_validation_the_newest_alone_are_kept(make_trainer: Any) -> None:
    trainer = make_trainer(checkpoint_every=1, keep_checkpoints=1)
    trainer()
    assert steps_in(trainer) == [4]
    with pytest.raises(FileNotFoundError, match="has a validation loss; give the trainer a val"):
        trainer.load("best")


def test_there_may_be_no_checkpoint_yet(make_trainer: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint mesh-.*\.ckpt\.<step> in .*train"):
        make_trainer().load("latest")


def test_a_path_may_have_the_name_of_a_checkpoint(make_trainer: Any, tmp_path: Path) -> None:
    make_trainer().save(tmp_path / "latest")
    trainer = make_trainer()
    trainer.load(tmp_path / "latest")
    assert trainer.step == 0


def test_two_trainers_share_a_folder(tmp_path: Path) -> None:
    for name in ("one.ckpt.3", "one.ckpt.20", "other.ckpt.4", "one.ckpt.best", "one.ckpt.3.bak"):
        (tmp_path / name).mkdir()
    (tmp_path / "one.ckpt.5").touch()
    folder = CheckpointFolder(tmp_path, "one", keep=1)
    assert folder.steps() == [3, 20]
    folder.prune()
    assert folder.steps() == [20]
    assert CheckpointFolder(tmp_path, "other").steps() == [4]


def test_a_loss_that_is_no_number_is_not_the_best() -> None:
    assert latest_validation([{"val_loss": 1.0}, {"loss": 2.0}]) == 1.0
    assert latest_validation([{"val_loss": 1.0}, {"val_loss": float("nan")}]) is None
    assert latest_validation([]) is None


def test_what_a_killed_run_left_is_gone_when_training_starts(make_trainer: Any) -> None:
    trainer = make_trainer(num_train_steps=2, checkpoint_every=1)
    trainer()
    folder, name = trainer.checkpoint_folder, trainer.checkpoint_name
    (folder / f".{name}.ckpt.3.0123abcd.tmp").mkdir()
    (folder / f"{name}.ckpt.2").rename(folder / f".{name}.ckpt.2.0123abcd.old")
    resumed = make_trainer(num_train_steps=2)
    resumed.load("latest")
    assert resumed.step == 2
    resumed()
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_the_option_must_leave_one(make_trainer: Any) -> None:
    with pytest.raises(ValueError, match="keep_checkpoints must be above 0 or None"):
        make_trainer(keep_checkpoints=0)


# files of upstream


def test_autoencoder_goes_on_from_a_file_of_upstreams_trainer(tmp_path: Path) -> None:
    path = UPSTREAM / "autoencoder_trainer.pt"
    saved = torch.load(path, weights_only=True)
    model = MeshAutoencoder.init_and_load(path)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(9.0)
    trainer = MeshAutoencoderTrainer(model, **small_run(tmp_path))
    trainer.load(path)
    assert trainer.step == saved["step"] == 2
    torch.testing.assert_close(trainer.unwrapped_model.state_dict(), saved["model"], rtol=0, atol=0)
    for name, tensor in trainer.average.model.state_dict().items():
        assert torch.equal(tensor, saved["ema_model"][f"ema_model.{name}"])

    moments = saved["optimizer"]["optimizer"]["state"]
    for index, parameter in enumerate(trainer.unwrapped_model.parameters()):
        loaded = trainer.optimizer.optimizer.state[parameter]
        assert torch.equal(loaded["exp_avg"], moments[index]["exp_avg"])
        assert loaded["step"] == 2
    trainer()
    assert trainer.step == 4


def test_transformer_goes_on_from_a_file_of_upstreams_trainer(tmp_path: Path) -> None:
    path = UPSTREAM / "transformer_trainer.pt"
    saved = torch.load(path, weights_only=True)
    model = MeshTransformer.init_and_load(UPSTREAM / "transformer.pt")
    trainer = MeshTransformerTrainer(model, **small_run(tmp_path), ema_kwargs={})
    trainer.load(path)
    assert trainer.step == 2
    assert len(trainer.optimizer.optimizer.state) == len(saved["optimizer"]["optimizer"]["state"])
    assert_same_state(trainer.average.model, trainer.unwrapped_model)
    trainer()
    assert trainer.step == 4


def test_schedule_goes_on_at_the_step_of_the_file(tmp_path: Path) -> None:
    path = UPSTREAM / "autoencoder_trainer.pt"
    options = {
        **small_run(tmp_path),
        "warmup_steps": 3,
        "scheduler": torch.optim.lr_scheduler.StepLR,
        "scheduler_kwargs": {"step_size": 1, "gamma": 0.5},
    }
    trainer = MeshAutoencoderTrainer(MeshAutoencoder.init_and_load(path), **options)
    trainer.load(path)
    # the third step of the warm-up, in which the schedule has halved the rate twice
    assert trainer.learning_rate.value == pytest.approx(1e-2 / 4)


def test_moments_that_do_not_fit_are_left_out_with_a_warning(tmp_path: Path) -> None:
    saved = torch.load(UPSTREAM / "autoencoder_trainer.pt", weights_only=True)
    inner = saved["optimizer"]["optimizer"]
    broken = {**inner, "state": {**inner["state"], 0: inner["state"][1]}}
    for number, optimizer in enumerate((None, {"optimizer": {}}, {"optimizer": broken})):
        path = tmp_path / f"{number}.pt"
        torch.save({**saved, "optimizer": optimizer}, path)
        trainer = MeshAutoencoderTrainer(MeshAutoencoder.init_and_load(path), **small_run(tmp_path))
        with pytest.warns(UserWarning, match="does not fit AdamW over this model"):
            trainer.load(path)
        assert not trainer.optimizer.optimizer.state


def test_file_of_the_other_trainer_of_upstream_is_refused(tmp_path: Path) -> None:
    model = MeshTransformer.init_and_load(UPSTREAM / "transformer.pt")
    trainer = MeshTransformerTrainer(model, **small_run(tmp_path))
    with pytest.raises(CheckpointError, match="holds a MeshAutoencoder, wanted a MeshTransformer"):
        trainer.load(UPSTREAM / "autoencoder_trainer.pt")
