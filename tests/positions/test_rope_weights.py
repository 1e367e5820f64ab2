"""Projections whose features are reordered for the other pairing of rotary embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
from support import dtype_named, normal

once = pytest.mark.single_implementation


@pytest.mark.parametrize("rotary_dim", [None, 10])
@pytest.mark.parametrize("to", ["half", "interleaved"])
def test_permuted_projections_give_the_same_scores(to: str, rotary_dim: int | None) -> None:
    heads, kv_heads, head_dim = 4, 2, 16
    x = normal((2, 9, 24), 1, np.float64)
    weights = normal((24, heads * head_dim), 2, np.float64), normal((24, kv_heads * head_dim), 3, np.float64)
    biases = normal((heads * head_dim,), 4, np.float64), normal((kv_heads * head_dim,), 5, np.float64)

    def scores(weights: Any, biases: Any, interleaved: bool) -> np.ndarray:
        rope = hw.RotaryPositionalEmbedding(head_dim, interleaved=interleaved, rotary_dim=rotary_dim)
        query, key = (
            rope(hw.linear(x, weight, bias).reshape(2, 9, -1, head_dim).swapaxes(1, 2))
            for weight, bias in zip(weights, biases, strict=True)
        )
        return query @ np.repeat(key, heads // kv_heads, axis=1).swapaxes(-1, -2)

    counts = heads, kv_heads
    moved = [
        [hw.permute_rope_weights(a, n, to=to, rotary_dim=rotary_dim) for a, n in zip(arrays, counts, strict=True)]
        for arrays in (weights, biases)
    ]
    before, after = scores(weights, biases, to == "half"), scores(*moved, to != "half")
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-11)
    assert np.abs(scores(weights, biases, to != "half") - before).max() > 1.0, "the pairing matters"


@once
@pytest.mark.parametrize("rotary_dim", [None, 2, 6])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64"])
def test_permutation_round_trip(dtype: str, rotary_dim: int | None) -> None:
    weight = normal((5, 24), dtype=np.float64).astype(dtype_named(dtype))
    for axis, source in ((-1, weight), (1, weight), (0, weight.T), (-2, weight.T)):
        for to, back in (("half", "interleaved"), ("interleaved", "half")):
            moved = hw.permute_rope_weights(source, 3, to=to, rotary_dim=rotary_dim, axis=axis)
            assert moved.dtype == source.dtype and moved.shape == source.shape
            assert not np.shares_memory(moved, source)
            again = hw.permute_rope_weights(moved, 3, to=back, rotary_dim=rotary_dim, axis=axis)
            np.testing.assert_array_equal(again, source)
            assert np.array_equal(moved, source) == (rotary_dim == 2)


@once
def test_permutation_of_a_small_example() -> None:
    features = np.arange(12)
    assert hw.permute_rope_weights(features, 2, to="half").tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert hw.permute_rope_weights(features, 2, to="interleaved").tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    partial = hw.permute_rope_weights(features, 2, to="half", rotary_dim=4)
    assert partial.tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]


@once
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "^to: 'halves', expected 'half' or 'interleaved'", {"to": "halves"}),
        (TypeError, "^to: bool", {"to": True}),
        (ValueError, "^weight: shape .*divisible by num_heads = 5", {"num_heads": 5}),
        (ValueError, "^weight: .*even", {"num_heads": 4, "weight": np.ones((2, 12))}),
        (ValueError, "^num_heads: 0", {"num_heads": 0}),
        (TypeError, "^num_heads: ", {"num_heads": 2.0}),
        (ValueError, "^rotary_dim: 3 ", {"rotary_dim": 3}),
        (ValueError, "^rotary_dim: 6 ", {"rotary_dim": 6}),
        (ValueError, "^axis: 2", {"axis": 2}),
        (ValueError, "^weight: a scalar", {"weight": 1.0}),
        (ValueError, "^weight: shape", {"weight": np.ones((2, 0))}),
    ],
)
def test_bad_permutations(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        hw.permute_rope_weights(**{"weight": np.ones((2, 8)), "num_heads": 2, "to": "half", **arguments})
