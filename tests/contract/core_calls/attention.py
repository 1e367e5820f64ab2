"""Calls of attention, its gradients and linear attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from contract.core_calls.attention_spec import spec, stored_keys
from contract.core_calls.call import Call
from headwise._base.attention_spec import AttentionSpec


def attention(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    batch, kv_heads = call.pick(0, 1, 2), call.pick(0, 1, 2, 3)
    heads, query_len, key_len = kv_heads * call.pick(1, 2), call.size(), call.size()
    head_dim, value_dim = call.size(), call.size()
    stored, scaling = stored_keys(call, dtype, (batch, kv_heads, key_len), (head_dim, value_dim))
    return (
        call.array(dtype, batch, heads, query_len, head_dim),
        call.array(stored, batch, kv_heads, key_len, head_dim),
        call.array(stored, batch, kv_heads, key_len, value_dim),
        call.array(dtype, batch, heads, query_len, value_dim),
        call.array(dtype, batch, heads, query_len, key_len, optional=True),
        call.array(accumulator, batch, heads, query_len, optional=True),
        spec(call, dtype, (batch, heads, query_len, key_len), scaling=scaling),
    )


def attention_backward(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    batch, kv_heads = call.pick(0, 1, 2), call.pick(0, 1, 2, 3)
    heads, query_len, key_len = kv_heads * call.pick(1, 2), call.size(), call.size()
    head_dim, value_dim = call.size(), call.size()
    query, key = (batch, heads, query_len, head_dim), (batch, kv_heads, key_len, head_dim)
    value, output = (batch, kv_heads, key_len, value_dim), (batch, heads, query_len, value_dim)
    scores = (batch, heads, query_len, key_len)
    description = spec(call, dtype, scores)
    whole = isinstance(description, tuple) and len(description) == len(AttentionSpec._fields)
    biases = description[7] if whole and isinstance(description[7], tuple) else ()
    d_slopes, d_sinks = (call.array(accumulator, heads, optional=True) for _ in range(2))
    return (
        call.array(dtype, *output),
        call.array(dtype, *query),
        call.array(dtype, *key),
        call.array(dtype, *value),
        call.array(dtype, *output),
        call.array(accumulator, *scores[:3]),
        call.array(accumulator, *scores[:3], optional=True),
        call.array(dtype, *scores, optional=True),
        call.array(dtype, *query, optional=True),
        call.array(dtype, *key, optional=True),
        call.array(dtype, *value, optional=True),
        call.tuple(*(call.array(accumulator, *(call.pick(1, n) for n in scores), optional=True) for _ in biases)),
        None if whole and description[8] is None and not call.spoilt() else d_slopes,
        None if whole and description[9] is None and not call.spoilt() else d_sinks,
        d_relative(call, accumulator, description[18] if whole else None),
        description,
    )


def d_relative(call: Call, dtype: np.dtype[Any], bias: Any) -> Any:
    """The gradient of a relative bias, or another array."""
    if not isinstance(bias, np.ndarray):
        return call.array(dtype, 1, 1, 1, 3) if call.spoilt() else None
    return call.array(dtype, *(call.pick(1, n) for n in bias.shape[:-1]), *bias.shape[-1:], optional=True)


def attention_varlen(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    kv_heads = call.pick(0, 1, 2)
    heads, queries, keys = kv_heads * call.pick(1, 2), call.size(), call.size()
    head_dim, value_dim, count = call.size(), call.size(), call.pick(0, 1, 2, 5)

    def ranges(rows: int) -> tuple[Any, Any]:
        cuts = np.sort(call.rng.integers(0, rows + 1, count + 1))
        return call.integers(cuts[:-1]), call.integers(np.diff(cuts))

    stored, scaling = stored_keys(call, dtype, (kv_heads, keys), (head_dim, value_dim))
    return (
        call.array(dtype, heads, queries, head_dim),
        call.array(stored, kv_heads, keys, head_dim),
        call.array(stored, kv_heads, keys, value_dim),
        call.array(dtype, heads, queries, value_dim),
        call.array(accumulator, heads, queries, optional=True),
        call.tuple(*ranges(queries), *ranges(keys), call.integers(call.rng.integers(-9, 9, count))),
        spec(call, dtype, (1, heads, queries, keys), masks=False, scaling=scaling),
    )


def attention_varlen_backward(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    kv_heads = call.pick(0, 1, 2)
    heads, queries, keys = kv_heads * call.pick(1, 2), call.size(), call.size()
    head_dim, value_dim, count = call.size(), call.size(), call.pick(0, 1, 2, 5)

    def ranges(rows: int) -> tuple[Any, Any]:
        cuts = np.sort(call.rng.integers(0, rows + 1, count + 1))
        return call.integers(cuts[:-1]), call.integers(np.diff(cuts))

    query, key = (heads, queries, head_dim), (kv_heads, keys, head_dim)
    value, output = (kv_heads, keys, value_dim), (heads, queries, value_dim)
    description = spec(call, dtype, (1, heads, queries, keys), masks=False)
    whole = isinstance(description, tuple) and len(description) == len(AttentionSpec._fields)
    d_slopes, d_sinks = (call.array(accumulator, count, heads, optional=True) for _ in range(2))
    return (
        *(call.array(dtype, *shape) for shape in (output, query, key, value, output)),
        call.array(accumulator, heads, queries),
        call.array(accumulator, heads, queries, optional=True),
        *(call.array(dtype, *shape, optional=True) for shape in (query, key, value)),
        None if whole and description[8] is None and not call.spoilt() else d_slopes,
        None if whole and description[9] is None and not call.spoilt() else d_sinks,
        call.tuple(*ranges(queries), *ranges(keys), call.integers(call.rng.integers(-9, 9, count))),
        description,
    )


def linear_attention(call: Call) -> tuple[Any, ...]:
    dtype, accumulator = call.float_type()
    batch, kv_heads, tokens = call.pick(0, 1, 2), call.pick(0, 1, 2, 3), call.size()
    heads, features, value_dim = kv_heads * call.pick(1, 2), call.size(), call.size()
    is_causal, normalize = call.pick(True, True, False), call.pick(True, False)
    queries = tokens if is_causal or call.chance(0.3) else call.size()
    state = (batch, kv_heads, features, value_dim + normalize)
    rates = [call.pick(1, size) for size in (batch, kv_heads, tokens)]
    wrong = call.spoilt()
    decay = call.array(accumulator, *rates, call.pick(1, features), optional=True) if is_causal or wrong else None
    beta = call.array(accumulator, *rates, optional=True) if is_causal or wrong else None
    return (
        call.array(dtype, batch, heads, queries, features),
        call.array(dtype, batch, kv_heads, tokens, features),
        call.array(dtype, batch, kv_heads, tokens, value_dim),
        decay,
        beta,
        call.array(accumulator, *state, optional=True),
        call.array(dtype, batch, heads, queries, value_dim),
        call.array(accumulator, *state),
        call.tuple(call.pick(True, False), normalize, is_causal, call.number(0.3), call.integer(call.pick(1, 5, 64))),
    )
