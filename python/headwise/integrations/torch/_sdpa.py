"""``torch.nn.functional.scaled_dot_product_attention`` on CPU, where headwise computes the same.

PyTorch's fused attention takes calls of four axes with one head_dim and without dropout, gradients of the mask and
strides in the last axis; it computes all other calls by matrix products, with an array of all scores. This kernel of
``aten::scaled_dot_product_attention`` serves them, too. Everything else goes on to PyTorch: arguments that PyTorch
refuses or broadcasts, empty tensors, subclasses of Tensor, transformations of torch.func, forward-mode derivatives,
modes that trace operators (torch.compile's among them), and calls for which the user has switched fused attention off.
The operators that PyTorch's own kernel then calls are those of :mod:`headwise.integrations.torch._fused`, which is how
compiled graphs and transformations arrive at headwise.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from headwise._ops.gradients.attention import NAMES
from headwise.integrations.torch._function import Dropout, apply, new_seed
from headwise.integrations.torch._fused import attend
from headwise.integrations.torch._tensors import BFLOAT16, DTYPES, is_plain, torch

if TYPE_CHECKING:
    from headwise._base.typing import Shape

_forward_ad = torch.autograd.forward_ad
_transformations = torch._C._functorch.peek_interpreter_stack  # noqa: SLF001 (there is no public name)
_count_modes = torch._C._len_torch_dispatch_stack  # noqa: SLF001
_fused_is_on = torch._C._get_flash_sdp_enabled  # noqa: SLF001 (torch.backends.cuda.flash_sdp_enabled, which imports)
_fused_attention = torch._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
_is_grad_enabled = torch.is_grad_enabled
_KEPT_AND_MASKED = {dtype: (torch.zeros((), dtype=dtype), torch.full((), -math.inf, dtype=dtype)) for dtype in DTYPES}
_OPERATOR = torch.ops.aten.scaled_dot_product_attention.default


def with_autograd(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The kernel for calls that autograd may record."""
    fits = _is_ours(query, key, value, attn_mask, is_causal, enable_gqa)
    if not fits:
        return _OPERATOR.decompose(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if not _is_grad_enabled() or not (
        query.requires_grad
        or key.requires_grad
        or value.requires_grad
        or (attn_mask is not None and attn_mask.requires_grad)
    ):
        return _without_gradients(query, key, value, attn_mask, dropout_p, is_causal, scale, fits)
    if fits != _FUSED or dropout_p != 0.0 or (attn_mask is not None and attn_mask.requires_grad):
        return _general(query, key, value, attn_mask, dropout_p, is_causal, scale)
    if attn_mask is not None and attn_mask.dtype is torch.bool:  # PyTorch's backward pass takes floating masks
        attn_mask = torch.where(attn_mask, *_KEPT_AND_MASKED[query.dtype])
    return _fused_attention(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]


def without_autograd(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The kernel for calls that autograd does not see: inference mode."""
    fits = _is_ours(query, key, value, attn_mask, is_causal, enable_gqa)
    if not fits:
        return _OPERATOR.decompose(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    return _without_gradients(query, key, value, attn_mask, dropout_p, is_causal, scale, fits)


# How a call fits: not at all, or as PyTorch's fused attention takes it, or otherwise.
_NOT, _FUSED, _OTHERWISE = range(3)


def _is_ours(query: Any, key: Any, value: Any, mask: Any, is_causal: bool, grouped: bool) -> int:
    """How headwise can compute the call: one of the constants above."""
    if not (
        is_plain(query)
        and is_plain(key)
        and is_plain(value)
        and _transformations() is None
        and not _count_modes()
        and _forward_ad._current_level < 0  # noqa: SLF001
        and _fused_is_on()
    ):
        return _NOT
    dtype = query.dtype
    if dtype is not key.dtype or dtype is not value.dtype or dtype not in DTYPES:
        return _NOT
    if BFLOAT16 is None and dtype is torch.bfloat16:
        return _NOT
    fits = _shapes_fit(query.shape, key.shape, value.shape, grouped)
    if mask is None or fits is _NOT:
        return fits
    if is_causal or not is_plain(mask) or mask.dtype not in (torch.bool, dtype, torch.float32):
        return _NOT
    return fits if _mask_fits(mask.shape, query.shape, key.shape) else _NOT


@lru_cache(maxsize=256)
def _shapes_fit(query: Shape, key: Shape, value: Shape, grouped: bool) -> int:
    """Whether the arrays have numbers, one batch, and heads that headwise shares as PyTorch does."""
    rank = len(query)
    if rank < 2 or not len(key) == len(value) == rank or 0 in (*query, *key, *value):
        return _NOT
    if key[:-1] != value[:-1] or query[-1] != key[-1]:
        return _NOT
    if rank < 4:
        return _OTHERWISE if query[:-2] == key[:-2] else _NOT
    heads, kv_heads = query[-3], key[-3]
    if query[:-3] != key[:-3] or heads % kv_heads or not (grouped or kv_heads in (1, heads)):
        return _NOT
    return _FUSED if rank == 4 and query[-1] == value[-1] else _OTHERWISE


@lru_cache(maxsize=256)
def _mask_fits(mask: Shape, query: Shape, key: Shape) -> bool:
    """Whether a mask of this shape broadcasts to the scores."""
    scores = (*query[:-1], key[-2])
    return 2 <= len(mask) <= len(scores) and all(
        size in (1, full) for size, full in zip(reversed(mask), reversed(scores), strict=False)
    )


def _without_gradients(
    query: Any, key: Any, value: Any, mask: Any, dropout: float, is_causal: bool, scale: float | None, fits: int
) -> Any:
    if dropout == 0.0 and fits == _FUSED:
        return attend(query, key, value, mask, is_causal, scale)
    return _general(query, key, value, mask, dropout, is_causal, scale)


def _general(query: Any, key: Any, value: Any, mask: Any, dropout: float, is_causal: bool, scale: float | None) -> Any:
    keywords: dict[str, Any] = {"is_causal": is_causal, "scale": scale}
    given = {"query": query, "key": key, "value": value}
    if mask is not None:
        # Without an axis of one size, a mask of two axes may be (batch, key_len), and headwise has none of one axis.
        mask = mask.reshape((1,) * (query.ndim - mask.ndim) + tuple(mask.shape))
        if mask.dtype is torch.bool:
            keywords["mask"] = mask
        else:
            given["bias"] = mask
    draws = Dropout(dropout, new_seed()) if dropout > 0.0 else Dropout()
    return apply([given.get(name) for name in NAMES], keywords, draws)[0]
