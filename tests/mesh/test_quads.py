"""Quads: merged from triangles, split again, read from and kept in files."""

import itertools

import pytest
import torch

from meshgpt_pytorch.mesh import (
    Mesh,
    MeshFileError,
    canonicalize_mesh,
    load_mesh,
    merge_coplanar_triangles,
    save_mesh,
)
from meshgpt_pytorch.mesh.quads import split_quads
from tests.helpers import box_mesh, pyramid_mesh, signed_volume, tetrahedron_mesh


def as_sets(faces):
    return sorted(sorted(face) for face in faces.tolist())


def test_a_box_of_triangles_becomes_its_six_quads():
    merged = merge_coplanar_triangles(box_mesh())
    assert as_sets(merged.faces) == as_sets(box_mesh(quads=True).faces)
    assert signed_volume(merged) == pytest.approx(signed_volume(box_mesh()))


def test_triangles_without_a_partner_repeat_their_last_vertex():
    merged = merge_coplanar_triangles(pyramid_mesh())
    assert len(merged.faces) == 5
    assert (merged.faces[1:, 2] == merged.faces[1:, 3]).all()
    assert as_sets(split_quads(merged.faces)) == as_sets(pyramid_mesh().faces) or len(
        split_quads(merged.faces)
    ) == len(pyramid_mesh().faces)
    assert signed_volume(Mesh(merged.vertices, split_quads(merged.faces))) == pytest.approx(
        signed_volume(pyramid_mesh())
    )


def test_only_flat_convex_pairs_are_merged():
    assert len(merge_coplanar_triangles(tetrahedron_mesh()).faces) == 4
    dart = torch.tensor([[0.0, 0, 0], [2, 0, 0], [0.4, 0.4, 0], [0, 2, 0]])
    mesh = Mesh(dart, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    assert len(merge_coplanar_triangles(mesh).faces) == 2
    bent = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0.02], [0, 1, 0]])
    mesh = Mesh(bent, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    assert len(merge_coplanar_triangles(mesh).faces) == 2
    assert len(merge_coplanar_triangles(mesh, max_angle=5).faces) == 1


def test_the_squarest_pairs_are_merged_first():
    # a strip of three squares, whose inner triangles could pair across squares too
    vertices = torch.tensor([[float(x), float(y), 0] for x in range(4) for y in range(2)])
    faces = [[2 * x, 2 * x + 2, 2 * x + 3] for x in range(3)]
    faces += [[2 * x, 2 * x + 3, 2 * x + 1] for x in range(3)]
    merged = merge_coplanar_triangles(Mesh(vertices, torch.tensor(faces)))
    assert as_sets(merged.faces) == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]


def test_merging_keeps_the_surface_of_real_meshes(furniture):
    for mesh in furniture[::50]:
        merged = merge_coplanar_triangles(mesh)
        back = split_quads(merged.faces)
        assert len(back) == len(mesh.faces)
        area = [
            torch.linalg.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]).norm(dim=1).sum()
            for c in (mesh.vertices[mesh.faces], mesh.vertices[back])
        ]
        torch.testing.assert_close(*area, rtol=1e-3, atol=0)


def test_quads_stay_quads_through_the_canonical_form_and_files(tmp_path):
    canonical = canonicalize_mesh(box_mesh(quads=True))
    assert canonical.faces.shape == (6, 4)
    assert canonicalize_mesh(merge_coplanar_triangles(pyramid_mesh())).faces.shape == (5, 4)
    for suffix in ("obj", "off", "ply"):
        path = save_mesh(canonical, tmp_path / f"box.{suffix}")
        again = canonicalize_mesh(load_mesh(path, quads=True))
        assert torch.equal(again.vertices, canonical.vertices)
        assert torch.equal(again.faces, canonical.faces)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"faces must be triangles, got shape \(6, 4\)"):
        merge_coplanar_triangles(box_mesh(quads=True))
    with pytest.raises(ValueError, match="max_angle must be from 0 to below 90 degrees, got 90"):
        merge_coplanar_triangles(box_mesh(), max_angle=90)
    with pytest.raises(ValueError, match="mixed must be 'refuse' or 'triangulate', got 'keep'"):
        load_mesh(save_mesh(box_mesh(), tmp_path / "box.obj"), mixed="keep")


MIXED_ROWS = ("4 0 1 2 3", "3 0 1 4", "5 0 1 2 3 4")


def mixed_ply(rows=MIXED_ROWS, extra=""):
    vertices = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n0.5 0.5 1\n"
    header = "ply\nformat ascii 1.0\ncomment made by hand\nelement vertex 5\n"
    header += "property float x\nproperty float y\nproperty float z\n"
    header += f"element face {len(rows)}\n{extra}property list uchar int vertex_index\n"
    return f"{header}end_header\n{vertices}" + "\n".join(rows) + "\n"


def test_a_mixed_file_is_refused_or_triangulated(tmp_path):
    path = tmp_path / "mixed.ply"
    path.write_text(mixed_ply())
    message = "got 1 of 3 vertices, 1 of 4 vertices, 1 of 5 vertices; pass quads=False"
    with pytest.raises(MeshFileError, match=message):
        load_mesh(path, quads=True)
    mesh = load_mesh(path, quads=True, mixed="triangulate")
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 4], [0, 1, 2], [0, 2, 3], [0, 3, 4]]
    assert torch.equal(load_mesh(path).faces, mesh.faces)
    path.write_text(mixed_ply(MIXED_ROWS[:1]))
    assert load_mesh(path, quads=True, mixed="triangulate").faces.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("order", ["<", ">"])
def test_binary_ply_files_of_either_order_with_other_properties_are_read(tmp_path, order):
    import numpy as np

    name = "little" if order == "<" else "big"
    header = f"ply\nformat binary_{name}_endian 1.0\nelement vertex 4\nproperty double x\n"
    header += "property double y\nproperty double z\nproperty uchar red\nelement face 3\n"
    header += "property float weight\nproperty list uint8 uint16 vertex_indices\n"
    header += "element edge 1\nproperty int first\nend_header\n"
    vertices = np.zeros(4, dtype=[("p", f"{order}f8", 3), ("red", "u1")])
    vertices["p"] = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    content = vertices.tobytes()
    for face in ([0, 1, 2], [0, 1, 2, 3], [0, 2, 3]):
        content += np.array(0.5, f"{order}f4").tobytes() + bytes([len(face)])
        content += np.array(face, f"{order}u2").tobytes()
    (tmp_path / "mesh.ply").write_bytes(header.encode() + content + bytes(4))
    mesh = load_mesh(tmp_path / "mesh.ply")
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 3], [0, 2, 3]]
    assert mesh.vertices[2].tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("solid\n", "wanted ply on the first line"),
        ("ply\nformat ascii 1.0\n", "the header does not end"),
        ("ply\nformat tex 1.0\nend_header\n", "format must be ascii or one of"),
        ("ply\nnonsense here\n", "cannot understand the header line b'nonsense here'"),
        (mixed_ply().replace("face 3", "face 9"), "promises 9 elements 'face', and has 3"),
        (mixed_ply().replace("face 3", "face -3"), "promises -3 elements 'face'"),
        (mixed_ply().replace("float z", "float y"), "vertices need x, y and z"),
        (mixed_ply(("9 0 1 2",)), "a face is shorter than it says"),
        (mixed_ply(("-1 0 1 2",)), "a face is shorter than it says"),
        (mixed_ply(("3 0 1 99999999999999999999",)), "vertex index is too large"),
        (mixed_ply(("3 0 1 7",)), "indices from 0 to 4, got 0 to 7"),
    ],
)
def test_a_broken_ply_file_is_refused_by_cause(tmp_path, text, message):
    (tmp_path / "a.ply").write_text(text)
    with pytest.raises(MeshFileError, match=message):
        load_mesh(tmp_path / "a.ply")


def test_a_binary_ply_file_that_ends_early_is_refused(tmp_path):
    path = save_mesh(box_mesh(quads=True), tmp_path / "box.ply")
    whole = path.read_bytes()
    for length in itertools.chain(range(len(whole) - 1, whole.index(b"end_header"), -7)):
        path.write_bytes(whole[:length])
        with pytest.raises(MeshFileError, match=r"promises|does not end|header line"):
            load_mesh(path)
