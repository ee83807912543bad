"""Metrics equal naive loops on real meshes, and obey their laws."""

import math

import pytest
import torch

from meshgpt_pytorch.evaluation import (
    codebook_usage,
    face_counts,
    matching_faces,
    triangle_accuracy,
    which_mesh,
)
from meshgpt_pytorch.mesh import Mesh
from tests.helpers import box_mesh, pyramid_mesh, tetrahedron_mesh

EMPTY = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long))
BIN = 2 / 128


def bin_of(value, num_bins=128):
    return min(max(round((value + 1) / 2 * num_bins - 0.5), 0), num_bins - 1)


def disturbed(mesh, share, seed=0):
    """Move a share of the vertices by three bins."""
    generator = torch.Generator().manual_seed(seed)
    is_moved = torch.rand(len(mesh.vertices), 1, generator=generator) < share
    away = torch.where(mesh.vertices > 0, -3 * BIN, 3 * BIN)
    return Mesh(mesh.vertices + is_moved * away, mesh.faces)


def renumbered(mesh, seed=0):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(mesh.vertices), generator=generator)
    number = torch.empty_like(order)
    number[order] = torch.arange(len(order))
    faces = number[mesh.faces].roll(1, dims=1)
    return Mesh(mesh.vertices[order], faces[torch.randperm(len(faces), generator=generator)])


def common_faces_naive(generated, target):
    """Pair off equal faces one by one, trying every way to start a face."""

    def corners_of(mesh):
        return [
            [tuple(bin_of(value) for value in corner) for corner in face]
            for face in mesh.vertices[mesh.faces].tolist()
        ]

    left, hits = corners_of(target), 0
    for face in corners_of(generated):
        for start in range(len(face)):
            turned = face[start:] + face[:start]
            if turned in left:
                left.remove(turned)
                hits += 1
                break
    return hits


def test_triangle_accuracy_equals_a_naive_loop(furniture):
    meshes = furniture[:600:60]
    num_faces = max(len(mesh.faces) for mesh in meshes)
    target = torch.full((len(meshes), num_faces, 3, 3), torch.nan)
    predicted, mask = target.clone(), torch.zeros(len(meshes), num_faces, dtype=torch.bool)
    faces_right = coordinates_right = faces = 0
    for index, mesh in enumerate(meshes):
        wrong = disturbed(mesh, 0.1, seed=index)
        count = len(mesh.faces)
        target[index, :count] = mesh.vertices[mesh.faces]
        predicted[index, :count] = wrong.vertices[mesh.faces] + 0.3 * BIN
        mask[index, :count] = True
        for face in range(count):
            pairs = zip(
                predicted[index, face].flatten().tolist(),
                target[index, face].flatten().tolist(),
                strict=True,
            )
            right = [bin_of(a) == bin_of(b) for a, b in pairs]
            faces_right += all(right)
            coordinates_right += sum(right)
            faces += 1
    accuracy = triangle_accuracy(predicted, target, mask)
    assert accuracy.triangle == pytest.approx(faces_right / faces)
    assert accuracy.coordinate == pytest.approx(coordinates_right / faces / 9)
    assert 0 < accuracy.triangle < accuracy.coordinate < 1


def test_nan_counts_as_wrong_and_padding_not_at_all():
    target = torch.zeros(1, 4, 3, 3)
    predicted = target.clone()
    predicted[0, 0, 1, 2] = torch.nan
    predicted[0, 3] = torch.nan
    mask = torch.tensor([[True, True, True, False]])
    accuracy = triangle_accuracy(predicted, target, mask)
    assert accuracy == pytest.approx((2 / 3, 26 / 27))
    assert triangle_accuracy(target, target, mask) == (1.0, 1.0)
    assert triangle_accuracy(predicted, predicted, mask) == accuracy


def test_triangle_accuracy_uses_the_grid_it_is_given():
    target = torch.full((1, 1, 4, 3), 0.4)
    predicted = target + 0.2
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert triangle_accuracy(predicted, target, mask).triangle == 0.0
    coarse = triangle_accuracy(predicted, target, mask, num_discrete_coors=2)
    assert coarse.triangle == 1.0
    wide = triangle_accuracy(predicted, target, mask, coor_continuous_range=(-100, 100))
    assert wide.triangle == 1.0


def test_triangle_accuracy_of_nothing_is_refused():
    coords = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match="face_mask must keep at least one face"):
        triangle_accuracy(coords, coords, torch.zeros(1, 2, dtype=torch.bool))


def test_matching_faces_equals_pairing_faces_off(furniture):
    for seed, mesh in enumerate(furniture[::100]):
        generated = renumbered(disturbed(mesh, 0.1, seed), seed)
        generated = generated._replace(faces=generated.faces[: -len(generated.faces) // 5])
        generated = generated._replace(faces=torch.cat((generated.faces, generated.faces[:7])))
        hits = common_faces_naive(generated, mesh)
        match = matching_faces(generated, mesh)
        num_generated, num_target = len(generated.faces), len(mesh.faces)
        assert match.precision == hits / num_generated
        assert match.recall == hits / num_target
        assert match.faces_right == hits / max(num_generated, num_target)
        assert 0 < match.faces_right < 1


def test_a_mesh_matches_itself_however_it_is_numbered(furniture):
    for mesh in (box_mesh(), box_mesh(quads=True), *furniture[::100]):
        assert matching_faces(renumbered(mesh), mesh) == (1.0, 1.0, 1.0)


def test_precision_and_recall_change_places_with_the_meshes(furniture):
    generated, target = disturbed(furniture[5], 0.2), furniture[5]
    forth, back = matching_faces(generated, target), matching_faces(target, generated)
    assert (forth.precision, forth.recall) == (back.recall, back.precision)
    assert forth.faces_right == back.faces_right


def test_a_face_turned_over_is_another_face():
    mesh = tetrahedron_mesh()
    faces = mesh.faces.clone()
    faces[0] = faces[0].flip(0)
    assert matching_faces(Mesh(mesh.vertices, faces), mesh) == (0.75, 0.75, 0.75)


def test_a_face_given_twice_is_right_once():
    mesh = tetrahedron_mesh()
    doubled = Mesh(mesh.vertices, torch.cat((mesh.faces, mesh.faces)))
    assert matching_faces(doubled, mesh) == (0.5, 1.0, 0.5)


def test_a_face_with_a_corner_twice_matches_itself_from_any_start():
    vertices = pyramid_mesh().vertices
    one, other = (Mesh(vertices, torch.tensor([face])) for face in ([0, 0, 4], [0, 4, 0]))
    assert matching_faces(one, other).faces_right == 1.0


def test_meshes_without_faces():
    assert matching_faces(EMPTY, EMPTY) == (1.0, 1.0, 1.0)
    assert matching_faces(EMPTY, box_mesh()) == (0.0, 0.0, 0.0)
    assert matching_faces(box_mesh(), EMPTY) == (0.0, 0.0, 0.0)
    assert matching_faces(box_mesh(quads=True), box_mesh()) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "measure",
    [
        face_counts,
        lambda mesh: matching_faces(mesh, box_mesh()),
        lambda mesh: matching_faces(box_mesh(), mesh),
        lambda mesh: which_mesh(mesh, [box_mesh()]),
        lambda mesh: which_mesh(box_mesh(), [mesh]),
    ],
)
def test_padded_and_broken_meshes_are_refused(measure):
    vertices, faces = box_mesh()
    with pytest.raises(ValueError, match=r"got -1 to 7; remove padding with faces\["):
        measure(Mesh(vertices, torch.cat((faces, torch.full((2, 3), -1)))))
    with pytest.raises(ValueError, match="got 1 to 8; they refer to vertices that the mesh lacks"):
        measure(Mesh(vertices, faces + 1))
    with pytest.raises(ValueError, match="vertices must be finite"):
        measure(Mesh(vertices.index_fill(0, torch.tensor(2), torch.nan), faces))


def test_counted_meshes_give_what_meshes_give(furniture):
    generated, target = disturbed(furniture[5], 0.2), furniture[5]
    expected = matching_faces(generated, target, num_discrete_coors=64)
    counted = [face_counts(mesh, num_discrete_coors=64) for mesh in (generated, target)]
    assert matching_faces(*counted) == expected
    assert counted[1].total() == len(target.faces)


def test_which_mesh_finds_a_disturbed_mesh_among_others(furniture):
    candidates = [face_counts(mesh) for mesh in furniture[::5]]
    for index in range(0, len(candidates), 20):
        generated = renumbered(disturbed(furniture[5 * index], 0.05), index)
        shares = [matching_faces(generated, other).faces_right for other in candidates]
        assert which_mesh(generated, candidates) == shares.index(max(shares)) == index


def test_which_mesh_prefers_the_first_and_finds_none_where_nothing_fits():
    candidates = [tetrahedron_mesh(), pyramid_mesh(), pyramid_mesh()]
    assert which_mesh(pyramid_mesh(), candidates) == 1
    assert which_mesh(box_mesh(), candidates) is None
    assert which_mesh(EMPTY, candidates) is None
    assert which_mesh(pyramid_mesh(), []) is None


def test_codebook_usage_equals_a_naive_count():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 9, (3, 50, 2), generator=generator)
    codes[1, 20:] = -1
    usage = codebook_usage(codes, 16)
    for quantizer in range(2):
        column = [code for code in codes[..., quantizer].flatten().tolist() if code >= 0]
        shares = [column.count(code) / len(column) for code in set(column)]
        entropy = -sum(share * math.log(share) for share in shares)
        assert usage.used_fraction[quantizer] == pytest.approx(len(shares) / 16)
        assert usage.perplexity[quantizer] == pytest.approx(math.exp(entropy))


def test_perplexity_is_one_for_one_code_and_the_size_for_all_codes():
    codes = torch.stack((torch.full((32,), 3), torch.arange(32) % 8, torch.full((32,), -1)), dim=-1)
    usage = codebook_usage(codes.int(), 8)
    assert usage.used_fraction.tolist() == [1 / 8, 1.0, 0.0]
    assert usage.perplexity.tolist() == pytest.approx([1.0, 8.0, 0.0])


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((1, 4, 2), -1), r"at least one code, got only padding \(-1\)"),
        (torch.zeros(1, 0, 2, dtype=torch.long), "at least one code"),
        (torch.tensor([[0, 16]]), r"in \[0, 16\), or -1 for padding, got 0 to 16; cut the end"),
        (torch.tensor([[0, -2]]), "got -2 to 0"),
    ],
)
def test_wrong_codes_are_named(codes, message):
    with pytest.raises(ValueError, match=message):
        codebook_usage(codes, 16)
