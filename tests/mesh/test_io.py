"""Mesh files: what is written is read again, and what is not a mesh is refused by name."""

import numpy as np
import pytest
import torch
import trimesh

from meshgpt_pytorch.mesh import (
    Mesh,
    MeshFileError,
    canonicalize_mesh,
    inspect_mesh,
    load_mesh,
    save_mesh,
)
from tests.helpers import box_mesh, pyramid_mesh, signed_volume

FORMATS = ("obj", "off", "ply", "stl", "glb")
INDEXED = ("obj", "off", "ply", "glb")


def same(first, second):
    return torch.equal(first.vertices, second.vertices) and torch.equal(first.faces, second.faces)


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_canonical_furniture_comes_back_from_every_format(furniture, tmp_path, suffix):
    path = tmp_path / f"mesh.{suffix}"
    for mesh in furniture:
        canonical = canonicalize_mesh(load_mesh(save_mesh(mesh, path)))
        assert same(canonical, canonicalize_mesh(mesh))
        assert same(canonicalize_mesh(load_mesh(save_mesh(canonical, path))), canonical)


def export_with_trimesh(mesh, path):
    """Write a format that is only read here."""
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    if path.suffix == ".gltf":
        for name, content in trimesh.Scene(shape).export(file_type="gltf").items():
            path.with_name(path.name if name == "model.gltf" else name).write_bytes(content)
    else:
        trimesh.Scene(shape).export(path) if path.suffix == ".3mf" else shape.export(path)


@pytest.mark.parametrize("suffix", ["gltf", "3mf", "dae"])
def test_canonical_furniture_comes_back_from_formats_that_are_only_read(
    furniture, tmp_path, suffix
):
    path = tmp_path / f"mesh.{suffix}"
    for mesh in furniture:
        canonical = canonicalize_mesh(mesh)
        export_with_trimesh(canonical, path)
        assert same(canonicalize_mesh(load_mesh(path)), canonical)


@pytest.mark.parametrize("suffix", FORMATS)
def test_watertight_stays_watertight(furniture, tmp_path, suffix):
    closed = [
        mesh for mesh in map(canonicalize_mesh, furniture) if inspect_mesh(mesh).is_watertight
    ]
    assert len(closed) > 5
    for mesh in closed:
        read = load_mesh(save_mesh(mesh, tmp_path / f"mesh.{suffix}"))
        assert inspect_mesh(read).is_watertight
        assert signed_volume(read) == pytest.approx(signed_volume(mesh))


@pytest.mark.parametrize("suffix", INDEXED)
def test_every_float32_and_the_order_of_vertices_and_faces_come_back(tmp_path, suffix):
    generator = torch.Generator().manual_seed(0)
    scale = 10.0 ** torch.randint(-20, 20, (50, 3), generator=generator)
    faces = torch.randint(0, 50, (80, 3), generator=generator)
    mesh = Mesh(torch.randn(50, 3, generator=generator) * scale, faces)
    assert same(load_mesh(save_mesh(mesh, tmp_path / f"mesh.{suffix}")), mesh)


def test_an_stl_file_keeps_faces_and_joins_them_at_equal_vertices(tmp_path):
    mesh = pyramid_mesh()
    read = load_mesh(save_mesh(mesh, tmp_path / "mesh.stl"))
    assert len(read.vertices) == 5
    assert torch.equal(read.vertices[read.faces], mesh.vertices[mesh.faces])


@pytest.mark.parametrize("suffix", ["obj", "off", "ply"])
def test_quads_come_back_as_quads(tmp_path, suffix):
    mesh = box_mesh(quads=True)
    path = save_mesh(mesh, tmp_path / f"box.{suffix}")
    assert same(load_mesh(path, quads=True), mesh)
    assert same(load_mesh(path), box_mesh())


@pytest.mark.parametrize("suffix", ["stl", "glb"])
def test_quads_are_split_where_the_format_is_written_with_triangles(tmp_path, suffix):
    mesh = box_mesh(quads=True)
    faces = torch.cat((mesh.faces, torch.tensor([[0, 0, 1, 2]])))
    read = load_mesh(save_mesh(Mesh(mesh.vertices, faces), tmp_path / f"box.{suffix}"))
    expected = box_mesh().vertices[torch.cat((box_mesh().faces, torch.tensor([[0, 1, 2]])))]
    assert torch.equal(read.vertices[read.faces], expected)


def test_the_objects_of_a_scene_are_placed_and_a_mirrored_one_stays_outward(tmp_path):
    box = box_mesh()
    shape = trimesh.Trimesh(box.vertices.numpy(), box.faces.numpy(), process=False)
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirror[:3, 3] = [10, 0, 0]
    scene = trimesh.Scene()
    scene.add_geometry(shape, node_name="here", geom_name="box")
    scene.add_geometry(shape, node_name="there", geom_name="box", transform=mirror)
    scene.export(tmp_path / "scene.glb")
    mesh = load_mesh(tmp_path / "scene.glb")
    assert mesh.faces.shape == (24, 3) and mesh.vertices.shape == (16, 3)
    assert mesh.vertices[:, 0].amin() == -1 and mesh.vertices[:, 0].amax() == 11
    assert signed_volume(mesh) == pytest.approx(2 * signed_volume(box))


def test_a_gltf_file_is_read_with_its_buffers(tmp_path):
    box = box_mesh()
    scene = trimesh.Scene(trimesh.Trimesh(box.vertices.numpy(), box.faces.numpy(), process=False))
    for name, content in scene.export(file_type="gltf").items():
        (tmp_path / name).write_bytes(content)
    assert same(load_mesh(tmp_path / "model.gltf"), box)


OBJ = """\
# materials, objects, texture seams and the numbering of vertices do not change the mesh
mtllib none.mtl
o seat
v 0 0 0 1.0 0.5 0.5
v 1 0 0
v 1 1 0 # a corner
vt 0 0
vt 1 1
vn 0 0 1
usemtl wood
f 3/1/1 1/2/1 2/1/1
v 0 1 0
v 0.5 \\
  2 0
o back
usemtl steel
f 1//1 -3//1 -2//1
usemtl wood
s off
f 1 3 5 4
"""


def test_an_obj_file_keeps_its_vertices_and_the_order_of_its_faces(tmp_path):
    mesh = load_mesh(write(tmp_path / "chair.OBJ", OBJ))
    assert mesh.vertices[:, :2].tolist() == [[0, 0], [1, 0], [1, 1], [0, 1], [0.5, 2]]
    assert mesh.faces.tolist() == [[2, 0, 1], [0, 2, 3], [0, 2, 4], [0, 4, 3]]


def test_an_obj_file_with_a_byte_order_mark_and_other_line_ends_is_read(tmp_path):
    expected = load_mesh(write(tmp_path / "plain.obj", OBJ))
    (tmp_path / "windows.obj").write_bytes(b"\xef\xbb\xbf" + OBJ.replace("\n", "\r\n").encode())
    assert same(load_mesh(tmp_path / "windows.obj"), expected)


def test_an_off_file_with_counts_on_the_first_line_colours_and_comments_is_read(tmp_path):
    text = "COFF 4 2 0 # two\n0 0 0 255 0 0\n1 0 0 0 0 0\n\n1 1 0 0 0 0\n0 1 0 0 0 0\n"
    path = write(tmp_path / "mesh.off", text + "4 0 1 2 3 0.5 0.5 0.5\n# more\n3 0 2 1 9\n")
    assert load_mesh(path).faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 2, 1]]


TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.obj", "", r"a\.obj: the file is empty; write or download it again"),
        ("a.obj", "To whom it may concern\n", r"a\.obj: it holds 0 vertices and no faces; check"),
        ("a.obj", TRIANGLE, "it holds 3 vertices and no faces"),
        ("a.obj", TRIANGLE + "f 1 2 4\n", "indices from 0 to 2, got 0 to 3"),
        ("a.obj", TRIANGLE + "f 1 2 -4\n", "indices from 0 to 2, got -1 to 1"),
        ("a.obj", TRIANGLE + "f 0 1 2\n", "line 4: OBJ counts vertices from 1, got index 0"),
        ("a.obj", TRIANGLE + "f 1 2\n", "it holds 3 vertices and no faces"),
        ("a.obj", TRIANGLE + "f 1 2 x\n", "line 4: invalid literal for int"),
        ("a.obj", "v 0 0\n", "line 1: a vertex needs 3 coordinates, got 2"),
        ("a.obj", TRIANGLE.replace("1", "nan") + "f 1 2 3\n", r"finite, got .* at vertices\[1\]"),
        ("a.obj", TRIANGLE.replace("1", "1e39") + "f 1 2 3\n", r"finite, got .* at vertices\[1\]"),
        ("a.off", "3 1 0\n", "wanted OFF on the first line, got '3'"),
        ("a.off", "OFF\n", "wanted the numbers of vertices and faces after OFF"),
        ("a.off", "OFF\n3 1 0\n0 0 0\n", "promises 3 vertices and 1 faces, and has 1 lines"),
        ("a.off", "OFF 3 -3 0\n0 0 0\n1 0 0\n1 1 0\n", "promises 3 vertices and -3 faces"),
        ("a.off", "OFF 1 1 0\n0 0 0\n3 0 0\n", "line 3: a face needs at least 3 .* got '3 0 0'"),
        ("a.off", "OFF 1 1 0\n0 0 0\n3 0 0 7\n", "indices from 0 to 0, got 0 to 7"),
        ("a.ply", "ply\nformat ascii 1.0\n", r"cannot read .*a\.ply: .*; check that it is a whole"),
        ("a.stl", "solid nothing\nendsolid\n", r"cannot read .*a\.stl: "),
        ("a.glb", "glTF", r"cannot read .*a\.glb: "),
        ("a.gltf", "{}", r"cannot read .*a\.gltf: "),
        ("a.txt", TRIANGLE, r"a\.txt: the suffix must be one of .*\.obj"),
        ("mesh", TRIANGLE, "mesh: the suffix must be one of"),
    ],
)
def test_what_is_not_a_mesh_is_refused_by_name_and_cause(tmp_path, name, text, message):
    with pytest.raises(MeshFileError, match=message):
        load_mesh(write(tmp_path / name, text))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no mesh file at .*missing\.obj"):
        load_mesh(tmp_path / "missing.obj")
    with pytest.raises(MeshFileError, match="it is a folder; name a mesh file in it"):
        load_mesh(tmp_path)


def test_a_ply_file_whose_faces_index_past_its_vertices_is_refused(tmp_path):
    header = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\n"
    header += "property float z\nelement face 1\nproperty list uchar int vertex_indices\n"
    rows = "end_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n"
    with pytest.raises(MeshFileError, match=r"mesh\.ply: "):
        load_mesh(write(tmp_path / "mesh.ply", header + rows))


def test_a_scene_of_points_is_refused(tmp_path):
    trimesh.Scene(trimesh.PointCloud(np.eye(3))).export(tmp_path / "points.glb")
    with pytest.raises(MeshFileError, match="it holds 0 vertices and no faces"):
        load_mesh(tmp_path / "points.glb")


def test_quads_are_refused_where_faces_are_not_all_quads(tmp_path):
    path = write(tmp_path / "mixed.obj", TRIANGLE + "v 1 1 0\nf 1 2 3 4\nf 1 2 3\nf 1 2 4\n")
    message = "wants faces of 4 vertices, got 2 of 3 vertices, 1 of 4 vertices; pass quads=False"
    with pytest.raises(MeshFileError, match=message):
        load_mesh(path, quads=True)
    with pytest.raises(MeshFileError, match=r"read from \.obj, \.off and \.ply files, not from"):
        load_mesh(save_mesh(box_mesh(), tmp_path / "box.glb"), quads=True)


def test_folders_are_made_and_the_path_is_returned(tmp_path):
    path = save_mesh(box_mesh(), str(tmp_path / "new" / "folder" / "box.GLB"))
    assert path == tmp_path / "new" / "folder" / "box.GLB"
    assert same(load_mesh(path), box_mesh())
    assert [file.name for file in path.parent.iterdir()] == ["box.GLB"]


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path, monkeypatch):
    path = save_mesh(pyramid_mesh(), tmp_path / "mesh.obj")
    save_mesh(box_mesh(), path)
    assert same(load_mesh(path), box_mesh())

    def no_space_left(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", no_space_left)
    with pytest.raises(OSError, match="No space left"):
        save_mesh(pyramid_mesh(), path)
    assert same(load_mesh(path), box_mesh())
    assert [file.name for file in tmp_path.iterdir()] == ["mesh.obj"]


def test_what_cannot_be_written_is_refused_before_a_file_is_made(tmp_path):
    box = box_mesh()
    known = r"one of \.obj, \.off, \.ply, \.stl, \.glb"
    for name in ("mesh.fbx", "mesh"):
        with pytest.raises(ValueError, match=known):
            save_mesh(box, tmp_path / name)
    with pytest.raises(ValueError, match="has no faces"):
        save_mesh(Mesh(box.vertices, box.faces[:0]), tmp_path / "mesh.obj")
    with pytest.raises(ValueError, match="from 0 to 7, got -1 to 7; remove padding"):
        save_mesh(
            Mesh(box.vertices, torch.cat((box.faces, -torch.ones_like(box.faces)))),
            tmp_path / "a.obj",
        )
    with pytest.raises(ValueError, match="vertices must be finite"):
        save_mesh(Mesh(box.vertices / 0, box.faces), tmp_path / "mesh.obj")
    assert list(tmp_path.iterdir()) == []
