"""Drawing the next code from its logits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, inf
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from x_transformers.autoregressive_wrapper import top_k

from meshgpt_pytorch.mesh import holds

# what a temperature above 0 is at least: less is 0 to float32, by which nothing can be divided
LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny


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
        if self.filter_logits_fn is top_k:
            check_top_k(self.filter_kwargs)

    @property
    def takes_each_row_alone(self) -> bool:
        """Whether rows may be left out; a filter of the caller is shown the whole batch."""
        return self.filter_logits_fn is top_k

    def draw(self, logits: Float[Tensor, "b c"]) -> Int[Tensor, " b"]:
        """Draw an id for each row.

        Raises:
            RuntimeError: a row without a finite highest logit (on an accelerator: an assertion of
                the device).
        """
        if self.filter_logits_fn is not top_k:
            logits = self.filter_logits_fn(logits, **self.filter_kwargs)
        # nan counts as the highest
        if not holds(logits.amax(dim=-1).isfinite().all(), "logits must be finite"):
            raise RuntimeError(
                "logits must be finite, got nan or infinite ones: weights of the model are broken, "
                "or filter_logits_fn leaves nothing; load weights that are finite"
            )
        if self.temperature == 0:
            # the likeliest is always among those kept
            return logits.argmax(dim=-1)
        if self.filter_logits_fn is not top_k:
            return self._draw_any(logits)
        kept, ids = keep_highest(logits, **self.filter_kwargs)
        return ids.gather(1, self._draw_any(kept)[:, None])[:, 0]

    def _draw_any(self, logits: Float[Tensor, "b c"]) -> Int[Tensor, " b"]:
        """Draw a place of each row as often as its probability."""
        # the highest logit is moved to 0, lest a low temperature make it infinite
        logits = logits - logits.amax(dim=-1, keepdim=True)
        # in double precision on the CPU, where it is cheap, so that the unlikely keep their share
        temperature = max(self.temperature, LEAST_TEMPERATURE)
        sums = (logits / temperature).softmax(dim=-1).cumsum(dim=-1)
        uniform = torch.rand(
            (len(sums), 1), generator=self.generator, dtype=sums.dtype, device=sums.device
        )
        # in (0, sum]: the place found has a probability above 0, however sums are rounded
        threshold = (1 - uniform) * sums[:, -1:]
        return torch.searchsorted(sums, threshold)[:, 0]


def check_top_k(filter_kwargs: Mapping[str, Any]) -> None:
    """Refuse options that ``top_k`` does not have, or with which it keeps nothing.

    Raises:
        ValueError: another option than k or frac_num_tokens; a k below 1; a share of 0 or less.
    """
    unknown = sorted(filter_kwargs.keys() - {"k", "frac_num_tokens"})
    if unknown:
        raise ValueError(
            f"filter_kwargs of top_k must be k or frac_num_tokens, got {unknown}; pass the filter "
            "that has them as filter_logits_fn"
        )
    k, share = filter_kwargs.get("k"), filter_kwargs.get("frac_num_tokens", 1.0)
    if k is not None and not (isinstance(k, Integral) and int(k) >= 1):
        raise ValueError(f"k must be a whole number of at least 1, got {k}; 1 takes the likeliest")
    if not 0 < share < inf:
        raise ValueError(f"frac_num_tokens must be above 0, and finite, got {share}; 1. keeps all")


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
