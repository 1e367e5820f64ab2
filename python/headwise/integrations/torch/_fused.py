"""The operators of PyTorch that hold its fused attention on CPU, computed by headwise.

``aten::_scaled_dot_product_flash_attention_for_cpu`` and its backward pass are called by PyTorch's own autograd, by
graphs of ``torch.compile`` and under transformations such as ``torch.func.vmap``, always with plain tensors of main
memory whose shapes PyTorch has checked. Results have PyTorch's layouts, which compiled graphs rely on.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from headwise._base.arrays import cast_layout, compact
from headwise._base.attention_spec import AttentionSpec
from headwise._runtime.backend import current
from headwise._runtime.precision import check_precision
from headwise.integrations.torch._tensors import BFLOAT16, to_array, to_rows, torch

_empty_like, _BFLOAT16, _FLOAT32, _FLOAT64 = torch.empty_like, torch.bfloat16, torch.float32, torch.float64

_KEEP = AttentionSpec._fields.index("keep")  # and bias behind it


def forward(
    query: Any,  # (batch, heads, query_len, head_dim)
    key: Any,  # (batch, kv_heads, key_len, head_dim)
    value: Any,  # likewise
    dropout_p: float = 0.0,  # always 0: PyTorch has no fused dropout on CPU
    is_causal: bool = False,
    *,
    attn_mask: Any = None,  # floating, (query_len, key_len) or four axes, each of full size or 1
    scale: float | None = None,
) -> tuple[Any, Any]:
    """``aten::_scaled_dot_product_flash_attention_for_cpu``: the output and the log-sum-exp of the scores."""
    del dropout_p
    batch, heads, length, _ = query.shape
    accumulator = _FLOAT64 if query.dtype is _FLOAT64 else _FLOAT32
    # Heads last in memory, as in PyTorch.
    lse = torch.empty_strided((batch, heads, length), (length * heads, 1, heads), dtype=accumulator)
    return attend(query, key, value, attn_mask, is_causal, scale, lse), lse


def attend(query: Any, key: Any, value: Any, mask: Any, is_causal: bool, scale: float | None, lse: Any = None) -> Any:
    """The output, in memory as the query; ``lse`` is filled if given. ``mask`` may also be a bool one."""
    if not query.numel() or not key.numel():
        if lse is not None:
            lse.fill_(-math.inf)
        return torch.zeros_like(query)
    is_converted = BFLOAT16 is None and query.dtype is _BFLOAT16
    output = torch.empty_like(query, dtype=_FLOAT32) if is_converted else _empty_like(query)
    array = to_array(output)
    in_order = array.flags.carray or array.strides[3] == array.itemsize or array.shape[3] == 1
    written = array if in_order else np.empty(array.shape, array.dtype)
    spec = _plain_spec(query.shape[3], is_causal, scale, check_precision(None))
    if mask is not None:
        spec = _with_mask(spec, mask, query.dtype)
    current().attention(
        to_rows(query), to_rows(key), to_rows(value), written, None, None if lse is None else to_array(lse), spec
    )
    if not in_order:
        array[...] = written
    return output.to(_BFLOAT16) if is_converted else output


def backward(  # noqa: PLR0913 (PyTorch's signature)
    grad_out: Any,
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    logsumexp: Any,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Any = None,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """``aten::_scaled_dot_product_flash_attention_for_cpu_backward``: the gradients by query, key and value."""
    del dropout_p
    if grad_out is None:  # PyTorch's undefined gradient
        return None, None, None
    is_converted = BFLOAT16 is None and query.dtype is _BFLOAT16
    dtype = _FLOAT32 if is_converted else query.dtype
    # Heads behind the sequence in memory, as in PyTorch.
    gradients = [torch.empty_permuted(tensor.shape, (0, 2, 1, 3), dtype=dtype) for tensor in (query, key, value)]
    if query.numel() and key.numel():
        spec = _plain_spec(query.shape[3], is_causal, scale, check_precision(None))
        if attn_mask is not None:
            spec = _with_mask(spec, attn_mask, query.dtype)
        d_query, d_key, d_value = map(to_array, gradients)
        current().attention_backward(
            to_rows(grad_out), to_rows(query), to_rows(key), to_rows(value), to_rows(out),
            np.ascontiguousarray(to_array(logsumexp)), None, None, d_query, d_key, d_value,
            (None,) * len(spec.bias), None, None, None, spec,
        )  # fmt: skip
    else:
        for tensor in gradients:
            tensor.zero_()
    if is_converted:
        gradients = [tensor.to(_BFLOAT16) for tensor in gradients]
    return tuple(gradients)


@lru_cache(maxsize=256)
def _plain_spec(head_dim: int, is_causal: bool, scale: float | None, precision: str) -> AttentionSpec:
    return AttentionSpec(
        1.0 / math.sqrt(head_dim) if scale is None else float(scale), right=0 if is_causal else -1, precision=precision
    )


def _with_mask(spec: AttentionSpec, mask: Any, dtype: Any) -> AttentionSpec:
    """``spec`` with a mask of two or four axes, each of full size or 1."""
    keeps = mask.dtype is torch.bool
    if not keeps and mask.dtype is not dtype:
        mask = mask.to(_FLOAT64 if dtype is _FLOAT64 else _FLOAT32)
    array = compact(to_array(mask))
    array = cast_layout(array, array.dtype, last=True)
    array = array.reshape((1,) * (4 - array.ndim) + array.shape)
    masks = ((array,), ()) if keeps else ((), (array,))
    return tuple.__new__(AttentionSpec, (*spec[:_KEEP], *masks, *spec[_KEEP + 2 :]))  # less time than _replace
