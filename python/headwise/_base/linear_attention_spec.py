"""What linear attention computes: one object for both backends, checked where it is built."""

from __future__ import annotations

from typing import NamedTuple

#: The update rules of :func:`headwise.linear_attention`: whether the state decays, and whether it is corrected.
RULES = {"linear": (False, False), "gated": (True, False), "delta": (False, True), "gated_delta": (True, True)}


class LinearAttentionSpec(NamedTuple):
    """Everything but the arrays. The native core reads it by position."""

    elu: bool  # query and key are mapped by elu(x) + 1
    normalize: bool  # outputs are divided by the sum of their weights, and states have a last column for that sum
    is_causal: bool
    scale: float  # of outputs that are not normalized
    chunk: int  # tokens of a chunk, at least 1
