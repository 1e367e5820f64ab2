"""headwise.integrations.dask: attention over chunks is that of one call, and excluded chunks make no tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
from support import normal

pytest.importorskip("dask.array", reason="the package dask is not installed")
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
}  # fmt: skip


def arrays(dtype: Any = np.float64) -> list[Any]:
    return [normal(shape, seed, np.float64).astype(dtype) for seed, shape in enumerate((QUERY, KEY, VALUE))]


def chunked(given: list[Any], chunks: Any) -> list[Any]:
    return [da.from_array(a, chunks=c) for a, c in zip(given, chunks, strict=True)]


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=list(CHUNKS))
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_chunks_are_one_call(options: dict[str, Any], chunks: Any) -> None:
    given = arrays()
    expected, expected_lse = hw.flash_attention(*given, return_lse=True, **options)
    output, lse = adapter.flash_attention(*chunked(given, chunks), return_lse=True, split_every=2, **options)
    assert (output.shape, output.dtype) == (expected.shape, expected.dtype)
    assert (lse.shape, lse.dtype) == (expected_lse.shape, expected_lse.dtype)
    found, found_lse = output.compute(scheduler="sync"), lse.compute(scheduler="sync")
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found_lse, expected_lse, rtol=1e-12, atol=1e-13)


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
    pytest.importorskip("zarr", reason="the package zarr is not installed")
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
        ({"sinks": np.ones(3)}, ValueError, "sinks: shape"),
        ({"alibi_slopes": np.ones(3)}, ValueError, "alibi_slopes: shape"),
        ({"split_every": 1}, ValueError, "split_every: 1"),
        ({"window_size": -2}, ValueError, "window_size"),
        ({"is_causal": "yes"}, TypeError, "is_causal"),
        ({"causal_alignment": "lower"}, ValueError, "causal_alignment"),
        ({"return_lse": 1.5}, TypeError, "return_lse"),
        ({"key": np.ones((2, 2, 70, 15))}, ValueError, "key: shape"),
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
