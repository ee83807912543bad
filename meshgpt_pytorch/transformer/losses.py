"""Cross entropy of codes that never holds the logits of all of them at once."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

# logits that are held at a time: 64 MB in float32
NUM_LOGITS_AT_ONCE = 2**24


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
        is_counted = labels != ignore_index
        share = is_counted / is_counted.sum().clamp(min=1)
        labels = labels.masked_fill(~is_counted, 0)
        with_gradient = any(ctx.needs_input_grad)
        gradients = [torch.zeros_like(t, dtype=torch.float32) for t in (hidden, weight, bias)]
        loss = hidden.new_zeros((), dtype=torch.float32)
        rows = max(1, NUM_LOGITS_AT_ONCE // len(weight))
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            logits = F.linear(hidden[chunk], weight, bias).float()
            target = labels[chunk, None]
            log_sum = logits.logsumexp(dim=-1, keepdim=True)
            loss += ((log_sum - logits.gather(1, target))[:, 0] * share[chunk]).sum()
            if with_gradient:
                error = (logits - log_sum).exp_()
                error.scatter_add_(1, target, -torch.ones_like(log_sum))
                error *= share[chunk, None]
                narrow = error.to(hidden.dtype)
                gradients[0][chunk] = narrow @ weight
                gradients[1] += narrow.T @ hidden[chunk]
                gradients[2] += error.sum(dim=0)
        if with_gradient:
            inputs = (hidden, weight, bias)
            ctx.save_for_backward(*(g.to(t.dtype) for g, t in zip(gradients, inputs, strict=True)))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        return *(gradient * grad_output for gradient in ctx.saved_tensors), None, None


def linear_cross_entropy(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "c d"],
    bias: Float[Tensor, " c"],
    labels: Int[Tensor, " n"],
    *,
    ignore_index: int,
) -> Float[Tensor, ""]:
    """Compute the cross entropy of ``hidden @ weight.T + bias`` in float32.

    Args:
        hidden: features of each position.
        weight, bias: of the layer that makes logits.
        labels: id of each position, or ``ignore_index``.
        ignore_index: label of positions that do not count.

    Returns:
        the mean over positions that count.
    """
    return LinearCrossEntropy.apply(hidden, weight, bias, labels, ignore_index)
