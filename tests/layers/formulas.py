"""Multi-head attention by its formula, for the tests of layers."""

from __future__ import annotations

from typing import Any

import numpy as np

import oracle

NAMES = ("W_q", "W_k", "W_v", "W_o")


def by_hand(layer: Any, q: np.ndarray, k: np.ndarray, v: np.ndarray, **keywords: Any) -> oracle.Attention:
    """Multi-head attention in float64, with a slice of each projection for each head."""
    pairs = zip((q, k, v), NAMES, strict=False)
    projected = [np.asarray(a, float) @ np.asarray(getattr(layer, name), float) for a, name in pairs]
    split = [np.stack(np.split(a, layer.num_heads, axis=-1), axis=1) for a in projected]
    output, weights, lse = oracle.attention(*split, **keywords)
    joined = np.concatenate(np.moveaxis(output, 1, 0), axis=-1)
    return oracle.Attention(joined @ np.asarray(layer.W_o, float), weights, lse)
