"""Attention over xarray's DataArrays, whose dimensions are found by their names.

>>> from headwise.integrations.xarray import flash_attention  # doctest: +SKIP
>>> output = flash_attention(query, key, value, queries="time", keys="past", features="channel")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

import headwise as hw
from headwise._statistics.arguments import check_names
from headwise.integrations._libraries import require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Named = tuple[Any, tuple[str, ...]]  # an array, and its dimensions that are not those of the batch

_xarray = require("xarray")

__all__ = ["attention_statistics", "flash_attention"]


def flash_attention(  # noqa: PLR0913 (the arguments of headwise.flash_attention, and dimensions)
    query: Any,
    key: Any,
    value: Any,
    *,
    queries: str,
    keys: str,
    features: str,
    values: str | None = None,
    heads: str | None = None,
    return_lse: bool = False,
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
    heads : str, optional
        The dimension of `alibi_slopes` and `sinks`, which one of the arrays has.
    return_lse : bool
        Whether to return the logarithm of the softmax denominator as well.
    **options
        Keywords of :func:`headwise.flash_attention`: `mask` and `bias`, which are DataArrays with `queries`, `keys` or
        both and any dimensions of the batch; `alibi_slopes` and `sinks`, DataArrays with the dimension `heads`;
        `is_causal`, `causal_alignment`, `scale`, `window_size`, `softcap` and `precision`.

    Returns
    -------
    output : DataArray
        With the other dimensions of all arrays, which are broadcast, then `queries` and `values`. Chunked by Dask where
        an array is (:mod:`headwise.integrations.dask`).
    lse : DataArray
        Only with `return_lse`: a pair is returned then. Without the dimension `values`.

    Raises
    ------
    ValueError
        If a dimension is missing, or `queries` and `keys` are the same.
    TypeError
        If an argument is no DataArray, or an option is none of those above.
    """
    values = features if values is None else values
    given = {"query": (query, (queries, features)), "key": (key, (keys, features)), "value": (value, (keys, values))}
    results: list[tuple[str, ...]] = [(queries, values), (queries,)] if return_lse else [(queries, values)]
    return _apply("flash_attention", given, (queries, keys, heads), options, results, {"return_lse": return_lse})


def attention_statistics(  # noqa: PLR0913 (as flash_attention)
    query: Any,
    key: Any,
    *,
    queries: str,
    keys: str,
    features: str,
    which: str | Sequence[str] = ("key_mass", "entropy", "max_weight", "top_k", "block_mass"),
    k: int | None = None,
    block_size: int | tuple[int, int] | None = None,
    heads: str | None = None,
    **options: Any,
) -> Any:
    """:func:`headwise.attention_statistics` of DataArrays.

    Parameters
    ----------
    query : DataArray
        With the dimensions `queries` and `features`.
    key : DataArray
        With the dimensions `keys` and `features`.
    queries, keys, features, heads : str
        As in :func:`flash_attention`.
    which, k, block_size
        As in :func:`headwise.attention_statistics`.
    **options
        As in :func:`flash_attention`.

    Returns
    -------
    Dataset
        The variables that `which` names, with the dimensions of the batch and then those of: "key_mass", `keys`;
        "entropy", "max_weight" and "lse", `queries`; "block_mass", ``query_block`` and ``key_block``. "top_k" is two
        variables, ``top_weights`` and ``top_indices``, with `queries` and ``top``.

    Raises
    ------
    ValueError, TypeError
        As in :func:`flash_attention` and :func:`headwise.attention_statistics`.
    """
    names = check_names(which)
    dims: dict[str, dict[str, tuple[str, ...]]] = {
        "key_mass": {"key_mass": (keys,)},
        "entropy": {"entropy": (queries,)},
        "max_weight": {"max_weight": (queries,)},
        "top_k": {"top_weights": (queries, "top"), "top_indices": (queries, "top")},
        "block_mass": {"block_mass": ("query_block", "key_block")},
        "lse": {"lse": (queries,)},
    }
    outputs = {name: of for chosen, some in dims.items() if chosen in names for name, of in some.items()}
    given = {"query": (query, (queries, features)), "key": (key, (keys, features))}
    own = {"which": names, "k": k, "block_size": block_size}
    found = _apply("attention_statistics", given, (queries, keys, heads), options, list(outputs.values()), own)
    return _xarray.Dataset(dict(zip(outputs, found if len(outputs) > 1 else (found,), strict=True)))


_OPTIONS = ("is_causal", "causal_alignment", "scale", "window_size", "softcap", "precision")
_OF_SCORES = ("mask", "bias")
_OF_HEADS = ("alibi_slopes", "sinks")


def _apply(
    function: str,
    given: Mapping[str, Named],
    axes: tuple[str, str, str | None],
    options: dict[str, Any],
    results: list[tuple[str, ...]],
    own: dict[str, Any],
) -> Any:
    """``apply_ufunc`` of the ``function`` of headwise; ``axes`` are those of queries, keys and heads."""
    queries, keys, heads = axes
    if queries == keys:
        raise ValueError(f"keys: {keys!r}, the name of the queries as well; expected another, as of key.rename(...)")
    known = (*_OPTIONS, *_OF_SCORES, *_OF_HEADS)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"{unknown[0]}: no option of DataArrays, expected some of {', '.join(known)}")
    options = {name: value for name, value in options.items() if value is not None}
    arrays = dict(given)
    for name in _OF_SCORES:
        if name in options:
            mask = options.pop(name)
            dims = tuple(dim for dim in (queries, keys) if dim in getattr(mask, "dims", ()))
            arrays[name] = mask, dims or (keys,)
    for name, (array, dims) in arrays.items():
        _check_dims(array, name, dims)
    arrays = _with_dims_of_masks(arrays)
    if heads is not None:
        arrays = _heads_last(arrays, heads)
    for name in _OF_HEADS:
        if name in options:
            options[name] = _per_head(options[name], name, heads, arrays)
    layout = {name: dims for name, (_, dims) in arrays.items()}
    return _xarray.apply_ufunc(
        _call(function, layout, queries, {**options, **own}, has_heads=heads is not None),
        *(array for array, _ in arrays.values()),
        input_core_dims=list(layout.values()), output_core_dims=results, dask="allowed", keep_attrs=False,
    )  # fmt: skip


def _check_dims(array: Any, name: str, dims: tuple[str, ...]) -> None:
    if not isinstance(array, _xarray.DataArray):
        raise TypeError(f"{name}: {type(array).__name__}, expected an xarray.DataArray")
    missing = [dim for dim in dims if dim not in array.dims]
    if missing:
        raise ValueError(f"{name}: dimensions {array.dims}, expected {missing[0]!r} among them")


def _per_head(array: Any, name: str, heads: str | None, arrays: Mapping[str, Named]) -> Any:
    """``array``, slopes or sinks, as NumPy's, in the order of the heads of ``arrays``."""
    if heads is None:
        raise ValueError(f"{name}: given without heads=, expected the name of its dimension")
    _check_dims(array, name, (heads,))
    with_heads = next(other for other, _ in arrays.values() if heads in other.dims)
    _xarray.align(array, with_heads, join="exact", exclude=set(with_heads.dims) - {heads})
    return array.values


def _with_dims_of_masks(arrays: dict[str, Named]) -> dict[str, Named]:
    """The arrays, of which the query has the dimensions of the batch that masks and biases alone have."""
    query, core = arrays["query"]
    rows = [of for name, of in arrays.items() if name not in _OF_SCORES]
    known = {dim for array, of in rows for dim in (*array.dims, *of)}
    masks = [of for name, of in arrays.items() if name in _OF_SCORES]
    new = {dim: array.sizes[dim] for array, of in masks for dim in array.dims if dim not in known}
    return {**arrays, "query": (query.expand_dims(new), core)} if new else arrays


def _heads_last(arrays: dict[str, Named], heads: str) -> dict[str, Named]:
    """The arrays with the dimension of heads behind all others of the batch, which the query has all of."""
    sizes = {dim: array.sizes[dim] for array, core in arrays.values() for dim in array.dims if dim not in core}
    if heads not in sizes:
        raise ValueError(f"heads: {heads!r}, expected a dimension of query, key or value: {', '.join(map(str, sizes))}")
    query, core = arrays["query"]
    arrays["query"] = query.expand_dims({dim: n for dim, n in sizes.items() if dim not in query.dims}), core
    return {
        name: (array.transpose(..., heads, *dims) if heads in array.dims and heads not in dims else array, dims)
        for name, (array, dims) in arrays.items()
    }


def _call(
    function: str, layout: dict[str, tuple[str, ...]], queries: str, keywords: dict[str, Any], *, has_heads: bool
) -> Callable[..., Any]:
    """A function of arrays with the core dimensions of ``layout``, whose axes before these broadcast."""
    rows = [name for name in ("query", "key", "value") if name in layout]

    def call(*arrays: Any) -> Any:
        named = dict(zip(layout, arrays, strict=True))
        lead = np.broadcast_shapes(*(named[name].shape[:-2] for name in rows))
        heads_alone = has_heads and len(lead) == 1
        lead = (1, *lead) if heads_alone else lead
        lazy = any(not isinstance(a, np.ndarray) for a in arrays)
        broadcast = importlib.import_module("dask.array").broadcast_to if lazy else np.broadcast_to
        source: Any = importlib.import_module("headwise.integrations.dask") if lazy else hw
        given = [broadcast(named[name], (*lead, *named[name].shape[-2:])) for name in rows]
        more = {name: a for name, a in named.items() if name not in rows}
        for name in _OF_SCORES:
            if name in more:
                more[name] = _of_scores(more[name], layout[name], queries, len(lead) + 2)
        found = getattr(source, function)(*given, **more, **keywords)
        results = _flat(found) if function == "attention_statistics" else found
        if heads_alone:
            results = tuple(a[0] for a in results) if isinstance(results, tuple) else results[0]
        return results

    return call


def _of_scores(a: Any, dims: tuple[str, ...], queries: str, rank: int) -> Any:
    """A mask or bias with both axes of the scores, and ``rank`` axes in all."""
    if len(dims) == 1:
        a = a[..., None] if dims[0] == queries else a[..., None, :]
    return a.reshape((*[1] * (rank - a.ndim), *a.shape))


def _flat(found: Any) -> Any:
    """The statistics that are given, top keys as two of them."""
    fields = found._asdict()
    top = fields.pop("top_k")
    results = [fields["key_mass"], fields["entropy"], fields["max_weight"], *(top or ())]
    results = [a for a in (*results, fields["block_mass"], fields["lse"]) if a is not None]
    return tuple(results) if len(results) > 1 else results[0]
