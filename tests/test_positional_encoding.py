"""The module ``headwise.positional_encoding``: each documented example with its claims, then details.

``layers/test_layers.py`` has more tests of its attention layers.
"""

from __future__ import annotations

import pickle
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from headwise import positional_encoding

BATCH, SEQ_LEN, D_MODEL = 32, 50, 512

pytestmark = pytest.mark.above_operations


@pytest.fixture
def embeddings(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((BATCH, SEQ_LEN, D_MODEL), dtype=np.float32)


def sinusoid(positions: Any, d_model: int) -> np.ndarray:
    """Sine and cosine of each pair of features; an odd number of features has no last cosine."""
    cos, sin = oracle.rope_tables(positions, d_model)
    return np.stack([sin, cos], axis=-1).reshape(*np.shape(positions), 2 * cos.shape[-1])[..., :d_model]


class TestExamples:
    def test_basic_usage(self, embeddings: np.ndarray) -> None:
        from headwise.positional_encoding import MultiHeadAttention, SinusoidalPositionalEncoding

        pe = SinusoidalPositionalEncoding(d_model=512, max_len=5000)
        embeddings_with_pos = pe.forward(embeddings)
        mha = MultiHeadAttention(d_model=512, num_heads=8)
        output, attention_weights = mha.forward(embeddings_with_pos, embeddings_with_pos, embeddings_with_pos)
        assert output.shape == (32, 50, 512)
        assert attention_weights.shape == (32, 8, 50, 50)
        np.testing.assert_allclose(attention_weights.sum(axis=-1), 1, atol=1e-5)

    def test_sinusoidal(self, embeddings: np.ndarray) -> None:
        from headwise.positional_encoding import SinusoidalPositionalEncoding

        pe = SinusoidalPositionalEncoding(d_model=512, max_len=5000, dropout=0.1)
        x_with_pos = pe.forward(embeddings)
        np.testing.assert_allclose(x_with_pos, embeddings + sinusoid(np.arange(50), 512), atol=1e-6)
        positions = np.array([0, 1, 2, 3, 4])
        encodings = pe.get_encoding(positions)
        np.testing.assert_allclose(encodings, sinusoid(positions, 512), atol=1e-14)

    def test_learned(self, embeddings: np.ndarray, rng: np.random.Generator) -> None:
        from headwise.positional_encoding import LearnedPositionalEmbedding

        learned_pe = LearnedPositionalEmbedding(max_len=512, d_model=512)
        before = learned_pe.embeddings.copy()
        np.testing.assert_allclose(learned_pe.forward(embeddings), embeddings + before[:50], atol=1e-6)
        gradients = rng.standard_normal((512, 512))
        learned_pe.update_embeddings(gradients, learning_rate=0.001)
        np.testing.assert_allclose(learned_pe.embeddings, before - 0.001 * gradients, atol=1e-15)
        np.testing.assert_allclose(learned_pe.forward(embeddings), embeddings + learned_pe.embeddings[:50], atol=1e-6)

    def test_relative(self) -> None:
        from headwise.positional_encoding import RelativePositionalEncoding

        relative_pe = RelativePositionalEncoding(d_model=512, max_relative_position=128)
        relative_encodings = relative_pe.forward(50)
        assert relative_encodings.shape == (50, 50, 512)
        assert relative_pe.embeddings.shape == (257, 512)

    def test_rotary(self, embeddings: np.ndarray) -> None:
        from headwise.positional_encoding import RotaryPositionalEmbedding

        rope = RotaryPositionalEmbedding(d_model=512, max_len=2048, base=10000.0)
        x_with_rope = rope.forward(embeddings)
        assert x_with_rope.shape == embeddings.shape
        np.testing.assert_array_equal(rope.forward(embeddings, np.arange(SEQ_LEN)), x_with_rope)
        expected = oracle.rope(embeddings[:2], *oracle.rope_tables(np.arange(SEQ_LEN), 512))
        np.testing.assert_allclose(x_with_rope[:2], expected, atol=2e-6)

    def test_alibi(self, rng: np.random.Generator) -> None:
        from headwise.positional_encoding import ALiBiPositionalBias

        alibi = ALiBiPositionalBias(num_heads=8, max_len=2048)
        attention_scores = rng.standard_normal((4, 8, SEQ_LEN, SEQ_LEN))
        attention_with_bias = alibi.forward(attention_scores, SEQ_LEN)
        expected = attention_scores + oracle.alibi_bias(oracle.alibi_slopes(8), SEQ_LEN, SEQ_LEN)
        np.testing.assert_allclose(attention_with_bias, expected, atol=1e-13)

    def test_scaled_dot_product_attention(self, rng: np.random.Generator) -> None:
        from headwise.positional_encoding import scaled_dot_product_attention

        query, key = rng.standard_normal((2, 4, 8, SEQ_LEN, 64))
        value = rng.standard_normal((4, 8, SEQ_LEN, 32))
        output, attention_weights = scaled_dot_product_attention(query, key, value, mask=None, dropout=0.1)
        assert output.shape == (4, 8, SEQ_LEN, 32)
        assert attention_weights.shape == (4, 8, SEQ_LEN, SEQ_LEN)
        np.testing.assert_allclose(attention_weights, oracle.softmax(query @ key.swapaxes(2, 3) / 8), atol=1e-13)

    def test_multi_head_attention(self, rng: np.random.Generator) -> None:
        from headwise.positional_encoding import MultiHeadAttention, create_padding_mask

        x = rng.standard_normal((2, 5, 512))
        decoder_hidden, encoder_hidden = rng.standard_normal((2, 10, 512)), rng.standard_normal((2, 20, 512))
        mha = MultiHeadAttention(d_model=512, num_heads=8, dropout=0.1)
        output, weights = mha.forward(x, x, x)
        assert (output.shape, weights.shape) == ((2, 5, 512), (2, 8, 5, 5))
        output, weights = mha.forward(query=decoder_hidden, key=encoder_hidden, value=encoder_hidden)
        assert (output.shape, weights.shape) == ((2, 10, 512), (2, 8, 10, 20))
        mask = create_padding_mask(np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]]))
        output, weights = mha.forward(x, x, x, mask=mask)
        assert (weights[0, ..., 3:] == 0).all()
        assert (weights[1, ..., 2:] == 0).all()
        assert (weights[0, ..., :3] > 0).all()

    def test_causal_attention(self, embeddings: np.ndarray) -> None:
        """The upper triangle of the weights is 0."""
        from headwise.positional_encoding import CausalAttention

        causal_attn = CausalAttention(d_model=512, num_heads=8, dropout=0.1)
        output, weights = causal_attn.forward(embeddings, embeddings, embeddings)
        assert output.shape == (32, 50, 512)
        assert (np.triu(weights, k=1) == 0).all()
        np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)

    def test_utilities(self, rng: np.random.Generator) -> None:
        from headwise.positional_encoding import create_look_ahead_mask, create_padding_mask, softmax

        padding_mask = create_padding_mask(np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]]), pad_token=0)
        assert padding_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
        np.testing.assert_array_equal(create_look_ahead_mask(seq_len=5), np.tril(np.ones((5, 5))))
        logits = 100 * rng.standard_normal((4, 10))
        np.testing.assert_allclose(softmax(logits, axis=-1), oracle.softmax(logits), atol=1e-14)

    def test_encoder_block(self, rng: np.random.Generator) -> None:
        from headwise.positional_encoding import MultiHeadAttention, SinusoidalPositionalEncoding

        pe = SinusoidalPositionalEncoding(d_model=512)
        mha = MultiHeadAttention(d_model=512, num_heads=8)
        x = rng.standard_normal((4, 50, 512))
        x_with_pos = pe.forward(x)
        attn_output, _ = mha.forward(x_with_pos, x_with_pos, x_with_pos)
        x = x_with_pos + attn_output
        W1, W2 = rng.standard_normal((512, 2048)) * 0.02, rng.standard_normal((2048, 512)) * 0.02
        encoder_output = x + np.dot(np.maximum(0, np.dot(x, W1)), W2)
        assert encoder_output.shape == (4, 50, 512)

    def test_gpt_style_decoder(self, rng: np.random.Generator) -> None:
        """Later tokens have no influence on earlier ones."""
        from headwise.positional_encoding import CausalAttention, SinusoidalPositionalEncoding

        pe = SinusoidalPositionalEncoding(d_model=512)
        causal_attn = CausalAttention(d_model=512, num_heads=8)

        def decode(x: np.ndarray) -> np.ndarray:
            x_with_pos = pe.forward(x)
            attn_output, _ = causal_attn.forward(x_with_pos, x_with_pos, x_with_pos)
            return x_with_pos + attn_output

        x = rng.standard_normal((2, 50, 512))
        changed = x.copy()
        changed[:, 30:] = rng.standard_normal((2, 20, 512))
        before, after = decode(x), decode(changed)
        assert before.shape == (2, 50, 512)
        np.testing.assert_allclose(before[:, :30], after[:, :30], atol=1e-13)
        assert abs(before[:, 30:] - after[:, 30:]).max() > 0.1

    def test_llama_style(self, embeddings: np.ndarray) -> None:
        from headwise.positional_encoding import MultiHeadAttention, RotaryPositionalEmbedding

        rope = RotaryPositionalEmbedding(d_model=512)
        mha = MultiHeadAttention(d_model=512, num_heads=8)
        x_with_rope = rope.forward(embeddings)
        output, _ = mha.forward(x_with_rope, x_with_rope, x_with_rope)
        assert output.shape == embeddings.shape

    def test_sentiment_model(self, rng: np.random.Generator) -> None:
        from headwise.positional_encoding import MultiHeadAttention, SinusoidalPositionalEncoding

        embedding_dim = 256
        pe = SinusoidalPositionalEncoding(embedding_dim)
        mha = MultiHeadAttention(embedding_dim, num_heads=8)
        sentences = rng.integers(0, 10000, (32, 20))
        embedded = pe.forward(rng.standard_normal((10000, embedding_dim))[sentences])
        attn_out, _ = mha.forward(embedded, embedded, embedded)
        logits = np.dot(np.mean(attn_out, axis=1), rng.standard_normal((embedding_dim, 2)))
        assert logits.shape == (32, 2)

    def test_aliases(self) -> None:
        aliases = {
            "sinusoidal_pe": "SinusoidalPositionalEncoding",
            "learned_pe": "LearnedPositionalEmbedding",
            "relative_pe": "RelativePositionalEncoding",
            "rope": "RotaryPositionalEmbedding",
            "alibi": "ALiBiPositionalBias",
            "mha": "MultiHeadAttention",
            "causal_attn": "CausalAttention",
            "sdpa": "scaled_dot_product_attention",
        }
        for alias, name in aliases.items():
            assert getattr(positional_encoding, alias) is getattr(positional_encoding, name) is getattr(hw, name)
            assert {alias, name} <= set(positional_encoding.__all__)
        assert hw.rope.RotaryPositionalEmbedding is hw.RotaryPositionalEmbedding  # headwise.rope is the module


def test_model_sketches(capsys: pytest.CaptureFixture[str]) -> None:
    """The example script: an encoder block, a decoder, rotary attention, a sentiment model. It checks its claims."""
    script = Path(__file__).parents[1] / "examples" / "positional_encoding_examples.py"
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.count("  holds: ") == 5
    for shapes in ("output (4, 50, 512)", "logits (4, 50, 1000)", "query (2, 8, 50, 64)", "attention (400, 8, 20, 20)"):
        assert shapes in printed


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


SINUSOIDAL = hw.SinusoidalPositionalEncoding(4)
LEARNED = hw.LearnedPositionalEmbedding(4, 4)
RELATIVE = hw.RelativePositionalEncoding(4)
ROPE = hw.RotaryPositionalEmbedding(4)
ALIBI = hw.ALiBiPositionalBias(2)
X = np.ones((2, 3, 4))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "d_model", lambda: hw.SinusoidalPositionalEncoding(0)),
        (TypeError, "d_model", lambda: hw.SinusoidalPositionalEncoding("4")),  # type: ignore[arg-type]
        (ValueError, "max_len", lambda: hw.SinusoidalPositionalEncoding(4, max_len=-1)),
        (ValueError, "dropout", lambda: hw.SinusoidalPositionalEncoding(4, dropout=1.0)),
        (ValueError, "dropout", lambda: hw.SinusoidalPositionalEncoding(4, dropout=-0.1)),
        (TypeError, "rng", lambda: hw.SinusoidalPositionalEncoding(4, rng=0.5)),  # type: ignore[arg-type]
        (ValueError, "x", lambda: SINUSOIDAL(np.ones((2, 3, 5)))),
        (ValueError, "x", lambda: SINUSOIDAL(np.ones(4))),
        (TypeError, "x", lambda: SINUSOIDAL(X.astype(complex))),
        (TypeError, "training", lambda: SINUSOIDAL(X, training="yes")),
        (TypeError, "positions", lambda: SINUSOIDAL.get_encoding([0.5])),
        (TypeError, "positions", lambda: SINUSOIDAL.get_encoding([True])),
        (ValueError, "max_len", lambda: hw.LearnedPositionalEmbedding(0, 4)),
        (ValueError, "d_model", lambda: hw.LearnedPositionalEmbedding(4, 0)),
        (TypeError, "dtype", lambda: hw.LearnedPositionalEmbedding(4, 4, dtype=int)),
        (TypeError, "dtype", lambda: hw.LearnedPositionalEmbedding(4, 4, dtype="nonsense")),
        (ValueError, "x", lambda: LEARNED(np.ones((2, 3, 5)))),
        (TypeError, "learning_rate", lambda: LEARNED.update_embeddings(np.ones((4, 4)), "fast")),  # type: ignore[arg-type]
        (ValueError, "embeddings", lambda: setattr(LEARNED, "embeddings", np.ones((3, 4)))),
        (TypeError, "embeddings", lambda: setattr(LEARNED, "embeddings", np.ones((4, 4), complex))),
        (ValueError, "max_relative_position", lambda: hw.RelativePositionalEncoding(4, 0)),
        (ValueError, "seq_len", lambda: RELATIVE(0)),
        (TypeError, "seq_len", lambda: RELATIVE(2.0)),
        (ValueError, "d_model", lambda: hw.RotaryPositionalEmbedding(5)),
        (ValueError, "base", lambda: hw.RotaryPositionalEmbedding(4, base=0)),
        (ValueError, "base", lambda: hw.RotaryPositionalEmbedding(4, base=-1.0)),
        (ValueError, "base", lambda: hw.RotaryPositionalEmbedding(4, base=np.nan)),
        (ValueError, "max_len", lambda: hw.RotaryPositionalEmbedding(4, max_len=0)),
        (TypeError, "interleaved", lambda: hw.RotaryPositionalEmbedding(4, interleaved="yes")),  # type: ignore[arg-type]
        (ValueError, "x", lambda: ROPE(np.ones((2, 3, 6)))),
        (ValueError, "x", lambda: ROPE(np.ones(4))),
        (ValueError, "x", lambda: ROPE.rotate_half(np.ones(6))),
        (ValueError, "positions", lambda: ROPE(X, [0, 1])),
        (ValueError, "positions", lambda: ROPE(X, np.zeros((3, 3), int))),
        (ValueError, "positions", lambda: ROPE(X[0], np.zeros((1, 3), int))),
        (TypeError, "positions", lambda: ROPE(X, [0.0, 1.0, 2.0])),
        (ValueError, "dim", lambda: hw.rope.rope_frequencies(3)),
        (ValueError, "num_heads", lambda: hw.ALiBiPositionalBias(0)),
        (ValueError, "max_len", lambda: hw.ALiBiPositionalBias(2, 0)),
        (ValueError, "attention_scores", lambda: ALIBI(np.ones((1, 3, 4, 4)))),
        (ValueError, "attention_scores", lambda: ALIBI(np.ones((4, 4)))),
        (ValueError, "seq_len", lambda: ALIBI(np.ones((1, 2, 4, 4)), 5)),
        (TypeError, "offset", lambda: ALIBI(np.ones((1, 2, 4, 4)), offset=0.5)),
    ],
)
def test_bad_arguments(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=f"^{message}:"):
        call()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
