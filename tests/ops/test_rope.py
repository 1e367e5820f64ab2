"""apply_rope against complex multiplication, in both pairings."""

from __future__ import annotations

import numpy as np
import pytest

import headwise as hw
import oracle
from support import LAYOUTS, assert_close, dtype_named, normal

pairing = pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])


def tables(seq: int, dim: int, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    cos, sin = oracle.rope_tables(np.arange(seq), dim)
    return cos.astype(dtype), sin.astype(dtype)


@pairing
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dim", [*range(2, 72, 2), 126, 128, 130, 200, 256])
def test_head_dim(dim: int, dtype: str, interleaved: bool) -> None:
    x = normal((2, 3, 5, dim), dtype=dtype)
    cos, sin = tables(5, dim, dtype)
    assert_close(hw.apply_rope(x, cos, sin, interleaved=interleaved), oracle.rope(x, cos, sin, interleaved))


@pairing
@pytest.mark.parametrize(
    ("x", "table"),
    [
        ((8,), (4,)),
        ((5, 8), (5, 4)),
        ((5, 8), (1, 4)),
        ((5, 8), (4,)),
        ((3, 5, 8), (5, 4)),
        ((3, 5, 8), (3, 5, 4)),
        ((3, 5, 8), (3, 1, 4)),
        ((2, 3, 5, 8), (5, 4)),
        ((2, 3, 5, 8), (2, 1, 5, 4)),
        ((2, 3, 5, 8), (2, 3, 5, 4)),
        ((2, 3, 5, 8), (3, 5, 1)),
        ((2, 3, 5, 8), ()),
        ((2, 2, 3, 5, 8), (2, 1, 1, 5, 4)),
        ((2, 2, 3, 5, 8), (5, 4)),
    ],
    ids=str,
)
def test_tables_broadcast(x: tuple[int, ...], table: tuple[int, ...], interleaved: bool) -> None:
    """``cos`` and ``sin`` broadcast against ``x[..., : D // 2]`` as NumPy does."""
    values = normal(x)
    angles = normal(table, 1)
    cos, sin = np.cos(angles), np.sin(angles)
    assert_close(hw.apply_rope(values, cos, sin, interleaved=interleaved), oracle.rope(values, cos, sin, interleaved))


@pairing
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype(dtype: str, interleaved: bool) -> None:
    x = normal((2, 7, 12)).astype(dtype_named(dtype))
    cos, sin = (table.astype(x.dtype) for table in tables(7, 12))
    got = hw.apply_rope(x, cos, sin, interleaved=interleaved)
    assert got.dtype == x.dtype
    assert_close(got, oracle.rope(x, cos, sin, interleaved))


@pairing
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout: str, interleaved: bool) -> None:
    x = normal((2, 3, 7, 12))
    cos, sin = tables(7, 12)
    expected = oracle.rope(x, cos, sin, interleaved)
    assert_close(hw.apply_rope(LAYOUTS[layout](x), cos, sin, interleaved=interleaved), expected)
    cos, sin = LAYOUTS[layout](cos), LAYOUTS[layout](sin)
    assert_close(hw.apply_rope(x, cos, sin, interleaved=interleaved), expected)


@pairing
def test_out(interleaved: bool) -> None:
    x = normal((2, 3, 7, 12))
    cos, sin = tables(7, 12)
    expected = oracle.rope(x, cos, sin, interleaved)
    out = np.full_like(x, np.nan)
    assert hw.apply_rope(x, cos, sin, interleaved=interleaved, out=out) is out
    assert_close(out, expected)
    assert hw.apply_rope(x, cos, sin, interleaved=interleaved, out=x) is x
    assert_close(x, expected)


@pairing
def test_empty(interleaved: bool) -> None:
    cos, sin = tables(0, 8)
    assert hw.apply_rope(np.zeros((2, 0, 8)), cos, sin, interleaved=interleaved).shape == (2, 0, 8)


@pairing
def test_rotation_keeps_norms_and_relative_distances(interleaved: bool) -> None:
    query, key = normal((64,), 1, np.float64), normal((64,), 2, np.float64)
    cos, sin = tables(60, 64, "float64")
    queries = hw.apply_rope(np.tile(query, (60, 1)), cos, sin, interleaved=interleaved)
    keys = hw.apply_rope(np.tile(key, (60, 1)), cos, sin, interleaved=interleaved)
    np.testing.assert_allclose((queries**2).sum(-1), (query**2).sum(), rtol=1e-14)
    scores = queries @ keys.T
    for distance in range(-59, 60):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=0, atol=1e-12)
    assert abs(np.diagonal(scores, 1)[0] - np.diagonal(scores, 2)[0]) > 1e-3


def test_pairings_are_permutations_of_each_other() -> None:
    x = normal((9, 16))
    cos, sin = tables(9, 16)
    split = np.concatenate([x[:, 0::2], x[:, 1::2]], axis=1)
    interleaved = hw.apply_rope(x, cos, sin, interleaved=True)
    half_split = hw.apply_rope(split, cos, sin)
    np.testing.assert_array_equal(np.stack([half_split[:, :8], half_split[:, 8:]], axis=2).reshape(9, 16), interleaved)
