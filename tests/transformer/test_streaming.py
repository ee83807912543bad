"""Faces that are handed on while a batch grows are those of the result."""

import pytest
import torch

from tests.transformer.models import (
    TEXTS,
    EndRowsAfter,
    make_text_transformer,
    make_transformer,
    random_codes,
)


def stream(model, num_faces=8, **options):
    """Generate; return the faces handed on, and the codes returned."""
    faces = []
    codes = model.generate(
        on_face=faces.append,
        max_seq_len=num_faces * model.num_codes_per_face,
        return_codes=True,
        progress=False,
        **options,
    )
    return faces, codes


@pytest.fixture(scope="module", params=["triangles", "quads"])
def model(request):
    return make_transformer(quads=request.param == "quads")


@pytest.mark.parametrize("cache_kv", [True, False])
def test_faces_handed_on_are_those_of_the_result(model, cache_kv):
    num_faces = [2, 1, 5, 3]
    ends = EndRowsAfter(model, num_faces)
    faces, codes = stream(model, batch_size=4, filter_logits_fn=ends, cache_kv=cache_kv)
    # face by face, and of each those meshes that have it
    expected = [(row, face) for face in range(5) for row in range(4) if face < num_faces[row]]
    assert [(face.row, face.face) for face in faces] == expected
    per_face = model.num_vertices_per_face
    for face in faces:
        mesh = codes[face.row]
        assert torch.equal(face.codes, mesh[face.face * per_face :][:per_face])
        assert torch.equal(face.mesh_codes, mesh[: (face.face + 1) * per_face])


def test_meshes_that_fill_the_limit_are_handed_on_whole(model):
    faces, codes = stream(
        model, num_faces=3, batch_size=2, filter_logits_fn=EndRowsAfter(model, [99, 99])
    )
    assert [face.face for face in faces if face.row == 1] == [0, 1, 2]
    assert torch.equal(faces[-1].mesh_codes, codes[1])


def test_the_codes_of_a_mesh_so_far_are_faces(model):
    faces, _ = stream(model, batch_size=2, filter_logits_fn=EndRowsAfter(model, [3, 1]))
    for face in faces:
        coords, mask = model.detokenize(face.mesh_codes[None])
        assert mask.sum() == face.face + 1
        assert coords[mask].isfinite().all()


@pytest.mark.parametrize("num_codes", [0, 3, 6, 9, 12])
def test_faces_of_a_prompt_are_counted_and_those_it_began_handed_on(num_codes):
    model = make_transformer()
    prompt = random_codes(model, 3, batch=2)[:, :num_codes]
    faces, codes = stream(model, num_faces=4, prompt=prompt, temperature=0.0)
    lengths = (codes[..., 0] != model.pad_id).sum(dim=1) // 3
    expected = [(row, n) for n in range(num_codes // 6, 4) for row in range(2) if n < lengths[row]]
    assert [(face.row, face.face) for face in faces] == expected


def test_handing_on_changes_nothing():
    model = make_text_transformer()
    options = {"texts": TEXTS, "cond_scale": 2.0}
    drawn = []
    for on_face in (None, lambda face: face.mesh_codes.zero_()):
        generator = torch.Generator().manual_seed(0)
        codes = model.generate(
            on_face=on_face,
            generator=generator,
            return_codes=True,
            progress=False,
            max_seq_len=48,
            **options,
        )
        drawn.append(codes)
    assert torch.equal(*drawn)


def test_an_error_of_the_caller_ends_generation_and_modes_return():
    model = make_transformer().train()
    seen = []

    def stop_at_the_second(face):
        seen.append(face.face)
        if face.face == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(
            on_face=stop_at_the_second,
            filter_logits_fn=EndRowsAfter(model, [99]),
            progress=False,
        )
    assert seen == [0, 1]
    assert model.training
