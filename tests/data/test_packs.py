"""Tables of meshes: packs and meshes in memory, and what is refused."""

import numpy as np
import pytest

from meshgpt_pytorch.data import MeshDataset
from tests.helpers import FURNITURE, box_mesh, pyramid_mesh


def pack_arrays(**changes):
    arrays = {
        "vertices": box_mesh().vertices.numpy(),
        "faces": box_mesh().faces.numpy(),
        "vertex_offsets": np.array([0, 8]),
        "face_offsets": np.array([0, 12]),
        "name": np.array(["a box"]),
    }
    arrays |= changes
    return {name: values for name, values in arrays.items() if values is not None}


def test_a_missing_pack_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"one \.npz file, found neither at .*nowhere\.npz"):
        MeshDataset(tmp_path / "nowhere.npz")


def test_a_damaged_pack_is_named(tmp_path):
    whole = FURNITURE.read_bytes()
    for name, contents in (("text", b"not a pack"), ("empty", b""), ("cut", whole[:-4000])):
        path = tmp_path / f"{name}.npz"
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=rf"{name}\.npz is not a readable \.npz pack"):
            MeshDataset(path)


def test_a_single_array_is_no_pack(tmp_path):
    np.save(tmp_path / "vertices.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"vertices\.npy is not a readable \.npz pack"):
        MeshDataset(tmp_path / "vertices.npy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"faces": None}, r"lacks \['faces'\]"),
        ({"vertex_offsets": np.array([0, 4, 8])}, "equally long .* got 3 and 2"),
        ({"face_offsets": np.array([0, 11])}, "face_offsets must rise from 0 to 12"),
        ({"name": np.array(["a", "b"])}, r"name must have one entry for each of 1 meshes"),
        ({"vertices": np.zeros((8, 2))}, r"vertices of .* must have shape \(nv, 3\), got \(8, 2\)"),
        ({"faces": np.zeros((12, 3))}, r"faces of .* must be whole numbers, got torch\.float64"),
        ({"faces": np.zeros((12, 5), np.int32)}, r"faces of .* must have shape .* got \(12, 5\)"),
        ({"faces": np.full((12, 3), 8)}, r"vertices, 0 to 7 in mesh 0 \('a box'\) .* \[8, 8, 8\]"),
        ({"vertices": np.full((8, 3), np.nan)}, r"mesh 0 \('a box'\) .* NaN or infinite"),
        (
            {
                "vertex_offsets": np.array([0, 8, 8]),
                "face_offsets": np.array([0, 12, 12]),
                "name": np.array(["a box", "nothing"]),
            },
            r"mesh 1 \('nothing'\) .* has no faces",
        ),
    ],
)
def test_a_wrong_pack_is_refused(tmp_path, changes, message):
    path = tmp_path / "wrong.npz"
    np.savez(path, **pack_arrays(**changes))
    with pytest.raises(ValueError, match=message) as error:
        MeshDataset(path)
    assert str(path) in str(error.value)


def test_labels_without_captions_are_enough(tmp_path):
    np.savez(tmp_path / "box.npz", **pack_arrays())
    dataset = MeshDataset(str(tmp_path / "box.npz"))
    assert dataset.names == ("a box",) and list(dataset[0]) == ["vertices", "faces"]


@pytest.mark.parametrize(
    ("meshes", "message"),
    [
        ([], "at least one mesh, got none"),
        ([box_mesh(), box_mesh(quads=True)], "faces of one size, got 3 .* mesh 0 and 4 .* mesh 1"),
        (
            [{"vertices": box_mesh().vertices}],
            r"mesh 0 needs vertices and faces, lacks \['faces'\]",
        ),
        ([box_mesh().vertices], "mesh 0 must be a Mesh, .* got Tensor"),
        ([box_mesh()._replace(faces=box_mesh().faces - 1)], r"in mesh 0 .* without padding"),
        ([{**pyramid_mesh()._asdict(), "texts": "a"}, box_mesh()], "one caption for each of 2"),
    ],
)
def test_wrong_meshes_are_refused(meshes, message):
    with pytest.raises(ValueError, match=message):
        MeshDataset.from_meshes(meshes)


def test_too_few_texts_are_refused():
    with pytest.raises(ValueError, match="one caption for each of 1 meshes, got 2"):
        MeshDataset.from_meshes([box_mesh()], texts=["a", "b"])
