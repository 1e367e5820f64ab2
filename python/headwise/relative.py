"""Encodings of the distance between two positions: relative embeddings and ALiBi."""

from __future__ import annotations

from headwise._positions.relative import ALiBiPositionalBias, RelativePositionalEncoding

__all__ = [
    "ALiBiPositionalBias",
    "RelativePositionalEncoding",
]
