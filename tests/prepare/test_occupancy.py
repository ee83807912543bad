"""Look-alikes found among many, as by comparing all pairs."""

import numpy as np
import pytest

from meshgpt_pytorch.mesh import Mesh
from meshgpt_pytorch.prepare import occupancy as module
from meshgpt_pytorch.prepare.occupancy import near_duplicates, occupancy
from tests.helpers import box_mesh, pyramid_mesh


def groups_by_hand(bits, min_overlap):
    cells = [np.unpackbits(row).astype(bool) for row in bits]
    group = list(range(len(bits)))
    for first in range(len(bits)):
        for second in range(first):
            both = (cells[first] & cells[second]).sum()
            if both > min_overlap * (cells[first] | cells[second]).sum():
                old, new = group[first], group[second]
                group = [new if each == old else each for each in group]
    members = {}
    for index, label in enumerate(group):
        members.setdefault(label, []).append(index)
    return sorted(each for each in members.values() if len(each) > 1)


@pytest.mark.parametrize("block", [3, 512])
def test_groups_are_those_of_all_pairs(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    generator = np.random.default_rng(0)
    originals = generator.random((6, 13824)) < generator.uniform(0.1, 0.9, (6, 1))
    rows = originals[generator.integers(6, size=40)]
    rows = rows ^ (generator.random(rows.shape) < generator.uniform(0, 0.1, (40, 1)))
    bits = list(np.packbits(rows, axis=1))
    found = near_duplicates(bits, 0.8)
    assert found == groups_by_hand(bits, 0.8)
    assert found and max(map(len, found)) < 40


def test_moved_faces_look_alike_and_other_shapes_do_not():
    box = box_mesh(size=(0.99, 0.5, 0.7))
    other = Mesh(box.vertices[:, [0, 1, 2]], box.faces.flip(0))
    marks = [occupancy(mesh) for mesh in (box, pyramid_mesh(), other)]
    assert near_duplicates(marks, 0.8) == [[0, 2]]
    assert near_duplicates(marks[:1], 0.8) == near_duplicates([], 0.8) == []
