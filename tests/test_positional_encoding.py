"""The module ``headwise.positional_encoding``: each documented example with its claims, then details.

``layers/test_layers.py`` has more tests of its attention layers.
"""

from __future__ import annotations

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


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
