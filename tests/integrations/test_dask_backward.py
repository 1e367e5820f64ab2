"""headwise.integrations.dask.flash_attention_backward: gradients of chunks are those of one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
from support import normal

da: Any = pytest.importorskip("dask.array", reason="the package dask is not installed")
adapter: Any = pytest.importorskip("headwise.integrations.dask")

pytestmark = pytest.mark.above_operations

QUERY, KEY, VALUE = (2, 4, 45, 8), (2, 2, 61, 8), (2, 2, 61, 6)
CHUNKS = {"all axes": ((1, 2, 16, 5), (2, 1, 13, 8), 17), "uneven": ((2, 4, (3, 42), 8), (2, 2, (60, 1), 8), -1)}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window, sinks": {"window_size": (10, 3), "causal_alignment": "lower_right", "sinks": normal((4,), 3)},
    "mask, bias": {"mask": normal((45, 61), 5) > 0.5, "bias": normal((4, 1, 61), 6), "softcap": 2.0},
    "lengths": {"key_lengths": [50, 0], "relative_bias": normal((4, 1, 9), 7), "is_causal": True},
    "blocks": {"mask": hw.BlockMask.documents(np.arange(45) // 20, np.arange(61) // 22)},
}


def arrays(dtype: Any = np.float64) -> list[Any]:
    return [normal(shape, seed, np.float64).astype(dtype) for seed, shape in enumerate((QUERY, KEY, VALUE))]


def gradients(given: list[Any], chunks: Any, **options: Any) -> tuple[Any, Any]:
    """Those of chunks, and those of one call."""
    lazy = [da.from_array(a, chunks=c) for a, c in zip(given, chunks, strict=True)]
    output, lse = hw.flash_attention(*given, return_lse=True, **options)
    d_output, d_lse = normal(output.shape, 8, output.dtype), normal(lse.shape, 9, lse.dtype)
    expected = hw.flash_attention_backward(d_output, *given, output, lse, d_lse=d_lse, **options)
    forward = adapter.flash_attention(*lazy, return_lse=True, **options)
    found = adapter.flash_attention_backward(d_output, *lazy, *forward, d_lse=d_lse, split_every=2, **options)
    assert [(d.shape, d.dtype) for d in found] == [(d.shape, d.dtype) for d in expected]
    return da.compute(*found, scheduler="sync"), expected


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=list(CHUNKS))
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_chunks_are_one_call(options: dict[str, Any], chunks: Any) -> None:
    for found, expected in zip(*gradients(arrays(), chunks, **options), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-5), (np.float16, 2e-2)])
def test_dtypes(dtype: Any, tolerance: float) -> None:
    for found, expected in zip(*gradients(arrays(dtype), CHUNKS["all axes"], is_causal=True), strict=True):
        assert found.dtype == expected.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_some_gradients_without_that_of_the_output() -> None:
    q, k, v = (normal((9, 4), seed, np.float64) for seed in range(3))
    output, lse = hw.flash_attention(q, k, v, return_lse=True)
    found = adapter.flash_attention_backward(None, q, k, v, output, lse, wrt="key", d_lse=np.ones(9))
    assert found._fields == ("d_key",)
    expected = hw.flash_attention_backward(None, q, k, v, output, lse, wrt="key", d_lse=np.ones(9))
    np.testing.assert_allclose(found.d_key.compute(), expected.d_key, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"wrt": ("bias",)}, ValueError, "wrt: 'bias', expected some of query, key, value"),
        ({"lse": np.ones((2, 4, 44))}, ValueError, "lse: shape"),
        ({"d_output": np.ones((2, 4, 45, 5))}, ValueError, "d_output: shape"),
        ({"relative_values": None}, TypeError, "relative_values: not a keyword here; relative values join"),
        ({"score_mod": None}, TypeError, "score_mod: not a keyword here; a function of the scores has no gradient"),
        ({"rng": 1}, TypeError, "rng: not a keyword here; dropout is not applied over chunks"),
        ({"split_every": 1}, ValueError, "split_every: 1"),
    ],
)
def test_bad_arguments_are_refused_at_once(change: dict[str, Any], error: type[Exception], words: str) -> None:
    given = dict(zip(("query", "key", "value"), arrays(), strict=True))
    output = np.ones((2, 4, 45, 6))
    with pytest.raises(error, match=words):
        adapter.flash_attention_backward(
            **{"d_output": output, **given, "output": output, "lse": output[..., 0], **change}
        )
