"""A model knows its text encoder again, wherever that lies, and takes no other one for it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from meshgpt_pytorch.checkpoint import CheckpointError
from meshgpt_pytorch.cli import main
from meshgpt_pytorch.data import MeshDataset
from meshgpt_pytorch.trainer import MeshTransformerTrainer
from meshgpt_pytorch.transformer.encoder_identity import fingerprint_pretrained, identify
from meshgpt_pytorch.transformer.model import MeshTransformer
from meshgpt_pytorch.transformer.text import AutoModelEncoder, GuidanceLibraryEncoder, T5Encoder
from meshgpt_pytorch.transformer.text_libraries import import_transformers
from tests.helpers import save_small_t5
from tests.training.runs import (
    MESHES,
    LetterEncoder,
    assert_same_state,
    make_autoencoder,
    make_transformer,
    small_run,
)

WORDS = ["a", "box"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "encoder"
    save_small_t5(path, WORDS)
    return path


@pytest.fixture
def trained(folder: Path) -> Path:
    """The folder of a fine-tuned copy: the same names and shapes, other weights."""
    path = folder.with_name("trained")
    shutil.copytree(folder, path)
    model = import_transformers().T5ForConditionalGeneration.from_pretrained(path)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01)
    model.save_pretrained(path)
    return path


def make_model(encoder: Any) -> MeshTransformer:
    return make_transformer(condition_on_text=True, text_encoder=encoder)


def reopen(path: Path, encoder: Any, **kwargs: Any) -> MeshTransformer:
    return MeshTransformer.init_and_load(path, overrides={"text_encoder": encoder}, **kwargs)


class OtherEncoder(LetterEncoder):
    """Of the same width."""


class ModuleEncoder(nn.Module):
    """An encoder with weights of its own."""

    dim_latent = 8

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(4, self.dim_latent)

    def embed(self, texts: list[str]) -> Any:
        raise NotImplementedError


# files


@pytest.mark.parametrize("kind", [T5Encoder, AutoModelEncoder])
def test_an_encoder_that_moved_is_the_same(folder: Path, tmp_path: Path, kind: type) -> None:
    model = make_model(kind(folder))
    model.save(tmp_path / "model")
    moved = folder.rename(tmp_path / "moved")
    loaded = reopen(tmp_path / "model", AutoModelEncoder(moved, max_length=9))
    assert_same_state(loaded, model)


def test_other_weights_of_the_same_width_are_refused(
    folder: Path, trained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    model = make_model(T5Encoder(folder))
    model.save(path)
    message = rf"trained with the text encoder {folder} \(T5Encoder\), got {trained}"
    with pytest.raises(CheckpointError, match=rf"{message}.*strict=False"):
        reopen(path, AutoModelEncoder(trained))
    other = make_model(AutoModelEncoder(trained))
    before = other.state_dict()["to_logits.weight"].clone()
    with pytest.raises(CheckpointError, match=message):
        other.load(path)
    assert torch.equal(other.state_dict()["to_logits.weight"], before)
    with pytest.warns(UserWarning, match=message):
        loaded = reopen(path, AutoModelEncoder(trained), strict=False)
    assert_same_state(loaded, model)


def test_folders_and_the_command_line_compare_encoders_too(
    folder: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(T5Encoder(folder)).save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="with other weights"):
        overrides = {"text_encoder": T5Encoder(trained)}
        MeshTransformer.from_pretrained(tmp_path / "model", overrides=overrides)
    file, out = str(tmp_path / "model" / "model.safetensors"), str(tmp_path / "mesh.obj")
    command = ["generate", file, "a box", "--out", out, "--text-encoder"]
    assert main([*command, str(trained)]) == 1
    assert f"was trained with the text encoder {folder}" in capsys.readouterr().err
    assert main([*command, str(folder)]) == 0


@pytest.mark.parametrize(
    ("trained_with", "given"),
    [
        (LetterEncoder(), OtherEncoder()),
        (GuidanceLibraryEncoder("ViT-B-32"), GuidanceLibraryEncoder("ViT-B-16")),
        (AutoModelEncoder("nowhere/one"), AutoModelEncoder("nowhere/other")),
    ],
)
def test_encoders_without_weights_at_hand_are_told_by_their_names(
    trained_with: Any, given: Any
) -> None:
    assert identify(trained_with).is_same(identify(given)) is None
    assert identify(trained_with).is_same(identify(trained_with))


def test_an_encoder_of_another_name_is_said(tmp_path: Path) -> None:
    make_model(LetterEncoder()).save(tmp_path / "model")
    reopen(tmp_path / "model", LetterEncoder())
    with pytest.warns(UserWarning, match=r"encoder LetterEncoder, got OtherEncoder; make sure"):
        reopen(tmp_path / "model", OtherEncoder())


def test_modules_are_told_by_their_weights(tmp_path: Path) -> None:
    make_model(ModuleEncoder(0)).save(tmp_path / "model")
    reopen(tmp_path / "model", ModuleEncoder(0))
    with pytest.raises(CheckpointError, match="other weights"):
        reopen(tmp_path / "model", ModuleEncoder(1))


def test_files_that_do_not_name_their_encoder_load(tmp_path: Path) -> None:
    path = tmp_path / "model"
    make_model(LetterEncoder()).save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    del metadata["transient_facts"]
    save_file(tensors, path, metadata=metadata)
    reopen(path, OtherEncoder())


# fingerprints


def test_fingerprint_is_of_the_weights_alone(folder: Path, trained: Path) -> None:
    fingerprint = fingerprint_pretrained(str(folder))
    assert fingerprint is not None
    (folder / "README.md").write_text("more")
    assert fingerprint_pretrained(str(folder)) == fingerprint
    assert fingerprint_pretrained(str(trained)) not in (None, fingerprint)


def test_fingerprint_of_weights_as_pytorch_saves_them(tmp_path: Path) -> None:
    for name, value in (("one", 0.0), ("same", 0.0), ("other", 1.0)):
        (tmp_path / name).mkdir()
        weights = {"weight": torch.full((9, 9), value)}
        torch.save(weights, tmp_path / name / "pytorch_model.bin")
    one, same, other = (fingerprint_pretrained(str(tmp_path / n)) for n in ("one", "same", "other"))
    assert one == same != other


def test_fingerprint_of_nothing_readable_is_none(tmp_path: Path) -> None:
    names = ("nowhere/on-this-machine", str(tmp_path / "none"), str(tmp_path))
    assert [fingerprint_pretrained(name) for name in names] == [None] * 3
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    assert fingerprint_pretrained(str(tmp_path)) is None


# data


def test_cached_encodings_are_found_again_by_an_encoder_that_moved(
    folder: Path, trained: Path, tmp_path: Path
) -> None:
    dataset = MeshDataset.from_meshes(MESHES, texts=["a box"] * len(MESHES))
    dataset.save(tmp_path / "data")
    MeshDataset(tmp_path / "data").cache_text_encodings(T5Encoder(folder))
    moved = folder.rename(tmp_path / "moved")
    again = MeshDataset(tmp_path / "data")
    encoder = T5Encoder(moved)
    again.cache_text_encodings(encoder)
    assert encoder._model is None
    with pytest.raises(ValueError, match="rebuild=True"):
        MeshDataset(tmp_path / "data").cache_text_encodings(T5Encoder(trained))


def test_encodings_of_another_encoder_are_said_before_training(
    folder: Path, trained: Path, tmp_path: Path
) -> None:
    dataset = MeshDataset.from_meshes(MESHES, texts=["a box"] * len(MESHES))
    dataset.cache_text_encodings(T5Encoder(trained))
    options = {**small_run(tmp_path), "dataset": dataset}
    with pytest.warns(UserWarning, match="text encodings of the data set were made by"):
        MeshTransformerTrainer(make_model(T5Encoder(folder)), **options)
    MeshTransformerTrainer(make_model(T5Encoder(trained)), **options)
    model = make_transformer(make_autoencoder())
    MeshTransformerTrainer(model, **options)
