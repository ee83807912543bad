"""Decoders and gate loops one token at a time, with the arithmetic and without the generality.

``x_transformers.Decoder`` builds its keys and values anew at each token: it concatenates the cache,
repeats the memory keys, and looks at some hundred options. A step here reads the weights of the
same modules, writes keys and values where they belong in a buffer, and asks no questions. It
computes what the module computes; ``step_support.can_step`` says for which options. One token of
each row is ``b d``; between products it is in float32, or wider if the weights are.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import Module
from x_transformers import Decoder
from x_transformers.x_transformers import (
    GLU,
    AdaptiveRMSNorm,
    Attention,
    FeedForward,
    LayerIntermediates,
    LayerNorm,
    RMSNorm,
)

from meshgpt_pytorch.transformer.key_values import CachePosition, KeyValues, StaticKeyValues
from meshgpt_pytorch.transformer.layers import FiLM, GateLoopBlock, GateLoopCache
from meshgpt_pytorch.transformer.step_linear import StepLinear, StepLinears, step_dtype

TokenStep = Callable[[Float[Tensor, "b d"]], Float[Tensor, "b d"]]


class NormStep:
    """A norm of a decoder or a gate loop, its gain known: learned, or of a condition that stays."""

    def __init__(self, norm: Any, condition: Float[Tensor, "b d"] | None = None) -> None:
        self.is_layer_norm = isinstance(norm, LayerNorm)
        self.is_conditioned = isinstance(norm, AdaptiveRMSNorm)
        if self.is_conditioned:
            gain = norm.scale * (norm.to_gamma(condition) + 1)
        elif self.is_layer_norm:
            gain = norm.gamma + float(norm.unit_offset)
        elif isinstance(norm, RMSNorm):
            gain = norm.scale * (norm.g + float(norm.unit_offset))
        else:
            gain = norm.scale * norm.gamma
        self.gain = gain.to(step_dtype(gain.dtype))

    def __call__(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        if self.is_layer_norm:
            return torch.layer_norm(x, self.gain.shape, self.gain)
        return normalize(x) * self.gain

    def select(self, rows: Tensor) -> None:
        """Keep some rows of the batch."""
        if self.is_conditioned:
            self.gain = self.gain[rows]


def normalize(x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """Give each row the length 1; a row of zeros stays."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(1e-12)


class FeedForwardStep:
    """Norm, feed forward, shortcut."""

    def __init__(self, norm: NormStep, block: FeedForward, linears: StepLinears) -> None:
        self.norm = norm
        self.parts = read_parts(block.ff, linears)

    def __call__(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        out = self.norm(x)
        for part in self.parts:
            out = part(out)
        return x + out

    def select(self, rows: Tensor) -> None:
        """Keep some rows of the batch."""
        self.norm.select(rows)


def read_parts(module: Module, linears: StepLinears) -> list[TokenStep]:
    """Read a feed forward as the functions it is made of, in order."""
    if isinstance(module, nn.Sequential):
        return [step for part in module for step in read_parts(part, linears)]
    if isinstance(module, nn.Dropout):
        return []
    if isinstance(module, nn.Linear):
        return [linears.read(module)]
    if isinstance(module, GLU):
        return [GLUStep(module, linears)]
    return [module]


class GLUStep:
    """A gated linear unit."""

    def __init__(self, glu: GLU, linears: StepLinears) -> None:
        self.project = linears.read(glu.proj)
        self.activate = glu.act
        self.gain = glu.mult_bias if isinstance(glu.mult_bias, Tensor) else None

    def __call__(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d_inner"]:
        up, gate = self.project(x).chunk(2, dim=-1)
        out = up * self.activate(gate)
        return out if self.gain is None else out * self.gain


class CrossAttentionStep:
    """Norm, attention to a text, shortcut."""

    def __init__(
        self, norm: NormStep, block: Attention, key_values: KeyValues, linears: StepLinears
    ) -> None:
        self.norm = norm
        self.heads = block.heads
        self.key_values = key_values
        self.to_query = linears.read(block.to_q)
        self.to_out = linears.read(block.to_out)

    def __call__(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        query = self.to_query(self.norm(x)).view(x.shape[0], self.heads, 1, -1)
        return x + self.to_out(self.key_values.attend(query).reshape(x.shape[0], -1))

    def select(self, rows: Tensor) -> None:
        """Keep some rows of the batch."""
        self.norm.select(rows)
        self.key_values.select(rows)


class SelfAttentionStep:
    """Norm, attention to the tokens so far, shortcut.

    Queries, keys, values and the logits of the value mix are one product.
    """

    def __init__(
        self,
        norm: NormStep,
        block: Attention,
        key_values: KeyValues,
        linears: StepLinears,
        *,
        mixes_values: bool,
    ) -> None:
        self.norm = norm
        self.heads = block.heads
        self.key_values = key_values
        self.mixes_values = mixes_values
        layers: list[Any] = [block.to_q, block.to_k, block.to_v]
        mix: Any = block.to_value_residual_mix
        self.learns_mix = mixes_values and isinstance(mix, nn.Sequential)
        if self.learns_mix:
            layers.append(mix[0])
        self.project = linears.read(*layers)
        self.to_out = linears.read(block.to_out)

    def __call__(
        self,
        x: Float[Tensor, "b d"],
        first_values: Float[Tensor, "b h d_head"] | None,
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b h d_head"]]:
        """Return the token, and its values if they are the first, as given else."""
        batch, heads = x.shape[0], self.heads
        projected = self.project(self.norm(x))
        mix: Any = 0.5
        if self.learns_mix:
            mix = projected[:, -heads:].sigmoid().view(batch, heads, 1)
            projected = projected[:, :-heads]
        parts = projected.view(batch, 3, heads, -1)
        values = parts[:, 2]
        if self.mixes_values and first_values is not None:
            torch.lerp(first_values, values, mix, out=values)
        self.key_values.append(parts[:, 1:])
        attended = self.key_values.attend(parts[:, 0].view(batch, heads, 1, -1))
        out = x + self.to_out(attended.reshape(batch, -1))
        return out, values if first_values is None else first_values

    def select(self, rows: Tensor) -> None:
        """Keep some rows of the batch."""
        self.norm.select(rows)
        self.key_values.select(rows)


class DecoderStep:
    """Run a decoder one token at a time, from where a pass of the module ended.

    Args:
        decoder: module for which ``can_step`` holds; its weights are read now.
        cache: what the pass over the tokens so far returned.
        linears: linear layers of the model.
        context_mask: ``b n``, which tokens of a text attention may look at.
        condition: ``b d`` of adaptive norms.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: LayerIntermediates,
        linears: StepLinears,
        *,
        context_mask: Bool[Tensor, "b n"] | None = None,
        condition: Float[Tensor, "b d"] | None = None,
    ) -> None:
        if condition is not None and decoder.need_condition:
            condition = decoder.adaptive_mlp(condition)
        cached = iter(cache.attn_intermediates or ())
        self.layers: list[SelfAttentionStep | CrossAttentionStep | FeedForwardStep] = []
        self.self_attention: list[SelfAttentionStep] = []
        for kind, (norms, block, _) in zip(decoder.layer_types, decoder.layers, strict=True):
            norm = NormStep(norms[0], condition)
            if kind == "f":
                self.layers.append(FeedForwardStep(norm, block, linears))
                continue
            keys_values = next(cached).cached_kv
            dtype = step_dtype(keys_values[0].dtype)
            if kind == "c":
                context = KeyValues(block, keys_values, context_mask, dtype)
                self.layers.append(CrossAttentionStep(norm, block, context, linears))
                continue
            mixes_values = bool(decoder.add_value_residual and self.self_attention)
            seen = KeyValues(block, keys_values, None, dtype)
            step = SelfAttentionStep(norm, block, seen, linears, mixes_values=mixes_values)
            self.layers.append(step)
            self.self_attention.append(step)
        self.final_norm = NormStep(decoder.final_norm, condition)
        self.position: CachePosition | None = None

    def reserve(self, num_tokens: int) -> None:
        """Make room for so many tokens, but for learned ones: until then memory stays."""
        for layer in self.self_attention:
            layer.key_values.reserve(layer.key_values.num_learned + num_tokens)

    def make_static(self, num_tokens: int) -> None:
        """Let the device count tokens from now on, in memory with room for so many more."""
        if not self.self_attention:
            return
        if self.position is None:
            first = self.self_attention[0].key_values
            self.position = CachePosition(first.length, first.buffer)
            for layer in self.self_attention:
                layer.key_values = StaticKeyValues(layer.key_values, self.position)
        self.position.grow(num_tokens)
        for layer in self.self_attention:
            layer.key_values.reserve(self.position.capacity)

    def restart(self) -> None:
        """Forget the tokens, but for a text: attention looks at the next token alone."""
        for layer in self.self_attention:
            layer.key_values.restart()

    def __call__(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Run one more token of each row."""
        if self.position is not None:
            self.position.advance()
        first_values = None
        for layer in self.layers:
            if isinstance(layer, SelfAttentionStep):
                x, first_values = layer(x, first_values)
            else:
                x = layer(x)
        return self.final_norm(x)

    def select(self, rows: Tensor) -> None:
        """Keep some rows of the batch."""
        self.final_norm.select(rows)
        for layer in self.layers:
            layer.select(rows)


class GateLoopStep:
    """A block of gate loops: ``h = sigmoid(a) * h + kv``, ``x = x + q * h``.

    Args:
        block: the block; None leaves the token as it is.
        cache: the states that a pass over the tokens so far returned.
        linears: linear layers of the model.
    """

    def __init__(
        self, block: GateLoopBlock | None, cache: GateLoopCache | None, linears: StepLinears
    ) -> None:
        self.layers: list[tuple[NormStep, StepLinear]] = []
        self.states: list[Float[Tensor, "b d"]] = []
        layers: list[Any] = list(block.gateloops) if block is not None else []
        for layer, (_, state) in zip(layers, cache or (), strict=True):
            self.layers.append((NormStep(layer.norm), linears.read(layer.to_qkva[0])))
            # each row and feature is a row of its own in the cache: (b d) 1; steps write into ours
            state = state.reshape(-1, layer.dim)
            self.states.append(state.to(step_dtype(state.dtype), copy=True))

    def __call__(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Run one more token of each row."""
        for index, (norm, project) in enumerate(self.layers):
            query, key_value, gate = project(norm(x)).chunk(3, dim=-1)
            state = self.states[index]
            torch.addcmul(key_value, gate.sigmoid(), state, out=state)
            x = torch.addcmul(x, query, state)
        return x

    def select(self, rows: Tensor) -> None:
        """Keep some rows of the batch."""
        self.states = [state[rows] for state in self.states]


class FiLMStep:
    """Scale and shift a token by a condition that stays."""

    def __init__(self, film: FiLM, condition: Float[Tensor, "b d"]) -> None:
        scale, shift = film.scale_and_shift(condition)
        self.scale = scale.to(step_dtype(scale.dtype))
        self.shift = shift.to(step_dtype(shift.dtype))

    def __call__(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return torch.addcmul(self.shift, x, self.scale)

    def select(self, rows: Tensor) -> None:
        """Keep some rows of the batch."""
        self.scale, self.shift = self.scale[rows], self.shift[rows]
