"""Laws of the canonical form, on real meshes and on small ones with a known answer."""

import pytest
import torch

from meshgpt_pytorch.mesh import Mesh, canonicalize_mesh, discretize, faces_to_mesh, undiscretize
from tests.helpers import box_mesh, pyramid_mesh, tetrahedron_mesh

SMALL = [box_mesh(), box_mesh(quads=True), pyramid_mesh(), tetrahedron_mesh()]
RANGES = [
    ((-1.0, 1.0), 128),
    ((0.0, 1.0), 128),
    ((-1.0, 1.0), 37),
    ((-3, 5), 1024),
    ((0.0, 0.3), 64),
]


def same(first, second):
    return torch.equal(first.vertices, second.vertices) and torch.equal(first.faces, second.faces)


def oriented_faces(mesh, num_discrete=128):
    """The faces as cycles of grid positions: winding counts, the first vertex does not."""
    bins = discretize(mesh.vertices, continuous_range=(-1.0, 1.0), num_discrete=num_discrete)
    cycles = set()
    for face in bins[mesh.faces].tolist():
        corners = [tuple(corner) for corner in face]
        start = corners.index(min(corners))
        cycles.add((*corners[start:], *corners[:start]))
    return cycles


def is_watertight(mesh):
    """Whether each side of a face is the side of one other face, the other way round."""
    sides = torch.stack((mesh.faces, mesh.faces.roll(-1, dims=1)), dim=-1).flatten(0, 1)
    sides = {tuple(side) for side in sides.tolist()}
    return len(sides) == mesh.faces.numel() and sides == {(b, a) for a, b in sides}


def shuffled(mesh, seed):
    """The same mesh with vertices renumbered, faces reordered and each started elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(mesh.vertices), generator=generator)
    faces = order.argsort()[mesh.faces][torch.randperm(len(mesh.faces), generator=generator)]
    nvf = faces.shape[1]
    starts = torch.randint(nvf, (len(faces), 1), generator=generator)
    return Mesh(mesh.vertices[order], faces.gather(1, (starts + torch.arange(nvf)) % nvf))


def moved(mesh, seed):
    """The mesh turned, scaled and shifted off the grid."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    turn = turn * turn.det()
    vertices = mesh.vertices @ turn * 37.0 + torch.randn(3, generator=generator) * 100
    return Mesh(vertices, mesh.faces)


def test_the_canonical_form_of_furniture_is_a_fixed_point(furniture):
    for mesh in furniture:
        canonical = canonicalize_mesh(mesh)
        assert same(canonicalize_mesh(canonical), canonical)


@pytest.mark.parametrize(("continuous_range", "num_discrete"), RANGES)
@pytest.mark.parametrize("up_axis", [0, 1, 2])
def test_the_canonical_form_is_a_fixed_point_on_every_grid(
    furniture, continuous_range, num_discrete, up_axis
):
    options = {
        "num_discrete_coors": num_discrete,
        "coor_continuous_range": continuous_range,
        "up_axis": up_axis,
    }
    for seed, mesh in enumerate((*furniture[::80], *SMALL)):
        for start in (mesh, moved(mesh, seed)):
            canonical = canonicalize_mesh(start, **options)
            assert same(canonicalize_mesh(canonical, **options), canonical)


def test_furniture_keeps_its_oriented_faces_and_its_size(furniture):
    for mesh in furniture[::5]:
        canonical = canonicalize_mesh(mesh)
        assert oriented_faces(canonical) == oriented_faces(mesh)
        assert len(canonical.faces) == len(mesh.faces)


def test_moved_furniture_keeps_the_winding_of_each_face(furniture):
    for seed, mesh in enumerate(furniture[::25]):
        start = moved(mesh, seed)
        middle = (start.vertices.amin(dim=0) + start.vertices.amax(dim=0)).double() / 2
        centred = start.vertices.double() - middle
        side = (start.vertices.amax(dim=0) - start.vertices.amin(dim=0)).amax().double()
        expected = oriented_faces(Mesh(centred / side * 2, mesh.faces))
        expected = {face for face in expected if len(set(face)) == 3}
        assert oriented_faces(canonicalize_mesh(start)) == expected


def test_watertight_meshes_stay_watertight(furniture):
    watertight = [mesh for mesh in (*furniture, *SMALL) if is_watertight(mesh)]
    assert len(watertight) > 50
    for mesh in watertight:
        assert is_watertight(canonicalize_mesh(mesh))


def test_the_order_of_vertices_faces_and_corners_does_not_matter(furniture):
    for seed, mesh in enumerate((*furniture[::40], *SMALL)):
        for start in (mesh, moved(mesh, seed)):
            assert same(canonicalize_mesh(shuffled(start, seed)), canonicalize_mesh(start))


def test_unreferenced_vertices_do_not_matter():
    mesh = moved(box_mesh(), 0)
    more = Mesh(torch.cat((mesh.vertices, torch.tensor([[1e4, 0, 0]]))), mesh.faces)
    assert same(canonicalize_mesh(more), canonicalize_mesh(mesh))


def test_position_and_scale_do_not_matter_on_a_power_of_two():
    mesh = Mesh(pyramid_mesh().vertices.mul(64).round(), pyramid_mesh().faces)
    elsewhere = Mesh(mesh.vertices * 4 + torch.tensor([32.0, -8.0, 1024.0]), mesh.faces)
    assert same(canonicalize_mesh(elsewhere), canonicalize_mesh(mesh))


def test_vertices_and_faces_are_sorted(furniture):
    for mesh in furniture[::40]:
        for up_axis in (0, 1, 2):
            canonical = canonicalize_mesh(mesh, up_axis=up_axis)
            heights = canonical.vertices.roll(-up_axis, dims=1).tolist()
            assert heights == sorted(heights)
            faces = canonical.faces.tolist()
            assert faces == sorted(faces)
            assert all(face[0] == min(face) for face in faces)
            assert canonical.faces.unique().tolist() == list(range(len(canonical.vertices)))


def test_height_is_y_unless_told():
    assert same(canonicalize_mesh(SMALL[2]), canonicalize_mesh(SMALL[2], up_axis=1))
    assert canonicalize_mesh(pyramid_mesh()).vertices[-1].argmax() == 1


def test_the_longest_side_fills_the_range_and_the_mesh_is_centred():
    mesh = Mesh(box_mesh(size=(1.0, 4.0, 2.0)).vertices + 100, box_mesh().faces)
    vertices = canonicalize_mesh(mesh).vertices
    edge = 1 - 1 / 128
    assert vertices.amin(dim=0).tolist() == pytest.approx([-0.25, -edge, -0.5], abs=1 / 128)
    assert vertices.amax(dim=0).tolist() == pytest.approx([0.25, edge, 0.5], abs=1 / 128)


def test_vertices_are_bin_centres_of_the_range():
    canonical = canonicalize_mesh(
        moved(box_mesh(), 1), num_discrete_coors=37, coor_continuous_range=(-2.0, 5.0)
    )
    options = {"continuous_range": (-2.0, 5.0), "num_discrete": 37}
    bins = discretize(canonical.vertices, **options)
    assert torch.equal(undiscretize(bins, **options), canonical.vertices)
    assert bins.amin() == 0 and bins.amax() == 36


def test_a_mesh_on_bin_centres_is_not_scaled():
    small = undiscretize(
        torch.tensor([[60, 60, 60], [70, 60, 60], [60, 70, 60]]), continuous_range=(-1, 1)
    )
    canonical = canonicalize_mesh(Mesh(small, torch.tensor([[0, 1, 2]])))
    assert {*map(tuple, canonical.vertices.tolist())} == {*map(tuple, small.tolist())}


def test_equal_vertices_are_merged():
    mesh = box_mesh()
    loose = Mesh(mesh.vertices[mesh.faces].flatten(0, 1), torch.arange(36).view(12, 3))
    assert same(canonicalize_mesh(loose), canonicalize_mesh(mesh))


@pytest.mark.parametrize("quads", [False, True])
def test_degenerate_and_duplicate_faces_are_dropped(quads):
    mesh = box_mesh(quads)
    degenerate = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2], [3, 5, 3, 5], [1, 2, 1, 1]])
    if not quads:
        degenerate = degenerate[:, :3]
    more = torch.cat((degenerate, mesh.faces, mesh.faces.roll(1, dims=1), mesh.faces[:2]))
    assert same(canonicalize_mesh(Mesh(mesh.vertices, more)), canonicalize_mesh(mesh))


def test_both_sides_of_a_thin_wall_stay():
    mesh = canonicalize_mesh(tetrahedron_mesh())
    both = Mesh(mesh.vertices, torch.cat((mesh.faces, mesh.faces.flip(1))))
    canonical = canonicalize_mesh(both)
    assert len(canonical.faces) == 8
    assert oriented_faces(canonical) == oriented_faces(both)


def test_a_quad_with_three_distinct_vertices_stays_and_starts_at_its_least_rotation():
    vertices = undiscretize(
        torch.tensor([[9, 0, 9], [9, 5, 9], [20, 9, 9]]), continuous_range=(-1, 1)
    )
    for face in ([0, 0, 1, 2], [0, 1, 2, 0], [1, 2, 0, 0]):
        canonical = canonicalize_mesh(Mesh(vertices, torch.tensor([face])))
        assert canonical.faces.tolist() == [[0, 0, 1, 2]]


def test_int32_faces_and_float64_vertices_are_taken():
    mesh = moved(box_mesh(), 2)
    other = Mesh(mesh.vertices.double(), mesh.faces.int())
    canonical = canonicalize_mesh(other)
    assert same(canonical, canonicalize_mesh(mesh))
    assert canonical.vertices.dtype == torch.float32 and canonical.faces.dtype == torch.long


def test_a_mesh_with_nothing_left_is_refused_with_the_remedy():
    mesh = tetrahedron_mesh()
    message = "all 4 faces are degenerate on a grid of 1 bins.*or raise num_discrete_coors"
    with pytest.raises(ValueError, match=message):
        canonicalize_mesh(mesh, num_discrete_coors=1)
    with pytest.raises(ValueError, match="all 4 faces are degenerate on a grid of 128"):
        canonicalize_mesh(Mesh(torch.full((4, 3), 0.3), mesh.faces))


def test_bad_meshes_are_refused():
    mesh = box_mesh()
    with pytest.raises(ValueError, match="up_axis must be 0, 1 or 2, got 3"):
        canonicalize_mesh(mesh, up_axis=3)
    with pytest.raises(ValueError, match="has no faces"):
        canonicalize_mesh(Mesh(mesh.vertices, mesh.faces[:0]))
    with pytest.raises(ValueError, match=r"from 0 to 6, got 0 to 7"):
        canonicalize_mesh(Mesh(mesh.vertices[:7], mesh.faces))
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="vertices must be finite, got"):
            canonicalize_mesh(
                Mesh(mesh.vertices.clone().index_fill_(0, torch.tensor(2), value), mesh.faces)
            )


def test_the_given_mesh_is_left_as_it_was():
    mesh, before = moved(box_mesh(), 3), moved(box_mesh(), 3)
    canonicalize_mesh(mesh)
    faces_to_mesh(mesh.vertices[mesh.faces])
    assert same(mesh, before)


def test_faces_to_mesh_inverts_indexing(furniture):
    for mesh in (*furniture[::10], *map(canonicalize_mesh, SMALL)):
        coords = mesh.vertices[mesh.faces]
        joined = faces_to_mesh(coords)
        assert torch.equal(joined.vertices[joined.faces], coords)
        assert len(joined.vertices) == len(mesh.faces.unique())
        assert same(canonicalize_mesh(joined), canonicalize_mesh(mesh))


def test_faces_to_mesh_merges_vertices_of_one_bin():
    mesh = canonicalize_mesh(box_mesh())
    noise = torch.rand(12, 3, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    joined = faces_to_mesh(mesh.vertices[mesh.faces] + noise * 0.9 * 2 / 128)
    assert same(joined, mesh)


def test_corners_with_equal_codes_become_one_vertex():
    mesh = canonicalize_mesh(box_mesh())
    codes = torch.stack((mesh.faces.flatten() % 4, mesh.faces.flatten() // 4), dim=1)
    noise = torch.randn(12, 3, 3, generator=torch.Generator().manual_seed(0)) * 5 / 128
    coords = mesh.vertices[mesh.faces] * 0.8 + noise
    assert len(faces_to_mesh(coords).vertices) > 8
    # a padded face says nothing of its vertices
    padded = torch.cat((coords, torch.full((1, 3, 3), float("nan"))))
    codes = torch.cat((codes, torch.full((3, 2), -1)))
    joined = faces_to_mesh(padded, codes=codes)
    means = torch.stack([coords[mesh.faces == vertex].mean(dim=0) for vertex in range(8)])
    wanted = discretize(means, continuous_range=(-1.0, 1.0), num_discrete=128)[mesh.faces]
    found = discretize(joined.vertices, continuous_range=(-1.0, 1.0), num_discrete=128)
    assert torch.equal(found[joined.faces], wanted)
    assert len(joined.vertices) == 8


def test_codes_of_what_coincides_change_nothing(furniture):
    for mesh in furniture[::10]:
        coords = mesh.vertices[mesh.faces]
        codes = mesh.faces.flatten()[:, None]
        assert same(faces_to_mesh(coords, codes=codes), faces_to_mesh(coords))


def test_codes_of_another_mesh_are_refused():
    mesh = canonicalize_mesh(box_mesh())
    coords, codes = mesh.vertices[mesh.faces], mesh.faces.flatten()[:, None]
    with pytest.raises(ValueError, match=r"a row for each corner of 12 faces of 3 .* got 33"):
        faces_to_mesh(coords, codes=codes[:-3])


def test_faces_to_mesh_drops_padded_and_degenerate_faces_and_keeps_the_order():
    mesh = canonicalize_mesh(pyramid_mesh())
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    coords = mesh.vertices[mesh.faces][order]
    masked = torch.tensor([True, False, True, True, True, True])
    coords[3, 1, 2] = float("nan")
    coords[4, 0] = coords[4, 1]
    joined = faces_to_mesh(coords, masked)
    assert torch.equal(joined.vertices[joined.faces], coords[[0, 2, 5]])


@pytest.mark.parametrize("num_vertices_per_face", [3, 4])
def test_faces_to_mesh_of_nothing_is_an_empty_mesh(num_vertices_per_face):
    coords = torch.full((5, num_vertices_per_face, 3), float("nan"))
    for empty in (
        faces_to_mesh(coords),
        faces_to_mesh(coords[:0]),
        faces_to_mesh(torch.zeros_like(coords)),
        faces_to_mesh(torch.rand_like(coords), torch.zeros(5, dtype=torch.bool)),
        faces_to_mesh(coords, codes=torch.full((5 * num_vertices_per_face, 2), -1)),
        faces_to_mesh(coords[:0], codes=torch.zeros(0, 2, dtype=torch.long)),
    ):
        assert empty.vertices.shape == (0, 3) and empty.vertices.dtype == torch.float32
        assert empty.faces.shape == (0, num_vertices_per_face) and empty.faces.dtype == torch.long
