"""Guide logits by text: classifier-free guidance (arXiv 2207.12598) at each position alone.

The arithmetic is the decorator of classifier-free-guidance-pytorch. It works on whole samples:
its projection runs over everything behind the first axis, its rescale over the axes between the
first and the last. Positions are therefore handed to it as its samples, so that what was sampled
before does not change the guidance of a position, and sampling with a cache (one position at a
time) equals sampling without (all positions).
"""

from collections.abc import Callable, Mapping
from functools import cache, wraps
from math import inf
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import Module

from meshgpt_pytorch.transformer.text_libraries import import_guidance_library
from meshgpt_pytorch.typing import typecheck

__all__ = ["GuidedLogits", "guided", "guided_logits"]


class GuidedLogits(NamedTuple):
    """Guided logits, and what the passes with and without text hand on to their next calls."""

    logits: Float[Tensor, "b n c"]
    caches: tuple[Any, Any]


def guided(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function with the library's classifier_free_guidance, imported on first call.

    Args:
        function: called as ``function(module, inputs=..., cond_drop_prob=...)``. Returns logits,
            or a tuple that starts with them.

    Returns:
        the function with the decorator's arguments: cond_scale, rescale_phi,
        remove_parallel_component, keep_parallel_frac, cfg_routed_kwargs.
    """

    @cache
    def decorated() -> Callable[..., Any]:
        # an argument named as its text tells the decorator to leave texts to the function
        decorate = import_guidance_library().classifier_free_guidance
        return decorate(function, texts_key_name="inputs")

    @wraps(function)
    def call_decorated(*args: Any, **kwargs: Any) -> Any:
        return decorated()(*args, **kwargs)

    return call_decorated


@guided
def logits_of_positions(
    model: Module, *, function: Callable[..., Any], inputs: Mapping[str, Any], cond_drop_prob: float
) -> tuple[Any, ...]:
    """Compute logits laid out for the decorator: a position is a sample, classes in the middle.

    Args:
        model: passed to the function.
        function: see `guided_logits`.
        inputs: keyword arguments of the function.
        cond_drop_prob: 0 with text, 1 without.

    Returns:
        the laid out logits "(b n) c 1" in float32 or wider; the logits as they came; the cache,
        if the function returned one.
    """
    returned = function(model, cond_drop_prob=cond_drop_prob, **inputs)
    logits, *caches = returned if isinstance(returned, tuple) else (returned,)
    positions = rearrange(logits, "b n c -> (b n) c 1")
    return positions.to(torch.promote_types(logits.dtype, torch.float32)), logits, *caches


def check_guidance(
    model: Module, cond_scale: float, rescale_phi: float, keep_parallel_frac: float
) -> None:
    """Refuse settings of guidance that have no meaning.

    Raises:
        ValueError: cond_scale below 1, infinite, or not 1 in training mode; a fraction outside
            0 to 1.
    """
    if not 1 <= cond_scale < inf:
        raise ValueError(
            f"cond_scale must be at least 1, and finite, got {cond_scale}; pass cond_scale=1. for "
            "no guidance"
        )
    if cond_scale != 1 and model.training:
        raise ValueError(
            f"cond_scale must be 1 in training mode, got {cond_scale}; call model.eval() first"
        )
    for name, fraction in (
        ("rescale_phi", rescale_phi),
        ("keep_parallel_frac", keep_parallel_frac),
    ):
        if not 0 <= fraction <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {fraction}; 0. switches it off")


@typecheck
def guided_logits(
    model: Module,
    function: Callable[..., Any],
    inputs: Mapping[str, Any],
    *,
    cond_scale: float | int = 1.0,
    rescale_phi: float | int = 0.0,
    remove_parallel_component: bool = False,
    keep_parallel_frac: float | int = 0.0,
    caches: tuple[Any, Any] | None = None,
) -> Tensor | GuidedLogits:
    """Compute logits and push them away from the logits without text, each position alone.

    Args:
        model: passed to the function; in eval mode unless cond_scale is 1.
        function: called as ``function(model, cond_drop_prob=0. or 1., **inputs)``, with ``cache``
            too if caches are given. Returns logits "b n c", or a tuple (logits, cache).
        inputs: keyword arguments of the function.
        cond_scale: how far to push, 1 or more. At 1 the function is called once, with text, and
            the guidance library is not imported.
        rescale_phi: share, 0 to 1, of the result that gets the spread over the classes that the
            logits with text have (arXiv 2305.08891).
        remove_parallel_component: push only across the direction of the logits with text
            (arXiv 2410.02416).
        keep_parallel_frac: share, 0 to 1, of the removed component that is kept.
        caches: the cache for the call with text and the one for the call without.

    Returns:
        logits "b n c" in the function's dtype, computed in float32 or wider. With their caches,
        as GuidedLogits, if the function returns a cache; at cond_scale 1 the cache without text
        stays what it was.

    Raises:
        ValueError: cond_scale below 1, infinite, or not 1 in training mode; a fraction outside
            0 to 1.
    """
    check_guidance(model, cond_scale, rescale_phi, keep_parallel_frac)
    text_inputs, null_inputs = dict(inputs), dict(inputs)
    if caches is not None:
        text_inputs["cache"], null_inputs["cache"] = caches

    if cond_scale == 1:
        returned = function(model, cond_drop_prob=0.0, **text_inputs)
        if not isinstance(returned, tuple):
            return returned
        logits, text_cache = returned
        return GuidedLogits(logits, (text_cache, None if caches is None else caches[1]))

    positions, (logits, _), *caches_after = logits_of_positions(
        model,
        function=function,
        cfg_routed_kwargs={"inputs": (text_inputs, null_inputs)},
        cond_scale=float(cond_scale),
        rescale_phi=float(rescale_phi),
        remove_parallel_component=remove_parallel_component,
        keep_parallel_frac=float(keep_parallel_frac),
    )
    guided_positions = rearrange(positions, "(b n) c 1 -> b n c", b=logits.shape[0])
    guided_in_dtype = guided_positions.to(logits.dtype)
    return GuidedLogits(guided_in_dtype, *caches_after) if caches_after else guided_in_dtype
