"""The logits of the next code of a growing sequence, in as few operations as the model allows."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from meshgpt_pytorch.transformer.conditioning import TextConditioning
from meshgpt_pytorch.transformer.guidance import guided_logits
from meshgpt_pytorch.transformer.network import TransformerCache, TwoStageNetwork
from meshgpt_pytorch.transformer.network_step import NetworkStep
from meshgpt_pytorch.transformer.step_linear import Precision, linears_of
from meshgpt_pytorch.transformer.step_support import can_step
from meshgpt_pytorch.transformer.text import EncodedText


class CodeModel(TwoStageNetwork, TextConditioning):
    """What predicting and drawing codes needs of ``MeshTransformer``, which inherits it."""

    can_cache: bool
    eos_token_id: int
    _logits: Callable[..., tuple[Tensor, TransformerCache | None]]


class Predictor(Protocol):
    """Predicts the code after the last, for the rows of a batch that are selected: all at first."""

    def predict(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "rows c"]:
        """Return logits of the code after ``codes``, one more in each call than in that before."""

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on with some rows of those that are selected."""


def choose_predictor(
    model: CodeModel,
    text: EncodedText | None,
    guidance: Mapping[str, Any],
    precision: Precision,
    *,
    with_cache: bool,
) -> Predictor:
    """Choose the quickest way to predict that is exact for a model's options.

    Raises:
        ValueError: a precision for a model that only its modules can run.
    """
    precision.check_model(model.device, model.token_embed.weight.dtype)
    if with_cache and can_step(model.decoder) and can_step(model.fine_decoder):
        return SteppingPredictor(model, text, guidance, precision)
    if not precision.is_that_of_the_weights:
        raise ValueError(
            "dtype and quantize need cache_kv=True and decoder options that can be stepped, got "
            f"{f'{precision}' if with_cache else 'cache_kv=False'}; leave them out, or cast the "
            "model itself with model.to(dtype)"
        )
    return ModulePredictor(model, text, guidance, with_cache=with_cache and model.can_cache)


class ModulePredictor:
    """Predict with the modules as they are, with their cache or over the whole sequence.

    All rows are run to the end: the caches of the modules are not cut.
    """

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
        self.rows: Tensor | None = None

    def predict(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "rows c"]:
        """Return logits of the code after ``codes``."""
        inputs = {"codes": codes, "text": self.text, "with_cache": self.with_cache}
        logits, caches = guided_logits(
            self.model, type(self.model)._logits, inputs, caches=self.caches, **self.guidance
        )
        self.caches = caches if self.with_cache else self.caches
        return logits[:, -1] if self.rows is None else logits[self.rows, -1]

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Return some rows of those that are selected."""
        self.rows = rows if self.rows is None else self.rows[rows]


class SteppingPredictor:
    """Predict with one pass over the first codes, then a step a code.

    Guidance runs both passes, with and without text, as one batch of twice the rows.
    """

    def __init__(
        self,
        model: CodeModel,
        text: EncodedText | None,
        guidance: Mapping[str, Any],
        precision: Precision,
    ) -> None:
        self.model = model
        self.guidance = guidance
        self.is_guided = text is not None and guidance["cond_scale"] != 1
        if text is not None and self.is_guided:
            dropped = EncodedText(text.embeddings, torch.zeros_like(text.mask))
            text = EncodedText(*(torch.cat(pair) for pair in zip(text, dropped, strict=True)))
        self.text = text
        device_type = model.device.type
        self.autocasts = torch.is_autocast_enabled(device_type)
        is_double = model.token_embed.weight.dtype == torch.float64
        if self.autocasts and precision.is_that_of_the_weights and not is_double:
            precision = Precision(torch.get_autocast_dtype(device_type))
        self.linears = linears_of(model, precision)
        self.network: NetworkStep | None = None
        self.rows: Tensor | None = None

    def predict(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "rows c"]:
        """Return logits of the code after ``codes``."""
        if self.network is not None:
            code = codes[:, -1]
            return self.step(code if self.rows is None else code[self.rows])
        first = torch.cat((codes, codes)) if self.is_guided else codes
        self.network = NetworkStep(self.model, first, self.text, self.linears)
        return self._guide(self.network.logits)

    def step(self, code: Int[Tensor, " rows"]) -> Float[Tensor, "rows c"]:
        """Return logits of the code after one more of each row that is selected."""
        assert self.network is not None, "a step follows a prediction"
        code = torch.cat((code, code)) if self.is_guided else code
        if not self.autocasts:
            return self._guide(self.network.step(code))
        # the precision of the step says what its products are computed in
        with torch.autocast(self.model.device.type, enabled=False):
            logits = self.network.step(code)
        return self._guide(logits)

    def _guide(self, logits: Float[Tensor, "b c"]) -> Float[Tensor, "rows c"]:
        if not self.is_guided:
            return logits
        halves = {"halves": logits.chunk(2)}
        guided: Any = guided_logits(self.model, take_half, halves, **self.guidance)
        return guided[:, 0]

    def make_static(self, num_faces: int) -> None:
        """Let steps do the same to the same memory in each face; see ``NetworkStep``."""
        assert self.network is not None, "memory follows a prediction"
        self.network.make_static(num_faces)

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on with some rows of those that are selected."""
        assert self.network is not None, "rows are selected after a prediction"
        if self.is_guided:
            num_rows = len(self.network.face_codes) // 2
            self.network.select(torch.cat((rows, rows + num_rows)))
        else:
            self.network.select(rows)
        self.rows = rows if self.rows is None else self.rows[rows]


def take_half(
    model: CodeModel, *, halves: tuple[Tensor, Tensor], cond_drop_prob: float
) -> Float[Tensor, "b 1 c"]:
    """Return the logits with text, or those without, of a batch that holds both."""
    return halves[int(cond_drop_prob)][:, None]
