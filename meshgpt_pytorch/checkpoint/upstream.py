"""Read the files of meshgpt-pytorch 1.x: `save`, its trainers, and its hub folders.

The outer file is a zip of tensors, read with torch's weights-only reader. The constructor's
arguments in it are a pickle of its own, for a transformer with the whole autoencoder inside;
nothing of it is executed (see inert_pickle).
"""

import inspect
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from meshgpt_pytorch.checkpoint.errors import CheckpointError
from meshgpt_pytorch.checkpoint.inert_pickle import Record, RefusedPickleError, read_inert
from meshgpt_pytorch.checkpoint.pickled_tensors import read_pickled_tensors

# its output was thrown away there, so that no gradient ever reached it
UNTRAINED_PREFIX = "coarse_post_gateloop_block."
# as long as a code of lookup-free quantisation has bits
CODE_BITS = "quantizer.layers.0.mask"
MOST_CODE_BITS = 30
# a row for each id of a code, and one for the end
ID_ROWS = ("token_embed.weight", "to_logits.weight", "to_logits.bias")
HUB_FILES = {"MeshAutoencoder": "mesh-autoencoder.bin", "MeshTransformer": "mesh-transformer.bin"}


class UpstreamFile(NamedTuple):
    """What a file of 1.x holds; the fields that a kind of file lacks are None."""

    path: Path
    tensors: dict[str, Tensor]
    config: bytes | None
    average: dict[str, Tensor] | None = None
    optimizer: Any = None
    step: int | None = None

    @property
    def class_name(self) -> str:
        """The class of the model, told from its weights: the file does not say."""
        has_autoencoder = any(name.startswith("autoencoder.") for name in self.tensors)
        return "MeshTransformer" if has_autoencoder else "MeshAutoencoder"

    def describe(self, classes: Mapping[str, type]) -> dict[str, Any]:
        """Return the class and the constructor's arguments, such that ours computes the same.

        Args:
            classes: the model classes by name, for the names of arguments that came by place.

        Raises:
            CheckpointError: the file has no arguments, or they hold or do what none should.
        """
        if self.config is None:
            raise CheckpointError(
                f"{self.path} holds weights without the arguments of the model, as upstream's "
                f"transformer trainer saves them; build the model with the same arguments, then "
                f"call model.load(path)"
            )
        try:
            config = self._read_config(self.config, self.class_name, classes)
        except RecursionError as error:
            raise CheckpointError(
                f"the arguments in {self.path} must be plain values, got some nested too deeply to "
                f"read; build the model with the same arguments and call model.load(path)"
            ) from error
        if self.class_name == "MeshTransformer":
            config = as_computed_upstream(config, self.tensors)
        return {"class": self.class_name, "config": config, "not_saved": []}

    def _read_config(
        self, pickled: bytes, class_name: str, classes: Mapping[str, type]
    ) -> dict[str, Any]:
        """Read pickled arguments as plain values, with the name of each."""
        try:
            value = read_inert(pickled)
        except RefusedPickleError as error:
            raise CheckpointError(
                f"the arguments in {self.path} are a pickle that was refused: {error}; if you "
                f"trust the weights, build the model with the same arguments and call "
                f"model.load(path), which reads weights alone"
            ) from error
        if not (isinstance(value, tuple) and len(value) == 2):
            raise CheckpointError(f"{self.path} must hold (args, kwargs), got {type(value)}")
        if not is_written_out(value, len(pickled)):
            raise CheckpointError(
                f"the arguments in {self.path} must be no more values than they have bytes "
                f"({len(pickled)}), got values that repeat each other; build the model with the "
                f"same arguments and call model.load(path)"
            )
        args, kwargs = value
        names = list(inspect.signature(classes[class_name]).parameters)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        unknown = [name for name in given if name not in names]
        if unknown or len(args) > len(names):
            raise CheckpointError(
                f"{self.path} was built with arguments that {class_name} does not have: {unknown}; "
                f"build the model with the arguments that replace them and call model.load(path)"
            )
        config = {name: self._as_argument(item, name, classes) for name, item in given.items()}
        real = num_codes(self.tensors)
        if class_name == "MeshAutoencoder" and real is not None:
            config["codebook_size"] = real
        return config

    def _as_argument(self, value: Any, place: str, classes: Mapping[str, type]) -> Any:
        """Copy a value into plain JSON values, and a pickled autoencoder into its description."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (list, tuple)):
            return [
                self._as_argument(item, f"{place}[{i}]", classes) for i, item in enumerate(value)
            ]
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {
                key: self._as_argument(item, f"{place}[{key!r}]", classes)
                for key, item in value.items()
            }
        state = value.state if isinstance(value, Record) else None
        pickled = state.get("_config") if isinstance(state, dict) else None
        if isinstance(pickled, bytes):
            config = self._read_config(pickled, "MeshAutoencoder", classes)
            return {"class": "MeshAutoencoder", "config": config, "not_saved": []}
        name = getattr(value, "name", type(value).__name__)
        raise CheckpointError(
            f"{self.path} was built with {place} of type {name}, which is not read from a pickle; "
            f"build the model with the same arguments and call model.load(path)"
        )


def is_written_out(value: Any, limit: int) -> bool:
    """Tell whether a value has at most so many parts, a part of several values counted in each.

    A model among them counts as the bytes of its own arguments, which are read each time.
    """
    parts, count = [value], 1
    while parts and count <= limit:
        part = parts.pop()
        if isinstance(part, (list, tuple)):
            more = list(part)
        elif isinstance(part, dict):
            more = list(part.values())
        else:
            more = []
            state = part.state if isinstance(part, Record) else None
            pickled = state.get("_config") if isinstance(state, dict) else None
            count += len(pickled) if isinstance(pickled, bytes) else 0
        count += len(more)
        parts += more
    return count <= limit


def is_upstream_file(path: Path) -> bool:
    """Tell whether a file is one of torch.save, which is what 1.x wrote."""
    with path.open("rb") as file:
        start = file.read(9)
    # safetensors start with the length of their header, any eight bytes, and then the header
    is_pickle = start[:1] == b"\x80" and start[8:] != b"{"
    return start[:4] == b"PK\x03\x04" or is_pickle


def read_upstream_file(path: Path) -> UpstreamFile:
    """Read a file of `save`, of a trainer or of the hub, as 1.x wrote it, onto the CPU.

    Warns:
        UserWarning: the file has weights that 1.x never trained.

    Raises:
        CheckpointError: the file is damaged, of another kind, or holds more than plain values.
    """
    try:
        package = read_pickled_tensors(path)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises OSError, RuntimeError, UnpicklingError or EOFError
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it calls {refused[1]}, and was not executed" if refused else str(error)
        raise CheckpointError(
            f"{path} is not a file of weights that can be read safely: {reason}; ask for a copy "
            f"that holds tensors and plain values only"
        ) from error

    if not (isinstance(package, dict) and is_state_dict(package.get("model"))):
        raise CheckpointError(
            f"{path} is a pickle (torch.save) without a model as meshgpt-pytorch 1.x saves it; "
            f"load plain tensors with model.load_state_dict(torch.load(path, weights_only=True))"
        )
    model: dict[str, Tensor] = package["model"]
    if any(name.startswith(UNTRAINED_PREFIX) for name in model):
        warnings.warn(
            f"{path} has weights of coarse_post_gateloop_block, which meshgpt-pytorch 1.x never "
            f"trained: it threw their output away. They are left out, unless a model that has the "
            f"block loads them",
            stacklevel=4,
        )
    config = package.get("config")
    average = package.get("ema_model")
    return UpstreamFile(
        path=path,
        tensors=without_absent_codes(model),
        config=config if isinstance(config, bytes) else None,
        average=average if is_state_dict(average) else None,
        optimizer=package.get("optimizer"),
        step=package.get("step"),
    )


def num_codes(state: Mapping[str, Tensor]) -> int | None:
    """Return how many codes lookup-free quantisation makes: a power of two.

    1.x took any codebook_size and rounded it down for the quantizer, but not for the transformer.
    """
    for name in (CODE_BITS, f"autoencoder.{CODE_BITS}"):
        if name in state:
            num_bits = state[name].numel()
            if num_bits > MOST_CODE_BITS:
                raise CheckpointError(
                    f"{name} must have at most {MOST_CODE_BITS} bits, got {num_bits}; the file is "
                    f"damaged or made up: ask for another copy"
                )
            return 1 << num_bits
    return None


def without_absent_codes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what a transformer has for ids that its autoencoder never makes."""
    real = num_codes(state)
    if real is None:
        return dict(state)
    return {
        name: torch.cat((item[:real], item[-1:]))
        if name in ID_ROWS and len(item) > real + 1
        else item
        for name, item in state.items()
    }


def is_state_dict(value: Any) -> bool:
    """Tell whether a value is a mapping of names to tensors, with at least one."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
    )


def as_computed_upstream(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Translate a transformer's arguments into those with which ours computes what 1.x did.

    Defaults that changed from one 1.x to the next are read off the shapes of the weights.

    Args:
        config: arguments that were given in 1.x.
        state: the weights.
    """
    # the first two were ignored in favour of the coarse heads, the third's output was not used
    ignored = {"fine_attn_dim_head", "fine_attn_heads", "coarse_post_gateloop_depth"}
    if not config.get("condition_on_text", False):
        ignored |= {"fine_cross_attend_text", "text_cond_with_film"}
    config = {name: value for name, value in config.items() if name not in ignored}

    config.setdefault("max_seq_len", len(state["abs_pos_emb.weight"]))
    trained = decoder_options(state)
    attn_kwargs = dict(config.get("attn_kwargs", trained))
    # the name that early 1.x had for it, which the decoder passes over or refuses
    if attn_kwargs.pop("num_mem_kv", None) is not None and "attn_num_mem_kv" in trained:
        attn_kwargs["attn_num_mem_kv"] = trained["attn_num_mem_kv"]
    if not has_residual_streams(state):
        attn_kwargs.pop("num_residual_streams", None)
    return {**config, "attn_kwargs": attn_kwargs}


def has_residual_streams(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a state has hyper-connections, which several residual streams need."""
    return any(name.endswith(".dynamic_alpha_fn") for name in state)


def decoder_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the options that 1.x took as default for its decoders off their weights."""
    names = [name for name in state if name.startswith("decoder.layers.")]
    mem_k = next((state[name] for name in names if name.endswith(".1.mem_k")), None)
    options: dict[str, Any] = {}
    if any(name.endswith(".ff.0.proj.weight") for name in names):
        options["ff_glu"] = True
    if mem_k is not None:
        options["attn_num_mem_kv"] = mem_k.shape[-2]
    if any(".to_value_residual_mix." in name for name in names):
        options |= {"add_value_residual": True, "learned_value_residual_mix": True}
    if has_residual_streams(state):
        options["num_residual_streams"] = 4
    return options
