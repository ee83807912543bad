"""The loss that holds a chunk of logits at a time is the plain cross entropy."""

import pytest
import torch
import torch.nn.functional as F

from meshgpt_pytorch.transformer import losses
from meshgpt_pytorch.transformer.losses import linear_cross_entropy
from tests.transformer.models import make_transformer

NUM_ROWS, DIM, NUM_IDS = 23, 8, 17


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((NUM_ROWS, DIM), (NUM_IDS, DIM), (NUM_IDS,))
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    labels = torch.randint(NUM_IDS, (NUM_ROWS,), generator=generator)
    labels[::4] = -1
    return *(tensor.requires_grad_() for tensor in tensors), labels


@pytest.mark.parametrize("rows_at_once", [1, 5, NUM_ROWS, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_loss_and_gradients_are_those_of_the_plain_form(monkeypatch, dtype, rows_at_once):
    monkeypatch.setattr(losses, "NUM_LOGITS_AT_ONCE", rows_at_once * NUM_IDS)
    hidden, weight, bias, labels = inputs(dtype)
    plain = F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, ignore_index=-1)
    wanted = torch.autograd.grad(3 * plain, (hidden, weight, bias))
    loss = linear_cross_entropy(hidden, weight, bias, labels, ignore_index=-1)
    gradients = torch.autograd.grad(3 * loss, (hidden, weight, bias))
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(loss, plain, rtol=tolerance, atol=tolerance)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, want, rtol=tolerance, atol=tolerance / 10)


def test_rows_that_do_not_count_get_no_gradient():
    hidden, weight, bias, labels = inputs()
    linear_cross_entropy(hidden, weight, bias, labels, ignore_index=-1).backward()
    is_zero = (hidden.grad == 0).all(dim=1)
    assert torch.equal(is_zero, labels == -1)


def test_nothing_to_count_is_a_loss_of_zero():
    hidden, weight, bias, labels = inputs()
    loss = linear_cross_entropy(hidden, weight, bias, torch.full_like(labels, -1), ignore_index=-1)
    assert loss == 0


def test_without_gradients_none_is_computed(monkeypatch):
    products = []
    monkeypatch.setattr(losses, "add_product", lambda *matrices: products.append(matrices))
    with torch.no_grad():
        assert not linear_cross_entropy(*inputs(), ignore_index=-1).requires_grad
    assert not products
    linear_cross_entropy(*inputs(), ignore_index=-1)
    assert products


def test_autocast_computes_logits_narrow_and_the_loss_wide():
    hidden, weight, bias, labels = inputs()
    plain = F.cross_entropy(F.linear(hidden, weight, bias), labels, ignore_index=-1)
    wanted = torch.autograd.grad(plain, (hidden, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, bias, labels, ignore_index=-1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=2e-2, atol=2e-2)
    for gradient, want in zip(
        torch.autograd.grad(loss, (hidden, weight, bias)), wanted, strict=True
    ):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, want, rtol=2e-2, atol=2e-3)


def test_loss_of_a_model_is_the_cross_entropy_of_its_logits():
    model = make_transformer().eval()
    per_face = model.num_codes_per_face
    codes = torch.randint(model.codebook_size, (3, 4 * per_face))
    codes[1, 2 * per_face :] = model.pad_id
    codes[2, per_face:] = model.pad_id
    logits = model.forward_on_codes(codes, return_loss=False, append_eos=False)
    labels = F.pad(codes, (0, 1), value=model.pad_id)
    for row, length in enumerate((4 * per_face, 2 * per_face, per_face)):
        labels[row, length] = model.eos_token_id
    plain = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=model.pad_id)
    torch.testing.assert_close(model.forward_on_codes(codes), plain)
