"""Cross entropy of codes that never holds the logits of all of them at once."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

# logits that are held at a time: 32 MB in float32
NUM_LOGITS_AT_ONCE = 2**23
# rows of logits are a multiple of this long: matrix products at odd addresses take twice the time
ROW_ALIGNMENT = 16


class LinearCrossEntropy(torch.autograd.Function):
    """Cross entropy of a linear layer's logits, made and dropped a chunk of rows at a time.

    The gradient of a chunk is computed while its logits are there, so that neither logits nor
    their gradients are kept for the backward pass (Wijmans et al. 2024, 2411.09009; Liger kernels).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "n d"],
        weight: Float[Tensor, "c d"],
        bias: Float[Tensor, " c"],
        labels: Int[Tensor, " n"],
        ignore_index: int,
    ) -> Float[Tensor, ""]:
        with_gradient = any(ctx.needs_input_grad)
        is_counted = labels != ignore_index
        labels = labels.masked_fill(~is_counted, 0)
        inputs = (hidden, weight, bias)
        gradients = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in inputs]
        loss = hidden.new_zeros((), dtype=torch.float32)
        buffer = LogitBuffer(hidden, weight, bias)
        for start in range(0, len(hidden), buffer.num_rows):
            chunk = slice(start, start + buffer.num_rows)
            log_prob = buffer.log_probabilities(hidden[chunk])
            target = rearrange(labels[chunk], "n -> n 1")
            counts = is_counted[chunk].to(hidden.dtype)
            loss -= rearrange(log_prob.gather(1, target), "n 1 -> n") @ counts.float()
            if with_gradient:
                error = log_prob.exp_()
                error.scatter_add_(1, target, -torch.ones_like(target, dtype=torch.float32))
                error = error.to(hidden.dtype)
                counts = rearrange(counts, "n -> n 1")
                gradients[0][chunk] = (error @ weight) * counts
                add_product(gradients[1], error.T, hidden[chunk] * counts)
                add_product(rearrange(gradients[2], "c -> c 1"), error.T, counts)
        num_counted = is_counted.sum().clamp(min=1)
        if with_gradient:
            ctx.dtypes = [tensor.dtype for tensor in inputs]
            ctx.save_for_backward(num_counted, *gradients)
        return loss / num_counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        num_counted, *gradients = ctx.saved_tensors
        scale = grad_output / num_counted
        # scaled in float32: the parts of a mean over many rows are too small for float16
        typed = zip(gradients, ctx.dtypes, strict=True)
        return *((gradient * scale).to(dtype) for gradient, dtype in typed), None, None


class LogitBuffer:
    """Memory for the logits of a chunk of rows, used again for each chunk.

    Args:
        hidden: all rows.
        weight, bias: of the layer that makes logits.
    """

    def __init__(
        self, hidden: Float[Tensor, "n d"], weight: Float[Tensor, "c d"], bias: Float[Tensor, " c"]
    ) -> None:
        self.weight, self.bias = weight, bias
        self.num_ids = len(weight)
        self.num_rows = max(1, min(len(hidden), NUM_LOGITS_AT_ONCE // self.num_ids))
        width = self.num_ids + -self.num_ids % ROW_ALIGNMENT
        # places that only fill a row up have no share in the softmax
        self.logits = hidden.new_full((self.num_rows, width), float("-inf"))
        self.log_prob = torch.empty_like(self.logits, dtype=torch.float32)

    def log_probabilities(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Compute log probabilities in float32; the next chunk overwrites them."""
        logits, log_prob = self.logits[: len(hidden)], self.log_prob[: len(hidden)]
        torch.addmm(self.bias, hidden, self.weight.T, out=logits[:, : self.num_ids])
        torch.log_softmax(logits, dim=-1, dtype=torch.float32, out=log_prob)
        return log_prob[:, : self.num_ids]


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to a float32 matrix, in place."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def linear_cross_entropy(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "c d"],
    bias: Float[Tensor, " c"],
    labels: Int[Tensor, " n"],
    *,
    ignore_index: int,
) -> Float[Tensor, ""]:
    """Compute the cross entropy of ``hidden @ weight.T + bias``, in float32 from the logits on.

    Args:
        hidden: features of each position.
        weight, bias: of the layer that makes logits.
        labels: id of each position, or ``ignore_index``.
        ignore_index: label of positions that do not count.

    Returns:
        the mean over positions that count.
    """
    device = hidden.device.type
    if not torch.is_grad_enabled():
        # a function of autograd cannot tell by itself, and would compute gradients
        hidden, weight, bias = hidden.detach(), weight.detach(), bias.detach()
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
    with torch.autocast(device, enabled=False):
        return LinearCrossEntropy.apply(hidden, weight, bias, labels, ignore_index)
