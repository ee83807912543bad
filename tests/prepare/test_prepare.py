"""From a folder of any files to a data set and a report; a second run does only what is new."""

import json
import os
import sys
import zipfile

import numpy as np
import pytest
import torch
import trimesh

from meshgpt_pytorch import MeshDataset, canonicalize_mesh, prepare_meshes, save_mesh
from meshgpt_pytorch.cli import main
from meshgpt_pytorch.mesh import Mesh, surface_distance
from meshgpt_pytorch.prepare import PrepareReport, single
from meshgpt_pytorch.prepare.captions import MAX_LABEL_CHARACTERS
from tests.helpers import box_mesh, pyramid_mesh, tetrahedron_mesh

SETTINGS = {"num_workers": 0, "progress": False}


def outcomes(report):
    return {record.key: record.outcome for record in report.records}


def test_a_folder_becomes_a_data_set(models, tmp_path):
    report = prepare_meshes(models, tmp_path / "out", **SETTINGS)
    assert report.outcomes == {"kept": 3} and report.rejected == ()
    dataset = MeshDataset(tmp_path / "out")
    assert [dataset[i]["texts"] for i in range(3)] == ["pyramid", "oak chest", "tetra pack"]
    assert dataset.labels["key"].tolist() == [record.key for record in report.kept]
    for item, mesh in zip(dataset, (pyramid_mesh(), box_mesh(), tetrahedron_mesh()), strict=True):
        canonical = canonicalize_mesh(mesh)
        assert torch.equal(item["vertices"], canonical.vertices)
        assert torch.equal(item["faces"], canonical.faces)
    again = PrepareReport.from_json((tmp_path / "out" / "report.json").read_text())
    assert again == report
    assert (tmp_path / "out" / "contact_sheet.png").stat().st_size > 1000
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_every_format_gives_the_same_mesh(tmp_path):
    shape = trimesh.Trimesh(box_mesh().vertices.numpy(), box_mesh().faces.numpy(), process=False)
    folder = tmp_path / "models"
    folder.mkdir()
    for suffix in ("obj", "ply", "stl", "off", "glb", "3mf", "dae"):
        trimesh.Scene(shape).export(folder / f"box.{suffix}") if suffix == "3mf" else shape.export(
            folder / f"box.{suffix}"
        )
    for name, content in trimesh.Scene(shape).export(file_type="gltf").items():
        (folder / name).write_bytes(content)
    report = prepare_meshes(folder, tmp_path / "out", **SETTINGS)
    assert report.outcomes == {"kept": 8}, report.page()
    assert len({len(item["faces"]) for item in MeshDataset(tmp_path / "out")}) == 1
    assert len(report.duplicate_groups) == 1 and len(report.duplicate_groups[0]) == 8


def test_what_is_bad_is_named_and_stops_nothing(models, tmp_path):
    (models / "empty.obj").touch()
    (models / "letter.obj").write_text("To whom it may concern\n")
    glb = save_mesh(box_mesh(), tmp_path / "box.glb").read_bytes()
    (models / "cut.glb").write_bytes(glb[: len(glb) // 2])
    trimesh.Scene(trimesh.PointCloud(np.eye(3))).export(models / "points.glb")
    save_mesh(box_mesh(), models / "nan.obj")
    (models / "nan.obj").write_text((models / "nan.obj").read_text().replace("1 ", "nan ", 1))
    (models / "line.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    (models / "broken.zip").write_bytes(b"PK not an archive")
    (models / "scene.fbx").write_bytes(b"Kaydara")
    (models / "picture.png").write_bytes(b"no mesh, and no word about it")
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 9\nproperty float x\n"
    header += "property float y\nproperty float z\nelement face 5000000\n"
    (models / "huge.ply").write_text(
        f"{header}property list uchar int vertex_indices\nend_header\n"
    )
    report = prepare_meshes(models, tmp_path / "out", **SETTINGS)
    assert report.outcomes["kept"] == 3
    assert {key: outcome for key, outcome in outcomes(report).items() if outcome != "kept"} == {
        "empty.obj": "unreadable",
        "letter.obj": "unreadable",
        "cut.glb": "unreadable",
        "points.glb": "unreadable",
        "nan.obj": "unreadable",
        "line.obj": "unusable",
        "broken.zip": "unreadable",
        "scene.fbx": "unsupported",
        "huge.ply": "too large",
    }
    page = (tmp_path / "out" / "report.txt").read_text()
    assert "empty.obj: unreadable: the file is empty" in page
    assert "huge.ply: too large: it has about 5,000,000 faces, more than max_input_faces" in page
    assert "scene.fbx: unsupported: .fbx files are not read; export it as .glb" in page
    assert "picture.png" not in page
    assert len(MeshDataset(tmp_path / "out")) == 3


@pytest.mark.parametrize("num_workers", [0, 1])
def test_strange_counts_and_names_in_a_file_stop_nothing(models, tmp_path, num_workers):
    gltf = {"asset": {"version": "2.0"}, "buffers": [{"uri": "."}], "nodes": [{"mesh": 0}]}
    gltf["meshes"] = [{"primitives": [{"attributes": {"POSITION": 0}}]}]
    gltf["accessors"] = [{"count": "1e999", "componentType": 5126, "type": "VEC3"}]
    (models / "count.gltf").write_text(json.dumps(gltf).replace('"1e999"', "1e999"))
    digits = "9" * 5000
    (models / "many.ply").write_text(f"ply\nformat ascii 1.0\nelement face {digits}\nend_header\n")
    (models / "many.off").write_text(f"OFF\n3 {digits} 0\n")
    settings = {**SETTINGS, "num_workers": num_workers}
    report = prepare_meshes(models, tmp_path / "out", **settings)
    assert {key: each for key, each in outcomes(report).items() if each != "kept"} == {
        "count.gltf": "unreadable",
        "many.off": "too large",
        "many.ply": "too large",
    }
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in models.glob("*.gltf"):
            archive.write(path, path.name)
    with pytest.raises(ValueError, match=r"none of 1 meshes was kept: .* 1 unreadable"):
        prepare_meshes(tmp_path / "all.zip", tmp_path / "packed", **settings)


def test_an_error_within_a_library_costs_one_mesh(models, tmp_path, monkeypatch):
    repair_winding = single.repair_winding

    def refuse_boxes(mesh):
        if len(mesh.vertices) == 8:
            raise RuntimeError("not enough memory")
        return repair_winding(mesh)

    monkeypatch.setattr(single, "repair_winding", refuse_boxes)
    report = prepare_meshes(models, tmp_path / "out", **SETTINGS)
    assert report.outcomes == {"kept": 2, "crashed": 1}
    assert report.rejected[0].reason == "RuntimeError: not enough memory"
    monkeypatch.undo()
    again = prepare_meshes(models, tmp_path / "out", **SETTINGS)
    assert again.outcomes == {"kept": 3}, "another run tries again"


def test_meshes_over_the_budget_are_decimated_or_left_out(furniture, tmp_path):
    big = [mesh for mesh in furniture if len(mesh.faces) > 700][:4]
    for index, mesh in enumerate(big):
        save_mesh(mesh, tmp_path / "models" / f"{index}.ply")
    report = prepare_meshes(tmp_path / "models", tmp_path / "out", max_faces=300, **SETTINGS)
    assert set(report.outcomes) <= {"kept", "inaccurate"} and report.kept
    dataset = MeshDataset(tmp_path / "out")
    assert int(dataset.num_faces.max()) <= 300
    for item, record in zip(dataset, report.kept, strict=True):
        mesh = Mesh(item["vertices"], item["faces"])
        distance = surface_distance(big[int(record.key[0])], mesh)
        assert distance.hausdorff < 0.12 and distance.chamfer < 0.012
        assert record.faces_after == len(mesh.faces) < record.faces_before
    strict = prepare_meshes(
        tmp_path / "models", tmp_path / "all", max_faces=800, max_hausdorff=0.02, **SETTINGS
    )
    assert all(record.hausdorff < 0.02 for record in strict.kept)


def test_adaptive_takes_fewer_faces_and_stays_accurate(furniture, tmp_path):
    mesh = next(mesh for mesh in furniture if len(mesh.faces) > 700)
    save_mesh(mesh, tmp_path / "models" / "mesh.ply")
    plain = prepare_meshes(tmp_path / "models", tmp_path / "plain", **SETTINGS).records[0]
    fewest = prepare_meshes(tmp_path / "models", tmp_path / "few", adaptive=True, **SETTINGS)
    assert fewest.records[0].faces_after < plain.faces_after
    assert fewest.records[0].hausdorff < 0.10 and fewest.records[0].chamfer < 0.010


def test_the_report_tells_counts_sizes_distances_and_look_alikes(furniture, models, tmp_path):
    big = next(mesh for mesh in furniture if 400 < len(mesh.faces) < 800)
    save_mesh(big, models / "big.ply")
    save_mesh(big, models / "copy.obj")
    (models / "bad.obj").write_text("no mesh")
    report = prepare_meshes(models, tmp_path / "out", max_faces=390, **SETTINGS)
    lines = [" ".join(line.split()) for line in report.page().splitlines()]
    assert "Outcomes with at most 390 faces" in lines
    assert "5 kept" in lines and "1 unreadable" in lines
    bar = "#" * 40
    assert f"0 - 25 3 {bar} 3 {bar}" in lines, "before and after"
    assert any(line.startswith("400 - 800 2 ###") and line.endswith(" 0") for line in lines)
    assert any(line.startswith("200 - 400 0 2 ###") for line in lines)
    for name in ("hausdorff", "chamfer"):
        values = [getattr(record, name) for record in report.kept]
        expected = f"{name} median {np.median(values):.4f}, 90 % "
        assert any(line.startswith(expected) for line in lines)
    assert "Near duplicates: 1 groups, 2 meshes, 2 in the largest" in lines
    assert "big.ply, copy.obj" in lines
    assert any(line.startswith("bad.obj: unreadable: ") for line in lines)


def test_progress_is_shown(models, tmp_path, capsys):
    prepare_meshes(models, tmp_path / "out", num_workers=0)
    assert "meshes, 800 faces: 100%" in capsys.readouterr().err


def test_nothing_kept_is_an_error_with_the_report_written(models, tmp_path):
    with pytest.raises(ValueError, match="none of 3 meshes was kept: 3 meshes: 3 inaccurate"):
        prepare_meshes(models, tmp_path / "out", max_chamfer=1e-9, **SETTINGS)
    assert "allowed are 0.1 and 1e-09" in (tmp_path / "out" / "report.txt").read_text()


def test_without_a_package_to_decimate_with_it_says_what_to_install(
    furniture, tmp_path, changed_packages
):
    for name in ("pymeshlab", "fast_simplification"):
        changed_packages.setitem(sys.modules, name, None)
    save_mesh(furniture[0], tmp_path / "models" / "mesh.ply")
    with pytest.raises(RuntimeError, match=r"not installed, pip install .*\[simplify\]"):
        prepare_meshes(tmp_path / "models", tmp_path / "out", max_faces=20, **SETTINGS)


def test_a_broken_package_to_decimate_with_costs_no_mesh(furniture, tmp_path, changed_packages):
    (tmp_path / "pymeshlab.py").write_text("raise ImportError('libGL.so.1: cannot open')")
    changed_packages.delitem(sys.modules, "pymeshlab", raising=False)
    changed_packages.syspath_prepend(tmp_path)
    mesh = next(mesh for mesh in furniture if len(mesh.faces) > 200)
    save_mesh(mesh, tmp_path / "models" / "mesh.ply")
    limits = {"max_faces": 150, "max_hausdorff": 1.0, "max_chamfer": 1.0}
    report = prepare_meshes(tmp_path / "models", tmp_path / "out", **limits, **SETTINGS)
    assert [record.method for record in report.kept] == ["fast, welded at 1/256"]


def test_quads_are_kept_merged_or_left_out(tmp_path):
    models = tmp_path / "models"
    save_mesh(box_mesh(quads=True), models / "quads.ply")
    save_mesh(box_mesh(size=(1, 0.4, 0.4)), models / "triangles.obj")
    report = prepare_meshes(models, tmp_path / "quads", quads=True, **SETTINGS)
    assert outcomes(report) == {"quads.ply": "kept", "triangles.obj": "not quads"}
    assert MeshDataset(tmp_path / "quads")[0]["faces"].shape == (6, 4)
    merged = prepare_meshes(
        models, tmp_path / "merged", quads=True, merge_triangles=True, **SETTINGS
    )
    assert merged.outcomes == {"kept": 2}
    assert [item["faces"].shape for item in MeshDataset(tmp_path / "merged")] == [(6, 4), (6, 4)]
    triangles = prepare_meshes(models, tmp_path / "triangles", **SETTINGS)
    assert [record.faces_after for record in triangles.records] == [12, 12]


CATALOGUE = r"""# a library of furniture
license=CC0
id#1=box
name#1=Bo\u00eete rouge
category#1=Storage
tags#1=red, \
       wood
creator#1=Somebody
model#1=/models/box/box.obj
modelRotation#1=1 0 0 0 0 -1 0 1 0
id#2=gone
name#2=Gone
model#2=/models/gone.obj
"""


def write_library(path, mesh):
    obj = save_mesh(mesh, path.parent / "unpacked.obj")
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", CATALOGUE.encode("latin-1"))
        archive.writestr("models/box/box.obj", obj.read_bytes())
        archive.writestr("models/other.obj", obj.read_bytes())
    obj.unlink()


def test_a_furniture_library_brings_names_labels_and_rotations(tmp_path):
    write_library(tmp_path / "models" / "furniture.sh3f", box_mesh(size=(1, 0.5, 0.25)))
    report = prepare_meshes(tmp_path / "models", tmp_path / "out", captions="catalogue", **SETTINGS)
    assert outcomes(report) == {
        "furniture.sh3f/models/box/box.obj": "kept",
        "furniture.sh3f/models/gone.obj": "unreadable",
    }
    dataset = MeshDataset(tmp_path / "out")
    labels = {name: values[0] for name, values in dataset.labels.items()}
    assert labels["caption"] == "boîte rouge" and labels["name"] == "Boîte rouge"
    assert labels["category"] == "Storage" and labels["tags"] == "red, wood"
    assert labels["licence"] == "CC0" and labels["creator"] == "Somebody"
    # turned about x: what was high is deep
    extent = np.ptp(dataset[0]["vertices"].numpy(), axis=0)
    np.testing.assert_allclose(extent, [2, 0.5, 1], atol=0.05)


def test_a_zip_archive_is_a_folder(tmp_path):
    (tmp_path / "models").mkdir()
    shape = trimesh.Trimesh(box_mesh().vertices.numpy(), box_mesh().faces.numpy(), process=False)
    with zipfile.ZipFile(tmp_path / "models" / "all.zip", "w") as archive:
        for name, content in trimesh.Scene(shape).export(file_type="gltf").items():
            archive.writestr(f"deep/{name}", content)
        archive.writestr("toys/ball.obj", save_mesh(pyramid_mesh(), tmp_path / "b.obj").read_text())
        archive.writestr("toys/ball.txt", "a pointed ball\n")
        archive.writestr("__MACOSX/toys/._ball.obj", b"")
    report = prepare_meshes(tmp_path / "models", tmp_path / "out", captions="sidecar", **SETTINGS)
    assert outcomes(report) == {
        "all.zip/deep/model.gltf": "kept",
        "all.zip/toys/ball.obj": "kept",
    }
    assert [item["texts"] for item in MeshDataset(tmp_path / "out")] == ["", "a pointed ball"]
    assert report.missing_captions == ("all.zip/deep/model.gltf",)
    assert "Without a caption: 1 meshes" in report.page()


def test_a_bomb_in_an_archive_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.obj", bytes(2_000_000))
    with pytest.raises(ValueError, match="none of 1 meshes was kept"):
        prepare_meshes(
            tmp_path / "bomb.zip", tmp_path / "out", max_file_bytes=1_000_000, **SETTINGS
        )
    assert "2,000,000 bytes, more than max_file_bytes" in (
        tmp_path / "out" / "report.txt"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("captions", "expected"),
    [("folder", ["models", "storage", "toys"]), ("catalogue", ["", "", ""])],
)
def test_captions_from_folders_and_catalogues(models, tmp_path, captions, expected):
    prepare_meshes(models, tmp_path / "out", captions=captions, **SETTINGS)
    assert [item["texts"] for item in MeshDataset(tmp_path / "out")] == expected


@pytest.mark.parametrize("captions", ["sidecar", "csv", "catalogue"])
def test_labels_too_long_are_cut_and_told(tmp_path, captions):
    obj = save_mesh(box_mesh(), tmp_path / "box.obj").read_bytes()
    text = "a box " * 1000
    catalogue = f"name#1={text}\nmodel#1=/long.obj\nname#2=box\nmodel#2=/short.obj\n"
    path = tmp_path / "models" / "all.sh3f"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if captions == "catalogue":
            archive.writestr("PluginFurnitureCatalog.properties", catalogue)
        for name, caption in (("long", text), ("short", "box")):
            archive.writestr(f"{name}.obj", obj)
            archive.writestr(f"{name}.txt", caption)
    table = tmp_path / "table.csv" if captions == "csv" else None
    if table is not None:
        table.write_text(f"file,caption\nlong.obj,{text}\nshort.obj,box\n")
    options = {"captions": captions, "captions_file": table, **SETTINGS}
    report = prepare_meshes(path.parent, tmp_path / "out", **options)
    assert report.cut_labels == ("all.sh3f/long.obj",)
    assert "With a label too long, which was cut: 1 meshes\n  all.sh3f/long" in report.page()
    texts = MeshDataset(tmp_path / "out").labels["caption"].tolist()
    assert texts == [text[:MAX_LABEL_CHARACTERS], "box"]
    saved = (tmp_path / "out" / "report.json").read_text()
    assert PrepareReport.from_json(saved) == report


def test_captions_from_sidecars_and_tables(models, tmp_path):
    (models / "pyramid.txt").write_text("an old pyramid\n")
    (models / "toys" / "tetra-pack.json").write_text(
        json.dumps({"caption": "milk", "licence": "CC0", "tags": ["a", "b"], "nested": {}})
    )
    prepare_meshes(models, tmp_path / "out", captions="sidecar", **SETTINGS)
    dataset = MeshDataset(tmp_path / "out")
    assert [item["texts"] for item in dataset] == ["an old pyramid", "", "milk"]
    assert dataset.labels["tags"].tolist() == ["", "", "a, b"]

    table = tmp_path / "table.csv"
    table.write_text("file,caption,category\npyramid.GLB,one,solid\nstorage/oakChest_01,two,box\n")
    prepare_meshes(models, tmp_path / "out", captions="csv", captions_file=table, **SETTINGS)
    dataset = MeshDataset(tmp_path / "out")
    assert [item["texts"] for item in dataset] == ["one", "two", ""]
    assert dataset.categories == ("solid", "box", "")

    table.write_text("who,what\n")
    with pytest.raises(ValueError, match=r"needs a column 'caption' and one of"):
        prepare_meshes(models, tmp_path / "out", captions="csv", captions_file=table, **SETTINGS)


@pytest.mark.parametrize("captions", ["sidecar", "csv"])
def test_columns_of_any_name_become_labels(tmp_path, captions):
    save_mesh(box_mesh(), tmp_path / "models" / "box.obj")
    columns = {
        "caption": "a box",
        "Creator Name": "one",
        "creator_name": "two",
        "creator-name": "three",
        "class-id": "4",
        "Größe (cm)": "5",
        "3d": "6",
        "%": "7",
        "group": "8",
        "w" * 300: "9",
    }
    (tmp_path / "models" / "box.json").write_text(json.dumps(columns))
    table = tmp_path / "table.csv" if captions == "csv" else None
    if table is not None:
        table.write_text(f"file,{','.join(columns)}\nbox,{','.join(columns.values())}\n")
    options = {"captions": captions, "captions_file": table, **SETTINGS}
    prepare_meshes(tmp_path / "models", tmp_path / "out", **options)
    labels = MeshDataset(tmp_path / "out").labels
    names = ["caption", "creator_name_2", "creator_name", "creator_name_3", "class_id", "größe_cm"]
    names += ["label_3d", "label", "group_2", "w" * 50]
    assert [labels[name][0] for name in names] == list(columns.values())
    assert labels["group"][0] == 0, "its own"


def test_look_alikes_share_a_group(tmp_path):
    models = tmp_path / "models"
    save_mesh(box_mesh(), models / "a.obj")
    save_mesh(pyramid_mesh(), models / "b.obj")
    save_mesh(Mesh(box_mesh().vertices * 7 + 3, box_mesh().faces), models / "c.ply")
    report = prepare_meshes(models, tmp_path / "out", **SETTINGS)
    assert report.duplicate_groups == (("a.obj", "c.ply"),)
    first, second, third = MeshDataset(tmp_path / "out").labels["group"].tolist()
    assert first == third != second


def test_worker_processes_do_what_this_process_does(models, tmp_path):
    save_mesh(box_mesh(), models / "bad.obj").write_text("nothing\n")
    here = prepare_meshes(models, tmp_path / "here", **SETTINGS)
    there = prepare_meshes(models, tmp_path / "there", num_workers=2, progress=False)
    assert outcomes(there) == outcomes(here)
    for one, other in zip(
        MeshDataset(tmp_path / "here"), MeshDataset(tmp_path / "there"), strict=True
    ):
        assert torch.equal(one["faces"], other["faces"]) and one["texts"] == other["texts"]


def test_options_that_make_no_sense_are_refused(models, tmp_path):
    for options, message in (
        ({"max_faces": 3}, "max_faces must be at least 4, got 3"),
        ({"max_faces": (3, 800)}, "max_faces must be at least 4, got 3"),
        ({"max_faces": ()}, "max_faces must be a number or several, got none"),
        ({"max_faces": (9, 8), "adaptive": True}, r"one number of faces .* max_faces=\[8, 9\]"),
        ({"up_axis": 3}, "up_axis must be 0, 1 or 2, got 3"),
        ({"max_hausdorff": 0.0}, "max_hausdorff must be above 0"),
        ({"num_discrete_coors": 1}, "num_discrete_coors must be at least 2"),
        ({"merge_triangles": True}, "makes quads; pass quads=True with it"),
        ({"captions": "tags"}, "captions must be one of .* got 'tags'"),
        ({"captions": "csv"}, "captions='csv' and captions_file go together"),
        ({"min_overlap": 0.0}, "min_overlap must be above 0 and at most 1"),
        ({"seconds_per_mesh": 0.0}, "seconds_per_mesh must be above 0"),
        ({"num_workers": -1}, "num_workers must be None, 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_meshes(models, tmp_path / "out", **{**SETTINGS, **options})
    with pytest.raises(FileNotFoundError, match="no folder of meshes at"):
        prepare_meshes(tmp_path / "none", tmp_path / "out", **SETTINGS)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="found no mesh files in"):
        prepare_meshes(tmp_path / "bare", tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_target_that_cannot_be_written_is_told_at_once(models, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        prepare_meshes(models, tmp_path / "file" / "out", **SETTINGS)


def test_the_target_may_lie_in_the_source(models):
    prepare_meshes(models, models / "out", **SETTINGS)
    save_mesh(box_mesh(), models / "out" / "stray.obj")
    assert prepare_meshes(models, models / "out", **SETTINGS).outcomes == {"kept": 3}


def test_the_command_line_prepares(models, tmp_path, capsys):
    words = ["prepare", str(models), str(tmp_path / "out"), "--max-faces", "5", "50"]
    words += ["--workers", "0"]
    assert main(words) == 0
    expected = f"3 meshes: 3 kept, 2 inaccurate; see {tmp_path / 'out' / 'report.txt'}\n"
    assert capsys.readouterr().out == expected
    assert main([*words, "--max-hausdorff", "-1"]) == 1
    assert "max_hausdorff must be above 0" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out")
