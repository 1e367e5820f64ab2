"""Keys and values of past tokens, stored for the queries of later tokens.

Pope et al., "Efficiently Scaling Transformer Inference" (2022), https://arxiv.org/abs/2211.05102, section 3.3.
"""

from __future__ import annotations

from headwise._kv_cache.cache import KVCache

__all__ = [
    "KVCache",
]
