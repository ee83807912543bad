"""DatasetFromTransforms: which files it finds, what it accepts, and whose fault it names."""

import re

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from meshgpt_pytorch.data import DatasetFromTransforms, custom_collate
from tests.helpers import box_mesh, tetrahedron_mesh


def make_files(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def read_box(path):
    return tuple(box_mesh())


def names_of(dataset):
    return [path.name for path in dataset.paths]


def test_files_are_found_in_any_case_and_sorted(tmp_path):
    make_files(tmp_path, "c.OBJ", "b/a.obj", "a.Ply", "z.txt", "obj")
    dataset = DatasetFromTransforms(tmp_path, {".Obj": read_box, "PLY": read_box})
    paths = [path.relative_to(tmp_path).as_posix() for path in dataset.paths]
    assert paths == ["a.Ply", "b/a.obj", "c.OBJ"] and len(dataset) == 3


def test_the_longest_extension_wins_and_no_file_is_listed_twice(tmp_path):
    make_files(tmp_path, "a.tar.obj", "b.obj", "my.chair.obj")
    dataset = DatasetFromTransforms(
        tmp_path,
        {"obj": read_box, "tar.obj": lambda path: tuple(tetrahedron_mesh())},
    )
    assert names_of(dataset) == ["a.tar.obj", "b.obj", "my.chair.obj"]
    assert [len(faces) for _, faces in dataset] == [4, 12, 12]


def test_a_dot_file_has_no_extension(tmp_path):
    make_files(tmp_path, ".obj", "a.obj")
    assert names_of(DatasetFromTransforms(tmp_path, {"obj": read_box})) == ["a.obj"]


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_arrays_become_tensors(tmp_path, kind):
    vertices, faces = (tensor.numpy() for tensor in box_mesh())

    def read(path):
        values = (vertices.astype(np.float64), faces.astype(np.uint32))
        return dict(vertices=values[0], faces=values[1]) if kind is dict else kind(values)

    item = DatasetFromTransforms(make_files(tmp_path, "a.obj"), {"obj": read})[0]
    assert isinstance(item, kind)
    got_vertices, got_faces = item.values() if kind is dict else item
    assert torch.equal(got_vertices, box_mesh().vertices)
    assert torch.equal(got_faces, box_mesh().faces) and got_faces.dtype == torch.int64


def test_augmentation_gets_one_value_as_the_transform_made_it(tmp_path):
    seen = []

    def mirror(mesh):
        seen.append(mesh)
        vertices, faces = mesh
        return vertices * torch.tensor([-1.0, 1.0, 1.0]), faces.flip(1)

    make_files(tmp_path, "a.obj")
    dataset = DatasetFromTransforms(tmp_path, {"obj": read_box}, augment_fn=mirror)
    vertices, _ = dataset[0]
    assert isinstance(seen[0], tuple)
    assert torch.equal(vertices[:, 0], -box_mesh().vertices[:, 0])


def test_names_of_tuple_entries_are_kept_and_copied(tmp_path):
    names = ["texts", "vertices", "faces"]
    dataset = DatasetFromTransforms(
        make_files(tmp_path, "a.obj"), {"obj": lambda path: ("a box", *box_mesh())}, names
    )
    names.append("other")
    assert dataset.data_kwargs == ["texts", "vertices", "faces"]
    assert dataset[0][0] == "a box"


def test_it_works_with_workers(tmp_path):
    make_files(tmp_path, *(f"{i}.obj" for i in range(4)))
    dataset = DatasetFromTransforms(tmp_path, {"obj": read_box})
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=custom_collate)
    assert [faces.shape for _, faces in loader] == [(2, 12, 3)] * 2


def test_nothing_is_printed(tmp_path, capsys):
    DatasetFromTransforms(make_files(tmp_path, "a.obj"), {"obj": read_box})
    assert capsys.readouterr() == ("", "")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"existing folder, found none at .*nowhere"):
        DatasetFromTransforms(tmp_path / "nowhere", {"obj": read_box})


def test_a_folder_without_fitting_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"extensions \['obj'\] in .* got 0 files \(it is empty\)"):
        DatasetFromTransforms(tmp_path, {"obj": read_box})
    with pytest.raises(ValueError, match=r"got 2 files \(.glb, no extension\)"):
        DatasetFromTransforms(make_files(tmp_path, "a.glb", "b"), {"obj": read_box})


@pytest.mark.parametrize("transforms", [{"obj": read_box, ".OBJ": read_box}, {".": read_box}])
def test_two_transforms_for_one_extension_are_refused(tmp_path, transforms):
    with pytest.raises(ValueError, match="one function for each extension"):
        DatasetFromTransforms(tmp_path, transforms)


def test_no_transforms_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a function for an extension, got none"):
        DatasetFromTransforms(tmp_path, {})


def test_a_string_of_names_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data_kwargs must be a list of names"):
        DatasetFromTransforms(tmp_path, {"obj": read_box}, "vertices")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, r"the transform must return .* got NoneType for .*a\.obj"),
        ("mesh", r"got str for .*a\.obj"),
        ((box_mesh().vertices, None), r"got one with None in it for .*a\.obj"),
        ((), r"vertices must be a tensor .* got NoneType for .*a\.obj"),
        (tuple(box_mesh())[::-1], r"a\.obj: faces must be integers"),
        ({"vertices": box_mesh().vertices}, r"faces must be a tensor .* got NoneType"),
        ((box_mesh().vertices[:, :2], box_mesh().faces), r"got \(8, 2\) for .*a\.obj"),
        (
            (box_mesh().vertices[:4], box_mesh().faces),
            r"a\.obj: faces must hold indices from 0 to 3",
        ),
        ((box_mesh().vertices * torch.nan, box_mesh().faces), r"a\.obj: vertices must be finite"),
        ((box_mesh().vertices, box_mesh().faces[:0]), r"a\.obj: the mesh is empty"),
    ],
)
def test_a_wrong_result_names_the_file(tmp_path, output, message):
    dataset = DatasetFromTransforms(make_files(tmp_path, "a.obj"), {"obj": lambda path: output})
    with pytest.raises(ValueError, match=message):
        dataset[0]


def test_a_failing_transform_names_the_file_and_the_cause(tmp_path):
    def fail(path):
        raise KeyError("vertices")

    dataset = DatasetFromTransforms(make_files(tmp_path, "a.obj"), {"obj": fail})
    message = f"'obj' failed on {re.escape(str(tmp_path))}/a.obj: KeyError: 'vertices'"
    with pytest.raises(ValueError, match=message):
        dataset[0]


def test_augmentation_that_returns_nothing_names_the_file(tmp_path):
    make_files(tmp_path, "a.obj")
    dataset = DatasetFromTransforms(tmp_path, {"obj": read_box}, augment_fn=lambda mesh: None)
    with pytest.raises(ValueError, match=r"augment_fn must return .* got NoneType for .*a\.obj"):
        dataset[0]
