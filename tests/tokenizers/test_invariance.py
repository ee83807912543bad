"""Tokens, reconstructions and losses depend on the mesh alone, not on how a batch lays it out.

In double precision, so that no near-tie of two bins or codes turns over by rounding.
"""

import copy

import pytest
import torch
from einops import rearrange, repeat
from torch import Tensor

from meshgpt_pytorch.mesh import derive_face_edges_from_faces
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from tests.helpers import pad_batch
from tests.tokenizers.models import KINDS, batch_for, meshes_for, tiny_autoencoder

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
Batch = tuple[Tensor, Tensor]


def every_face(faces: Tensor) -> Tensor:
    return repeat(torch.arange(faces.shape[1]), "nf -> b nf", b=len(faces))


def padded_at_the_end(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    more_faces = torch.full((len(faces), 9, faces.shape[-1]), -1)
    more_vertices = torch.full((len(vertices), 5, 3), 0.5)
    padded = torch.cat((faces, more_faces), dim=1)
    return torch.cat((vertices, more_vertices), dim=1), padded, every_face(faces)


def padded_in_the_middle(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    places = every_face(faces) * 3 // 2 + 1
    padded = torch.full((len(faces), int(places.max()) + 2, faces.shape[-1]), -1)
    return (
        vertices,
        padded.scatter(1, repeat(places, "b nf -> b nf v", v=faces.shape[-1]), faces),
        places,
    )


def with_int32_faces(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return vertices, faces.int(), every_face(faces)


def with_vertices_renumbered(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.randperm(vertices.shape[1], generator=torch.Generator().manual_seed(1))
    renumbered = order.argsort()[faces.clamp(min=0)].masked_fill(faces == -1, -1)
    return vertices[:, order], renumbered, every_face(faces)


def with_unreferenced_vertices(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    unused = torch.rand(2, len(vertices), 20, 3, generator=generator) * 2 - 1
    shifted = (faces + 20).masked_fill(faces == -1, -1)
    return torch.cat((unused[0], vertices, unused[1]), dim=1), shifted, every_face(faces)


LAYOUTS = (
    padded_at_the_end,
    padded_in_the_middle,
    with_int32_faces,
    with_vertices_renumbered,
    with_unreferenced_vertices,
)


def autoencoder_of(kind: str) -> MeshAutoencoder:
    # quantize dropout is random
    return tiny_autoencoder(kind, rq_kwargs={"quantize_dropout": False}).double()


def tokenize_faces(autoencoder: MeshAutoencoder, vertices: Tensor, faces: Tensor) -> Tensor:
    codes = autoencoder.tokenize(vertices, faces)
    return rearrange(codes, "b (nf nvf) q -> b nf nvf q", nvf=faces.shape[-1])


def take(t: Tensor, places: Tensor) -> Tensor:
    """Take faces of b nf ... from their places."""
    return t[torch.arange(len(t))[:, None], places]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def batch(kind, furniture):
    return batch_for(kind, furniture)


def test_codes_differ_between_vertices(kind, batch):
    # or else the laws below would show nothing
    codes = autoencoder_of(kind).tokenize(*batch)
    assert len(codes[codes[..., 0] != -1].unique(dim=0)) >= 8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_do_not_depend_on_layout(kind, batch, layout):
    autoencoder = autoencoder_of(kind)
    vertices, faces, places = layout(*batch)
    codes = tokenize_faces(autoencoder, vertices, faces)
    expected = tokenize_faces(autoencoder, *batch)
    assert torch.equal(take(codes, places), expected)
    exists = (faces != -1).all(dim=-1)
    assert (codes[~exists] == -1).all()
    assert (codes[exists] >= 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reconstruction_does_not_depend_on_layout(kind, batch, layout):
    autoencoder = autoencoder_of(kind).eval()
    vertices, faces, places = layout(*batch)
    expected = autoencoder(vertices=batch[0], faces=batch[1], only_return_recon_faces=True)
    recon_faces = autoencoder(vertices=vertices, faces=faces, only_return_recon_faces=True)
    assert_same_faces(take(recon_faces, places), expected)

    codes = autoencoder.tokenize(vertices, faces)
    decoded = autoencoder.decode_from_codes_to_faces(codes)
    assert_same_faces(take(decoded.face_coords, places), expected)
    assert torch.equal(decoded.face_mask, (faces != -1).all(dim=-1))


def assert_same_faces(faces: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(faces, expected, rtol=0, atol=0, equal_nan=True)


def losses_and_gradients(
    autoencoder: MeshAutoencoder, vertices: Tensor, faces: Tensor
) -> dict[str, Tensor]:
    """Train one step; the model given stays as it was."""
    model = copy.deepcopy(autoencoder)
    loss, (recon_loss, commit_loss) = model(
        vertices=vertices, faces=faces, return_loss_breakdown=True
    )
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    buffers = {name: t for name, t in model.named_buffers() if t.is_floating_point()}
    return {"recon": recon_loss, "commit": commit_loss, **gradients, **buffers}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_training_step_does_not_depend_on_layout(kind, batch, layout):
    # losses, gradients, and the codebooks that the step leaves behind
    autoencoder = autoencoder_of(kind)
    vertices, faces, _ = layout(*batch)
    expected = losses_and_gradients(autoencoder, *batch)
    torch.testing.assert_close(
        losses_and_gradients(autoencoder, vertices, faces), expected, **CLOSE
    )


def test_codes_and_reconstruction_do_not_depend_on_the_batch(kind, furniture):
    autoencoder = autoencoder_of(kind).eval()
    meshes = meshes_for(kind, furniture)
    vertices, faces = pad_batch(meshes)
    codes = autoencoder.tokenize(vertices, faces)
    recon_faces = autoencoder(vertices=vertices, faces=faces, only_return_recon_faces=True)
    for row, mesh in enumerate(meshes):
        alone = autoencoder.tokenize(mesh.vertices, mesh.faces)
        assert alone.shape == (mesh.faces.numel(), autoencoder.num_quantizers)
        assert torch.equal(codes[row, : len(alone)], alone)
        assert (codes[row, len(alone) :] == -1).all()
        recon_alone = autoencoder(
            vertices=mesh.vertices[None], faces=mesh.faces[None], only_return_recon_faces=True
        )[0]
        assert_same_faces(recon_faces[row, : len(recon_alone)], recon_alone)
        assert recon_faces[row, len(recon_alone) :].isnan().all()


def test_recon_loss_of_a_batch_is_the_mean_over_its_coordinates(kind, furniture):
    autoencoder = autoencoder_of(kind)
    meshes = meshes_for(kind, furniture)
    loss = losses_and_gradients(autoencoder.eval(), *pad_batch(meshes))["recon"]
    alone = [losses_and_gradients(autoencoder, *pad_batch([mesh]))["recon"] for mesh in meshes]
    sizes = torch.tensor([mesh.faces.numel() for mesh in meshes])
    torch.testing.assert_close(loss, (torch.stack(alone) * sizes).sum() / sizes.sum(), **CLOSE)


def test_total_loss_of_a_mesh_does_not_depend_on_its_copies_in_the_batch(kind, furniture):
    autoencoder = autoencoder_of(kind)
    mesh = meshes_for(kind, furniture)[0]
    expected = losses_and_gradients(autoencoder, *pad_batch([mesh]))
    found = losses_and_gradients(autoencoder, *pad_batch([mesh, mesh]))
    for part in ("recon", "commit"):
        torch.testing.assert_close(found[part], expected[part], **CLOSE)


def test_given_face_edges_equal_derived_ones(kind, batch):
    autoencoder = autoencoder_of(kind)
    vertices, faces, _ = padded_in_the_middle(*batch)
    edges = derive_face_edges_from_faces(faces)
    for dtype in (torch.int64, torch.int32):
        codes = autoencoder.tokenize(vertices, faces, edges.to(dtype))
        assert torch.equal(codes, autoencoder.tokenize(vertices, faces))


def test_codes_follow_face_edges(furniture):
    # so that the law above has something to show
    autoencoder = autoencoder_of("lfq")
    vertices, faces = batch_for("lfq", furniture)
    itself = repeat(every_face(faces), "b nf -> b nf two", two=2)
    itself = itself.masked_fill(repeat(faces[..., 0] == -1, "b nf -> b nf two", two=2), -1)
    codes = autoencoder.tokenize(vertices, faces, itself)
    assert not torch.equal(codes, autoencoder.tokenize(vertices, faces))


def test_faces_that_share_a_vertex_have_its_codes(kind, batch):
    autoencoder = autoencoder_of(kind)
    codes = tokenize_faces(autoencoder, *batch)
    for row, faces in enumerate(batch[1]):
        faces = faces[faces[:, 0] != -1]
        for vertex in faces.unique():
            assert len(codes[row, : len(faces)][faces == vertex].unique(dim=0)) == 1


def test_encoded_faces_are_zero_where_padded_and_nowhere_else(kind, batch):
    vertices, faces, _ = padded_in_the_middle(*batch)
    edges = derive_face_edges_from_faces(faces)
    face_mask = (faces != -1).all(dim=-1)
    face_embed = autoencoder_of(kind).encode(
        vertices=vertices,
        faces=faces,
        face_edges=edges,
        face_mask=face_mask,
        face_edges_mask=(edges != -1).all(dim=-1),
    )
    assert torch.equal(face_embed.any(dim=-1), face_mask)
