"""Small models with positional encodings: an encoder block, a GPT-style decoder, rotary attention, a sentiment model.

    python examples/positional_encoding_examples.py

Each example prints its shapes and checks a claim about itself. Nothing is trained except the last layer of the
sentiment model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import headwise as hw
from headwise.positional_encoding import (
    CausalAttention,
    MultiHeadAttention,
    RotaryPositionalEmbedding,
    SinusoidalPositionalEncoding,
)

Array = NDArray[Any]


def check(claim: str, holds: bool) -> None:
    if not holds:
        raise SystemExit(f"  does not hold: {claim}")
    print(f"  holds: {claim}")


class FeedForward:
    """Two linear maps with a ReLU between them, applied to each token."""

    def __init__(self, d_model: int, width: int, rng: np.random.Generator) -> None:
        self.widen = rng.standard_normal((d_model, width), dtype=np.float32) * 0.02
        self.narrow = rng.standard_normal((width, d_model), dtype=np.float32) * 0.02

    def __call__(self, x: Array) -> Array:
        return hw.linear(np.maximum(hw.linear(x, self.widen), 0), self.narrow)


class Block:
    """Attention, then a feed-forward network, each with layer normalization before it and a residual connection."""

    def __init__(self, attention: MultiHeadAttention, rng: np.random.Generator) -> None:
        self.attention = attention
        self.feed_forward = FeedForward(attention.d_model, 4 * attention.d_model, rng)

    def __call__(self, x: Array, **keywords: Any) -> Array:
        width = x.shape[-1]
        gain, shift = np.ones(width, x.dtype), np.zeros(width, x.dtype)
        attended, _ = self.attention(hw.layer_normalization(x, gain, shift), need_weights=False, **keywords)
        x = x + attended
        return x + self.feed_forward(hw.layer_normalization(x, gain, shift))


def encoder_block(rng: np.random.Generator) -> None:
    print("Transformer encoder block, with padding")
    d_model, lengths = 512, np.array([50, 31, 12, 5])
    encoding, block = SinusoidalPositionalEncoding(d_model), Block(MultiHeadAttention(d_model, 8, rng=rng), rng)
    x = rng.standard_normal((len(lengths), 50, d_model), dtype=np.float32)
    tokens = np.arange(50) < lengths[:, None]
    padding = hw.create_padding_mask(tokens)
    encoded = block(encoding(x), mask=padding)
    print(f"  input {x.shape}, padding mask {padding.shape}, output {encoded.shape}")

    x[~tokens] = 1000.0
    changed = block(encoding(x), mask=padding)
    check("what stands in the padding reaches no token", np.array_equal(changed[tokens], encoded[tokens]))


def gpt_decoder(rng: np.random.Generator) -> None:
    print("GPT-style decoder of three blocks")
    vocabulary, d_model, length = 1000, 256, 50
    embedding = rng.standard_normal((vocabulary, d_model), dtype=np.float32) * 0.1
    encoding = SinusoidalPositionalEncoding(d_model)
    blocks = [Block(CausalAttention(d_model, 8, rng=rng), rng) for _ in range(3)]

    def logits(tokens: Array) -> Array:
        x = encoding(embedding[tokens])
        for block in blocks:
            x = block(x)
        return hw.linear(x, embedding.T)

    tokens = rng.integers(0, vocabulary, (4, length))
    scores = logits(tokens)
    print(f"  tokens {tokens.shape}, logits {scores.shape}")

    future = tokens.copy()
    future[:, 30:] = rng.integers(0, vocabulary, (4, length - 30))
    difference = abs(logits(future) - scores).max(axis=(0, 2))
    check("tokens from 30 on change nothing before 30", bool(difference[:30].max() < 1e-5 < difference[30:].max()))


def rotary_attention(rng: np.random.Generator) -> None:
    print("LLaMA-style attention, positions in the rotation of queries and keys")
    batch, heads, length, head_dim = 2, 8, 50, 64
    rope = RotaryPositionalEmbedding(head_dim)
    query, key, value = rng.standard_normal((3, batch, heads, length, head_dim), dtype=np.float32)

    def attend(positions: Array) -> Array:
        output: Array = hw.flash_attention(rope(query, positions), rope(key, positions), value, is_causal=True)
        return output

    output = attend(np.arange(length))
    print(f"  query {query.shape}, output {output.shape}, tables {rope.cos_cached.shape}")
    moved = attend(np.arange(length) + 1000)
    check("only distances matter: a shift of 1000 changes nothing", bool(abs(moved - output).max() < 1e-4))
    longest = RotaryPositionalEmbedding(head_dim, max_len=16)(query)
    check("sequences may be longer than max_len", np.array_equal(longest, rope(query)))


def sentiment_model(rng: np.random.Generator) -> None:
    print("Sentiment model: encoding, attention, mean, a logistic regression on top")
    vocabulary, embedding_dim, examples, length = 200, 64, 400, 20
    # A synthetic language: half of the words are kind, and their embeddings are shifted, as learned embeddings would
    # be. A sentence is kind if most of its words are.
    is_kind = np.arange(vocabulary) < vocabulary // 2
    embedding_matrix = rng.standard_normal((vocabulary, embedding_dim)) + is_kind[:, np.newaxis]
    encoding = SinusoidalPositionalEncoding(embedding_dim)
    attention = MultiHeadAttention(embedding_dim, num_heads=8, rng=rng)
    sentences = rng.integers(0, vocabulary, (examples, length))
    kind = is_kind[sentences].mean(axis=1) > 0.5

    embedded = encoding(embedding_matrix[sentences])
    attended, weights = attention(embedded)
    pooled = (embedded + attended).mean(axis=1)
    print(f"  sentences {sentences.shape}, attention {weights.shape}, pooled {pooled.shape}")

    train, test = slice(0, 300), slice(300, None)
    features = (pooled - pooled[train].mean(axis=0)) / pooled[train].std(axis=0)
    W_class = np.zeros((embedding_dim, 2))
    for _ in range(200):
        error = hw.softmax(features[train] @ W_class) - np.eye(2)[kind[train].astype(int)]
        W_class -= 0.5 * features[train].T @ error / 300
    accuracy = float((np.argmax(features[test] @ W_class, axis=1) == kind[test]).mean())
    check(f"it tells kind sentences it has not seen ({accuracy:.0%} right)", accuracy > 0.75)


def main() -> None:
    for example in (encoder_block, gpt_decoder, rotary_attention, sentiment_model):
        example(np.random.default_rng(0))


if __name__ == "__main__":
    main()
