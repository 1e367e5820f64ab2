"""RotaryPositionalEmbedding: numbers, positions, and tables that grow."""

from __future__ import annotations

import numpy as np
import pytest

import headwise as hw
import oracle

pytestmark = pytest.mark.above_operations


class TestRotary:
    @pytest.mark.parametrize("interleaved", [False, True])
    @pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (2, 3, 5, 8), (2, 3, 0, 8), (1, 1, 1, 2)])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_numbers(self, rng: np.random.Generator, shape: tuple[int, ...], interleaved: bool, dtype: type) -> None:
        x = rng.standard_normal(shape).astype(dtype)
        rope = hw.RotaryPositionalEmbedding(shape[-1], base=500.0, interleaved=interleaved)
        expected = oracle.rope(x, *oracle.rope_tables(np.arange(shape[-2]), shape[-1], 500.0), interleaved)
        rotated = rope(x)
        assert rotated.dtype == dtype
        np.testing.assert_allclose(rotated, expected, atol=1e-14 if dtype is np.float64 else 1e-6)

    def test_tables(self) -> None:
        rope = hw.RotaryPositionalEmbedding(8, max_len=10)
        cos, sin = oracle.rope_tables(np.arange(10), 8)
        np.testing.assert_allclose(rope.inv_freq, [1.0, 0.1, 0.01, 0.001], rtol=1e-15)
        np.testing.assert_allclose(rope.cos_cached, cos, rtol=0, atol=1e-15)
        np.testing.assert_allclose(rope.sin_cached, sin, rtol=0, atol=1e-15)

    @pytest.mark.parametrize("interleaved", [False, True])
    def test_rotation_keeps_norms_and_relative_distances(self, rng: np.random.Generator, interleaved: bool) -> None:
        """Norms are kept, and products depend on the difference of positions alone."""
        rope = hw.RotaryPositionalEmbedding(16, interleaved=interleaved)
        x = rng.standard_normal((2, 40, 16))
        np.testing.assert_allclose(np.linalg.norm(rope(x), axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-13)
        query, key = (np.tile(row, (40, 1)) for row in rng.standard_normal((2, 16)))
        scores = rope(query) @ rope(key).T
        for difference in (-3, 0, 5):
            diagonal = np.diagonal(scores, difference)
            np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-12)

    def test_positions(self, rng: np.random.Generator) -> None:
        rope = hw.RotaryPositionalEmbedding(8, max_len=4)
        x = rng.standard_normal((2, 3, 5, 8))
        for positions in ([0, 2, 4, 9, 1], [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], [[7, 6, 5, 4, 3]], [-2, -1, 0, 1, 2]):
            cos, sin = (table if table.ndim == 2 else table[:, None] for table in oracle.rope_tables(positions, 8))
            expected = oracle.rope(x, cos, sin)
            np.testing.assert_allclose(rope(x, positions), expected, atol=1e-14)
            np.testing.assert_allclose(rope.forward(x[:, 0], positions=positions), expected[:, 0], atol=1e-14)

    def test_two_positions_axes_of_one_size(self, rng: np.random.Generator) -> None:
        """With as many sequences as rows, two axes of positions are still (batch, seq)."""
        rope, x = hw.RotaryPositionalEmbedding(4), rng.standard_normal((3, 3, 3, 4))
        positions = rng.integers(0, 50, (3, 3))
        for batch in range(3):
            np.testing.assert_allclose(rope(x, positions)[batch], rope(x[batch], positions[batch]), atol=1e-15)

    def test_tables_grow(self, rng: np.random.Generator) -> None:
        rope = hw.RotaryPositionalEmbedding(8, max_len=4)
        x = rng.standard_normal((2, 11, 8))
        cos, sin = oracle.rope_tables(np.arange(11), 8)
        np.testing.assert_allclose(rope(x), oracle.rope(x, cos, sin), atol=1e-14)
        assert len(rope.cos_cached) >= 11
        np.testing.assert_allclose(rope.sin_cached[:11], sin, rtol=0, atol=1e-15)
        x32 = x.astype(np.float32)
        np.testing.assert_allclose(rope(x32), rope(x), atol=1e-6)
        rope(x[:, :1], [100])  # grows again, with the float32 tables
        np.testing.assert_allclose(rope(x32[:, :1], [100]), rope(x[:, :1], [100]), atol=1e-6)

    def test_growth_is_amortised(self) -> None:
        rope = hw.RotaryPositionalEmbedding(8, max_len=1)
        sizes = {len(rope.cos_cached)}
        for position in range(1000):
            rope(np.ones((1, 8)), [position])
            sizes.add(len(rope.cos_cached))
        assert len(sizes) < 15

    def test_far_positions_are_exact_and_cost_no_table(self) -> None:
        rope = hw.RotaryPositionalEmbedding(64)
        x = np.ones((1, 3, 64), np.float32)
        positions = [10**5 + 7, 10**9, 10**12]
        # At position 10^12 float64 holds an angle to 6e-5, so the expected rotation is that of the float64 product.
        angles = np.multiply.outer(np.array(positions, float), rope.inv_freq)
        np.testing.assert_allclose(rope(x, positions), oracle.rope(x, np.cos(angles), np.sin(angles)), atol=1e-6)
        assert len(rope.cos_cached) < 10**6

    def test_long_sequences_cost_no_table_above_its_limit(self) -> None:
        """64 MB are 4096 positions of 2048 features in float64."""
        rope = hw.RotaryPositionalEmbedding(2048, max_len=2000)
        x = np.ones((1, 5000, 2048))
        some = [0, 2000, 4999]
        expected = oracle.rope(x[:, some], *oracle.rope_tables(some, 2048))
        np.testing.assert_allclose(rope(x)[:, some], expected, rtol=0, atol=5000 * 4e-16)
        assert len(rope.cos_cached) == 2000

    @pytest.mark.parametrize("interleaved", [False, True])
    def test_rotate_half(self, rng: np.random.Generator, interleaved: bool) -> None:
        rope = hw.RotaryPositionalEmbedding(8, interleaved=interleaved)
        x = rng.standard_normal((2, 5, 8))
        cos, sin = (
            np.repeat(table[:5], 2, axis=-1) if interleaved else np.tile(table[:5], 2)
            for table in (rope.cos_cached, rope.sin_cached)
        )
        np.testing.assert_allclose(x * cos + rope.rotate_half(x) * sin, rope(x), atol=1e-14)
        np.testing.assert_array_equal(rope.rotate_half(rope.rotate_half(x)), -x)
        quarter = [-3, 0, -1, 2] if interleaved else [-2, -3, 0, 1]
        halved = hw.RotaryPositionalEmbedding(4, interleaved=interleaved).rotate_half
        assert halved(np.array([0, 3, 2, 1]) if interleaved else np.arange(4)).tolist() == quarter

    @pytest.mark.parametrize("name", ["float16", "bfloat16"])
    def test_half_precision_is_rounded_once(self, rng: np.random.Generator, name: str) -> None:
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need the package ml_dtypes")
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        x = rng.standard_normal((2, 300, 8)).astype(dtype)
        rotated = hw.RotaryPositionalEmbedding(8)(x)
        assert rotated.dtype == dtype
        exact = oracle.rope(x, *oracle.rope_tables(np.arange(300), 8))
        rounding = 2.0**-11 if name == "float16" else 2.0**-8
        np.testing.assert_allclose(rotated.astype(float), exact, rtol=1.01 * rounding, atol=1e-6)
