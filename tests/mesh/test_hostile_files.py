"""Files that are no meshes, or say that they are huge: told in little time and memory."""

import itertools
import json
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import trimesh
from hypothesis import HealthCheck, given, settings, strategies as st

from meshgpt_pytorch.mesh import MeshFileError, load_mesh, save_mesh
from meshgpt_pytorch.mesh.file_size import estimate_num_faces
from tests.helpers import box_mesh
from tests.mesh.limits import LimitedProcess, is_out_of_memory

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


def read_soundly(path):
    """Read a file; return what was wrong with that, or an empty text."""
    try:
        mesh = load_mesh(path)
    except MeshFileError as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        return "" if path.name in str(error) else f"no word of the file: {error}"
    if not mesh.vertices.isfinite().all() or len(mesh.faces) == 0:
        return "not finite, or empty"
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        return "indices out of range"
    return "" if estimate_num_faces(path) >= 0 else "a number of faces below 0"


@pytest.fixture(scope="module")
def limited_reader():
    with LimitedProcess(read_soundly, seconds=20, megabytes=1024) as process:
        yield process


def spin(argument):
    begin = time.process_time()
    while time.process_time() - begin < 60:
        pass


def devour(argument):
    return len(bytearray(100 * MEGABYTE))


def test_the_limits_are_kept():
    with (
        LimitedProcess(spin, seconds=0.2, megabytes=50) as slow,
        pytest.raises(AssertionError, match="tired ended its process with status -27"),
    ):
        slow("tired")
    with (
        LimitedProcess(devour, seconds=20, megabytes=50) as large,
        pytest.raises(AssertionError, match="hungry: out of memory"),
    ):
        large("hungry")


@pytest.mark.parametrize("suffix", FORMATS)
def test_mutated_files_give_a_sound_mesh_or_the_error_of_the_library_within_limits(
    tmp_path, limited_reader, suffix
):
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
        assert limited_reader(path) == ""

    check()


@pytest.mark.parametrize("suffix", FORMATS)
def test_whole_files_are_read_and_their_size_is_known_beforehand(tmp_path, suffix):
    path = whole_file(tmp_path, suffix)
    mesh = load_mesh(path)
    assert len(mesh.faces) == estimate_num_faces(path) == 12


@pytest.mark.parametrize("suffix", ["obj", "3mf", "dae"])
def test_faces_are_counted_across_the_pieces_that_a_file_is_read_in(tmp_path, monkeypatch, suffix):
    path = whole_file(tmp_path, suffix)
    for size in range(7, 80, 3):
        monkeypatch.setattr("meshgpt_pytorch.mesh.file_size.CHUNK", size)
        assert estimate_num_faces(path) == 12


def test_a_text_stl_file_and_a_small_one_are_counted(tmp_path):
    shape = trimesh.Trimesh(box_mesh().vertices.numpy(), box_mesh().faces.numpy(), process=False)
    (tmp_path / "text.stl").write_text(shape.export(file_type="stl_ascii"))
    assert estimate_num_faces(tmp_path / "text.stl") == 12
    (tmp_path / "empty.glb").write_bytes(b"glTF")
    assert estimate_num_faces(tmp_path / "empty.glb") == 0
    (tmp_path / "list.gltf").write_text("[1]")
    (tmp_path / "no.3mf").write_bytes(b"PK")
    assert estimate_num_faces(tmp_path / "list.gltf") == estimate_num_faces(tmp_path / "no.3mf")
    (tmp_path / "strange.xyz").write_bytes(bytes(60))
    assert estimate_num_faces(tmp_path / "strange.xyz") == 10


def million_faces(folder, millions):
    """Write files of that many million faces, as large as such files are, in no time."""
    number = millions * 1_000_000
    contents = {
        "many.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\n" + b"f 1 2 3\n" * number,
        "many.off": b"OFF\n3 %d 0\n0 0 0\n1 0 0\n0 1 0\n" % number + b"3 0 1 2\n" * number,
        "many.stl": bytes(80) + struct.pack("<I", number),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with (folder / "many.stl").open("r+b") as file:
        # a hole in the file takes no disk
        file.truncate(84 + 50 * number)
    return [folder / name for name in contents]


def test_five_million_faces_are_counted_in_little_memory(tmp_path):
    with LimitedProcess(estimate_num_faces, seconds=60, megabytes=64) as count:
        for path in million_faces(tmp_path, 5):
            assert count(path) == 5_000_000, path.name
            path.unlink()


def peak_of_refusing(path):
    """Memory that it takes to refuse a file."""
    load_mesh(whole_file(path.parent, path.suffix.lstrip(".")))
    tracemalloc.start()
    try:
        with pytest.raises(MeshFileError):
            load_mesh(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def changed_glb(content, change):
    """Change the JSON of a GLB file."""
    (length,) = struct.unpack("<I", content[12:16])
    document = json.loads(content[20 : 20 + length])
    change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I", len(text)) + b"JSON" + text + content[20 + length :]
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def test_huge_promises_take_no_memory(tmp_path):
    huge = 1_500_000_000

    def promise(document):
        for accessor in document["accessors"]:
            accessor["count"] = huge
            accessor.pop("bufferView", None)

    gltf = json.loads(whole_file(tmp_path, "gltf").read_bytes())
    promise(gltf)
    glb = save_mesh(box_mesh(), tmp_path / "box.glb").read_bytes()
    ply = save_mesh(box_mesh(), tmp_path / "box.ply").read_bytes()
    stl = save_mesh(box_mesh(), tmp_path / "box.stl").read_bytes()
    contents = {
        "huge.glb": changed_glb(glb, promise),
        "huge.gltf": json.dumps(gltf).encode(),
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


def test_an_archive_that_unpacks_to_far_more_than_a_mesh_is_refused(tmp_path):
    path = tmp_path / "bomb.3mf"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("3D/3dmodel.model", bytes(200_000_000))
    with pytest.raises(MeshFileError, match=r"bomb\.3mf: its \d+ bytes unpack to 200000000"):
        load_mesh(path)
    assert estimate_num_faces(path) == 0


@pytest.mark.parametrize(
    ("extension", "remedy"),
    [
        ("KHR_draco_mesh_compression", "pip install DracoPy, or export it without compression"),
        ("EXT_meshopt_compression", "export it without compression"),
    ],
)
def test_compressed_geometry_is_refused_rather_than_read_as_zeros(
    tmp_path, monkeypatch, extension, remedy
):
    def compress(document):
        document["extensionsRequired"] = [extension]

    monkeypatch.setattr("meshgpt_pytorch.mesh.gltf_files.find_spec", lambda name: None)
    path = save_mesh(box_mesh(), tmp_path / "box.glb")
    path.write_bytes(changed_glb(path.read_bytes(), compress))
    with pytest.raises(MeshFileError, match=rf"compressed \({extension}\).*{remedy}"):
        load_mesh(path)


def test_buffers_beside_a_gltf_file_count_as_its_bytes(tmp_path):
    shape = trimesh.Trimesh(box_mesh().vertices.numpy(), box_mesh().faces.numpy(), process=False)
    for name, content in trimesh.Scene(shape).export(file_type="gltf").items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "model.gltf").write_text(
        json.dumps(json.loads((tmp_path / "model.gltf").read_bytes()), separators=(",", ":"))
    )
    assert len(load_mesh(tmp_path / "model.gltf").faces) == 12
