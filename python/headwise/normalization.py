"""Layer and RMS normalization."""

from __future__ import annotations

from headwise._ops.layer_norm import layer_normalization, rms_norm

__all__ = ["layer_normalization", "rms_norm"]
