"""The logits of the next code of a growing sequence, in as few operations as the model allows."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from meshgpt_pytorch.transformer.conditioning import TextConditioning
from meshgpt_pytorch.transformer.guidance import guided_logits
from meshgpt_pytorch.transformer.layers import GateLoopBlock, GateLoopCache
from meshgpt_pytorch.transformer.network import TransformerCache, TwoStageNetwork
from meshgpt_pytorch.transformer.stepping import DecoderStep, can_step, step_gateloop
from meshgpt_pytorch.transformer.text import EncodedText, masked_mean


class CodeModel(TwoStageNetwork, TextConditioning):
    """What prediction needs of ``MeshTransformer``, which inherits it."""

    can_cache: bool
    _logits: Callable[..., tuple[Tensor, TransformerCache | None]]


class Predictor(Protocol):
    """Predicts the code after the last."""

    def predict(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b c"]:
        """Return logits of the code after ``codes``, which go on from the call before."""

    def select(self, rows: Int[Tensor, " rows"]) -> bool:
        """Go on with some rows of the batch; return False if that cannot be done."""


def choose_predictor(
    model: CodeModel, text: EncodedText | None, guidance: Mapping[str, Any], *, with_cache: bool
) -> Predictor:
    """Choose the quickest way to predict that is exact for a model's options."""
    if with_cache and can_step(model.decoder) and can_step(model.fine_decoder):
        return SteppingPredictor(model, text, guidance)
    return ModulePredictor(model, text, guidance, with_cache=with_cache and model.can_cache)


class ModulePredictor:
    """Predict with the modules as they are, with their cache or over the whole sequence."""

    def __init__(
        self,
        model: CodeModel,
        text: EncodedText | None,
        guidance: Mapping[str, Any],
        *,
        with_cache: bool,
    ) -> None:
        self.model = model
        self.text = text
        self.guidance = guidance
        self.with_cache = with_cache
        self.caches: Any = (None, None)

    def predict(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b c"]:
        """Return logits of the code after ``codes``."""
        inputs = {"codes": codes, "text": self.text, "with_cache": self.with_cache}
        logits, caches = guided_logits(
            self.model, type(self.model)._logits, inputs, caches=self.caches, **self.guidance
        )
        self.caches = caches if self.with_cache else self.caches
        return logits[:, -1]

    def select(self, rows: Int[Tensor, " rows"]) -> bool:
        """Return False: the caches of the modules are not cut."""
        return False


class SteppingPredictor:
    """Predict with one pass over the first codes, then a step a code.

    Guidance runs both passes, with and without text, as one batch of twice the rows.
    """

    def __init__(
        self, model: CodeModel, text: EncodedText | None, guidance: Mapping[str, Any]
    ) -> None:
        self.model = model
        self.guidance = guidance
        self.is_guided = text is not None and guidance["cond_scale"] != 1
        if text is not None and self.is_guided:
            dropped = EncodedText(text.embeddings, torch.zeros_like(text.mask))
            text = EncodedText(*(torch.cat(pair) for pair in zip(text, dropped, strict=True)))
        self.text = text
        self.pooled = None if text is None else masked_mean(*text)
        self.num_codes = -1

    def predict(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b c"]:
        """Return logits of the code after ``codes``, which are one more than in the call before."""
        copies = 2 if self.is_guided else 1
        if self.num_codes < 0:
            logits = self._read(codes.repeat(copies, 1))
        else:
            assert codes.shape[1] == self.num_codes + 1, "codes come one by one"
            logits = self._step(codes[:, -1].repeat(copies))
        if not self.is_guided:
            return logits
        halves = {"halves": logits.chunk(2)}
        guided: Any = guided_logits(self.model, take_half, halves, **self.guidance)
        return guided[:, 0]

    def _read(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b c"]:
        """Run the model over all codes, and go on from what it remembers."""
        model, text = self.model, self.text
        logits, cache = model._predict_all(codes, text, with_cache=True)
        assert cache is not None, "a cache was asked for"
        self.num_rows, self.num_codes = codes.shape
        self.face_codes = list(cache.face_codes.unbind(dim=1))
        mask = None if text is None else text.mask
        condition = self.pooled if model.coarse_adaptive_rmsnorm else None
        self.coarse = DecoderStep(
            model.decoder, cache.coarse, context_mask=mask, condition=condition
        )
        self.fine = DecoderStep(model.fine_decoder, cache.fine, context_mask=mask)
        self.gateloops = {
            "coarse": GateLoopStep(model.coarse_gateloop_block, cache.coarse_gateloop),
            "post": GateLoopStep(model.coarse_post_gateloop_block, cache.coarse_post_gateloop),
            "fine": GateLoopStep(model.fine_gateloop_block, cache.fine_gateloop),
        }
        return logits[:, -1]

    def _step(self, code: Int[Tensor, " b"]) -> Float[Tensor, "b c"]:
        """Run one more code of each row."""
        model = self.model
        token = model._embed_codes(code[:, None], start=self.num_codes)[:, 0]
        self.num_codes += 1
        self.face_codes.append(token)
        if len(self.face_codes) == model.num_codes_per_face:
            face = model.to_face_tokens(torch.cat(self.face_codes, dim=-1))
            self.face_codes = []
            self.fine.restart()
            fine = model.maybe_project_coarse_to_fine(self._step_coarse(face))
        else:
            fine = model.maybe_project_tokens_to_fine(token)

        fine = self.gateloops["fine"](fine)
        if model.text_fine_film_cond is not None:
            fine = model.text_fine_film_cond(fine[:, None], self.pooled)[:, 0]
        return model.to_logits(self.fine.step(fine))

    def _step_coarse(self, face: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Run one more face of each row through the coarse stage."""
        if self.model.text_coarse_film_cond is not None:
            face = self.model.text_coarse_film_cond(face[:, None], self.pooled)[:, 0]
        return self.gateloops["post"](self.coarse.step(self.gateloops["coarse"](face)))

    def select(self, rows: Int[Tensor, " rows"]) -> bool:
        """Go on with some rows of the batch."""
        if self.is_guided:
            rows = torch.cat((rows, rows + self.num_rows // 2))
        self.num_rows = len(rows)
        self.face_codes = [token[rows] for token in self.face_codes]
        self.pooled = None if self.pooled is None else self.pooled[rows]
        self.coarse.select(rows)
        self.fine.select(rows)
        for gateloop in self.gateloops.values():
            gateloop.select(rows)
        return True


class GateLoopStep:
    """A block of gate loops one token at a time; without a block, the token as it is."""

    def __init__(self, block: GateLoopBlock | None, cache: GateLoopCache | None) -> None:
        self.layers = [] if block is None else list(block.gateloops)
        # the state of each row and feature is a row of its own there
        self.states = [
            rearrange(state, "(b d) 1 -> b d", d=layer.dim)
            for layer, (_, state) in zip(self.layers, cache or (), strict=True)
        ]

    def __call__(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        for index, layer in enumerate(self.layers):
            out, self.states[index] = step_gateloop(layer, x, self.states[index])
            x = x + out
        return x

    def select(self, rows: Tensor) -> None:
        """Keep some rows of the batch."""
        self.states = [state[rows] for state in self.states]


def take_half(
    model: CodeModel, *, halves: tuple[Tensor, Tensor], cond_drop_prob: float
) -> Float[Tensor, "b 1 c"]:
    """Return the logits with text, or those without, of a batch that holds both."""
    return halves[int(cond_drop_prob)][:, None]
