"""Attention masks that remember what their axes mean.

A two-dimensional mask can be read as ``(query_len, key_len)`` or as ``(batch, key_len)``, and when ``batch`` equals
``query_len`` its shape alone cannot tell. The creators here return integer arrays (1 keeps, 0 drops) of a class that
can: :class:`PaddingMask` is always ``(batch, key_len)``, :class:`CausalMask` always ``(query_len, key_len)``.
"""

from __future__ import annotations

from headwise._ops.attention.masks import (
    CausalMask,
    PaddingMask,
    create_causal_mask,
    create_look_ahead_mask,
    create_padding_mask,
)

__all__ = [
    "CausalMask",
    "PaddingMask",
    "causal_mask",
    "create_causal_mask",
    "create_look_ahead_mask",
    "create_padding_mask",
    "padding_mask",
]

causal_mask = create_causal_mask
padding_mask = create_padding_mask
