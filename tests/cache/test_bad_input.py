"""Errors of the cache: their type, the argument that they name, and that the cache is unchanged."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest

import headwise as hw
from headwise._kv_cache.cache import extension
from support import normal

pytestmark = pytest.mark.above_operations

X = normal((2, 2, 3, 4))
GOOD = {"query": normal((2, 4, 3, 4)), "key": X, "value": X}


def full() -> hw.KVCache:
    cache = hw.KVCache(2, 2, capacity=5, head_dim=4)
    cache.append(X[:, :, :2], X[:, :, :2])
    return cache


def bad(changes: dict[str, Any], error: type[Exception], names: str, call: str = "extend", ring: bool = False) -> None:
    """``call`` raises ``error``, whose message has each of ``names``, and the cache is unchanged."""
    cache = full()
    if ring:
        cache = hw.KVCache(2, 2, capacity=5, head_dim=4, ring=True)
        cache.append(X[:, :, :2], X[:, :, :2])
    arguments = ({name: a for name, a in GOOD.items() if call != "append" or name != "query"}) | changes
    with pytest.raises(error) as refusal:
        getattr(cache, call)(**arguments)
    assert type(refusal.value) is error
    for name in names.split():
        assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(refusal.value)), f"{refusal.value!r}: no {name}"
    assert cache.lengths.tolist() == [2, 2]
    np.testing.assert_array_equal(cache.keys, X[:, :, :2])
    np.testing.assert_array_equal(cache.values, X[:, :, :2])
    cache.extend(**GOOD)


NEW_ROWS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"key": X[:1]}, ValueError, "key (1, 2, 3, 4) (2, 2, new, 4)"),
    ({"key": X[:, :1]}, ValueError, "key 1 2"),
    ({"value": normal((2, 4, 3, 4))}, ValueError, "value 4 2"),
    ({"key": X[..., :3]}, ValueError, "key (2, 2, 3, 3) (2, 2, new, 4)"),
    ({"value": X[..., :3]}, ValueError, "value (2, 2, 3, 3)"),
    ({"value": X[:, :, :2]}, ValueError, "value key 2 3"),
    ({"key": X[0]}, ValueError, "key (2, 3, 4)"),
    ({"key": None}, TypeError, "key"),
    ({"value": "text"}, TypeError, "value"),
    ({"key": X.astype(np.float64)}, TypeError, "key float64 float32"),
    ({"value": X.astype(np.float16)}, TypeError, "value float16 float32"),
    ({"key": X.astype(int)}, TypeError, "key int64 float32"),
    ({"key": X + 1j}, TypeError, "key"),
    ({"lengths": [3, 4]}, ValueError, "lengths 4 3"),
    ({"lengths": [-1, 3]}, ValueError, "lengths -1 3"),
    ({"lengths": [3]}, ValueError, "lengths (1,) (2,)"),
    ({"lengths": 3}, ValueError, "lengths (2,)"),
    ({"lengths": [1.0, 2.0]}, TypeError, "lengths float64 integers"),
    ({"lengths": [True, False]}, TypeError, "lengths bool integers"),
]


@pytest.mark.parametrize("call", ["append", "extend"])
@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize(("changes", "error", "names"), NEW_ROWS, ids=[str(row[2]) for row in NEW_ROWS])
def test_bad_new_rows(changes: dict[str, Any], error: type[Exception], names: str, call: str, ring: bool) -> None:
    bad(changes, error, names, call, ring)


POSITIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"positions": [1, 2]}, ValueError, "positions (2,) (3,) (2, 3)"),
    ({"positions": 1}, ValueError, "positions () (3,)"),
    ({"positions": [1.0, 2.0, 3.0]}, TypeError, "positions float64 integers"),
    ({"positions": "next"}, TypeError, "positions"),
    ({"positions": [0, -1, 1]}, ValueError, "positions -1"),
    ({"positions": [[0, 1, 2], [1, 2, 1]]}, ValueError, "positions 1 once sequence"),
    ({"positions": [0, 1, 3]}, ValueError, "positions 3 2 gap length"),
    ({"positions": [4, 3, 5]}, ValueError, "positions"),
    ({"positions": np.array([2, 3, 2**64 - 1], np.uint64)}, ValueError, f"positions {2**64 - 1}"),
    ({"positions": [0, 1, 2], "lengths": [3, 4]}, ValueError, "lengths 4 3"),
    ({"positions": [0, 1, 2], "key": X[:, :1]}, ValueError, "key 1 2"),
]


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize(("changes", "error", "names"), POSITIONS, ids=[str(row[2]) for row in POSITIONS])
def test_bad_positions_of_new_rows(changes: dict[str, Any], error: type[Exception], names: str, ring: bool) -> None:
    bad(changes, error, names, "append", ring)


def test_positions_that_the_cache_cannot_hold() -> None:
    bad({"positions": [2, 3, 5], "lengths": [3, 3]}, ValueError, "positions 5 capacity", "append")
    ring = hw.KVCache(2, 2, capacity=5, head_dim=4, ring=True, keep_first=1)
    ring.append(*[normal((2, 2, 100, 4))] * 2)
    kept = ring.keys.copy()
    with pytest.raises(ValueError, match=r"^positions: 40 of sequence 0, but the ring has dropped"):
        ring.append(X, X, positions=[0, 40, 99])
    np.testing.assert_array_equal(ring.keys, kept)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"positions": [0, 1]}, ValueError, r"positions: shape \(2,\)"),
        ({"positions": [0, 1, 2]}, ValueError, "positions: 2 of sequence 0, expected less than the length 2"),
        ({"positions": [0, 1, 1], "lengths": [2, 3]}, ValueError, "positions: not consecutive of sequence 1"),
        ({"positions": [-1, 0, 1]}, ValueError, "positions: -1"),
        ({"positions": [0, 1, 2], "is_causal": False}, ValueError, "positions: .* is_causal=False"),
        ({"positions": [0, 1, 2], "is_causal": None}, TypeError, "is_causal"),
        ({"positions": [0.0, 1.0, 2.0]}, TypeError, "positions: dtype float64"),
    ],
)
def test_bad_positions_of_queries(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        full().attend(GOOD["query"], **options)


QUERIES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"query": normal((2, 3, 3, 4))}, ValueError, "query 3 divisible 2"),
    ({"query": normal((2, 0, 3, 4))}, ValueError, "query 0 2"),
    ({"query": normal((1, 4, 3, 4))}, ValueError, "query (2, heads, new, 4)"),
    ({"query": normal((2, 4, 3, 5))}, ValueError, "query (2, heads, new, 4)"),
    ({"query": normal((4, 3, 4))}, ValueError, "query (4, 3, 4)"),
    ({"query": normal((2, 4, 2, 4))}, ValueError, "query key 2 3"),
    ({"query": normal((2, 4, 3, 4), dtype=np.float64)}, TypeError, "query float64 float32"),
    ({"mask": np.ones((4, 5), bool)}, ValueError, "mask (4, 5)"),
    ({"mask": "causal"}, TypeError, "mask"),
    ({"bias": np.ones((4, 5))}, ValueError, "bias (4, 5)"),
    ({"bias": np.ones((3, 5), bool)}, TypeError, "bias bool"),
    ({"scale": "1"}, TypeError, "scale"),
    ({"scale": np.inf}, ValueError, "scale"),
    ({"window_size": -2}, ValueError, "window_size"),
    ({"window_size": (1, 2, 3)}, ValueError, "window_size"),
    ({"softcap": 0.0}, ValueError, "softcap"),
    ({"alibi_slopes": np.ones(2)}, ValueError, "alibi_slopes (2,) (4,)"),
    ({"sinks": np.ones((4, 1))}, ValueError, "sinks (4,)"),
    ({"need_weights": "no"}, TypeError, "need_weights"),
    ({"return_lse": None}, TypeError, "return_lse"),
    ({"precision": "fast"}, ValueError, "precision"),
    ({"out": np.zeros((2, 4, 3, 5), np.float32)}, ValueError, "out (2, 4, 3, 4)"),
    ({"out": np.zeros((2, 4, 3, 4))}, TypeError, "out float64"),
    ({"out": [0.0]}, TypeError, "out"),
    ({"dropout": 0.1}, TypeError, "dropout keyword"),
    ({"is_causal": None}, TypeError, "is_causal"),
    ({"causal_alignment": "lower_right"}, TypeError, "causal_alignment keyword"),
    ({"windowsize": 3}, TypeError, "windowsize keyword window_size"),
]


@pytest.mark.parametrize("lengths", [None, [3, 3], [3, 2]])
@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize(("changes", "error", "names"), QUERIES, ids=[f"{row[2]}-{n}" for n, row in enumerate(QUERIES)])
def test_bad_queries_and_options(
    changes: dict[str, Any], error: type[Exception], names: str, ring: bool, lengths: list[int] | None
) -> None:
    bad(changes | {"lengths": lengths}, error, names, ring=ring)


def test_out_must_not_overlap_the_cache() -> None:
    cache, query = full(), np.ones((2, 2, 2, 4), np.float32)
    for lengths in (None, [2, 1]):
        with pytest.raises(ValueError, match=r"^out: .*query"):
            cache.attend(query, out=query, lengths=lengths)


def test_rows_beyond_the_capacity() -> None:
    message = r"^key: 3 new rows, but 3 stored rows of sequence 1 leave only 2 of the capacity 5"
    for call in ("append", "extend"):
        cache = full()
        cache.append(X, X, lengths=[0, 1])
        before = cache.lengths.tolist(), [copy.deepcopy(cache.entry(i)) for i in range(2)]
        with pytest.raises(ValueError, match=message):
            getattr(cache, call)(**{name: a for name, a in GOOD.items() if call == "extend" or name != "query"})
        assert cache.lengths.tolist() == before[0]
        for i in range(2):
            np.testing.assert_array_equal(cache.entry(i), before[1][i])
        cache.append(X, X, lengths=[3, 2])
        assert cache.lengths.tolist() == [5, 5]
        with pytest.raises(ValueError, match="key: 1 new rows"):
            cache.append(X[:, :, :1], X[:, :, :1])


def test_more_queries_than_stored_positions() -> None:
    with pytest.raises(ValueError, match=r"^query: 3 rows, expected at most the length 2 of sequence 0"):
        full().attend(GOOD["query"])
    with pytest.raises(ValueError, match=r"^query: 3 rows, expected at most the length 2 of sequence 1"):
        full().attend(GOOD["query"], lengths=[0, 3])


SIZES = {"batch_size": 2, "num_kv_heads": 2, "capacity": 5, "head_dim": 4}


@pytest.mark.parametrize("name", [*SIZES, "value_dim"])
@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), ("2", TypeError)])
def test_bad_sizes(name: str, size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name}: "):
        hw.KVCache(**SIZES | {name: size})


@pytest.mark.parametrize("dtype", [np.int32, np.complex64, bool, "text", "01", "0\x1b", {"names": []}, object])
def test_unsupported_dtypes(dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"^dtype: "):
        hw.KVCache(**SIZES, dtype=dtype)


def test_other_bad_arguments() -> None:
    cache = full()
    with pytest.raises(TypeError, match=r"^ring: "):
        hw.KVCache(**SIZES, ring="yes")  # type: ignore[arg-type]
    with pytest.raises(MemoryError):
        hw.KVCache(**SIZES | {"capacity": 2**62})
    for length, error in ((3, ValueError), (-1, ValueError), ([1, 3], ValueError), ([1], ValueError), (1.0, TypeError)):
        with pytest.raises(error, match=r"^length: "):
            cache.truncate(length)
    for indices, error in (([0, 2], ValueError), ([-1, 0], ValueError), ([0], ValueError), ([0.0, 1.0], TypeError)):
        with pytest.raises(error, match=r"^indices: "):
            cache.reorder(indices)
    for index, error in ((2, ValueError), (-1, ValueError), (0.0, TypeError)):
        with pytest.raises(error, match=r"^index: "):
            cache.entry(index)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^new: "):
        cache.positions(-1)
    assert cache.lengths.tolist() == [2, 2]
    cache.truncate([1, 2])
    for name in ("keys", "values"):
        with pytest.raises(ValueError, match=rf"^{name}: the lengths differ, 1, 2; expected entry\(i\)"):
            getattr(cache, name)


def test_a_ring_cannot_truncate_past_its_capacity() -> None:
    x = normal((1, 1, 1, 4))
    cache = hw.KVCache(1, 1, capacity=8, head_dim=4, ring=True)
    for _ in range(100):
        cache.append(x, x)
    cache.truncate(84)
    with pytest.raises(ValueError, match=r"^length: 40, but the ring has dropped .*, expected 0 or at least \d+"):
        cache.truncate(40)
    assert len(cache) == 84
    cache.truncate(np.int64(0))
    assert len(cache) == 0


@pytest.mark.parametrize("new", [1, 16, 17, 33, 70])
def test_a_ring_is_unchanged_after_a_refused_extend(new: int) -> None:
    """The check comes before rows are moved to make room."""
    cache = hw.KVCache(1, 1, 40, 8, ring=True)
    old, more = normal((1, 1, 70, 8), 1), normal((1, 1, new, 8), 2)
    cache.append(old, old)
    shown = cache.keys.copy()
    with pytest.raises(ValueError, match="mask"):
        cache.extend(more, more, more, mask=np.ones((7, 7)))
    assert len(cache) == 70
    np.testing.assert_array_equal(cache.keys, shown)
    cache.truncate(70 - 16)  # the limit that the documentation states
    np.testing.assert_array_equal(cache.keys[:, :, -1], old[:, :, 53])


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("new", [1, 33])
def test_an_error_after_attention_appends_nothing(new: int, ring: bool) -> None:
    """A layer projects the output before the rows are kept."""
    cache = hw.KVCache(1, 1, 40, 8, ring=ring)
    old, more = normal((1, 1, 7, 8), 1), normal((1, 1, new, 8), 2)
    cache.append(old, old)

    def attend_and_fail() -> None:
        with extension(cache, more, more, more, None) as rows:
            assert rows.attend({}).shape == more.shape
            raise MemoryError

    with pytest.raises(MemoryError):
        attend_and_fail()
    np.testing.assert_array_equal(cache.keys, old)
    with extension(cache, more, more, more, None) as rows:
        output = rows.attend({})
    assert len(cache) == 7 + new
    np.testing.assert_array_equal(cache.attend(more) if new == 1 else output, output)
