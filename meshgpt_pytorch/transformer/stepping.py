"""A decoder one token at a time, with the arithmetic and without the generality.

``x_transformers.Decoder`` builds its keys and values anew at each token: it concatenates the cache,
repeats the memory keys, and looks at some hundred options. A step here reads the weights of the
same modules into one matrix a layer, writes keys and values where they belong in a buffer that
doubles when it is full, and asks no questions. It computes what the module computes;
``can_step`` says for which options.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import Module
from x_transformers import Decoder
from x_transformers.x_transformers import (
    AdaptiveRMSNorm,
    Attention,
    FeedForward,
    LayerIntermediates,
    LayerNorm,
    Residual,
    RMSNorm,
)

NORMS = (AdaptiveRMSNorm, LayerNorm, RMSNorm)

# parts of a decoder and of its attention that a step leaves out, so that they must not be there
DECODER_EXTRAS = (
    "rotary_pos_emb",
    "polar_pos_emb",
    "rel_pos",
    "residual_attn",
    "cross_residual_attn",
    "post_branch_fn_needs_condition",
    "softclamp_output",
    "unet_skips",
    "reinject_input",
)
ATTENTION_EXTRAS = (
    "max_attend_past",
    "use_latent_q",
    "use_latent_kv",
    "qkv_receive_diff_residuals",
    "laser",
    "to_v_gate",
    "to_output_gate",
    "to_v_head_gate",
    "qk_norm",
    "q_rmsnorm",
    "k_rmsnorm",
    "value_rmsnorm",
    "data_dependent_alibi",
    "rel_proj_pos_bias",
    "head_scale",
    "orthog_projected_values",
    "orthog_projected_values_per_head",
    "hybrid_module",
    "sublayer_dropout",
)
ATTEND_EXTRAS = (
    "inverted_attention",
    "pre_softmax_talking_heads",
    "post_softmax_talking_heads",
    "pre_scale_post_talking_heads",
    "selective",
    "cog_signed",
    "l2_distance",
    "add_zero_kv",
    "head_learned_sink",
    "softclamp_logits",
    "cope",
    "flash_pack_seq",
    "sparse_topk",
)


def has_none(module: Module, names: tuple[str, ...]) -> bool:
    """Tell whether none of these options of a module is switched on."""
    return not any(isinstance(v := getattr(module, n, None), Module) or v for n in names)


def can_step(decoder: Decoder) -> bool:
    """Tell whether a step of this module computes what a decoder of these options does."""
    is_plain = decoder.num_residual_streams == 1 and has_none(decoder, DECODER_EXTRAS)
    if not is_plain or type(decoder.final_norm) not in NORMS:
        return False
    extras = (*decoder.layer_integrators, *decoder.skip_combines)
    return all(part is None for part in extras) and all(map(can_step_layer, decoder.layers))


def can_step_layer(layer: Any) -> bool:
    """Tell whether a step knows all that one layer of a decoder does."""
    (pre_norm, post_branch_norm, post_main_norm), block, residual = layer
    if post_branch_norm is not None or post_main_norm is not None:
        return False
    if type(pre_norm) not in NORMS or type(residual) is not Residual:
        return False
    if residual.residual_scale is not None or residual.scale_residual_constant != 1:
        return False
    if isinstance(block, FeedForward):
        return True
    if not isinstance(block, Attention) or block.kv_heads != block.heads:
        return False
    is_linear = isinstance(block.to_out, nn.Linear)
    # without a learned key, a row whose text was dropped would attend to nothing
    is_finite = block.causal or block.num_mem_kv > 0
    has_extras = not (has_none(block, ATTENTION_EXTRAS) and has_none(block.attend, ATTEND_EXTRAS))
    return is_linear and is_finite and not has_extras


@dataclass
class KeyValues:
    """Keys and values of one layer: learned ones first, then those of the tokens seen.

    keys, values: ``b h capacity d_head``; the first ``length`` are there.
    mask: ``b 1 1 length``, True where attention may look; None is everywhere.
    """

    keys: Float[Tensor, "b h capacity d_head"]
    values: Float[Tensor, "b h capacity d_head"]
    length: int
    mask: Bool[Tensor, "b 1 1 length"] | None = None

    @classmethod
    def of(
        cls,
        attention: Attention,
        cached: tuple[Tensor, Tensor],
        mask: Bool[Tensor, "b n"] | None = None,
    ) -> "KeyValues":
        """Copy a cache of the module, with its learned keys and values in front."""
        keys, values = cached
        if attention.num_mem_kv > 0:
            learned = (attention.mem_k, attention.mem_v)
            parts = [repeat(each, "h n d -> b h n d", b=len(keys)).to(keys) for each in learned]
            keys, values = torch.cat((parts[0], keys), 2), torch.cat((parts[1], values), 2)
        if mask is not None:
            mask = F.pad(mask, (attention.num_mem_kv, 0), value=True)
            mask = rearrange(mask, "b n -> b 1 1 n")
        return cls(keys, values, keys.shape[2], mask)

    def append(self, key: Float[Tensor, "b h d_head"], value: Float[Tensor, "b h d_head"]) -> None:
        """Write the key and value of one more token, into a buffer twice the size if need be."""
        if self.length == self.keys.shape[2]:
            grow = (0, 0, 0, max(self.length, 8))
            self.keys, self.values = F.pad(self.keys, grow), F.pad(self.values, grow)
        self.keys[:, :, self.length] = key
        self.values[:, :, self.length] = value
        self.length += 1

    def attend(self, query: Float[Tensor, "b h d_head"]) -> Float[Tensor, "b h d_head"]:
        """Attend from one token to all that are there."""
        keys, values = self.keys[:, :, : self.length], self.values[:, :, : self.length]
        out = F.scaled_dot_product_attention(query[:, :, None], keys, values, attn_mask=self.mask)
        return out[:, :, 0]

    def select(self, rows: Tensor) -> None:
        """Keep some rows of the batch."""
        self.keys, self.values = self.keys[rows], self.values[rows]
        self.mask = None if self.mask is None else self.mask[rows]


class NormStep:
    """A norm whose gain is known: learned, or made from a condition that stays."""

    def __init__(self, norm: Any, condition: Float[Tensor, "b d"] | None) -> None:
        self.is_layer_norm = isinstance(norm, LayerNorm)
        self.is_conditioned = isinstance(norm, AdaptiveRMSNorm)
        if isinstance(norm, AdaptiveRMSNorm):
            self.gain = norm.scale * (norm.to_gamma(condition) + 1)
        elif isinstance(norm, LayerNorm):
            self.gain = norm.gamma + float(norm.unit_offset)
        else:
            self.gain = norm.scale * (norm.g + float(norm.unit_offset))

    def __call__(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        if self.is_layer_norm:
            return F.layer_norm(x, x.shape[-1:]) * self.gain
        return F.normalize(x, dim=-1) * self.gain

    def select(self, rows: Tensor) -> None:
        """Keep some rows of the batch."""
        if self.is_conditioned:
            self.gain = self.gain[rows]


@dataclass
class LayerStep:
    """One layer: a norm, a block, and what the block remembers.

    weight: queries, keys, values and the logits of the value mix as one matrix.
    """

    kind: str
    norm: NormStep
    block: Any
    key_values: KeyValues | None = None
    weight: Any = None
    bias: Tensor | None = None
    mixes_values: bool = False


class DecoderStep:
    """Run a decoder one token at a time, from where a pass of the module ended.

    Args:
        decoder: module for which ``can_step`` holds; its weights are read now.
        cache: what the pass over the tokens so far returned.
        context_mask: ``b n``, which tokens of a text attention may look at.
        condition: ``b d`` of adaptive norms.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: LayerIntermediates,
        *,
        context_mask: Bool[Tensor, "b n"] | None = None,
        condition: Float[Tensor, "b d"] | None = None,
    ) -> None:
        if condition is not None and decoder.need_condition:
            condition = decoder.adaptive_mlp(condition)
        cached = iter(cache.attn_intermediates or ())
        self.layers: list[LayerStep] = []
        for kind, (norms, block, _) in zip(decoder.layer_types, decoder.layers, strict=True):
            layer = LayerStep(kind, NormStep(norms[0], condition), block)
            if kind != "f":
                mask = context_mask if kind == "c" else None
                layer.key_values = KeyValues.of(block, next(cached).cached_kv, mask)
            if kind == "a":
                self._fuse(layer, is_first=not any(each.kind == "a" for each in self.layers))
                layer.mixes_values = layer.mixes_values and bool(decoder.add_value_residual)
            self.layers.append(layer)
        self.final_norm = NormStep(decoder.final_norm, condition)

    @staticmethod
    def _fuse(layer: LayerStep, *, is_first: bool) -> None:
        block = layer.block
        layer.mixes_values = not is_first
        weights = [block.to_q.weight, block.to_k.weight, block.to_v.weight]
        mix: Any = block.to_value_residual_mix
        if layer.mixes_values and isinstance(mix, nn.Sequential):
            weights.append(mix[0].weight)
            size = sum(len(weight) for weight in weights[:3])
            mix_bias: Any = mix[0].bias
            layer.bias = torch.cat((mix_bias.new_zeros(size), mix_bias))
        layer.weight = torch.cat(weights)

    def restart(self) -> None:
        """Forget the tokens, but for a text: attention looks at the next token alone."""
        for layer in self.layers:
            if layer.kind == "a" and layer.key_values is not None:
                layer.key_values.length = layer.block.num_mem_kv

    def step(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Run one more token of each row."""
        first_values = None
        for layer in self.layers:
            normed = layer.norm(x)
            if layer.kind == "f":
                x = layer.block(normed) + x
                continue
            assert layer.key_values is not None, "attention has keys and values"
            if layer.kind == "a":
                query, values = self._attend_to_itself(layer, normed, first_values)
                first_values = values if first_values is None else first_values
            else:
                query = split_heads(layer.block.to_q(normed), layer.block.heads)
            out = layer.key_values.attend(query)
            x = layer.block.to_out(rearrange(out, "b h d -> b (h d)")) + x
        return self.final_norm(x)

    @staticmethod
    def _attend_to_itself(
        layer: LayerStep,
        x: Float[Tensor, "b d"],
        first_values: Float[Tensor, "b h d_head"] | None,
    ) -> tuple[Float[Tensor, "b h d_head"], Float[Tensor, "b h d_head"]]:
        """Make the query, remember key and value; return the query and the value before mixing."""
        heads = layer.block.heads
        projected = F.linear(x, layer.weight, layer.bias)
        mix_logits = None
        if layer.bias is not None:
            projected, mix_logits = projected[:, :-heads], projected[:, -heads:]
        query, key, value = (split_heads(t, heads) for t in projected.chunk(3, dim=-1))
        mixed = value
        if layer.mixes_values and first_values is not None:
            mix = 0.5 if mix_logits is None else rearrange(mix_logits.sigmoid(), "b h -> b h 1")
            mixed = first_values.lerp(value, mix)
        assert layer.key_values is not None, "attention has keys and values"
        layer.key_values.append(key, mixed)
        return query, value

    def select(self, rows: Tensor) -> None:
        """Keep some rows of the batch."""
        self.final_norm.select(rows)
        for layer in self.layers:
            layer.norm.select(rows)
            if layer.key_values is not None:
                layer.key_values.select(rows)


def split_heads(x: Float[Tensor, "b d"], heads: int) -> Float[Tensor, "b h d_head"]:
    """Give each head its part of the features."""
    return rearrange(x, "b (h d) -> b h d", h=heads)


def step_gateloop(
    layer: Any, x: Float[Tensor, "b d"], state: Float[Tensor, "b d"]
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
    """Run one more token through a gate loop: ``h = sigmoid(a) * h + kv``, ``out = q * h``.

    Args:
        layer: ``SimpleGateLoopLayer`` without a norm behind it.
        x: the token.
        state: h after the tokens before.

    Returns:
        the output and the state after the token.
    """
    query, key_value, gate = layer.to_qkva[0](layer.norm(x)).chunk(3, dim=-1)
    # sums of logarithms come back in float32 whatever the model is in
    state = torch.addcmul(key_value, gate.sigmoid(), state.to(key_value.dtype))
    return query * state, state
