"""Generated meshes hold together: what the codes call one vertex is one."""

import pytest
import torch

from meshgpt_pytorch.mesh import faces_to_mesh
from tests.transformer.models import EOS, make_autoencoder, make_transformer

KINDS = {
    "lfq": {},
    "fsq, shortcut": {"quantizer": "fsq", "fsq_levels": (4, 4, 2), "vertex_shortcut": True},
    "quads": {"quads": True},
}


def never_eos(logits):
    return logits.index_fill(1, torch.tensor([EOS]), -torch.inf)


def generate(kind, is_consistent, **decoding):
    """Return the codes and faces of one mesh: 36 corners or more, of which some must be equal."""
    autoencoder = make_autoencoder(**KINDS[kind], num_quantizers=1, vertex_consistent=is_consistent)
    model = make_transformer(autoencoder=autoencoder, quads=kind == "quads")
    options = {"temperature": 0.0, "filter_logits_fn": never_eos, "progress": False}
    (codes,) = model.generate(**options, return_codes=True)
    (face_coords,), _ = model.generate(**options, **decoding)
    assert codes.numel() > autoencoder.codebook_size
    return codes.flatten(), face_coords


def positions_of_vertices(codes, face_coords):
    corners = face_coords.flatten(0, 1)
    return [len(corners[codes == code].unique(dim=0)) for code in codes.unique()]


@pytest.mark.parametrize("kind", KINDS)
def test_generated_corners_of_equal_codes_coincide(kind):
    assert set(positions_of_vertices(*generate(kind, is_consistent=True))) == {1}
    # they do not by themselves
    assert max(positions_of_vertices(*generate(kind, is_consistent=False))) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_any_model_may_be_asked_for_vertices_that_coincide(kind):
    codes, face_coords = generate(kind, is_consistent=False, vertex_consistent=True)
    assert set(positions_of_vertices(codes, face_coords)) == {1}
    assert max(positions_of_vertices(*generate(kind, True, vertex_consistent=False))) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_mesh_joined_by_its_codes_has_no_more_vertices_than_these(kind):
    codes, face_coords = generate(kind, is_consistent=False)
    joined = faces_to_mesh(face_coords, codes=codes[:, None])
    assert len(joined.vertices) <= len(codes.unique()) < len(faces_to_mesh(face_coords).vertices)


@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_mesh_has_no_more_vertices_than_its_codes(kind):
    codes, face_coords = generate(kind, is_consistent=True)
    assert len(faces_to_mesh(face_coords).vertices) <= len(codes.unique())
