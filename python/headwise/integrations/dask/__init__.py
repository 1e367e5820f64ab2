"""Attention over Dask arrays, in tasks of one chunk of queries and one chunk of keys each.

    pip install 'dask[array]>=2024.8'

A task returns its output and its log-sum-exp, and a tree of tasks merges those of the same queries
(:func:`headwise.merge_attention`). So neither the keys nor the values of a sequence have to fit into the memory of one
machine. Pairs of chunks that a mask excludes are no tasks.

>>> import dask.array as da  # doctest: +SKIP
>>> from headwise.integrations.dask import flash_attention  # doctest: +SKIP
>>> q, k, v = (da.random.normal(size=(8, 1_000_000, 64), chunks=(1, 8192, 64)) for _ in range(3))  # doctest: +SKIP
>>> flash_attention(q, k, v, is_causal=True, window_size=(4096, 0)).to_zarr("output.zarr")  # doctest: +SKIP
"""

from __future__ import annotations

from headwise.integrations.dask._attention import flash_attention
from headwise.integrations.dask._backward import flash_attention_backward
from headwise.integrations.dask._statistics import attention_statistics
from headwise.integrations.dask._varlen import varlen_attention, varlen_attention_backward

__all__ = [
    "attention_statistics",
    "flash_attention",
    "flash_attention_backward",
    "varlen_attention",
    "varlen_attention_backward",
]

for _function in (
    attention_statistics,
    flash_attention,
    flash_attention_backward,
    varlen_attention,
    varlen_attention_backward,
):
    _function.__module__ = __name__
del _function
