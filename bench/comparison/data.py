"""The arrays of a case."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from comparison.cases import Attention, Case, Elementwise, LayerNorm, Linear, MultiHead, RmsNorm, Rope, Swiglu, Varlen

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, Any]


def make_data(case: Case, seed: int = 0) -> SimpleNamespace:
    """The arrays of a case: the same values for the same seed."""
    rng = np.random.default_rng(seed)
    dtype = _dtype(case.dtype)
    drawn = np.float64 if case.dtype == "float64" else np.float32

    def normal(*shape: int, scale: float = 1.0) -> Array:
        return np.multiply(rng.standard_normal(shape, dtype=drawn), scale, dtype=drawn).astype(dtype, copy=False)

    if isinstance(case, Attention):
        batch, heads, _, head_dim = case.shape
        key_shape = (batch, case.kv_heads or heads, case.keys, head_dim)
        query, key, value = normal(*case.shape), normal(*key_shape), normal(*key_shape)
        slopes = (2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)).astype(dtype)
        mask = _dense_mask(case, slopes, rng, normal)
        return SimpleNamespace(query=query, key=key, value=value, slopes=slopes, mask=mask)
    if isinstance(case, Varlen):
        heads, head_dim = case.shape[1], case.shape[3]
        starts = np.cumsum([0, *case.lengths])
        packed = [normal(int(starts[-1]), heads, head_dim) for _ in range(3)]
        return SimpleNamespace(packed=packed, starts=starts, kept=np.arange(case.shape[2]) < np.c_[case.lengths])
    if isinstance(case, MultiHead):
        width = case.shape[-1]
        weights = [normal(width, width, scale=width**-0.5) for _ in range(4)]
        return SimpleNamespace(x=normal(*case.shape), weights=weights, biases=[normal(width) for _ in range(4)])
    if isinstance(case, Linear):
        rows, inner, columns = case.shape
        weight = normal(inner, columns, scale=inner**-0.5)
        return SimpleNamespace(x=normal(rows, inner), weight=weight, bias=normal(columns))
    x = normal(*case.shape)
    data = SimpleNamespace(x=x, out=np.zeros_like(x) if isinstance(case, Elementwise) and case.out else None)
    if isinstance(case, Rope):
        _, _, seq_len, dim = case.shape
        angles = np.arange(seq_len)[:, None] * 10000.0 ** (-2.0 * np.arange(dim // 2) / dim)
        data.cos, data.sin = np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)
    if isinstance(case, (LayerNorm, RmsNorm)):
        data.gamma, data.beta = normal(case.shape[-1]), normal(case.shape[-1])
    if isinstance(case, Swiglu):
        data.up = normal(*case.shape)
    return data


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes  # defines bfloat16 for NumPy; an optional package

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _dense_mask(case: Attention, slopes: Array, rng: np.random.Generator, normal: Callable[..., Array]) -> Array | None:
    """Make the mask for libraries without an argument for the option: booleans (true keeps a pair) or numbers to add.

    Plain causality is not included: every library has an argument for it.
    """
    _, heads, query_len, _ = case.shape
    queries, keys = np.arange(query_len)[:, None], np.arange(case.keys)
    if case.window:
        return (keys <= queries) & (keys > queries - case.window)
    if case.extra == "boolean mask":
        return rng.random((query_len, case.keys)) < 0.75
    if case.extra == "bias":
        return normal(1, heads, query_len, case.keys)
    if case.extra == "key padding":
        return (keys < np.array(case.lengths)[:, None])[:, None, None]
    if case.extra == "ALiBi":
        return -slopes[None, :, None, None] * abs(queries - keys).astype(slopes.dtype)
    return None
