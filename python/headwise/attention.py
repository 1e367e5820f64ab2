"""Attention as functions, and the functions that belong to it: masks, softmax, dropout and encodings.

Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762.
"""

from __future__ import annotations

from headwise._nn.functional import multi_head_attention, multi_head_self_attention
from headwise._nn.single_head import cross_attention, self_attention
from headwise._nn.visualization import attention_score_visualization
from headwise._ops.attention.dense import scaled_dot_product_attention
from headwise._ops.attention.masks import create_causal_mask, create_look_ahead_mask, create_padding_mask
from headwise._ops.dropout import dropout
from headwise._ops.softmax import softmax
from headwise._positions.encodings import learned_positional_encoding, positional_encoding

__all__ = [
    "attention_score_visualization",
    "causal_mask",
    "create_causal_mask",
    "create_look_ahead_mask",
    "create_padding_mask",
    "cross_attention",
    "cross_attn",
    "dropout",
    "learned_positional_encoding",
    "mha",
    "multi_head_attention",
    "multi_head_self_attention",
    "padding_mask",
    "pos_encoding",
    "positional_encoding",
    "scaled_dot_product_attention",
    "sdp_attention",
    "self_attention",
    "self_attn",
    "softmax",
]

sdp_attention = scaled_dot_product_attention
mha = multi_head_attention
self_attn = self_attention
cross_attn = cross_attention
pos_encoding = positional_encoding
causal_mask = create_look_ahead_mask
padding_mask = create_padding_mask
