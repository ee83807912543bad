"""The factorised entropy computes what the library computes over the whole codebook."""

import copy

import pytest
import torch
from torch import nn
from vector_quantize_pytorch import LFQ, ResidualLFQ

from meshgpt_pytorch.tokenizers.lookup_free import FactorizedLFQ, factorize_entropy


def make_pair(**options) -> tuple[ResidualLFQ, ResidualLFQ]:
    torch.manual_seed(0)
    dense = ResidualLFQ(
        dim=12, num_quantizers=2, codebook_size=64, commitment_loss_weight=1.0, **options
    )
    return dense, factorize_entropy(copy.deepcopy(dense))


def step(quantizer: ResidualLFQ, vectors: torch.Tensor, mask: torch.Tensor) -> tuple:
    vectors = vectors.clone().requires_grad_()
    quantized, codes, losses = quantizer(vectors, mask=mask)
    (quantized.square().mean() + losses.sum()).backward()
    return quantized, codes, losses, vectors.grad, quantizer.project_in.weight.grad


@pytest.mark.parametrize("rows", ["all", "some"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"soft_clamp_input_value": 10.0, "experimental_softplus_entropy_loss": True},
        {"diversity_gamma": 0.5},
        {"diversity_gamma": 2.0, "experimental_softplus_entropy_loss": True},
    ],
    ids=["plain", "upstream", "less diversity", "more diversity"],
)
def test_step_equals_the_librarys(options, rows):
    dense, factorized = make_pair(**options)
    assert all(type(layer) is FactorizedLFQ for layer in factorized.layers)
    # small vectors leave corners undecided, so that entropies differ
    vectors = torch.randn(2, 30, 12, generator=torch.Generator().manual_seed(1)) * 0.02
    mask = torch.ones(2, 30, dtype=torch.bool)
    if rows == "some":
        mask[0, 20:] = False
    for ours, theirs in zip(
        step(factorized, vectors, mask), step(dense, vectors, mask), strict=True
    ):
        # the library's logarithm is clamped at 1e-5, ours is exact
        torch.testing.assert_close(ours, theirs, rtol=5e-3, atol=5e-4)
    assert torch.equal(step(factorized, vectors, mask)[1], step(dense, vectors, mask)[1])


def test_evaluation_equals_the_librarys():
    dense, factorized = make_pair()
    vectors = torch.randn(2, 30, 12)
    for ours, theirs in zip(factorized.eval()(vectors), dense.eval()(vectors), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "options", [{"frac_per_sample_entropy": 0.5}, {"straight_through_activation": nn.Tanh()}]
)
def test_options_that_do_not_factorise_stay_with_the_library(options):
    _, factorized = make_pair(**options)
    assert all(type(layer) is LFQ for layer in factorized.layers)


def test_names_of_weights_stay():
    dense, factorized = make_pair()
    assert list(dense.state_dict()) == list(factorized.state_dict())
