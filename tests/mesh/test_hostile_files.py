"""Files that are no meshes, or say that they are huge: told in little time and memory."""

import itertools
import json
import struct
import tracemalloc
from pathlib import Path

import pytest
import trimesh
from hypothesis import HealthCheck, given, settings, strategies as st

from meshgpt_pytorch.mesh import MeshFileError, load_mesh, save_mesh
from meshgpt_pytorch.mesh.file_size import estimate_num_faces
from tests.helpers import box_mesh, pyramid_mesh

FORMATS = ("obj", "off", "ply", "stl", "glb", "gltf", "3mf", "dae")
MEGABYTE = 1 << 20

# what readers trip over: signs, infinities, counts, the end of a line, of a string, of a list
PIECES = (b"-1", b"nan", b"1e999", b"99999999", b"\n", b"\0", b"\xff\xff\xff\x7f", b'"', b"]", b"")


def whole_file(folder, suffix):
    """Write a good file of a format."""
    path = folder / f"whole.{suffix}"
    if suffix in ("obj", "off", "ply", "stl", "glb"):
        return save_mesh(box_mesh(), path)
    shape = trimesh.Trimesh(box_mesh().vertices.numpy(), box_mesh().faces.numpy(), process=False)
    if suffix == "gltf":
        files = trimesh.Scene(shape).export(
            file_type="gltf", merge_buffers=True, embed_buffers=True
        )
        path.write_bytes(files["model.gltf"])
    else:
        trimesh.Scene(shape).export(path) if suffix == "3mf" else shape.export(path)
    return path


mutations = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 40),
        st.one_of(st.sampled_from(PIECES), st.binary(max_size=8)),
    ),
    min_size=1,
    max_size=8,
)


def mutated(content, changes, length):
    """Replace a few bytes at places given as shares of the file, then cut it off."""
    changed = bytearray(content)
    for place, num_removed, inserted in changes:
        start = int(place * len(changed))
        changed[start : start + num_removed] = inserted
    return bytes(changed[: int(length * len(changed)) + 1])


@pytest.mark.parametrize("suffix", FORMATS)
def test_mutated_files_give_a_sound_mesh_or_the_error_of_the_library(tmp_path, suffix):
    content = whole_file(tmp_path, suffix).read_bytes()
    path = tmp_path / f"mutated.{suffix}"

    @settings(
        max_examples=120,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(changes=mutations, length=st.sampled_from([0.3, 0.9, 1.0, 1.0, 1.0]))
    def check(changes, length):
        path.write_bytes(mutated(content, changes, length))
        try:
            mesh = load_mesh(path)
        except MeshFileError as error:
            assert f"mutated.{suffix}" in str(error)
        else:
            assert mesh.vertices.isfinite().all() and len(mesh.faces) > 0
            assert 0 <= mesh.faces.min() and mesh.faces.max() < len(mesh.vertices)
        assert estimate_num_faces(path) >= 0

    check()


@pytest.mark.parametrize("suffix", FORMATS)
def test_whole_files_are_read_and_their_size_is_known_beforehand(tmp_path, suffix):
    path = whole_file(tmp_path, suffix)
    mesh = load_mesh(path)
    assert len(mesh.faces) == 12
    assert estimate_num_faces(path) >= 12
    if suffix in ("obj", "off", "ply", "stl", "glb"):
        assert estimate_num_faces(path) == 12


def test_faces_of_an_obj_file_are_counted_across_the_pieces_it_is_read_in(tmp_path, monkeypatch):
    path = save_mesh(pyramid_mesh(), tmp_path / "mesh.obj")
    for size in range(17, 60):
        monkeypatch.setattr("meshgpt_pytorch.mesh.file_size.CHUNK", size)
        assert estimate_num_faces(path) == 6


def test_a_text_stl_file_and_a_small_one_are_counted(tmp_path):
    shape = trimesh.Trimesh(box_mesh().vertices.numpy(), box_mesh().faces.numpy(), process=False)
    (tmp_path / "text.stl").write_text(shape.export(file_type="stl_ascii"))
    assert estimate_num_faces(tmp_path / "text.stl") == 12
    (tmp_path / "empty.glb").write_bytes(b"glTF")
    assert estimate_num_faces(tmp_path / "empty.glb") == 0


def peak_of_refusing(path):
    """Memory that it takes to refuse a file."""
    load_mesh(save_mesh(box_mesh(), path.with_name(f"first{path.suffix}")))
    tracemalloc.start()
    try:
        with pytest.raises(MeshFileError):
            load_mesh(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def with_counts(content, number):
    """Let a GLB file promise other numbers of elements."""
    (length,) = struct.unpack("<I", content[12:16])
    document = json.loads(content[20 : 20 + length])
    for accessor in document["accessors"]:
        accessor["count"] = number
        accessor.pop("bufferView", None)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I", len(text)) + b"JSON" + text + content[20 + length :]
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def test_huge_promises_take_no_memory(tmp_path):
    huge = 1_500_000_000
    glb = save_mesh(box_mesh(), tmp_path / "box.glb").read_bytes()
    ply = save_mesh(box_mesh(), tmp_path / "box.ply").read_bytes()
    stl = save_mesh(box_mesh(), tmp_path / "box.stl").read_bytes()
    contents = {
        "huge.glb": with_counts(glb, huge),
        "huge.ply": ply.replace(b"vertex 8", b"vertex %d" % huge),
        "wide.ply": ply.replace(b"face 12", b"face %d" % huge),
        "huge.stl": stl[:80] + struct.pack("<I", huge) + stl[84:],
        "huge.off": b"OFF %d %d 0\n0 0 0\n" % (huge, huge),
        "far.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 %d\n" % huge,
    }
    for name, content in contents.items():
        Path(tmp_path / name).write_bytes(content)
        assert peak_of_refusing(tmp_path / name) < 5 * MEGABYTE, name


def test_a_long_file_is_read_in_memory_in_proportion_to_it(tmp_path):
    vertices = "".join(f"v {i} {i % 7} {i % 11}\n" for i in range(20_000))
    faces = "".join(f"f {i} {i + 1} {i + 2}\n" for i in range(1, 19_000))
    path = tmp_path / "long.obj"
    path.write_text(vertices + faces)
    load_mesh(save_mesh(box_mesh(), tmp_path / "first.obj"))
    tracemalloc.start()
    load_mesh(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * path.stat().st_size


def test_a_truncated_glb_is_refused_wherever_it_ends(tmp_path):
    content = save_mesh(box_mesh(), tmp_path / "box.glb").read_bytes()
    for length in itertools.islice(range(1, len(content)), 0, None, 23):
        (tmp_path / "cut.glb").write_bytes(content[:length])
        with pytest.raises(MeshFileError, match=r"cut\.glb"):
            load_mesh(tmp_path / "cut.glb")
