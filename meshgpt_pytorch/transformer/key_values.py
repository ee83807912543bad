"""Keys and values of attention in a buffer that is written in place."""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor
from x_transformers.x_transformers import Attention

FIRST_CAPACITY = 16


class KeyValues:
    """Keys and values of one layer: learned ones first, then those of the tokens seen.

    Args:
        attention: the module, which owns the learned ones.
        cached: keys and values ``b h n d_head`` that the module returned.
        mask: ``b n``, True where attention may look; None is everywhere.
        dtype: what to keep them in.
    """

    def __init__(
        self,
        attention: Attention,
        cached: tuple[Tensor, Tensor],
        mask: Bool[Tensor, "b n"] | None,
        dtype: torch.dtype,
    ) -> None:
        both: Float[Tensor, "two b h n d_head"] = torch.stack(cached).to(dtype)
        self.num_learned = attention.num_mem_kv
        if self.num_learned > 0:
            learned = torch.stack((attention.mem_k, attention.mem_v)).to(both)
            learned = repeat(learned, "two h n d -> two b h n d", b=both.shape[1])
            both = torch.cat((learned, both), dim=3)
        self.buffer = both
        self.length = both.shape[3]
        self.mask: Float[Tensor, "b 1 1 n"] | None = None
        if mask is not None:
            mask = F.pad(mask, (self.num_learned, 0), value=True)
            mask = rearrange(mask, "b n -> b 1 1 n")
            self.mask = both.new_zeros(mask.shape).masked_fill(~mask, -torch.inf)

    def restart(self) -> None:
        """Forget all but what is learned."""
        self.length = self.num_learned

    def append(self, keys_values: Float[Tensor, "b two h d_head"]) -> None:
        """Write the key and the value of one more token, into twice the room if it is full."""
        if self.length == self.buffer.shape[3]:
            self.buffer = F.pad(self.buffer, (0, 0, 0, max(self.length, FIRST_CAPACITY)))
        self.buffer.select(3, self.length).copy_(keys_values.transpose(0, 1))
        self.length += 1

    def attend(self, query: Float[Tensor, "b h 1 d_head"]) -> Float[Tensor, "b h 1 d_head"]:
        """Attend from one token to all that are there."""
        keys, values = self.buffer.narrow(3, 0, self.length).unbind(0)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=self.mask)

    def select(self, rows: Tensor) -> None:
        """Keep some rows of the batch."""
        self.buffer = self.buffer[:, rows]
        self.mask = None if self.mask is None else self.mask[rows]
