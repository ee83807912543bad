"""Causal attention without a mask is the library's with one, forward and backward."""

import pytest
import torch
from x_transformers import Decoder
from x_transformers.attend import Attend

from meshgpt_pytorch.transformer.attention import CausalAttend, build_decoder
from tests.transformer.models import make_text_transformer

OPTIONS = {
    "plain": {},
    "learned keys": {"attn_num_mem_kv": 4},
    "one head of keys": {"attn_num_mem_kv": 4, "attn_one_kv_head": True},
    "fewer heads of keys": {"attn_num_mem_kv": 4, "attn_kv_heads": 2},
    "normed": {"attn_num_mem_kv": 4, "attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
    "rotary": {"attn_num_mem_kv": 4, "rotary_pos_emb": True},
    "biased": {"attn_num_mem_kv": 4, "alibi_pos_bias": True},
    "distances": {"attn_num_mem_kv": 4, "attn_l2_distance": True},
}


SIZES = {"dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 32, "attn_flash": True}


def make_decoder(**options) -> Decoder:
    torch.manual_seed(0)
    return build_decoder(**SIZES, **options)


# few keys take plain products, many the fused kernel
@pytest.mark.parametrize("length", [1, 6, 50])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_outputs_and_gradients_are_those_with_a_mask(options, length):
    x = torch.randn(3, length, 16, generator=torch.Generator().manual_seed(1))
    ours, library = make_decoder(**options), Decoder(**SIZES, **options)
    library.load_state_dict(ours.state_dict(), strict=True)
    results = []
    for decoder in (ours, library):
        out = decoder(x)
        out.square().sum().backward()
        results.append({"out": out, **{n: p.grad for n, p in decoder.named_parameters()}})
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_nothing_of_the_size_of_all_pairs_is_kept_for_the_backward_pass():
    decoder, length = make_decoder(attn_num_mem_kv=4), 1000
    largest = 0

    def pack(tensor):
        nonlocal largest
        largest = max(largest, tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        decoder(torch.randn(1, length, 16))
    assert 0 < largest < length * length


@pytest.mark.parametrize("length", [6, 50])
def test_dropout_acts_in_training_alone(length):
    decoder = make_decoder(attn_num_mem_kv=4, attn_dropout=0.5)
    x = torch.randn(1, length, 16)
    assert not torch.equal(decoder(x), decoder(x))
    decoder.eval()
    assert torch.equal(decoder(x), decoder(x))


@torch.no_grad()
def test_steps_over_a_cache_are_the_whole_pass():
    decoder = make_decoder(attn_num_mem_kv=4).eval()
    x = torch.randn(2, 9, 16)
    cache, steps = None, []
    for place in range(9):
        out, cache = decoder(x[:, : place + 1], cache=cache, return_hiddens=True)
        steps.append(out[:, -1:])
    torch.testing.assert_close(torch.cat(steps, dim=1), decoder(x), rtol=1e-4, atol=1e-5)


def test_models_do_without_masks_but_where_they_attend_to_text():
    model = make_text_transformer(fine_cross_attend_text=True)
    parts = [part for part in model.modules() if isinstance(part, Attend)]
    assert any(part.causal for part in parts) and not all(part.causal for part in parts)
    assert all(isinstance(part, CausalAttend) == part.causal for part in parts)
