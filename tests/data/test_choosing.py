"""Groups of look-alikes, and splits that keep them on one side."""

from itertools import pairwise

import pytest

from meshgpt_pytorch.data import MeshDataset, near_duplicate_groups
from tests.helpers import box_mesh

KEYS = ["a", "b", "c", "d", "e"]


def test_pairs_connect_directly_and_by_way_of_others():
    assert near_duplicate_groups([("a", "c"), ("d", "x"), ("x", "e")], KEYS) == [0, 1, 0, 2, 2]
    assert near_duplicate_groups([], KEYS) == [0, 1, 2, 3, 4]
    assert near_duplicate_groups([("a", "b"), ("c", "d"), ("d", "a"), ("b", "e")], KEYS) == [0] * 5


def test_groups_do_not_depend_on_the_order_of_pairs(pack):
    keys = pack.labels["key"].tolist()
    pairs = [(keys[i], keys[i * 7 % 739]) for i in range(0, 300, 3)]
    groups = near_duplicate_groups(pairs, keys)
    assert near_duplicate_groups([(b, a) for a, b in reversed(pairs)], keys) == groups
    assert all(groups[keys.index(one)] == groups[keys.index(other)] for one, other in pairs)


def test_long_chains_are_one_group():
    keys = [str(number) for number in range(5000)]
    assert set(near_duplicate_groups(pairwise(keys), keys)) == {0}


def test_a_table_of_pairs_is_read(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("iou\tpack_a\tkey_a\tpack_b\tkey_b\n0.9\tone\ta\tother\te\n")
    assert near_duplicate_groups(path, KEYS) == near_duplicate_groups(str(path), KEYS)
    assert near_duplicate_groups(path, KEYS) == [0, 1, 2, 3, 0]


def test_look_alikes_stay_on_one_side_of_a_split(pack):
    keys = pack.labels["key"].tolist()
    pairs = [(keys[i], keys[i + 1]) for i in range(0, 700, 2)]
    groups = near_duplicate_groups(pairs, keys)
    for seed in range(3):
        train, validation = pack.split(0.1, seed=seed, groups=groups)
        in_train = set(train.labels["key"].tolist())
        assert all((one in in_train) == (other in in_train) for one, other in pairs)
        assert 65 < len(validation) < 75


def test_a_label_can_name_the_groups(pack):
    train, validation = pack.split(0.2, groups="category")
    assert not set(train.categories) & set(validation.categories)
    with pytest.raises(ValueError, match="this data set has no colour"):
        pack.split(0.2, groups="colour")


@pytest.mark.parametrize("missing", ["", None, float("nan")])
def test_meshes_without_a_label_may_come_to_either_side(missing):
    groups = ["a", "a", missing, missing, missing, missing]
    dataset = MeshDataset.from_meshes([box_mesh()] * 6, names=list("abcdef"))
    sides = {dataset.split(0.5, seed=seed, groups=groups).validation.names for seed in range(20)}
    assert all(("a" in side) == ("b" in side) for side in sides)
    assert any(0 < len(set(side) & set("cdef")) < 4 for side in sides)


def test_a_missing_label_by_name_is_no_group():
    dataset = MeshDataset.from_meshes([box_mesh()] * 4, names=["", "", "", ""])
    assert len(dataset.split(0.5, groups="name").validation) == 2


def test_a_table_without_keys_is_refused(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("one,other\na,b\n")
    with pytest.raises(ValueError, match=r"columns key_a and key_b.* got \['one,other'\]"):
        near_duplicate_groups(path, KEYS)
    path.write_text("")
    with pytest.raises(ValueError, match=r"columns key_a and key_b.* got None"):
        near_duplicate_groups(path, KEYS)
    with pytest.raises(FileNotFoundError):
        near_duplicate_groups(tmp_path / "nowhere.tsv", KEYS)


def test_groups_of_a_data_set_that_has_none_are_its_meshes():
    dataset = MeshDataset.from_meshes([box_mesh()] * 4)
    assert len(dataset.split(0.5, groups=near_duplicate_groups([], ["a", "b", "c", "d"]))[0]) == 2
