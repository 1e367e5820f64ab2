"""Attention masks whose class defines the meaning of their axes.

A two-dimensional mask is ``(query_len, key_len)`` or ``(batch, key_len)``, and its shape is ambiguous if ``batch``
equals ``query_len``. The functions here return integer arrays (1 keeps a key, 0 masks it) of two classes without this
ambiguity: a :class:`PaddingMask` is ``(batch, key_len)``, and a :class:`CausalMask` is ``(query_len, key_len)``.
"""

from __future__ import annotations

from headwise._block_mask.mask import BlockMask
from headwise._ops.attention.masks import (
    CausalMask,
    PaddingMask,
    create_causal_mask,
    create_look_ahead_mask,
    create_padding_mask,
)

__all__ = [
    "BlockMask",
    "CausalMask",
    "PaddingMask",
    "causal_mask",
    "create_causal_mask",
    "create_look_ahead_mask",
    "create_padding_mask",
    "padding_mask",
]

causal_mask = create_look_ahead_mask
padding_mask = create_padding_mask
