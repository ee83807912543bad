"""Read a pickle without importing, building or calling anything that it names.

A pickle is a program: it names functions and classes, and calls them. Here each name becomes a
class of ours that stands for it and does nothing; plain values are read as they are.
"""

import io
import pickle
import pickletools
from typing import Any, ClassVar, NoReturn

# what pickles of torch modules call while they are read; recorded, and not called, here too
KNOWN_CALLS = frozenset(
    {
        "_operator.getitem",
        "builtins.frozenset",
        "builtins.getattr",
        "builtins.set",
        "builtins.slice",
        "builtins.type",
        "functools.partial",
        "inspect.Parameter",
        "inspect.Signature",
        "inspect._ParameterKind",
        "torch.Size",
        "torch.device",
        "torch.storage._load_from_bytes",
    }
)
# the rebuilders of tensors, and the classes of the libraries that upstream's models are made of
KNOWN_PREFIXES = (
    "torch._utils._rebuild_",
    "einops.layers.",
    "gateloop_transformer.",
    "local_attention.",
    "meshgpt_pytorch.",
    "taylor_series_linear_attention.",
    "torch_geometric.",
    "vector_quantize_pytorch.",
    "x_transformers.",
)
# put a value on a list, at any place that they name: the list is made that long
MEMO_OPCODES = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
PLAIN_MAPPINGS = frozenset({"collections.OrderedDict", "typing.OrderedDict"})


class RefusedPickleError(ValueError):
    """A pickle that wants to call something that no model's configuration needs."""


class StandIn(type):
    """The type of the classes that stand for a name in a pickle; calling one is a record too."""

    name: str

    def __call__(cls, *args: Any, **kwargs: Any) -> "Record":
        """Record a call, if models need such calls, in place of making it."""
        if cls.name not in KNOWN_CALLS and not cls.name.startswith(KNOWN_PREFIXES):
            refuse(cls.name)
        record: Record = cls.__new__(cls)  # type: ignore[call-overload]
        return record


class Record(metaclass=StandIn):
    """An object that a pickle describes: the name of its class, and the state it came with."""

    name: ClassVar[str] = ""
    state: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> "Record":
        """Take any arguments, and keep none of them."""
        record = object.__new__(cls)
        record.state = None
        return record

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse a call of what another call would have returned."""
        refuse(f"what {self.name} returns")

    # lists, mappings and sets with a class of their own are filled by these

    def append(self, item: Any) -> None:
        """Pass over an item."""

    def extend(self, items: Any) -> None:
        """Pass over items."""

    def add(self, item: Any) -> None:
        """Pass over an item."""

    def __setitem__(self, key: Any, item: Any) -> None:
        """Pass over an item."""


class PlainMapping(dict[Any, Any]):
    """An ordered mapping; what else was attached to it is dropped."""

    def __setstate__(self, state: Any) -> None:
        """Drop the state."""


def refuse(name: str) -> NoReturn:
    """Say what a pickle wanted to call."""
    raise RefusedPickleError(f"it calls {name}, and was not executed")


class InertUnpickler(pickle.Unpickler):
    """Unpickle plain values; names become stand-ins, which are looked up nowhere."""

    def find_class(self, module: str, name: str, /) -> Any:
        """Return a class that stands for a name."""
        full_name = f"{module}.{name}"
        if full_name in PLAIN_MAPPINGS:
            return PlainMapping
        return StandIn("StandIn", (Record,), {"name": full_name})

    def persistent_load(self, pid: Any, /) -> NoReturn:
        """Refuse a reference out of the pickle."""
        raise RefusedPickleError(f"it refers to {pid!r} outside of itself")


def check_memo(pickled: bytes) -> None:
    """Refuse a pickle that asks for a long list in a few bytes.

    Raises:
        RefusedPickleError: a place in the list is beyond the length of the pickle.
        ValueError: the pickle is not whole.
    """
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in MEMO_OPCODES and argument is not None and argument > len(pickled):
            raise RefusedPickleError(f"it asks for a memory of {argument} values")


def read_inert(pickled: bytes) -> Any:
    """Read plain containers, numbers and strings; everything else becomes a `Record`.

    Args:
        pickled: what ``pickle.dumps`` gave.

    Returns:
        the value, with records of objects, or stand-ins for names, in it.

    Raises:
        RefusedPickleError: the pickle calls something that pickles of models do not, or is no
            whole pickle.
    """
    try:
        check_memo(pickled)
        return InertUnpickler(io.BytesIO(pickled)).load()
    except RefusedPickleError:
        raise
    except Exception as error:  # a crafted pickle can make the machine raise nearly anything
        raise RefusedPickleError(
            f"it cannot be read as a pickle ({type(error).__name__}: {error})"
        ) from error
