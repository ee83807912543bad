"""Derived face features against a loop in plain Python."""

import math

import pytest
import torch

from meshgpt_pytorch.mesh import get_derived_face_features
from tests.helpers import box_mesh


def naive_features(face):
    """Angles between position vectors of consecutive vertices; area and normal by cross product."""

    def length(vector):
        return math.sqrt(sum(x * x for x in vector))

    def angle(x, y):
        scale = max(length(x), 1e-12) * max(length(y), 1e-12)
        cosine = sum(a * b for a, b in zip(x, y, strict=True)) / scale
        return math.acos(min(max(cosine, -1 + 1e-5), 1 - 1e-5))

    angles = [angle(face[i], face[i - 1]) for i in range(len(face))]
    back = 2 if len(face) == 4 else 1
    (ax, ay, az), (bx, by, bz) = (
        [a - b for a, b in zip(face[i], face[i - back], strict=True)] for i in (0, 1)
    )
    cross = [ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx]
    normal = [x / max(length(cross), 1e-12) for x in cross]
    return angles, [length(cross) / 2], normal


def assert_equal_to_naive(face_coords):
    features = get_derived_face_features(face_coords)
    for mesh_index, mesh in enumerate(face_coords.double().tolist()):
        for face_index, face in enumerate(mesh):
            expected = naive_features(face)
            for name, values in zip(("angles", "area", "normals"), expected, strict=True):
                got = features[name][mesh_index, face_index].double()
                # arccos is steep near 0, where float32 cosines differ in the last digit
                torch.testing.assert_close(
                    got, torch.tensor(values, dtype=torch.float64), rtol=1e-4, atol=2e-5
                )


def test_features_equal_a_naive_loop_on_furniture(furniture):
    for mesh in furniture[::150]:
        assert_equal_to_naive(mesh.vertices[mesh.faces][None, :40])


@pytest.mark.parametrize("num_vertices_per_face", [3, 4])
def test_features_equal_a_naive_loop_on_random_faces(num_vertices_per_face):
    generator = torch.Generator().manual_seed(0)
    assert_equal_to_naive(torch.randn(2, 30, num_vertices_per_face, 3, generator=generator))


def test_a_box_has_outward_unit_normals_and_its_area():
    for quads in (False, True):
        vertices, faces = box_mesh(quads)
        features = get_derived_face_features(vertices[faces][None])
        centres = vertices[faces].mean(dim=1)
        assert ((features["normals"][0] * centres).sum(dim=-1) > 0).all()
        assert features["area"].sum().item() == pytest.approx(8 * (0.5 + 0.75 + 0.375))


def test_an_equilateral_triangle_has_the_angles_of_its_position_vectors():
    # measured on published models, which learned these rather than the inner angles of 60 degrees
    triangle = torch.tensor([[[[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]]])
    angles = get_derived_face_features(triangle)["angles"].rad2deg()
    torch.testing.assert_close(angles, torch.full((1, 1, 3), 90.0))


def test_degenerate_faces_have_finite_features():
    features = get_derived_face_features(torch.zeros(1, 2, 3, 3))
    assert all(values.isfinite().all() for values in features.values())
    assert (features["area"] == 0).all() and (features["normals"] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_are_computed_in_float32(dtype):
    coords = torch.randn(1, 50, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = get_derived_face_features(coords.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = get_derived_face_features(coords.float())
    got = get_derived_face_features(coords)
    for name, values in expected.items():
        assert torch.equal(got[name], values) and torch.equal(under_autocast[name], values)


def test_features_carry_no_gradient():
    coords = torch.randn(1, 4, 3, 3, requires_grad=True)
    assert not any(values.requires_grad for values in get_derived_face_features(coords).values())
