"""Overloads of attention's functions have the positional parameters of the functions behind them, and their keywords
with the same types."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

import pytest

import headwise
from headwise._kv_cache import options as _cache_options
from headwise._nn import functional as _functional
from headwise._nn import options as _layer_options
from headwise._ops.attention import options as _options

pytestmark = [
    pytest.mark.single_implementation,
    pytest.mark.skipif(not hasattr(typing, "get_overloads"), reason="Python 3.10 does not remember overloads"),
]

DECIDE = {"need_weights", "return_lse"}  # the results
OPTIONS: dict[Callable[..., Any], Any] = {
    headwise.scaled_dot_product_attention: _options.CoreOptions,
    headwise.flash_attention: _options.CoreOptions,
    headwise.varlen_attention: _options.VarlenOptions,
    headwise.multi_head_attention: _functional.MultiHeadOptions,
    headwise.multi_head_self_attention: _functional.MultiHeadOptions,
    headwise.self_attention: _options.FunctionOptions,
    headwise.cross_attention: _options.FunctionOptions,
    headwise.MultiHeadAttention.forward: _layer_options.LayerOptions,
    headwise.KVCache.attend: _cache_options.AttendOptions,
    headwise.KVCache.extend: _cache_options.ExtendOptions,
}


def fields(typed: Any) -> dict[str, str]:
    """The names of a TypedDict and their types, as written."""
    return {name: reference.__forward_arg__ for name, reference in typed.__annotations__.items()}


@pytest.mark.parametrize(("function", "options"), OPTIONS.items(), ids=[f.__qualname__ for f in OPTIONS])
def test_overloads_have_the_parameters_of_the_function(function: Callable[..., Any], options: Any) -> None:
    own = inspect.signature(function).parameters
    positional = [p for p in own.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = {p.name: p.annotation for p in own.values() if p.kind is p.KEYWORD_ONLY}
    if "options" in own:
        name = own["options"].annotation.removeprefix("Unpack[").removesuffix("]")
        keywords |= fields(getattr(_options, name, None) or getattr(_cache_options, name))
    expected = {name: written.replace("int | np.random.Generator | None", "Rng") for name, written in keywords.items()}

    overloads = typing.get_overloads(function)
    assert len(overloads) in (3, 4)
    for overload in overloads:
        told = inspect.signature(overload).parameters
        assert [p for p in told.values() if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
        assert told["options"].annotation == f"Unpack[{options.__name__}]"
        decided = {p.name for p in told.values() if p.kind is p.KEYWORD_ONLY}
        assert decided == DECIDE & set(expected)
        assert fields(options) | dict.fromkeys(decided, "bool") == expected
