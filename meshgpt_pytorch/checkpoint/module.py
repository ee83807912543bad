"""Modules that remember how they were built, and save themselves into one safetensors file.

The file holds the tensors and, as JSON in its header, the constructor arguments that rebuild the
model; a model among the arguments is described the same way.
"""

import inspect
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from torch import Tensor
from torch.nn import Module

from meshgpt_pytorch.checkpoint.atomic import PathLike, atomic_path
from meshgpt_pytorch.checkpoint.errors import CheckpointError
from meshgpt_pytorch.checkpoint.files import (
    FORMAT,
    FORMAT_VERSION,
    SavedFile,
    read_model_file,
    write_tensors,
)
from meshgpt_pytorch.checkpoint.hub import HubModel
from meshgpt_pytorch.checkpoint.sharding import share_as
from meshgpt_pytorch.version import __version__

# what an argument may be without a tensor to match: the length of a window, the size of a codebook
SMALL_SIZE = 1 << 20

AnyModel = TypeVar("AnyModel", bound="SavedModule")
TransientFacts = Mapping[str, Any]


class LoadReport(NamedTuple):
    """The keys in which a file and a model differ; all empty after a strict load."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]


class SavedModule(HubModel):
    """A module that remembers its constructor arguments, and saves itself into one file.

    Subclasses need do nothing. A constructor argument that is an object of the user's (a text
    encoder) is named in `transient_arguments`: it is not saved, and must be given again on load.
    """

    transient_arguments: ClassVar[tuple[str, ...]] = ()
    known_classes: ClassVar[dict[str, type["SavedModule"]]] = {}

    _recorded_arguments: dict[str, Any]
    _not_saved: list[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        SavedModule.known_classes[cls.__name__] = cls

    def __new__(cls: type[AnyModel], *args: Any, **kwargs: Any) -> AnyModel:
        # past the hub's mixin, which would record the arguments too
        self: AnyModel = object.__new__(cls)
        # wrong arguments are left for __init__ to refuse
        with suppress(TypeError):
            # recorded here and not in __init__, so that a subclass need not take part; copy and
            # pickle come by without arguments and then restore what was recorded
            self.__dict__.update(record_arguments(cls, args, kwargs))
        return self

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain JSON values, transient ones left out.

        Raises:
            TypeError: an argument is of a type that JSON cannot hold.
        """
        config: dict[str, Any] = json.loads(json.dumps(self.checked_description()["config"]))
        return config

    def summary(self) -> dict[str, Any]:
        """Return the format, the library's version, the class and its arguments, for JSON."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "library_version": __version__,
            **self.checked_description(),
            **self.transient_facts(),
        }

    @property
    def description(self) -> dict[str, Any]:
        """The class, its recorded arguments, and the names of those that are not saved."""
        return {
            "class": type(self).__name__,
            "config": self._recorded_arguments,
            "not_saved": self._not_saved,
        }

    def checked_description(self) -> dict[str, Any]:
        """Return the description, after checking that JSON can hold it."""
        for name, argument in self._recorded_arguments.items():
            for place, type_name in find_not_json(argument, name):
                raise TypeError(
                    f"{type(self).__name__} was built with {place} of type {type_name}, which "
                    f"cannot be saved as JSON; pass plain values (numbers, strings, lists, "
                    f"mappings), or name the argument in {type(self).__name__}.transient_arguments"
                )
        return self.description

    def transient_facts(self) -> TransientFacts:
        """Return plain JSON values that tell the objects of `transient_arguments` again."""
        return {}

    def check_transient_facts(self, facts: TransientFacts, path: PathLike, strict: bool) -> None:
        """Compare the facts of a file with the objects that this model was given.

        Raises:
            CheckpointError: the model was given another object, and `strict` is True.
        """

    def save(self, path: PathLike, overwrite: bool = True) -> None:
        """Write weights and constructor arguments into one safetensors file, in one step.

        Args:
            path: file to write, of any suffix. Missing folders are made.
            overwrite: whether a file of that name is replaced.

        Raises:
            FileExistsError: the file exists and `overwrite` is False.
            TypeError: a constructor argument cannot be saved as JSON.
        """
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "library_version": __version__,
            "class": type(self).__name__,
            "config": json.dumps(self.checked_description()),
            "transient_facts": json.dumps(self.transient_facts()),
        }
        with atomic_path(path, overwrite=overwrite) as temporary:
            write_tensors(temporary, self.state_dict(), metadata)

    def load(self, path: PathLike, strict: bool = True) -> LoadReport:
        """Load the weights of a file into this model, which keeps its device and its dtype.

        Args:
            path: file that `save` wrote, or one of meshgpt-pytorch 1.x, also of its trainers.
            strict: whether every key must be in both, with one shape, and the text encoder must
                be that of the file. Else the keys that differ are left alone, with a warning.

        Returns:
            the keys that differ.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file is damaged, or holds another model. Nothing is loaded then.
        """
        saved = read_model_file(path)
        saved_class = find_class(saved.class_name, path)
        if not (issubclass(saved_class, type(self)) or isinstance(self, saved_class)):
            raise CheckpointError(
                f"{path} holds a {saved.class_name}, wanted a {type(self).__name__}; load it with "
                f"{saved.class_name}.init_and_load"
            )
        self.check_transient_facts(saved.transient_facts, path, strict)
        return self.load_tensors(wanted_tensors(saved, self), path, strict)

    def load_tensors(
        self, tensors: Mapping[str, Tensor], path: PathLike, strict: bool
    ) -> LoadReport:
        """Copy tensors into the model, once it is known that they fit."""
        own = self.state_dict()
        shared = [name for name in own if name in tensors]
        report = LoadReport(
            missing=tuple(name for name in own if name not in tensors),
            unexpected=tuple(name for name in tensors if name not in own),
            misshapen=tuple(name for name in shared if own[name].shape != tensors[name].shape),
        )
        if any(report):
            shapes = [
                f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"
                for name in report.misshapen
            ]
            message = (
                f"{path} does not fit this {type(self).__name__}: missing {list(report.missing)}, "
                f"unexpected {list(report.unexpected)}, misshapen {shapes}"
            )
            if strict:
                raise CheckpointError(
                    f"{message}; build the model with the arguments of the file (init_and_load), "
                    f"or pass strict=False to load the rest"
                )
            warnings.warn(f"{message}; loaded the rest", stacklevel=3)

        fitting = {
            name: share_as(tensors[name], own[name])
            for name in shared
            if name not in report.misshapen
        }
        self.load_state_dict(fitting, strict=False)
        return report

    @classmethod
    def init_and_load(
        cls: type[AnyModel],
        path: PathLike,
        strict: bool = True,
        *,
        overrides: Mapping[str, Any] | None = None,
    ) -> AnyModel:
        """Build the model that a file describes, and load its weights, in the dtype they have.

        Args:
            path: file that `save` wrote, or one of meshgpt-pytorch 1.x; nothing in it is executed.
            strict: as in `load`.
            overrides: constructor arguments that replace those of the file. Arguments that a file
                cannot hold (a text encoder) must be given here again.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file is damaged, holds another class, or an argument is missing.
        """
        saved = read_model_file(path)
        saved_class = find_class(saved.class_name, path)
        if not issubclass(saved_class, cls):
            raise CheckpointError(
                f"{path} holds a {saved.class_name}, wanted a {cls.__name__}; use "
                f"{saved.class_name}.init_and_load"
            )
        description = saved.describe(SavedModule.known_classes)
        check_sizes(description["config"], saved.tensors, path)
        model = build(saved_class, description, overrides or {}, path)
        model.check_transient_facts(saved.transient_facts, path, strict)
        take_dtypes(model, saved.tensors)
        model.load_tensors(wanted_tensors(saved, model), path, strict)
        return model


def record_arguments(
    model_class: type[SavedModule], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Bind a constructor call to names; defaults count too, lest a later default change a file."""
    bound = inspect.signature(model_class.__init__).bind_partial(None, *args, **kwargs)
    given = dict(bound.arguments)
    bound.apply_defaults()

    recorded = {}
    for name, value in list(bound.arguments.items())[1:]:
        plain = to_plain(value)
        is_saved = name not in model_class.transient_arguments
        if is_saved and (name in given or not any(find_not_json(plain, name))):
            recorded[name] = plain
    not_saved = [name for name in model_class.transient_arguments if given.get(name) is not None]
    return {"_recorded_arguments": recorded, "_not_saved": not_saved}


def wanted_tensors(saved: SavedFile, model: Module) -> dict[str, Tensor]:
    """Leave out tensors of a file that a model may do without, and does."""
    prefix = saved.optional_prefix
    if prefix is None or any(name.startswith(prefix) for name in model.state_dict()):
        return saved.tensors
    return {name: item for name, item in saved.tensors.items() if not name.startswith(prefix)}


def take_dtypes(model: Module, tensors: Mapping[str, Tensor]) -> None:
    """Cast a new model's floating-point tensors to the dtypes of saved ones."""
    saved = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    dtypes = {tensor.dtype for tensor in saved.values()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())
        return
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in saved and tensor.is_floating_point():
            tensor.data = tensor.data.to(saved[name].dtype)


# constructor arguments <-> JSON


class NotJson(NamedTuple):
    """Stands in a recorded configuration for a value that JSON cannot hold."""

    type_name: str


def to_plain(value: Any) -> Any:
    """Copy a constructor argument into plain JSON values; what does not fit becomes `NotJson`."""
    if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, SavedModule):
        return value.description
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return NotJson(type(value).__name__)


def find_not_json(plain: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the place and the type of each value that JSON cannot hold."""
    if isinstance(plain, NotJson):
        yield name, plain.type_name
    elif isinstance(plain, dict):
        for key, item in plain.items():
            yield from find_not_json(item, f"{name}[{key!r}]")
    elif isinstance(plain, list):
        for index, item in enumerate(plain):
            yield from find_not_json(item, f"{name}[{index}]")


def from_plain(plain: Any, path: PathLike) -> Any:
    """Turn a configuration back into constructor arguments: lists as tuples, models built."""
    if isinstance(plain, list):
        return tuple(from_plain(item, path) for item in plain)
    if isinstance(plain, dict):
        if plain.keys() == {"class", "config", "not_saved"}:
            return build(find_class(plain["class"], path), plain, {}, path)
        return {key: from_plain(item, path) for key, item in plain.items()}
    return plain


def check_sizes(config: Any, tensors: Mapping[str, Tensor], path: PathLike) -> None:
    """Refuse sizes that no model with these weights has, before memory is asked for them."""
    limit = max(SMALL_SIZE, sum(tensor.numel() for tensor in tensors.values()))
    if isinstance(config, (list, tuple)):
        for item in config:
            check_sizes(item, tensors, path)
    elif isinstance(config, Mapping):
        for item in config.values():
            check_sizes(item, tensors, path)
    elif isinstance(config, int) and config > limit:
        raise CheckpointError(
            f"{path} asks for a model with a size of {config}, and holds fewer numbers than that; "
            f"it is damaged or made up: copy or save it again"
        )


def find_class(name: str, path: PathLike) -> type["SavedModule"]:
    """Look up the class that a file names, among the classes of this library and its user."""
    if name not in SavedModule.known_classes:
        raise CheckpointError(
            f"{path} holds a {name}, wanted one of {sorted(SavedModule.known_classes)}; "
            f"import the module that defines {name} first"
        )
    return SavedModule.known_classes[name]


def build(
    model_class: type[AnyModel],
    description: Mapping[str, Any],
    overrides: Mapping[str, Any],
    path: PathLike,
) -> AnyModel:
    """Construct a model from its description, with some arguments replaced."""
    missing = [name for name in description["not_saved"] if name not in overrides]
    if missing:
        example = ", ".join(f"{name!r}: ..." for name in missing)
        raise CheckpointError(
            f"{model_class.__name__} in {path} was built with {', '.join(missing)}, which a file "
            f"cannot hold; pass it again: init_and_load(path, overrides={{{example}}})"
        )
    kept = {name: item for name, item in description["config"].items() if name not in overrides}
    try:
        return model_class(**from_plain(kept, path), **overrides)
    except TypeError as error:
        raise CheckpointError(
            f"{model_class.__name__} cannot be built from the arguments in {path}: {error}; "
            f"upgrade meshgpt-pytorch if a newer version saved it, or replace them with overrides"
        ) from error
