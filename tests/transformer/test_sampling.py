"""Laws of drawing an id from logits, and the settings that are refused."""

import pytest
import torch
from x_transformers.autoregressive_wrapper import top_k, top_p

from meshgpt_pytorch.transformer.sampling import Sampling
from tests.transformer.models import make_transformer


def any_code(logits):
    return logits


def draw(logits, **options):
    options = {"filter_logits_fn": any_code, "filter_kwargs": {}, "temperature": 1.0, **options}
    return Sampling(**{"generator": torch.Generator().manual_seed(0), **options}).draw(logits)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_ids_are_drawn_as_often_as_their_probability(temperature):
    logits = torch.tensor([1.0, -0.5, 2.0, 0.3, 0.0, -3.0])
    num_draws = 20000
    drawn = draw(logits.expand(num_draws, -1), temperature=temperature)
    expected = (logits / temperature).softmax(dim=-1) * num_draws
    chi_square = ((drawn.bincount(minlength=6) - expected) ** 2 / expected).sum()
    # 5 degrees of freedom: exceeded once in a thousand times
    assert chi_square < 20.5


def test_rows_are_drawn_from_their_own_logits():
    logits = torch.full((5, 6), -1e4).fill_diagonal_(0.0)
    assert draw(logits).tolist() == [0, 1, 2, 3, 4]
    assert draw(logits.flip(1)).tolist() == [5, 4, 3, 2, 1]


def test_a_low_temperature_takes_the_likeliest():
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * 30
    for temperature in (0.0, 1e-38, 1e-6):
        assert torch.equal(draw(logits, temperature=temperature), logits.argmax(dim=-1))


def test_only_what_the_filter_leaves_is_drawn():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(2000, -1)
    drawn = draw(logits, filter_logits_fn=top_p, filter_kwargs={"thres": 0.6})
    assert set(drawn.tolist()) == {0, 1}
    assert draw(logits, temperature=5.0).unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("temperature", [1e-46, 5e-324])
@pytest.mark.parametrize("filter_logits_fn", [any_code, top_k])
def test_a_temperature_too_low_for_float32_takes_the_likeliest(filter_logits_fn, temperature):
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    drawn = draw(logits, filter_logits_fn=filter_logits_fn, temperature=temperature)
    assert torch.equal(drawn, logits.argmax(dim=-1))


# errors


REFUSED = [
    ({"k": 0}, "k must be a whole number of at least 1, got 0"),
    ({"k": -1}, "k must be a whole number of at least 1, got -1"),
    ({"k": 2.5}, r"k must be a whole number of at least 1, got 2\.5"),
    ({"frac_num_tokens": 0}, "frac_num_tokens must be above 0, and finite, got 0"),
    ({"frac_num_tokens": -0.1}, r"frac_num_tokens must be above 0, and finite, got -0\.1"),
    ({"frac_num_tokens": float("nan")}, "frac_num_tokens must be above 0, and finite, got nan"),
    ({"frac_num_tokens": float("inf")}, "frac_num_tokens must be above 0, and finite, got inf"),
    ({"thres": 0.9, "k": 1}, r"must be k or frac_num_tokens, got \['thres'\]"),
]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("filter_kwargs", "message"), REFUSED)
def test_options_with_which_top_k_keeps_nothing_are_refused(filter_kwargs, message, temperature):
    model = make_transformer()
    with pytest.raises(ValueError, match=message):
        model.generate(filter_kwargs=filter_kwargs, temperature=temperature, progress=False)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_no_mesh(value, temperature):
    model = make_transformer()
    with torch.no_grad():
        model.to_logits.bias[3] = value
    with pytest.raises(RuntimeError, match=r"logits must be finite, .* weights .* are broken"):
        model.generate(temperature=temperature, progress=False)


def test_a_filter_that_leaves_nothing_is_named():
    logits = torch.zeros(2, 6)
    with pytest.raises(RuntimeError, match="or filter_logits_fn leaves nothing"):
        draw(logits, filter_logits_fn=lambda logits: torch.full_like(logits, -torch.inf))
