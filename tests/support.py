"""Shared by the test modules: error bounds, memory layouts, and attention calls with the oracle's results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

import headwise
import oracle

Array = NDArray[Any]

#: Max absolute error of a result of size about 1; 16-bit results add the rounding of RTOL.
ATOL = {"float16": 2e-6, "bfloat16": 2e-6, "float32": 2e-6, "float64": 1e-14}
#: Half an ulp of the 16-bit dtypes; for float32 and float64, enough for sums of a few hundred products.
RTOL = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2e-6, "float64": 1e-14}


#: Additional error of attention on bf16 targets: weights are two bf16 terms for float16 values, one for bfloat16
#: values.
BF16_SPLIT_ATOL = {
    "avx512_amx": {"float16": 2.0**-14, "bfloat16": 2.0**-7},
    "avx512_bf16": {"bfloat16": 2.0**-7},
}


def bf16_split_atol(dtype: str) -> float:
    """The additional error of the implementation in force."""
    return BF16_SPLIT_ATOL.get(headwise.config()["target"], {}).get(dtype, 0.0)


def dtype_named(name: str) -> np.dtype[Any]:
    """``np.dtype(name)``, where bfloat16 comes from ml_dtypes."""
    if name == "bfloat16":
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need the package ml_dtypes")
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def assert_close(actual: Array, expected: Array, factor: float = 1.0, more: float = 0.0) -> None:
    """``actual`` equals ``expected`` to ``factor`` times the bound of its dtype, and ``more``; NaN and infinities in
    place."""
    name = actual.dtype.name
    assert actual.shape == expected.shape
    np.testing.assert_allclose(
        oracle.double(actual), expected, rtol=RTOL[name] * factor, atol=ATOL[name] * factor + more, equal_nan=True
    )


def assert_rounded_once(actual: Array, expected: Array, *, rtol: float = 8e-6, atol: float = 0.0) -> None:
    """Each 16-bit number of ``actual`` is a number within ``rtol`` and ``atol`` of ``expected``, rounded to its
    dtype: within half an ulp, with subnormal numbers and overflow."""
    assert actual.dtype.itemsize == 2 and actual.shape == expected.shape
    with np.errstate(over="ignore", invalid="ignore"):
        margin = np.where(np.isfinite(expected), atol + rtol * np.abs(expected), 0)
        low, high = (oracle.double((expected + side * margin).astype(actual.dtype)) for side in (-1, 1))
    got = oracle.double(actual)
    wrong = ~((low <= got) & (got <= high) | np.isnan(expected) & np.isnan(got))
    assert not wrong.any(), f"{got[wrong][:4]}, expected {expected[wrong][:4]}, at {np.argwhere(wrong)[:4].tolist()}"


def normal(shape: tuple[int, ...], seed: int = 0, dtype: DTypeLike = np.float32) -> Array:
    """Unit-variance numbers that depend on nothing but the arguments."""
    return oracle.normal(np.random.default_rng([seed, *shape]), shape).astype(dtype)


@dataclass(eq=False)
class AttentionCase:
    """One attention call, and the oracle's answer to it, which all implementations share.

    The arrays are read-only, so that a write into an input fails.
    """

    query: tuple[int, ...]
    key: tuple[int, ...]
    value_dim: int
    keywords: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"

    @cached_property
    def arrays(self) -> list[Array]:
        shapes = self.query, self.key, (*self.key[:-1], self.value_dim)
        return [read_only(normal(shape, seed).astype(dtype_named(self.dtype))) for seed, shape in enumerate(shapes)]

    @cached_property
    def expected(self) -> oracle.Attention:
        return oracle.attention(*self.arrays, **self.keywords)

    def check(self, factor: float = 1.0) -> None:
        """Checks both functions: the one with weights, and the one without."""
        check_attention(self.arrays, self.keywords, self.expected, factor)


def check_attention(
    arrays: Sequence[Any], keywords: dict[str, Any], expected: oracle.Attention, factor: float = 1.0
) -> None:
    """Compares ``scaled_dot_product_attention`` and ``flash_attention`` with ``expected``."""
    output, weights, lse = headwise.scaled_dot_product_attention(*arrays, **keywords, return_lse=True)
    more = bf16_split_atol(output.dtype.name) * factor
    assert_close(weights, expected.weights, factor, more)
    assert_close(output, expected.output, factor, more)
    assert_close(lse, expected.lse, factor, more)
    assert lse.dtype == (np.float64 if output.dtype == np.float64 else np.float32)
    output, lse = headwise.flash_attention(*arrays, **keywords, return_lse=True)
    assert_close(output, expected.output, factor, more)
    assert_close(lse, expected.lse, factor, more)


def reversed_in_memory(x: Array) -> Array:
    """Negative strides along every axis."""
    backward = (slice(None, None, -1),) * x.ndim
    return np.ascontiguousarray(x[backward])[backward]


def transposed_in_memory(x: Array) -> Array:
    """The last two axes swapped in memory: the last is not contiguous."""
    return np.ascontiguousarray(np.swapaxes(x, -1, -2)).swapaxes(-1, -2)


def heads_inside(x: Array) -> Array:
    """``(batch, heads, seq, dim)`` as a view of ``(batch, seq, heads, dim)``."""
    return np.ascontiguousarray(np.swapaxes(x, -2, -3)).swapaxes(-2, -3) if x.ndim > 2 else x


def spaced(x: Array, axis: int) -> Array:
    """Every other entry along one axis of an array of twice the length, with NaN in between."""
    shape = list(x.shape)
    shape[axis] *= 2
    filler = np.full(shape, np.nan, x.dtype) if x.dtype.kind not in "biu" else np.ones(shape, x.dtype)
    view = np.moveaxis(np.moveaxis(filler, axis, 0)[::2], 0, axis)
    view[...] = x
    return view


def unaligned(x: Array) -> Array:
    """A copy that begins one byte past an aligned address."""
    buffer = np.empty(x.nbytes + 1, np.uint8)
    view = buffer[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def read_only(x: Array) -> Array:
    view = x.copy()
    view.flags.writeable = False
    return view


#: The same numbers, laid out differently, of two axes at least.
LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "contiguous": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "reversed": reversed_in_memory,
    "transposed": transposed_in_memory,
    "heads-inside": heads_inside,
    "every-other-row": lambda x: spaced(x, -2),
    "every-other-column": lambda x: spaced(x, -1),
    "unaligned": unaligned,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder("S")),
    "read-only": read_only,
}


def laid_out(layout: str) -> Callable[[Array], Array]:
    """``LAYOUTS[layout]``, also for arrays of one axis, which become a column of an array of that layout."""

    def lay(x: Array) -> Array:
        return LAYOUTS[layout](x) if x.ndim > 1 else LAYOUTS[layout](np.stack([x, x], -1))[:, 0]

    return lay
