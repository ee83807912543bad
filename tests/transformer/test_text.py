"""Laws of the text conditioner: padding, projection, dropping, and what it refuses."""

import pytest
import torch
from torch import nn

from meshgpt_pytorch.transformer.text import (
    AutoModelEncoder,
    EncodedText,
    TextConditioner,
    masked_mean,
    minilm_path,
)

TEXTS = ["chair", "a tall bookcase with four shelves", ""]


class LetterEncoder:
    """A user's encoder: each letter is a token, padded at the left or the right to a length."""

    def __init__(self, dim_latent, *, pad_left=False, extra_padding=0):
        self.dim_latent = dim_latent
        self.pad_left = pad_left
        self.extra_padding = extra_padding
        self.device = None

    def to(self, device):
        self.device = device

    def embed(self, texts):
        length = max(map(len, texts)) + 1 + self.extra_padding
        embeddings = torch.full((len(texts), length, self.dim_latent), torch.nan)
        mask = torch.zeros(len(texts), length, dtype=torch.bool)
        for row, text in enumerate(texts):
            tokens = torch.tensor([0, *map(ord, text)])
            start = length - len(tokens) if self.pad_left else 0
            place = slice(start, start + len(tokens))
            embeddings[row, place] = (tokens[:, None] * torch.arange(1, self.dim_latent + 1)).sin()
            mask[row, place] = True
        return embeddings, mask


class NoisyEncoder(nn.Module):
    """A user's encoder that is a module with dropout."""

    dim_latent = 4

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def embed(self, texts):
        ones = torch.ones(len(texts), 3, self.dim_latent)
        return self.dropout(ones), torch.ones(len(texts), 3, dtype=torch.bool)


class WrongEncoder(LetterEncoder):
    def embed(self, texts):
        embeddings, mask = super().embed(texts)
        return embeddings[..., 1:], mask


@pytest.fixture(params=["one", "left_padded", "two"])
def conditioner(request):
    torch.manual_seed(0)
    encoders = {
        "one": [LetterEncoder(6)],
        "left_padded": [LetterEncoder(6, pad_left=True)],
        "two": [LetterEncoder(4), LetterEncoder(6, extra_padding=5)],
    }
    return TextConditioner(encoders[request.param])


@pytest.fixture(scope="module")
def minilm():
    torch.manual_seed(0)
    return TextConditioner([AutoModelEncoder(minilm_path())])


def tokens_of(encoded, row):
    return encoded.embeddings[row][encoded.mask[row]]


def test_state_names_are_those_of_upstream(conditioner):
    numbers = range(len(conditioner.encoders))
    names = [f"to_latent_dims.{i}.{part}" for i in numbers for part in ("weight", "bias")]
    assert list(conditioner.state_dict()) == names
    assert conditioner.dim_latent == 6
    assert conditioner.to_latent_dims[-1].weight.shape == (6, 6)


def test_a_module_as_encoder_stays_out_of_the_state_and_out_of_training():
    encoder = NoisyEncoder()
    conditioner = TextConditioner([encoder])
    (encoded,) = conditioner.encode(TEXTS)
    assert list(conditioner.state_dict()) == ["to_latent_dims.0.weight", "to_latent_dims.0.bias"]
    assert (encoded.embeddings == 1).all()
    assert encoder.dropout.training


def test_embeddings_of_a_text_do_not_depend_on_its_batch(conditioner):
    together = conditioner.project(conditioner.encode(TEXTS))
    for row, text in enumerate(TEXTS):
        alone = conditioner.project(conditioner.encode([text]))
        torch.testing.assert_close(tokens_of(together, row), tokens_of(alone, 0))


def test_embeddings_of_minilm_do_not_depend_on_the_batch(minilm):
    together = minilm.project(minilm.encode(TEXTS))
    means = masked_mean(*together)
    for row, text in enumerate(TEXTS):
        alone = minilm.project(minilm.encode([text]))
        torch.testing.assert_close(
            tokens_of(together, row), tokens_of(alone, 0), atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(means[row], masked_mean(*alone)[0], atol=1e-5, rtol=1e-5)


def test_padding_is_minus_one_before_and_after_the_projection(conditioner):
    encodings = conditioner.encode(TEXTS)
    for embeddings, mask in [*encodings, conditioner.project(encodings)]:
        assert (embeddings[~mask] == -1).all()
        assert torch.equal(conditioner.mask_of(embeddings), mask)
        assert mask.any(dim=1).all() and not mask.all()


def test_projected_tokens_are_the_linear_of_the_encoded_tokens(conditioner):
    encodings = conditioner.encode(TEXTS)
    projected = conditioner.project(encodings)
    naive = [
        torch.cat(
            [
                linear(embeddings[row][mask[row]])
                for linear, (embeddings, mask) in zip(
                    conditioner.to_latent_dims, encodings, strict=True
                )
            ]
        )
        for row in range(len(TEXTS))
    ]
    for row, tokens in enumerate(naive):
        torch.testing.assert_close(tokens_of(projected, row), tokens)


def test_the_projection_trains_and_the_encoding_does_not(conditioner):
    encodings = conditioner.encode(TEXTS)
    assert not any(encoded.embeddings.requires_grad for encoded in encodings)
    masked_mean(*conditioner.project(encodings)).square().sum().backward()
    for parameter in conditioner.parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any()


def test_embeds_and_encodings_are_read_as_they_were_given_out(conditioner):
    encodings = conditioner.encode(TEXTS)
    projected = conditioner.project(encodings)
    from_embeds = conditioner.read_embeds(conditioner.embed_texts(TEXTS))
    cached = [encoded.embeddings for encoded in encodings]
    from_encodings = conditioner.project(conditioner.read_encodings(cached))
    for encoded in (from_embeds, from_encodings):
        assert torch.equal(encoded.mask, projected.mask)
        torch.testing.assert_close(encoded.embeddings, projected.embeddings)


def test_an_explicit_mask_takes_the_place_of_rows_of_minus_one(conditioner):
    encodings = conditioner.encode(TEXTS)
    projected = conditioner.project(encodings)
    visible = ~projected.mask[..., None]
    embeds = conditioner.read_embeds(
        projected.embeddings.masked_fill(visible, torch.nan), projected.mask
    )
    torch.testing.assert_close(embeds.embeddings, projected.embeddings)
    read = conditioner.read_encodings(
        [encoded.embeddings.masked_fill(~encoded.mask[..., None], 9.0) for encoded in encodings],
        [encoded.mask for encoded in encodings],
    )
    torch.testing.assert_close(conditioner.project(read).embeddings, projected.embeddings)


def test_one_tensor_and_one_mask_are_enough_for_one_encoder():
    conditioner = TextConditioner([LetterEncoder(6)])
    (encoded,) = conditioner.encode(TEXTS)
    (read,) = conditioner.read_encodings(encoded.embeddings, encoded.mask.long())
    assert isinstance(read, EncodedText)
    assert read.mask.dtype == torch.bool and torch.equal(read.mask, encoded.mask)
    assert torch.equal(read.embeddings, encoded.embeddings)


def test_a_model_in_bfloat16_and_autocast_project_texts(conditioner):
    exact = conditioner.project(conditioner.encode(TEXTS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = conditioner.project(conditioner.encode(TEXTS))
    conditioner.to(torch.bfloat16)
    cast = conditioner.project(conditioner.encode(TEXTS))
    for encoded in (under_autocast, cast, conditioner.read_embeds(exact.embeddings)):
        assert encoded.embeddings.dtype == torch.bfloat16
        assert torch.equal(conditioner.mask_of(encoded.embeddings), exact.mask)
        torch.testing.assert_close(
            encoded.embeddings.float(), exact.embeddings, atol=0.03, rtol=0.03
        )


def test_an_encoder_follows_the_module_to_its_device(conditioner):
    conditioner.encode(TEXTS)
    assert {encoder.device for encoder in conditioner.encoders} == {torch.device("cpu")}


def test_masked_mean_equals_a_loop_and_ignores_padding():
    tensor, mask = torch.randn(4, 7, 5), torch.rand(4, 7) < 0.5
    mask[0], mask[1] = False, True
    tensor[~mask] = torch.nan
    mean = masked_mean(tensor, mask)
    assert (mean[0] == 0).all()
    for row in range(1, 4):
        torch.testing.assert_close(mean[row], tensor[row][mask[row]].mean(dim=0))


def test_masked_mean_keeps_the_dtype_and_sums_in_float32():
    # 4096 ones sum to 256 in bfloat16, where 256 + 1 rounds to 256
    tensor, mask = torch.ones(1, 4096, 2), torch.ones(1, 4096, dtype=torch.bool)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        mean = masked_mean(tensor.to(dtype), mask)
        assert mean.dtype == dtype and (mean == 1).all()


def test_dropping_with_probability_zero_and_one_is_exact(conditioner):
    mask = torch.rand(200, 9) < 0.5
    assert torch.equal(conditioner.drop(mask, 0.0), mask)
    assert not conditioner.drop(mask, 1).any()


def test_dropping_takes_whole_texts_at_the_given_rate(conditioner):
    mask = torch.ones(2000, 3, dtype=torch.bool)
    mask[:, 2] = False
    dropped = conditioner.drop(mask, 0.25, torch.Generator().manual_seed(0))
    again = conditioner.drop(mask, 0.25, torch.Generator().manual_seed(0))
    kept = dropped.any(dim=1)
    assert torch.equal(dropped, again)
    assert torch.equal(dropped[kept], mask[kept])
    assert abs(kept.float().mean() - 0.75) < 0.05


def test_texts_are_dropped_in_training_alone_unless_told(conditioner):
    mask = torch.ones(500, 3, dtype=torch.bool)
    assert 0 < conditioner.train().drop(mask).sum() < mask.sum()
    assert conditioner.eval().drop(mask).all()


def encoding(*shape):
    return torch.zeros(shape)


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda c: c.encode("chair"), r"must be a list of strings, got 'chair'; .* as \[text\]"),
        (lambda c: c.encode([1]), r"must be a list of strings, got \[1\]"),
        (lambda c: c.encode([]), "must hold a text, got none"),
        (
            lambda c: c.read_embeds(encoding(1, 2, 7)),
            r"\(batch, tokens, 6\), got \(1, 2, 7\); .* as text_encodings",
        ),
        (lambda c: c.read_embeds(encoding(2, 6)), r"\(batch, tokens, 6\), got \(2, 6\)"),
        (
            lambda c: c.read_encodings(encoding(1, 2, 7)),
            r"text_encodings must have .* got \(1, 2, 7\); .* as text_embeds",
        ),
        (
            lambda c: c.read_embeds(encoding(1, 2, 6), torch.ones(1, 3)),
            r"text_mask must have the shape \(1, 2\) .* got \(1, 3\); pass one value for each",
        ),
        (
            lambda c: c.read_embeds(torch.full((2, 3, 6), -1.0)),
            r"every row of text_embeds must have a token, got none in rows \[0, 1\]; an empty",
        ),
        (
            lambda c: c.read_encodings(encoding(2, 2, 6), torch.tensor([[1, 0], [0, 0]])),
            r"every row of text_encodings must have a token, got none in rows \[1\]",
        ),
        (
            lambda c: c.read_encodings([encoding(1, 2, 6)] * 2),
            "one for each of the 1 encoders, got 2",
        ),
        (
            lambda c: c.read_encodings(encoding(1, 2, 6), [encoding(1, 2)] * 2),
            "one for each of the 1 encoders, got 2",
        ),
        (lambda c: c.project([]), "one for each of the 1 encoders, got 0; keep the order"),
        (
            lambda c: c.drop(torch.ones(1, 1, dtype=torch.bool), 1.5),
            r"cond_drop_prob must be from 0 to 1, got 1.5; 0. keeps",
        ),
        (lambda c: TextConditioner([]), r"must hold a text encoder, got none; .*T5Encoder"),
        (lambda c: TextConditioner([c]), "must have dim_latent and embed.texts., got a TextCond"),
        (
            lambda c: TextConditioner(c.encoders, cond_drop_prob=-0.1),
            "cond_drop_prob must be from 0 to 1, got -0.1",
        ),
        (
            lambda c: TextConditioner([WrongEncoder(6)]).encode(["ab"]),
            r"WrongEncoder.embed must return .* \(1, 3, 6\) and \(1, 3\), got \(1, 3, 5\)",
        ),
    ],
)
def test_wrong_input_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act(TextConditioner([LetterEncoder(6)]))
