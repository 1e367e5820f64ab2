"""Calls of headwise on tensors in the layout of transformers: masks to keywords, NumPy views, gradients."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

import headwise as hw
from headwise._base.foreign_arrays import torch_bfloat16
from headwise.integrations._transformers_masks import ImplicitMask, torch

differentiable: Any = importlib.import_module("headwise.integrations.torch")


def options_of_mask(mask: Any, batch: int, query_len: int, key_len: int) -> tuple[dict[str, Any], slice]:
    """The keywords of :func:`headwise.flash_attention` that do what a mask does, and the keys that they are for."""
    options = None
    if isinstance(mask, ImplicitMask):
        if not mask.written and mask.shape == (batch, 1, query_len, key_len):
            options = _options_of_pattern(mask, query_len, key_len)
        if options is None:
            mask = mask.dense()
    if options is None:
        if mask.shape[-1] > key_len:  # models of transformers 5.0 leave it to attention to cut the mask
            mask = mask[..., :key_len]
        options = {"mask": mask} if mask.dtype == torch.bool else {"bias": mask}, slice(None)
    return options


def _options_of_pattern(mask: ImplicitMask, query_len: int, key_len: int) -> tuple[dict[str, Any], slice] | None:
    """As :func:`options_of_mask`, None if no keywords do it."""
    causal, left, right, _ = mask.pattern
    offset = mask.query_offset
    start, stop = 0, min(key_len, offset + query_len) if causal else key_len
    options: dict[str, Any] = {}
    if causal and query_len == 1 and right is None and 0 <= offset < key_len:
        # A query that sees the last keys: no keyword is needed.
        start = 0 if left is None else max(0, offset - left)
    elif causal or left is not None or right is not None:
        if offset:
            if offset < 0 or offset + query_len != stop:
                return None
            options["causal_alignment"] = "lower_right"
        if causal:
            options["is_causal"] = True
        if left is not None or right is not None:
            options["window_size"] = (-1 if left is None else left, -1 if right is None else right)
    if mask.labels and query_len == 1:
        seen = mask.dense()[:, 0, 0]  # all that the pattern says, as large as a mask of padding
        start = max(start, int(seen.any(dim=0).int().argmax()))
        return {"key_padding_mask": seen[:, start:stop]}, slice(start, stop)
    keys = slice(start, stop)
    return options | _options_of_keys(mask, keys, "causal_alignment" not in options), keys


def _options_of_keys(mask: ImplicitMask, keys: slice, lengths: bool) -> dict[str, Any]:
    """The keywords of padding and labels; padding as numbers of keys, if it allows that and ``lengths`` does."""
    options: dict[str, Any] = {}
    if mask.key_lengths is not None and lengths:
        options["key_lengths"] = mask.key_lengths.clamp(keys.start, keys.stop) - keys.start
    elif mask.padding is not None:
        options["key_padding_mask"] = mask.padding[:, keys]
    if mask.labels:
        options["mask"] = mask.blocks(keys)
    return options


def flash_attention(query: Any, key: Any, value: Any, **options: Any) -> Any:
    """The output (batch, query_len, heads, value_dim) of :func:`headwise.flash_attention`."""
    if torch.compiler.is_compiling() or needs_gradient(query, key, value, *options.values()):
        return differentiable.attention(query, key, value, **options).transpose(1, 2).contiguous()
    if "dropout_rate" in options:
        options["rng"] = int(torch.randint(1 << 62, ()))  # of the generator that torch.manual_seed sets
    output = _empty_output(query, value)
    hw.flash_attention(
        _array(query), _array(key), _array(value), **_arrays(options), out=_array(output.transpose(1, 2))
    )
    return output


@torch.compiler.disable
def with_weights(query: Any, key: Any, value: Any, **options: Any) -> tuple[Any, Any]:
    """The output and the weights (batch, heads, query_len, key_len), without gradients."""
    output = _empty_output(query, value)
    _, weights = hw.scaled_dot_product_attention(
        _array(query), _array(key), _array(value), **_arrays(options), out=_array(output.transpose(1, 2))
    )
    return output, _tensor(weights)


def needs_gradient(*tensors: Any) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in tensors)


def in_order(bias: Any) -> Any:
    """A position bias in C order; the copy is kept with the tensor, because every layer of T5 gets the same one.

    T5 looks the bias up as (query_len, key_len, heads) and transposes it, an order that takes twice as long to read.
    """
    if bias.is_contiguous() or bias.requires_grad or bias.numel() < 1 << 16 or torch.compiler.is_compiling():
        return bias
    kept = getattr(bias, "_headwise_copy", None)
    if kept is not None and kept[1] == bias._version:  # noqa: SLF001 (a count of writes)
        return kept[0]
    copy = bias.contiguous() if bias.dtype == torch.bfloat16 else torch.from_numpy(np.ascontiguousarray(bias.numpy()))
    if not bias.is_inference():  # tensors of inference_mode do not count writes
        bias._headwise_copy = copy, bias._version  # noqa: SLF001
    return copy


def _empty_output(query: Any, value: Any) -> Any:
    batch, heads, query_len, _ = query.shape
    return torch.empty(batch, query_len, heads, value.shape[3], dtype=query.dtype)


def _array(tensor: Any) -> Any:
    """A NumPy view of a tensor."""
    tensor = tensor.detach()
    return torch_bfloat16(tensor, "attention") if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _arrays(options: dict[str, Any]) -> dict[str, Any]:
    return {name: _array(x) if isinstance(x, torch.Tensor) else x for name, x in options.items()}


def _tensor(array: Any) -> Any:
    """A tensor on the memory of a NumPy array."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("i2")).view(torch.bfloat16)
    return torch.from_numpy(array)
