"""Casts between float16 and float32 against NumPy's own, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headwise._base.ieee import assign, cast_dtype
from headwise._base.typing import FLOAT16, FLOAT32
from implementations import PROFILE

Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.single_implementation

#: Every number of float16.
NUMBERS = np.arange(1 << 16, dtype=np.uint16).view(np.float16)

FINITE = NUMBERS[np.isfinite(NUMBERS)]

#: Those whose cast to float32 takes no table.
NO_NAN = NUMBERS[~np.isnan(NUMBERS)]


@pytest.mark.parametrize(
    "x", [NUMBERS, FINITE, NO_NAN, NUMBERS[::-1], NUMBERS.reshape(256, 256).T, NUMBERS[:3], NUMBERS[:0]]
)
def test_every_float16(x: Array) -> None:
    wide, expected = cast_dtype(x, FLOAT32), x.astype(FLOAT32)
    assert wide.dtype == FLOAT32 and wide.strides == expected.strides
    assert np.array_equal(wide.view(np.uint32), expected.view(np.uint32))


def check_narrowing(x: Array) -> None:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = x.astype(FLOAT16)
    assert np.array_equal(cast_dtype(x, FLOAT16).view(np.uint16), expected.view(np.uint16))


def test_float32_of_all_magnitudes() -> None:
    """NaN of every kind included."""
    step = 509 if PROFILE == "long" else 8191
    check_narrowing(np.arange(0, 1 << 32, step, dtype=np.uint64).astype(np.uint32).view(np.float32))


def test_float32_where_rounding_turns() -> None:
    """Between two neighbours in float16: the number in the middle, and the numbers next to it."""
    numbers = FINITE.astype(np.float32)
    numbers = np.sort(np.append(numbers, [-65536.0, 65536.0])).astype(np.float32)
    middle = (numbers[:-1] + numbers[1:]) / 2
    check_narrowing(np.concatenate([numbers, middle, np.nextafter(middle, -np.inf), np.nextafter(middle, np.inf)]))


def test_layouts_and_blocks() -> None:
    x = np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32)
    for view in (x, x.T, x[::-2, 3:], np.broadcast_to(x[0], (5, 400))):
        check_narrowing(view)
        out = np.empty(view.shape, np.float16)
        assign(out.T, view.T)
        assert np.array_equal(out, view.astype(np.float16))
