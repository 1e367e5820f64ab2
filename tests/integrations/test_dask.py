"""headwise.integrations.dask: attention over chunks is that of one call, and excluded chunks make no tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
from support import normal

pytest.importorskip("dask.array", reason="the package dask is not installed")
dask: Any = pytest.importorskip("dask")
da: Any = pytest.importorskip("dask.array")
adapter: Any = pytest.importorskip("headwise.integrations.dask")

pytestmark = pytest.mark.above_operations

QUERY, KEY, VALUE = (2, 4, 50, 16), (2, 2, 70, 16), (2, 2, 70, 12)
CHUNKS = {
    "one": ((2, 4, 50, 16), (2, 2, 70, 16), (2, 2, 70, 12)),
    "all axes": ((1, 1, 16, 8), (2, 1, 13, 16), (1, 2, 20, 5)),
    "keys alone": ((2, 4, 50, 16), (2, 2, 9, 16), (2, 2, 9, 12)),
    "uneven": ((2, 4, (3, 40, 7), 16), (2, (1, 1), (1, 60, 9), 16), (2, 2, (69, 1), 12)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "lower right": {"is_causal": True, "causal_alignment": "lower_right"},
    "window": {"window_size": (10, 3)},
    "window, lower right, sinks": {
        "window_size": (10, 0), "causal_alignment": "lower_right", "is_causal": True, "sinks": normal((4,), 3),
    },
    "ALiBi, softcap": {"alibi_slopes": np.abs(normal((4,), 4)), "softcap": 2.0, "is_causal": True},
    "mask": {"mask": normal((50, 70), 5) > 0},
    "mask of rows": {"mask": (normal((2, 1, 50, 1), 6) > 0).astype(np.int8)},
    "bias": {"bias": normal((4, 1, 70), 7)},
    "padding": {"key_padding_mask": normal((2, 70), 8) > -0.5},
    "no keys": {"mask": np.zeros((50, 1), bool), "sinks": normal((4,), 9)},
    "scale": {"scale": -0.3, "precision": "highest"},
    "mask and padding": {"mask": normal((50, 70), 5) > -1, "key_padding_mask": np.arange(70) < [[60], [9]]},
    "padding mask": {"mask": hw.create_padding_mask(np.arange(140).reshape(2, 70) % 7)},
    "causal mask": {"mask": np.tri(50, 70, 3, dtype=np.int64).view(hw.CausalMask)},
    "lengths": {"key_lengths": [70, 11]},
    "lengths, lower right": {"key_lengths": [55, 0], "is_causal": True, "causal_alignment": "lower_right"},
    "lengths, window": {"key_lengths": [61, 30], "window_size": (9, 4), "causal_alignment": "lower_right"},
    "relative": {"relative_bias": normal((4, 1, 9), 10)},
    "relative, rows": {"relative_bias": normal((2, 1, 50, 21), 11), "causal_alignment": "lower_right"},
    "relative values": {"relative_values": normal((4, 7, 12), 13), "relative_bias": normal((4, 1, 9), 10)},
    "blocks": {"mask": hw.BlockMask.window((14, 2), 50, 70, block_size=(16, 8))},
    "blocks of heads": {
        "mask": hw.BlockMask.from_mod(
            lambda b, h, q, k: (q * (h + 1) + k * (b + 2)) % 5 < 2, 50, 70, batch=2, heads=4, block_size=(8, 12)
        ), "bias": normal((50, 70), 12),
    },
    "blocks, some of them none": {"mask": hw.BlockMask.documents(np.arange(50) // 20, np.arange(70) // 24)},
    "score_mod": {"score_mod": lambda score, b, h, q, k: score + 0.1 * b - 0.2 * h + np.sin(0.3 * q) * np.cos(0.7 * k)},
}  # fmt: skip

FIRST = ("plain", "window, lower right, sinks")  # of which all chunks are tested


def arrays(dtype: Any = np.float64) -> list[Any]:
    return [normal(shape, seed, np.float64).astype(dtype) for seed, shape in enumerate((QUERY, KEY, VALUE))]


def chunked(given: list[Any], chunks: Any) -> list[Any]:
    return [da.from_array(a, chunks=c) for a, c in zip(given, chunks, strict=True)]


@pytest.mark.parametrize(
    ("options", "chunks"),
    [(options, chunks) for options in OPTIONS for chunks in (CHUNKS if options in FIRST else ("all axes", "uneven"))],
)
def test_chunks_are_one_call(options: str, chunks: str) -> None:
    given, keywords = arrays(), OPTIONS[options]
    expected, expected_lse = hw.flash_attention(*given, return_lse=True, **keywords)
    output, lse = adapter.flash_attention(*chunked(given, CHUNKS[chunks]), return_lse=True, split_every=2, **keywords)
    assert (output.shape, output.dtype) == (expected.shape, expected.dtype)
    assert (lse.shape, lse.dtype) == (expected_lse.shape, expected_lse.dtype)
    found, found_lse = da.compute(output, lse, scheduler="sync")
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found_lse, expected_lse, rtol=1e-12, atol=1e-13)


def test_a_mask_of_each_sequence_without_heads() -> None:
    """(batch, key_len) beside scores without heads, also where it would broadcast to (query_len, key_len)."""
    for queries in (5, 2):
        given = [normal((2, n, 3), seed, np.float64) for seed, n in enumerate((queries, 7, 7))]
        for mask in (normal((2, 7), 3) > -0.5, hw.create_padding_mask(np.arange(14).reshape(2, 7) % 4)):
            found = adapter.flash_attention(*(da.from_array(a, chunks=2) for a in given), mask)
            np.testing.assert_allclose(found.compute(), hw.flash_attention(*given, mask), rtol=1e-12, atol=1e-13)


def test_several_axes_of_the_batch() -> None:
    given = [normal((2, 3, 2, n, 4), seed, np.float64) for seed, n in enumerate((9, 11, 11))]
    for options in (
        {"key_lengths": np.arange(6).reshape(2, 3) * 2},
        {"score_mod": lambda score, b, h, q, k: score * (1 + b) + h - q * 0.1 + k * 0.2},
        {"relative_bias": normal((2, 3, 1, 9, 5), 4)},
        {"mask": normal((3, 1, 9, 11), 5) > -1},
    ):
        found = adapter.flash_attention(*(da.from_array(a, chunks=(1, 2, 1, 4, -1)) for a in given), **options)
        np.testing.assert_allclose(found.compute(), hw.flash_attention(*given, **options), rtol=1e-12, atol=1e-13)


def test_masks_and_biases_that_are_dask_arrays() -> None:
    given = arrays()
    options = {
        "mask": normal((50, 70), 5) > -1, "bias": normal((2, 1, 50, 70), 6),
        "key_padding_mask": normal((2, 70), 7) > -1, "relative_bias": normal((4, 50, 7), 8),
    }  # fmt: skip
    lazy = {name: da.from_array(a, chunks=17) for name, a in options.items()}
    found = adapter.flash_attention(*chunked(given, CHUNKS["all axes"]), **lazy)
    np.testing.assert_allclose(found.compute(), hw.flash_attention(*given, **options), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_dtypes(dtype: Any) -> None:
    given = arrays(dtype)
    expected = hw.flash_attention(*given, is_causal=True)
    found = adapter.flash_attention(*chunked(given, CHUNKS["all axes"]), is_causal=True)
    assert found.dtype == expected.dtype
    tolerance = {"float16": 4e-3, "float32": 2e-6}.get(expected.dtype.name, 1e-13)
    np.testing.assert_allclose(found.compute(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "shapes", [((5, 3), (7, 3), (7, 2)), ((4, 5, 3), (4, 7, 3), (4, 7, 2)), ((2, 3, 4, 5, 3),) * 3]
)
def test_ranks(shapes: Any) -> None:
    given = [normal(shape, seed, np.float64) for seed, shape in enumerate(shapes)]
    expected = hw.flash_attention(*given, is_causal=True)
    found = adapter.flash_attention(*(da.from_array(a, chunks=2) for a in given), is_causal=True)
    np.testing.assert_allclose(found.compute(), expected, rtol=1e-12, atol=1e-13)


def count(result: Any, name: str) -> int:
    return sum(str(key[0]).startswith(name) for key in result.__dask_graph__() if isinstance(key, tuple))


def test_chunks_that_no_query_sees_are_no_tasks() -> None:
    x = da.zeros((160, 8), chunks=(10, 8))
    assert count(adapter.flash_attention(x, x, x), "part-") == 256
    assert count(adapter.flash_attention(x, x, x, is_causal=True), "part-") == 136
    # Each chunk of queries sees its own keys and the two chunks before.
    assert count(adapter.flash_attention(x, x, x, is_causal=True, window_size=11), "part-") == 3 * 16 - 3
    few = x[:10]
    assert count(adapter.flash_attention(few, x, x, key_lengths=[25]), "part-") == 3
    documents = hw.BlockMask.documents(np.arange(160) // 40, block_size=10)
    assert count(adapter.flash_attention(x, x, x, documents), "part-") == 4 * 16
    assert count(adapter.flash_attention(few, x, x, is_causal=True, causal_alignment="lower_right"), "part-") == 16


def test_masked_nan_reaches_nothing() -> None:
    q, k, v = arrays()
    keep = np.arange(70) < 40
    k[..., 40:, :] = v[..., 40:, :] = np.nan
    found = adapter.flash_attention(*chunked([q, k, v], CHUNKS["all axes"]), keep)
    np.testing.assert_allclose(found.compute(), hw.flash_attention(q, k, v, keep), rtol=1e-12, atol=1e-13)


def test_memory_mapped_files(tmp_path: Any) -> None:
    given = arrays()
    mapped = []
    for name, a in zip("qkv", given, strict=True):
        np.save(tmp_path / f"{name}.npy", a)
        mapped.append(da.from_array(np.load(tmp_path / f"{name}.npy", mmap_mode="r"), chunks=(1, 1, 20, -1)))
    found = adapter.flash_attention(*mapped).compute()
    np.testing.assert_allclose(found, hw.flash_attention(*given), rtol=1e-12, atol=1e-13)


def test_zarr(tmp_path: Any) -> None:
    zarr = pytest.importorskip("zarr", reason="the package zarr is not installed")
    if int(zarr.__version__.split(".")[0]) >= 3 and tuple(map(int, dask.__version__.split(".")[:2])) < (2024, 12):
        pytest.skip("this version of Dask writes files by zarr 2 alone")
    given = arrays()
    stored = []
    for name, a in zip("qkv", given, strict=True):
        da.from_array(a, chunks=(1, 1, 20, -1)).to_zarr(str(tmp_path / name))
        stored.append(da.from_zarr(str(tmp_path / name)))
    adapter.flash_attention(*stored).to_zarr(str(tmp_path / "output"))
    found = da.from_zarr(str(tmp_path / "output")).compute()
    np.testing.assert_allclose(found, hw.flash_attention(*given), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"mask": np.ones((50, 70))}, TypeError, "mask: dtype float64, expected bool or integers"),
        ({"mask": np.ones((3, 70), bool)}, ValueError, "mask: shape"),
        ({"bias": np.ones((9, 50, 70))}, ValueError, "bias: shape"),
        ({"key_padding_mask": np.ones((70,), bool)}, ValueError, "key_padding_mask: shape"),
        ({"key_padding_mask": np.ones((2, 70))}, TypeError, "key_padding_mask: dtype"),
        ({"bias": np.ones((50, 70), bool)}, TypeError, "bias: dtype bool"),
        ({"mask": hw.BlockMask.causal(50, 71)}, ValueError, "mask: a BlockMask"),
        ({"key_lengths": [71, 1]}, ValueError, "key_lengths: 71"),
        ({"key_lengths": da.ones(2, dtype=int)}, TypeError, "key_lengths: a Dask collection, expected an array"),
        ({"sinks": da.ones(4)}, TypeError, "sinks: a Dask collection, expected an array in memory"),
        ({"relative_bias": np.ones((4, 50, 6))}, ValueError, "relative_bias: shape"),
        ({"relative_values": np.ones((4, 6, 12))}, ValueError, "relative_values: shape"),
        ({"score_mod": 3}, TypeError, "score_mod: int"),
        ({"dropout_rate": 0.1}, TypeError, "dropout_rate: not a keyword here; dropout is not applied over chunks"),
        ({"out": None}, TypeError, "out: not a keyword here; results are lazy"),
        ({"need_weights": True}, TypeError, "need_weights: not a keyword here; weights of"),
        ({"causal": True}, TypeError, "causal: not a keyword here, expected is_causal="),
        ({"sinks": np.ones(3)}, ValueError, "sinks: shape"),
        ({"alibi_slopes": np.ones(3)}, ValueError, "alibi_slopes: shape"),
        ({"split_every": 1}, ValueError, "split_every: 1"),
        ({"window_size": -2}, ValueError, "window_size"),
        ({"is_causal": "yes"}, TypeError, "is_causal"),
        ({"causal_alignment": "lower"}, ValueError, "causal_alignment"),
        ({"return_lse": 1.5}, TypeError, "return_lse"),
        ({"key": np.ones((2, 2, 70, 15))}, ValueError, "key: shape"),
        ({"value": None}, TypeError, "value: None, expected an array"),
        ({"query": np.ma.masked_equal(np.ones((2, 4, 50, 16)), 0)}, TypeError, "query: a masked array"),
        ({"value": np.ones((2, 2, 71, 16))}, ValueError, "value: shape"),
    ],
)
def test_bad_arguments_are_refused_at_once(change: dict[str, Any], error: type[Exception], words: str) -> None:
    given = dict(zip(("query", "key", "value"), arrays(), strict=True))
    with pytest.raises(error, match=words):
        adapter.flash_attention(**{**given, **change})


def test_unknown_sizes_are_refused() -> None:
    x = da.from_array(arrays()[0][0, 0], chunks=(10, -1))
    some = x[x[:, 0] > 0]
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        adapter.flash_attention(some, x, x)
