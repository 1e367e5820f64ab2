"""Layer normalization."""

from __future__ import annotations

from headwise._ops.layer_norm import layer_normalization

__all__ = ["layer_normalization"]
