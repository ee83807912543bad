"""Augmentation: what each does to a mesh, and what items of an augmented data set keep."""

import math

import pytest
import torch
from torch.utils.data import DataLoader

from meshgpt_pytorch import quick_recipe
from meshgpt_pytorch.data import (
    Compose,
    Decimate,
    Jitter,
    MeshDataset,
    MeshWriter,
    Mirror,
    Normalize,
    RotateUp,
    Scale,
    Shift,
    custom_collate,
    derive_face_edges_from_faces,
    paper_augmentation,
)
from meshgpt_pytorch.data.augment import fit_to_cube
from meshgpt_pytorch.mesh import Mesh, canonicalize_mesh, discretize, undiscretize
from tests.data.encoders import CharacterEncoder
from tests.helpers import box_mesh, signed_volume, tetrahedron_mesh

EVERY = Compose(Scale(), Mirror(), RotateUp(), Jitter(), Shift())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sides(mesh):
    return mesh.vertices.amax(dim=0) - mesh.vertices.amin(dim=0)


def many(augmentation, mesh, count=200):
    return [augmentation(mesh, generator(seed)) for seed in range(count)]


# each on its own


def test_scale_gives_each_axis_a_factor_of_its_own_in_the_range():
    factors = torch.stack([sides(mesh) / sides(box_mesh()) for mesh in many(Scale(), box_mesh())])
    assert factors.min() >= 0.75 and factors.max() <= 1.25
    assert factors.min() < 0.77 and factors.max() > 1.23
    assert (factors.std(dim=1) > 1e-4).all()


def test_shift_moves_all_vertices_alike():
    offsets = [mesh.vertices - box_mesh().vertices for mesh in many(Shift(0.2), box_mesh())]
    assert all(torch.allclose(offset, offset[:1].expand(8, 3), atol=1e-6) for offset in offsets)
    first = torch.stack([offset[0] for offset in offsets])
    assert 0.19 < first.abs().max() <= 0.2 + 1e-6 and first.mean().abs() < 0.02


def test_jitter_moves_each_vertex_on_its_own_by_a_little():
    offsets = torch.stack([m.vertices - box_mesh().vertices for m in many(Jitter(), box_mesh())])
    assert 0.0099 < offsets.abs().max() <= 0.01 + 1e-6
    assert (offsets.std(dim=1) > 0).all()


@pytest.mark.parametrize("up_axis", [0, 1, 2])
def test_rotation_keeps_heights_distances_and_winding(up_axis):
    for mesh in many(RotateUp(up_axis=up_axis), box_mesh(), 20):
        assert torch.equal(mesh.vertices[:, up_axis], box_mesh().vertices[:, up_axis])
        assert torch.allclose(
            torch.cdist(mesh.vertices, mesh.vertices),
            torch.cdist(box_mesh().vertices, box_mesh().vertices),
            atol=1e-5,
        )
        assert signed_volume(mesh) == pytest.approx(signed_volume(box_mesh()), rel=1e-5)


def test_rotation_by_steps_keeps_boxes_along_the_axes():
    found = set()
    for mesh in many(RotateUp(180, step=90), box_mesh(), 40):
        depth, height, width = (sides(mesh) / 2).tolist()
        assert height == pytest.approx(0.5)
        assert sorted((depth, width)) == pytest.approx([0.75, 1.0])
        found.add(round(math.degrees(math.atan2(mesh.vertices[0, 2], mesh.vertices[0, 0]))))
    assert len(found) == 4


def test_a_mirror_exchanges_sides_and_keeps_faces_outward():
    mirrored = Mirror(probability=1.0)(tetrahedron_mesh(), generator())
    assert torch.equal(
        mirrored.vertices, tetrahedron_mesh().vertices * torch.tensor([-1.0, 1.0, 1.0])
    )
    assert signed_volume(mirrored) == pytest.approx(signed_volume(tetrahedron_mesh()))
    quads = Mirror(probability=1.0, axis=2)(box_mesh(quads=True), generator())
    assert signed_volume(quads) == pytest.approx(signed_volume(box_mesh()))
    share = sum(
        not torch.equal(mesh.vertices, box_mesh().vertices) for mesh in many(Mirror(), box_mesh())
    )
    assert 70 < share < 130
    assert Mirror(probability=0.0)(box_mesh(), generator()) is not None


def test_normalize_fills_the_cube_along_the_longest_side():
    mesh = box_mesh()._replace(vertices=box_mesh().vertices * 0.1 + 5)
    normal = Normalize()(mesh, generator())
    assert sides(normal).amax() == pytest.approx(2.0)
    assert torch.allclose(sides(normal) / sides(mesh), torch.tensor(10.0))
    assert (normal.vertices.amax(dim=0) + normal.vertices.amin(dim=0)).abs().max() < 1e-5


def test_fit_to_cube_moves_and_shrinks_no_more_than_needed():
    inside = box_mesh(size=(0.2, 0.3, 0.4))
    assert torch.allclose(fit_to_cube(inside).vertices, inside.vertices)
    moved = fit_to_cube(inside._replace(vertices=inside.vertices + torch.tensor([5.0, 0, -0.7])))
    assert torch.allclose(moved.vertices, inside.vertices + torch.tensor([0.8, 0, -0.6]))
    large = fit_to_cube(inside._replace(vertices=inside.vertices * 10))
    assert torch.allclose(large.vertices, inside.vertices / 0.4)


def test_decimation_draws_a_share_of_the_faces():
    budgets = []

    def simplify(mesh, max_faces):
        budgets.append(max_faces)
        return mesh._replace(faces=mesh.faces[:max_faces])

    decimate = Decimate(0.5, 1.0, simplify)
    sizes = [len(mesh.faces) for mesh in many(decimate, box_mesh())]
    assert set(sizes) == set(range(6, 13)) and set(budgets) == set(range(6, 12))


def test_a_mesh_that_cannot_be_decimated_stays():
    def simplify(mesh, max_faces):
        raise RuntimeError("left too many faces")

    assert Decimate(0.5, 0.6, simplify)(box_mesh(), generator()) is not None
    assert len(Decimate(0.5, 0.6, simplify)(box_mesh(), generator()).faces) == 12


def test_real_furniture_is_decimated(furniture):
    mesh = next(mesh for mesh in furniture if len(mesh.faces) > 300)
    smaller = paper_augmentation(decimate=True).augmentations[0](mesh, generator(3))
    assert 4 <= len(smaller.faces) < len(mesh.faces)


def test_the_recipe_of_the_paper_fills_the_cube_and_shifts():
    recipe = paper_augmentation()
    assert repr(recipe) == "Compose(Scale(low=0.75, high=1.25), Normalize(), Shift(amount=0.2))"
    for mesh in many(recipe, box_mesh(), 20):
        assert sides(mesh).amax() == pytest.approx(2.0, abs=1e-5)


def test_the_input_is_left_alone(furniture):
    before = furniture[0].vertices.clone()
    EVERY(furniture[0], generator())
    assert torch.equal(furniture[0].vertices, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scale(0, 1), "0 < low <= high, got 0 and 1"),
        (lambda: Scale(2, 1), "0 < low <= high, got 2 and 1"),
        (lambda: Jitter(-1), "must be 0 or more, got -1"),
        (lambda: Shift(-1), "must be 0 or more, got -1"),
        (lambda: RotateUp(-1), "must be 0 or more, got -1"),
        (lambda: RotateUp(step=0), "step must be above 0 or None, got 0"),
        (lambda: RotateUp(up_axis=3), "up_axis must be 0, 1 or 2, got 3"),
        (lambda: Mirror(1.5), "from 0 to 1, got 1.5"),
        (lambda: Mirror(axis=-1), "axis must be 0, 1 or 2, got -1"),
        (lambda: Decimate(0.5, 1.5), "0 < low <= high <= 1, got 0.5, 1.5"),
    ],
)
def test_arguments_outside_their_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# data sets


def test_items_are_on_the_grid_in_order_and_connected(pack):
    dataset = pack.select(range(0, 739, 40)).augment(EVERY, seed=1)
    for item, plain in zip(dataset, dataset.dataset, strict=True):
        mesh = Mesh(item["vertices"], item["faces"])
        again = canonicalize_mesh(mesh)
        assert torch.equal(again.vertices, mesh.vertices) and torch.equal(again.faces, mesh.faces)
        bins = discretize(mesh.vertices, continuous_range=(-1.0, 1.0))
        assert torch.equal(undiscretize(bins, continuous_range=(-1.0, 1.0)), mesh.vertices)
        assert torch.equal(item["face_edges"], derive_face_edges_from_faces(mesh.faces))
        assert item["texts"] == plain["texts"]
        assert 0 < len(mesh.faces) <= len(plain["faces"])
        assert not torch.equal(mesh.vertices, plain["vertices"])


def test_without_augmentation_items_are_the_canonical_meshes(pack):
    chosen = pack.select(range(0, 739, 40))
    for item, expected in zip(chosen.augment(Compose()), chosen.canonicalize(), strict=True):
        assert torch.equal(item["vertices"], expected["vertices"])
        assert torch.equal(item["faces"], expected["faces"])


def test_a_shift_survives_the_canonical_form():
    dataset = MeshDataset.from_meshes([box_mesh(size=(0.2, 0.2, 0.2))]).augment(Shift(0.5))
    centres = []
    for epoch in range(50):
        dataset.set_epoch(epoch)
        vertices = dataset[0]["vertices"]
        centres.append((vertices.amax(dim=0) + vertices.amin(dim=0)) / 2)
        assert torch.allclose(
            vertices.amax(dim=0) - vertices.amin(dim=0), torch.tensor(0.4), atol=0.02
        )
    assert torch.stack(centres).std(dim=0).min() > 0.2


def test_closed_meshes_stay_closed_and_outward():
    dataset = MeshDataset.from_meshes([box_mesh(), tetrahedron_mesh()]).augment(EVERY)
    for epoch in range(20):
        dataset.set_epoch(epoch)
        for item in dataset:
            assert signed_volume(Mesh(item["vertices"], item["faces"])) > 0
            assert len(item["faces"]) in (12, 4)


def test_other_ranges_and_grids_are_kept():
    options = {"num_discrete_coors": 64, "coor_continuous_range": (0.0, 2.0), "up_axis": 2}
    mesh = canonicalize_mesh(box_mesh(), **options)
    dataset = MeshDataset.from_meshes([mesh]).augment(Compose(), **options)
    assert torch.equal(dataset[0]["vertices"], mesh.vertices)
    assert torch.equal(dataset[0]["faces"], mesh.faces)


def test_items_depend_on_the_seed_the_epoch_and_the_index_alone(small):
    def vertices(seed, epoch, index):
        dataset = small.augment(EVERY, seed=seed)
        dataset.set_epoch(epoch)
        assert dataset.epoch == epoch
        return dataset[index]["vertices"]

    first = vertices(0, 0, 3)
    torch.manual_seed(5)
    assert torch.equal(vertices(0, 0, 3), first)
    assert torch.equal(vertices(0, 0, -9), first)
    for other in (vertices(1, 0, 3), vertices(0, 1, 3)):
        assert other.shape != first.shape or not torch.equal(other, first)
    twice = small.select([3, 3]).augment(EVERY)
    assert not torch.equal(twice[0]["vertices"], twice[1]["vertices"])


def test_reading_items_leaves_the_global_generator_alone(small):
    before = torch.get_rng_state()
    list(small.augment(EVERY))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_give_the_same_items_and_see_each_epoch(small, persistent):
    dataset = small.augment(EVERY, seed=2)
    loader = DataLoader(
        dataset,
        batch_size=3,
        collate_fn=custom_collate,
        num_workers=2,
        persistent_workers=persistent,
    )
    epochs = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        expected = [dataset[index]["vertices"] for index in range(12)]
        found = [row for batch in loader for row in batch["vertices"]]
        for row, vertices in zip(found, expected, strict=True):
            assert torch.equal(row[: len(vertices)], vertices)
        epochs.append(expected[0])
    assert not torch.equal(epochs[0], epochs[1])


def test_codes_are_left_out_and_text_encodings_stay(small, autoencoder):
    small.cache_face_edges()
    small.cache_codes(autoencoder)
    small.cache_text_encodings(CharacterEncoder())
    dataset = small.augment(paper_augmentation())
    assert dataset.item_keys == ("vertices", "faces", "texts", "text_encodings", "face_edges")
    assert set(dataset[0]) == set(dataset.item_keys)
    assert torch.equal(dataset[0]["text_encodings"], small[0]["text_encodings"])
    assert len(dataset) == 12 and torch.equal(dataset.num_faces, small.num_faces)


def test_one_of_the_meshes_of_a_label_is_drawn_in_each_epoch(furniture):
    items = [
        {**mesh._asdict(), "texts": text} for mesh, text in zip(furniture, "abaab", strict=False)
    ]
    dataset = MeshDataset.from_meshes(items, names=["x", "y", "x", "x", "y"])
    levels = dataset.augment(Compose(), seed=1, one_of="name")
    assert len(levels) == 2
    sizes = dataset.num_faces
    assert levels.num_faces.tolist() == [max(sizes[[0, 2, 3]]), max(sizes[[1, 4]])]
    plain = [dataset.canonicalize()[mesh]["faces"] for mesh in range(5)]
    drawn = {0: set(), 1: set()}
    for epoch in range(30):
        levels.set_epoch(epoch)
        for index, item in enumerate(levels):
            (mesh,) = (mesh for mesh in range(5) if torch.equal(item["faces"], plain[mesh]))
            assert item["texts"] == "abaab"[mesh]
            assert torch.equal(levels[index - 2]["faces"], item["faces"])
            drawn[index].add(mesh)
    assert drawn == {0: {0, 2, 3}, 1: {1, 4}}
    with pytest.raises(IndexError, match="index 2 is out of range for 2 items"):
        levels[2]
    with pytest.raises(ValueError, match="this data set has no category"):
        dataset.augment(Compose(), one_of="category")


def test_a_mesh_that_vanishes_stays_as_it_was():
    def flatten(mesh, generator):
        return mesh._replace(vertices=mesh.vertices * 0)

    dataset = MeshDataset.from_meshes([box_mesh()]).augment(flatten)
    assert len(dataset[0]["faces"]) == 12


def test_a_mesh_that_loses_faces_to_the_grid_is_drawn_again():
    heights, drawn = [1e-4, 1e-4, 0.5, 1e-4], []

    def thin(mesh, generator):
        drawn.append(heights[len(drawn)])
        scale = torch.tensor([1.0, drawn[-1], 1.0])
        return mesh._replace(vertices=mesh.vertices * scale + torch.tensor([0.0, 1 / 128, 0.0]))

    dataset = MeshDataset.from_meshes([box_mesh()]).augment(thin)
    assert len(dataset[0]["faces"]) == 12
    assert drawn == heights[:3]


def test_a_mesh_with_duplicate_faces_is_drawn_once():
    drawn = []

    def same(mesh, generator):
        drawn.append(mesh)
        return mesh

    box = box_mesh()
    twice = box._replace(faces=torch.cat((box.faces, box.faces)))
    assert len(MeshDataset.from_meshes([twice]).augment(same)[0]["faces"]) == 12
    assert len(drawn) == 1


def test_a_mesh_that_only_its_augmentation_makes_large_enough_may_lose_faces():
    box = box_mesh()
    tiny_face = torch.tensor([[8, 9, 10]])
    mesh = Mesh(
        torch.cat((box.vertices, box.vertices[:3] * 1e-5)) * 1e-3 + 0.004,
        torch.cat((box.faces, tiny_face)),
    )

    def grow(mesh, generator):
        return mesh._replace(vertices=(mesh.vertices - 0.004) * 1e3)

    assert len(MeshDataset.from_meshes([mesh]).augment(grow)[0]["faces"]) == 12


def test_augmentation_keeps_the_faces_of_real_meshes(pack):
    meshes = pack.filter(max_faces=100).canonicalize()
    dataset = meshes.augment(quick_recipe(1).augmentation)
    lost = 0
    for epoch in range(2):
        dataset.set_epoch(epoch)
        kept = sum(len(dataset[index]["faces"]) for index in range(len(dataset)))
        lost += int(meshes.num_faces.sum()) - kept
    # one draw of each loses hundreds
    assert 0 <= lost < 10


def test_faces_that_fall_flat_on_the_grid_in_every_draw_are_left_out():
    def thin(mesh, generator):
        # within one bin of 1/64
        height = torch.tensor([0.0, 1 / 128, 0.0])
        return mesh._replace(vertices=mesh.vertices * torch.tensor([1.0, 1e-4, 1.0]) + height)

    dataset = MeshDataset.from_meshes([box_mesh()]).augment(thin)
    # those of the four sides; top and bottom stay
    assert len(dataset[0]["faces"]) == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda mesh: mesh._replace(vertices=mesh.vertices * torch.nan), "must be finite"),
        (lambda mesh: mesh._replace(faces=mesh.faces + 1), "from 0 to 7, got 1 to 8"),
        (lambda mesh: mesh._replace(faces=mesh.faces[:0]), "has no faces"),
    ],
)
def test_a_faulty_augmentation_is_named(spoil, message):
    class Faulty:
        def __call__(self, mesh, generator):
            return spoil(mesh)

        def __repr__(self):
            return "Faulty()"

    dataset = MeshDataset.from_meshes([box_mesh()]).augment(Faulty())
    with pytest.raises(ValueError, match=rf"^Faulty\(\) made a mesh that is none: .*{message}"):
        dataset[0]


def test_meshes_without_the_label_are_items_of_their_own(tmp_path):
    with MeshWriter(tmp_path) as writer:
        for label in ({"key": "a", "number": 1.5}, {}, {"key": "a", "number": 1.5}, {}):
            writer.add(box_mesh(), label)
    dataset = MeshDataset(tmp_path)
    assert dataset.labels["key"].tolist() == ["a", "", "a", ""]
    for label in ("key", "number"):
        assert len(dataset.augment(Compose(), one_of=label)) == 3


def test_an_augmented_data_set_says_what_it_is(small):
    text = repr(small.augment(Mirror(), seed=4))
    assert text.endswith(", Mirror(probability=0.5, axis=0), seed=4)")


def test_wrong_use_of_augmented_data_sets_is_refused(small):
    with pytest.raises(ValueError, match=r"must carry vertices and faces .* got \('texts',\)"):
        small.with_keys("texts").augment(Mirror())
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        small.augment(Mirror(), seed=-1)
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        small.augment(Mirror()).set_epoch(-1)
