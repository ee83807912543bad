"""Sources: what is damaged, hidden or no file at all is named, and hides nothing else."""

import io
import os
import random
import zipfile
from dataclasses import replace

import pytest

from meshgpt_pytorch import prepare_meshes, save_mesh
from meshgpt_pytorch.prepare import sources as module
from meshgpt_pytorch.prepare.captions import label_sources
from meshgpt_pytorch.prepare.sources import copy_source, find_sources
from tests.data.faults import full_disk
from tests.helpers import box_mesh

SETTINGS = {"num_workers": 0, "progress": False}
CATALOGUE = "PluginFurnitureCatalog.properties"
ENTRIES = b"name#1=Box\nmodel#1=/box.obj\nmodelRotation#1=1 0 0 0 0 -1 0 1 0\n"


def archive_bytes(members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def mutated(content, rng):
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 5))):
        place, length = rng.randrange(len(changed)), rng.randrange(4)
        # most often of the same length, so that the places that an archive names stay right
        inserted = rng.randbytes(rng.choice((length, length, length, 1)))
        changed[place : place + length] = inserted
    return bytes(changed)


@pytest.mark.parametrize("suffix", ["zip", "sh3f"])
def test_a_damaged_archive_gives_its_meshes_or_their_problems(tmp_path, suffix):
    rng = random.Random(suffix)
    obj = save_mesh(box_mesh(), tmp_path / "box.obj").read_bytes()
    whole = archive_bytes({CATALOGUE: ENTRIES, "box.obj": obj}) if suffix == "sh3f" else b""
    whole = whole or archive_bytes({"box.obj": obj, "box.txt": b"a box, " * 40, "b/c.obj": obj})
    path = tmp_path / "models" / f"many.{suffix}"
    path.parent.mkdir()
    found = dict.fromkeys(("whole", "problem", "damaged"), 0)
    for _ in range(400):
        path.write_bytes(mutated(whole, rng))
        sources = find_sources(path.parent)
        label_sources(sources, "sidecar", None)
        for source in sources:
            try:
                if source.problem is None:
                    copied = copy_source(source, tmp_path, 1_000_000).read_bytes()
                    found["whole"] += copied == obj
                else:
                    found["problem"] += 1
            except (ValueError, KeyError, OSError):
                found["damaged"] += 1
    assert min(found.values()) > 0, found


def test_one_bad_entry_of_a_catalogue_leaves_the_others(tmp_path):
    obj = save_mesh(box_mesh(), tmp_path / "box.obj").read_bytes()
    entries = ENTRIES + b"name#2=Tilted\nmodel#2=/box.obj\nmodelRotation#2=one\n"
    path = tmp_path / "library.sh3f"
    path.write_bytes(archive_bytes({CATALOGUE: entries, "box.obj": obj}))
    report = prepare_meshes(path, tmp_path / "out", **SETTINGS)
    assert report.outcomes == {"kept": 1, "unreadable": 1}
    assert "modelRotation#2 of the catalogue must be 9 numbers" in report.page()


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path):
    models = tmp_path / "models"
    save_mesh(box_mesh(), models / "box.obj")
    (models / "lost.obj").symlink_to(models / "nowhere.obj")
    os.mkfifo(models / "pipe.glb")
    # a file that exists, opens, and cannot be read
    (models / "broken.ply").symlink_to("/proc/self/mem")
    for workers in (0, 1):
        settings = {**SETTINGS, "num_workers": workers}
        report = prepare_meshes(models, tmp_path / f"out{workers}", **settings)
        assert {record.key: record.reason for record in report.rejected} == {
            "broken.ply": "[Errno 5] Input/output error",
            "lost.obj": "it is a link to nothing",
            "pipe.glb": "it is no file",
        }


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    save_mesh(box_mesh(), tmp_path / "models" / "box.obj")
    save_mesh(box_mesh(), tmp_path / "models" / "locked" / "box.obj")
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    sources = find_sources(tmp_path / "models")
    assert [(source.key, source.problem) for source in sources] == [
        ("box.obj", None),
        ("locked/", "cannot list the folder: Permission denied"),
    ]


def test_a_link_to_a_folder_is_named_and_not_followed(tmp_path):
    models = tmp_path / "models"
    save_mesh(box_mesh(), models / "box.obj")
    save_mesh(box_mesh(), tmp_path / "other" / "box.obj")
    (models / "linked").symlink_to(tmp_path / "other")
    (models / "around").symlink_to(models)
    (models / ".hidden").symlink_to(tmp_path / "other")
    report = prepare_meshes(models, tmp_path / "out", **SETTINGS)
    assert [record.key for record in report.kept] == ["box.obj"]
    for key in ("around/", "linked/"):
        assert f"{key}: unreadable: it is a link to a folder, which is not" in report.page()
    assert len(report.rejected) == 2
    # what is asked for by a link is read
    assert [source.key for source in find_sources(models / "linked")] == ["box.obj"]


def test_what_is_not_read_in_an_archive_is_named(tmp_path):
    obj = save_mesh(box_mesh(), tmp_path / "box.obj").read_bytes()
    members = {
        "box.obj": obj,
        "a/scene.FBX": b"Kaydara",
        "inner.zip": archive_bytes({"b.obj": obj}),
    }
    unnamed = {"read.me": b"", "picture.png": b"", "__MACOSX/scene.fbx": b"", "a/.b.blend": b""}
    path = tmp_path / "models" / "all.zip"
    path.parent.mkdir()
    path.write_bytes(archive_bytes({**members, **unnamed}))
    report = prepare_meshes(path.parent, tmp_path / "out", **SETTINGS)
    assert {record.key: (record.outcome, record.reason) for record in report.records} == {
        "all.zip/a/scene.FBX": (
            "unsupported",
            ".fbx files are not read; export it as .glb or .obj",
        ),
        "all.zip/box.obj": ("kept", ""),
        "all.zip/inner.zip": ("unsupported", "archives in archives are not read; unpack it"),
    }


def test_a_model_of_a_catalogue_in_another_format_is_unsupported(tmp_path):
    path = tmp_path / "library.sh3f"
    path.write_bytes(archive_bytes({CATALOGUE: b"model#1=/box.3ds\n", "box.3ds": b"MM"}))
    [source] = find_sources(path)
    assert source.problem_kind == "unsupported"
    assert source.problem == ".3ds files are not read; export it as .glb or .obj"


def test_names_that_are_no_text_are_told_in_the_report(tmp_path):
    models = tmp_path / "models"
    save_mesh(box_mesh(), models / "box.obj")
    with open(os.fsencode(models) + b"/ch\xe4ir.obj", "wb") as file:
        file.write(b"no mesh")
    prepare_meshes(models, tmp_path / "out", **SETTINGS)
    page = (tmp_path / "out" / "report.txt").read_text(encoding="utf-8")
    assert "ch\\udce4ir.obj: unreadable: it holds 0 vertices and no faces" in page


def test_a_full_disk_for_what_is_unpacked_ends_the_run_and_blames_no_mesh(tmp_path):
    path = tmp_path / "models.zip"
    path.write_bytes(archive_bytes({"box.obj": bytes(300_000)}))
    with full_disk(100_000), pytest.raises(OSError, match=r"File too large: .*mesh\.obj"):
        prepare_meshes(path, tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out" / "report.json").exists()


def test_sidecars_larger_than_a_text_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_SIDECAR_BYTES", 10)
    save_mesh(box_mesh(), tmp_path / "box.obj")
    (tmp_path / "box.txt").write_text("a small text that is too large")
    sources = find_sources(tmp_path)
    assert "caption" not in label_sources(sources, "sidecar", None).by_key["box.obj"]
    packed = tmp_path / "all.zip"
    packed.write_bytes(archive_bytes({"box.obj": b"", "box.txt": b"a box, a box"}))
    source = replace(sources[0], file=str(packed), member="box.obj")
    assert module.read_beside(source, ".txt") is None
