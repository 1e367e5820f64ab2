"""Rotary position embedding: the layer, its frequencies, and the conversion of weights between the two pairings.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), https://arxiv.org/abs/2104.09864,
equations 14 and 34. :func:`headwise.apply_rope` is the rotation by given cosines and sines.
"""

from __future__ import annotations

from headwise._positions.rope_parameters import rope_frequencies, rope_parameters, rope_tables
from headwise._positions.rope_weights import permute_rope_weights
from headwise._positions.rotary import RotaryPositionalEmbedding

__all__ = [
    "RotaryPositionalEmbedding",
    "permute_rope_weights",
    "rope_frequencies",
    "rope_parameters",
    "rope_tables",
]
