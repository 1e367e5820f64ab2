"""KVCache against a model of it: lists of rows, and attention over them in float64. hypothesis orders the calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import headwise as hw
import oracle
from support import ATOL, assert_close

HEADS, GROUP, DIM, VALUE_DIM = 2, 2, 6, 3
CACHES = {
    "batch": st.integers(1, 3),
    "capacity": st.integers(1, 40),
    "ring": st.booleans(),
    "dtype": st.sampled_from(["float32", "float64"]),
}

pytestmark = pytest.mark.above_operations


class Model(RuleBasedStateMachine):
    """The documented behaviour of a cache, a rule for each method."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    @initialize(**CACHES)
    def make(self, batch: int, capacity: int, ring: bool, dtype: str) -> None:
        self.cache = hw.KVCache(batch, HEADS, capacity, DIM, value_dim=VALUE_DIM, dtype=dtype, ring=ring)
        # All rows of each sequence, also those that a ring has discarded: (heads, rows, dim).
        self.keys = [np.zeros((HEADS, 0, DIM)) for _ in range(batch)]
        self.values = [np.zeros((HEADS, 0, VALUE_DIM)) for _ in range(batch)]

    def lengths(self) -> list[int]:
        return [rows.shape[1] for rows in self.keys]

    def draw(self, new: int, heads: int, dim: int) -> np.ndarray:
        return self.rng.standard_normal((self.cache.batch_size, heads, new, dim)).astype(self.cache.dtype)

    def fits(self, counts: list[int]) -> bool:
        return self.cache.ring or all(
            have + more <= self.cache.capacity for have, more in zip(self.lengths(), counts, strict=True)
        )

    def remember(self, key: np.ndarray, value: np.ndarray, counts: list[int]) -> None:
        for i, count in enumerate(counts):
            self.keys[i] = np.concatenate([self.keys[i], key[i, :, :count]], axis=1)
            self.values[i] = np.concatenate([self.values[i], value[i, :, :count]], axis=1)

    def counts(self, data: st.DataObject, new: int) -> tuple[list[int], dict[str, Any]]:
        """The number of new rows of each sequence, and the keyword for it."""
        if data.draw(st.booleans()):
            return [new] * self.cache.batch_size, {}
        counts = data.draw(
            st.lists(st.integers(0, new), min_size=self.cache.batch_size, max_size=self.cache.batch_size)
        )
        return counts, {"lengths": counts}

    @rule(new=st.integers(1, 9), data=st.data())
    def append(self, new: int, data: st.DataObject) -> None:
        key, value = self.draw(new, HEADS, DIM), self.draw(new, HEADS, VALUE_DIM)
        counts, keyword = self.counts(data, new)
        if not self.fits(counts):
            with pytest.raises(ValueError):
                self.cache.append(key, value, **keyword)
            return
        self.cache.append(key, value, **keyword)
        self.remember(key, value, counts)

    @rule(new=st.integers(1, 12), data=st.data())
    def extend(self, new: int, data: st.DataObject) -> None:
        query, key, value = (
            self.draw(new, HEADS * GROUP, DIM),
            self.draw(new, HEADS, DIM),
            self.draw(new, HEADS, VALUE_DIM),
        )
        counts, keyword = self.counts(data, new)
        if not self.fits(counts):
            with pytest.raises(ValueError):
                self.cache.extend(query, key, value, **keyword)
            return
        before = self.lengths()
        output = self.cache.extend(query, key, value, **keyword)
        self.remember(key, value, counts)
        for i, count in enumerate(counts):
            self.check_attention(output[i, :, :count], query[i, :, :count], i, before[i])

    def check_attention(self, got: np.ndarray, query: np.ndarray, i: int, position: int) -> None:
        """Each query attends to the keys up to its own position; in a ring to the last ``capacity`` of them."""
        rows = query.shape[1]
        places, others = np.arange(rows)[:, None] + position, np.arange(self.keys[i].shape[1])
        keep = (others <= places) & (~np.bool_(self.cache.ring) | (others > places - self.cache.capacity))
        if rows == 0:
            return
        expected = oracle.attention(query[None], self.keys[i][None], self.values[i][None], mask=keep)
        assert_close(np.ascontiguousarray(got), expected.output[0], factor=4)

    @precondition(lambda self: min(self.lengths()) > 0)
    @rule(data=st.data())
    def attend(self, data: st.DataObject) -> None:
        rows = data.draw(st.integers(1, min(4, *self.lengths())))
        if self.cache.ring:
            rows = 1
        query = self.draw(rows, HEADS * GROUP, DIM)
        output = self.cache.attend(query)
        for i, length in enumerate(self.lengths()):
            self.check_attention(output[i], query[i], i, length - rows)

    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        length = data.draw(st.integers(0, max(self.lengths())))
        stored = min(self.cache.capacity, max(self.lengths()))
        new = [min(length, have) for have in self.lengths()]
        try:
            self.cache.truncate(length if self.cache.batch_size == 1 or len(set(self.lengths())) == 1 else new)
        except ValueError:
            # A ring has discarded rows that would be visible again.
            assert self.cache.ring and max(self.lengths()) > stored
            return
        self.keys = [rows[:, :count] for rows, count in zip(self.keys, new, strict=True)]
        self.values = [rows[:, :count] for rows, count in zip(self.values, new, strict=True)]

    @rule()
    def reset(self) -> None:
        self.cache.reset()
        self.keys = [rows[:, :0] for rows in self.keys]
        self.values = [rows[:, :0] for rows in self.values]

    @rule(data=st.data())
    def reorder(self, data: st.DataObject) -> None:
        batch = self.cache.batch_size
        order = data.draw(st.lists(st.integers(0, batch - 1), min_size=batch, max_size=batch))
        self.cache.reorder(order)
        self.keys, self.values = [self.keys[i] for i in order], [self.values[i] for i in order]

    @invariant()
    def holds_what_it_was_given(self) -> None:
        assert self.cache.lengths.tolist() == self.lengths()
        for i, have in enumerate(self.lengths()):
            first = max(0, have - self.cache.capacity)
            for got, rows in zip(self.cache.entry(i), (self.keys[i], self.values[i]), strict=True):
                np.testing.assert_allclose(got, rows[:, first:], atol=ATOL[self.cache.dtype.name])


def test_any_order_of_calls() -> None:
    """Hypothesis's settings are those of the profile, with runs of up to 30 calls."""
    run_state_machine_as_test(Model, settings=settings(stateful_step_count=30))
