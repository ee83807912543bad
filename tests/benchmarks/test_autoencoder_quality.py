"""The protocol of training measures what users are given."""

import pytest

from benchmarks.autoencoder_quality import LEARNING_RATE, SIZES, VARIANTS, learning_rate
from meshgpt_pytorch import quick_recipe


def test_the_recipe_that_is_measured_is_the_one_of_the_library():
    recipe = quick_recipe(num_train_steps=1000)
    assert {**SIZES, **VARIANTS["recipe"].options} == recipe.model
    assert VARIANTS["recipe"].is_augmented
    assert recipe.trainer["learning_rate"] == LEARNING_RATE
    assert recipe.trainer["warmup_steps"] == 50
    fall = recipe.trainer["scheduler_kwargs"]["lr_lambda"]
    for step in (100, 299, 300, 500, 999):
        assert learning_rate(step, step / 1000) == pytest.approx(LEARNING_RATE * fall(step))
