"""Attention without projections, as functions: of a sequence to itself and to another sequence.

Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762, section 3.2.1.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from headwise._base.arrays import as_array
from headwise._base.scalars import check_rate, check_size
from headwise._ops.attention.dense import scaled_dot_product_attention
from headwise._ops.gradients.attention import ROWS
from headwise._ops.gradients.rules import dense_attention
from headwise._ops.gradients.vjp import set_rule

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Unpack

    from headwise._base.typing import Array, Rng
    from headwise._ops.attention.options import AttentionOptions, FunctionOptions
    from headwise._ops.gradients.vjp import Pullback

__all__ = ["cross_attention", "self_attention"]


@overload
def self_attention(
    x: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[True] = True, return_lse: Literal[False] = False, **options: Unpack[FunctionOptions],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def self_attention(
    x: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[False], return_lse: Literal[False] = False, **options: Unpack[FunctionOptions],
) -> tuple[Array, None]: ...  # fmt: skip
@overload
def self_attention(
    x: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: Literal[True], **options: Unpack[FunctionOptions],
) -> tuple[Array, Any, Array]: ...  # fmt: skip
@overload
def self_attention(
    x: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: bool = False, **options: Unpack[FunctionOptions],
) -> tuple[Any, ...]: ...  # fmt: skip
def self_attention(
    x: ArrayLike,
    d_model: int,
    mask: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    *,
    rng: Rng = None,
    **options: Unpack[AttentionOptions],
) -> tuple[Any, ...]:
    """Scaled dot-product attention of a sequence to itself, without projections.

    Parameters
    ----------
    x : array_like, (…, seq, d_model)
        Query, key and value.
    d_model : int
        Expected width of ``x``.
    mask : array_like, optional
        Broadcast against (…, seq, seq), or (batch, seq) from :func:`headwise.create_padding_mask`; see
        :func:`headwise.scaled_dot_product_attention`.
    dropout_rate : float
        Rate in [0, 1) of the dropout of attention weights.
    rng : int or numpy.random.Generator, optional
        Draws the dropout.
    **options
        The other keywords of :func:`headwise.scaled_dot_product_attention`.

    Returns
    -------
    output : ndarray, (…, seq, d_model)
    weights : ndarray, (…, seq, seq), or None
        Before dropout; None with ``need_weights=False``.
    lse : ndarray, (…, seq)
        Only with ``return_lse=True``.

    Raises
    ------
    ValueError, TypeError
        If the width is not ``d_model``, and as :func:`headwise.scaled_dot_product_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 64))
    >>> output, weights = hw.self_attention(x, d_model=64)
    >>> output.shape, weights.shape
    ((2, 5, 64), (2, 5, 5))
    """
    rows = _of_width(x, "x", check_size(d_model, "d_model"))
    rate = check_rate(dropout_rate, "dropout_rate")
    return scaled_dot_product_attention(rows, rows, rows, mask, rate, rng=rng, **options)


@overload
def cross_attention(
    query: ArrayLike, context: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[True] = True, return_lse: Literal[False] = False, **options: Unpack[FunctionOptions],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def cross_attention(
    query: ArrayLike, context: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[False], return_lse: Literal[False] = False, **options: Unpack[FunctionOptions],
) -> tuple[Array, None]: ...  # fmt: skip
@overload
def cross_attention(
    query: ArrayLike, context: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: Literal[True], **options: Unpack[FunctionOptions],
) -> tuple[Array, Any, Array]: ...  # fmt: skip
@overload
def cross_attention(
    query: ArrayLike, context: ArrayLike, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: bool = False, **options: Unpack[FunctionOptions],
) -> tuple[Any, ...]: ...  # fmt: skip
def cross_attention(
    query: ArrayLike,
    context: ArrayLike,
    d_model: int,
    mask: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    *,
    rng: Rng = None,
    **options: Unpack[AttentionOptions],
) -> tuple[Any, ...]:
    """Scaled dot-product attention of one sequence to another, without projections.

    Parameters
    ----------
    query : array_like, (…, query_len, d_model)
        The sequence that attends, such as the state of a decoder.
    context : array_like, (…, key_len, d_model)
        Key and value, such as the output of an encoder.
    d_model : int
        Expected width of both.
    mask : array_like, optional
        Broadcast against (…, query_len, key_len), or (batch, key_len) from :func:`headwise.create_padding_mask`; see
        :func:`headwise.scaled_dot_product_attention`.
    dropout_rate : float
        Rate in [0, 1) of the dropout of attention weights.
    rng : int or numpy.random.Generator, optional
        Draws the dropout.
    **options
        The other keywords of :func:`headwise.scaled_dot_product_attention`.

    Returns
    -------
    output : ndarray, (…, query_len, d_model)
    weights : ndarray, (…, query_len, key_len), or None
        Before dropout; None with ``need_weights=False``.
    lse : ndarray, (…, query_len)
        Only with ``return_lse=True``.

    Raises
    ------
    ValueError, TypeError
        If a width is not ``d_model``, and as :func:`headwise.scaled_dot_product_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> rng = np.random.default_rng(0)
    >>> decoder, encoder = rng.standard_normal((2, 3, 64)), rng.standard_normal((2, 7, 64))
    >>> output, weights = hw.cross_attention(decoder, encoder, d_model=64)
    >>> output.shape, weights.shape
    ((2, 3, 64), (2, 3, 7))
    """
    rows, keys = _two_of_width(query, context, d_model)
    rate = check_rate(dropout_rate, "dropout_rate")
    return scaled_dot_product_attention(rows, keys, keys, mask, rate, rng=rng, **options)


def _two_of_width(query: ArrayLike, context: ArrayLike, d_model: int) -> tuple[Array, Array]:
    width = check_size(d_model, "d_model")
    rows, keys = _of_width(query, "query", width), _of_width(context, "context", width)
    if keys.ndim != rows.ndim or keys.shape[:-2] != rows.shape[:-2]:
        expected = ", ".join(str(n) for n in (*rows.shape[:-2], "key_len", width))
        raise ValueError(f"context: shape {keys.shape}, expected ({expected}) beside query {rows.shape}")
    return rows, keys


def _of_width(x: ArrayLike, name: str, d_model: int) -> Array:
    array = as_array(x, name)
    if array.ndim < 2 or array.shape[-1] != d_model:
        raise ValueError(f"{name}: shape {array.shape}, expected (…, seq, d_model = {d_model})")
    return array


def _differentiate(
    arguments: dict[str, Any], rows: dict[str, Array], owners: dict[str, str], wrt: tuple[str, ...]
) -> tuple[Any, Pullback]:
    """The rule of attention where each of query, key and value, ``rows``, is the argument that ``owners`` names."""
    needed = (*(name for name, owner in owners.items() if owner in wrt), *(name for name in wrt if name in _OPTIONS))
    keywords = {name: x for name, x in arguments.items() if name not in ("d_model", *owners.values())}
    results, pull = dense_attention({"need_weights": True, "return_lse": False, **keywords, **rows}, needed)

    def summed(d: tuple[Any, ...]) -> dict[str, Array]:
        found = dict(pull(d))
        for owner in dict.fromkeys(owners.values()):
            parts = [found.pop(name) for name, one in owners.items() if one == owner and name in found]
            if parts:
                found[owner] = reduce(np.add, parts)
        return found

    return results, summed


def _self_rule(arguments: dict[str, Any], wrt: tuple[str, ...]) -> tuple[Any, Pullback]:
    rows = _of_width(arguments["x"], "x", check_size(arguments["d_model"], "d_model"))
    return _differentiate(arguments, dict.fromkeys(ROWS, rows), dict.fromkeys(ROWS, "x"), wrt)


def _cross_rule(arguments: dict[str, Any], wrt: tuple[str, ...]) -> tuple[Any, Pullback]:
    rows, keys = _two_of_width(arguments["query"], arguments["context"], arguments["d_model"])
    owners = {"query": "query", "key": "context", "value": "context"}
    return _differentiate(arguments, {"query": rows, "key": keys, "value": keys}, owners, wrt)


_OPTIONS = ("bias", "alibi_slopes", "sinks", "relative_bias", "relative_values")
set_rule(self_attention, ("x", *_OPTIONS), _self_rule)
set_rule(cross_attention, ("query", "context", *_OPTIONS), _cross_rule)
