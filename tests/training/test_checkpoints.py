"""A checkpoint is whole, and a run that goes on from it is the run that never stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch

from meshgpt_pytorch.checkpoint import CheckpointError
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.trainer import MeshAutoencoderTrainer, MeshTransformerTrainer
from tests.training.runs import (
    Samples,
    assert_same_state,
    make_autoencoder,
    make_text_transformer,
    make_transformer,
    small_run,
    without_speed,
)

# checkpoints


def test_two_steps_and_two_more_are_four_steps(make_trainer: Any) -> None:
    options = {
        "grad_accum_every": 2,
        "ema_kwargs": {"update_every": 1, "update_after_step": 0},
        "val_dataset": Samples(),
        "val_every": 2,
    }
    dropout = {"resnet_dropout": 0.2}
    is_autoencoder = isinstance(make_trainer(), MeshAutoencoderTrainer)
    build = make_autoencoder if is_autoencoder else make_text_transformer
    if not is_autoencoder:
        dropout = {"dropout": 0.2}
        options["dataset"] = options["val_dataset"] = Samples(texts="a box")

    whole = make_trainer(model=build(**dropout), **options)
    whole()
    first = make_trainer(model=build(**dropout), **options, checkpoint_every=2)
    first()
    second = make_trainer(model=build(**dropout), **{**options, "seed": 1})
    torch.manual_seed(99)
    second.load(first.checkpoint_folder / f"{first.checkpoint_name}.ckpt.2")
    second()
    assert without_speed(second.history) == without_speed(whole.history)
    assert_same_state(second.unwrapped_model, whole.unwrapped_model)
    assert_same_state(second.average.model, whole.average.model)
    torch.testing.assert_close(
        second.optimizer.state_dict(), whole.optimizer.state_dict(), rtol=0, atol=0
    )


def test_checkpoint_is_a_folder_with_models_that_load_alone(tmp_path: Path) -> None:
    trainer = MeshAutoencoderTrainer(make_autoencoder(), **small_run(tmp_path), checkpoint_every=2)
    trainer()
    folder = trainer.checkpoint_folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "mesh-autoencoder.ckpt.2",
        "mesh-autoencoder.ckpt.4",
        "mesh-autoencoder.history.jsonl",
    ]
    last = folder / "mesh-autoencoder.ckpt.4"
    files = ["config.json", "ema.safetensors", "history.jsonl", "model.safetensors"]
    files.append("trainer_state.pt")
    assert sorted(path.name for path in last.iterdir()) == files
    online = MeshAutoencoder.init_and_load(last / "model.safetensors")
    assert_same_state(online, trainer.unwrapped_model)
    averaged = MeshAutoencoder.init_and_load(last / "ema.safetensors")
    assert_same_state(averaged, trainer.ema_tokenizer)


def test_average_may_be_added_on_resume(make_trainer: Any, tmp_path: Path) -> None:
    first = make_trainer(ema_kwargs=None)
    first()
    first.save(tmp_path / "ckpt")
    second = make_trainer(ema_kwargs={})
    second.load(tmp_path / "ckpt")
    assert_same_state(second.average.model, first.unwrapped_model)


def test_existing_checkpoint_is_kept_unless_it_may_be_replaced(
    make_trainer: Any, tmp_path: Path
) -> None:
    trainer = make_trainer()
    trainer.save(tmp_path / "ckpt")
    trainer.save(tmp_path / "ckpt")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        trainer.save(tmp_path / "ckpt", overwrite=False)


def test_checkpoint_that_cannot_be_read_is_named(make_trainer: Any, tmp_path: Path) -> None:
    trainer = make_trainer()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nowhere"):
        trainer.load(tmp_path / "nowhere")
    trainer.save(tmp_path / "ckpt")
    with pytest.raises(CheckpointError, match="must be the folder of a checkpoint, got a file"):
        trainer.load(tmp_path / "ckpt" / "model.safetensors")
    state = tmp_path / "ckpt" / "trainer_state.pt"
    whole = torch.load(state)
    torch.save({**whole, "format_version": 99}, state)
    with pytest.raises(CheckpointError, match="format version 99, wanted up to 1; upgrade"):
        trainer.load(tmp_path / "ckpt")
    torch.save({"step": 1}, state)
    with pytest.raises(CheckpointError, match=r"must hold the state of a trainer, got \['step'\]"):
        trainer.load(tmp_path / "ckpt")
    torch.save(whole, state)
    (tmp_path / "ckpt" / "history.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(CheckpointError, match="must hold a JSON record a line"):
        trainer.load(tmp_path / "ckpt")
    state.write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="not a readable training state"):
        trainer.load(tmp_path / "ckpt")


def test_checkpoint_of_another_optimizer_is_refused(make_trainer: Any, tmp_path: Path) -> None:
    make_trainer(num_train_steps=1).save(tmp_path / "ckpt")
    other = make_trainer(optimizer=torch.optim.SGD)
    with pytest.raises(CheckpointError, match=r"state of AdamW, wanted that of SGD.*model\.load"):
        other.load(tmp_path / "ckpt")


def test_checkpoint_of_the_other_trainer_is_refused(tmp_path: Path) -> None:
    trainer = MeshAutoencoderTrainer(make_autoencoder(), **small_run(tmp_path))
    trainer.save(tmp_path / "ckpt")
    other = MeshTransformerTrainer(make_transformer(), **small_run(tmp_path))
    with pytest.raises(CheckpointError, match="holds a MeshAutoencoder, wanted a MeshTransformer"):
        other.load(tmp_path / "ckpt")
