"""Generating codes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from x_transformers.autoregressive_wrapper import top_k

from benchmarks.workload import Context, Job, Stopwatch, Workload
from benchmarks.workloads.models import (
    SEED,
    TEXT_WIDTH,
    build_transformer,
    random_codes,
)
from meshgpt_pytorch import MeshTransformer

NUM_TEXT_TOKENS = 16
WARM_UP_CODES = 12


@dataclass(frozen=True)
class Generate(Workload):
    """Sample codes with the default filter; the time counted begins behind the prompt.

    Args:
        tokens: codes to sample for each mesh.
        start: codes of the prompt. Reading it is not counted, nor is the first face behind it.
        batch: meshes at once.
        cond_scale: above 0, the model is conditioned on text, and guided by that much.
        bytes_per_weight: how wide the weights are that a step reads.
        size: arguments of ``MeshTransformer``.
        options: arguments of ``generate``.
    """

    tokens: int
    start: int = 0
    batch: int = 1
    cond_scale: float = 0.0
    bytes_per_weight: float = 4
    size: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def prepare(self, context: Context) -> Job:
        """Build the model, its prompt and its text."""
        per_face = 6
        skipped = per_face if self.start else 0
        length = self.start + skipped + self.tokens
        with_text = self.cond_scale > 0
        model = build_transformer(
            context, -(-length // per_face) * per_face, with_text=with_text, **self.size
        ).eval()
        never_end(model)
        options = dict(self.options)
        if self.start:
            options["prompt"] = random_codes(model, self.batch, self.start)
        elif not with_text:
            options["batch_size"] = self.batch
        if with_text:
            options["text_embeds"] = text_embeddings(self.batch, context.device)
            options["cond_scale"] = self.cond_scale

        def generate(max_seq_len: int, **more: Any) -> Any:
            torch.manual_seed(SEED)
            return model.generate(max_seq_len=max_seq_len, return_codes=True, **options, **more)

        def run(watch: Stopwatch) -> float:
            if self.start:
                codes = generate(length, filter_logits_fn=StartsLate(watch, skipped))
            else:
                codes = generate(length)
            watch.stop()
            return codes.numel()

        return Job(
            run,
            warm_up=lambda: generate(self.start + WARM_UP_CODES) if not self.start else None,
            facts={
                "tokens": self.tokens,
                "weight_bytes_per_token": weights_per_token(model) * self.bytes_per_weight,
            },
        )


class StartsLate:
    """The default filter of logits, which starts a watch when it is first called for a new face."""

    def __init__(self, watch: Stopwatch, skipped: int) -> None:
        self.watch = watch
        self.calls_before_start = skipped

    def __call__(self, logits: Tensor, **options: Any) -> Tensor:
        if self.calls_before_start == 0:
            self.watch.start()
        self.calls_before_start -= 1
        return top_k(logits, **options)


def never_end(model: MeshTransformer) -> None:
    """Make eos impossible: a model that knows nothing would end a mesh anywhere."""
    with torch.no_grad():
        model.to_logits.bias[-1] = -1e9


def text_embeddings(batch: int, device: str) -> Tensor:
    """Draw embeddings of texts, as an encoder would give them."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (batch, NUM_TEXT_TOKENS, TEXT_WIDTH)
    return torch.randn(shape, generator=generator).to(device)


def weights_per_token(model: MeshTransformer) -> float:
    """Count the weights of matrices that a step reads: the coarse ones once a face."""
    coarse = (model.decoder, model.coarse_gateloop_block, model.to_face_tokens)
    fine = (model.fine_decoder, model.fine_gateloop_block, model.to_logits)
    codes_per_face = model.num_vertices_per_face * model.num_quantizers
    return sum(map(num_weights, coarse)) / codes_per_face + sum(map(num_weights, fine))


def num_weights(module: Module) -> int:
    """Count the weights of a module's matrices."""
    return sum(weight.numel() for weight in module.parameters() if weight.ndim > 1)
