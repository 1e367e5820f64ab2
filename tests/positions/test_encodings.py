"""Absolute encodings of rows at given positions: decoding and left padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headwise as hw
from support import normal

pytestmark = pytest.mark.above_operations

LAYERS: dict[str, Callable[[], Any]] = {
    "sinusoidal": lambda: hw.SinusoidalPositionalEncoding(6, max_len=4),
    "learned": lambda: hw.LearnedPositionalEmbedding(12, 6, rng=0),
}
both = pytest.mark.parametrize("name", LAYERS)


@both
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_decoding_equals_one_call(name: str, dtype: type) -> None:
    layer = LAYERS[name]()
    x = normal((2, 12, 6), dtype=dtype)
    whole = layer(x)
    for sizes in ([1] * 12, [5, 7], [3, 1, 8]):
        parts = np.split(x, np.cumsum(sizes)[:-1], axis=1)
        starts = np.cumsum([0, *sizes[:-1]])
        by_offset = [layer(part, offset=start) for part, start in zip(parts, starts, strict=True)]
        np.testing.assert_array_equal(np.concatenate(by_offset, axis=1), whole)
        by_positions = [
            layer(part, np.arange(start, start + part.shape[1])) for part, start in zip(parts, starts, strict=True)
        ]
        np.testing.assert_array_equal(np.concatenate(by_positions, axis=1), whole)


@both
def test_left_padding(name: str) -> None:
    """A prompt of 3 tokens behind 2 rows of padding gets the encodings of the prompt alone."""
    layer, x = LAYERS[name](), normal((2, 5, 6), dtype=np.float64)
    positions = np.array([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]])
    got = layer(x, positions)
    np.testing.assert_array_equal(got[0], layer(x[0]))
    np.testing.assert_array_equal(got[1, 2:], layer(x[1, 2:]))
    np.testing.assert_array_equal(layer(x, positions=positions.tolist()), got)
    np.testing.assert_array_equal(layer(x[:, None], positions[:, None]), got[:, None])
    np.testing.assert_array_equal(layer(x, positions[:1]), layer(x))
    np.testing.assert_array_equal(layer(x[:0], positions[:0]), x[:0])


def test_any_position_of_the_sinusoidal_encoding() -> None:
    encoding, x = hw.SinusoidalPositionalEncoding(6, max_len=4), np.zeros((1, 2, 6))
    for start in (-3, 1000, 10**12):
        expected = encoding.get_encoding([start, start + 1])
        np.testing.assert_array_equal(encoding(x, offset=start)[0], expected)
        np.testing.assert_array_equal(encoding(x, [start, start + 1])[0], expected)


@both
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"^positions: shape \(3,\), expected \(2,\) or \(1, 2\)", {"positions": [0, 1, 2]}),
        (ValueError, r"^positions: shape \(1,\)", {"positions": [0]}),
        (ValueError, r"^positions: shape \(\)", {"positions": 0}),
        (ValueError, r"^positions: shape \(5, 2\)", {"positions": np.zeros((5, 2), int)}),
        (ValueError, r"^offset: 1, expected 0 if positions", {"positions": [0, 1], "offset": 1}),
        (TypeError, r"^positions: dtype float64", {"positions": [0.0, 1.0]}),
        (TypeError, r"^offset: ", {"offset": 1.5}),
        (ValueError, r"^offset: ", {"offset": 1 << 60}),
    ],
)
def test_bad_positions(name: str, error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        LAYERS[name]()(np.zeros((1, 2, 6)), **arguments)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("^positions: position 12, expected 0 to max_len - 1 = 11", {"positions": [11, 12]}),
        ("^positions: position -1, expected", {"positions": [0, -1]}),
        ("^offset: position 12, expected", {"offset": 11}),
        ("^offset: position -1, expected", {"offset": -1}),
    ],
)
def test_positions_without_an_embedding(message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        LAYERS["learned"]()(np.zeros((1, 2, 6)), **arguments)
