"""Scalings of rotary embeddings, as in configuration files."""

from __future__ import annotations

from typing import Any

import numpy as np

LINEAR = {"rope_type": "linear", "factor": 4.0}
PROPORTIONAL = {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}
DEEPSEEK = {**YARN, "mscale": 1.0, "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def longrope(pairs: int, trained: int = 4096, **more: Any) -> dict[str, Any]:
    short, long = np.linspace(1.0, 2.0, pairs).tolist(), np.geomspace(1.0, 48.0, pairs).tolist()
    lengths = {"original_max_position_embeddings": trained}
    return {"rope_type": "longrope", "short_factor": short, "long_factor": long, **lengths, **more}


#: Scalings for heads of 16 features and a trained length of 32, that a layer of either package takes.
SMALL: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": LINEAR,
    "dynamic": DYNAMIC,
    "yarn": {**YARN, "original_max_position_embeddings": 32, "factor": 8.0},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 32},
    "longrope": longrope(8, 32, factor=8.0),
}
