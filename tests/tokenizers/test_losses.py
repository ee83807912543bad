"""The blurred cross entropy equals its definition over one-hot targets, forward and backward."""

import math

import pytest
import torch
import torch.nn.functional as F

from meshgpt_pytorch.tokenizers.losses import (
    blurred_cross_entropy,
    gaussian_blur_1d,
    gaussian_kernel,
)

SIGMAS = (0.0, 0.2, 0.4, 1.0, 2.7)
CPU = torch.device("cpu")


def naive_kernel(sigma):
    """Weights at whole steps from the middle, about five sigma wide, an odd number of them."""
    width = math.ceil(sigma * 5)
    half = (width + 1 if width % 2 == 0 else width) // 2
    weights = [math.exp(-(step**2) / (2 * sigma**2)) for step in range(-half, half + 1)]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("sigma", SIGMAS[1:])
def test_kernel_is_a_gaussian_at_whole_steps(sigma):
    assert gaussian_kernel(sigma, CPU).tolist() == pytest.approx(naive_kernel(sigma), rel=1e-5)


def test_kernel_of_the_default_sigma():
    assert gaussian_kernel(0.4, CPU).tolist() == pytest.approx([0.0404, 0.9192, 0.0404], abs=5e-5)


@pytest.mark.parametrize("sigma", [0.0, -1.0])
def test_no_sigma_is_no_blur(sigma):
    assert gaussian_kernel(sigma, CPU).tolist() == [1.0]


@pytest.mark.parametrize("sigma", SIGMAS[1:])
@pytest.mark.parametrize("length", [3, 20])
def test_blur_equals_a_loop(sigma, length):
    torch.manual_seed(0)
    t = torch.rand(2, length, 3)
    kernel = naive_kernel(sigma)
    half = len(kernel) // 2
    expected = torch.zeros_like(t)
    for place in range(length):
        for step, weight in enumerate(kernel, start=-half):
            if 0 <= place + step < length:
                expected[:, place] += weight * t[:, place + step]
    torch.testing.assert_close(gaussian_blur_1d(t, sigma=sigma), expected)


def test_blur_of_sigma_zero_changes_nothing():
    t = torch.rand(2, 9, 3)
    assert torch.equal(gaussian_blur_1d(t, sigma=0.0), t)


def one_hot_cross_entropy(logits, targets, sigma):
    """The definition: the blurred one-hot targets against all log probabilities."""
    num_bins = logits.shape[-1]
    one_hot = F.one_hot(targets, num_bins).float()
    one_hot = gaussian_blur_1d(one_hot.reshape(-1, num_bins, 1), sigma=sigma)
    log_prob = logits.float().log_softmax(dim=-1)
    return -(one_hot.reshape_as(log_prob) * log_prob).sum(dim=-1)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("num_bins", [2, 16])
def test_loss_and_gradient_equal_the_definition(sigma, num_bins):
    torch.manual_seed(1)
    # each bin once, both borders among them
    targets = torch.arange(num_bins).repeat(3, 1)
    logits = torch.randn(3, num_bins, num_bins, requires_grad=True)
    naive_logits = logits.detach().clone().requires_grad_()
    losses = blurred_cross_entropy(logits, targets, sigma=sigma)
    expected = one_hot_cross_entropy(naive_logits, targets, sigma)
    torch.testing.assert_close(losses, expected)

    weight = torch.rand(3, num_bins)
    (losses * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(logits.grad, naive_logits.grad)


@pytest.mark.parametrize("sigma", [0.0, -1.0])
def test_loss_without_blur_is_cross_entropy(sigma):
    torch.manual_seed(2)
    logits, targets = torch.randn(4, 5, 8), torch.randint(0, 8, (4, 5))
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    losses = blurred_cross_entropy(logits, targets, sigma=sigma)
    torch.testing.assert_close(losses.flatten(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_half_precision_logits_is_computed_in_float32(dtype):
    torch.manual_seed(3)
    logits, targets = torch.randn(4, 5, 8).to(dtype), torch.randint(0, 8, (4, 5))
    losses = blurred_cross_entropy(logits, targets, sigma=0.4)
    assert torch.equal(losses, blurred_cross_entropy(logits.float(), targets, sigma=0.4))
