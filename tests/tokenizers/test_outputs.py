"""What forward returns for each flag, and that it unpacks as upstream's tuples."""

import pytest
import torch

from meshgpt_pytorch.tokenizers.outputs import (
    LossBreakdown,
    LossOutput,
    ReconLossOutput,
    ReconOutput,
)
from tests.tokenizers.models import batch_for, tiny_autoencoder


@pytest.fixture
def batch(furniture):
    return dict(zip(("vertices", "faces"), batch_for("lfq", furniture), strict=True))


@pytest.fixture
def autoencoder():
    return tiny_autoencoder().eval()


def test_loss_alone(autoencoder, batch):
    loss = autoencoder(**batch)
    assert isinstance(loss, torch.Tensor)
    assert loss.shape == ()


def test_loss_breakdown(autoencoder, batch):
    output = autoencoder(**batch, return_loss_breakdown=True)
    assert isinstance(output, LossOutput)
    assert isinstance(output.breakdown, LossBreakdown)
    loss, (recon_loss, commit_loss) = output
    assert torch.equal(loss, autoencoder(**batch))
    assert recon_loss.shape == ()
    assert commit_loss.shape == (autoencoder.num_quantizers,)
    assert loss is output.loss
    assert recon_loss is output.breakdown.recon_loss
    assert commit_loss is output.breakdown.commit_loss


def test_the_loss_is_the_weighted_sum_of_its_parts(batch):
    autoencoder = tiny_autoencoder(commit_loss_weight=0.3, rq_kwargs={"quantize_dropout": False})
    loss, (recon_loss, commit_loss) = autoencoder(**batch, return_loss_breakdown=True)
    assert (commit_loss != 0).all()
    torch.testing.assert_close(loss, recon_loss + 0.3 * commit_loss.sum())


def test_commitment_costs_nothing_in_eval_mode(autoencoder, batch):
    loss, (recon_loss, commit_loss) = autoencoder(**batch, return_loss_breakdown=True)
    assert torch.equal(commit_loss, torch.zeros(2))
    assert torch.equal(loss, recon_loss)


def test_reconstructed_faces_alone_whatever_else_is_asked_for(autoencoder, batch):
    recon_faces = autoencoder(**batch, only_return_recon_faces=True)
    assert recon_faces.shape == (*batch["faces"].shape, 3)
    for flag in ("return_recon_faces", "return_loss_breakdown"):
        same = autoencoder(**batch, only_return_recon_faces=True, **{flag: True})
        torch.testing.assert_close(same, recon_faces, rtol=0, atol=0, equal_nan=True)


def test_reconstructed_faces_and_loss(autoencoder, batch):
    output = autoencoder(**batch, return_recon_faces=True)
    assert isinstance(output, ReconOutput)
    recon_faces, loss = output
    expected = autoencoder(**batch, only_return_recon_faces=True)
    torch.testing.assert_close(recon_faces, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(loss, autoencoder(**batch))
    assert (output.recon_faces is recon_faces, output.loss is loss) == (True, True)


def test_reconstructed_faces_and_loss_breakdown(autoencoder, batch):
    output = autoencoder(**batch, return_recon_faces=True, return_loss_breakdown=True)
    assert isinstance(output, ReconLossOutput)
    recon_faces, loss, (recon_loss, commit_loss) = output
    expected = autoencoder(**batch, return_loss_breakdown=True)
    assert torch.equal(loss, expected.loss)
    assert torch.equal(recon_loss, expected.breakdown.recon_loss)
    assert torch.equal(commit_loss, expected.breakdown.commit_loss)
    assert output.recon_faces is recon_faces


def test_reconstruction_is_the_decoding_of_the_codes(autoencoder, batch):
    codes = autoencoder(**batch, return_codes=True)
    recon_faces = autoencoder(**batch, only_return_recon_faces=True)
    decoded = autoencoder.decode_from_codes_to_faces(codes)
    torch.testing.assert_close(decoded.face_coords, recon_faces, rtol=0, atol=0, equal_nan=True)


def test_skip_quantizer_reads_vertices_as_they_are(batch):
    autoencoder = tiny_autoencoder()
    loss, (recon_loss, commit_loss) = autoencoder(
        **batch, skip_quantizer=True, return_loss_breakdown=True
    )
    assert torch.equal(loss, recon_loss)
    assert torch.equal(commit_loss, torch.zeros(2))
    loss.backward()
    assert all(parameter.grad is None for parameter in autoencoder.quantizer.parameters())
    assert autoencoder.project_dim_codebook.weight.grad.abs().sum() > 0
    # and not what the quantizer makes of them
    assert not torch.equal(recon_loss, autoencoder.eval()(**batch))


@pytest.mark.parametrize(
    "flags",
    [
        {"return_loss_breakdown": True},
        {"return_recon_faces": True},
        {"only_return_recon_faces": True},
        {"skip_quantizer": True},
    ],
)
def test_codes_are_returned_alone_or_not_at_all(autoencoder, batch, flags):
    with pytest.raises(ValueError, match=r"return_codes returns codes alone, .* call the auto"):
        autoencoder(**batch, return_codes=True, **flags)
