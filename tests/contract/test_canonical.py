"""Canonical arrays (see ``is_canonical``) skip the conversion of arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest

import headwise as hw
from calls import Sizes, cast, changed
from headwise._base.arrays import cast_layout, is_canonical, promote
from headwise._base.attention_spec import AttentionSpec
from operations import cases
from support import LAYOUTS, normal, read_only, unaligned


class Subclass(np.ndarray):
    pass


X = normal((2, 4, 9, 12))
KEY, VALUE = normal((2, 2, 5, 12), 3), normal((2, 2, 5, 7), 4)

SIZES = Sizes((2, 4), 2, 9, 5, 12, 7)
CASES = {str(case): (case, SIZES) for case in cases(short=True, where=lambda operation: operation.computed)}
CASES["flash_attention-rank-3"] = CASES["flash_attention"][0], SIZES._replace(lead=(2,))
#: The cases that recognise canonical arrays and skip the promotion of dtypes.
RECOGNISE = [name for name, (case, _) in CASES.items() if case.operation.name not in ("add_alibi", "packed_linear")]
#: The same numbers in arrays that are converted to contiguous ones.
CONVERTED: dict[str, Callable[[np.ndarray], Any]] = {
    "read-only": read_only,
    "unaligned": unaligned,
    "byte-swapped": LAYOUTS["byte-swapped"],
    "list": list,
    "subclass": lambda x: x.view(Subclass),
    "matrix": lambda x: x.view(np.matrix) if x.ndim == 2 else x.view(Subclass),
    "fortran": np.asfortranarray,
}


def results(name: str, lay: Callable[[np.ndarray], Any], dtype: Any = np.float32) -> tuple[np.ndarray, ...]:
    case, sizes = CASES[name]
    return case.run(changed(cast(case.arguments(sizes), dtype), lay))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("way", CONVERTED)
@pytest.mark.parametrize("name", CASES)
def test_converted_arrays_give_the_same_bits(name: str, way: str, dtype: Any) -> None:
    if name.startswith(("linear", "packed_linear")) and way == "fortran":
        pytest.skip("a weight with its other axis contiguous is another product")
    direct = results(name, np.ascontiguousarray, dtype)
    converted = results(name, lambda x: CONVERTED[way](np.ascontiguousarray(x)), dtype)
    for one, other in zip(direct, converted, strict=True):
        assert type(one) is type(other) is np.ndarray
        assert one.dtype == other.dtype == dtype and one.dtype.isnative
        assert one.shape == other.shape and one.tobytes() == other.tobytes()


def calls(function: Callable[..., Any], run: Callable[[], Any]) -> int:
    """The number of calls of ``function``, a Python function, by ``run`` in this thread."""
    count = 0

    def look(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code is function.__code__

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("name", RECOGNISE)
def test_canonical_arrays_skip_promotion(name: str) -> None:
    assert calls(promote, lambda: results(name, np.ascontiguousarray)) == 0
    assert calls(promote, lambda: results(name, read_only)) > 0


PLAIN: dict[str, np.ndarray] = {
    "float32": X,
    "float64": X.astype(np.float64),
    "no axes": np.array(1.0),
    "no entries": np.empty((3, 0, 4)),
    "one entry": np.empty((5, 5))[1:2, 1:2],
    "rows of a larger one": X[1:],
}
OTHERS: dict[str, np.ndarray] = {name: LAYOUTS[name](X) for name in LAYOUTS if name != "contiguous"} | {
    "broadcast": np.broadcast_to(X[:1], X.shape),
    **{dtype: X.astype(dtype) for dtype in ("float16", "longdouble", "int32", "uint8", "bool", "complex64", "object")},
}


@pytest.mark.single_implementation
@pytest.mark.parametrize("name", PLAIN)
def test_canonical_arrays(name: str) -> None:
    a = PLAIN[name]
    assert is_canonical(a) and is_canonical(a, a, np.empty(3, a.dtype))
    assert promote(("x", a)) == (a.dtype, a.dtype)
    assert a.size == 0 or cast_layout(a, a.dtype, last=True) is a


@pytest.mark.single_implementation
@pytest.mark.parametrize("name", OTHERS)
def test_arrays_that_are_not_canonical(name: str) -> None:
    a = OTHERS[name]
    assert not is_canonical(a)
    assert not is_canonical(X, a) and not is_canonical(a, X) and not is_canonical(X, X, a)


@pytest.mark.single_implementation
def test_arrays_of_two_dtypes_are_not_canonical_together() -> None:
    assert not is_canonical(X, X.astype(np.float64)) and not is_canonical(X.astype(np.float64), X)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3)])
def test_empty_arrays(shape: tuple[int, ...]) -> None:
    empty = np.empty(shape, np.float32)
    for axis in range(len(shape)):
        assert hw.softmax(empty, axis).shape == shape
    assert (hw.logsumexp(empty, shape.index(0)) == -np.inf).all()
    n = np.ones(shape[-1], np.float32)
    assert hw.layer_normalization(empty, n, n).shape == shape
    assert hw.linear(empty, np.ones((shape[-1], 2), np.float32)).shape == (*shape[:-1], 2)


def test_attention_of_empty_values() -> None:
    """NumPy reports empty arrays as contiguous whatever their strides."""
    value = np.empty((2, 2, 5, 2), np.float32)[..., 1:1:2]
    output, weights = hw.scaled_dot_product_attention(X, KEY, value)
    assert output.shape == (2, 4, 9, 0)
    assert weights.tobytes() == hw.scaled_dot_product_attention(X, KEY, VALUE)[1].tobytes()


MANY = 2**18 + 1  # keys: each query of 2 x 4 heads is a block of random numbers of its own


@pytest.mark.parametrize("shape", [(1, MANY), (3, 1), (1, 1), (1, 4, 1, MANY), (2, 1, 3, 1), (2, 4, 1, 1)], ids=str)
@pytest.mark.parametrize("keep", [False, True], ids=["bias", "mask"])
def test_dropout_with_broadcast_masks(shape: tuple[int, ...], keep: bool) -> None:
    query, key = normal((2, 4, 3, 2)), normal((2, 2, MANY, 2), 1)
    small = normal(shape, 5) > -1 if keep else normal(shape, 5)
    calls = [
        {"mask" if keep else "bias": mask, "dropout_rate": 0.25, "rng": 0, "return_lse": True}
        for mask in (small, np.array(np.broadcast_to(small, (2, 4, 3, MANY))))
    ]
    for one, other in zip(*(hw.flash_attention(query, key, key, **call) for call in calls), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.single_implementation
def test_the_core_refuses_arrays_that_do_not_broadcast() -> None:
    core = pytest.importorskip("headwise._core", reason="there is no native core")
    keep, table = np.ones((2, 4, 9, 4), bool), np.ones((1, 1, 8, 6), np.float32)
    output = np.empty((2, 4, 9, 7), np.float32)
    with pytest.raises(ValueError, match="keep: expected each axis to be 1 or"):
        core.attention(X, KEY, VALUE, output, None, None, AttentionSpec(1.0, keep=(keep,)))
    with pytest.raises(ValueError, match="bias: expected each axis to be 1 or"):
        core.attention(X, KEY, VALUE, output, None, None, AttentionSpec(1.0, bias=(X,)))
    with pytest.raises(ValueError, match="cos: expected each axis to be 1 or"):
        core.apply_rope(X, table, table, X.copy(), False)
