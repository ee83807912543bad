"""The examples run; here at a size that takes seconds."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from meshgpt_pytorch import MeshAutoencoder, MeshTransformer, load_mesh, quick_recipe
from meshgpt_pytorch.transformer.text import AutoModelEncoder, minilm_path
from tests.helpers import ROOT


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def small_scale(furniture: Any) -> Any:
    """A scale of the furniture example that takes seconds."""
    return furniture.Scale(
        num_meshes=6,
        max_faces=60,
        autoencoder_steps=2,
        autoencoder_batch_size=3,
        transformer={"dim": 16, "attn_depth": 1, "attn_heads": 2, "attn_dim_head": 8},
        transformer_training=furniture.Training(4, batch_size=3, learning_rate=1e-3),
        num_captions=4,
        targets={"triangle_accuracy": 1.1, "files_loaded_again": -1.0},
    )


@pytest.fixture(scope="module")
def furniture_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    furniture = load_example("furniture")
    out = tmp_path_factory.mktemp("out")
    return furniture.run(small_scale(furniture), "cpu", out), out


def test_furniture_example_writes_what_it_reports(furniture_run: tuple[dict, Path]) -> None:
    report, out = furniture_run
    assert json.loads((out / "report.json").read_text())["captions"] == report["captions"] == 4
    assert report["training_meshes"] == 6
    paths = [path for path in (out / "meshes").iterdir()]
    files = report["files"]
    assert len(paths) == files["written"] == files["loaded_again"] == 8 - files["empty_meshes"]
    for path in paths:
        assert len(load_mesh(path).faces) > 0
    for name in ("contact_sheet.png", "highlights.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 400 and picture.height > 200


def test_furniture_example_trains_the_recipe(furniture_run: tuple[dict, Path]) -> None:
    report, out = furniture_run
    autoencoder = MeshAutoencoder.init_and_load(out / "autoencoder.safetensors")
    expected = MeshAutoencoder(**quick_recipe(num_train_steps=2).model)
    assert autoencoder.config == expected.config
    assert report["seconds"]["train the autoencoder"] > 0


def test_furniture_example_says_what_it_missed(furniture_run: tuple[dict, Path]) -> None:
    report, _ = furniture_run
    assert report["missed"] == ["triangle_accuracy"]
    stages = [each for stage, each in report["seconds"].items() if stage != "all"]
    assert report["seconds"]["all"] == pytest.approx(sum(stages), abs=0.1)


def test_furniture_example_judges_its_own_training_meshes_right() -> None:
    furniture = load_example("furniture")
    dataset = furniture.choose_meshes(
        furniture.MeshDataset(furniture.PACK), furniture.SCALES["demo"]
    )
    dataset = dataset.select(range(3))
    meshes = [furniture.Mesh(dataset[i]["vertices"], dataset[i]["faces"]) for i in range(3)]
    results = furniture.judge(dataset.captions, meshes, dataset)
    assert all(result["is_right"] and result["faces_right"] == 1 for result in results)
    swapped = furniture.judge(dataset.captions, [*meshes[1:], meshes[0]], dataset)
    assert not any(result["is_right"] for result in swapped)
    assert swapped[0]["nearest_training_mesh"] == dataset.captions[1]


def test_furniture_example_without_a_cuda_device_says_so_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    furniture = load_example("furniture")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = ["furniture.py", "--device", "cuda", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="2"):
        furniture.main()
    message = "this torch sees no CUDA device, got --device cuda; use --device cpu"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_furniture_example_can_be_shortened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    furniture = load_example("furniture")
    scale = furniture.SCALES["full"]
    assert scale.lasting(None, None, None) == scale
    short = scale.lasting(200, 60, 5)
    assert (short.autoencoder_steps, short.num_captions) == (200, 5)
    assert short.transformer_training.num_train_steps == 60
    assert short.transformer_training.warmup_steps == 1
    scales = {"demo": small_scale(furniture)}
    monkeypatch.setattr(furniture, "SCALES", scales)
    arguments = ["--autoencoder-steps", "1", "--transformer-steps", "2", "--captions", "1"]
    monkeypatch.setattr(sys, "argv", ["furniture.py", "--out", str(tmp_path), *arguments])
    assert furniture.main() == 1
    assert json.loads((tmp_path / "report.json").read_text())["captions"] == 1
    histories = [f"mesh-{name}.history.jsonl" for name in ("autoencoder", "transformer")]
    lines = [(tmp_path / "checkpoints" / name).read_text().splitlines() for name in histories]
    assert [len(each) for each in lines] == [1, 2]


def test_full_scale_takes_all_meshes() -> None:
    furniture = load_example("furniture")
    dataset = furniture.MeshDataset(furniture.PACK)
    chosen = furniture.choose_meshes(dataset, furniture.SCALES["full"])
    assert len(chosen) == len(dataset) == 739


def test_demo_meshes_are_real_and_varied() -> None:
    furniture = load_example("furniture")
    scale = furniture.SCALES["demo"]
    dataset = furniture.choose_meshes(furniture.MeshDataset(furniture.PACK), scale)
    assert len(dataset) >= 32 and int(dataset.num_faces.max()) <= 100
    assert len(set(dataset.categories)) >= 8
    assert len(set(dataset.captions)) == len(dataset)


def test_saved_models_generate_again(furniture_run: tuple[dict, Path]) -> None:
    _, out = furniture_run
    encoder = AutoModelEncoder(minilm_path())
    transformer = MeshTransformer.init_and_load(
        out / "transformer.safetensors", overrides={"text_encoder": encoder}
    )
    coords, mask = transformer.generate(texts=["a chair"], max_seq_len=12, progress=False)
    assert coords.shape[:2] == mask.shape == (1, 2)
