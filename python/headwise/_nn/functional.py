"""Multi-head attention as functions.

Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762, section 3.2.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast, overload

from headwise._base.arrays import as_array
from headwise._base.scalars import check_rate, check_rng, check_size
from headwise._nn.gradients import NAMES, multi_head_vjp
from headwise._nn.layers import MultiHeadAttention, prepare
from headwise._nn.multi_head import (
    Block,
    Call,
    Heads,
    check_heads,
    check_keywords,
    check_sequences,
    glorot_uniform,
    multi_head,
)
from headwise._nn.projections import GivenProjections
from headwise._ops.attention.options import FunctionOptions
from headwise._ops.gradients.attention import ROWS
from headwise._ops.gradients.results import finish
from headwise._ops.gradients.vjp import set_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from numpy.typing import ArrayLike
    from typing_extensions import Unpack

    from headwise._base.typing import Array, Rng
    from headwise._nn.multi_head import Inputs
    from headwise._ops.attention.options import AttentionOptions
    from headwise._ops.gradients.vjp import Pullback

    Parameters: TypeAlias = MultiHeadAttention | Mapping[str, ArrayLike]

__all__ = ["MultiHeadOptions", "multi_head_attention", "multi_head_self_attention"]


class MultiHeadOptions(FunctionOptions, total=False):
    """The keywords of the functions below except ``need_weights`` and ``return_lse``, which decide what is returned:
    overloads name them beside these."""

    params: Parameters | None


@overload
def multi_head_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, num_heads: int, d_model: int,
    mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[True] = True, return_lse: Literal[False] = False, **options: Unpack[MultiHeadOptions],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def multi_head_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, num_heads: int, d_model: int,
    mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[False], return_lse: Literal[False] = False, **options: Unpack[MultiHeadOptions],
) -> tuple[Array, None]: ...  # fmt: skip
@overload
def multi_head_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, num_heads: int, d_model: int,
    mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: Literal[True], **options: Unpack[MultiHeadOptions],
) -> tuple[Array, Any, Array]: ...  # fmt: skip
@overload
def multi_head_attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, num_heads: int, d_model: int,
    mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: bool = False, **options: Unpack[MultiHeadOptions],
) -> tuple[Any, ...]: ...  # fmt: skip
def multi_head_attention(  # noqa: PLR0913 (public)
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    num_heads: int,
    d_model: int,
    mask: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    *,
    params: Parameters | None = None,
    rng: Rng = None,
    **options: Unpack[AttentionOptions],
) -> tuple[Any, ...]:
    """Multi-head attention with projections that are given or drawn.

    Projects query, key and value to ``num_heads`` heads, attends in each head, and projects the concatenated heads
    [1]_.

    Parameters
    ----------
    query : array_like, (batch, query_len, query_width) or (query_len, query_width)
        The widths of ``query``, ``key`` and ``value`` may differ from ``d_model``, to which they are projected.
    key : array_like, (batch, key_len, key_width) or (key_len, key_width)
    value : array_like, (batch, key_len, value_width) or (key_len, value_width)
    num_heads : int
        Number of heads, a divisor of ``d_model``.
    d_model : int
        Width of all heads together, and of the output.
    mask : array_like, optional
        ``(query_len, key_len)``, ``(batch, query_len, key_len)`` or ``(batch, heads, query_len, key_len)``, or
        ``(batch, key_len)`` from :func:`headwise.create_padding_mask`; see :meth:`headwise.MultiHeadAttention.forward`.
    dropout_rate : float
        Rate in [0, 1) of the dropout of attention weights.
    params : MultiHeadAttention or mapping, optional
        The projections ``W_q`` (query_width, d_model), ``W_k`` (key_width, d_model), ``W_v`` (value_width, d_model) and
        ``W_o`` (d_model, d_model), applied as ``x @ W``. A layer also provides its biases, key and value heads,
        positions, causality and default keywords. By default they are drawn uniformly as in Glorot & Bengio (2010).
    rng : int or numpy.random.Generator, optional
        Draws the projections and the dropout; a seed makes the call reproducible.
    **options
        The other keywords of :func:`headwise.scaled_dot_product_attention`, as for
        :meth:`headwise.MultiHeadAttention.forward`.

    Returns
    -------
    output : ndarray, (batch, query_len, d_model) or (query_len, d_model)
        Of the floating dtype of the inputs; float16 and bfloat16 are computed in float32, projections included, and
        rounded once.
    weights : ndarray, (batch, num_heads, query_len, key_len) or (num_heads, query_len, key_len), or None
        Before dropout; None with ``need_weights=False``.
    lse : ndarray, (batch, num_heads, query_len) or (num_heads, query_len)
        Only with ``return_lse=True``.

    Raises
    ------
    ValueError
        If ``d_model`` is not divisible by ``num_heads``, or a shape, a rate or ``params`` do not fit.
    TypeError
        If an argument has a wrong type.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017, section 3.2.2.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 32))
    >>> output, weights = hw.multi_head_attention(x, x, x, num_heads=8, d_model=64, rng=0)
    >>> output.shape, weights.shape
    ((2, 5, 64), (2, 8, 5, 5))
    """
    inputs = check_sequences(query, key, value)
    call = Call(mask, check_rate(dropout_rate, "dropout_rate"), check_rng(rng))
    return multi_head(inputs, *_prepare(inputs, num_heads, d_model, params, call, options))


def _prepare(
    inputs: Inputs, num_heads: object, d_model: object, params: Any, call: Call, options: AttentionOptions
) -> tuple[Block, Call, AttentionOptions]:
    """The parameters of a call, and its keywords with those of a layer that is given as ``params``."""
    check_keywords(options, "mask", "dropout_rate", "params", "rng")
    if isinstance(params, MultiHeadAttention):  # whose heads need not divide its width
        width, heads = check_size(d_model, "d_model"), check_size(num_heads, "num_heads")
        if (params.num_heads, params.d_model) != (heads, width):
            raise ValueError(
                f"params: a layer with num_heads = {params.num_heads} and d_model = {params.d_model}, "
                f"expected {heads} and {width}"
            )
        block, options = prepare(params, inputs, options)
        return block, call, options
    width, heads = check_heads(d_model, num_heads)
    if params is None:
        generator = check_rng(call.rng)
        rows = zip(("W_q", "W_k", "W_v", "W_o"), (*(x.shape[-1] for x in inputs), width), strict=True)
        given = GivenProjections({name: glorot_uniform(generator, n, width) for name, n in rows})
    else:
        given = GivenProjections.of(params, width)
    return Block(Heads(given.widths, width, heads, heads, width // heads), given), call, options


@overload
def multi_head_self_attention(
    x: ArrayLike, num_heads: int, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[True] = True, return_lse: Literal[False] = False, **options: Unpack[MultiHeadOptions],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def multi_head_self_attention(
    x: ArrayLike, num_heads: int, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: Literal[False], return_lse: Literal[False] = False, **options: Unpack[MultiHeadOptions],
) -> tuple[Array, None]: ...  # fmt: skip
@overload
def multi_head_self_attention(
    x: ArrayLike, num_heads: int, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: Literal[True], **options: Unpack[MultiHeadOptions],
) -> tuple[Array, Any, Array]: ...  # fmt: skip
@overload
def multi_head_self_attention(
    x: ArrayLike, num_heads: int, d_model: int, mask: ArrayLike | None = None, dropout_rate: float = 0.0, *,
    need_weights: bool = True, return_lse: bool = False, **options: Unpack[MultiHeadOptions],
) -> tuple[Any, ...]: ...  # fmt: skip
def multi_head_self_attention(
    x: ArrayLike,
    num_heads: int,
    d_model: int,
    mask: ArrayLike | None = None,
    dropout_rate: float = 0.0,
    *,
    params: Parameters | None = None,
    rng: Rng = None,
    **options: Unpack[AttentionOptions],
) -> tuple[Any, ...]:
    """Multi-head attention of a sequence to itself: :func:`multi_head_attention` with one input.

    Parameters
    ----------
    x : array_like, (batch, seq, width) or (seq, width)
        Query, key and value.
    num_heads : int
        Number of heads, a divisor of ``d_model``.
    d_model : int
        Width of all heads together, and of the output.
    mask : array_like, optional
        ``(seq, seq)``, ``(batch, seq, seq)`` or ``(batch, heads, seq, seq)``, or ``(batch, seq)`` from
        :func:`headwise.create_padding_mask`; see :meth:`headwise.MultiHeadAttention.forward`.
    dropout_rate : float
        Rate in [0, 1) of the dropout of attention weights.
    params : MultiHeadAttention or mapping, optional
        The projections ``W_q``, ``W_k``, ``W_v`` (width, d_model) and ``W_o`` (d_model, d_model), as for
        :func:`multi_head_attention`; drawn by default.
    rng : int or numpy.random.Generator, optional
        Draws the projections and the dropout; a seed makes the call reproducible.
    **options
        The other keywords of :func:`headwise.scaled_dot_product_attention`, as for :func:`multi_head_attention`.

    Returns
    -------
    output : ndarray, (batch, seq, d_model) or (seq, d_model)
    weights : ndarray, (batch, num_heads, seq, seq) or (num_heads, seq, seq), or None
        Before dropout; None with ``need_weights=False``.
    lse : ndarray, (batch, num_heads, seq) or (num_heads, seq)
        Only with ``return_lse=True``.

    Raises
    ------
    ValueError, TypeError
        As :func:`multi_head_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 64))
    >>> output, weights = hw.multi_head_self_attention(x, num_heads=8, d_model=64, is_causal=True, rng=0)
    >>> output.shape, weights.shape
    ((2, 5, 64), (2, 8, 5, 5))
    """
    rows = _check_x(x)
    return multi_head_attention(
        rows, rows, rows, num_heads, d_model, mask, dropout_rate, params=params, rng=rng, **options
    )


def _check_x(x: ArrayLike) -> Array:
    rows = as_array(x, "x")
    if rows.ndim not in (2, 3):
        raise ValueError(f"x: shape {rows.shape}, expected (batch, seq, width) or (seq, width)")
    return rows


def _differentiate(
    arguments: dict[str, Any], rows: tuple[str, ...], wrt: tuple[str, ...]
) -> tuple[Any, Callable[[tuple[Any, ...]], dict[str, Any]]]:
    """The rule of :func:`multi_head_attention`, and of self-attention, where ``rows`` is ("query",) alone.

    The gradient by ``params`` is a dict of those by the projections.
    """
    query, key, value, num_heads, d_model, mask, rate, params, rng = (
        arguments.pop(name)
        for name in ("query", "key", "value", "num_heads", "d_model", "mask", "dropout_rate", "params", "rng")
    )
    if "params" in wrt and isinstance(params, MultiHeadAttention):
        raise TypeError("wrt: 'params', which is a layer, expected a mapping; a layer has layer.vjp(x, ...)")
    inputs, options = check_sequences(query, key, value), cast("AttentionOptions", arguments)
    call = Call(mask, check_rate(rate, "dropout_rate"), check_rng(rng))
    asked = tuple(name for name in wrt if name != "params")
    given = inputs._asdict() | {name: as_array(arguments[name], name) for name in asked if name not in ROWS}
    block, call, options = _prepare(inputs, num_heads, d_model, params, call, options)
    results, pull = multi_head_vjp(inputs, rows, block, call, options, asked)
    weights = {name: as_array(w, name) for name, w in params.items()} if "params" in wrt else {}

    def pullback(d: tuple[Any, ...]) -> dict[str, Any]:
        found = pull(*d)
        gradients: dict[str, Any] = {
            name: finish(found.arguments[name].reshape(given[name].shape), given[name], results[0].dtype)
            for name in asked
        }
        if weights:
            gradients["params"] = {
                name: finish(found.parameters[name], w, results[0].dtype) for name, w in weights.items()
            }
        return gradients

    return results, pullback


def _multi_head_rule(arguments: dict[str, Any], wrt: tuple[str, ...]) -> tuple[Any, Pullback]:
    return _differentiate(arguments, ROWS, wrt)


def _multi_head_self_rule(arguments: dict[str, Any], wrt: tuple[str, ...]) -> tuple[Any, Pullback]:
    x = _check_x(arguments.pop("x"))
    names = tuple("query" if name == "x" else name for name in wrt)
    results, pull = _differentiate({**arguments, "query": x, "key": x, "value": x}, ROWS[:1], names)

    def pullback(d: tuple[Any, ...]) -> dict[str, Any]:
        return {"x" if name == "query" else name: gradient for name, gradient in pull(d).items()}

    return results, pullback


set_rule(multi_head_attention, (*NAMES, "params"), _multi_head_rule)
set_rule(multi_head_self_attention, ("x", *NAMES[3:], "params"), _multi_head_self_rule)
