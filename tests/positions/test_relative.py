"""Relative positions: RelativePositionalEncoding and ALiBiPositionalBias."""

from __future__ import annotations

import numpy as np
import pytest

import headwise as hw
import oracle

pytestmark = pytest.mark.above_operations


class TestRelative:
    @pytest.mark.parametrize(("seq_len", "reach"), [(1, 3), (4, 2), (5, 1), (6, 10)])
    def test_entries(self, seq_len: int, reach: int) -> None:
        layer = hw.RelativePositionalEncoding(3, max_relative_position=reach, rng=0)
        encodings = layer(seq_len)
        assert encodings.shape == (seq_len, seq_len, 3)
        for i, j in np.ndindex(seq_len, seq_len):
            np.testing.assert_array_equal(encodings[i, j], layer.embeddings[reach + max(-reach, min(reach, j - i))])

    def test_result_is_a_read_only_view_of_a_small_table(self) -> None:
        encodings = hw.RelativePositionalEncoding(4, 8)(1000)
        assert not encodings.flags.writeable
        owner = encodings
        while owner.base is not None:
            owner = owner.base
        assert owner.nbytes == (2 * 1000 - 1) * 4 * 8
        assert hw.RelativePositionalEncoding(64, 8)(np.int64(100_000)).nbytes > 10**12

    def test_changed_embeddings_are_used(self) -> None:
        layer = hw.RelativePositionalEncoding(2, 1, dtype=np.float32)
        layer.embeddings[...] = [[1, 1], [2, 2], [3, 3]]
        assert layer(2).tolist() == [[[2, 2], [3, 3]], [[1, 1], [2, 2]]]
        assert layer(2).dtype == np.float32


class TestALiBi:
    @pytest.mark.parametrize("num_heads", [1, 2, 3, 6, 8, 12])
    def test_slopes(self, num_heads: int) -> None:
        slopes = hw.ALiBiPositionalBias(num_heads).slopes
        np.testing.assert_allclose(slopes, oracle.alibi_slopes(num_heads), rtol=1e-15)

    def test_bias(self) -> None:
        alibi = hw.ALiBiPositionalBias(num_heads=3, max_len=7)
        np.testing.assert_allclose(alibi.bias, oracle.alibi_bias(oracle.alibi_slopes(3), 7, 7), rtol=1e-15)
        assert alibi.bias.shape == (3, 7, 7)

    def test_no_table_of_heads_by_length_by_length(self) -> None:
        alibi = hw.ALiBiPositionalBias(num_heads=32, max_len=1_000_000)
        assert max(getattr(value, "nbytes", 0) for value in vars(alibi).values()) < 10_000
        assert alibi.bias.nbytes > 10**14  # a strided view, larger than any memory
        assert alibi.bias[0, 0, 999_999] == -999_999 * alibi.slopes[0]

    def test_longer_than_max_len_and_offset(self, rng: np.random.Generator) -> None:
        alibi = hw.ALiBiPositionalBias(num_heads=3, max_len=4)
        scores = rng.standard_normal((2, 3, 5, 9)).astype(np.float32)
        biased = alibi(scores)
        assert biased.dtype == np.float32
        slopes = oracle.alibi_slopes(3)
        np.testing.assert_allclose(biased, scores + oracle.alibi_bias(slopes, 5, 9), atol=1e-6)
        np.testing.assert_allclose(
            alibi.forward(scores, seq_len=9, offset=4), scores + oracle.alibi_bias(slopes, 5, 9, 4), atol=1e-6
        )

    def test_equals_alibi_inside_attention(self, rng: np.random.Generator) -> None:
        q, k, v = rng.standard_normal((3, 2, 4, 6, 8))
        alibi = hw.ALiBiPositionalBias(4)
        _, weights = hw.scaled_dot_product_attention(q, k, v, alibi_slopes=alibi.slopes)
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(8)
        np.testing.assert_allclose(weights, oracle.softmax(alibi(scores)), atol=1e-14)
