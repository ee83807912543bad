"""Shape and dtype checks: jaxtyping annotations, verified by beartype when TYPECHECK is set.

Set ``TYPECHECK=True`` in the environment, or in a ``.env`` file in the working directory or above
it (``cp .env.sample .env``). The checks cost time at each call, so they are off by default; the
test suite runs with them on.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import jaxtyping
from beartype import beartype
from beartype.door import is_bearable
from dotenv import dotenv_values, find_dotenv
from torch import Tensor

__all__ = ["Bool", "Float", "Int", "beartype_isinstance", "typecheck"]

Checked = TypeVar("Checked", bound=Callable[..., Any])

TRUE_WORDS = {"1", "true", "yes", "on", "y", "t"}
FALSE_WORDS = {"0", "false", "no", "off", "n", "f", ""}


def read_flag(name: str) -> bool:
    """Read a yes/no setting from the environment, or else from the nearest .env file.

    Args:
        name: variable to look up. The environment wins over the file.

    Returns:
        the setting, False where it is set nowhere.

    Raises:
        ValueError: the value is neither a word for yes nor for no.
    """
    value = os.environ.get(name)
    if value is None:
        value = dotenv_values(find_dotenv(usecwd=True)).get(name) or ""
    word = value.strip().lower()
    if word not in TRUE_WORDS | FALSE_WORDS:
        raise ValueError(f"{name} must be True or False, got {value!r}; see .env.sample")
    return word in TRUE_WORDS


class TensorShorthand:
    """Write ``Float["b n d"]`` for ``jaxtyping.Float[torch.Tensor, "b n d"]``."""

    def __init__(self, abstract_dtype: Any) -> None:
        self.abstract_dtype = abstract_dtype

    def __getitem__(self, shape: str) -> Any:
        return self.abstract_dtype[Tensor, shape]


Float = TensorShorthand(jaxtyping.Float)
Int = TensorShorthand(jaxtyping.Int)
Bool = TensorShorthand(jaxtyping.Bool)

should_typecheck = read_flag("TYPECHECK")


def typecheck(function: Checked) -> Checked:
    """Check the annotated shapes and types of a function at each call, if TYPECHECK is set."""
    if not should_typecheck:
        return function
    return jaxtyping.jaxtyped(typechecker=beartype)(function)


def beartype_isinstance(value: object, hint: Any) -> bool:
    """Tell whether a value fits a type hint; always True where TYPECHECK is not set."""
    return not should_typecheck or is_bearable(value, hint)
