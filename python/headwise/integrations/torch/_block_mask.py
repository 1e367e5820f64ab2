"""The BlockMask of PyTorch's flex_attention as one of headwise."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._block_mask.mask import BlockMask
from headwise.integrations.torch._tensors import Tensor, torch

if TYPE_CHECKING:
    from collections.abc import Callable


def block_mask(mask: Any, query_len: int | None = None, key_len: int | None = None) -> BlockMask:
    """The :class:`headwise.BlockMask` of a BlockMask of ``torch.nn.attention.flex_attention``.

    Its ``mask_mod`` is evaluated by blocks, on tensors of indices of the shapes (batch, 1, 1, 1), (1, heads, 1, 1),
    (1, 1, queries, 1) and (1, 1, 1, keys).

    Parameters
    ----------
    mask : torch.nn.attention.flex_attention.BlockMask
        With its ``mask_mod``.
    query_len, key_len : int, optional
        The lengths; those of `mask` by default.

    Returns
    -------
    headwise.BlockMask

    Raises
    ------
    TypeError
        If `mask` is none of flex_attention's.

    Examples
    --------
    >>> from torch.nn.attention.flex_attention import create_block_mask
    >>> from headwise.integrations.torch import block_mask
    >>> causal = create_block_mask(lambda b, h, q, k: q >= k, None, None, 256, 256, device="cpu")
    >>> round(block_mask(causal).kept, 3)
    0.502
    """
    if not _is_flex(mask):
        raise TypeError(f"mask: {type(mask).__name__}, expected a BlockMask of torch.nn.attention.flex_attention")
    batch, heads = mask.kv_num_blocks.shape[:2]
    return BlockMask.from_mod(
        _on_arrays(mask.mask_mod),
        mask.seq_lengths[0] if query_len is None else query_len,
        mask.seq_lengths[1] if key_len is None else key_len,
        batch=batch if batch > 1 else None,
        heads=heads if heads > 1 else None,
    )


def as_mask(mask: Any, query: Any, key: Any) -> Any:
    """``mask``, or what it is for headwise if it is a BlockMask of flex_attention."""
    if not _is_flex(mask):
        return mask
    if torch.compiler.is_compiling():
        flex = sys.modules["torch.nn.attention.flex_attention"]
        batch, heads = mask.kv_num_blocks.shape[:2]
        return flex.create_mask(mask.mask_mod, batch, heads, query.shape[-2], key.shape[-2], device="cpu")
    return block_mask(mask, query.shape[-2], key.shape[-2])


def _is_flex(mask: Any) -> bool:
    flex = sys.modules.get("torch.nn.attention.flex_attention")  # without the module nobody has such a mask
    return flex is not None and isinstance(mask, flex.BlockMask)


def _on_arrays(mask_mod: Callable[..., Any]) -> Callable[..., Any]:
    """``mask_mod`` of tensors as a function of arrays; ranges of indices are passed on as they are."""

    def on_arrays(*indices: Any) -> Any:
        if not all(isinstance(x, np.ndarray) for x in indices):
            return mask_mod(*indices)
        kept = mask_mod(*(torch.from_numpy(x.astype(np.int64)) for x in indices))
        return kept.numpy() if isinstance(kept, Tensor) else kept

    return on_arrays
