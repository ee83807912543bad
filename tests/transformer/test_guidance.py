"""Laws of guidance: it acts on each position alone, and equals its formula."""

import pytest
import torch
from torch import nn

from meshgpt_pytorch.transformer.guidance import GuidedLogits, guided_logits

SETTINGS = [
    {},
    {"rescale_phi": 0.7},
    {"remove_parallel_component": True},
    {"remove_parallel_component": True, "keep_parallel_frac": 0.3},
    {"remove_parallel_component": True, "keep_parallel_frac": 0.3, "rescale_phi": 0.7},
]


class RunningSum(nn.Module):
    """A causal model: the logits of a position come from the sum of codes up to it."""

    def __init__(self):
        super().__init__()
        self.to_logits = nn.Linear(4, 6)
        self.text = nn.Parameter(torch.randn(4))

    def hidden(self, codes, cond_drop_prob):
        return codes + self.text * (1 - cond_drop_prob)


def parallel_logits(model, *, cond_drop_prob, codes):
    return model.to_logits(model.hidden(codes, cond_drop_prob).cumsum(dim=1))


def cached_logits(model, *, cond_drop_prob, codes, cache=None):
    total = model.hidden(codes, cond_drop_prob).cumsum(dim=1)
    total = total if cache is None else total + cache
    return model.to_logits(total), total[:, -1:]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RunningSum().eval()


@pytest.fixture
def codes():
    return torch.randn(3, 5, 4)


def naive_guidance(
    logits,
    null_logits,
    cond_scale,
    *,
    rescale_phi=0.0,
    remove_parallel_component=False,
    keep_parallel_frac=0.0,
):
    """Guide one position's logits, a vector over the classes."""
    update = logits - null_logits
    if remove_parallel_component:
        parallel = (update @ logits) / (logits @ logits) * logits
        update = update - parallel + keep_parallel_frac * parallel
    scaled = logits + update * (cond_scale - 1)
    rescaled = scaled * logits.std() / scaled.std()
    return rescale_phi * rescaled + (1 - rescale_phi) * scaled


@pytest.mark.parametrize("settings", SETTINGS)
def test_guidance_equals_its_formula_at_each_position(model, codes, settings):
    logits = parallel_logits(model, cond_drop_prob=0.0, codes=codes)
    null_logits = parallel_logits(model, cond_drop_prob=1.0, codes=codes)
    result = guided_logits(model, parallel_logits, {"codes": codes}, cond_scale=3.0, **settings)
    assert result.shape == (3, 5, 6)
    for row in range(3):
        for n in range(5):
            naive = naive_guidance(logits[row, n], null_logits[row, n], 3.0, **settings)
            torch.testing.assert_close(result[row, n], naive)


@pytest.mark.parametrize("cond_scale", [1, 3.0])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("length", [1, 2])
def test_sampling_with_caches_equals_sampling_without(model, codes, settings, cond_scale, length):
    settings = {**settings, "cond_scale": cond_scale}
    whole = guided_logits(model, parallel_logits, {"codes": codes}, **settings)
    caches, steps = None, []
    for step in codes.split(length, dim=1):
        logits, caches = guided_logits(
            model, cached_logits, {"codes": step}, caches=caches, **settings
        )
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)


def test_results_with_caches_are_named(model, codes):
    inputs = {"codes": codes}
    result = guided_logits(model, cached_logits, inputs, cond_scale=2.0)
    assert isinstance(result, GuidedLogits)
    for cache, cond_drop_prob in zip(result.caches, (0.0, 1.0), strict=True):
        _, alone = cached_logits(model, cond_drop_prob=cond_drop_prob, codes=codes)
        assert torch.equal(cache, alone)
    unguided = guided_logits(model, cached_logits, inputs, caches=(None, "null"))
    assert isinstance(unguided, GuidedLogits)
    assert unguided.caches[1] == "null"
    assert inputs == {"codes": codes}


def test_scale_one_calls_once_with_text_also_in_training(model, codes):
    calls = []

    def recorded(model, *, cond_drop_prob, codes):
        calls.append(cond_drop_prob)
        return parallel_logits(model, cond_drop_prob=cond_drop_prob, codes=codes)

    logits = guided_logits(model.train(), recorded, {"codes": codes}, rescale_phi=0.5)
    assert calls == [0.0]
    assert torch.equal(logits, parallel_logits(model, cond_drop_prob=0.0, codes=codes))
    guided_logits(model.eval(), recorded, {"codes": codes}, cond_scale=2.0)
    assert calls == [0.0, 0.0, 1.0]


def test_half_precision_is_guided_in_float32_and_given_back(model, codes):
    def half_logits(model, *, cond_drop_prob, codes):
        return parallel_logits(model, cond_drop_prob=cond_drop_prob, codes=codes).bfloat16()

    def rounded_logits(model, *, cond_drop_prob, codes):
        return half_logits(model, cond_drop_prob=cond_drop_prob, codes=codes).float()

    settings = {"cond_scale": 8.0, "rescale_phi": 0.5, "remove_parallel_component": True}
    half = guided_logits(model, half_logits, {"codes": codes}, **settings)
    exact = guided_logits(model, rounded_logits, {"codes": codes}, **settings)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, exact.bfloat16())


def test_guidance_lets_gradients_through(model, codes):
    guided_logits(model, parallel_logits, {"codes": codes}, cond_scale=2.0).sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"cond_scale": 0.5},
            "cond_scale must be at least 1, and finite, got 0.5; pass cond_scale=1.",
        ),
        ({"cond_scale": float("inf")}, "cond_scale must be at least 1, and finite, got inf"),
        ({"cond_scale": float("nan")}, "cond_scale must be at least 1, and finite, got nan"),
        ({"rescale_phi": 1.5}, "rescale_phi must be from 0 to 1, got 1.5; 0. switches it off"),
        ({"keep_parallel_frac": -1}, "keep_parallel_frac must be from 0 to 1, got -1"),
    ],
)
def test_settings_without_a_meaning_are_refused(model, codes, settings, message):
    with pytest.raises(ValueError, match=message):
        guided_logits(model, parallel_logits, {"codes": codes}, **settings)


def test_guidance_in_training_mode_is_refused(model, codes):
    with pytest.raises(ValueError, match=r"1 in training mode, got 3.0; call model.eval\(\) first"):
        guided_logits(model.train(), parallel_logits, {"codes": codes}, cond_scale=3.0)
