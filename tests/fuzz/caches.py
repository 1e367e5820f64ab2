"""Sequences of calls on a :class:`headwise.KVCache`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import headwise as hw
import oracle
from fuzz.twins import DTYPES, DUPLICATES, SEEDS, TARGETS, Array, Twins, rows, set_threads, spoilt
from strategies import PRECISIONS
from support import assert_close, bf16_split_atol

SIZES = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 3),
        "num_kv_heads": st.integers(1, 2),
        "capacity": st.integers(1, 24) | st.just(70),
        "head_dim": st.integers(1, 20),
        "value_dim": st.integers(1, 20),
        "ring": st.booleans(),
        "keep_first": st.integers(0, 4),
        "dtype": DTYPES | st.just("int8"),
    }
)
NEW = st.integers(0, 9) | st.sampled_from([16, 17, 33, 80])
COUNTS = st.none() | st.lists(st.integers(0, 80), min_size=3, max_size=3)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "scale": st.floats(-1, 1),
        "window_size": st.integers(-1, 40) | st.tuples(st.integers(-1, 40), st.integers(-1, 40)),
        "softcap": st.floats(0.5, 50),
        "alibi_slopes": SEEDS,
        "sinks": SEEDS,
        "mask": SEEDS,
        "bias": SEEDS,
        "is_causal": st.booleans(),
        "need_weights": st.booleans(),
        "return_lse": st.booleans(),
        "precision": PRECISIONS,
    },
)


class CacheMachine(RuleBasedStateMachine):
    """A cache, its twin, and the rows of each sequence in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: Twins
        self.history: list[tuple[Array, Array]] = []  # keys and values (kv_heads, rows, dim)

    @initialize(sizes=SIZES, group=st.integers(1, 3), native=TARGETS, wide=st.booleans())
    def make(self, sizes: dict[str, Any], group: int, native: str, wide: bool) -> None:
        """``wide``: float32 beside a cache of a 16-bit type, as always beside int8."""
        self.sizes, self.heads = sizes, group * sizes["num_kv_heads"]
        self.batch, self.kv_heads, self.capacity = (sizes[name] for name in ("batch_size", "num_kv_heads", "capacity"))
        self.ring, self.stored = sizes["ring"], sizes["dtype"]
        self.first = sizes["keep_first"] = min(sizes["keep_first"], self.capacity - 1) if self.ring else 0
        is_wide = self.stored == "int8" or (wide and "16" in self.stored)
        self.dtype = "float32" if is_wide else self.stored
        self.cache = Twins(native, lambda: hw.KVCache(**sizes))
        assert self.cache.error is None
        empty = np.zeros((self.kv_heads, 0, 0), self.dtype)
        self.history = [(empty, empty)] * self.batch
        self._forget([0] * self.batch)

    @rule(new=NEW, seed=SEEDS, counts=COUNTS)
    def append(self, new: int, seed: int, counts: list[int] | None) -> None:
        key, value, lengths = *self._key_value(new, seed), self._counts(counts, new)
        result = self.cache.call(lambda cache: cache.append(key, value, lengths=lengths))
        assert (result is None) == self._has_room(new, lengths), result
        if result is None:
            self._remember(key, value, lengths)

    @rule(new=NEW, seed=SEEDS, counts=COUNTS, drawn=OPTIONS)
    def extend(self, new: int, seed: int, counts: list[int] | None, drawn: dict[str, Any]) -> None:
        key, value, lengths = *self._key_value(new, seed), self._counts(counts, new)
        query = rows((self.batch, self.heads, new, self.sizes["head_dim"]), seed + 2, self.dtype)
        after = [len_ + n for len_, n in zip(self._lengths(), lengths or [new] * self.batch, strict=True)]
        options = self._options(drawn, new, lengths, after)
        call = lambda cache: cache.extend(query, key, value, lengths=lengths, **options)  # noqa: E731
        result = self.cache.call(call, options.get("precision"))
        assert isinstance(result, Exception) != self._has_room(new, lengths), result
        if not isinstance(result, Exception):
            self._remember(key, value, lengths)
            self._check(result, query, lengths, options)

    @rule(new=NEW, seed=SEEDS, counts=COUNTS, drawn=OPTIONS)
    def attend(self, new: int, seed: int, counts: list[int] | None, drawn: dict[str, Any]) -> None:
        lengths = self._counts(counts, new)
        query = rows((self.batch, self.heads, new, self.sizes["head_dim"]), seed, self.dtype)
        options = self._options(drawn, new, lengths, self._lengths())
        result = self.cache.call(
            lambda cache: cache.attend(query, lengths=lengths, **options), options.get("precision")
        )
        enough = not options.get("is_causal", True) or all(
            n <= len_ for n, len_ in zip(lengths or [new] * self.batch, self._lengths(), strict=True)
        )
        if isinstance(result, Exception):
            assert self.ring or not enough, result
        else:
            assert enough
            self._check(result, query, lengths, options)

    @rule(lengths=st.integers(0, 200) | st.lists(st.integers(0, 200), min_size=3, max_size=3))
    def truncate(self, lengths: int | list[int]) -> None:
        """To a number of rows below the present length of each sequence."""
        cut = [lengths] * 3 if isinstance(lengths, int) else lengths
        kept = [n % (length + 1) for n, length in zip(cut, self._lengths(), strict=False)]
        result = self.cache.call(lambda cache: cache.truncate(kept))
        assert self.ring or result is None, result
        if result is None:
            self._forget(kept)

    @rule()
    def reset(self) -> None:
        assert self.cache.call(lambda cache: cache.reset()) is None
        self._forget([0] * self.batch)

    @rule(drawn=st.lists(st.integers(0, 2), min_size=3, max_size=3))
    def reorder(self, drawn: list[int]) -> None:
        indices = [i % self.batch for i in drawn[: self.batch]]
        assert self.cache.call(lambda cache: cache.reorder(indices)) is None
        self.history = [self.history[i] for i in indices]

    @rule(drawn=st.lists(st.integers(0, 2), min_size=1, max_size=3))
    def select(self, drawn: list[int]) -> None:
        indices = [i % self.batch for i in drawn]
        self.cache.replace(lambda cache: cache.select(indices))
        self.history, self.batch = [self.history[i] for i in indices], len(indices)
        self.sizes = {**self.sizes, "batch_size": self.batch}

    @rule(take=st.integers(0, 9))
    def append_its_own_rows(self, take: int) -> None:
        def again(cache: hw.KVCache) -> None:
            keys, values = cache.keys, cache.values
            cache.append(keys[:, :, :take], values[:, :, :take])

        if self.stored not in (self.dtype, "int8"):
            return  # other rows than those that are read: they have been rounded
        if len(set(self._lengths())) > 1:
            assert isinstance(self.cache.call(again), ValueError)
            return
        stored = self.cache.call(lambda cache: (cache.keys[:, :, :take].copy(), cache.values[:, :, :take].copy()))
        if self.cache.call(again) is None:
            self._remember(*stored, None)
        else:
            assert not self._has_room(stored[0].shape[2], None)

    @rule(new=NEW, seed=SEEDS, keep=st.integers(0, 40), counts=COUNTS, drawn=OPTIONS)
    def evict(self, new: int, seed: int, keep: int, counts: list[int] | None, drawn: dict[str, Any]) -> None:
        """A copy that has evicted rows computes what a mask of these rows does in another copy."""
        before, lengths = self._lengths(), self._counts(counts, new)
        evicted, masked = self.cache.duplicate(), self.cache.duplicate()
        kept = evicted.call(lambda cache: cache.evict(rows((self.batch, max(before)), seed, "float64"), keep=keep))
        if self.ring or not self._has_room(new, lengths):
            assert isinstance(kept, ValueError) == self.ring
            return
        after = [n + more for n, more in zip(before, lengths or [new] * self.batch, strict=True)]
        keep_mask = np.ones((self.batch, 1, 1, max(after)), bool)
        for mask, indices, length in zip(keep_mask, kept, before, strict=True):
            mask[..., :length] = False
            mask[..., indices[indices >= 0]] = True
        by_column = ("mask", "bias", "need_weights", "precision")
        options = {name: value for name, value in drawn.items() if name not in by_column}
        options = self._options(options, new, lengths, after)
        key, value = self._key_value(new, seed)
        query = rows((self.batch, self.heads, new, self.sizes["head_dim"]), seed + 2, self.dtype)
        found = evicted.call(lambda cache: cache.extend(query, key, value, lengths=lengths, **options))
        expected = masked.call(
            lambda cache: cache.extend(query, key, value, lengths=lengths, mask=keep_mask, **options)
        )
        results = [r if isinstance(r, tuple) else (r,) for r in (found, expected)]
        tolerance = {"float64": 1e-11, "float32": 2e-4, "float16": 1e-2, "bfloat16": 6e-2}[np.dtype(query.dtype).name]
        for a, b in zip(*results, strict=True):
            if a is not None:
                np.testing.assert_allclose(oracle.double(a), oracle.double(b), rtol=tolerance, atol=tolerance)

    @rule(way=st.sampled_from(DUPLICATES))
    def duplicate(self, way: Any) -> None:
        self.cache.replace(way)

    @rule(native=TARGETS, threads=st.integers(1, 3))
    def change_target(self, native: str, threads: int) -> None:
        self.cache.native = native
        set_threads(threads)

    @rule(
        name=st.sampled_from(
            [
                "append",
                "extend",
                "attend",
                "truncate",
                "reorder",
                "select",
                "entry",
                "positions",
                "evict",
                "key_positions",
                "KVCache",
            ]
        ),
        data=st.data(),
    )
    def hostile(self, name: str, data: st.DataObject) -> None:
        """One argument is replaced by an arbitrary object. An error leaves the cache as it was."""
        new = data.draw(st.integers(0, 3))
        key, value = self._key_value(new, 1)
        query = rows((self.batch, self.heads, new, self.sizes["head_dim"]), 2, self.dtype)
        after = [n + new * (name == "extend") for n in self._lengths()]
        more = {"lengths": [new] * self.batch, **self._options(data.draw(OPTIONS), new, None, after)}
        arguments: dict[str, Any] = {
            "append": {"key": key, "value": value, "lengths": [new] * self.batch},
            "extend": {"query": query, "key": key, "value": value, **more},
            "attend": {"query": query, **more},
            "truncate": {"length": 0},
            "reorder": {"indices": [0] * self.batch},
            "select": {"indices": [0] * self.batch},
            "entry": {"index": 0},
            "positions": {"new": 1},
            "evict": {"scores": np.zeros((self.batch, max(self._lengths()))), "keep": 2},
            "key_positions": {"index": 0},
            "KVCache": dict(self.sizes),
        }[name]
        place = data.draw(st.sampled_from(sorted(arguments)))
        arguments[place] = data.draw(spoilt(arguments[place]))
        twins = self.cache.duplicate()
        if name == "KVCache":
            twins.call(lambda _: repr(hw.KVCache(**arguments)))
        elif isinstance(
            twins.call(lambda cache: getattr(cache, name)(**arguments), arguments.get("precision")), Exception
        ):
            self._check_state(twins)

    @rule(data=st.data())
    def read_a_changed_state(self, data: st.DataObject) -> None:
        """The state of a pickle with one part replaced is an error, or that of a cache that works."""
        state = copy.deepcopy(self.cache.other.__getstate__())
        place = data.draw(st.sampled_from(sorted(state)))
        if place == "_rows" and data.draw(st.booleans()):
            parts = list(state[place])
            part = data.draw(st.integers(0, len(parts) - 1))
            inner = list(parts[part])
            i = data.draw(st.integers(0, len(inner) - 1))
            inner[i] = data.draw(spoilt(inner[i]))
            parts[part] = inner
            state[place] = tuple(parts)
        else:
            state[place] = data.draw(spoilt(state[place]))

        def read() -> hw.KVCache:
            cache = object.__new__(hw.KVCache)
            cache.__setstate__(copy.deepcopy(state))
            return cache

        twins = Twins(self.cache.native, read)
        if twins.error is None:
            shape = (twins.other.batch_size, twins.other.num_kv_heads, 2)
            dtype = "float32" if twins.other.dtype == np.int8 else twins.other.dtype.name
            given = [rows((*shape, width), 1, dtype) for width in (twins.other.head_dim,) * 2]
            value = rows((*shape, twins.other.value_dim), 2, dtype)
            twins.call(lambda cache: cache.extend(*given, value))
            twins.call(repr)

    @invariant()
    def state_is_that_of_the_model(self) -> None:
        if self.history:
            self._check_state(self.cache)

    def teardown(self) -> None:
        set_threads(2)

    def _lengths(self) -> list[int]:
        return [keys.shape[1] for keys, _ in self.history]

    def _counts(self, drawn: list[int] | None, new: int) -> list[int] | None:
        return None if drawn is None else [n % (new + 1) for n in drawn[: self.batch]]

    def _seen(self, length: int, count: int) -> int:
        """The number of keys that the latest ``count`` queries of a sequence see."""
        return min(length, self.capacity - 1 + count) if self.ring else length

    def _has_room(self, new: int, lengths: list[int] | None) -> bool:
        counts = lengths or [new] * self.batch
        return self.ring or all(n + m <= self.capacity for n, m in zip(counts, self._lengths(), strict=True))

    def _key_value(self, new: int, seed: int) -> tuple[Array, Array]:
        lead = (self.batch, self.kv_heads, new)
        return (
            rows((*lead, self.sizes["head_dim"]), seed, self.dtype),
            rows((*lead, self.sizes["value_dim"]), seed + 1, self.dtype),
        )

    def _options(self, drawn: dict[str, Any], new: int, counts: list[int] | None, lengths: list[int]) -> dict[str, Any]:
        """The options drawn, with arrays in place of their seeds, for sequences of these lengths."""
        options = dict(drawn)
        seen = [self._seen(length, n) for length, n in zip(lengths, counts or [new] * self.batch, strict=True)]
        scores = (self.batch, self.heads, new, max(seen))
        for name in ("alibi_slopes", "sinks"):
            if name in options:
                options[name] = np.abs(rows((self.heads,), drawn[name], "float64"))
        for name in ("mask", "bias"):
            if name in options:
                seed = drawn[name]
                numbers = rows(scores[2:] if seed % 2 else scores, seed, "float64")
                options[name] = numbers > -0.5 if name == "mask" and seed % 3 else numbers
        return options

    def _remember(self, key: Array, value: Array, lengths: list[int] | None) -> None:
        native = [self._rounded(np.asarray(a, a.dtype.newbyteorder("="))) for a in (key, value)]
        for i, count in enumerate(lengths or [key.shape[2]] * self.batch):
            old = self.history[i]
            self.history[i] = (
                np.concatenate([old[0], native[0][i, :, :count]], axis=1),
                np.concatenate([old[1], native[1][i, :, :count]], axis=1),
            )

    def _rounded(self, rows_: Array) -> Array:
        """New rows as the cache gives them back."""
        if self.stored != "int8":
            with np.errstate(all="ignore"):
                return rows_.astype(self.stored)
        with np.errstate(all="ignore"):
            factor = np.abs(rows_).max(axis=-1, keepdims=True) / np.float32(127.5)
            halves = np.rint(2 * (rows_ / np.where(factor == 0, np.float32(1), factor))).clip(-255, 255)
            return np.where(np.isfinite(factor), halves / 2 * factor, np.float32(np.nan)).astype(np.float32)

    def _forget(self, lengths: list[int]) -> None:
        if not lengths or max(lengths) == 0:
            widths = self.sizes["head_dim"], self.sizes["value_dim"]
            empty = tuple(np.zeros((self.kv_heads, 0, width), self.dtype) for width in widths)
            self.history = [(empty[0], empty[1])] * self.batch
            return
        self.history = [(k[:, :n], v[:, :n]) for (k, v), n in zip(self.history, lengths, strict=True)]

    def _check_state(self, twins: Twins) -> None:
        lengths = self._lengths()
        assert twins.call(lambda cache: cache.lengths.tolist()) == lengths
        assert twins.call(len) == max(lengths)
        for i, rows_ in enumerate(self.history):
            stored = twins.call(lambda cache, i=i: cache.entry(i))
            for got, expected in zip(stored, rows_, strict=True):
                kept = got.shape[1]
                assert kept <= (min(lengths[i], self.capacity) if self.ring else lengths[i])
                assert self.ring or kept == lengths[i]
                first = min(self.first, kept)
                shown = np.r_[:first, lengths[i] - kept + first : lengths[i]]
                np.testing.assert_array_equal(got, expected[:, shown])

    def _scores(self, i: int, count: int, given: dict[str, Any]) -> tuple[Array, Array, Array]:
        """Of sequence ``i`` with ``count`` queries: the positions that have columns, and a mask and a bias of all
        positions."""
        length = self.history[i][0].shape[1]
        seen = self._seen(length, count)
        first = min(self.first, seen)
        columns = np.r_[:first, length - seen + first : length]
        kept, bias = np.zeros((1, self.heads, count, length), bool), np.zeros((1, self.heads, count, length))
        kept[..., columns] = True
        if self.ring:
            query, key = np.arange(length - count, length)[:, np.newaxis], np.arange(length)
            kept &= (key < self.first) | (key > query - (self.capacity - self.first))
        for name in ("mask", "bias"):
            if name in given:
                drawn = np.broadcast_to(given[name], (self.batch, self.heads, *given[name].shape[-2:]))
                part = drawn[i : i + 1, :, :count, :seen]
                if part.dtype == bool:
                    kept[..., columns] &= part
                else:
                    bias[..., columns] += part
        return columns, kept, bias

    def _check(self, result: Any, query: Array, lengths: list[int] | None, options: dict[str, Any]) -> None:
        """The results are those of attention of each sequence alone to the rows that the model has."""
        if options.get("precision") in ("high", "medium"):
            return
        given = {
            name: value for name, value in options.items() if name not in ("need_weights", "return_lse", "precision")
        }
        output, weights, lse = (*result, None)[:3] if isinstance(result, tuple) else (result, None, None)
        if options.get("return_lse"):
            lse = result[2]
        window, is_causal = given.pop("window_size", None), given.pop("is_causal", True)
        left, right = (window, window) if isinstance(window, int) else window or (-1, -1)
        more = 4 * bf16_split_atol(self.dtype)
        for i, (keys, values) in enumerate(self.history):
            count = query.shape[2] if lengths is None else lengths[i]
            seen = self._seen(keys.shape[1], count)
            columns, kept, bias = self._scores(i, count, given)
            own = {name: value for name, value in given.items() if name not in ("mask", "bias")}
            expected = oracle.attention(
                query[i : i + 1, :, :count], keys[None], values[None], mask=kept, bias=bias,
                is_causal=is_causal, causal_alignment="lower_right", window_size=(left, right), **own,
            )  # fmt: skip
            for got, wanted, rest in (
                (output, expected.output, 0.0),
                (lse, expected.lse, -np.inf),
            ):
                if got is not None:
                    assert_close(got[i : i + 1, :, :count], wanted, factor=8, more=more)
                    assert (got[i, :, count:] == rest).all()
            if weights is not None:
                assert_close(weights[i : i + 1, :, :count, :seen], expected.weights[..., columns], factor=8, more=more)
                assert not weights[i, :, count:].any() and not weights[i, :, :, seen:].any()
