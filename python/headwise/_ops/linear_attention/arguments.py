"""The arguments of linear attention: checks, and the arrays and the spec that a backend takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.arrays import as_array, cast_layout, check_dtype, is_canonical_or_16bit, promote
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.linear_attention_spec import RULES, LinearAttentionSpec
from headwise._base.messages import shown
from headwise._base.scalars import check_flag, check_real, check_size
from headwise._base.typing import FLOAT32
from headwise._ops.attention.call import with_heads
from headwise._ops.attention.shapes import check_shapes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array, Shape

#: Tokens of a chunk by default.
CHUNK = 64


class Options(NamedTuple):
    """The keywords of the public function, as they are given."""

    feature_map: Any
    normalize: Any
    scale: Any
    is_causal: Any
    decay: ArrayLike | None
    beta: ArrayLike | None
    rule: Any
    state: ArrayLike | None
    chunk: Any


class Call(NamedTuple):
    """A checked call. The arrays are as a backend takes them; see ``Backend.linear_attention``."""

    query: Array
    key: Array
    value: Array
    decay: Array | None
    beta: Array | None
    state: Array | None
    spec: LinearAttentionSpec
    dtype: np.dtype[Any]  # of the output
    stored: np.dtype[Any]  # of the arrays of a backend
    compute: np.dtype[Any]
    output_shape: Shape  # in the caller's rank, as the next
    state_shape: Shape


def check_call(query: ArrayLike, key: ArrayLike, value: ArrayLike, options: Options) -> Call:
    """The :class:`Call` of the arguments of :func:`headwise.linear_attention`."""
    q, k, v = as_array(query, "query"), as_array(key, "key"), as_array(value, "value")
    ready = is_canonical_or_16bit(q, k, v)
    dtype = q.dtype
    compute = FLOAT32 if q.itemsize == 2 else dtype
    if not ready:
        compute, dtype = promote(("query", q), ("key", k), ("value", v))
    shape = check_shapes(q.shape, k.shape, v.shape)
    rule = _check_rule(options)
    is_causal = check_flag(options.is_causal, "is_causal") or rule != "linear"
    if is_causal and q.shape[-2] != k.shape[-2]:
        raise ValueError(
            f"key: shape {k.shape} does not match query {q.shape}: key_len is {k.shape[-2]}, expected query_len, "
            f"{q.shape[-2]}, because each token updates the state once (is_causal=True or a rule other than 'linear')"
        )
    function = check_feature_map(options.feature_map)
    stored = dtype if dtype.itemsize == 2 and function is None else compute
    normalize = options.feature_map is not None
    if options.normalize is not None:
        normalize = check_flag(options.normalize, "normalize")
    scale = check_real(options.scale, "scale")
    chunk = CHUNK if options.chunk is None else check_size(options.chunk, "chunk")
    decay, beta = _check_rates(options, k.shape, compute)
    if function is not None:
        q, k = _mapped(function, q, k, compute)
        if decay is not None and decay.shape[-1] not in (1, k.shape[-1]):
            raise ValueError(
                f"decay: {decay.shape[-1]} decays a token, expected one or, as feature_map gives, {k.shape[-1]}"
            )
    if not ready or function is not None:
        q, k, v = (cast_layout(a, stored, last=True) for a in (q, k, v))
    state_shape = (*k.shape[:-2], k.shape[-1], v.shape[-1] + normalize)
    state = None if options.state is None else _check_state(options.state, state_shape, compute)
    spec = LinearAttentionSpec(options.feature_map == "elu", normalize, is_causal, scale, chunk)
    if q.ndim != 4:
        q, k, v = with_heads(q), with_heads(k), with_heads(v)
    return Call(q, k, v, decay, beta, state, spec, dtype, stored, compute, shape.output, state_shape)


def check_rule(rule: object) -> str:
    """The name of a rule."""
    if not isinstance(rule, str):
        raise TypeError(f"rule: {shown(rule)} of type {type(rule).__name__}, expected one of {', '.join(RULES)}")
    if rule not in RULES:
        raise ValueError(f"rule: {shown(rule)}, expected one of {', '.join(RULES)}")
    return rule


def _check_rule(options: Options) -> str:
    rule = check_rule(options.rule)
    if (options.decay is not None, options.beta is not None) == RULES[rule]:
        return rule
    for name, needed in zip(("decay", "beta"), RULES[rule], strict=True):
        given = getattr(options, name) is not None
        if given != needed:
            fitting = " or ".join(repr(r) for r, needs in RULES.items() if needs[name == "beta"] == given)
            raise ValueError(
                f"{name}: {'given' if given else 'None'} with rule {rule!r}, expected "
                f"{'None' if given else 'an array'}, or rule {fitting}"
            )
    return rule


def check_feature_map(feature_map: object) -> Callable[[Array], Any] | None:
    """The function of the caller; None for "elu", which backends compute, and for None."""
    if feature_map is None or (isinstance(feature_map, str) and feature_map == "elu"):
        return None
    if callable(feature_map):
        return feature_map
    kind = ValueError if isinstance(feature_map, str) else TypeError
    raise kind(f"feature_map: {shown(feature_map)}, expected 'elu', None or a function of an array")


def _mapped(function: Callable[[Array], Any], q: Array, k: Array, compute: np.dtype[Any]) -> tuple[Array, Array]:
    """What the caller's feature map makes of query and key, not rounded to a 16-bit dtype."""
    results = []
    for name, a in (("query", q), ("key", k)):
        mapped = as_array(function(cast_layout(a, compute)), "feature_map")
        check_dtype(mapped.dtype, "feature_map")
        if mapped.ndim != a.ndim or mapped.shape[:-1] != a.shape[:-1] or not mapped.shape[-1]:
            raise ValueError(
                f"feature_map: returned shape {mapped.shape} for {name}, expected {a.shape[:-1]} and a last axis of "
                "features"
            )
        results.append(cast_layout(mapped, compute, last=True))
    if results[0].shape[-1] != results[1].shape[-1]:
        raise ValueError(
            f"feature_map: returned {results[1].shape[-1]} features for key, expected as many as for query, "
            f"{results[0].shape[-1]}"
        )
    return results[0], results[1]


def _check_rates(options: Options, key: Shape, compute: np.dtype[Any]) -> tuple[Array | None, Array | None]:
    """``decay`` and ``beta`` with four axes (batch or 1, kv_heads or 1, key_len or 1, n) and three."""
    decay = beta = None
    if options.decay is not None:
        decay = _spread(options.decay, "decay", key, compute)
        check_decay(decay)
    if options.beta is not None:
        beta = _spread(options.beta, "beta", key, compute)[..., 0]
    return decay, beta


@ieee
def check_decay(decay: Array) -> None:
    inside = (decay > 0) & (decay <= 1)
    if not inside.all():
        raise ValueError(f"decay: {decay[~inside].flat[0]}, expected factors in (0, 1]; exp(decay) of logarithms")


def _spread(given: ArrayLike, name: str, key: Shape, compute: np.dtype[Any]) -> Array:
    """An array of rates as (batch or 1, kv_heads or 1, key_len or 1, 1 or, for ``decay``, head_dim).

    Its rank says what its axes are: none; (kv_heads,) with keys of four axes and more; the axes of the key without the
    last; or all of them.
    """
    a = as_array(given, name)
    if len(key) == 4 and a.shape == key[:-1] and a.dtype == compute:  # one for each token: decoding calls this often
        return cast_layout(a, compute).reshape((*a.shape, 1))
    own, rank = rate_axes(a, name, key), len(key)
    a = cast_layout(a, compute).reshape(own)
    if rank < 4:
        return with_heads(a)
    lead = own[:-3]
    if math.prod(lead) > 1 and lead != key[:-3]:
        a = np.broadcast_to(a, (*key[:-3], *own[-3:]))
    return a.reshape((math.prod(a.shape[:-3]), *own[-3:]))


def rate_axes(a: Array, name: str, key: Shape) -> Shape:
    """The shape of an array of rates with all axes of the key, of which those that it has not are 1."""
    check_dtype(a.dtype, name)
    rank, last = len(key), key[-1] if name == "decay" else 1
    full = (*key[:-1], last)
    own = None
    if a.ndim == 0:
        own = (1,) * rank
    elif a.ndim == rank:
        own = a.shape
    elif a.ndim == rank - 1:
        own = (*a.shape, 1)
    elif a.ndim == 1 and rank > 3:
        own = (*(1,) * (rank - 3), len(a), 1, 1)
    if own is None or any(size not in (1, whole) for size, whole in zip(own, full, strict=True)):
        heads = f"({key[-3]},), " if rank > 3 else ""
        every = f" or {(*key[:-1], last)}" if name == "decay" else ""
        raise ValueError(f"{name}: shape {a.shape}, expected (), {heads}{key[:-1]}{every} for key {key}; axes may be 1")
    return own


def _check_state(given: ArrayLike, shape: Shape, compute: np.dtype[Any]) -> Array:
    a = as_array(given, "state")
    check_dtype(a.dtype, "state")
    if a.shape != shape:
        raise ValueError(f"state: shape {a.shape}, expected {shape}, that of the state which such a call returns")
    a = cast_layout(cast_dtype(a, compute), compute, last=True)
    return state_with_heads(a, len(shape))


def state_with_heads(state: Array, rank: int) -> Array:
    """A state of ``rank`` axes as (batch, kv_heads, features, value columns)."""
    return state if rank == 4 else with_heads(state)
