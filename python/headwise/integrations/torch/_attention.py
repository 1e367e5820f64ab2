"""``attention``: the keywords of headwise on tensors."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from headwise._base.scalars import check_flag, check_rate
from headwise._ops.attention.dense import flash_attention
from headwise._ops.gradients.attention import NAMES
from headwise.integrations.torch._block_mask import as_mask
from headwise.integrations.torch._function import Dropout, apply, new_seed
from headwise.integrations.torch._operator import run_compiled
from headwise.integrations.torch._tensors import Tensor, is_plain, torch


def attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    *,
    return_lse: bool = False,
    rng: Any = None,
    dropout_rate: float | None = None,
    **keywords: Any,
) -> Any:
    """:func:`headwise.flash_attention` of PyTorch tensors, differentiable by PyTorch's autograd.

    Memory is shared with PyTorch in both directions, and an array of all scores is never allocated. Gradients flow to
    `query`, `key`, `value`, `bias`, `alibi_slopes`, `sinks`, `relative_bias` and `relative_values`, from the
    output and from the log-sum-exp.

    Parameters
    ----------
    query : Tensor, (..., query_len, head_dim)
        In main memory, of float32, float64, float16 or bfloat16.
    key : Tensor, (..., key_len, head_dim)
        With an axis of heads, (batch, kv_heads, key_len, head_dim), where `heads` is a multiple of `kv_heads`.
    value : Tensor, (..., key_len, value_dim)
        As many heads as `key`.
    mask : Tensor or BlockMask, (..., query_len, key_len) or (batch, key_len), optional
        As for :func:`headwise.flash_attention`: a bool mask keeps a key where it is True. A BlockMask of
        ``torch.nn.attention.flex_attention`` becomes a :class:`headwise.BlockMask` of its ``mask_mod`` at each call
        (in functions that torch.compile compiles, a bool mask of all pairs); convert one that serves many calls by
        :func:`block_mask`.
    return_lse : bool
        Whether to return the logarithm of the softmax denominator as well.
    rng : int, torch.Generator or numpy.random.Generator, optional
        Seed or generator of dropout; by default the generator that ``torch.manual_seed`` sets.
    dropout_rate : float, optional
        Rate in [0, 1) of dropout of the weights; 0 if None.
    **keywords
        The other keywords of :func:`headwise.flash_attention` but `out`, with tensors in place of arrays.

    Returns
    -------
    output : Tensor, (..., query_len, value_dim)
        In the dtype to which `query`, `key` and `value` promote.
    lse : Tensor, (..., query_len)
        Only with `return_lse`: a pair is returned then. float64 for float64 tensors, else float32.

    Raises
    ------
    ValueError, TypeError
        As :func:`headwise.flash_attention`, and for tensors that are not in main memory.
    NotImplementedError
        If a gradient is differentiated again.

    See Also
    --------
    headwise.flash_attention : The keywords.
    enable : headwise behind ``torch.nn.functional.scaled_dot_product_attention``.

    Examples
    --------
    >>> import torch
    >>> from headwise.integrations.torch import attention
    >>> query = torch.ones(1, 8, 6, 16, requires_grad=True)
    >>> key, value = torch.ones(2, 1, 2, 6, 16)  # 8 query heads share 2
    >>> sinks = torch.zeros(8, requires_grad=True)
    >>> output = attention(query, key, value, is_causal=True, window_size=(4, 0), softcap=50.0, sinks=sinks)
    >>> output.sum().backward()
    >>> query.grad.shape, sinks.grad.shape
    (torch.Size([1, 8, 6, 16]), torch.Size([8]))
    """
    check_flag(return_lse, "return_lse")
    if "out" in keywords:
        raise TypeError("out: not a keyword here, expected a call without it, which returns a new tensor")
    given = {"query": query, "key": key, "value": value}
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: {type(x).__name__}, expected a torch.Tensor")
    keywords = {name: x for name, x in keywords.items() if x is not None}
    if mask is not None:
        keywords["mask"] = as_mask(mask, query, key)
    rate = 0.0 if dropout_rate is None else check_rate(dropout_rate, "dropout_rate")
    dropout = Dropout(rate, _seed(rng)) if rate else Dropout()
    # Dictionaries are not merged by |, which the compiler of PyTorch 2.6 does not trace.
    given.update({name: keywords.pop(name) for name in NAMES if name in keywords})
    arguments = [given.get(name) for name in NAMES]
    if torch.compiler.is_compiling():
        output, lse = run_compiled(arguments, keywords, dropout)
    else:
        for name, x in (*given.items(), *keywords.items()):
            if isinstance(x, Tensor) and not is_plain(x):
                raise TypeError(f"{name}: {_kind(x)}, expected a dense torch.Tensor in main memory (device cpu)")
        output, lse = apply(arguments, keywords, dropout)
    return (output, lse) if return_lse else output


def _kind(tensor: Any) -> str:
    if not tensor.is_cpu:
        return f"a tensor on device {tensor.device}"
    return f"a tensor of layout {tensor.layout}" if tensor.layout is not torch.strided else f"a {type(tensor).__name__}"


def _seed(rng: Any) -> int:
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(1 << 62))
    if rng is None or isinstance(rng, torch.Generator):
        return new_seed(rng)
    if isinstance(rng, bool) or not isinstance(rng, (int, np.integer)):
        raise TypeError(
            f"rng: {type(rng).__name__}, expected an integer, a torch.Generator or a numpy.random.Generator"
        )
    return int(rng)


def _signature() -> inspect.Signature:
    """That of flash_attention without ``out``."""
    signature = inspect.signature(flash_attention)
    shown = [parameter for name, parameter in signature.parameters.items() if name != "out"]
    return signature.replace(parameters=shown)


attention.__signature__ = _signature()  # type: ignore[attr-defined]
