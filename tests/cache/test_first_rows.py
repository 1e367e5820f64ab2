"""Rings that keep their first rows (`keep_first`): attention with a mask of the first keys and of a window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
from cache.sequences import CHUNKS, KEYWORDS, LENGTH, arrays, close, make, of_step, split, steps, whole
from headwise._kv_cache import by_entry

pytestmark = pytest.mark.above_operations


def visible(length: int, capacity: int, first: int, left: int = -1) -> np.ndarray:
    """(length, length): the keys that a query sees, without causality."""
    query, key = np.mgrid[:length, :length]
    kept = (key < first) | (key > query - (capacity - first))
    return kept if left < 0 else kept & (key >= query - left)


def columns(rows: slice, capacity: int, first: int) -> np.ndarray:
    """The keys of a step's scores: the first ones, and those that its queries see besides."""
    seen = min(rows.stop, capacity - 1 + rows.stop - rows.start)
    return np.r_[: min(first, rows.stop), rows.stop - seen + first : rows.stop]


RINGS = [(2, 1), (9, 1), (9, 4), (9, 8), (30, 4), (60, 3)]


@pytest.mark.parametrize(("capacity", "first"), RINGS)
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_the_first_rows_stay(chunks: list[int], capacity: int, first: int) -> None:
    given, cache = arrays(), make(capacity=capacity, ring=True, keep_first=first)
    close(split(cache, given, chunks), whole(given, mask=visible(LENGTH, capacity, first)))
    kept = np.r_[:first, max(first, LENGTH - capacity + first) : LENGTH]
    for i in range(2):
        np.testing.assert_array_equal(cache.entry(i)[0], given[1][i][:, kept])
        np.testing.assert_array_equal(cache.entry(i)[1], given[2][i][:, kept])
    np.testing.assert_array_equal(cache.keys, given[1][:, :, kept])
    assert len(cache) == LENGTH and cache.positions().tolist() == [LENGTH]


def test_many_steps_of_sequences_of_different_lengths() -> None:
    given, capacity, first = arrays(length=400), 20, 3
    expected = whole(given, mask=visible(400, capacity, first))
    cache, rng = make(capacity=capacity, ring=True, keep_first=first), np.random.default_rng(0)
    while min(cache.lengths) < 340:
        new = int(rng.choice([1, 1, 1, 2, 17, 50]))
        counts = np.minimum(rng.integers(0, new + 1, 2), 400 - cache.lengths)
        rows = np.minimum(cache.lengths[:, np.newaxis] + np.arange(new), 399)
        parts = [np.take_along_axis(a, rows[:, np.newaxis, :, np.newaxis], axis=2) for a in given]
        output = cache.extend(*parts, lengths=counts)
        for i, count in enumerate(counts):
            close(output[i, :, :count], expected[i][:, rows[i, :count]])
            assert not output[i, :, count:].any()


@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=KEYWORDS)
@pytest.mark.parametrize("chunks", [CHUNKS["uneven"], CHUNKS["prompt-and-tokens"]], ids=["uneven", "tokens"])
def test_keywords(chunks: list[int], keywords: dict[str, Any]) -> None:
    """Windows and ALiBi count the dropped positions; masks, biases and weights have a column for each visible key."""
    given, capacity, first = arrays(), 12, 3
    size = keywords.get("window_size", -1)
    mask = np.where(visible(LENGTH, capacity, first, size if isinstance(size, int) else size[0]), 0.0, -np.inf)
    scores = {name: value for name, value in keywords.items() if name not in ("window_size", "bias")}
    bias = np.asarray(keywords.get("bias", np.zeros((1, 1))) + mask, np.float32)
    output, weights, lse = hw.scaled_dot_product_attention(*given, bias=bias, is_causal=True, return_lse=True, **scores)
    cache, plain = (make(capacity=capacity, ring=True, keep_first=first) for _ in range(2))
    for rows in steps(chunks):
        seen = columns(rows, capacity, first)
        passed = {
            name: value[..., rows, :] if "bias" in name or name == "mask" else value for name, value in keywords.items()
        }
        passed |= {name: passed[name][..., seen] for name in ("mask", "bias") if name in passed}
        parts = [a[:, :, rows] for a in given]
        close(plain.extend(*parts, **passed), output[:, :, rows])
        result = cache.extend(*parts, need_weights=True, return_lse=True, **passed)
        expected = output[:, :, rows], weights[:, :, rows][..., seen], lse[:, :, rows]
        for ours, theirs in zip(result, expected, strict=True):
            close(ours, theirs)


def test_a_prompt_in_blocks_with_masks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of queries keep masks small for long prompts; here they have 3 queries."""
    given, capacity, first = arrays(length=150), 40, 4
    monkeypatch.setattr(by_entry, "_MASK_BLOCK", 600)
    for lengths in (None, [150, 90]):
        cache = make(capacity=capacity, ring=True, keep_first=first)
        output, weights, lse = cache.extend(*given, lengths=lengths, need_weights=True, return_lse=True)
        masked = {"mask": visible(150, capacity, first), "is_causal": True, "return_lse": True}
        expected = hw.scaled_dot_product_attention(*given, **masked)
        for i, length in enumerate(lengths or [150, 150]):
            for ours, theirs in zip((output, lse), (expected[0], expected[2]), strict=True):
                close(ours[i, :, :length], theirs[i, :, :length])
            close(weights[i, :, :length, :length], expected[1][i, :, :length, :length])


@pytest.mark.parametrize("step", [1, 7])
def test_truncate_and_refuse(step: int) -> None:
    """The latest positions can be removed as from other rings, and a refused call leaves the rows as they were."""
    given, capacity, first = arrays(length=200), 24, 4
    expected = whole(given, mask=visible(200, capacity, first))
    cache = make(capacity=capacity, ring=True, keep_first=first)
    for start in range(0, 180, step):
        rows = slice(start, start + step)
        parts = [a[:, :, rows] for a in given]
        cache.extend(*(np.full_like(a[:, :, :16], np.nan) for a in given))
        cache.truncate(start)
        with pytest.raises(ValueError, match="mask"):
            cache.extend(*parts, mask=np.ones((3, 2)))
        close(cache.extend(*parts), expected[:, :, rows])


def test_what_is_not_kept_has_no_influence() -> None:
    given, capacity, first = arrays(length=90), 10, 2
    expected = whole(given, mask=visible(90, capacity, first))
    for a in given[1:]:
        a[:, :, first:70] = np.nan
    cache = make(capacity=capacity, ring=True, keep_first=first)
    output = split(cache, given, [60, 20, *[1] * 10])
    close(output[:, :, 80:], expected[:, :, 80:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_first": 5}, "keep_first: 5, expected less than the capacity 5"),
        ({"keep_first": -1}, "keep_first: -1, expected at least 0"),
        ({"keep_first": 1, "ring": False}, "keep_first: 1, expected 0 without ring=True"),
    ],
)
def test_bad_numbers_of_first_rows(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        hw.KVCache(**{"batch_size": 1, "num_kv_heads": 1, "capacity": 5, "head_dim": 2, "ring": True, **changes})


def test_steps_use_every_part_of_a_mask() -> None:
    """The helpers of this file agree: a step's columns are the visible keys of its queries."""
    for rows in steps(CHUNKS["uneven"]):
        seen = columns(rows, 12, 3)
        part = of_step({"mask": np.tril(visible(LENGTH, 12, 3))}, rows, slice(None))["mask"]
        assert set(np.flatnonzero(part.any(axis=0))) <= set(seen)
