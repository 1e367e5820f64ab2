"""Positional encodings as layers, together with attention layers, masks and short aliases."""

from __future__ import annotations

from headwise._nn.layers import CausalAttention, MultiHeadAttention
from headwise._ops.attention.dense import scaled_dot_product_attention
from headwise._ops.attention.masks import create_causal_mask, create_look_ahead_mask, create_padding_mask
from headwise._ops.softmax import softmax
from headwise._positions.learned import LearnedPositionalEmbedding
from headwise._positions.relative import ALiBiPositionalBias, RelativePositionalEncoding
from headwise._positions.rotary import RotaryPositionalEmbedding
from headwise._positions.sinusoidal import SinusoidalPositionalEncoding

__all__ = [
    "ALiBiPositionalBias",
    "CausalAttention",
    "LearnedPositionalEmbedding",
    "MultiHeadAttention",
    "RelativePositionalEncoding",
    "RotaryPositionalEmbedding",
    "SinusoidalPositionalEncoding",
    "alibi",
    "causal_attn",
    "create_causal_mask",
    "create_look_ahead_mask",
    "create_padding_mask",
    "learned_pe",
    "mha",
    "relative_pe",
    "rope",
    "scaled_dot_product_attention",
    "sdpa",
    "sinusoidal_pe",
    "softmax",
]

sinusoidal_pe = SinusoidalPositionalEncoding
learned_pe = LearnedPositionalEmbedding
relative_pe = RelativePositionalEncoding
rope = RotaryPositionalEmbedding
alibi = ALiBiPositionalBias
mha = MultiHeadAttention
causal_attn = CausalAttention
sdpa = scaled_dot_product_attention
