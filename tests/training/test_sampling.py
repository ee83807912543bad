"""Meshes and pictures made while training."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from meshgpt_pytorch.data import MeshDataset
from meshgpt_pytorch.mesh import load_mesh
from meshgpt_pytorch.trainer import MeshAutoencoderTrainer, MeshTransformerTrainer
from tests.training.runs import (
    MESHES,
    Samples,
    assert_same_state,
    make_autoencoder,
    make_text_transformer,
    make_transformer,
    small_run,
    without_speed,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_samples_come_when_due_and_leave_training_as_it_is(make_trainer: Any) -> None:
    trainer = make_trainer(sample_every=2, num_samples=2, val_dataset=Samples())
    plain = make_trainer(val_dataset=Samples())
    trainer()
    plain()
    folders = sorted(trainer.checkpoint_folder.glob("*.samples.*"))
    steps = [folder.name for folder in folders]
    assert steps == [f"{trainer.checkpoint_name}.samples.{step}" for step in (2, 4)]
    for folder in folders:
        with Image.open(folder / "samples.png") as picture:
            assert picture.size[1] > 2 * 192
        meshes = [load_mesh(path) for path in folder.glob("*.obj")]
        assert all(len(mesh.faces) for mesh in meshes)
    assert without_speed(trainer.history) == without_speed(plain.history)
    assert_same_state(trainer.unwrapped_model, plain.unwrapped_model)


def test_autoencoder_shows_data_beside_its_reconstruction(tmp_path: Path) -> None:
    options = {**small_run(tmp_path), "val_dataset": Samples(MESHES[1:])}
    trainer = MeshAutoencoderTrainer(make_autoencoder(), **options, num_samples=9)
    folder = trainer.sample()
    assert {f"{i}.data.obj" for i in range(4)} | {"samples.png"} <= set(names(folder))
    pyramid = load_mesh(folder / "0.data.obj")
    assert len(pyramid.faces) == 6
    wanted = MESHES[1].vertices.sort(dim=0)[0]
    assert (pyramid.vertices.sort(dim=0)[0] - wanted).abs().max() < 1 / 64


def test_transformer_samples_for_the_texts_of_the_data_or_for_given_ones(
    tmp_path: Path, cached: MeshDataset
) -> None:
    for dataset in (cached, cached.with_keys("codes", "text_encodings"), Samples(texts="a box")):
        trainer = MeshTransformerTrainer(
            make_text_transformer(), **{**small_run(tmp_path), "dataset": dataset}, num_samples=2
        )
        found = set(names(trainer.sample()))
        assert {"0.data.obj", "1.data.obj", "samples.png"} <= found
        assert found - {"0.data.obj", "1.data.obj", "samples.png"} <= {
            "0.generated.obj",
            "1.generated.obj",
        }
    trainer = MeshTransformerTrainer(
        make_text_transformer(),
        **{**small_run(tmp_path / "texts"), "dataset": cached},
        sample_texts=["a table", "a chair", "a lamp"],
    )
    found = set(names(trainer.sample()))
    assert "samples.png" in found
    assert found - {"samples.png"} <= {f"{i}.generated.obj" for i in range(3)}


@pytest.mark.parametrize("texts", ["a chair", [], [b"a chair"]])
def test_sample_texts_are_checked_before_training(tmp_path: Path, texts: Any) -> None:
    options = {**small_run(tmp_path), "dataset": Samples(texts="a box")}
    with pytest.raises(ValueError, match=r"must be a list of one text or more.*\['a chair'\]"):
        MeshTransformerTrainer(make_text_transformer(), **options, sample_texts=texts)


def test_sample_texts_need_a_model_with_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need a transformer with condition_on_text=True"):
        MeshTransformerTrainer(make_transformer(), **small_run(tmp_path), sample_texts=["a box"])


def test_samples_are_the_same_for_the_same_weights(tmp_path: Path) -> None:
    trainer = MeshTransformerTrainer(make_transformer(), **small_run(tmp_path), num_samples=3)
    first = {path.name: path.read_bytes() for path in trainer.sample().iterdir()}
    torch.manual_seed(5)
    second = {path.name: path.read_bytes() for path in trainer.sample().iterdir()}
    assert first == second


def test_transformer_generates_with_its_average(tmp_path: Path) -> None:
    options = {**small_run(tmp_path), "ema_kwargs": {"update_every": 1000}}
    trainer = MeshTransformerTrainer(make_transformer(), **options)
    trainer()
    sampling: dict[str, Any] = {"batch_size": 2, "temperature": 0.0, "return_codes": True}
    generated = trainer.generate(**sampling, progress=False)
    assert torch.equal(generated, trainer.average.model.generate(**sampling, progress=False))
    trained = trainer.unwrapped_model.generate(**sampling, progress=False)
    assert not torch.equal(generated, trained)
    without = MeshTransformerTrainer(trainer.unwrapped_model, **small_run(tmp_path / "without"))
    assert torch.equal(without.generate(**sampling, progress=False), trained)


def test_pictures_are_asked_for_before_training(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without_pillow(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "PIL":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(RuntimeError, match="needs Pillow"):
        make_trainer(sample_every=2)
