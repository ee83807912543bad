"""Building blocks of the transformer: gate loops, FiLM, and a guard on residual streams."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from gateloop_transformer import SimpleGateLoopLayer
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import Module, ModuleList
from x_transformers.x_transformers import HyperConnection

from meshgpt_pytorch.recompute import PartRunner
from meshgpt_pytorch.transformer.recurrence import gated_sum

GateLoopCache = list[tuple[Tensor, Tensor]]


class FiLM(Module):
    """Scale and shift features by a condition (Perez et al., 1709.07871); starts as identity.

    Args:
        dim: width of the condition.
        dim_out: width of the features.
    """

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.to_gamma = nn.Linear(dim, dim_out, bias=False)
        self.to_beta = nn.Linear(dim, dim_out)
        self.gamma_mult = nn.Parameter(torch.zeros(1))
        self.beta_mult = nn.Parameter(torch.zeros(1))

    def forward(
        self, x: Float[Tensor, "b n d_out"], condition: Float[Tensor, "b d"]
    ) -> Float[Tensor, "b n d_out"]:
        scale, shift = self.scale_and_shift(rearrange(condition, "b d -> b 1 d"))
        return x * scale + shift

    def scale_and_shift(
        self, condition: Float[Tensor, "*b d"]
    ) -> tuple[Float[Tensor, "*b d_out"], Float[Tensor, "*b d_out"]]:
        """Return what a condition multiplies features by, and what it adds to them."""
        gamma, beta = self.to_gamma(condition).tanh(), self.to_beta(condition).tanh()
        return 1 + self.gamma_mult * gamma, beta * self.beta_mult


class GateLoop(SimpleGateLoopLayer):
    """The library's gate loop, summed in the order that the features lie in memory.

    Args:
        dim: width of the sequence.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim=dim)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        cache: tuple[Tensor, Tensor] | None = None,
        return_cache: bool = False,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run a sequence, or its continuation; arguments and cache are the library's."""
        to_qkva, _ = self.to_qkva
        query, key_value, gate = to_qkva(self.norm(x)).chunk(3, dim=-1)
        gate = gate.sigmoid()
        before = None if cache is None else rearrange(cache[1], "(b d) 1 -> b d", d=self.dim)
        sums = gated_sum(gate, key_value, before)
        if not return_cache:
            return query * sums
        last_gate, last_sum = (rearrange(t[:, -1], "b d -> (b d) 1") for t in (gate, sums))
        return query * sums, (last_gate, last_sum)


class GateLoopBlock(PartRunner):
    """Pass a sequence through gated linear recurrences, each with a shortcut (2311.01927).

    Args:
        dim: width of the sequence.
        depth: number of recurrences.
        use_heinsen: sum by Heinsen's logarithms instead of products of gates.
        checkpoint_activations: keep the inputs of recurrences alone for the backward pass.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        use_heinsen: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        self.gateloops = ModuleList(
            SimpleGateLoopLayer(dim=dim, use_heinsen=True) if use_heinsen else GateLoop(dim)
            for _ in range(depth)
        )

    def forward(
        self, x: Float[Tensor, "b n d"], cache: GateLoopCache | None = None
    ) -> tuple[Float[Tensor, "b n d"], GateLoopCache]:
        """Run a sequence, or its continuation.

        Args:
            x: all of the sequence, or the part that follows what the cache has seen.
            cache: state of each recurrence after the part before.

        Returns:
            the sequence ``b n d``, and the state after it.
        """
        new_cache = []
        for index, gateloop in enumerate(self.gateloops):
            state = None if cache is None else cache[index]
            out, state = self.run_part(gateloop, x, cache=state, return_cache=True)
            new_cache.append(state)
            # Heinsen's sum is in float32, whatever came in
            x = x + out.to(x.dtype)
        return x, new_cache


# options of x_transformers.Decoder under which a step over cached keys and values computes what a
# pass over the whole sequence does; under any other, generation runs the whole sequence each time
EXACT_WITH_CACHE = frozenset(
    {
        "ff_glu",
        "ff_swish",
        "ff_mult",
        "ff_no_bias",
        "ff_relu_squared",
        "attn_num_mem_kv",
        "add_value_residual",
        "learned_value_residual_mix",
        "num_residual_streams",
        "attn_qk_norm",
        "attn_qk_norm_dim_scale",
        "attn_kv_heads",
        "attn_one_kv_head",
        "attn_flash",
        "sandwich_norm",
        "pre_norm",
        "use_rmsnorm",
        "use_simple_rmsnorm",
        "use_scalenorm",
        "rotary_pos_emb",
        "alibi_pos_bias",
        "alibi_num_heads",
        "layer_dropout",
    }
)


def is_exact_with_cache(attn_kwargs: Mapping[str, Any]) -> bool:
    """Tell whether decoders with these options may generate with cached keys and values."""
    return EXACT_WITH_CACHE.issuperset(attn_kwargs)


def require_residual_streams(num_residual_streams: int) -> None:
    """Refuse several residual streams where the installed x-transformers mixes them wrongly.

    Since its version 2.14.1 every new stream is the plain sum of all streams, whatever the
    weights: activations grow sixteenfold with each block, and most blocks have no effect.

    Args:
        num_residual_streams: streams asked for.

    Raises:
        RuntimeError: more than one, and the fault is there.
    """
    if num_residual_streams <= 1:
        return
    connection = HyperConnection(dim=2, layer_index=0, num_residual_streams=2)
    streams = torch.eye(2)[:, None]
    with torch.no_grad():
        _, mixed, _ = connection.prepare(streams)
    if torch.allclose(mixed[..., 0, :], mixed[..., 1, :]):
        raise RuntimeError(
            f"num_residual_streams={num_residual_streams} needs hyper-connections that keep "
            "streams apart, but the installed x-transformers (2.14.1 and later have the fault) "
            "replaces each stream by the sum of all; use num_residual_streams=1, or install "
            "x-transformers<2.14.1"
        )


def as_pair(dim: int | Sequence[int]) -> tuple[int, int]:
    """Read a width, or a (coarse, fine) pair of widths, as a pair."""
    if isinstance(dim, int):
        return dim, dim
    if len(dim) != 2:
        raise ValueError(f"dim must be a width or a (coarse, fine) pair, got {tuple(dim)}")
    return dim[0], dim[1]
