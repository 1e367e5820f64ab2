"""The BlockMask of PyTorch's flex_attention as a mask of headwise."""

from __future__ import annotations

import sys
from typing import Any


def dense_mask(mask: Any, query: Any, key: Any) -> Any:
    """``mask``, or a BlockMask as a bool tensor, (batch, heads, query_len, key_len) with axes of size 1."""
    flex = sys.modules.get("torch.nn.attention.flex_attention")  # without it nobody has a BlockMask
    if flex is None or not isinstance(mask, flex.BlockMask):
        return mask
    batch, heads = mask.kv_num_blocks.shape[:2]
    return flex.create_mask(mask.mask_mod, batch, heads, query.shape[-2], key.shape[-2], device="cpu")
