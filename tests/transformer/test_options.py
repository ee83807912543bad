"""Each constructor option has an effect, or is refused."""

import inspect

import pytest
import torch
from transformers import T5Config

from meshgpt_pytorch.transformer.layers import as_pair
from meshgpt_pytorch.transformer.model import MeshTransformer
from meshgpt_pytorch.transformer.step_support import can_step
from tests.helpers import counting_saved_bytes
from tests.transformer.models import (
    TEXTS,
    LetterEncoder,
    logits_of,
    make_autoencoder,
    make_text_transformer,
    make_transformer,
    random_codes,
    trained_parameters,
)

# options of which the state tells the effect: more, fewer or other parameters
STATE_OPTIONS = {
    "dim": 24,
    "max_seq_len": 60,
    "attn_depth": 1,
    "attn_dim_head": 4,
    "attn_heads": 3,
    "attn_kwargs": {"ff_glu": True},
    "coarse_pre_gateloop_depth": 2,
    "coarse_post_gateloop_depth": 1,
    "fine_pre_gateloop_depth": 0,
    "fine_attn_depth": 2,
    "fine_attn_dim_head": 4,
    "fine_attn_heads": 3,
    "num_sos_tokens": 2,
    "copy_vertices": True,
    "quads": True,
}
TEXT_STATE_OPTIONS = {
    "cross_attn_num_mem_kv": 3,
    "coarse_adaptive_rmsnorm": True,
    "fine_cross_attend_text": True,
    "text_cond_with_film": True,
    "text_encoder": LetterEncoder(8),
}
# options with a test of their own, here or where it says
OTHER_OPTIONS = {
    "autoencoder",
    "flash_attn",
    "checkpoint_activations",
    "dropout",
    "gateloop_use_heinsen",
    "pad_id",  # test_model
    "condition_on_text",  # test_conditioning
    "text_condition_model_types",
    "text_condition_model_kwargs",
    "text_condition_cond_drop_prob",  # test_conditioning
}


def shapes_of(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def test_each_option_is_tested():
    options = set(inspect.signature(MeshTransformer.__init__).parameters) - {"self"}
    assert options == STATE_OPTIONS.keys() | TEXT_STATE_OPTIONS.keys() | OTHER_OPTIONS


@pytest.mark.parametrize("option", STATE_OPTIONS)
def test_an_option_changes_the_state(option):
    model = make_transformer(**{option: STATE_OPTIONS[option]})
    assert shapes_of(model) != shapes_of(make_transformer())
    assert model(codes=random_codes(model, 3)).isfinite()


@pytest.mark.parametrize("option", TEXT_STATE_OPTIONS)
def test_an_option_of_text_changes_the_state(option):
    model = make_text_transformer(**{option: TEXT_STATE_OPTIONS[option]})
    assert shapes_of(model) != shapes_of(make_text_transformer())
    assert model(codes=random_codes(model, 3), texts=TEXTS).isfinite()


def test_text_changes_the_state_and_the_sos_tokens():
    model = make_text_transformer()
    assert model.condition_on_text and not make_transformer().condition_on_text
    assert model.num_sos_tokens == 4 and make_transformer().num_sos_tokens == 1
    assert make_text_transformer(num_sos_tokens=2).sos_token.shape == (2, 16)


@torch.no_grad()
@pytest.mark.parametrize("option", ["flash_attn", "gateloop_use_heinsen"])
def test_another_algorithm_computes_the_same(option):
    off, on = (make_transformer(**{option: value}) for value in (False, True))
    codes = random_codes(on, 5)
    torch.testing.assert_close(logits_of(on, codes), logits_of(off, codes), rtol=1e-4, atol=1e-4)
    parts = {name: part for name, part in on.named_modules() if not name.startswith("auto")}
    attribute = {"flash_attn": "flash", "gateloop_use_heinsen": "use_heinsen"}[option]
    switches = [getattr(p, attribute) for p in parts.values() if hasattr(p, attribute)]
    assert switches and all(switches)


@torch.no_grad()
def test_dropout_acts_in_training_alone():
    model = make_transformer(dropout=0.5)
    codes = random_codes(model, 5)
    assert model(codes=codes) == model(codes=codes)
    model.train()
    assert model(codes=codes) != model(codes=codes)
    layers = [part for part in model.modules() if isinstance(part, torch.nn.Dropout)]
    assert {layer.p for layer in layers if layer in set(model.decoder.modules())} == {0.5}


def test_head_sizes_of_the_fine_stage_are_those_of_the_coarse_stage_unless_given():
    def queries(model):
        return model.fine_decoder.layers[0][1].to_q.weight.shape[0]

    assert queries(make_transformer(attn_dim_head=4, attn_heads=3)) == 12
    assert queries(make_transformer(fine_attn_dim_head=32, fine_attn_heads=8)) == 256


def test_a_width_or_a_pair_of_widths():
    assert as_pair(512) == (512, 512)
    assert as_pair((512, 256)) == as_pair([512, 256]) == (512, 256)
    same = make_transformer(dim=(16, 16))
    assert shapes_of(same) == shapes_of(make_transformer(dim=16))
    unequal = make_transformer(dim=[24, 16])
    assert unequal.token_embed.weight.shape[1] == 24
    assert unequal.to_logits.weight.shape[1] == 16


@torch.no_grad()
def test_the_default_limit_is_the_most_whole_faces_that_8192_codes_hold():
    sizes = {"dim": 16, "attn_depth": 1, "attn_dim_head": 8, "attn_heads": 2, "fine_attn_depth": 1}
    model = MeshTransformer(make_autoencoder(), **sizes)
    assert model.max_seq_len == 8190
    assert model(codes=random_codes(model, 2)).isfinite()
    quads = MeshTransformer(make_autoencoder(quads=True), quads=True, **sizes)
    assert quads.max_seq_len == 8192


# what is refused


@pytest.mark.parametrize("stage", ["", "fine_"])
def test_a_single_head_of_another_width_is_refused(stage):
    with pytest.raises(ValueError, match=r"a single attention head must be as wide .* 16, got 8"):
        make_transformer(**{f"{stage}attn_heads": 1, f"{stage}attn_dim_head": 8})
    as_wide = {"attn_heads": 1, "attn_dim_head": 16}
    projected = {"attn_heads": 1, "attn_kwargs": {"attn_project_out": True}}
    for options in (as_wide, projected):
        model = make_transformer(**options)
        assert model(codes=random_codes(model, 3)).isfinite()


@pytest.mark.parametrize("max_seq_len", [0, -6, 5, 8192])
def test_a_limit_that_is_not_whole_faces_is_refused(max_seq_len):
    remedy = max(6, max_seq_len // 6 * 6)
    message = rf"multiple of one face's 3 x 2 = 6 codes, got {max_seq_len}; use {remedy}$"
    with pytest.raises(ValueError, match=message):
        make_transformer(max_seq_len=max_seq_len)


def test_a_limit_that_is_not_whole_quads_is_refused():
    with pytest.raises(ValueError, match="one face's 4 x 3 = 12 codes, got 30; use 24"):
        make_transformer(quads=True, num_quantizers=3, max_seq_len=30)


@pytest.mark.parametrize("num_sos_tokens", [0, -1])
def test_a_start_from_nothing_is_refused(num_sos_tokens):
    with pytest.raises(ValueError, match=f"must be at least 1, got {num_sos_tokens}"):
        make_transformer(num_sos_tokens=num_sos_tokens)


@pytest.mark.parametrize("dim", [(16,), (16, 16, 16), ()])
def test_other_than_two_widths_are_refused(dim):
    with pytest.raises(ValueError, match=r"dim must be a width or a \(coarse, fine\) pair, got"):
        make_transformer(dim=dim)


@pytest.mark.parametrize("quads", [True, False])
def test_an_autoencoder_for_another_kind_of_face_is_refused(quads):
    with pytest.raises(ValueError, match=f"same kind of face, .* pass quads={not quads}"):
        make_transformer(autoencoder=make_autoencoder(quads=not quads), quads=quads)


@pytest.mark.parametrize("pad_id", [0, 31, 32])
def test_a_pad_id_that_is_a_code_is_refused(pad_id):
    with pytest.raises(ValueError, match=f"pad_id must not be one of the codes .* got {pad_id};"):
        make_transformer(pad_id=pad_id)


@pytest.mark.parametrize(
    "option",
    [
        {"coarse_adaptive_rmsnorm": True},
        {"fine_cross_attend_text": True},
        {"text_cond_with_film": True},
        {"text_encoder": LetterEncoder()},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_of_text_without_text_are_refused(option):
    with pytest.raises(ValueError, match="need a text, got condition_on_text=False"):
        make_transformer(**option)


def test_residual_streams_that_would_be_mixed_wrongly_are_refused():
    with pytest.raises(RuntimeError, match="num_residual_streams=4 needs hyper-connections that"):
        make_transformer(attn_kwargs={"num_residual_streams": 4})
    make_transformer(attn_kwargs={"num_residual_streams": 1})


def test_text_encoders_may_be_named_by_type(tmp_path):
    # of an encoder that embeds nothing yet, the configuration is all that is read
    T5Config(d_model=20).save_pretrained(tmp_path)
    model = make_transformer(
        condition_on_text=True,
        text_condition_model_types=("t5", "t5"),
        text_condition_model_kwargs=({"name": str(tmp_path)}, {"name": str(tmp_path)}),
    )
    assert [tuple(to.weight.shape) for to in model.conditioner.to_latent_dims] == [(20, 20)] * 2
    with pytest.raises(ValueError, match=r"text_condition_model_types must be of .* got 'bert'"):
        make_transformer(condition_on_text=True, text_condition_model_types=("bert",))
    with pytest.raises(
        ValueError, match="text_condition_model_kwargs must have one mapping for each"
    ):
        make_transformer(
            condition_on_text=True,
            text_condition_model_types=("t5",),
            text_condition_model_kwargs=({}, {}),
        )


@pytest.mark.parametrize("gateloop_use_heinsen", [False, True])
@pytest.mark.parametrize("with_text", [False, True])
def test_checkpointed_activations_give_the_same_step_for_less_memory(
    with_text, gateloop_use_heinsen
):
    options = {
        "attn_depth": 4,
        "attn_heads": 4,
        "dropout": 0.1,
        "gateloop_use_heinsen": gateloop_use_heinsen,
        "coarse_post_gateloop_depth": 1,
    }
    if with_text:
        options |= {"fine_cross_attend_text": True, "coarse_adaptive_rmsnorm": True}
    make = make_text_transformer if with_text else make_transformer
    steps, saved = [], []
    for checkpoint_activations in (True, False):
        model = make(**options, checkpoint_activations=checkpoint_activations).train()
        codes = random_codes(model, 12)
        torch.manual_seed(1)
        with counting_saved_bytes() as kept:
            loss = model(codes=codes, texts=TEXTS if with_text else None)
        loss.backward()
        gradients = {n: p.grad for n, p in trained_parameters(model).items()}
        steps.append({"loss": loss, **gradients})
        saved += kept
    torch.testing.assert_close(*steps, rtol=1e-5, atol=1e-6)
    assert saved[0] < saved[1] / 2


@torch.no_grad()
def test_checkpointed_activations_change_no_meshes():
    models = [make_transformer(checkpoint_activations=value) for value in (False, True)]
    first, second = (m.generate(temperature=0.0, return_codes=True) for m in models)
    assert torch.equal(first, second)
    assert can_step(models[1].decoder)
    assert models[1].state_dict().keys() == models[0].state_dict().keys()
