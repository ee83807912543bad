"""Padding never reaches a face through the building blocks; each block is what it is named for."""

from math import sqrt

import pytest
import torch
from einops import rearrange, repeat
from torch import nn

from meshgpt_pytorch.tokenizers.layers import (
    AttentionBlock,
    Block,
    InitialConvolution,
    ResnetBlock,
    SqueezeExcite,
    convolve_faces,
    order_padding_last,
)
from meshgpt_pytorch.tokenizers.pixel_norm import pixel_norm_silu
from meshgpt_pytorch.tokenizers.row_groups import take_rows


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def all_faces(batch, num_faces):
    return torch.ones(batch, num_faces, 1, dtype=torch.bool)


def masked(num_faces=5, num_padded=3):
    mask = all_faces(2, num_faces + num_padded)
    mask[:, num_faces:] = False
    return mask


def naive_pixel_norm_silu(x, mask):
    """Visit each face."""
    faces = []
    for face, exists in zip(x.flatten(0, 1), mask.flatten(), strict=True):
        norm = sum(channel**2 for channel in face) ** 0.5
        # as a number a norm has no gradient
        scale = sqrt(len(face)) / (norm if norm > 1e-4 else 1e-4)
        normed = face * scale
        faces.append(normed / (1 + torch.exp(-normed)) if exists else torch.zeros_like(face))
    return torch.stack(faces).reshape(x.shape)


def test_pixel_norm_silu_equals_a_loop():
    x = torch.randn(2, 8, 6)
    x[0, 1] *= 1e4
    # below the bound of the norm
    x[1, 2] *= 1e-6
    x.requires_grad_()
    naive_x = x.detach().clone().requires_grad_()
    y, expected = pixel_norm_silu(x, masked()), naive_pixel_norm_silu(naive_x, masked())
    torch.testing.assert_close(y, expected)
    assert (y[:, 5:] == 0).all()

    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x.grad, naive_x.grad)
    assert (x.grad[:, :5] != 0).any() and (x.grad[:, 5:] == 0).all()


def test_the_gradient_of_pixel_norm_silu_is_that_of_differences():
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = all_faces(2, 3)
    mask[1, 2] = False
    assert torch.autograd.gradcheck(lambda x: pixel_norm_silu(x, mask), (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", [0.03, 1.0, 400.0])
def test_pixel_norm_silu_in_half_precision_is_close(dtype, norm):
    weight = torch.randn(2, 8, 128).to(dtype)
    x = (torch.nn.functional.normalize(torch.randn(2, 8, 128), dim=-1) * norm).to(dtype)
    # gradients that half precision can hold
    weight *= min(norm, 1.0)
    x[0, 5:] = 0.0
    results = []
    for each in (dtype, torch.float64):
        each_x = x.to(each, copy=True).requires_grad_()
        y = pixel_norm_silu(each_x, masked())
        (y * weight).sum().backward()
        results.append((y.detach().double(), each_x.grad.double()))
    error = 4 * torch.finfo(dtype).eps
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).norm() < error * expected.norm()


def test_pixel_norm_of_nothing_is_nothing():
    x = torch.zeros(1, 2, 4, requires_grad=True)
    y = pixel_norm_silu(x, all_faces(1, 2))
    y.sum().backward()
    assert torch.equal(y, torch.zeros(1, 2, 4))
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("width", [1, 3, 7])
def test_convolving_faces_equals_a_loop(width):
    conv = nn.Conv1d(4, 6, width, padding=width // 2)
    x = torch.randn(2, 9, 4)
    expected = repeat(conv.bias, "d -> b nf d", b=2, nf=9).clone()
    for face in range(9):
        for tap in range(width):
            neighbour = face + tap - width // 2
            if 0 <= neighbour < 9:
                expected[:, face] += x[:, neighbour] @ conv.weight[..., tap].T
    y = convolve_faces(conv, x)
    torch.testing.assert_close(y, expected)

    weight = torch.randn_like(y)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), conv.parameters())
    gradients = torch.autograd.grad((y * weight).sum(), conv.parameters())
    torch.testing.assert_close(gradients, expected_gradients)


def test_squeeze_excite_gates_channels_by_the_mean_of_the_faces_that_exist():
    excite, x = SqueezeExcite(6), torch.randn(2, 8, 6)
    x[:, 5:] = 0.0
    gate = excite(x, masked())
    assert gate.shape == (2, 1, 6)
    assert ((gate > 0) & (gate < 1)).all()
    torch.testing.assert_close(gate[:, 0], excite.net[:-1](x[:, :5].mean(dim=1)))


@pytest.mark.parametrize(
    "block", [Block(6, 6), ResnetBlock(6, 6), ResnetBlock(6, 8), InitialConvolution(6, 8, 5)]
)
def test_padding_does_not_reach_a_face_and_stays_zero(block):
    x = torch.randn(2, 5, 6)
    expected = block(x, all_faces(2, 5))
    padded = torch.cat((x, torch.zeros(2, 3, 6)), dim=1)
    y = block(padded, masked())
    torch.testing.assert_close(y[:, :5], expected)
    assert (y[:, 5:] == 0).all()
    # without a mask it would
    assert (block(padded, all_faces(2, 8))[:, 5:] != 0).any()


@pytest.mark.parametrize("block", [Block(6, 6), ResnetBlock(6, 8), InitialConvolution(6, 8, 5)])
def test_a_row_of_padding_alone_is_finite(block):
    x = torch.zeros(2, 4, 6, requires_grad=True)
    y = block(x, ~all_faces(2, 4))
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(y))
    assert x.grad.isfinite().all()


def test_resnet_block_adds_to_its_shortcut():
    x = torch.randn(2, 5, 6)
    same, wider = ResnetBlock(6, 6), ResnetBlock(6, 8)
    for block in (same, wider):
        # a gate that is shut leaves the shortcut
        block.excite.net[2].weight.data.zero_()
        block.excite.net[2].bias.data.fill_(-200.0)
    assert torch.equal(same(x, all_faces(2, 5)), x)
    shortcut = convolve_faces(wider.residual_conv, x)
    torch.testing.assert_close(wider(x, all_faces(2, 5)), shortcut)


def reached_faces(x):
    return (x.grad[0].abs().sum(dim=1) > 0).nonzero().flatten().tolist()


def test_resnet_block_reads_two_faces_on_each_side():
    block = ResnetBlock(4, 4)
    # a gate that is open, so that no face is reached through the mean of all
    block.excite.net[2].weight.data.zero_()
    x = torch.randn(1, 11, 4, requires_grad=True)
    block(x, all_faces(1, 11))[0, 5].sum().backward()
    assert reached_faces(x) == [3, 4, 5, 6, 7]


def test_first_convolution_reads_as_many_faces_as_its_kernel_spans():
    x = torch.randn(1, 11, 6, requires_grad=True)
    y = InitialConvolution(6, 4, 5)(x, all_faces(1, 11))
    assert y.shape == (1, 11, 4)
    (y[0, 5] * torch.randn(4)).sum().backward()
    assert reached_faces(x) == [3, 4, 5, 6, 7]


def test_first_convolution_ends_in_a_layer_norm_over_channels():
    y = InitialConvolution(6, 16, 3)(torch.randn(2, 9, 6) * 5, all_faces(2, 9))
    torch.testing.assert_close(y.mean(dim=2), torch.zeros(2, 9), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var(dim=2, correction=0), torch.ones(2, 9), rtol=0, atol=1e-2)


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
    mask = rearrange(masked(7, num_padded), "b nf 1 -> b nf")
    expected = block(x[:, :7], mask[:, :7])
    torch.testing.assert_close(block(x, mask)[:, :7], expected)
    # without a mask it would
    assert not torch.allclose(block(x, torch.ones_like(mask))[:, :7], expected)


def reached_from(block, place, length=20):
    x = torch.randn(1, length, 12, requires_grad=True)
    block(x, torch.ones(1, length, dtype=torch.bool))[0, place].sum().backward()
    return reached_faces(x)


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
    ordered = take_rows(x, order)
    assert torch.equal(ordered[0, :3], x[0, mask[0]])
    assert torch.equal(ordered[1, :2], x[1, mask[1]])
    assert torch.equal(take_rows(ordered, order.argsort(dim=1)), x)
