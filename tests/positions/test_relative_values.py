"""Values of relative positions (``relative_values=``), against the formula of Shaw et al., 2018, equation 3.

The table of operations compares them with the oracle beside every other keyword.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
from headwise._ops.attention import dropout as dropout_blocks
from headwise._ops.attention import relative_values
from operations.options import modified_scores
from support import assert_close

RNG = np.random.default_rng(0)
QUERY, KEY, VALUE = (RNG.standard_normal(shape) for shape in ((2, 4, 9, 8), (2, 2, 11, 8), (2, 2, 11, 6)))
TABLE = RNG.standard_normal((4, 7, 6))
OFFSETS = {"upper_left": 0, "lower_right": 2}


def of_pairs(table: Any, alignment: str = "upper_left") -> Any:
    """(heads, query_len, key_len, value_dim): the vector of each pair."""
    reach = table.shape[-2] // 2
    distances = np.arange(11) - (np.arange(9)[:, np.newaxis] + OFFSETS[alignment])
    return table[..., distances.clip(-reach, reach) + reach, :]


@pytest.mark.parametrize("alignment", OFFSETS)
@pytest.mark.parametrize(
    "table", [TABLE, TABLE[0], TABLE[:1], RNG.standard_normal((41, 6))], ids=["heads", "2", "1", "far"]
)
def test_formula(table: Any, alignment: str) -> None:
    """keys and values of distances: w^K, w^V of the paper."""
    keys = RNG.standard_normal((5, 8))
    options: dict[str, Any] = {
        "relative_bias": hw.shaw_relative_bias(QUERY, keys), "is_causal": True, "causal_alignment": alignment,
    }  # fmt: skip
    weights = hw.scaled_dot_product_attention(QUERY, KEY, VALUE, **options)[1]
    values = VALUE.repeat(2, axis=1)[:, :, np.newaxis] + of_pairs(table, alignment)
    expected = np.einsum("bhij,bhijd->bhid", weights, values)
    for need_weights in (False, True):
        output, found = hw.scaled_dot_product_attention(
            QUERY, KEY, VALUE, **options, relative_values=table, need_weights=need_weights
        )
        assert_close(output, expected, factor=4)
        assert found is None or np.array_equal(found, weights)


@pytest.mark.parametrize("size", [1, 300, 1 << 20])
@pytest.mark.parametrize(
    "more",
    [
        {"dropout_rate": 0.4, "rng": 3},
        {"dropout_rate": 0.4, "rng": 3, "key_lengths": [7, 10], "causal_alignment": "lower_right"},
        {"key_lengths": [7, 10], "causal_alignment": "lower_right", "is_causal": True},
        {"score_mod": modified_scores},
        {"score_mod": modified_scores, "dropout_rate": 0.4, "rng": 3},
    ],
    ids="-".join,
)
def test_blocks_of_rows(monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], size: int) -> None:
    """Values that hold the distances as further columns have the same sums."""
    monkeypatch.setattr(relative_values, "_BLOCK", size)
    monkeypatch.setattr(dropout_blocks, "_BLOCK", max(300, size))
    lengths = np.array(more.get("key_lengths", [11, 11]))
    positions = np.arange(9) + (lengths - 9 if "causal_alignment" in more else 0 * lengths)[:, np.newaxis]
    entries = (np.arange(11) - positions[..., np.newaxis]).clip(-3, 3) + 3
    expected = np.zeros((2, 4, 9, 6))
    for entry in range(7):  # the mass of one distance at a time
        for n in range(2):
            for i in range(9):
                is_there = (entries[n, i] == entry).astype(float)
                values = np.broadcast_to(is_there[:, np.newaxis], (2, 2, 11, 1))
                mass = hw.flash_attention(QUERY, KEY, values, **more)[n, :, i]
                expected[n, :, i] += mass * TABLE[:, entry]
    expected += hw.flash_attention(QUERY, KEY, VALUE, **more)
    assert_close(hw.flash_attention(QUERY, KEY, VALUE, **more, relative_values=TABLE), expected, factor=4)


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize("more", [{}, {"dropout_rate": 0.4, "rng": 3}], ids=["plain", "dropout"])
def test_gradients_by_central_differences(monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], size: int) -> None:
    monkeypatch.setattr(relative_values, "_BLOCK", size)
    monkeypatch.setattr(dropout_blocks, "_BLOCK", 600)
    arguments: dict[str, Any] = {
        "query": QUERY, "key": KEY, "value": VALUE, "relative_values": TABLE,
        "relative_bias": RNG.standard_normal((4, 1, 5)),
    }  # fmt: skip
    fixed = {"key_lengths": [7, 10], "is_causal": True, "causal_alignment": "lower_right", **more}
    output, weights, lse = hw.scaled_dot_product_attention(**arguments, **fixed, return_lse=True)
    d_results = [RNG.standard_normal(x.shape) for x in (output, weights, np.ones_like(lse))]
    _, pullback = hw.vjp(hw.scaled_dot_product_attention, **arguments, **fixed, return_lse=True, wrt=tuple(arguments))
    for name, gradient in zip(arguments, pullback(*d_results), strict=True):
        direction = RNG.standard_normal(gradient.shape)

        def loss(step: float, name: str = name, direction: Any = direction) -> float:
            moved = {**arguments, name: arguments[name] + step * direction}
            results = hw.scaled_dot_product_attention(**moved, **fixed, return_lse=True)
            return sum(float(np.where(np.isfinite(y), y * d, 0).sum()) for y, d in zip(results, d_results, strict=True))

        slope = (8 * (loss(1e-3) - loss(-1e-3)) - (loss(2e-3) - loss(-2e-3))) / 12e-3
        assert abs(slope - (gradient * direction).sum()) < 1e-8 * max(1, abs(slope)), name


def test_vectors_of_distances_without_a_weight_reach_nothing() -> None:
    """Under a causal mask no key has a positive distance."""
    table = TABLE.copy()
    table[:, 4:] = [[np.nan], [np.inf], [-np.inf]]
    output, pullback = hw.vjp(
        hw.flash_attention, QUERY, KEY, VALUE, is_causal=True, relative_values=table,
        wrt=("query", "key", "value", "relative_values"),
    )  # fmt: skip
    finite = np.where(np.isfinite(table), table, 0)
    expected, expected_pullback = hw.vjp(
        hw.flash_attention, QUERY, KEY, VALUE, is_causal=True, relative_values=finite,
        wrt=("query", "key", "value", "relative_values"),
    )  # fmt: skip
    assert_close(output, expected, factor=2)
    for found, known in zip(pullback(np.ones_like(output)), expected_pullback(np.ones_like(output)), strict=True):
        assert_close(found, known, factor=2)


def test_empty_and_without_keys() -> None:
    for lengths in ((0, 5), (3, 0), (0, 0)):
        query, key = (np.ones((2, n, 8)) for n in lengths)
        output, pullback = hw.vjp(
            hw.flash_attention, query, key, key, relative_values=np.ones((3, 8)), wrt=("key", "relative_values")
        )
        assert output.shape == query.shape and not output.any()
        assert not any(gradient.any() for gradient in pullback(np.ones_like(output)))


def test_layers() -> None:
    """Keys and values of distances in a layer, as Shaw et al. have them."""
    layer = hw.MultiHeadAttention(16, 2, rng=0, relative=hw.RelativePositionalEncoding(8, 3, rng=1))
    x, table = RNG.standard_normal((2, 9, 16)), RNG.standard_normal((7, 8))
    query, key, value = (layer.split_heads(x @ w) for w in (layer.W_q, layer.W_k, layer.W_v))
    bias = hw.shaw_relative_bias(query, layer.relative_embeddings)
    heads = hw.flash_attention(query, key, value, relative_bias=bias, relative_values=table)
    output, _ = layer(x, relative_values=table)
    assert_close(output, layer.combine_heads(heads) @ layer.W_o, factor=4)
    _, _, pullback = layer.vjp(x, relative_values=table, wrt=("relative_values",))
    direction, d_output = RNG.standard_normal(table.shape), RNG.standard_normal(output.shape)
    moved = [(layer(x, relative_values=table + step * direction)[0] * d_output).sum() for step in (1e-3, -1e-3)]
    found = (pullback(d_output).inputs.d_relative_values * direction).sum()
    assert abs((moved[0] - moved[1]) / 2e-3 - found) < 1e-8 * max(1, abs(found))
    output, _ = hw.self_attention(x, 16, relative_values=np.ones((3, 16)), rng=0)
    assert_close(output, hw.self_attention(x, 16, rng=0)[0] + 1, factor=4)
    cache = layer.make_cache(2, 9, dtype=np.float64)
    steps = [
        layer(x[:, rows], cache=cache, is_causal=True, relative_values=table)[0] for rows in (slice(6), slice(6, 9))
    ]
    assert_close(np.concatenate(steps, axis=1), layer(x, is_causal=True, relative_values=table)[0], factor=8)


@pytest.mark.parametrize("heads", [(), (4,)])
def test_values_without_columns(heads: tuple[int, ...]) -> None:
    table, value = np.empty((*heads, 7, 0)), VALUE[..., :0]
    output, lse = hw.flash_attention(QUERY, KEY, value, relative_values=table, return_lse=True)
    assert output.shape == (2, 4, 9, 0)
    assert_close(lse, hw.flash_attention(QUERY, KEY, VALUE, return_lse=True)[1])
    _, pullback = hw.vjp(hw.flash_attention, QUERY, KEY, value, relative_values=table, wrt=("query", "relative_values"))
    gradients = pullback(output)
    assert gradients.d_relative_values.shape == table.shape and not gradients.d_query.any()
    rows = [a[0].swapaxes(0, 1) for a in (QUERY, KEY, value)]
    packed = hw.varlen_attention(*rows, [0, 4, 9], [0, 4, 11], relative_values=table)
    assert packed.shape == (9, 4, 0)


def test_statistics_have_none() -> None:
    with pytest.raises(TypeError, match="relative_values: not a keyword here; they join the values"):
        hw.attention_statistics(QUERY, KEY, relative_values=TABLE)
