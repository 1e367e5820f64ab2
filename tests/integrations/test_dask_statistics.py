"""headwise.integrations.dask.attention_statistics: statistics of chunks are those of one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
from support import normal

da: Any = pytest.importorskip("dask.array", reason="the package dask is not installed")
dask: Any = pytest.importorskip("dask")
adapter: Any = pytest.importorskip("headwise.integrations.dask")

pytestmark = pytest.mark.above_operations

EVERY = ("key_mass", "entropy", "max_weight", "top_k", "block_mass", "lse")
QUERY, KEY = (2, 4, 45, 8), (2, 2, 61, 8)
CHUNKS = {
    "one": (QUERY, KEY),
    "all axes": ((1, 2, 16, 5), (2, 1, 13, 8)),
    "uneven": ((2, 4, (3, 42), 8), (2, 2, (60, 1), 8)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "k": 20},
    "window, sinks": {"window_size": (10, 3), "causal_alignment": "lower_right", "sinks": normal((4,), 3), "k": 61},
    "averaged": {"average_heads": True, "is_causal": True, "block_size": (7, 9)},
    "mask, bias": {"mask": normal((45, 61), 5) > 0.5, "bias": normal((4, 1, 61), 6), "softcap": 2.0},
    "lengths": {"key_lengths": [50, 0], "relative_bias": normal((4, 1, 9), 7), "k": 3},
    "blocks": {"mask": hw.BlockMask.documents(np.arange(45) // 20, np.arange(61) // 22), "block_size": 16},
    "score_mod": {"score_mod": lambda score, b, h, q, k: score - 0.2 * h + np.sin(q * 0.3 + b) * np.cos(k * 0.7)},
}  # fmt: skip


def arrays(dtype: Any = np.float64) -> list[Any]:
    return [normal(shape, seed, np.float64).astype(dtype) for seed, shape in enumerate((QUERY, KEY))]


def statistics(query: Any, key: Any, chunks: Any, **options: Any) -> Any:
    lazy = [da.from_array(a, chunks=c) for a, c in zip((query, key), chunks, strict=True)]
    found = adapter.attention_statistics(*lazy, split_every=2, **options)
    assert {name for name in EVERY if getattr(found, name) is not None} == set(options.get("which", EVERY[:-1]))
    return found


def check(found: Any, expected: Any, tolerance: float) -> None:
    computed = dask.compute(*found, scheduler="sync")
    for name, lazy, a, b in zip(expected._fields, found, computed, expected, strict=True):
        if b is None:
            assert lazy is None, name
        elif name == "top_k":
            np.testing.assert_allclose(a.weights, b.weights, rtol=tolerance, atol=tolerance, err_msg=name)
            np.testing.assert_array_equal(a.indices, b.indices)
        else:
            assert (lazy.shape, lazy.dtype, a.shape, a.dtype) == (b.shape, b.dtype) * 2, name
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=list(CHUNKS))
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_chunks_are_one_call(options: dict[str, Any], chunks: Any) -> None:
    given = arrays()
    check(
        statistics(*given, chunks, which=EVERY, **options),
        hw.attention_statistics(*given, which=EVERY, **options),
        1e-11,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dtypes(dtype: Any) -> None:
    given = arrays(dtype)
    which = ("key_mass", "entropy", "max_weight", "block_mass", "lse")
    check(statistics(*given, CHUNKS["all axes"], which=which), hw.attention_statistics(*given, which=which), 2e-5)


@pytest.mark.parametrize("shapes", [((9, 4), (11, 4)), ((2, 9, 4), (2, 11, 4)), ((2, 3, 4, 9, 4), (2, 3, 2, 11, 4))])
@pytest.mark.parametrize("average", [False, True])
def test_ranks(shapes: Any, average: bool) -> None:
    given = [normal(shape, seed, np.float64) for seed, shape in enumerate(shapes)]
    options: dict[str, Any] = {"which": EVERY, "average_heads": average, "block_size": 2, "k": 4}
    check(statistics(*given, (3, 5), **options), hw.attention_statistics(*given, **options), 1e-11)


@pytest.mark.parametrize("average", [False, True])
def test_empty_chunks(average: bool) -> None:
    """Of batch entries, heads, queries and keys; such chunks come from selections."""
    chunks = ((0, 2), (0, 2, 2), (20, 0, 25), 8), (2, (0, 1, 1), (0, 60, 1), 8)
    options: dict[str, Any] = {"which": EVERY, "average_heads": average, "is_causal": True}
    check(statistics(*arrays(), chunks, **options), hw.attention_statistics(*arrays(), **options), 1e-11)


@pytest.mark.parametrize("shape", [(0, 2, 5, 4), (2, 0, 5, 4), (2, 2, 0, 4)])
def test_empty_arrays(shape: tuple[int, ...]) -> None:
    query, key = np.zeros(shape), np.zeros((*shape[:2], 6, 4))
    check(statistics(query, key, (-1, -1), which=EVERY), hw.attention_statistics(query, key, which=EVERY), 1e-11)


def test_masked_nan_reaches_nothing() -> None:
    q, k = arrays()
    keep = np.arange(61) < 40
    k[..., 40:, :] = np.nan
    check(statistics(q, k, CHUNKS["all axes"], mask=keep), hw.attention_statistics(q, k, mask=keep), 1e-11)


def test_a_query_of_nan() -> None:
    q, k = arrays()
    q[0, 1, 7] = np.nan
    check(statistics(q, k, CHUNKS["all axes"], which=EVERY), hw.attention_statistics(q, k, which=EVERY), 1e-11)


def test_a_large_score_is_the_weight_of_its_key_alone() -> None:
    """The log-sum-exp of the parts differ by more than the range of exp."""
    q, k = np.ones((6, 1), np.float32), np.zeros((20, 1), np.float32)
    k[13] = 1000
    check(statistics(q, k, (3, 4), which=EVERY, k=2), hw.attention_statistics(q, k, which=EVERY, k=2), 1e-6)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"which": "mass"}, ValueError, "which: 'mass'"),
        ({"k": 62}, ValueError, "k: 62"),
        ({"block_size": 0}, ValueError, "block_size"),
        ({"average_heads": "yes"}, TypeError, "average_heads"),
        ({"mask": np.ones((45, 61))}, TypeError, "mask: dtype float64"),
        ({"key": np.ones((2, 2, 61, 7))}, ValueError, "key: shape"),
        ({"split_every": 1}, ValueError, "split_every: 1"),
        ({"dropout_rate": 0.5}, TypeError, "dropout_rate: not a keyword here; dropout is not applied over chunks"),
    ],
)
def test_bad_arguments_are_refused_at_once(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        adapter.attention_statistics(**{**dict(zip(("query", "key"), arrays(), strict=True)), **change})
