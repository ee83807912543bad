"""Copies of earlier vertices have the share that loops over codes give them."""

import pytest
import torch
import torch.nn.functional as F

from meshgpt_pytorch.transformer import vertex_copying
from meshgpt_pytorch.transformer.losses import linear_cross_entropy
from meshgpt_pytorch.transformer.vertex_copying import (
    DISTANCES,
    CopyWeights,
    VertexCopier,
    add_weights,
    copy_into_logits,
    weigh_copies,
)
from tests.transformer.models import (
    end_early,
    logits_of,
    make_transformer,
    prefixes,
    random_codes,
    trained_parameters,
)

BATCH, NUM_VERTICES, DIM, NUM_IDS = 2, 12, 4, 7
OPTIONS = [
    {},
    {"num_quantizers": 1},
    {"quads": True, "num_quantizers": 3, "dim": (24, 16)},
]


def inputs(num_quantizers=2, num_vertices_per_face=3):
    """A copier; logits, queries and keys; and codes, of three ids, so that vertices return."""
    generator = torch.Generator().manual_seed(0)
    copier = VertexCopier(DIM, DIM, num_quantizers, num_vertices_per_face)

    def draw(*shape):
        tensor = torch.randn(BATCH, NUM_VERTICES, *shape, generator=generator, dtype=torch.float64)
        return tensor.requires_grad_()

    codes = torch.randint(3, (BATCH, NUM_VERTICES, num_quantizers), generator=generator)
    queries = draw(num_quantizers, copier.to_query.out_features)
    return copier, (draw(num_quantizers, NUM_IDS), queries, draw(DIM)), codes


def place_in_loops(vertex, earlier, num_vertices_per_face):
    """Number a corner and its distance."""
    distance = vertex // num_vertices_per_face - earlier // num_vertices_per_face
    # those of the same triangle have no place of their own
    steps = sum(distance >= limit for limit in DISTANCES[num_vertices_per_face == 3 :])
    return steps * num_vertices_per_face + earlier % num_vertices_per_face


def may_copy_in_loops(codes, vertex, earlier, num_vertices_per_face):
    """Tell whether a vertex of a mesh may be a copy of an earlier one."""
    corners = codes[vertex // 3 * 3 : vertex] if num_vertices_per_face == 3 else []
    return not any(corner.equal(codes[earlier]) for corner in corners)


def copy_in_loops(copier, logits, queries, keys, codes):
    """Add to the weight of each id those of the earlier vertices that give it."""
    batch, num_vertices, num_quantizers, _ = logits.shape
    nvf = copier.num_vertices_per_face
    rows = []
    for row in range(batch):
        for vertex in range(num_vertices):
            for level in range(num_quantizers):
                weights = list(logits[row, vertex, level].exp())
                query, of_places = queries[row, vertex, level].tensor_split([DIM])
                for earlier in range(vertex):
                    place = place_in_loops(vertex, earlier, nvf)
                    same = codes[row, earlier, :level].equal(codes[row, vertex, :level])
                    if same and may_copy_in_loops(codes[row], vertex, earlier, nvf):
                        score = query @ keys[row, earlier] * DIM**-0.5 + of_places[place]
                        copied = int(codes[row, earlier, level])
                        weights[copied] = weights[copied] + score.exp()
                rows.append(torch.stack(weights).log())
    return torch.stack(rows).reshape(logits.shape)


def well_used_codes(model, num_faces=5, batch=3):
    """Codes of meshes whose corners are of four vertices, which share first codes."""
    few = random_codes(model, num_faces, batch=batch) % 2
    return few + 3 * (torch.arange(few.shape[1]) % model.num_quantizers)


@pytest.mark.parametrize("sizes", [(1, 3), (2, 3), (3, 3), (2, 4)])
@pytest.mark.parametrize("weights_at_once", [1, 100, 10**6])
def test_logits_and_gradients_are_those_of_loops(monkeypatch, sizes, weights_at_once):
    monkeypatch.setattr(vertex_copying, "NUM_WEIGHTS_AT_ONCE", weights_at_once)
    copier, tensors, codes = inputs(*sizes)
    wanted = copy_in_loops(copier, *tensors, codes)
    found = copy_into_logits(copier, *tensors, codes)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn_like(wanted)
    pairs = (torch.autograd.grad((logits * weights).sum(), tensors) for logits in (found, wanted))
    for gradient, want in zip(*pairs, strict=True):
        torch.testing.assert_close(gradient, want)


@pytest.mark.parametrize("sizes", [(1, 3), (2, 3), (3, 3), (2, 4)])
@pytest.mark.parametrize("weights_at_once", [1, 100, 10**6])
def test_cross_entropy_and_gradients_are_those_of_loops(monkeypatch, sizes, weights_at_once):
    monkeypatch.setattr(vertex_copying, "NUM_WEIGHTS_AT_ONCE", weights_at_once)
    copier, (_, queries, keys), codes = inputs(*sizes)
    generator = torch.Generator().manual_seed(1)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((codes.numel(), DIM), (NUM_IDS, DIM), (NUM_IDS,))
    )
    labels = codes.flatten().clone()
    labels[::5] = -1
    logits = F.linear(hidden, weight, bias).reshape(*codes.shape, NUM_IDS)
    mixed = copy_in_loops(copier, logits, queries, keys, codes).flatten(end_dim=-2)
    wanted = F.cross_entropy(mixed, labels, ignore_index=-1)
    weights = weigh_copies(copier, queries, keys, codes)
    copies = CopyWeights(*(each.flatten() for each in weights))
    found = linear_cross_entropy(hidden, weight, bias, labels, copies=copies, ignore_index=-1)
    # the loss is made in float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    tensors = (hidden, weight, bias, queries, keys)
    pairs = (torch.autograd.grad(3 * loss, tensors) for loss in (found, wanted))
    for gradient, want in zip(*pairs, strict=True):
        assert want.abs().max() > 1e-3
        torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-5)


def test_ids_that_are_not_copied_keep_their_logits():
    copier, (logits, *tensors), codes = inputs()
    added = copy_into_logits(copier, logits, *tensors, codes) - logits
    assert (added[:, 3:, 0, :3] > 0).any() and (added >= -1e-12).all()
    assert (added[..., 3:] == 0).all()
    # nothing is there to be copied, or only vertices that the first triangle has already
    assert (added[:, :3] == 0).all()


@pytest.mark.parametrize("num_vertices_per_face", [3, 4])
def test_only_quads_may_copy_their_own_vertices(num_vertices_per_face):
    copier, _, _ = inputs(2, num_vertices_per_face)
    # all corners are of one vertex, but for the first of each other face
    codes = torch.zeros(1, 12, 2, dtype=torch.long)
    codes[0, :: 2 * num_vertices_per_face, 1] = 1
    may_copy = copier.may_copy(torch.arange(12), codes)
    wanted = [
        [
            earlier < vertex and may_copy_in_loops(codes[0], vertex, earlier, num_vertices_per_face)
            for earlier in range(12)
        ]
        for vertex in range(12)
    ]
    assert may_copy[0].tolist() == wanted
    is_all = may_copy[0].sum(dim=1) == torch.arange(12)
    assert is_all.all() if num_vertices_per_face == 4 else not is_all.all()


@pytest.mark.parametrize("num_vertices_per_face", [3, 4])
def test_places_are_told_apart_by_corner_and_by_distance(num_vertices_per_face):
    copier = VertexCopier(DIM, DIM, 2, num_vertices_per_face)
    num_vertices = (DISTANCES[-1] + 2) * num_vertices_per_face
    vertices = torch.tensor([num_vertices - 2, num_vertices // 2, 50, 1])
    places = copier.find_places(vertices // num_vertices_per_face, num_vertices)
    for vertex, row in zip(vertices.tolist(), places, strict=True):
        wanted = [place_in_loops(vertex, each, num_vertices_per_face) for each in range(vertex)]
        assert row[:vertex].tolist() == wanted
    # each distance and each corner has a score of its own
    num_places = copier.to_query.out_features - DIM
    assert places.unique().tolist() == list(range(num_places))


def test_weights_of_any_size_are_finite_with_their_gradients():
    logits = torch.tensor([[-1e4, 0.0, 1e4]], requires_grad=True)
    weights = torch.tensor([[1e4, -1e4, vertex_copying.NO_WEIGHT]], requires_grad=True)
    added = add_weights(logits, weights, torch.tensor([[0, 0, 1]]))
    assert added.tolist() == [[1e4, 0.0, 1e4]]
    added.sum().backward()
    assert logits.grad.tolist() == [[0.0, 1.0, 1.0]]
    assert weights.grad.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("options", OPTIONS)
def test_loss_is_the_cross_entropy_of_the_logits(options):
    model = make_transformer(copy_vertices=True, **options)
    codes = end_early(model, well_used_codes(model))
    logits = model.forward_on_codes(codes, return_loss=False)[:, :-1]
    labels = F.pad(codes, (0, 1), value=-1)
    labels.scatter_(1, (codes != -1).sum(dim=1, keepdim=True), model.eos_token_id)
    losses = (
        F.cross_entropy(logits.flatten(end_dim=1), labels.flatten(), ignore_index=-1),
        model.forward_on_codes(codes),
    )
    torch.testing.assert_close(*losses)
    parameters = list(trained_parameters(model).values())
    pairs = (torch.autograd.grad(loss, parameters) for loss in losses)
    for gradients in zip(*pairs, strict=True):
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS)
def test_one_pass_a_cache_and_steps_predict_the_same(options):
    model = make_transformer(copy_vertices=True, **options)
    codes = well_used_codes(model, num_faces=3)
    whole = logits_of(model, codes)
    # what copies add to is far from what there would be without them
    copier, model.vertex_copier = model.vertex_copier, None
    assert (logits_of(model, codes) - whole).abs().max() > 0.1
    model.vertex_copier = copier
    cache = None
    for position, first in enumerate(prefixes(codes, start=1), start=1):
        inputs = {"return_loss": False, "append_eos": False, "return_cache": True}
        logits, cache = model.forward_on_codes(first, cache=cache, **inputs)
        torch.testing.assert_close(logits[:, -1], whole[:, position], rtol=1e-4, atol=1e-5)


def test_a_prediction_depends_on_the_codes_before_it_alone():
    model = make_transformer(copy_vertices=True)
    codes = well_used_codes(model)
    whole = logits_of(model, codes)
    for position, first in enumerate(prefixes(codes)):
        changed = torch.cat((first, 5 - codes[:, position:]), dim=1)
        torch.testing.assert_close(
            logits_of(model, changed)[:, : position + 1], whole[:, : position + 1]
        )


def test_loss_does_not_depend_on_padding():
    model = make_transformer(copy_vertices=True)
    codes = well_used_codes(model, num_faces=4)
    padded = F.pad(codes, (0, 3 * model.num_codes_per_face), value=-1)
    torch.testing.assert_close(model.forward_on_codes(padded), model.forward_on_codes(codes))


def test_a_copied_vertex_is_learned_where_codes_alone_are_not():
    """Vertices are random, and each face has one of the face before at the same corner."""
    losses = []
    for copy_vertices in (False, True):
        model = make_transformer(copy_vertices=copy_vertices).train()
        optimizer = torch.optim.Adam(trained_parameters(model).values(), lr=1e-2)
        for step in range(60):
            codes = random_codes(model, 8, batch=16, seed=step).reshape(16, 8, 6)
            codes[:, 1:] = codes[:, :1]
            loss = model.forward_on_codes(codes.flatten(start_dim=1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] < 0.8 * losses[0]


def test_weights_are_those_without_copies_but_for_the_copier():
    plain, copying = make_transformer(), make_transformer(copy_vertices=True)
    added = copying.state_dict().keys() - plain.state_dict().keys()
    assert {name.split(".")[0] for name in added} == {"vertex_copier"}
    assert plain.state_dict().keys() <= copying.state_dict().keys()


def test_a_saved_model_still_copies(tmp_path):
    model = make_transformer(copy_vertices=True)
    model.save(tmp_path / "model.pt")
    loaded = type(model).init_and_load(tmp_path / "model.pt").eval()
    codes = well_used_codes(model)
    assert torch.equal(logits_of(loaded, codes), logits_of(model, codes))
