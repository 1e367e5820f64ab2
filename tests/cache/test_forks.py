"""Copies and selections of a cache's sequences: forks, beams, and batches from which finished sequences are dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
from cache.sequences import arrays, make, split

pytestmark = pytest.mark.above_operations

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ring": {"ring": True, "capacity": 9},
    "ring that keeps the first": {"ring": True, "capacity": 9, "keep_first": 2},
}


def filled(kind: dict[str, Any], lengths: list[int]) -> tuple[hw.KVCache, tuple[np.ndarray, ...]]:
    given = arrays(length=80, batch=3)
    cache = make(batch=3, **{"capacity": 100, **kind})
    for rows in (slice(0, 30), slice(30, 60)):
        counts = [max(0, min(n, rows.stop) - rows.start) for n in lengths]
        cache.append(*(a[:, :, rows] for a in given[1:]), lengths=counts)
    return cache, tuple(a[:, :, 60:] for a in given)


@pytest.mark.parametrize("indices", [[0], [2, 2], [1, 2, 0], [0, 0, 0, 2, 1]])
@pytest.mark.parametrize("lengths", [[60, 60, 60], [60, 31, 0]])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_select(kind: dict[str, Any], lengths: list[int], indices: list[int]) -> None:
    """The chosen sequences continue with the bits that they would have had, and share nothing with the original."""
    cache, more = filled(kind, lengths)
    chosen = cache.select(np.array(indices))
    assert chosen.batch_size == len(indices) and chosen.lengths.tolist() == [lengths[i] for i in indices]
    assert (chosen.capacity, chosen.ring, chosen.keep_first) == (cache.capacity, cache.ring, cache.keep_first)
    for place, i in enumerate(indices):
        for ours, theirs in zip(chosen.entry(place), cache.entry(i), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert not np.shares_memory(ours, theirs)
    result = split(chosen, tuple(a[indices] for a in more), [1, 5, 12, 2])  # type: ignore[arg-type]
    assert cache.lengths.tolist() == lengths
    np.testing.assert_allclose(result, split(cache, more, [1, 5, 12, 2])[indices], rtol=0, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_copy(kind: dict[str, Any]) -> None:
    cache, more = filled(kind, [60, 60, 25])
    fork = cache.copy()
    assert fork.lengths.tolist() == [60, 60, 25]
    expected = split(cache, more, [3, 17])  # type: ignore[arg-type]
    assert fork.lengths.tolist() == [60, 60, 25]
    np.testing.assert_array_equal(split(fork, more, [3, 17]), expected)  # type: ignore[arg-type]


def test_subclasses_and_attributes_are_kept() -> None:
    class Named(hw.KVCache):
        pass

    cache = Named(1, 1, capacity=2, head_dim=3)
    cache.name = "fork"  # type: ignore[attr-defined]
    assert type(cache.copy()) is Named and cache.select([0, 0]).name == "fork"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, 3], ValueError, "indices: 3, expected 0 to 2"),
        ([-1], ValueError, "indices: -1, expected 0 to 2"),
        ([], ValueError, r"indices: shape \(0,\), expected \(new_batch,\)"),
        (1, ValueError, r"indices: shape \(\), expected"),
        ([[0]], ValueError, r"indices: shape \(1, 1\)"),
        ([0.0], TypeError, "indices: dtype float64, expected integers"),
        ([True], TypeError, "indices: dtype bool"),
        (None, TypeError, "indices: None"),
    ],
)
def test_bad_indices(indices: Any, error: type[Exception], message: str) -> None:
    cache, _ = filled({}, [4, 2, 0])
    with pytest.raises(error, match=f"^{message}"):
        cache.select(indices)
    assert cache.lengths.tolist() == [4, 2, 0]
