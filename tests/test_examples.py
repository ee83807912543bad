"""The examples run; here at a size that takes seconds."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from meshgpt_pytorch import MeshTransformer, load_mesh
from meshgpt_pytorch.transformer.text import AutoModelEncoder, minilm_path
from tests.helpers import ROOT


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def furniture_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    furniture = load_example("furniture")
    out = tmp_path_factory.mktemp("out")
    scale = furniture.Scale(
        num_meshes=6,
        max_faces=60,
        autoencoder={
            "encoder_dims_through_depth": (16, 16),
            "decoder_dims_through_depth": (16, 16),
            "dim_codebook": 16,
            "codebook_size": 64,
        },
        autoencoder_training=furniture.Training(6, batch_size=3, learning_rate=1e-3),
        quantizer_warmup_steps=3,
        transformer={"dim": 16, "attn_depth": 1, "attn_heads": 2, "attn_dim_head": 8},
        transformer_training=furniture.Training(4, batch_size=3, learning_rate=1e-3),
        num_captions=4,
        targets={"triangle_accuracy": 1.1, "files_loaded_again": -1.0},
    )
    return furniture.run(scale, "cpu", out), out


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
