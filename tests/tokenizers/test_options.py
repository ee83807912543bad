"""Every constructor option changes what the autoencoder is or computes, or is documented not to."""

import inspect

import pytest
import torch

from meshgpt_pytorch.checkpoint import CheckpointError
from meshgpt_pytorch.tokenizers.autoencoder import MeshAutoencoder
from tests.helpers import counting_saved_bytes
from tests.tokenizers.models import ATTENTION, KINDS, PLAIN_RVQ, TINY, batch_for, tiny_autoencoder

# option -> value to change it to, and what else the option needs to matter
CHANGES_SHAPES = {
    "num_discrete_coors": (16, {}),
    "dim_coor_embed": (4, {}),
    "num_discrete_area": (8, {}),
    "dim_area_embed": (8, {}),
    "num_discrete_normals": (8, {}),
    "dim_normal_embed": (4, {}),
    "num_discrete_angle": (8, {}),
    "dim_angle_embed": (8, {}),
    "encoder_dims_through_depth": ((16, 16, 24), {}),
    "init_decoder_conv_kernel": (3, {}),
    "decoder_dims_through_depth": ((16, 24), {}),
    "dim_codebook": (8, {}),
    "num_quantizers": (3, {}),
    "codebook_size": (16, {}),
    "use_residual_lfq": (False, {}),
    "attn_encoder_depth": (1, {}),
    "attn_decoder_depth": (1, {}),
    "local_attn_kwargs": ({"dim_head": 4, "heads": 2}, ATTENTION),
    "linear_attn_kwargs": ({"dim_head": 4, "heads": 4}, ATTENTION),
    "use_linear_attn": (False, ATTENTION),
    "quads": (True, {}),
    "quantizer": ("simvq", {}),
    "fsq_levels": ((8, 16, 128), {"quantizer": "fsq", "codebook_size": 16384}),
    "vertex_shortcut": (True, {"quantizer": "fsq", "fsq_levels": (8, 4, 2)}),
}
CHANGES_LOSS = {
    "coor_continuous_range": ((-2.0, 2.0), {}),
    "rq_kwargs": ({"quantize_dropout": False}, {"num_quantizers": 4}),
    "rvq_kwargs": ({"kmeans_init": True}, PLAIN_RVQ),
    "rlfq_kwargs": ({"soft_clamp_input_value": 1.0}, {}),
    "rvq_stochastic_sample_codes": (True, PLAIN_RVQ),
    "sageconv_kwargs": ({"normalize": False, "project": True}, {}),
    "commit_loss_weight": (1.0, {}),
    "bin_smooth_blur_sigma": (1.0, {}),
    "local_attn_window_size": (2, {**ATTENTION, "use_linear_attn": False}),
    "attn_dropout": (0.5, ATTENTION),
    "ff_dropout": (0.5, ATTENTION),
    "resnet_dropout": (0.5, {}),
    "vertex_consistent": (True, {}),
}
# memory only; the padding id, tested below; and what upstream accepts without effect
CHANGES_NO_LOSS = {"checkpoint_quantizer", "checkpoint_activations", "pad_id", "flash_attn"}


def autoencoder_with(**options):
    torch.manual_seed(0)
    return MeshAutoencoder(**{**TINY, **options})


def training_loss(batch, seed=1, **options):
    autoencoder = autoencoder_with(**options)
    torch.manual_seed(seed)
    return autoencoder(vertices=batch[0], faces=batch[1])


def shapes(autoencoder):
    return {name: t.shape for name, t in autoencoder.state_dict().items()}


@pytest.fixture
def batch(furniture):
    return batch_for("lfq", furniture)


def test_every_option_is_tested_here():
    options = set(inspect.signature(MeshAutoencoder).parameters)
    assert options == {*CHANGES_SHAPES, *CHANGES_LOSS, *CHANGES_NO_LOSS}


@pytest.mark.parametrize("option", CHANGES_SHAPES)
def test_option_changes_the_weights(option):
    value, others = CHANGES_SHAPES[option]
    changed = autoencoder_with(**{**others, option: value})
    assert shapes(changed) != shapes(autoencoder_with(**others))


@pytest.mark.parametrize("options", [{"fsq_levels": (2, 4, 8)}, {"num_quantizers": 3}])
def test_weights_of_another_fsq_grid_do_not_load(tmp_path, options):
    saved, other = tiny_autoencoder("fsq"), tiny_autoencoder("fsq", **options)
    saved.save(tmp_path / "autoencoder.safetensors")
    with pytest.raises(
        CheckpointError, match=r"misshapen \['quantizer\.grid \(2, 8, 4, 2, 0\) for"
    ):
        other.load(tmp_path / "autoencoder.safetensors")
    with pytest.raises(RuntimeError, match=r"size mismatch for quantizer\.grid"):
        other.load_state_dict(saved.state_dict())
    assert not any(tiny_autoencoder("fsq").load(tmp_path / "autoencoder.safetensors"))


@pytest.mark.parametrize("option", CHANGES_LOSS)
def test_option_changes_the_loss(batch, option):
    value, others = CHANGES_LOSS[option]
    changed = training_loss(batch, **{**others, option: value})
    assert changed.isfinite()
    assert not torch.equal(changed, training_loss(batch, **others))


def test_flash_attn_changes_nothing(batch):
    losses = [training_loss(batch, **ATTENTION, flash_attn=flash) for flash in (True, False)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("option", ["attn_dropout", "ff_dropout", "resnet_dropout"])
def test_dropout_acts_in_training_only(batch, option):
    vertices, faces = batch
    options = {"rq_kwargs": {"quantize_dropout": False}, **ATTENTION}
    dropping = autoencoder_with(**options, **{option: 0.5})
    torch.manual_seed(1)
    losses = [dropping(vertices=vertices, faces=faces) for _ in range(2)]
    assert not torch.equal(*losses)
    loss = dropping.eval()(vertices=vertices, faces=faces)
    assert torch.equal(loss, autoencoder_with(**options).eval()(vertices=vertices, faces=faces))


def test_quantize_dropout_leaves_later_quantizers_out(batch):
    # codes of a training step, as a loss cannot show them
    autoencoder = tiny_autoencoder(
        num_quantizers=4, rq_kwargs={"quantize_dropout": True, "quantize_dropout_cutoff_index": 1}
    )
    faces = batch[1]
    face_mask = (faces != -1).all(dim=-1)
    corner_mask = face_mask.repeat_interleave(3, dim=1)
    face_embed = torch.randn(*face_mask.shape, 24)
    kept = set()
    for _ in range(20):
        output = autoencoder.quantize(faces=faces, face_mask=face_mask, face_embed=face_embed)
        used = (output.codes[corner_mask] >= 0).all(dim=0).tolist()
        assert used == sorted(used, reverse=True)
        kept.add(sum(used))
    assert kept == {2, 3, 4}
    # and none when tokens are wanted
    codes = autoencoder(vertices=batch[0], faces=faces, return_codes=True)
    assert (codes[corner_mask] >= 0).all()


def test_codebook_temperature_acts_on_stochastic_codes_in_training(batch):
    def loss(temperature, training=True, **options):
        autoencoder = autoencoder_with(**{**PLAIN_RVQ, **options}).train(training)
        torch.manual_seed(1)
        return autoencoder(vertices=batch[0], faces=batch[1], rvq_sample_codebook_temp=temperature)

    stochastic = {"rvq_stochastic_sample_codes": True}
    assert not torch.equal(loss(1.0, **stochastic), loss(10.0, **stochastic))
    torch.testing.assert_close(loss(0.0, **stochastic), loss(1.0))
    assert torch.equal(loss(1.0, **stochastic, training=False), loss(10.0, training=False))


@pytest.mark.parametrize("num_quantizers", [2, 4])
@pytest.mark.parametrize("quantize_dropout", [False, True])
def test_checkpointing_gives_the_same_step_for_less_memory(batch, num_quantizers, quantize_dropout):
    options = {
        "num_quantizers": num_quantizers,
        "rq_kwargs": {"quantize_dropout": quantize_dropout, "quantize_dropout_cutoff_index": 1},
    }
    gradients, saved = [], []
    for checkpointed in (True, False):
        autoencoder = tiny_autoencoder(**options, checkpoint_quantizer=checkpointed)
        torch.manual_seed(1)
        with counting_saved_bytes() as kept:
            loss = autoencoder(vertices=batch[0], faces=batch[1])
        loss.backward()
        gradients.append({"loss": loss, **{n: p.grad for n, p in autoencoder.named_parameters()}})
        saved += kept
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert saved[0] < saved[1]


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_activations_give_the_same_step_for_less_memory(furniture, kind):
    vertices, faces = batch_for(kind, furniture)
    # deep enough that what is between layers does not count for much
    options = {"decoder_dims_through_depth": (16,) * 16, "resnet_dropout": 0.1}
    steps, saved = [], []
    for checkpoint_activations in (True, False):
        autoencoder = tiny_autoencoder(
            kind, **options, checkpoint_activations=checkpoint_activations
        )
        torch.manual_seed(1)
        with counting_saved_bytes() as kept:
            loss = autoencoder(vertices=vertices, faces=faces)
        loss.backward()
        steps.append({"loss": loss, **{n: p.grad for n, p in autoencoder.named_parameters()}})
        saved += kept
    torch.testing.assert_close(*steps, rtol=1e-5, atol=1e-6)
    # logits, and their average over vertices, are kept all the same
    assert saved[0] < saved[1] * 0.5


def test_another_pad_id_gives_the_same_step_and_codes(batch):
    vertices, faces = batch
    padded = faces == -1
    expected = tiny_autoencoder().tokenize(vertices, faces)
    autoencoder = tiny_autoencoder(pad_id=-2)
    codes = autoencoder.tokenize(vertices, faces.masked_fill(padded, -2))
    assert torch.equal(codes == -2, expected == -1)
    assert torch.equal(codes.masked_fill(codes == -2, -1), expected)
    assert (codes == -2).any()

    decoded = autoencoder.decode_from_codes_to_faces(codes)
    expected_faces = tiny_autoencoder().decode_from_codes_to_faces(expected)
    torch.testing.assert_close(decoded, expected_faces, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_reaches_every_parameter(kind, furniture):
    autoencoder = tiny_autoencoder(kind)
    vertices, faces = batch_for(kind, furniture)
    autoencoder(vertices=vertices, faces=faces).backward()
    unreached = [
        name
        for name, parameter in autoencoder.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert unreached == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_lower_the_loss(kind, furniture):
    vertices, faces = batch_for(kind, furniture)
    autoencoder = tiny_autoencoder(kind, rq_kwargs={"quantize_dropout": False})
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=5e-3)
    losses = []
    for _ in range(12):
        _, (recon_loss, _) = output = autoencoder(
            vertices=vertices, faces=faces, return_loss_breakdown=True
        )
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(recon_loss.item())
    assert losses[-1] < losses[0] * 0.8
