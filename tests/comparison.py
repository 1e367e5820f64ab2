"""The outcomes of one call on two backends: equal results, to the bound of their dtype, or the same error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import oracle
from implementations import choose

#: Bounds for results of size 1 to 10, of sums of a hundred products and more.
BOUNDS = {"float64": 1e-12, "float32": 2e-5, "float16": 4e-3, "bfloat16": 4e-2}
#: For each unit of the largest product that a gradient may cancel: 8 units in the last place, of 16-bit types 4.
PRODUCT_BOUNDS = {"float64": 2e-15, "float32": 1e-6, "float16": 4e-3, "bfloat16": 4e-2}
#: Additional bounds for the bf16 splits of the precision levels.
BF16_SPLIT_BOUNDS = {"native-avx512_amx": {"high": 1e-3, "medium": 1e-1}, "native-avx512_bf16": {"medium": 1e-1}}


def outcome(call: Callable[[], Any]) -> Any:
    """The result of a call, or its error."""
    try:
        return call()
    except Exception as error:
        return error


def assert_same(got: Any, expected: Any, bound: float = 0.0) -> None:
    """Compares type and message of errors; type, shape, dtype, NaN, infinities and numbers of arrays."""
    assert type(got) is type(expected), f"{got!r}, NumPy {expected!r}"
    if isinstance(got, Exception):
        assert str(got) == str(expected)
    elif isinstance(got, (tuple, list)):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other, bound)
    elif isinstance(got, dict):
        assert_same(list(got.items()), list(expected.items()), bound)
    elif isinstance(got, (np.ndarray, np.generic)):
        assert got.dtype == expected.dtype and got.shape == expected.shape
        exact = got.dtype.name not in BOUNDS
        near = 0.0 if exact else BOUNDS[got.dtype.name] + bound
        with np.errstate(all="ignore"):
            finite = np.abs(oracle.double(expected[np.isfinite(expected)])) if got.ndim and not exact else np.zeros(0)
        size = max(1.0, finite.max(initial=0.0))
        np.testing.assert_allclose(oracle.double(got), oracle.double(expected), rtol=near, atol=near * size)
    else:
        assert got == expected or (np.isnan(got) and np.isnan(expected))


def largest(array: object) -> float:
    """The largest finite magnitude of an array, at least 1."""
    if not isinstance(array, np.ndarray) or array.dtype.name not in BOUNDS or array.size > 10**6:
        return 1.0
    return float(np.abs(oracle.double(array[np.isfinite(array)])).max(initial=1.0))


def score_rounding(arguments: Mapping[str, Any]) -> float:
    """The error of weights when float32 rounds scores that large finite biases are added to."""
    biases = (arguments[name] for name in ("bias", "mask", "key_padding_mask") if name in arguments)
    return 4 * float(np.finfo(np.float32).eps) * min(sum(map(largest, biases)), 1e5)


def gradient_rounding(arguments: Mapping[str, Any]) -> float:
    """The error of gradients of attention: differences of products of output gradients and values, which may cancel, of
    weights whose scores are rounded. Gradients by float64 slopes beside float32 arrays are computed in float32, too.
    """
    if "d_output" not in arguments:
        return 0.0
    d_output, query, key, value = (arguments[name] for name in ("d_output", "query", "key", "value"))
    dtypes = [a.dtype.name for a in (query, key, value) if isinstance(a, np.ndarray)]
    near = min((PRODUCT_BOUNDS.get(name, 0.0) for name in dtypes), default=0.0)
    scale = arguments.get("scale")
    score = largest(query) * largest(key) * (max(1.0, abs(scale)) if isinstance(scale, (int, float)) else 1.0)
    values = max(largest(value), largest(arguments.get("relative_values")))
    return near * largest(d_output) * values * score**2


def has_other_numbers(array: object) -> bool:
    """Whether an array has NaN or infinities."""
    if not isinstance(array, np.ndarray) or array.dtype.name not in BOUNDS or array.size > 10**6:
        return False
    return not np.isfinite(array).all()


def is_spread_by_rounding(arguments: Mapping[str, Any]) -> bool:
    """Whether NaN and infinities reach a gradient or not by rounding: the backends round weights, and the slopes of a
    softcap, to 0 at different sizes, and what is multiplied by 0 may be left out."""
    if "d_output" not in arguments:
        return False
    options = [arguments.get(name) for name in ("softcap", "alibi_slopes", "bias", "relative_bias", "scale")]
    mask = arguments.get("mask")
    if isinstance(mask, np.ndarray) and mask.dtype.name in BOUNDS:  # numbers to add, and no choice of keys
        options.append(mask)
    return any(option is not None for option in options) and any(map(has_other_numbers, arguments.values()))


def defined_parts(got: Any, expected: Any) -> tuple[Any, Any]:
    """Both results, of which entries that either of them does not have as a number are left out as NaN."""
    if isinstance(got, (tuple, list)) and isinstance(expected, (tuple, list)) and len(got) == len(expected):
        pairs = [defined_parts(*pair) for pair in zip(got, expected, strict=True)]
        return [one for one, _ in pairs], [other for _, other in pairs]
    if isinstance(got, np.ndarray) and isinstance(expected, np.ndarray) and got.shape == expected.shape:
        missing = ~(np.isfinite(oracle.double(got)) & np.isfinite(oracle.double(expected)))
        got, expected = got.copy(), expected.copy()
        got[missing] = expected[missing] = np.nan
    return got, expected


def both(native: str, call: Callable[[], Any], arguments: Mapping[str, Any] | None = None) -> None:
    """``call``, with these arguments, on NumPy and on the implementation ``native`` has the same outcome."""
    arguments = arguments or {}
    precision = arguments.get("precision")
    bound = BF16_SPLIT_BOUNDS.get(native, {}).get(precision, 0.0) if isinstance(precision, str) else 0.0
    choose("numpy")
    expected = outcome(call)
    choose(native)
    got = outcome(call)
    if is_spread_by_rounding(arguments):
        got, expected = defined_parts(got, expected)
    assert_same(got, expected, bound + score_rounding(arguments) + gradient_rounding(arguments))
