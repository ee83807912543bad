"""Averaging over shared vertices equals naive loops; the quantizer sees real vertices only."""

from typing import get_args

import pytest
import torch
from einops import rearrange

from meshgpt_pytorch.tokenizers.quantizer import (
    RLFQ_DEFAULTS,
    QuantizerKind,
    average_over_vertices,
    build_quantizer,
    quantize_vertices,
    scatter_mean,
)


def naive_scatter_mean(tgt, indices, src, eps=1e-5):
    """Average along the middle axis of b n d."""
    rows = []
    for row in range(tgt.shape[0]):
        for place in range(tgt.shape[1]):
            for channel in range(tgt.shape[2]):
                mine = src[row, indices[row, :, channel] == place, channel]
                rows.append((tgt[row, place, channel] + mine.sum()) / max(len(mine), eps))
    return torch.stack(rows).reshape(tgt.shape)


def test_scatter_mean_equals_a_loop():
    torch.manual_seed(0)
    indices = torch.randint(0, 5, (2, 11, 3))
    tgt, src = torch.zeros(2, 6, 3), torch.randn(2, 11, 3, requires_grad=True)
    naive_src = src.detach().clone().requires_grad_()
    mean = scatter_mean(tgt, indices, src, dim=1)
    expected = naive_scatter_mean(tgt, indices, naive_src)
    torch.testing.assert_close(mean, expected)
    assert (mean[:, 5] == 0).all()

    weight = torch.randn_like(mean)
    (mean * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(src.grad, naive_src.grad)


def test_scatter_mean_adds_to_its_target():
    tgt = torch.tensor([[1.0, 3.0]])
    mean = scatter_mean(tgt, torch.tensor([[0, 0]]), torch.tensor([[4.0, 7.0]]), dim=1, eps=1.0)
    assert mean.tolist() == [[6.0, 3.0]]
    assert tgt.tolist() == [[1.0, 3.0]]


def test_scatter_mean_works_along_each_axis():
    torch.manual_seed(0)
    indices, src = torch.randint(0, 4, (2, 7, 3)), torch.randn(2, 7, 3)
    expected = scatter_mean(torch.zeros(2, 4, 3), indices, src, dim=1)
    turned = [rearrange(t, "b n d -> b d n") for t in (torch.zeros(2, 4, 3), indices, src)]
    torch.testing.assert_close(scatter_mean(*turned).transpose(1, 2), expected)


def naive_average(corner_features, faces, face_mask, num_vertices):
    """Visit each corner of each face."""
    batch, dim = len(faces), corner_features.shape[-1]
    features, referenced = [], torch.zeros(batch, num_vertices, dtype=torch.bool)
    for row in range(batch):
        for vertex in range(num_vertices):
            mine = [
                corner_features[row, face, corner]
                for face in range(faces.shape[1])
                for corner in range(faces.shape[2])
                if face_mask[row, face] and faces[row, face, corner] == vertex
            ]
            features.append(torch.stack(mine).mean(dim=0) if mine else torch.zeros(dim))
            referenced[row, vertex] = bool(mine)
    return torch.stack(features).reshape(batch, num_vertices, dim), referenced


@pytest.mark.parametrize("num_vertices_per_face", [3, 4])
def test_average_over_vertices_equals_a_loop(num_vertices_per_face):
    torch.manual_seed(0)
    faces = torch.randint(0, 7, (2, 6, num_vertices_per_face))
    face_mask = torch.ones(2, 6, dtype=torch.bool)
    face_mask[0, 2], face_mask[1, 4:] = False, False
    faces[~face_mask] = -1
    corner_features = torch.randn(2, 6, num_vertices_per_face, 5, requires_grad=True)
    naive_features = corner_features.detach().clone().requires_grad_()
    average, referenced = average_over_vertices(corner_features, faces, face_mask, num_vertices=9)
    expected, expected_mask = naive_average(naive_features, faces, face_mask, 9)
    torch.testing.assert_close(average, expected)
    assert torch.equal(referenced, expected_mask)

    weight = torch.randn_like(average)
    (average * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(corner_features.grad, naive_features.grad)
    assert (corner_features.grad[~face_mask] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_after_averaging(dtype):
    torch.manual_seed(0)
    corner_features = torch.rand(1, 257, 3, 64).to(dtype)
    faces = torch.zeros(1, 257, 3, dtype=torch.long)
    face_mask = torch.ones(1, 257, dtype=torch.bool)
    average, _ = average_over_vertices(corner_features, faces, face_mask, num_vertices=1)
    expected = corner_features.double().mean(dim=(1, 2)).to(dtype)
    assert average.dtype == dtype
    assert torch.equal(average[:, 0], expected)


def quantizer_of(kind):
    torch.manual_seed(0)
    return build_quantizer(
        kind,
        6,
        num_quantizers=2,
        codebook_size=16,
        rq_kwargs={"quantize_dropout": False},
        rvq_kwargs={},
        rlfq_kwargs=RLFQ_DEFAULTS,
        rvq_stochastic_sample_codes=False,
        fsq_levels=(4, 2, 2),
    )


@pytest.mark.parametrize("kind", get_args(QuantizerKind))
def test_each_vertex_is_quantised_to_its_own_row(kind):
    quantizer = quantizer_of(kind).eval()
    features = torch.randn(3, 8, 6)
    expected = quantize_vertices(quantizer, features, torch.ones(3, 8, dtype=torch.bool))
    quantizer.train()
    referenced = torch.rand(3, 8) > 0.4
    found = quantize_vertices(quantizer, features, referenced)
    assert torch.equal(found.codes[referenced], expected.codes[referenced])
    torch.testing.assert_close(
        quantizer.get_output_from_indices(found.codes)[referenced],
        quantizer.get_output_from_indices(expected.codes)[referenced],
    )


@pytest.mark.parametrize("kind", get_args(QuantizerKind))
def test_only_referenced_vertices_enter_the_losses_and_the_codebook(kind):
    features = torch.randn(2, 8, 6)
    referenced = torch.rand(2, 8) > 0.4
    one, other = quantizer_of(kind), quantizer_of(kind)
    expected = quantize_vertices(one, features, referenced)
    noise = features.where(referenced[..., None], torch.full_like(features, 100.0))
    found = quantize_vertices(other, noise, referenced)
    torch.testing.assert_close(found.commit_loss, expected.commit_loss, rtol=0, atol=0)
    assert (found.commit_loss != 0).any()
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
