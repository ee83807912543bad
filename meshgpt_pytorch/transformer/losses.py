"""Cross entropy of codes that never holds the logits of all of them at once."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from meshgpt_pytorch.transformer.vertex_copying import CopyWeights

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
        copied: Float[Tensor, " n"] | None,
        copied_rightly: Float[Tensor, " n"] | None,
        labels: Int[Tensor, " n"],
        ignore_index: int,
    ) -> Float[Tensor, ""]:
        with_gradient = any(ctx.needs_input_grad)
        is_counted = labels != ignore_index
        labels = labels.masked_fill(~is_counted, 0)
        inputs = (hidden, weight, bias, copied, copied_rightly)
        gradients: list[Any] = [
            None if tensor is None else torch.zeros_like(tensor, dtype=torch.float32)
            for tensor in inputs
        ]
        of_hidden, of_weight, of_bias, of_copied, of_copied_rightly = gradients
        loss = hidden.new_zeros((), dtype=torch.float32)
        buffer = LogitBuffer(hidden, weight, bias)
        for start in range(0, len(hidden), buffer.num_rows):
            chunk = slice(start, start + buffer.num_rows)
            log_prob = buffer.log_probabilities(hidden[chunk])
            target = rearrange(labels[chunk], "n -> n 1")
            counts = is_counted[chunk].to(hidden.dtype)
            mixture = Mixture(log_prob.gather(1, target))
            if copied is not None and copied_rightly is not None:
                normalizer = buffer.logits_of(target) - mixture.log_prob
                mixture.add_copies(
                    rearrange(copied[chunk], "n -> n 1").float() - normalizer,
                    rearrange(copied_rightly[chunk], "n -> n 1").float() - normalizer,
                )
            loss -= rearrange(mixture.log_prob, "n 1 -> n") @ counts.float()
            if not with_gradient:
                continue
            counts = rearrange(counts, "n -> n 1")
            error = mixture.error(log_prob, target).to(hidden.dtype)
            of_hidden[chunk] = (error @ weight) * counts
            add_product(of_weight, error.T, hidden[chunk] * counts)
            add_product(rearrange(of_bias, "c -> c 1"), error.T, counts)
            if mixture.share_of_copies is not None and mixture.share_of_copy is not None:
                of_copied[chunk] = rearrange(mixture.share_of_copies * counts, "n 1 -> n")
                of_copied_rightly[chunk] = rearrange(-mixture.share_of_copy * counts, "n 1 -> n")
        num_counted = is_counted.sum().clamp(min=1)
        if with_gradient:
            ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs]
            ctx.save_for_backward(num_counted, *gradients)
        return loss / num_counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        num_counted, *gradients = ctx.saved_tensors
        scale = grad_output / num_counted
        # scaled in float32: the parts of a mean over many rows are too small for float16
        typed = (
            None if gradient is None else (gradient * scale).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return *typed, None, None


class Mixture:
    """How likely labels are, by their logits and by copies, of which there are none at first.

    Args:
        log_prob: of the labels among all ids.

    Attributes:
        log_prob: of the labels among all ids and copies.
        share_of_copies: of copies, in all that is likely; None without copies.
        share_of_copy: of copies, in what makes the label likely; None without copies.
    """

    def __init__(self, log_prob: Float[Tensor, "n 1"]) -> None:
        self.log_prob = log_prob
        self.share_of_copies: Float[Tensor, "n 1"] | None = None
        self.share_of_copy: Float[Tensor, "n 1"] | None = None

    def add_copies(
        self, copied: Float[Tensor, "n 1"], copied_rightly: Float[Tensor, "n 1"]
    ) -> None:
        """Add copies: the logarithm of their weight, where all ids together weigh 1."""
        self.share_of_copies = copied.sigmoid()
        self.share_of_copy = (copied_rightly - self.log_prob).sigmoid()
        self.log_prob = torch.logaddexp(self.log_prob, copied_rightly) - F.softplus(copied)

    def error(
        self, log_prob: Float[Tensor, "n c"], target: Int[Tensor, "n 1"]
    ) -> Float[Tensor, "n c"]:
        """Turn the log probabilities of all ids into the gradient of their logits, in place."""
        error = log_prob.exp_()
        of_target = -torch.ones_like(target, dtype=error.dtype)
        if self.share_of_copies is not None and self.share_of_copy is not None:
            error *= 1 - self.share_of_copies
            of_target += self.share_of_copy
        return error.scatter_add_(1, target, of_target)


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

    def logits_of(self, ids: Int[Tensor, "n 1"]) -> Float[Tensor, "n 1"]:
        """Return the logit of an id of each row of the chunk, in float32."""
        return self.logits[: len(ids)].gather(1, ids).float()

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
    copies: CopyWeights | None = None,
) -> Float[Tensor, ""]:
    """Compute the cross entropy of ``hidden @ weight.T + bias``, in float32 from the logits on.

    Args:
        hidden: features of each position.
        weight, bias: of the layer that makes logits.
        labels: id of each position, or ``ignore_index``.
        ignore_index: label of positions that do not count.
        copies: weights of copies, on the scale of the logits, which have a share beside them.

    Returns:
        the mean over positions that count.
    """
    copied, copied_rightly = (None, None) if copies is None else copies
    device = hidden.device.type
    if not torch.is_grad_enabled():
        # a function of autograd cannot tell by itself, and would compute gradients
        hidden, weight, bias = hidden.detach(), weight.detach(), bias.detach()
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
    with torch.autocast(device, enabled=False):
        return LinearCrossEntropy.apply(
            hidden, weight, bias, copied, copied_rightly, labels, ignore_index
        )
