"""Coordinates reach the codes, and codes the coordinates, past the networks over faces."""

import pytest
import torch
from einops import rearrange

from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from meshgpt_pytorch.tokenizers.finite_scalar import FiniteScalarQuantizer
from meshgpt_pytorch.tokenizers.vertex_shortcut import START_WIDTH, VertexShortcut
from tests.tokenizers.models import FSQ, TINY, batch_for, tiny_autoencoder


def test_logits_are_a_bell_about_the_position_of_a_vertex():
    torch.manual_seed(0)
    shortcut = VertexShortcut(6, 16)
    quantized = torch.randn(2, 5, 12)
    logits = shortcut.add_logits(torch.randn(2, 5, 6, 16), quantized)
    corners = rearrange(quantized, "b nf (nvf d) -> b nf nvf d", d=6)
    position = rearrange(shortcut.to_coordinates(corners), "b nf nvf c -> b nf (nvf c)")
    nearest = ((position + 1) * 8 - 0.5).round().clamp(0, 15).long()
    assert torch.equal(logits.argmax(dim=-1), nearest)
    at_peak = logits.gather(-1, nearest[..., None])
    distance = (position + 1) * 8 - 0.5 - nearest
    torch.testing.assert_close(at_peak[..., 0], -((distance / START_WIDTH) ** 2) / 2)


def test_gates_start_closed():
    torch.manual_seed(0)
    autoencoder = MeshAutoencoder(**{**TINY, **FSQ, "vertex_shortcut": True})
    vertices = torch.rand(1, 6, 3) * 2 - 1
    codes = [
        autoencoder.tokenize(vertices, torch.tensor([faces]))
        for faces in ([[0, 1, 2], [2, 1, 3]], [[0, 1, 2], [2, 1, 5]])
    ]
    # vertices 0, 1, 2 and 2, 1 have their own codes, whatever faces are beside
    assert torch.equal(codes[0][0, :5], codes[1][0, :5])


def test_open_gates_let_the_networks_through(furniture):
    vertices, faces = batch_for("fsq", furniture)
    autoencoder = tiny_autoencoder("fsq, shortcut")
    codes = autoencoder.tokenize(vertices, faces)
    with torch.no_grad():
        autoencoder.vertex_shortcut.encoder_gate.zero_()
    assert not torch.equal(autoencoder.tokenize(vertices, faces), codes)


def test_range_of_the_coordinates_does_not_matter(furniture):
    vertices, faces = batch_for("fsq", furniture)
    one, other = (
        tiny_autoencoder("fsq, shortcut", coor_continuous_range=(-scale, scale))
        for scale in (1.0, 4.0)
    )
    for autoencoder in (one, other):
        with torch.no_grad():
            autoencoder.vertex_shortcut.encoder_gate.zero_()
    assert torch.equal(one.tokenize(vertices, faces), other.tokenize(vertices * 4, faces))


def test_quantize_asks_for_the_vertices():
    autoencoder = tiny_autoencoder("fsq, shortcut")
    with pytest.raises(ValueError, match=r"coordinates of vertices with vertex_shortcut=True"):
        autoencoder.quantize(
            faces=torch.tensor([[[0, 1, 2]]]),
            face_mask=torch.ones(1, 1, dtype=torch.bool),
            face_embed=torch.zeros(1, 1, TINY["encoder_dims_through_depth"][-1]),
        )


def test_codes_start_as_the_coordinates():
    torch.manual_seed(0)
    autoencoder = MeshAutoencoder(
        quantizer="fsq",
        fsq_levels=(16, 16, 16),
        codebook_size=4096,
        vertex_shortcut=True,
        encoder_dims_through_depth=(16, 24),
        decoder_dims_through_depth=(16, 16),
    )
    bins = torch.randint(0, 128, (1, 30, 3))
    vertices = (bins + 0.5) / 64 - 1
    faces = torch.arange(30).reshape(1, 10, 3)
    codes = autoencoder.tokenize(vertices, faces)
    # 256 cells an axis, two a bin: x in the lowest digit of both codes, then y, then z
    digits = codes[..., None] // torch.tensor([1, 16, 256]) % 16
    cells = digits[:, :, 0] * 16 + digits[:, :, 1]
    # never the cell that begins where the bin does, as rounding might have it
    assert torch.equal(cells, 2 * bins + 1)
    assert torch.equal(autoencoder.double().tokenize(vertices.double(), faces), codes)


@pytest.mark.parametrize("levels", [(16, 16, 16), (12, 16, 24), (4, 4, 4)])
def test_positions_come_back_from_their_codes_as_far_as_the_grid_goes(levels):
    torch.manual_seed(0)
    quantizer = FiniteScalarQuantizer(20, levels=levels, num_quantizers=2)
    shortcut = VertexShortcut(20, 128)
    shortcut.start_as_identity(quantizer)
    bins = torch.arange(128)[None, :, None].expand(1, 128, 3)
    quantized, _, _ = quantizer(shortcut.add_coordinates(torch.randn(1, 128, 20), bins))
    position = shortcut.to_coordinates(quantized)
    centres = (bins + 0.5) / 64 - 1
    half_cells = 1 / torch.tensor([float(level**2) for level in levels])
    assert ((position - centres).abs() <= half_cells + 1e-5).all()
    if levels == (16, 16, 16):
        torch.testing.assert_close(position, centres, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"quantizer": "simvq"}, {**FSQ, "fsq_levels": (4, 16)}])
def test_only_a_grid_of_three_axes_has_a_shortcut(options):
    with pytest.raises(ValueError, match=r"vertex_shortcut needs a grid .* pass quantizer='fsq'"):
        MeshAutoencoder(**{**TINY, **options, "vertex_shortcut": True})
