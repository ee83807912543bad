"""Codes with like digits begin alike, and nothing else changes."""

import pytest
import torch

from meshgpt_pytorch.tokenizers.finite_scalar import FiniteScalarQuantizer
from meshgpt_pytorch.transformer.embedding_start import digits_of_codes
from tests.transformer.models import make_autoencoder, make_transformer

FSQ = {"quantizer": "fsq", "fsq_levels": (4, 4, 2)}


def test_digits_of_a_grid_are_those_that_its_codes_are_looked_up_by():
    quantizer = FiniteScalarQuantizer(8, levels=(4, 4, 2), num_quantizers=1)
    digits = digits_of_codes(quantizer)
    looked_up = quantizer.get_output_from_indices(torch.arange(32)[None, :, None])
    # with one code, its digits are the position
    torch.testing.assert_close(quantizer.project_out(digits), looked_up[0])


def test_digits_of_lookup_free_codes_are_their_bits():
    quantizer = make_autoencoder().quantizer
    digits = digits_of_codes(quantizer)
    assert digits.shape == (32, 5)
    assert len(digits.unique(dim=0)) == 32
    assert torch.equal(digits.abs(), torch.full_like(digits, 0.5))
    assert torch.equal(digits[0b10010] > 0, torch.tensor([False, True, False, False, True]))


@pytest.mark.parametrize("options", [{}, FSQ])
def test_rows_are_nearer_the_fewer_digits_differ(options):
    transformer = make_transformer(autoencoder=make_autoencoder(**options), dim=64)
    transformer.start_embeddings()
    digits = digits_of_codes(transformer.autoencoder.quantizer)
    num_different = (digits[:, None] != digits[None]).sum(dim=-1)
    for weight in (transformer.token_embed.weight, transformer.to_logits.weight):
        distance = torch.cdist(weight[:32], weight[:32])
        means = [distance[num_different == each].mean() for each in range(digits.shape[1] + 1)]
        assert sorted(means) == means
        assert distance[num_different > 0].min() > 0


def test_neighbours_on_an_axis_are_nearer_than_its_ends():
    transformer = make_transformer(
        autoencoder=make_autoencoder(quantizer="fsq", fsq_levels=(8, 2, 2)), dim=64
    )
    transformer.start_embeddings()
    rows = transformer.token_embed.weight[:8]
    assert (rows[3] - rows[4]).norm() < (rows[0] - rows[7]).norm()


def test_rows_keep_their_size_and_all_else_its_values():
    transformer = make_transformer(autoencoder=make_autoencoder(**FSQ), dim=64)
    before = {name: each.clone() for name, each in transformer.state_dict().items()}
    torch.manual_seed(4321)
    transformer.start_embeddings()
    after = transformer.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"token_embed.weight", "to_logits.weight"}
    for name in changed:
        assert torch.equal(after[name][-1], before[name][-1])
        stds = [each[name][:-1].std().item() for each in (before, after)]
        assert stds[0] == pytest.approx(stds[1], rel=0.05)
    torch.manual_seed(4321)
    again = make_transformer(autoencoder=make_autoencoder(**FSQ), dim=64)
    torch.manual_seed(4321)
    again.start_embeddings()
    assert torch.equal(again.token_embed.weight, after["token_embed.weight"])


@pytest.mark.parametrize("kind", ["rvq", "simvq"])
def test_learned_codebooks_have_no_digits(kind):
    transformer = make_transformer(autoencoder=make_autoencoder(quantizer=kind))
    with pytest.raises(ValueError, match=r"codes must have digits, .* random start"):
        transformer.start_embeddings()
