"""Padding never reaches a face through the building blocks; each block is what it is named for."""

import pytest
import torch
from einops import rearrange, repeat

from meshgpt_pytorch.tokenizers.layers import (
    AttentionBlock,
    Block,
    PixelNorm,
    ResnetBlock,
    SqueezeExcite,
    init_decoder_conv,
    order_padding_last,
    reorder_faces,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_pixel_norm_gives_each_position_unit_mean_square():
    x = torch.randn(2, 6, 5) * 10
    y = PixelNorm(dim=1)(x)
    torch.testing.assert_close((y**2).mean(dim=1), torch.ones(2, 5))
    # the direction stays
    torch.testing.assert_close(y / y[:, :1], x / x[:, :1])


def test_pixel_norm_of_nothing_is_nothing():
    x = torch.zeros(1, 4, 2, requires_grad=True)
    y = PixelNorm(dim=1)(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(1, 4, 2))
    assert x.grad.isfinite().all()


def test_squeeze_excite_gates_each_channel_of_a_row_alike():
    x = torch.randn(2, 6, 5)
    gate = SqueezeExcite(6)(x) / x
    torch.testing.assert_close(gate, repeat(gate[..., 0], "b d -> b d nf", nf=5))
    assert ((gate > 0) & (gate < 1)).all()


def masked(num_faces=5, num_padded=3):
    mask = torch.ones(2, 1, num_faces + num_padded, dtype=torch.bool)
    mask[..., num_faces:] = False
    return mask


@pytest.mark.parametrize(
    "block", [SqueezeExcite(6), Block(6, 6), ResnetBlock(6, 6), ResnetBlock(6, 8)]
)
def test_padding_does_not_reach_a_face(block):
    x = torch.randn(2, 6, 8)
    expected = block(x[..., :5])
    other = x.clone()
    other[..., 5:] = 100.0
    torch.testing.assert_close(block(x, mask=masked())[..., :5], expected)
    torch.testing.assert_close(block(other, mask=masked())[..., :5], expected)
    # without a mask it would
    assert not torch.allclose(block(other)[..., :5], expected)


@pytest.mark.parametrize("block", [SqueezeExcite(6), Block(6, 6), ResnetBlock(6, 8)])
def test_a_row_of_padding_alone_is_finite(block):
    x = torch.randn(2, 6, 4, requires_grad=True)
    y = block(x, mask=torch.zeros(2, 1, 4, dtype=torch.bool))
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_resnet_block_adds_to_its_shortcut():
    x = torch.randn(2, 6, 5)
    same, wider = ResnetBlock(6, 6), ResnetBlock(6, 8)
    for block in (same, wider):
        # a gate that is shut leaves the shortcut
        block.excite.net[2].weight.data.zero_()
        block.excite.net[2].bias.data.fill_(-200.0)
    assert torch.equal(same(x), x)
    torch.testing.assert_close(wider(x), wider.residual_conv(x))


def test_resnet_block_reads_two_faces_on_each_side():
    block = ResnetBlock(4, 4)
    # a gate that is open, so that no face is reached through the mean of all
    block.excite.net[2].weight.data.zero_()
    x = torch.randn(1, 4, 11, requires_grad=True)
    block(x)[0, :, 5].sum().backward()
    reached = x.grad[0].abs().sum(dim=0) > 0
    assert reached.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


def test_first_convolution_reads_as_many_faces_as_its_kernel_spans():
    conv = init_decoder_conv(6, 4, 5)
    x = torch.randn(1, 6, 11, requires_grad=True)
    y = conv(x)
    assert y.shape == (1, 4, 11)
    (y[0, :, 5] * torch.randn(4)).sum().backward()
    reached = x.grad[0].abs().sum(dim=0) > 0
    assert reached.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


def test_first_convolution_ends_in_a_layer_norm_over_channels():
    y = init_decoder_conv(6, 16, 3)(torch.randn(2, 6, 9) * 5)
    torch.testing.assert_close(y.mean(dim=1), torch.zeros(2, 9), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var(dim=1, correction=0), torch.ones(2, 9), rtol=0, atol=1e-2)


def attention_block(linear=True, **options):
    return AttentionBlock(
        12,
        window_size=4,
        local_attn_kwargs={"dim_head": 8, "heads": 2},
        linear_attn_kwargs={"dim_head": 4, "heads": 2} if linear else None,
        **options,
    )


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("num_padded", [1, 9])
def test_attention_does_not_see_padding(linear, num_padded):
    block = attention_block(linear)
    x = torch.randn(2, 7 + num_padded, 12)
    mask = rearrange(masked(7, num_padded), "b 1 nf -> b nf")
    expected = block(x[:, :7], mask[:, :7])
    torch.testing.assert_close(block(x, mask)[:, :7], expected)
    # without a mask it would
    assert not torch.allclose(block(x, torch.ones_like(mask))[:, :7], expected)


def reached_from(block, place, length=20):
    x = torch.randn(1, length, 12, requires_grad=True)
    block(x, torch.ones(1, length, dtype=torch.bool))[0, place].sum().backward()
    return (x.grad[0].abs().sum(dim=1) > 0).nonzero().flatten().tolist()


def test_softmax_attention_sees_a_window_and_linear_attention_all_faces():
    assert reached_from(attention_block(linear=False), 9) == list(range(5, 14))
    assert reached_from(attention_block(linear=True), 9) == list(range(20))


@pytest.mark.parametrize(
    "options",
    [
        {"attn_dropout": 0.5},
        {"ff_dropout": 0.5},
        {"linear": False, "attn_dropout": 0.5},
    ],
)
def test_dropout_of_attention_acts_in_training_only(options):
    block, mask = attention_block(**options), torch.ones(2, 7, dtype=torch.bool)
    x = torch.randn(2, 7, 12)
    assert not torch.equal(block(x, mask), block(x, mask))
    block.eval()
    assert torch.equal(block(x, mask), block(x, mask))


def test_a_dropout_among_the_local_options_goes_before_the_common_one():
    block = AttentionBlock(
        12,
        window_size=4,
        local_attn_kwargs={"dim_head": 8, "heads": 2, "dropout": 0.0},
        linear_attn_kwargs=None,
        attn_dropout=0.5,
    )
    x, mask = torch.randn(2, 7, 12), torch.ones(2, 7, dtype=torch.bool)
    assert torch.equal(block(x, mask), block(x, mask))


def test_padding_is_ordered_last_and_back_again():
    mask = torch.tensor([[False, True, False, True, True], [True, False, True, False, False]])
    order = order_padding_last(mask)
    assert order[0].tolist() == [1, 3, 4, 0, 2]
    assert order[1].tolist() == [0, 2, 1, 3, 4]
    x = torch.randn(2, 5, 3)
    ordered = reorder_faces(x, order)
    assert torch.equal(ordered[0, :3], x[0, mask[0]])
    assert torch.equal(ordered[1, :2], x[1, mask[1]])
    assert torch.equal(reorder_faces(ordered, order.argsort(dim=1)), x)
