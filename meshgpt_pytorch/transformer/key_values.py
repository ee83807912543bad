"""Keys and values of attention in a buffer that is written in place.

``KeyValues`` counts its tokens in Python. ``StaticKeyValues`` leaves that to the device, in memory
that stays where it is, so that a captured step can be replayed (the field's "static cache").
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from x_transformers.x_transformers import Attention

FIRST_CAPACITY = 16
# of tokens in a static buffer: kernels read masks in blocks of 16 bytes or elements
ALIGNMENT = 16


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

    def reserve(self, capacity: int) -> None:
        """Make room for so many tokens in all."""
        missing = capacity - self.buffer.shape[3]
        if missing > 0:
            self.buffer = F.pad(self.buffer, (0, 0, 0, missing))

    def append(self, keys_values: Float[Tensor, "b two h d_head"]) -> None:
        """Write the key and the value of one more token, into twice the room if it is full."""
        if self.length == self.buffer.shape[3]:
            self.reserve(self.length + max(self.length, FIRST_CAPACITY))
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


class CachePosition:
    """Where all layers of a decoder keep the last token, as the device counts, and what is there.

    Args:
        length: tokens that are there, learned ones included.
        like: of the device and the dtype of the keys.

    Attributes:
        last: where the last token is.
        mask: 0 where a token is, and -inf where room is left.
    """

    def __init__(self, length: int, like: Tensor) -> None:
        self.last: Int[Tensor, " 1"] = like.new_full((1,), length - 1, dtype=torch.long)
        self.mask: Float[Tensor, "1 1 1 n"] = like.new_zeros(1, 1, 1, length)

    @property
    def capacity(self) -> int:
        """Tokens that there is room for, those that are there included."""
        return self.mask.shape[3]

    def grow(self, num_tokens: int) -> None:
        """Make room for so many tokens more, or a few more than that."""
        missing = num_tokens + -(self.capacity + num_tokens) % ALIGNMENT
        self.mask = F.pad(self.mask, (0, missing), value=-torch.inf)

    def advance(self) -> None:
        """Go on to the place of the next token."""
        self.last.add_(1)
        self.mask.index_fill_(3, self.last, 0.0)


class StaticKeyValues(KeyValues):
    """Keys and values in memory that stays where it is, at places that the device counts.

    Attention reads all of the buffer, whatever is there, so that its work grows by doubling too.

    Args:
        key_values: those so far.
        position: place of the newest token, which other layers share.
    """

    def __init__(self, key_values: KeyValues, position: CachePosition) -> None:
        self.buffer = key_values.buffer.narrow(3, 0, key_values.length)
        self.num_learned = key_values.num_learned
        self.mask = None
        self.position = position

    def append(self, keys_values: Float[Tensor, "b two h d_head"]) -> None:
        """Write the key and the value of the token at the position."""
        added = rearrange(keys_values, "b two h d_head -> two b h 1 d_head")
        self.buffer.index_copy_(3, self.position.last, added)

    def attend(self, query: Float[Tensor, "b h 1 d_head"]) -> Float[Tensor, "b h 1 d_head"]:
        """Attend from one token to all that are there."""
        keys, values = self.buffer.unbind(0)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=self.position.mask)
