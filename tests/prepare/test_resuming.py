"""What an earlier run left is used again: after changes, a kill, a full disk, for more budgets."""

import multiprocessing
import os
import signal

import pytest
import torch

from meshgpt_pytorch import MeshDataset, prepare_meshes, save_mesh
from meshgpt_pytorch.prepare import PrepareReport
from meshgpt_pytorch.prepare.results import ResultFolder
from tests.data.faults import full_disk
from tests.helpers import box_mesh

SETTINGS = {"num_workers": 0, "progress": False}


def test_a_second_run_does_only_what_is_new_or_changed(models, tmp_path):
    prepare_meshes(models, tmp_path / "out", **SETTINGS)
    save_mesh(box_mesh(size=(1, 1, 1)), models / "pyramid.GLB")
    save_mesh(box_mesh(size=(1, 0.2, 0.2)), models / "plank.ply")
    (models / "toys" / "tetra-pack.stl").rename(models / "tetrahedron.stl")
    report = prepare_meshes(models, tmp_path / "out", **SETTINGS)
    assert {record.key: record.is_reused for record in report.records} == {
        "plank.ply": False,
        "pyramid.GLB": False,
        "storage/oakChest_01.obj": True,
        "tetrahedron.stl": True,
    }
    captions = [item["texts"] for item in MeshDataset(tmp_path / "out")]
    assert captions == ["plank", "pyramid", "oak chest", "tetrahedron"]
    other = prepare_meshes(models, tmp_path / "out", max_faces=11, **SETTINGS)
    assert not any(record.is_reused for record in other.records)


def test_a_damaged_result_is_made_anew(models, tmp_path):
    first = prepare_meshes(models, tmp_path / "out", **SETTINGS)
    for path in (tmp_path / "out" / "results").rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:-30])
    second = prepare_meshes(models, tmp_path / "out", **SETTINGS)
    assert not any(record.is_reused for record in second.records)
    assert second.outcomes == first.outcomes


def test_a_result_with_any_byte_changed_is_read_as_it_was_or_not_at_all(models, tmp_path):
    prepare_meshes(models, tmp_path / "out", **SETTINGS)
    results = ResultFolder(tmp_path / "out" / "results")
    path = next(results.path.rglob("*.npz"))
    whole, content = results.get(path.stem), path.read_bytes()
    changed = bytearray(content)
    num_refused = 0
    for place in range(0, len(content), 5):
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        changed[place] = content[place]
        found = results.get(path.stem)
        num_refused += found is None
        assert found is None or found.record == whole.record
        assert found is None or torch.equal(found.mesh.faces, whole.mesh.faces)
    assert num_refused > 0


def be_killed_at_the_third_result(models, target):
    torch.set_num_threads(1)
    put, written = ResultFolder.put, []

    def put_some(self, name, result):
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, name, result)
        written.append(name)

    ResultFolder.put = put_some
    prepare_meshes(models, target, **SETTINGS)


def test_a_killed_run_goes_on_where_it_was(models, tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=be_killed_at_the_third_result, args=(models, tmp_path / "out")
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out" / "dataset.json").exists()
    report = prepare_meshes(models, tmp_path / "out", **SETTINGS)
    assert [record.is_reused for record in report.records] == [True, True, False]
    assert len(MeshDataset(tmp_path / "out")) == 3


def test_a_full_disk_ends_the_run_and_the_data_set_stays_as_it_was(models, tmp_path):
    prepare_meshes(models, tmp_path / "out", **SETTINGS)
    save_mesh(box_mesh(size=(1, 0.2, 0.2)), models / "plank.ply")
    with full_disk(500), pytest.raises(OSError, match="File too large"):
        prepare_meshes(models, tmp_path / "out", **SETTINGS)
    assert len(MeshDataset(tmp_path / "out")) == 3
    report = prepare_meshes(models, tmp_path / "out", **SETTINGS)
    assert sum(record.is_reused for record in report.records) == 3
    assert len(MeshDataset(tmp_path / "out")) == 4


def test_several_budgets_give_the_levels_that_differ_and_are_accurate(furniture, models, tmp_path):
    fine = next(mesh for mesh in furniture if len(mesh.faces) > 700)
    save_mesh(fine, models / "fine.ply")
    (models / "bad.obj").write_text("no mesh")
    prepare_meshes(models, tmp_path / "out", max_faces=400, **SETTINGS)
    report = prepare_meshes(models, tmp_path / "out", max_faces=(800, 200, 400), **SETTINGS)
    found = [(record.key, record.max_faces, record.outcome) for record in report.records]
    assert [each for each in found if each[0] != "fine.ply"] == [
        ("bad.obj", 200, "unreadable"),
        ("pyramid.GLB", 200, "kept"),
        ("storage/oakChest_01.obj", 200, "kept"),
        ("toys/tetra-pack.stl", 200, "kept"),
    ]
    levels = [record for record in report.kept if record.key == "fine.ply"]
    assert [record.max_faces for record in levels][-2:] == [400, 800]
    sizes = [record.faces_after for record in levels]
    assert sizes == sorted({*sizes}) and sizes[-1] == len(fine.faces)
    assert levels[-2].is_reused, "as the run with one budget left it"

    dataset = MeshDataset(tmp_path / "out")
    assert dataset.num_faces.tolist() == [record.faces_after for record in report.kept]
    groups = dict(zip(dataset.labels["key"], dataset.labels["group"], strict=True))
    assert len(groups) == len(set(groups.values())) == 4, "levels of a mesh are one group"
    assert len(dataset.augment(lambda mesh, generator: mesh, one_of="key")) == 4
    page = (tmp_path / "out" / "report.txt").read_text()
    assert "5 meshes in" in page and "Outcomes with at most 200 faces" in page
    assert str(report).startswith(f"5 meshes: {len(report.kept)} kept, ")
    assert PrepareReport.from_json(report.to_json()) == report
