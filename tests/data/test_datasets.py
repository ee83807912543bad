"""MeshDataset: what items hold, and what choosing and splitting keep."""

import re

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from meshgpt_pytorch.data import MeshDataset, custom_collate
from meshgpt_pytorch.mesh import Mesh
from tests.data.encoders import CharacterEncoder
from tests.helpers import FURNITURE, box_mesh

# items


def test_a_pack_gives_every_mesh_and_its_caption(pack, furniture):
    assert len(pack) == len(furniture) == 739
    with np.load(FURNITURE) as arrays:
        captions = arrays["caption"].tolist()
    for index in (0, 1, 400, 738):
        item = pack[index]
        assert list(item) == ["vertices", "faces", "texts"]
        assert torch.equal(item["vertices"], furniture[index].vertices)
        assert torch.equal(item["faces"], furniture[index].faces)
        assert item["faces"].dtype == torch.int64 and item["vertices"].dtype == torch.float32
        assert item["texts"] == captions[index]
    assert pack.captions == tuple(captions)
    assert pack.num_faces.tolist() == [len(mesh.faces) for mesh in furniture]


def test_labels_of_a_pack_are_kept(pack):
    assert len(set(pack.categories)) == 20
    assert pack.names[0] == "Japanese lantern" and pack.labels["licence"][0] == "CC0-1.0"


def test_meshes_in_memory_give_the_same_items_as_a_pack(pack, furniture):
    texts = pack.captions[:5]
    dataset = MeshDataset.from_meshes(furniture[:5], texts, pack.categories[:5])
    for index in range(5):
        assert all(
            torch.equal(dataset[index][key], pack[index][key]) for key in ("vertices", "faces")
        )
    assert dataset.captions == texts and dataset.categories == pack.categories[:5]


def test_meshes_dicts_tuples_and_arrays_are_taken(small):
    item = small[0]
    vertices, faces = item["vertices"], item["faces"]
    kinds = [
        Mesh(vertices, faces),
        (vertices.double().numpy(), faces.to(torch.int16).numpy()),
        {"vertices": vertices, "faces": faces.int(), "name": "ignored"},
    ]
    dataset = MeshDataset.from_meshes(kinds)
    for index in range(3):
        assert torch.equal(dataset[index]["vertices"], vertices)
        assert torch.equal(dataset[index]["faces"], faces)
        assert dataset[index]["faces"].dtype == torch.int64


def test_texts_of_items_are_taken_unless_texts_are_given(small):
    assert small.captions == tuple(item["texts"] for item in small)
    others = MeshDataset.from_meshes(list(small), texts=["a"] * 12)
    assert set(others.captions) == {"a"}


def test_quads_are_kept():
    dataset = MeshDataset.from_meshes([box_mesh(quads=True)])
    assert dataset[0]["faces"].shape == (6, 4) and "texts" not in dataset[0]


def test_an_item_is_a_copy(small):
    before = small[3]["vertices"].clone()
    small[3]["vertices"].zero_()
    assert torch.equal(small[3]["vertices"], before)


def test_an_item_does_not_drag_the_whole_data_set_along(pack):
    vertices = pack[1]["vertices"]
    assert vertices.untyped_storage().nbytes() == vertices.nbytes


def test_negative_indices_count_from_the_end_and_iteration_ends(small):
    assert torch.equal(small[-1]["faces"], small[11]["faces"])
    assert len(list(small)) == 12
    for index in (12, -13):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 12 meshes"):
            small[index]


def test_several_workers_give_the_same_batches(small):
    small.cache_face_edges()
    batches = [
        list(DataLoader(small, batch_size=4, collate_fn=custom_collate, num_workers=workers))
        for workers in (0, 2)
    ]
    assert len(batches[0]) == 3
    for alone, shared in zip(*batches, strict=True):
        assert alone["texts"] == shared["texts"]
        assert all(
            torch.equal(alone[key], shared[key]) for key in ("vertices", "faces", "face_edges")
        )


# choosing


def test_filter_keeps_exactly_what_fulfils_every_condition(pack):
    chosen = pack.filter(max_faces=100, category=["table", "chair"])
    expected = [
        name
        for name, category, size in zip(
            pack.names, pack.categories, pack.num_faces.tolist(), strict=True
        )
        if size <= 100 and category in {"table", "chair"}
    ]
    assert chosen.names == tuple(expected) and len(expected) > 5
    assert len(pack.filter(max_faces=100)) == 152
    assert set(pack.filter(category="bed").categories) == {"bed"}


def test_select_takes_positions_and_bools(small):
    sizes = small.num_faces
    assert small.select([3, -1, 3]).num_faces.tolist() == sizes[[3, 11, 3]].tolist()
    assert small.select(np.array([2, 1])).num_faces.tolist() == sizes[[2, 1]].tolist()
    assert torch.equal(small.select(sizes > 20).num_faces, sizes[sizes > 20])


def test_a_choice_takes_its_caches_along(small, autoencoder):
    small.cache_face_edges()
    small.cache_codes(autoencoder)
    small.cache_text_encodings(CharacterEncoder())
    chosen = small.with_keys("codes", "text_encodings").select([7, 2])
    for index, origin in enumerate((7, 2)):
        assert list(chosen[index]) == ["codes", "text_encodings"]
        for key in ("codes", "text_encodings"):
            assert torch.equal(chosen[index][key], small[origin][key])
    assert chosen.codes_fingerprint == small.codes_fingerprint


def test_choosing_leaves_the_data_set_as_it_was(small):
    small.filter(max_faces=20).cache_face_edges()
    small.with_keys("texts")
    assert len(small) == 12 and list(small[0]) == ["vertices", "faces", "texts"]


def test_items_carry_the_chosen_keys_alone(small):
    chosen = small.with_keys("texts", "faces")
    assert list(chosen[0]) == ["texts", "faces"]
    assert repr(chosen) == "MeshDataset(12 meshes, keys=('texts', 'faces'))"


# splitting


def test_a_split_is_a_partition_in_order_and_depends_on_the_seed_alone(pack):
    train, validation = pack.split(0.2, seed=3)
    keys = pack.labels["key"].tolist()
    parts = [part.labels["key"].tolist() for part in (train, validation)]
    assert len(validation) == round(0.2 * 739)
    assert sorted(parts[0] + parts[1]) == sorted(keys)
    assert [sorted(part, key=keys.index) for part in parts] == parts
    assert parts[1] == pack.split(0.2, seed=3).validation.labels["key"].tolist()
    assert parts[1] != pack.split(0.2, seed=4).validation.labels["key"].tolist()


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.99])
def test_a_split_never_cuts_a_group_nor_leaves_a_part_empty(pack, fraction):
    for seed in range(5):
        train, validation = pack.split(fraction, seed=seed, groups=pack.categories)
        assert not set(train.categories) & set(validation.categories)
        assert len(train) + len(validation) == 739 and min(len(train), len(validation)) > 0


def test_a_large_group_is_not_held_out_for_a_small_fraction(small):
    train, validation = small.split(0.25, groups=["large"] * 10 + ["one", "two"])
    assert len(train) == 10 and len(validation) == 2


# bad input


@pytest.mark.parametrize("label", ["captions", "categories", "names"])
def test_missing_labels_are_reported(label):
    with pytest.raises(ValueError, match=r"this data set has no \w+ for its meshes"):
        getattr(MeshDataset.from_meshes([box_mesh()]), label)


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("codes", r"call cache_codes\(autoencoder\) first"),
        ("text_encodings", r"call cache_text_encodings\(encoder\) first"),
        ("face_edges", r"call cache_face_edges\(\) first"),
        ("colours", "choose from"),
    ],
)
def test_a_key_that_is_not_there_comes_with_a_remedy(small, key, remedy):
    with pytest.raises(ValueError, match=f"got '{key}'; {remedy}"):
        small.with_keys(key)


def test_wrong_choices_are_refused(small):
    with pytest.raises(ValueError, match="at least one key"):
        small.with_keys()
    with pytest.raises(ValueError, match=r"at least one whole number.* got torch.float32"):
        small.select([])
    with pytest.raises(ValueError, match="below the 12 meshes there are, got 12"):
        small.select([0, 12])
    with pytest.raises(ValueError, match="below the 12 meshes there are, got 3 bools"):
        small.select([True, False, True])
    with pytest.raises(ValueError, match=r"no mesh of 12 is left with max_faces=3.* has \d+ faces"):
        small.filter(max_faces=3)


def test_an_unknown_category_is_named(pack):
    with pytest.raises(ValueError, match=r"among \[.*'table'.*\], got \['spaceship'\]"):
        pack.filter(category="spaceship")


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_a_split_needs_a_true_fraction(small, fraction):
    with pytest.raises(ValueError, match=re.escape(f"below 1, got {fraction}")):
        small.split(fraction)


def test_a_split_needs_a_group_for_each_mesh_and_two_groups(small):
    with pytest.raises(ValueError, match="a group for each of 12 meshes, got 2"):
        small.split(0.5, groups=["a", "b"])
    with pytest.raises(ValueError, match="at least 2 groups of meshes, got 1"):
        small.split(0.5, groups=["a"] * 12)
