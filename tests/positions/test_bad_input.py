"""Bad arguments of positional encodings: the error names the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw

pytestmark = pytest.mark.above_operations


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
