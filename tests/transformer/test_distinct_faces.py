"""Meshes whose faces are distinct: what is forbidden, by loops, and what is generated."""

import pytest
import torch

from meshgpt_pytorch.transformer.distinct_faces import forbid_repeats
from tests.transformer.models import EndRowsAfter, make_transformer

NUM_IDS = 5
SIZES = [(3, 1), (3, 2), (3, 3), (4, 1), (4, 2)]
NUM_FACES = 12


def split(codes, num_vertices_per_face, num_quantizers):
    """Vertices of each whole face of a mesh, as tuples."""
    by_face = codes.unflatten(0, (-1, num_vertices_per_face, num_quantizers)).tolist()
    return [[tuple(vertex) for vertex in face] for face in by_face]


def as_sets(faces):
    return {frozenset(face) for face in faces}


def repeats_something(codes, num_vertices_per_face, num_quantizers):
    """Tell whether the vertex that a row ends with spoils its face."""
    nvf, q = num_vertices_per_face, num_quantizers
    if len(codes) % q:
        return False
    vertices = [tuple(vertex) for vertex in codes.unflatten(0, (-1, q)).tolist()]
    start = (len(vertices) - 1) // nvf * nvf
    face, num_missing = vertices[start:], nvf - len(vertices[start:])
    if face[-1] in face[:-1] and len(set(face)) + num_missing < 3:
        return True
    faces = as_sets(vertices[first : first + nvf] for first in range(0, start, nvf))
    return num_missing == 0 and frozenset(face) in faces


@pytest.mark.parametrize(("num_vertices_per_face", "num_quantizers"), SIZES)
def test_what_is_forbidden_repeats_a_vertex_or_a_face(num_vertices_per_face, num_quantizers):
    size = {"num_vertices_per_face": num_vertices_per_face, "num_quantizers": num_quantizers}
    per_face = num_vertices_per_face * num_quantizers
    generator = torch.Generator().manual_seed(0)
    num_forbidden = 0
    # of two ids, so that much repeats
    whole = torch.randint(2, (4, 7 * per_face), generator=generator)
    for length in range(whole.shape[1]):
        codes = whole[:, :length]
        logits = torch.randn(4, NUM_IDS, generator=generator)
        found = forbid_repeats(logits, codes, **size)
        for row in range(4):
            for code in range(NUM_IDS):
                longer = torch.cat((codes[row], torch.tensor([code])))
                # the last id is that of the end
                is_forbidden = code < NUM_IDS - 1 and repeats_something(longer, **size)
                num_forbidden += is_forbidden
                wanted = torch.finfo(logits.dtype).min if is_forbidden else logits[row, code]
                assert found[row, code] == wanted
    assert num_forbidden > 0


def endless(model, batch):
    return EndRowsAfter(model, [NUM_FACES + 1] * batch)


@pytest.mark.parametrize("options", [{}, {"copy_vertices": True}, {"quads": True}])
@pytest.mark.parametrize("cache_kv", [True, False])
def test_generated_faces_are_distinct_if_asked_for(options, cache_kv):
    model = make_transformer(**options)
    with torch.no_grad():
        model.to_logits.bias[0] += 100
    size = (model.num_vertices_per_face, model.num_quantizers)

    def generate(**distinct):
        # the likeliest code is always the same
        return model.generate(
            batch_size=3,
            temperature=0.0,
            filter_logits_fn=endless(model, 3),
            cache_kv=cache_kv,
            return_codes=True,
            progress=False,
            **distinct,
        )

    def num_repeats(codes):
        meshes = [split(row.flatten(), *size) for row in codes]
        repeats = sum(len(faces) - len(as_sets(faces)) for faces in meshes)
        return repeats + sum(len(set(face)) < 3 for faces in meshes for face in faces)

    codes = generate(distinct_faces=True)
    assert codes.shape == (3, NUM_FACES * size[0], size[1])
    assert num_repeats(codes) == 0
    assert num_repeats(generate()) > 0


def test_faces_of_a_prompt_count():
    model = make_transformer()
    # the first face of a model that always says the same, which are three vertices
    prompt = torch.tensor([[0, 1, 0, 2, 0, 3]])
    with torch.no_grad():
        model.to_logits.bias[0] += 200
        model.to_logits.bias[1:4] += 100

    def first_face(**distinct):
        filter_logits_fn = EndRowsAfter(model, [3], num_prompted=prompt.numel())
        options = {"temperature": 0.0, "return_codes": True, "progress": False, **distinct}
        codes = model.generate(prompt, filter_logits_fn=filter_logits_fn, **options)
        return split(codes[0].flatten(), 3, 2)[1]

    assert len(set(first_face())) < 3
    face = first_face(distinct_faces=True)
    assert len(set(face)) == 3 and set(face) <= {(0, code) for code in range(4)}
    assert set(face) != {(0, 1), (0, 2), (0, 3)}


def test_where_all_codes_are_forbidden_one_is_drawn_all_the_same():
    codes = torch.tensor([[0, 1, 2, 0, 1]])
    size = {"num_vertices_per_face": 3, "num_quantizers": 1}
    # of three ids and the end
    assert (forbid_repeats(torch.zeros(1, 4), codes, **size) == 0).all()
    # of four
    found = forbid_repeats(torch.zeros(1, 5), codes, **size)
    assert (found == 0).tolist() == [[False, False, False, True, True]]


def test_graphs_cannot_look_at_earlier_faces():
    with pytest.raises(ValueError, match="cuda_graphs=True cannot look at earlier faces"):
        make_transformer().generate(distinct_faces=True, cuda_graphs=True)
