"""headwise.integrations.dask.varlen_attention: chunks of rows start and end within sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
from support import normal

da: Any = pytest.importorskip("dask.array", reason="the package dask is not installed")
adapter: Any = pytest.importorskip("headwise.integrations.dask")

pytestmark = pytest.mark.above_operations

STARTS_Q, STARTS_K = [0, 5, 5, 30, 37, 41], [0, 9, 12, 33, 33, 60]
QUERY, KEY, VALUE = (41, 4, 8), (60, 2, 8), (60, 2, 6)
CHUNKS = {
    "one": (QUERY, KEY, VALUE),
    "all axes": ((7, 2, 5), (11, 1, 8), (9, 2, 3)),
    "rows": (((1, 30, 10), 4, 8), ((33, 0, 27), 2, 8), (60, 2, 6)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "lower right, sinks": {"is_causal": True, "causal_alignment": "lower_right", "sinks": normal((4,), 3)},
    "window": {"window_size": (4, 2), "softcap": 3.0, "scale": 0.5},
    "window, lower right, ALiBi": {
        "window_size": (9, 0), "causal_alignment": "lower_right", "alibi_slopes": np.abs(normal((4,), 4)),
    },
    "relative": {"relative_bias": normal((1, 1, 7), 5)},
    "relative, rows": {"relative_bias": normal((4, 41, 7), 6), "causal_alignment": "lower_right"},
}  # fmt: skip


def arrays(dtype: Any = np.float64) -> list[Any]:
    return [normal(shape, seed, np.float64).astype(dtype) for seed, shape in enumerate((QUERY, KEY, VALUE))]


def chunked(given: list[Any], chunks: Any) -> list[Any]:
    return [da.from_array(a, chunks=c) for a, c in zip(given, chunks, strict=True)]


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=list(CHUNKS))
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_chunks_are_one_call(options: dict[str, Any], chunks: Any) -> None:
    given = arrays()
    expected, expected_lse = hw.varlen_attention(*given, STARTS_Q, STARTS_K, return_lse=True, **options)
    output, lse = adapter.varlen_attention(
        *chunked(given, chunks), STARTS_Q, STARTS_K, return_lse=True, split_every=2, **options
    )
    assert (output.shape, output.dtype, output.chunks[0]) == (expected.shape, expected.dtype, output.chunks[0])
    assert (lse.shape, lse.dtype) == (expected_lse.shape, expected_lse.dtype)
    found, found_lse = da.compute(output, lse, scheduler="sync")
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found_lse, expected_lse, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dtypes(dtype: Any) -> None:
    given = arrays(dtype)
    expected = hw.varlen_attention(*given, STARTS_Q, STARTS_K)
    found = adapter.varlen_attention(*chunked(given, CHUNKS["all axes"]), STARTS_Q, STARTS_K)
    assert found.dtype == expected.dtype
    tolerance = {"float16": 4e-3, "float32": 2e-6}[expected.dtype.name]
    np.testing.assert_allclose(found.compute(), expected, rtol=tolerance, atol=tolerance)


def test_chunks_without_a_common_sequence_are_no_tasks() -> None:
    x = da.zeros((60, 2, 8), chunks=(10, 2, 8))

    def count(**options: Any) -> int:
        graph = adapter.varlen_attention(x, x, x, [0, 15, 40, 60], **options).__dask_graph__()
        return sum(str(key[0]).startswith("part-") for key in graph if isinstance(key, tuple))

    assert count() == 2 * 2 + 3 * 3 + 2 * 2 - 1  # the second chunk has rows of two sequences
    assert count(is_causal=True) == 3 + 6 + 3 - 1


def test_nan_of_another_sequence_reaches_nothing() -> None:
    q, k, v = arrays()
    k[9:12] = v[9:12] = np.nan  # keys of a sequence without queries
    found = adapter.varlen_attention(*chunked([q, k, v], CHUNKS["all axes"]), STARTS_Q, STARTS_K)
    np.testing.assert_allclose(
        found.compute(), hw.varlen_attention(q, k, v, STARTS_Q, STARTS_K), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"cu_seqlens_q": [0, 40]}, ValueError, "cu_seqlens_q: ends at 40"),
        ({"cu_seqlens_k": None}, ValueError, "cu_seqlens_k: None"),
        ({"cu_seqlens_q": da.arange(3)}, TypeError, "cu_seqlens_q: a Dask collection, expected an array in memory"),
        ({"query": np.ones((41, 8))}, ValueError, "query: shape"),
        ({"sinks": np.ones(3)}, ValueError, "sinks: shape"),
        ({"relative_bias": np.ones((4, 41, 6))}, ValueError, "relative_bias: shape"),
        ({"split_every": 1}, ValueError, "split_every: 1"),
        ({"out": None}, TypeError, "out: not a keyword here; results are lazy"),
        ({"mask": None}, TypeError, "mask: not a keyword here"),
    ],
)
def test_bad_arguments_are_refused_at_once(change: dict[str, Any], error: type[Exception], words: str) -> None:
    given = dict(zip(("query", "key", "value"), arrays(), strict=True))
    with pytest.raises(error, match=words):
        adapter.varlen_attention(**{**given, "cu_seqlens_q": STARTS_Q, "cu_seqlens_k": STARTS_K, **change})


def gradients(given: list[Any], chunks: Any, **options: Any) -> tuple[Any, Any]:
    """Those of chunks, and those of one call."""
    output, lse = hw.varlen_attention(*given, STARTS_Q, STARTS_K, return_lse=True, **options)
    d_output, d_lse = normal(output.shape, 8, output.dtype), normal(lse.shape, 9, lse.dtype)
    starts = STARTS_Q, STARTS_K
    expected = hw.varlen_attention_backward(d_output, *given, output, lse, *starts, d_lse=d_lse, **options)
    lazy = chunked(given, chunks)
    forward = adapter.varlen_attention(*lazy, *starts, return_lse=True, **options)
    found = adapter.varlen_attention_backward(d_output, *lazy, *forward, *starts, d_lse=d_lse, split_every=2, **options)
    assert [(d.shape, d.dtype) for d in found] == [(d.shape, d.dtype) for d in expected]
    return da.compute(*found, scheduler="sync"), expected


@pytest.mark.parametrize("chunks", ["all axes", "rows"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_gradients_of_chunks_are_those_of_one_call(options: dict[str, Any], chunks: str) -> None:
    for found, expected in zip(*gradients(arrays(), CHUNKS[chunks], **options), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-5), (np.float16, 2e-2)])
def test_dtypes_of_gradients(dtype: Any, tolerance: float) -> None:
    for found, expected in zip(*gradients(arrays(dtype), CHUNKS["all axes"], is_causal=True), strict=True):
        assert found.dtype == expected.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_bad_arguments_of_gradients() -> None:
    given, output = arrays(), np.ones((41, 4, 6))
    with pytest.raises(ValueError, match="wrt: 'sinks', expected some of query, key, value"):
        adapter.varlen_attention_backward(None, *given, output, output[..., 0].T, STARTS_Q, STARTS_K, wrt="sinks")
    with pytest.raises(ValueError, match="lse: shape"):
        adapter.varlen_attention_backward(None, *given, output, output[..., 0], STARTS_Q, STARTS_K)
    found = adapter.varlen_attention_backward(None, *given, output, output[..., 0].T, STARTS_Q, STARTS_K, wrt="key")
    assert found._fields == ("d_key",) and not found.d_key.compute().any()
