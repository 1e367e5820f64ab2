"""Multi-head attention and linear attention as layers that own their projections.

Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762, section 3.2.2.
"""

from __future__ import annotations

from headwise._nn.layers import AttentionOptions, CausalAttention, MultiHeadAttention
from headwise._nn.linear_attention import LinearAttention

__all__ = [
    "AttentionOptions",
    "CausalAttention",
    "LinearAttention",
    "MultiHeadAttention",
]
