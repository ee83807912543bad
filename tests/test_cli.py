"""The command line: mesh files out, and errors as one line."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from meshgpt_pytorch import load_mesh, save_mesh
from meshgpt_pytorch.cli import main
from meshgpt_pytorch.transformer.text import AutoModelEncoder
from meshgpt_pytorch.version import __version__
from tests.helpers import GOLDEN, box_mesh, save_small_t5
from tests.training.runs import make_autoencoder, make_text_transformer, make_transformer


def test_generate_writes_a_mesh_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "transformer", tmp_path / "new" / "mesh.obj"
    make_transformer().save(model)
    assert main(["generate", str(model), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: {len(load_mesh(out).faces)} faces\n"


def test_seed_repeats_a_mesh(tmp_path: Path) -> None:
    model = tmp_path / "transformer"
    make_transformer().save(model)
    written = []
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        out = tmp_path / f"{name}.obj"
        assert main(["generate", str(model), "--out", str(out), "--seed", str(seed)]) == 0
        written.append(out.read_text())
    assert written[0] == written[1] != written[2]


def test_reconstruct_writes_a_mesh_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "autoencoder", tmp_path / "out.ply"
    make_autoencoder().save(model)
    mesh = save_mesh(box_mesh(), tmp_path / "box.obj")
    assert main(["reconstruct", str(model), str(mesh), str(out)]) == 0
    assert f"of {len(box_mesh().faces)} faces" in capsys.readouterr().out
    assert len(load_mesh(out).faces) > 0


def test_shared_vertices_of_any_model_may_coincide(tmp_path: Path) -> None:
    tokenizer, model = tmp_path / "autoencoder", tmp_path / "transformer"
    make_autoencoder().save(tokenizer)
    make_transformer().save(model)
    box, out = save_mesh(box_mesh(), tmp_path / "box.obj"), tmp_path / "out.obj"
    for words in (["reconstruct", tokenizer, box, out], ["generate", model, "--out", out]):
        num_vertices = []
        for options in ([], ["--vertex-consistent"]):
            assert main([*map(str, words), *options]) == 0
            num_vertices.append(len(load_mesh(out).vertices))
        assert num_vertices[1] < num_vertices[0]


def test_faces_are_distinct_if_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "transformer", tmp_path / "out.obj"
    transformer = make_transformer()
    with torch.no_grad():
        # the same code again and again is a face without area
        transformer.to_logits.bias[0] += 100
    transformer.save(model)
    words = ["generate", str(model), "--out", str(out), "--temperature", "0"]
    words.append("--vertex-consistent")
    assert main(words) == 1
    assert "the mesh has no faces" in capsys.readouterr().err
    assert main([*words, "--distinct-faces"]) == 0
    assert len(load_mesh(out).faces) > 0


def test_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "autoencoder"
    make_autoencoder().save(model)
    assert main(["reconstruct", str(model), str(tmp_path / "none.obj"), "out.obj"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("meshgpt: ") and "none.obj" in error and error.count("\n") == 1
    for sentence in ([], ["a chair"]):
        assert main(["generate", str(model), *sentence]) == 1
        assert "holds a MeshAutoencoder, wanted a MeshTransformer" in capsys.readouterr().err


def test_a_model_with_text_wants_a_sentence_and_one_without_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, with_text = tmp_path / "plain", tmp_path / "text"
    make_transformer().save(plain)
    make_text_transformer().save(with_text)
    assert main(["generate", str(plain), "a chair"]) == 1
    assert "takes no sentence" in capsys.readouterr().err
    assert main(["generate", str(with_text)]) == 1
    assert "takes a sentence after it" in capsys.readouterr().err


def test_a_model_with_an_encoder_by_type_generates_from_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, model, out = tmp_path / "t5", tmp_path / "transformer", tmp_path / "mesh.obj"
    save_small_t5(encoder, ["a", "chair", "table"])
    make_transformer(
        condition_on_text=True, text_condition_model_kwargs=({"name": str(encoder)},)
    ).save(model)
    assert main(["generate", str(model), "a chair", "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"{out}: {len(load_mesh(out).faces)} faces\n")
    assert main(["generate", str(model)]) == 1
    assert "takes a sentence after it" in capsys.readouterr().err


def test_an_encoder_that_the_file_lacks_is_the_one_named(tmp_path: Path) -> None:
    encoder, model, out = tmp_path / "t5", tmp_path / "transformer", tmp_path / "mesh.obj"
    save_small_t5(encoder, ["a", "chair", "table"])
    make_transformer(condition_on_text=True, text_encoder=AutoModelEncoder(encoder)).save(model)
    words = ["generate", str(model), "a chair", "--out", str(out), "--text-encoder", str(encoder)]
    assert main(words) == 0
    assert len(load_mesh(out).faces) > 0


def test_a_model_of_1x_with_text_wants_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    model = GOLDEN / "upstream_files" / "hub" / "mesh-transformer.bin"
    assert main(["generate", str(model)]) == 1
    assert "takes a sentence after it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mesh.xyz", "folder.obj"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "folder.obj").mkdir()
    missing = tmp_path / "no model"
    assert main(["generate", str(missing), "--out", str(tmp_path / name)]) == 1
    assert f"cannot write {tmp_path / name}" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_device_is_used(tmp_path: Path) -> None:
    model, out = tmp_path / "transformer", tmp_path / "mesh.obj"
    make_transformer().save(model)
    assert main(["--device", "cuda", "generate", str(model), "--out", str(out)]) == 0


def test_a_device_that_is_not_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["--device", "cuda", "generate", str(tmp_path / "model")]) == 1
    assert "sees no CUDA device, got --device cuda" in capsys.readouterr().err


def test_the_package_runs_as_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "meshgpt_pytorch", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == __version__
