"""Absolute positions: SinusoidalPositionalEncoding and LearnedPositionalEmbedding."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle

pytestmark = pytest.mark.above_operations


def sinusoid(positions: Any, d_model: int) -> np.ndarray:
    """Sine and cosine of each pair of features; an odd number of features has no last cosine."""
    cos, sin = oracle.rope_tables(positions, d_model)
    return np.stack([sin, cos], axis=-1).reshape(*np.shape(positions), 2 * cos.shape[-1])[..., :d_model]


class TestSinusoidal:
    @pytest.mark.parametrize("d_model", [1, 2, 7, 16])
    def test_table(self, d_model: int) -> None:
        pe = hw.SinusoidalPositionalEncoding(d_model, max_len=20)
        assert pe.pe.shape == (20, d_model)
        assert pe.pe.dtype == np.float64
        np.testing.assert_allclose(pe.pe, sinusoid(np.arange(20), d_model), atol=1e-14)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_any_length(self, dtype: type) -> None:
        pe = hw.SinusoidalPositionalEncoding(7, max_len=4)
        for length in (3, 4, 5, 100, 9, 0):
            encoded = pe(np.zeros((2, length, 7), dtype))
            assert encoded.dtype == dtype
            assert encoded.shape == (2, length, 7)
            for sequence in encoded:
                np.testing.assert_allclose(sequence, sinusoid(np.arange(length), 7), atol=1e-6)

    def test_positions(self) -> None:
        pe = hw.SinusoidalPositionalEncoding(6, max_len=10)
        for positions in (3, [[0, 9], [10, 500]], [-4, 10**9], np.uint8([1, 2]), np.uint64([1, 90]), []):
            expected = sinusoid(np.array(positions, float), 6)
            np.testing.assert_allclose(pe.get_encoding(positions), expected, atol=1e-7)
        first = pe.get_encoding(3)
        first[:] = 0  # a copy, not the table
        np.testing.assert_allclose(pe.get_encoding(3), sinusoid(3, 6))

    def test_dropout_acts_in_training_only(self) -> None:
        pe = hw.SinusoidalPositionalEncoding(64, dropout=0.5, rng=0)
        x = np.full((4, 50, 64), 10.0)
        still = pe(x)
        np.testing.assert_array_equal(still, pe(x))
        for dropped in (pe(x, training=True), pe.forward(x, training=True, rng=1)):
            kept = dropped != 0
            assert 0.45 < kept.mean() < 0.55
            np.testing.assert_allclose(dropped[kept], 2 * still[kept])
        pe.training = True
        assert not np.array_equal(pe(x), pe(x))
        np.testing.assert_array_equal(pe(x, rng=5), pe(x, rng=5))
        np.testing.assert_array_equal(pe(x, training=False), still)

    def test_float16_is_rounded_once(self, rng: np.random.Generator) -> None:
        pe = hw.SinusoidalPositionalEncoding(8)
        x = rng.standard_normal((3, 20, 8)).astype(np.float16)
        exact = x.astype(np.float32) + sinusoid(np.arange(20), 8).astype(np.float32)
        np.testing.assert_array_equal(pe(x), exact.astype(np.float16))

    def test_integers_and_unbatched(self) -> None:
        pe = hw.SinusoidalPositionalEncoding(8)
        np.testing.assert_allclose(pe(np.ones((5, 8), int)), 1 + sinusoid(np.arange(5), 8))

    def test_pickle(self) -> None:
        pe = pickle.loads(pickle.dumps(hw.SinusoidalPositionalEncoding(8, max_len=4)))
        np.testing.assert_allclose(pe(np.zeros((9, 8))), sinusoid(np.arange(9), 8), atol=1e-14)


class TestLearned:
    @pytest.mark.parametrize("shape", [(6, 4), (3, 4), (5, 3, 4), (5, 6, 4), (1, 0, 4)])
    def test_update(self, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
        layer = hw.LearnedPositionalEmbedding(6, 4, rng=0)
        before, gradients = layer.embeddings.copy(), rng.standard_normal(shape)
        layer.update_embeddings(gradients, 0.5)
        total = gradients.sum(axis=0) if len(shape) == 3 else gradients
        before[: len(total)] -= 0.5 * total
        np.testing.assert_allclose(layer.embeddings, before, atol=1e-14)

    def test_default_learning_rate_and_lists(self) -> None:
        layer = hw.LearnedPositionalEmbedding(2, 1)
        layer.embeddings = [[1.0], [2.0]]
        layer.update_embeddings([[1000], [2000]])
        assert layer.embeddings.tolist() == [[0.0], [0.0]]

    def test_updates_reach_the_float32_cast(self) -> None:
        """The float32 cast of the table follows the embeddings."""
        layer = hw.LearnedPositionalEmbedding(4, 2, rng=0)
        x = np.zeros((4, 2), np.float32)
        for _ in range(3):
            np.testing.assert_array_equal(layer(x), layer.embeddings.astype(np.float32))
            layer(x)
            layer.update_embeddings(np.ones((4, 2)), 0.1)

    def test_dtype(self) -> None:
        layer = hw.LearnedPositionalEmbedding(4, 2, dtype=np.float32)
        assert layer.embeddings.dtype == np.float32
        assert layer(np.zeros((4, 2))).dtype == np.float64
        layer.update_embeddings(np.ones((4, 2)))
        assert layer.embeddings.dtype == np.float32

    def test_too_long(self) -> None:
        layer = hw.LearnedPositionalEmbedding(max_len=4, d_model=2)
        with pytest.raises(ValueError, match=r"^x: .*sequence of 5.*at most max_len = 4"):
            layer(np.zeros((1, 5, 2)))
        with pytest.raises(ValueError, match=r"^gradients: .*at most max_len = 4"):
            layer.update_embeddings(np.zeros((5, 2)))

    def test_a_refused_update_changes_nothing(self) -> None:
        layer = hw.LearnedPositionalEmbedding(4, 2)
        before = layer.embeddings.copy()
        for gradients, rate in ((np.ones(2), 0.1), (np.ones((4, 3)), 0.1), (np.ones((4, 2)), np.nan)):
            with pytest.raises(ValueError, match=r"^(gradients|learning_rate)"):
                layer.update_embeddings(gradients, rate)
        for gradients in (np.ones((4, 2), complex), np.array([["a", "b"]])):
            with pytest.raises(TypeError, match=r"^gradients"):
                layer.update_embeddings(gradients)
        np.testing.assert_array_equal(layer.embeddings, before)
        layer.embeddings.flags.writeable = False
        with pytest.raises(ValueError, match=r"^embeddings: a read-only array"):
            layer.update_embeddings(np.ones((4, 2)))
