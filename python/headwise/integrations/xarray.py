"""Attention over xarray's DataArrays, whose dimensions are found by their names.

>>> from headwise.integrations.xarray import flash_attention  # doctest: +SKIP
>>> output = flash_attention(query, key, value, queries="time", keys="past", features="channel")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

import headwise as hw
from headwise.integrations._libraries import require

_xarray = require("xarray")

__all__ = ["flash_attention"]


def flash_attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    queries: str,
    keys: str,
    features: str,
    values: str | None = None,
    **options: Any,
) -> Any:
    """:func:`headwise.flash_attention` of DataArrays.

    Parameters
    ----------
    query : DataArray
        With the dimensions `queries` and `features`.
    key : DataArray
        With the dimensions `keys` and `features`.
    value : DataArray
        With the dimensions `keys` and `values`.
    queries, keys : str
        The dimensions along which queries and keys are counted: two names. For self-attention rename that of the keys:
        ``x.rename(time="past")``.
    features : str
        The dimension of the scalar products.
    values : str, optional
        The dimension of the values; `features` if None.
    **options
        Keywords of :func:`headwise.flash_attention` that are no arrays of the keys: `is_causal`, `causal_alignment`,
        `scale`, `window_size`, `softcap`, `precision`.

    Returns
    -------
    DataArray
        With the other dimensions of the three arrays, which are broadcast, then `queries` and `values`. Chunked by
        Dask where `query` is (:mod:`headwise.integrations.dask`).

    Raises
    ------
    ValueError
        If a dimension is missing, or `queries` and `keys` are the same.
    TypeError
        If an argument is no DataArray, or an option is none of those above.
    """
    if queries == keys:
        raise ValueError(f"keys: {keys!r}, the name of the queries as well; expected another, as of key.rename(...)")
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise TypeError(f"{unknown[0]}: no option of DataArrays, expected some of {', '.join(_OPTIONS)}")
    values = features if values is None else values
    expected = (("query", query, (queries, features)), ("key", key, (keys, features)), ("value", value, (keys, values)))
    for name, array, dims in expected:
        if not isinstance(array, _xarray.DataArray):
            raise TypeError(f"{name}: {type(array).__name__}, expected an xarray.DataArray")
        missing = [dim for dim in dims if dim not in array.dims]
        if missing:
            raise ValueError(f"{name}: dimensions {array.dims}, expected {missing[0]!r} among them")
    return _xarray.apply_ufunc(
        _attend, query, key, value, kwargs=options, input_core_dims=[dims for _, _, dims in expected],
        output_core_dims=[(queries, values)], dask="allowed", keep_attrs=False,
    )  # fmt: skip


_OPTIONS = ("is_causal", "causal_alignment", "scale", "window_size", "softcap", "precision")


def _attend(query: Any, key: Any, value: Any, **options: Any) -> Any:
    """Attention of arrays whose axes before the last two broadcast."""
    arrays = (query, key, value)
    shape = np.broadcast_shapes(*(a.shape[:-2] for a in arrays))
    if all(isinstance(a, np.ndarray) for a in arrays):
        q, k, v = (np.broadcast_to(a, (*shape, *a.shape[-2:])) for a in arrays)
        return hw.flash_attention(q, k, v, **options)
    dask = importlib.import_module("headwise.integrations.dask")
    broadcast_to = importlib.import_module("dask.array").broadcast_to
    q, k, v = (broadcast_to(a, (*shape, *a.shape[-2:])) for a in arrays)
    return dask.flash_attention(q, k, v, **options)
