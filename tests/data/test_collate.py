"""Batching: padding by key and dtype, and errors where the batch is built."""

import numpy as np
import pytest
import torch

from meshgpt_pytorch.data import custom_collate
from tests.helpers import box_mesh, pad_batch, pyramid_mesh, tetrahedron_mesh


def sample(mesh, **others):
    return {"vertices": mesh.vertices, "faces": mesh.faces, **others}


def test_furniture_is_padded_to_the_longest_mesh(furniture):
    meshes = furniture[:6]
    batch = custom_collate([sample(mesh) for mesh in meshes])
    vertices, faces = pad_batch(meshes)
    assert torch.equal(batch["vertices"], vertices)
    assert torch.equal(batch["faces"], faces)


def test_vertices_are_padded_with_zero_and_everything_else_with_pad_id():
    samples = [
        sample(
            mesh,
            face_edges=torch.zeros(size, 2, dtype=torch.int64),
            codes=torch.zeros(size, 2, dtype=torch.int32),
            text_embeds=torch.zeros(size, 3),
            is_used=torch.ones(size, dtype=torch.bool),
        )
        for size, mesh in ((2, tetrahedron_mesh()), (3, box_mesh()))
    ]
    batch = custom_collate(samples)
    assert (batch["vertices"][0, 4:] == 0).all()
    assert (batch["faces"][0, 4:] == -1).all()
    for key in ("face_edges", "codes", "text_embeds"):
        assert (batch[key][0, 2] == -1).all()
    assert batch["is_used"].tolist() == [[True, True, False], [True, True, True]]


def test_pad_id_can_be_chosen():
    batch = custom_collate([{"codes": torch.ones(n, 2, dtype=torch.int64)} for n in (1, 2)], -2)
    assert batch["codes"][0, 1].tolist() == [-2, -2]


def test_tuples_and_lists_are_padded_by_dtype_and_come_back_as_a_tuple():
    small, large = tetrahedron_mesh(), box_mesh()
    rows = [(small.vertices, small.faces, torch.zeros(1, 5)), [*large, torch.zeros(2, 5)]]
    vertices, faces, text_embeds = custom_collate(rows)
    assert torch.equal(vertices, pad_batch([small, large])[0])
    assert torch.equal(faces, pad_batch([small, large])[1])
    assert (text_embeds[0, 1] == -1).all()


def test_meshes_can_be_batched_as_they_are():
    batch = custom_collate([tetrahedron_mesh(), pyramid_mesh()])
    assert isinstance(batch, tuple) and batch[1].shape == (2, 6, 3)


def test_order_of_keys_does_not_matter():
    mesh = tetrahedron_mesh()
    batch = custom_collate([sample(mesh), {"faces": mesh.faces, "vertices": mesh.vertices}])
    assert list(batch) == ["vertices", "faces"]
    assert torch.equal(batch["vertices"][0], batch["vertices"][1])


def test_texts_numbers_and_none_become_lists():
    batch = custom_collate([{"texts": "a", "score": 1.5, "note": None}] * 2)
    assert batch == {"texts": ["a", "a"], "score": [1.5, 1.5], "note": [None, None]}


def test_scalars_are_stacked():
    batch = custom_collate([{"label": torch.tensor(1), "weight": np.float32(0.5)}] * 2)
    assert batch["label"].tolist() == [1, 1]
    assert batch["weight"].dtype == torch.float32 and batch["weight"].shape == (2,)


def test_arrays_are_taken_for_tensors():
    backwards = np.arange(12, dtype=np.float32).reshape(4, 3)[::-1]
    read_only = np.arange(6, dtype=np.uint16).reshape(2, 3)
    read_only.flags.writeable = False
    batch = custom_collate([{"vertices": backwards, "codes": read_only}] * 2)
    assert torch.equal(batch["vertices"][0], torch.from_numpy(backwards.copy()))
    assert batch["codes"].dtype == torch.int64 and batch["codes"][1].tolist() == read_only.tolist()


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.int32, torch.int64), torch.int64),
        ((torch.uint8, torch.uint8), torch.int64),
        ((torch.int32, torch.int32), torch.int32),
        ((torch.float32, torch.float64), torch.float64),
        ((torch.bfloat16, torch.float32), torch.float32),
        ((torch.bfloat16, torch.bfloat16), torch.bfloat16),
    ],
)
def test_mixed_dtypes_become_the_widest(dtypes, expected):
    samples = [
        {"codes": torch.ones(n, 2, dtype=dtype)} for n, dtype in zip((1, 2), dtypes, strict=True)
    ]
    for order in (samples, samples[::-1]):
        assert custom_collate(order)["codes"].dtype == expected


def test_vertices_on_whole_numbers_are_floats_in_the_batch():
    mesh = tetrahedron_mesh()
    whole = {"vertices": mesh.vertices.sign().long(), "faces": mesh.faces}
    assert custom_collate([whole, sample(mesh)])["vertices"].dtype == torch.float32


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="at least one sample, got none"):
        custom_collate([])


def test_a_missing_key_is_named():
    mesh = tetrahedron_mesh()
    with pytest.raises(ValueError, match=r"sample 1 \(missing: \['texts'\], extra: \[\]\)"):
        custom_collate([sample(mesh, texts="a"), sample(mesh)])


def test_an_extra_key_is_named():
    mesh = tetrahedron_mesh()
    with pytest.raises(ValueError, match=r"sample 2 \(missing: \[\], extra: \['codes'\]\)"):
        custom_collate([sample(mesh), sample(mesh), sample(mesh, codes=torch.zeros(1, 2))])


def test_dicts_and_tuples_do_not_mix():
    mesh = tetrahedron_mesh()
    with pytest.raises(ValueError, match="wanted a dict as in sample 0, got a tuple of 2"):
        custom_collate([sample(mesh), tuple(mesh)])
    with pytest.raises(ValueError, match="wanted a tuple of 2 as in sample 0, got a dict"):
        custom_collate([tuple(mesh), sample(mesh)])


def test_tuples_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"wanted a tuple of 2 .* got a tuple of 1 in sample 1"):
        custom_collate([(1, 2), (1,)])


def test_triangles_and_quads_do_not_mix():
    with pytest.raises(ValueError, match=r"'faces' may differ .* \(12, 3\) .* \(6, 4\) in sample"):
        custom_collate([sample(box_mesh()), sample(box_mesh(quads=True))])


def test_a_tensor_in_some_samples_only_is_refused():
    with pytest.raises(ValueError, match=r"'codes' must be a tensor in every sample .* NoneType"):
        custom_collate([{"codes": torch.zeros(1)}, {"codes": None}])


def test_integers_and_floats_do_not_mix():
    with pytest.raises(
        ValueError, match=r"'codes' must be of one kind .* torch.int64, torch.float"
    ):
        custom_collate([{"codes": torch.zeros(1).long()}, {"codes": torch.zeros(1)}])


def test_a_bad_mesh_is_named_where_the_batch_is_built(furniture):
    broken = furniture[1].vertices.clone()
    broken[5, 2] = torch.nan
    with pytest.raises(ValueError, match=r"vertices must be finite.* at vertices\[1, 5\]"):
        custom_collate([sample(furniture[0]), {"vertices": broken, "faces": furniture[1].faces}])


def test_an_index_into_the_padding_of_a_longer_mesh_is_refused():
    small, large = tetrahedron_mesh(), box_mesh()
    faces = small.faces.clone()
    faces[0, 0] = 6
    with pytest.raises(ValueError, match=r"indices from 0 to 3 in sample 1, .* 4 vertices, got 6"):
        custom_collate([sample(large), {"vertices": small.vertices, "faces": faces}])


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("data_kwargs", [None, ("vertices", "faces")])
def test_tuples_are_checked_as_dicts_are(kind, data_kwargs):
    small = kind((torch.rand(4, 3), torch.tensor([[0, 1, 2], [1, 2, 7]])))
    large = kind((torch.rand(10, 3), torch.tensor([[0, 1, 9]])))
    with pytest.raises(ValueError, match="from 0 to 3 in sample 0, which has 4 vertices, got 7"):
        custom_collate([small, large], data_kwargs=data_kwargs)


def test_names_tell_what_an_entry_of_a_tuple_is():
    text, mesh = torch.rand(2, 3), (torch.rand(4, 3), torch.tensor([[0, 1, 2]]))
    other = (torch.rand(5, 3), torch.tensor([[0, 1, 9]]))
    names = ("text_embeds", "vertices", "faces")
    with pytest.raises(ValueError, match="from 0 to 4, or -1 for padding, got 9"):
        custom_collate([(text, *mesh), (text, *other)], data_kwargs=names)
    embeds, _, _ = custom_collate([(text, *mesh), (text[:1], *mesh)], data_kwargs=names)
    assert (embeds[1, 1] == -1).all()


def test_vertices_outside_the_range_are_said_where_the_batch_is_built():
    sample = {"vertices": 3 * torch.ones(4, 3), "faces": torch.tensor([[0, 1, 2]])}
    with pytest.warns(UserWarning, match="canonicalize_mesh"):
        custom_collate([sample], coor_continuous_range=(-1.0, 1.0))
