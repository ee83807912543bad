"""Drawing the next code from its logits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from x_transformers.autoregressive_wrapper import top_k


@dataclass(frozen=True)
class Sampling:
    """How the next code is drawn from its logits.

    filter_logits_fn, filter_kwargs: what is drawn from: logits ``b c`` -> logits ``b c``.
    temperature: divides the logits; 0 takes the highest.
    generator: source of randomness.
    """

    filter_logits_fn: Callable[..., Tensor]
    filter_kwargs: Mapping[str, Any]
    temperature: float
    generator: torch.Generator | None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < inf:
            raise ValueError(
                f"temperature must be 0 or more, and finite, got {self.temperature}; 0 takes the "
                "likeliest code"
            )

    @property
    def takes_each_row_alone(self) -> bool:
        """Whether rows may be left out; a filter of the caller is shown the whole batch."""
        return self.filter_logits_fn is top_k

    def draw(self, logits: Float[Tensor, "b c"]) -> Int[Tensor, " b"]:
        """Draw an id for each row."""
        if self.filter_logits_fn is not top_k:
            logits = self.filter_logits_fn(logits, **self.filter_kwargs)
            return logits.argmax(dim=-1) if self.temperature == 0 else self._draw_any(logits)
        if self.temperature == 0:
            # the likeliest is always among those kept
            return logits.argmax(dim=-1)
        kept, ids = keep_highest(logits, **self.filter_kwargs)
        return ids.gather(1, self._draw_any(kept)[:, None])[:, 0]

    def _draw_any(self, logits: Float[Tensor, "b c"]) -> Int[Tensor, " b"]:
        """Draw a place of each row as often as its probability."""
        # the highest logit is moved to 0, lest a low temperature make it infinite
        logits = logits - logits.amax(dim=-1, keepdim=True)
        # in double precision on the CPU, where it is cheap, so that the unlikely keep their share
        sums = (logits / self.temperature).softmax(dim=-1).cumsum(dim=-1)
        uniform = torch.rand(
            (len(sums), 1), generator=self.generator, dtype=sums.dtype, device=sums.device
        )
        # in (0, sum]: the place found has a probability above 0, however sums are rounded
        threshold = (1 - uniform) * sums[:, -1:]
        return torch.searchsorted(sums, threshold)[:, 0]


def keep_highest(
    logits: Float[Tensor, "b c"], frac_num_tokens: float = 0.1, k: int | None = None
) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
    """Return the logits that ``top_k`` keeps, in no order, and their ids.

    Args:
        logits: logits of all ids.
        frac_num_tokens: share of the ids to keep, where k is not given.
        k: how many to keep.
    """
    num_ids = logits.shape[-1]
    k = min(ceil(frac_num_tokens * num_ids) if k is None else k, num_ids)
    return logits.topk(k, dim=-1, sorted=False)
