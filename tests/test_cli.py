"""The command line: mesh files out, and errors as one line."""

from pathlib import Path

import pytest

from meshgpt_pytorch import load_mesh, save_mesh
from meshgpt_pytorch.cli import main
from tests.helpers import box_mesh
from tests.training.runs import make_autoencoder, make_transformer


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


def test_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "autoencoder"
    make_autoencoder().save(model)
    assert main(["reconstruct", str(model), str(tmp_path / "none.obj"), "out.obj"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("meshgpt: ") and "none.obj" in error and error.count("\n") == 1
    assert main(["generate", str(model)]) == 1
    assert "MeshTransformer" in capsys.readouterr().err
