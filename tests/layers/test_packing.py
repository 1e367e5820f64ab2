"""Packed weights of layers: packed at the second call, and never older than the parameters."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest

import headwise as hw
from layers.formulas import by_hand

pytestmark = pytest.mark.above_operations


@pytest.fixture
def layer() -> hw.MultiHeadAttention:
    return hw.MultiHeadAttention(12, 3, rng=0)


@pytest.fixture
def query(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((2, 4, 12))


class TestPacking:
    """Parameters are cast, joined and packed once; the packed weights are never older than the parameters."""

    @pytest.fixture
    def x(self, query: np.ndarray) -> np.ndarray:
        return query.astype(np.float32)

    @staticmethod
    def check(layer: hw.MultiHeadAttention, x: np.ndarray) -> None:
        """The results are those of the current parameters, also at the third call, whose weights may be packed. The
        reference reads a copy of the layer, because reading a parameter discards its packed weights."""
        got = [layer(x)[0] for _ in range(3)]
        expected = by_hand(copy.deepcopy(layer), x, x, x).output
        np.testing.assert_allclose(got[0], expected, atol=1e-5)
        for later in got[1:]:
            np.testing.assert_array_equal(later, got[0])

    @staticmethod
    def packed(layer: hw.MultiHeadAttention) -> set[str]:
        return {letters for letters, kept in layer._packs.items() if kept.packed is not None}

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_weights_are_packed_at_the_second_call(self, layer: Any, x: np.ndarray, dtype: type) -> None:
        x = x.astype(dtype)
        layer(x)
        assert self.packed(layer) == set()
        layer(x)
        assert self.packed(layer) == {"qkv", "o"}
        first = layer._packs["qkv"].packed
        layer(x)
        assert layer._packs["qkv"].packed is first
        assert first.dtype == dtype
        assert layer.W_q is not None  # a read of the attribute
        layer(x)
        assert self.packed(layer) == {"o"}

    def test_equal_inputs_share_one_product(self, layer: Any, x: np.ndarray) -> None:
        for _ in range(2):
            layer(x, x[:, ::-1])
        assert self.packed(layer) == {"q", "kv", "o"}
        for _ in range(2):
            layer(x, x[:, ::-1], x[::-1])
        assert self.packed(layer) == {"q", "k", "v", "kv", "o"}

    def test_another_dtype_or_precision_packs_again(self, layer: Any, x: np.ndarray) -> None:
        for options, dtype in (({}, np.float32), ({}, np.float64), ({"precision": "medium"}, np.float64)):
            for _ in range(2):
                layer(x.astype(dtype), **options)
            assert layer._packs["qkv"].packed.dtype == dtype
            assert layer._packs["qkv"].precision == options.get("precision", "highest")

    def test_referenced_weights_are_not_packed(self, layer: Any, x: np.ndarray) -> None:
        held = layer.W_k
        expected = [layer(x)[0] for _ in range(3)]
        assert self.packed(layer) == {"o"}
        del held
        for _ in range(3):
            np.testing.assert_array_equal(layer(x)[0], expected[0])
        assert self.packed(layer) == {"qkv", "o"}

    def test_weights_changed_in_place(self, layer: Any, x: np.ndarray) -> None:
        self.check(layer, x)
        layer.W_v[...] = np.random.default_rng(1).standard_normal((12, 12))
        self.check(layer, x)
        layer.W_v *= 2
        self.check(layer, x)

    def test_weights_changed_through_a_kept_reference(self, layer: Any, x: np.ndarray) -> None:
        held = layer.W_q
        for _ in range(3):
            self.check(layer, x)
            held += 1.0

    def test_weights_changed_through_a_view(self, layer: Any, x: np.ndarray) -> None:
        view = layer.W_q[2:5].T
        for _ in range(3):
            self.check(layer, x)
            view += 1.0
        buffer = memoryview(layer.W_k)
        for value in (3.0, 4.0):
            self.check(layer, x)
            buffer[0, 0] = value

    def test_assignment_copies(self, layer: Any, x: np.ndarray) -> None:
        """The parts of one array are packed like loaded weights, and later changes of that array are not seen."""
        joined = np.random.default_rng(1).standard_normal((12, 36))
        before = joined.copy()
        layer.W_q, layer.W_k, layer.W_v = np.split(joined, 3, axis=1)
        layer(x)
        expected, _ = layer(x)
        assert self.packed(layer) == {"qkv", "o"}
        joined += 1.0
        np.testing.assert_array_equal(layer(x)[0], expected)
        for name, part in zip(("W_q", "W_k", "W_v"), np.split(before, 3, axis=1), strict=True):
            own = getattr(layer, name)
            assert own.flags.owndata and own.flags.c_contiguous and own.flags.writeable
            np.testing.assert_array_equal(own, part)
        self.check(layer, x)
        layer.W_k *= 2.0
        self.check(layer, x)

    @pytest.mark.parametrize("dtype", [">f4", "<f8", "int8", "bool"])
    def test_assigned_dtypes(self, layer: Any, x: np.ndarray, dtype: str) -> None:
        given = np.random.default_rng(1).integers(0, 2, (12, 12)).astype(dtype)[::-1]
        layer.W_q = given
        assert layer.W_q.dtype == ("float32" if dtype == ">f4" else "float64") and layer.W_q.dtype.isnative
        np.testing.assert_array_equal(layer.W_q, given)
        self.check(layer, x)

    def test_weights_changed_through_a_shallow_copy(self, layer: Any, x: np.ndarray) -> None:
        layer(x)
        other = copy.copy(layer)
        other.W_q[...] = 0
        self.check(layer, x)
        other.W_q = np.ones((12, 12))
        self.check(other, x)
        self.check(layer, x)

    def test_replaced_parameters_are_used(self, layer: Any, x: np.ndarray) -> None:
        for seed in range(3):
            layer.W_q = np.random.default_rng(seed).standard_normal((12, 12))
            self.check(layer, x)

    def test_unpickled_parameters_are_packed(self, layer: Any, x: np.ndarray) -> None:
        layer.W_q = np.random.default_rng(1).standard_normal((12, 12)).T
        again = pickle.loads(pickle.dumps(layer))
        for one in (layer, again):
            self.check(one, x)
            for _ in range(2):
                one(x)
            assert self.packed(one) == {"qkv", "o"}
        np.testing.assert_array_equal(layer(x)[0], again(x)[0])

    def test_a_copy_is_independent(self, layer: Any, x: np.ndarray) -> None:
        layer(x)
        other = copy.deepcopy(layer)
        before, _ = layer(x)
        other.W_q[...] = 0
        np.testing.assert_array_equal(layer(x)[0], before)
        self.check(other, x)

    def test_many_threads(self, layer: Any, x: np.ndarray) -> None:
        expected, _ = layer(x)
        barrier, failures = threading.Barrier(4), []

        def run() -> None:
            barrier.wait()
            for _ in range(50):
                if not np.array_equal(layer(x)[0], expected):
                    failures.append(1)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
