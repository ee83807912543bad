"""Equality with meshgpt-pytorch 1.8.1: its weights, its numbers, its codes."""

import ast

import pytest
import torch

from meshgpt_pytorch.mesh import derive_face_edges_from_faces
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from tests.helpers import GOLDEN, read_golden

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
CASES = ("ae_lfq", "ae_rvq", "ae_quads", "ae_attn")


@pytest.fixture(params=CASES)
def golden(request):
    return read_golden(request.param)


@pytest.fixture
def autoencoder(golden):
    model = MeshAutoencoder(**golden.config["autoencoder"])
    model.load_state_dict(golden.with_prefix("state"), strict=True)
    return model


@pytest.fixture
def ragged(golden):
    return {"vertices": golden["in.ragged_vertices"], "faces": golden["in.ragged_faces"]}


# the reference has training losses for lookup-free quantizers only: learned codebooks are random
@pytest.mark.parametrize("golden", ["ae_lfq", "ae_quads", "ae_attn"], indirect=True)
def test_training_losses_and_gradients_equal_upstream(golden, autoencoder):
    loss, breakdown = autoencoder(
        vertices=golden["in.vertices"], faces=golden["in.faces"], return_loss_breakdown=True
    )
    torch.testing.assert_close(loss, golden["out.train_loss"], **TOLERANCE)
    torch.testing.assert_close(breakdown.recon_loss, golden["out.train_recon_loss"], **TOLERANCE)
    torch.testing.assert_close(breakdown.commit_loss, golden["out.train_commit_loss"], **TOLERANCE)

    loss.backward()
    norms = {name: p.grad.norm() for name, p in autoencoder.named_parameters()}
    torch.testing.assert_close(norms, golden.with_prefix("grad_norm"), **TOLERANCE)


def test_evaluation_losses_equal_upstream(golden, autoencoder, ragged):
    loss, (recon_loss, commit_loss) = autoencoder.eval()(**ragged, return_loss_breakdown=True)
    torch.testing.assert_close(loss, golden["out.eval_loss"], **TOLERANCE)
    torch.testing.assert_close(recon_loss, golden["out.eval_recon_loss"], **TOLERANCE)
    torch.testing.assert_close(commit_loss, golden["out.eval_commit_loss"], **TOLERANCE)


def test_codes_equal_upstream(golden, autoencoder, ragged):
    assert torch.equal(autoencoder.tokenize(**ragged), golden["out.codes"])


def test_reconstruction_equals_upstream(golden, autoencoder, ragged):
    recon_faces = autoencoder.eval()(**ragged, only_return_recon_faces=True)
    torch.testing.assert_close(recon_faces, golden["out.recon_faces"], **TOLERANCE, equal_nan=True)


def test_decoded_codes_equal_upstream(golden, autoencoder):
    decoded = autoencoder.decode_from_codes_to_faces(
        golden["out.codes"], return_discrete_codes=True
    )
    faces, mask = golden["out.decoded_faces"], golden["out.decoded_mask"]
    torch.testing.assert_close(decoded.face_coords, faces, **TOLERANCE, equal_nan=True)
    assert torch.equal(decoded.discrete_coords, golden["out.decoded_bins"])
    assert torch.equal(decoded.face_mask, mask)


def test_face_edges_equal_upstream(golden, ragged):
    # the order of edges does not matter to a graph
    edges = derive_face_edges_from_faces(ragged["faces"])
    expected = golden["out.face_edges"]
    assert edges.shape == expected.shape
    for row, expected_row in zip(edges.tolist(), expected.tolist(), strict=True):
        assert sorted(row) == sorted(expected_row)


def read_listing() -> dict[str, list[list[str]]]:
    """Read the listing of autoencoders: a title -> its lines, cut at tabs."""
    sections = (GOLDEN / "upstream_state_dict.txt").read_text().split("## ")[1:]
    listing = {}
    for section in sections:
        title, *lines = section.splitlines()
        if "MeshAutoencoder" in title:
            listing[title] = [line.split("\t") for line in lines if line[:1] not in ("", "#")]
    return listing


DEFAULT, *DIFFERENCES = read_listing()


def expected_state(title: str) -> dict[str, str]:
    """Shape and dtype of each entry of the state that a section describes."""
    state = {name: f"{shape} {dtype}" for name, shape, dtype in read_listing()[DEFAULT]}
    for name, *entry in read_listing()[title] if title != DEFAULT else ():
        kind, name = name.split(" ")
        if kind == "-":
            del state[name]
        elif kind == "+":
            state[name] = " ".join(entry)
        else:
            state[name] = f"{entry[0].split(' -> ')[1]} {state[name].split()[-1]}"
    return state


@pytest.mark.parametrize("title", [DEFAULT, *DIFFERENCES])
def test_names_and_shapes_of_weights_equal_upstream(title):
    options = {} if title == DEFAULT else ast.literal_eval(title.split(": ", 1)[1])
    state = MeshAutoencoder(**options).state_dict()
    found = {name: f"{[*t.shape]} {str(t.dtype)[6:]}" for name, t in state.items()}
    assert found == expected_state(title)
