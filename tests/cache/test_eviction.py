"""KVCache.evict: later queries see the rows that are left, at the positions that these had."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import headwise as hw
from cache.sequences import BATCH, KEYWORDS, KV_HEADS, LENGTH, arrays, close, make
from support import dtype_named, normal

pytestmark = pytest.mark.above_operations

PROMPT, KEEP = 40, 17
SCORES = normal((BATCH, PROMPT), 5)
#: What is evicted has no columns, so masks have those of the rows that are left.
BY_COLUMN = {"mask", "bias"}


def kept_of(scores: np.ndarray, keep: int = KEEP) -> np.ndarray:
    return np.sort(np.argsort(-scores, axis=1)[:, :keep], axis=1)


def masked(kept: np.ndarray, length: int = LENGTH, prompt: int = PROMPT) -> np.ndarray:
    """(batch, 1, 1, length): the keys that are left."""
    mask = np.ones((len(kept), 1, 1, length), bool)
    for m, rows in zip(mask, kept, strict=True):
        m[..., :prompt] = np.isin(np.arange(prompt), rows)
    return mask


@pytest.mark.parametrize("chunks", [[13], [1] * 13, [5, 0, 8]], ids=str)
@pytest.mark.parametrize("name", [name for name, these in KEYWORDS.items() if not BY_COLUMN & set(these)])
def test_later_queries_see_the_rows_that_are_left(name: str, chunks: list[int]) -> None:
    given, cache, keywords = arrays(), make(capacity=PROMPT), KEYWORDS[name]
    cache.extend(*(a[:, :, :PROMPT] for a in given))
    kept = cache.evict(SCORES, keep=KEEP)
    np.testing.assert_array_equal(kept, kept_of(SCORES))
    assert len(cache) == PROMPT and cache.positions(2).tolist() == [PROMPT, PROMPT + 1]
    expected = hw.flash_attention(*given, masked(kept), is_causal=True, **keywords)
    start = PROMPT
    for count in chunks:
        rows = slice(start, start + count)
        of_step = dict(keywords)
        if "relative_bias" in of_step:
            of_step["relative_bias"] = of_step["relative_bias"][:, rows]
        close(cache.extend(*(a[:, :, rows] for a in given), **of_step), expected[:, :, rows])
        start += count
    assert cache.keys.shape[2] == KEEP + 13
    assert cache.key_positions(1).tolist() == [*kept[1], *range(PROMPT, LENGTH)]


def test_masks_have_the_columns_that_are_left() -> None:
    given, cache = arrays("float64"), make("float64")
    cache.append(*(a[:, :, :PROMPT] for a in given[1:]))
    kept = cache.evict(SCORES, keep=KEEP)
    query, key, value = (a[:, :, PROMPT:] for a in given)
    bias = normal((1, 1, 13, LENGTH), 7)
    columns = np.concatenate([kept, np.tile(np.arange(PROMPT, LENGTH), (BATCH, 1))], axis=1)
    own = np.take_along_axis(np.broadcast_to(bias, (BATCH, 1, 13, LENGTH)), columns[:, None, None], axis=3)
    options: dict[str, Any] = {"alibi_slopes": np.array([0.5, 0.25, 0.125, 1.5]), "window_size": 30}
    output, weights = cache.extend(query, key, value, bias=own, need_weights=True, **options)
    expected, all_weights = hw.scaled_dot_product_attention(
        given[0], *given[1:], masked(kept), is_causal=True, bias=np.pad(bias, ((0, 0), (0, 0), (PROMPT, 0), (0, 0))),
        **options,
    )  # fmt: skip
    close(output, expected[:, :, PROMPT:])
    close(weights, np.take_along_axis(all_weights[:, :, PROMPT:], columns[:, None, None], axis=3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_storage_types(dtype: str) -> None:
    """Rows and their factors are moved, not encoded again."""
    given = arrays()
    dtypes = {"int8": "int8"}.get(dtype, dtype_named(dtype))
    caches = [
        hw.KVCache(BATCH, KV_HEADS, LENGTH, given[1].shape[3], value_dim=given[2].shape[3], dtype=dtypes) for _ in "ab"
    ]
    for cache in caches:
        cache.append(*(a[:, :, :PROMPT] for a in given[1:]))
    kept = caches[0].evict(SCORES, keep=KEEP)
    index = kept[:, np.newaxis, :, np.newaxis]
    for left, all_rows in ((caches[0].keys, caches[1].keys), (caches[0].values, caches[1].values)):
        np.testing.assert_array_equal(left, np.take_along_axis(np.asarray(all_rows), index, axis=2))
    later = [a[:, :, PROMPT:] for a in given]
    expected = caches[1].extend(*later, mask=masked(kept))
    np.testing.assert_allclose(caches[0].extend(*later), expected, atol=1e-5)


def test_sequences_of_different_lengths() -> None:
    given, cache = arrays("float64"), make("float64")
    lengths = [PROMPT, 20]
    cache.append(*(a[:, :, :PROMPT] for a in given[1:]), lengths=lengths)
    kept = cache.evict(SCORES, keep=25)
    assert kept.shape == (BATCH, 25) and kept[1].tolist() == [*range(20), *[-1] * 5]
    assert cache.lengths.tolist() == lengths
    for i, length in enumerate(lengths):
        rows = kept[i][kept[i] >= 0]
        np.testing.assert_array_equal(cache.entry(i)[0], given[1][i][:, rows])
        query = given[0][:, :, :1]
        output = cache.attend(query, window_size=(15, 0))[i]
        seen = rows[rows >= length - 1 - 15]
        close(output[None], hw.flash_attention(query[i : i + 1], *(a[i : i + 1, :, seen] for a in given[1:])))
    with pytest.raises(ValueError, match=r"lengths differ.*entry\(i\)"):
        _ = cache.keys
    cache.append(*(a[:, :, :20] for a in given[1:]), lengths=[0, 20])
    with pytest.raises(ValueError, match=r"has left differ.*entry\(i\)"):
        _ = cache.keys


def test_again_and_again() -> None:
    """The prompt and the tokens of a stream, in the memory of 24 rows."""
    given, cache = arrays("float64"), make("float64", capacity=24)
    left = np.empty((BATCH, 0), int)
    rng = np.random.default_rng(2)
    for start in range(0, LENGTH, 4):
        rows = slice(start, min(start + 4, LENGTH))
        left = np.concatenate([left, np.tile(np.arange(LENGTH)[rows], (BATCH, 1))], axis=1)
        output = cache.extend(*(a[:, :, rows] for a in given), window_size=(30, 0))
        mask = masked(left, prompt=rows.stop, length=LENGTH)
        close(output, hw.flash_attention(*given, mask, is_causal=True, window_size=(30, 0))[:, :, rows])
        left = np.take_along_axis(left, cache.evict(rng.random(left.shape), keep=20), axis=1)
        assert cache.key_positions(0).tolist() == left[0].tolist() and len(cache) == rows.stop
    assert cache.keys.shape[2] == 20


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))], ids=str)
def test_copies_truncation_and_order(way: Any) -> None:
    given, cache = arrays("float64"), make("float64")
    cache.append(*(a[:, :, :PROMPT] for a in given[1:]))
    kept = cache.evict(SCORES, keep=KEEP)
    cache.append(*(a[:, :, PROMPT:45] for a in given[1:]))
    fork = way(cache)
    fork.reorder([1, 1])
    assert (
        fork.key_positions(0).tolist() == [*kept[1], *range(PROMPT, 45)] == cache.select([1]).key_positions(0).tolist()
    )
    for length in (45, 42, 40, 33, int(kept[0, 3]), 1, 0):
        cache.truncate(length)
        rows = kept[0][kept[0] < length]
        assert cache.key_positions(0).tolist() == [*rows, *range(PROMPT, length)] and len(cache) == length
        if length:  # queries go on behind the positions that are left
            output = cache.copy().extend(*(a[:, :, length : length + 3] for a in given))
            mask = masked(kept, length=length + 3, prompt=min(length, PROMPT))
            close(
                output, hw.flash_attention(*(a[:, :, : length + 3] for a in given), mask, is_causal=True)[:, :, length:]
            )
    cache.append(*(a[:, :, :3] for a in given[1:]))
    np.testing.assert_array_equal(cache.keys, given[1][:, :, :3])


def test_copies_once_all_removed_rows_are_truncated() -> None:
    """Truncated twice below the first removed row: a copy has as many kept positions as rows."""
    given, cache = arrays(), make()
    cache.append(*(a[:, :, :PROMPT] for a in given[1:]))
    scores = -np.broadcast_to(np.arange(PROMPT, dtype=np.float64), (BATCH, PROMPT))
    cache.evict(scores, keep=5)
    for length in (4, 2):
        cache.truncate(length)
    twin = pickle.loads(pickle.dumps(cache))
    assert twin.key_positions(0).tolist() == cache.key_positions(0).tolist() == [0, 1]
    new = [a[:, :, 2:7] for a in given]
    expected = hw.flash_attention(*(a[:, :, :7] for a in given), is_causal=True)[:, :, 2:]
    for each in (cache, twin, cache.select([0, 1])):
        close(each.extend(*new), expected)


def test_rows_at_positions() -> None:
    given, cache = arrays("float64"), make("float64")
    cache.append(*(a[:, :, :PROMPT] for a in given[1:]))
    kept = cache.evict(np.tile(SCORES[:1], (BATCH, 1)), keep=KEEP)
    there, gone = int(kept[0, 4]), next(n for n in range(PROMPT) if n not in kept[0])
    new = tuple(normal((BATCH, KV_HEADS, 2, a.shape[3]), 8).astype(np.float64) for a in given[1:])
    cache.append(*new, positions=[PROMPT, there])
    np.testing.assert_array_equal(cache.keys[:, :, 4], new[0][:, :, 1])
    np.testing.assert_array_equal(cache.keys[:, :, KEEP], new[0][:, :, 0])
    with pytest.raises(ValueError, match=rf"positions: {gone}.*evict\(\) has removed this position"):
        cache.append(*new, positions=[PROMPT + 1, gone])
    query, keys, values = given[0][:, :, :3], cache.keys, cache.values
    output = cache.attend(query, positions=[there - 1, there, there + 1])
    for i, position in enumerate((there - 1, there, there + 1)):
        seen = cache.key_positions(0) <= position
        close(output[:, :, i : i + 1], hw.flash_attention(query[:, :, i : i + 1], keys[:, :, seen], values[:, :, seen]))


def test_scores() -> None:
    cache = make()
    cache.append(*(a[:, :, :5] for a in arrays()[1:]), lengths=[5, 3])
    nan = [[1, 2, 3, 4, 5], [1, np.nan, 3, np.nan, np.nan]]
    for error, words, scores, keep in (
        (ValueError, r"scores: shape \(5,\), expected .*\(2, 5\)", np.ones(5), 2),
        (ValueError, r"scores: shape \(2, 4, 5\).*heads first", np.ones((2, 4, 5)), 2),
        (ValueError, "scores: NaN for row 1 of sequence 1", nan, 2),
        (TypeError, "scores: dtype", np.ones((2, 5), complex), 2),
        (ValueError, "keep: -1, expected at least 0", np.ones((2, 5)), -1),
        (TypeError, "keep: ", np.ones((2, 5)), 1.5),
    ):
        with pytest.raises(error, match=words):
            cache.evict(scores, keep=keep)
        assert cache.key_positions(0).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"evict: the cache is a ring.*without ring=True"):
        make(ring=True).evict(np.ones((2, 0)), keep=1)
    assert cache.copy().evict(np.ones((2, 5)), keep=2).tolist() == [[3, 4], [1, 2]]  # the later ones
    assert cache.copy().evict([[3, 1, 2, 1, 3], [-np.inf, np.inf, 0, 9, 9]], keep=2).tolist() == [[0, 4], [1, 2]]
    assert cache.copy().evict(np.ones((2, 5)), keep=9).tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, -1, -1]]
    empty = cache.copy()
    assert empty.evict(np.ones((2, 5)), keep=0).shape == (2, 0) and empty.lengths.tolist() == [5, 3]
    assert empty.nbytes == cache.nbytes and not empty.attend(arrays()[0][:, :, :1]).any()


@pytest.mark.parametrize(
    "kept",
    [3, [np.arange(3)], [np.arange(3), np.arange(3.0)], [np.array([2, 1]), np.arange(2)], [np.arange(9), np.arange(2)],
     [np.array([-1, 1]), np.arange(2)], [np.array([0, 9]), np.arange(2)]],
)  # fmt: skip
def test_a_changed_state_is_refused(kept: Any) -> None:
    cache = make()
    cache.append(*(a[:, :, :8] for a in arrays()[1:]))
    cache.evict(np.tile(np.arange(8.0), (BATCH, 1)), keep=6)
    state = cache.__getstate__()
    with pytest.raises(ValueError, match=r"state: kept"):
        hw.KVCache.__new__(hw.KVCache).__setstate__(state | {"_kept": kept})
    with pytest.raises(ValueError, match=r"state: keys\[0\]: shape"):
        hw.KVCache.__new__(hw.KVCache).__setstate__({name: x for name, x in state.items() if name != "_kept"})


def test_a_layer_with_rotary_positions() -> None:
    """Queries and keys are rotated by positions of the sequence; here evicted rows had no weight."""
    rng = np.random.default_rng(0)
    layer = hw.MultiHeadAttention(32, 4, rng=0, dtype=np.float64, rope=hw.RotaryPositionalEmbedding(8))
    x = rng.standard_normal((1, 20, 32))
    cache = layer.make_cache(1, 20, dtype=np.float64)
    layer(x[:, :12], is_causal=True, cache=cache, need_weights=False)
    kept = cache.evict(rng.random((1, 12)), keep=7)
    mask = masked(kept, length=20, prompt=12)
    expected, _ = layer(x, mask=np.broadcast_to(mask[0, 0], (20, 20)), is_causal=True, need_weights=False)
    output, _ = layer(x[:, 12:], is_causal=True, cache=cache, need_weights=False)
    np.testing.assert_allclose(output, expected[:, 12:], atol=1e-12)
