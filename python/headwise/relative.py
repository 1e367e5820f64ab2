"""Encodings of the distance between two positions: relative embeddings, tables of relative biases, and ALiBi."""

from __future__ import annotations

from headwise._positions.relative import ALiBiPositionalBias, RelativePositionalEncoding
from headwise._positions.relative_bias import (
    deberta_relative_bias,
    fire_relative_bias,
    kerple_relative_bias,
    shaw_relative_bias,
    t5_relative_bias,
    transformer_xl_relative_bias,
)

__all__ = [
    "ALiBiPositionalBias",
    "RelativePositionalEncoding",
    "deberta_relative_bias",
    "fire_relative_bias",
    "kerple_relative_bias",
    "shaw_relative_bias",
    "t5_relative_bias",
    "transformer_xl_relative_bias",
]
