"""Decoders of x-transformers that take less time and memory, with the same weights and results."""

from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float
from torch import Tensor
from x_transformers import Decoder
from x_transformers.attend import Attend, Intermediates
from x_transformers.x_transformers import Attention, FeedForward

from meshgpt_pytorch.recompute import run_checkpointed

# keys up to which plain products are faster on a CPU than the fused kernel: those of a face
FEW_KEYS = 32


class CausalAttend(Attend):
    """``Attend`` whose fused causal kernel also takes keys that stand before the first query.

    The library hides later keys by a mask of queries times keys as soon as there are learned keys.
    The kernel's own causal order needs no mask, computes half of the products, and is the same
    order once the queries are preceded by as many as the keys are.
    """

    def flash_attn(
        self,
        q: Float[Tensor, "b h i d"],
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        attn_bias: Tensor | None = None,
        flash_pack_seq_kwargs: dict[str, Any] | None = None,
        causal: bool | None = None,
    ) -> tuple[Float[Tensor, "b h i d"], Intermediates]:
        """Attend to the keys that are not behind each query; arguments are the library's."""
        causal = self.causal if causal is None else causal
        is_masked = mask is not None or attn_bias is not None or self.flash_pack_seq
        num_queries, num_keys = q.shape[-2], k.shape[-2]
        # a step over a cache has few queries and many keys before them
        is_whole = 1 < num_queries <= num_keys <= 2 * num_queries
        if not (causal and is_whole) or is_masked or self.l2_distance:
            return super().flash_attn(q, k, v, mask, attn_bias, flash_pack_seq_kwargs, causal)

        # one head of keys and values for all heads of queries
        k, v = (repeat(t, "b j d -> b h j d", h=q.shape[1]) if t.ndim == 3 else t for t in (k, v))
        dropout = self.dropout if self.training else 0.0
        scale = 1 / sqrt(q.shape[-1]) if self.scale is None else self.scale
        if q.device.type == "cpu" and num_keys <= FEW_KEYS:
            out = attend_to_few(q, k, v, dropout=dropout, scale=scale)
        else:
            q = F.pad(q, (0, 0, num_keys - num_queries, 0))
            with self.sdp_context_manager():
                out = F.scaled_dot_product_attention(
                    q, k, v, dropout_p=dropout, is_causal=True, scale=scale
                )
            out = out[..., num_keys - num_queries :, :]
        return out, Intermediates()


def attend_to_few(
    q: Float[Tensor, "b h i d"],
    k: Float[Tensor, "b h j d"],
    v: Float[Tensor, "b h j d"],
    *,
    dropout: float,
    scale: float,
) -> Float[Tensor, "b h i d"]:
    """Attend causally by plain products; the last query sees all keys."""
    num_queries, num_keys = q.shape[-2], k.shape[-2]
    is_later = torch.ones((num_queries, num_keys), dtype=torch.bool, device=q.device)
    is_later = is_later.triu(num_keys - num_queries + 1)
    similarity = (q * scale) @ k.mT
    attention = similarity.masked_fill(is_later, float("-inf")).softmax(dim=-1)
    return F.dropout(attention, dropout) @ v


class CheckpointedAttention(Attention):
    """``Attention`` that keeps its inputs alone for the backward pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return run_checkpointed(super().forward, *args, **kwargs)


class CheckpointedFeedForward(FeedForward):
    """``FeedForward`` that keeps its inputs alone for the backward pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return run_checkpointed(super().forward, *args, **kwargs)


CHECKPOINTED = {Attention: CheckpointedAttention, FeedForward: CheckpointedFeedForward}


def build_decoder(*, checkpoint_activations: bool = False, **options: Any) -> Decoder:
    """Build a decoder whose causal attention does without masks.

    Args:
        checkpoint_activations: keep the inputs of attention and feed-forward layers alone for the
            backward pass.
        options: of ``x_transformers.Decoder``.

    Returns:
        the decoder, with the weights and the results of the library's.
    """
    decoder = Decoder(**options)
    # the library builds these parts itself and offers no choice of their class
    for part in decoder.modules():
        if type(part) is Attend and part.causal:
            part.__class__ = CausalAttend
        elif checkpoint_activations and type(part) in CHECKPOINTED:
            part.__class__ = CHECKPOINTED[type(part)]
    return decoder
