"""Masked rows and keys, NaN and infinities in attention: what may and what may not reach a result."""

from __future__ import annotations

import numpy as np
import pytest

import headwise as hw
from support import AttentionCase, assert_close, dtype_named, normal

EDGES = [0, 1, 7, 8, 15, 16, 31, 32, 47, 48, 63, 64, 65, 127, 128, 129]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("row", EDGES)
def test_masked_row(row: int, dtype: str) -> None:
    keep = np.ones((130, 130), bool)
    keep[row] = False
    case = AttentionCase((1, 2, 130, 8), (1, 2, 130, 8), 8, {"mask": keep}, dtype)
    case.check()
    output, weights, lse = hw.scaled_dot_product_attention(*case.arrays, mask=keep, return_lse=True)
    assert not output[..., row, :].any()
    assert not weights[..., row, :].any()
    assert (lse[..., row] == -np.inf).all()
    assert np.isfinite(np.delete(lse, row, axis=-1)).all()


@pytest.mark.parametrize("way", ["bool", "-inf", "key-padding"])
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 64), (0, 65), (0, 299), (17, 290), (256, 300), (1, 300)])
def test_masked_blocks_of_keys(start: int, stop: int, way: str) -> None:
    """Whole blocks of keys masked at either end: the running maximum starts, or stays, at -inf."""
    keep = np.ones((1, 300), bool)
    keep[:, start:stop] = False
    keywords = {
        "bool": {"mask": np.broadcast_to(keep, (9, 300))},
        "-inf": {"bias": np.where(keep, 0.0, -np.inf)},
        "key-padding": {"key_padding_mask": keep},
    }
    AttentionCase((1, 2, 9, 8), (1, 2, 300, 8), 8, keywords[way]).check()


@pytest.mark.parametrize("keywords", [{}, {"softcap": 2.0}, {"alibi_slopes": np.array([1.0, 0.5])}], ids=str)
def test_everything_masked(keywords: dict[str, object]) -> None:
    query = normal((2, 2, 70, 8))
    keep = np.zeros((70, 70), bool)
    output, weights, lse = hw.scaled_dot_product_attention(query, query, query, keep, return_lse=True, **keywords)
    assert not output.any() and not weights.any() and (lse == -np.inf).all()
    output, lse = hw.flash_attention(query, query, query, keep, return_lse=True, **keywords)
    assert not output.any() and (lse == -np.inf).all()


POISON_LEN = 150

POISON_KEYS = [3, 64, 149]

HEALTHY = ~np.isin(np.arange(POISON_LEN), POISON_KEYS)

MASKING = {
    "mask": {"mask": HEALTHY[None]},
    "mask-rows": {"mask": HEALTHY & (np.arange(POISON_LEN)[:, None] % 2 == 0)},
    "mask-int": {"mask": np.tile(HEALTHY * 1, (POISON_LEN, 1))},
    "mask-float-keep": {"mask": np.tile(HEALTHY * 1.0, (POISON_LEN, 1))},
    "mask-inf": {"mask": np.where(HEALTHY, 0.5, -np.inf)[None]},
    "bias-inf": {"bias": np.where(HEALTHY, 0.5, -np.inf)[None]},
    "bias-inf-full": {"bias": np.tile(np.where(HEALTHY, 0, -np.inf), (1, 2, POISON_LEN, 1))},
    "key-padding": {"key_padding_mask": HEALTHY[None]},
    "causal": {"is_causal": True},
    "window": {"window_size": (10, 2)},
    "causal-window": {"is_causal": True, "window_size": (30, -1)},
    "softcap": {"softcap": 2.0, "is_causal": True},
    "alibi-sinks": {"is_causal": True, "alibi_slopes": np.array([0.1, 0.2]), "sinks": np.array([0.0, 1.0])},
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("where", ["key", "value", "both"])
@pytest.mark.parametrize("way", MASKING)
def test_masked_keys_have_no_influence(way: str, where: str, poison: float, dtype: str) -> None:
    """Rows that mask every poisoned key have the results of finite numbers in those keys."""
    query, key, value = (normal((1, 2, POISON_LEN, 12), seed, dtype) for seed in range(3))
    bad_key, bad_value = key.copy(), value.copy()
    if where != "value":
        bad_key[..., POISON_KEYS, :] = poison
    if where != "key":
        bad_value[..., POISON_KEYS, 5] = poison
    clean = hw.scaled_dot_product_attention(query, key, value, **MASKING[way], return_lse=True)
    dirty = hw.scaled_dot_product_attention(query, bad_key, bad_value, **MASKING[way], return_lse=True)
    i, j = np.ogrid[:POISON_LEN, :POISON_LEN]
    kept = {
        "causal": j <= i, "softcap": j <= i, "alibi-sinks": j <= i,
        "window": (i - 10 <= j) & (j <= i + 2), "causal-window": (i - 30 <= j) & (j <= i),
    }.get(way, np.zeros((POISON_LEN, POISON_LEN), bool))  # fmt: skip
    safe = ~kept[:, POISON_KEYS].any(axis=1)
    assert safe.any()
    flash = hw.flash_attention(query, bad_key, bad_value, **MASKING[way], return_lse=True)
    for good, bad in [*zip(clean, dirty, strict=True), (clean[0], flash[0]), (clean[2], flash[1])]:
        assert_close(bad[:, :, safe], good[:, :, safe])
    for output in (dirty[0][:, :, ~safe], flash[0][:, :, ~safe]):
        if np.isnan(poison):
            assert np.isnan(output[..., 5]).all()
        if where == "value":
            assert not np.isfinite(output[..., 5]).any()
            assert np.isfinite(np.delete(output, 5, axis=-1)).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value_dim", [16, 17])
@pytest.mark.parametrize("queries", [9, 16, 33, 48])
def test_few_queries_have_the_bits_of_many(queries: int, value_dim: int, dtype: str) -> None:
    """Values are read in place for few queries, packed for many, and packed if a block of keys has NaN.

    With AMX, the backend depends on the number of queries.
    """
    query, key = (normal((1, 2, n, 16), seed, dtype) for seed, n in enumerate((100, 600)))
    value = normal((1, 2, 600, value_dim), 2, dtype)
    bad = value.copy()
    bad[..., 300, 5], bad[..., 301, 6] = np.nan, np.inf  # of the second block of keys
    keep = ~np.isin(np.arange(600), (300, 301))
    whole = hw.flash_attention(query, key, value, keep[None])
    for values in (value, bad):
        few = hw.flash_attention(query[:, :, :queries], key, values, keep[None])
        assert_close(few, whole[:, :, :queries])
        if hw.config()["backend"] == "native" and hw.config()["target"] != "avx512_amx":
            np.testing.assert_array_equal(few, whole[:, :, :queries])


def test_nan_queries_stay_in_their_rows() -> None:
    query, key, value = (normal((1, 2, 70, 8), seed) for seed in range(3))
    bad = query.copy()
    bad[..., [0, 33, 69], :] = np.nan
    clean = hw.flash_attention(query, key, value)
    dirty = hw.flash_attention(bad, key, value)
    rows = np.isin(np.arange(70), [0, 33, 69])
    np.testing.assert_array_equal(dirty[..., ~rows, :], clean[..., ~rows, :])
    assert np.isnan(dirty[..., rows, :]).all()


@pytest.mark.parametrize("keywords", [{"is_causal": True}, {"window_size": (3, 2)}], ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(1, 40), (3, 5), (8, 300), (31, 32), (70, 300), (300, 310)])
def test_nan_rows_have_nan_weights_for_masked_keys(queries: int, keys: int, keywords: dict[str, object]) -> None:
    """For any keys that the other queries of a block keep, and any number of queries per block."""
    query, key, value = normal((1, 2, queries, 8)), normal((1, 2, keys, 8), 1), normal((1, 2, keys, 8), 2)
    query[:, 1, queries // 2] = np.nan
    _, weights, lse = hw.scaled_dot_product_attention(query, key, value, return_lse=True, **keywords)
    rows = np.isnan(lse)
    assert rows.sum() == 1
    assert np.isnan(weights[rows]).all()
    assert np.isfinite(weights[~rows]).all()


@pytest.mark.parametrize("where", ["key", "value", "bias", "mask"])
def test_unmasked_nan_propagates(where: str) -> None:
    arrays = {name: normal((1, 1, 70, 8), seed) for seed, name in enumerate(("query", "key", "value"))}
    extra = np.zeros((70, 70))
    if where in arrays:
        arrays[where][0, 0, 40] = np.nan
        got = hw.flash_attention(**arrays)
        assert np.isnan(got).all()
    else:
        extra[13, 40] = np.nan
        got = hw.flash_attention(**arrays, **{where: extra})
        assert np.isnan(got[0, 0, 13]).all()
        assert np.isfinite(np.delete(got, 13, axis=2)).all()


def test_overflowing_but_finite_scores_keep_other_rows_right() -> None:
    """A row whose scores overflow is NaN or saturated, as in NumPy; other rows are not affected."""
    query, key, value = (normal((1, 1, 70, 8), seed) for seed in range(3))
    clean = hw.flash_attention(query, key, value)
    query[0, 0, 20] = np.inf
    got = hw.flash_attention(query, key, value)
    np.testing.assert_array_equal(np.delete(got, 20, axis=2), np.delete(clean, 20, axis=2))


LOWEST = {"bfloat16": -(2.0**128 - 2.0**120)} | {
    name: float(np.finfo(name).min) for name in ("float16", "float32", "float64")
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("bias_dtype", LOWEST)
@pytest.mark.parametrize(("queries", "keys"), [(1, 2), (3, 300), (70, 150)])
def test_sums_of_finite_biases_stay_finite(queries: int, keys: int, bias_dtype: str, dtype: str) -> None:
    """A row with the lowest number everywhere, in mask, key padding and bias, has uniform weights, as with the lowest
    number once. -inf masks its key, also beside the highest number."""
    query, key, value = (normal((1, 1, n, 8), n).astype(dtype_named(dtype)) for n in (queries, keys, keys))
    lowest = LOWEST[bias_dtype]
    full = np.full((queries, keys), lowest, dtype_named(bias_dtype))
    given = {"mask": full, "key_padding_mask": full[:1], "bias": full}
    mean = np.broadcast_to(value.astype(np.float64).mean(axis=2, keepdims=True), value[:, :, :1].shape)
    atol = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6, "float64": 1e-6}[dtype]
    if bias_dtype == "float16":  # -65504 does not absorb the scores
        query = query * 0
    for names in (["mask", "bias"], ["key_padding_mask", "bias"], ["mask", "key_padding_mask", "bias"]):
        keywords = {name: given[name] for name in names}
        output, weights, lse = hw.scaled_dot_product_attention(query, key, value, return_lse=True, **keywords)
        np.testing.assert_allclose(weights.astype(np.float64), 1 / keys, rtol=atol)
        for result in (output, hw.flash_attention(query, key, value, **keywords)):
            np.testing.assert_allclose(result.astype(np.float64), np.broadcast_to(mean, result.shape), atol=atol)
        assert np.isfinite(lse).all()
    dropped = full.copy()
    dropped[:, 0] = -np.inf
    for keywords in ({"mask": dropped, "bias": -full}, {"mask": -full, "bias": dropped}):
        weights = hw.scaled_dot_product_attention(query, key, value, **keywords)[1].astype(np.float64)
        assert (weights[..., 0] == 0).all() and (weights[..., 1:] > 0).all()


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("value_dim", [1, 5, 33, 80])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scattered_special_values(dtype: str, value_dim: int, special: float) -> None:
    """In several key blocks, each under a mask that keeps it for some rows only; other columns keep their bits."""
    rng = np.random.default_rng(0)
    keep = rng.random((70, 600)) < 0.02
    query, key = normal((1, 2, 70, 16), 0, dtype), normal((1, 2, 600, 16), 1, dtype)
    value = normal((1, 2, 600, value_dim), 2, dtype)
    where = rng.random(value.shape) < 0.01
    output = hw.flash_attention(query, key, np.where(where, special, value).astype(dtype), keep)
    reached = keep.astype(int) @ where.astype(int) > 0
    assert (np.isnan(output) if np.isnan(special) else output == special)[reached].all()
    clean = hw.flash_attention(query, key, np.where(where, 0, value).astype(dtype), keep)
    assert output[~reached].tobytes() == clean[~reached].tobytes()
    assert reached.any() and not reached.all()
