"""Models go to folders and to the hub, and come back the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from meshgpt_pytorch.checkpoint import CheckpointError
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.trainer import MeshAutoencoderTrainer
from meshgpt_pytorch.transformer.model import MeshTransformer
from meshgpt_pytorch.version import __version__
from tests.checkpoint.hub_server import COMMIT, serving_hub
from tests.helpers import GOLDEN, ROOT
from tests.training.runs import (
    LetterEncoder,
    assert_same_state,
    make_autoencoder,
    make_text_transformer,
    make_transformer,
    small_run,
)

UPSTREAM = GOLDEN / "upstream_files" / "hub"
TEXT = {"text_encoder": LetterEncoder()}

# folders


@pytest.mark.parametrize("make", [make_autoencoder, make_transformer])
def test_a_folder_gives_back_the_model(tmp_path: Path, make: type) -> None:
    model = make()
    model.save_pretrained(tmp_path / "model")
    names = ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == names
    loaded = type(model).from_pretrained(tmp_path / "model")
    assert_same_state(loaded, model)
    assert loaded.config == model.config
    assert_same_state(type(model).from_pretrained(str(tmp_path / "model")), model)


def test_the_folder_says_what_it_holds(tmp_path: Path) -> None:
    model = make_autoencoder()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["class"] == "MeshAutoencoder"
    assert config["library_version"] == __version__
    assert config["config"] == model.config
    card = (tmp_path / "README.md").read_text()
    assert "library_name: meshgpt-pytorch" in card
    assert "arxiv.org/abs/2311.15475" in card


def test_text_encoders_are_given_again(tmp_path: Path) -> None:
    model = make_text_transformer()
    model.save_pretrained(tmp_path)
    assert_same_state(MeshTransformer.from_pretrained(tmp_path, overrides=TEXT), model)
    with pytest.raises(CheckpointError, match="was built with text_encoder"):
        MeshTransformer.from_pretrained(tmp_path)


def test_keys_that_differ_are_listed_unless_allowed(tmp_path: Path) -> None:
    model = make_autoencoder()
    model.extra = nn.Linear(1, 1, bias=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"unexpected \['extra.weight'\]"):
        MeshAutoencoder.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="loaded the rest"):
        MeshAutoencoder.from_pretrained(tmp_path, strict=False)


def test_the_model_comes_to_the_device_that_is_named(tmp_path: Path) -> None:
    make_autoencoder().save_pretrained(tmp_path)
    assert MeshAutoencoder.from_pretrained(tmp_path, map_location="meta").device.type == "meta"


def test_options_that_go_nowhere_are_refused(tmp_path: Path) -> None:
    make_autoencoder().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="dim_codebook"):
        MeshAutoencoder.from_pretrained(tmp_path, dim_codebook=3)


def test_a_trainers_checkpoint_is_such_a_folder(tmp_path: Path) -> None:
    trainer = MeshAutoencoderTrainer(make_autoencoder(), **small_run(tmp_path))
    trainer.save(tmp_path / "ckpt")
    assert_same_state(MeshAutoencoder.from_pretrained(tmp_path / "ckpt"), trainer.unwrapped_model)


def test_folders_of_upstream_are_read() -> None:
    assert MeshAutoencoder.from_pretrained(UPSTREAM).codebook_size == 16
    model = MeshTransformer.from_pretrained(UPSTREAM, overrides=TEXT)
    saved = torch.load(UPSTREAM / "mesh-transformer.bin", weights_only=True)["model"]
    torch.testing.assert_close(model.state_dict(), saved, rtol=0, atol=0)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    wanted = r"must hold model.safetensors or mesh-autoencoder.bin, got \['notes.txt'\]"
    with pytest.raises(FileNotFoundError, match=wanted):
        MeshAutoencoder.from_pretrained(tmp_path)


# the hub


def test_models_go_to_the_hub_and_come_back(tmp_path: Path) -> None:
    files = {"user/upstream/mesh-transformer.bin": (UPSTREAM / "mesh-transformer.bin").read_bytes()}
    with serving_hub(files) as (address, requests):
        environment = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
        }
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.checkpoint.hub_client"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["url"].endswith(f"user/shapes/commit/{COMMIT}")
    assert all(report[name] for name in ("autoencoder", "transformer", "cached", "upstream"))
    assert "EntryNotFound" in report["nothing"]
    assert {"user/shapes/model.safetensors", "user/writer/config.json"} <= files.keys()
    assert "GET /user/upstream/resolve/main/mesh-transformer.bin" in requests
