"""Arguments of :mod:`headwise.plot`, checked and converted to maps with titles and labels.

This module does not import Matplotlib.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, promote
from headwise._base.messages import shown
from headwise._base.scalars import check_int, check_real

if TYPE_CHECKING:
    from headwise._base.typing import Array

FORMATS = (".png", ".svg")

# A bias of at most this masks a key: besides -inf, libraries use -1e9 or the minimum of a dtype.
_MASKED = -1e9


@dataclass(frozen=True)
class Maps:
    """Maps of one figure, all of the same shape, with their titles and labels."""

    values: Array  # (maps, query_len, key_len), float32 or float64
    titles: tuple[str, ...]
    query_labels: tuple[str, ...]
    key_labels: tuple[str, ...]
    note: str = ""


def weight_maps(
    weights: object, tokens: object, query_tokens: object, key_tokens: object, head: object, batch: object
) -> Maps:
    """The maps of attention weights that ``head`` and ``batch`` select."""
    note = ""
    if isinstance(weights, Mapping):
        view = _of_view(weights)
        weights, note = view["weights"], str(view.get("note", ""))
        if tokens is None:
            tokens = view.get("tokens")
    heads = _heads(weights, "weights", batch)
    check_weights(heads, "weights")
    return replace(_labelled(heads, "weights", tokens, query_tokens, key_tokens, head), note=note)


def bias_maps(
    bias: object, tokens: object, query_tokens: object, key_tokens: object, head: object, batch: object
) -> Maps:
    """The maps of a bias, with -inf for masked keys."""
    heads = _heads(bias, "bias", batch)
    wrong = np.isnan(heads) | (heads == np.inf)
    if wrong.any():
        raise ValueError(f"bias: {_first(heads, wrong)}, expected finite numbers, or -inf for masked keys")
    masked = heads <= _MASKED
    if masked.any():
        heads = np.where(masked, -np.inf, heads)
    return _labelled(heads, "bias", tokens, query_tokens, key_tokens, head)


def layer_maps(weights: object, batch: object) -> list[Array]:
    """The maps of each layer, (heads, query_len, key_len)."""
    if isinstance(weights, Mapping):
        raise TypeError("weights: a mapping, expected a sequence of layers")
    layers = list(weights) if isinstance(weights, (list, tuple)) else list(np.atleast_1d(as_array(weights, "weights")))
    if not layers:
        raise ValueError("weights: no layers, expected at least one")
    maps = []
    for i, layer in enumerate(layers):
        name = f"weights[{i}]"
        maps.append(_heads(_of_view(layer)["weights"] if isinstance(layer, Mapping) else layer, name, batch))
        check_weights(maps[-1], name)
    return maps


def encoding_table(table: object) -> Array:
    values = _numbers(table, "table")
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"table: shape {values.shape}, expected (positions, features), not empty")
    wrong = ~np.isfinite(values)
    if wrong.any():
        raise ValueError(f"table: {_first(values, wrong)}, expected finite numbers")
    return values


def check_weights(values: Array, name: str) -> None:
    wrong = ~np.isfinite(values)
    if wrong.any():
        raise ValueError(f"{name}: {_first(values, wrong)}, expected finite numbers")
    if values.min() < 0:
        raise ValueError(
            f"{name}: {_first(values, values < 0)}, expected attention weights, which are never negative; "
            "headwise.plot.bias draws numbers of both signs"
        )


def check_path(path: object) -> Path | None:
    """The file to write, with the suffix of one of :data:`FORMATS`, or None."""
    if path is None:
        return None
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: {type(path).__name__}, expected a str or a path")
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"path: {shown(name)}, expected a str or a path that is one")
    file = Path(name)
    if file.suffix.lower() not in FORMATS:
        raise ValueError(f"path: {shown(name)}, expected a name that ends in {' or '.join(FORMATS)}")
    return file


def check_title(title: object) -> str | None:
    if title is None or isinstance(title, str):
        return title
    raise TypeError(f"title: {type(title).__name__}, expected a str")


def check_limit(vmax: object) -> float | None:
    """The end of the colour scale, or None."""
    if vmax is None:
        return None
    limit = check_real(vmax, "vmax")
    if limit <= 0:
        raise ValueError(f"vmax: {limit}, expected a positive number")
    return limit


def _of_view(view: Mapping[Any, Any]) -> Mapping[Any, Any]:
    if "weights" not in view:
        raise ValueError(
            f"weights: a mapping with the entries {sorted(map(str, view))}, expected the result "
            "of headwise.attention_score_visualization"
        )
    return view


def _numbers(x: object, name: str) -> Array:
    array = as_array(x, name)
    compute, _ = promote((name, array))
    return array.astype(compute, copy=False)


def _heads(x: object, name: str, batch: object) -> Array:
    """One batch entry of ``x``, (heads, query_len, key_len)."""
    values = _numbers(x, name)
    if values.ndim not in (2, 3, 4) or values.size == 0:
        layers = "; headwise.plot.grid draws several layers" if values.ndim == 5 else ""
        raise ValueError(
            f"{name}: shape {values.shape}, expected (query_len, key_len), (heads, query_len, key_len) or "
            f"(batch, heads, query_len, key_len), not empty{layers}"
        )
    count = values.shape[0] if values.ndim == 4 else 1
    number = _index(batch, "batch", count, name, values.shape)
    return values[number] if values.ndim == 4 else values.reshape((-1, *values.shape[-2:]))


def _labelled(heads: Array, name: str, tokens: object, query_tokens: object, key_tokens: object, head: object) -> Maps:
    count, query_len, key_len = heads.shape
    queries, keys = (tuple(map(str, range(n))) for n in (query_len, key_len))
    if tokens is not None:
        keys = _labels(tokens, "tokens", key_len, "key")
        if query_len == key_len:
            queries = keys
    if query_tokens is not None:
        queries = _labels(query_tokens, "query_tokens", query_len, "query")
    if key_tokens is not None:
        keys = _labels(key_tokens, "key_tokens", key_len, "key")
    values, titles = _chosen(heads, name, head)
    return Maps(values, titles if count > 1 else ("",) * len(values), queries, keys)


def _chosen(heads: Array, name: str, head: object) -> tuple[Array, tuple[str, ...]]:
    count = len(heads)
    if head is None:
        return heads, tuple(f"head {i}" for i in range(count))
    if isinstance(head, str):
        if head != "mean":
            raise ValueError(f"head: {shown(head)}, expected 'mean', an integer, several or None")
        return heads.mean(axis=0, dtype=np.float64, keepdims=True), (f"mean of {count} heads",)
    if isinstance(head, (list, tuple, range)):
        if not head:
            raise ValueError("head: an empty sequence, expected at least one head")
        numbers = [_index(number, "head", count, name, heads.shape) for number in head]
    else:
        numbers = [_index(head, "head", count, name, heads.shape)]
    return heads[numbers], tuple(f"head {number}" for number in numbers)


def _index(value: object, argument: str, count: int, name: str, shape: tuple[int, ...]) -> int:
    number = check_int(value, argument)
    if not -count <= number < count:
        raise ValueError(f"{argument}: {number}, expected {-count} to {count - 1} for {name} of shape {shape}")
    return number % count


def _labels(tokens: Any, name: str, count: int, kind: str) -> tuple[str, ...]:
    if isinstance(tokens, (str, bytes)):
        raise TypeError(f"{name}: a {type(tokens).__name__}, expected a sequence of str")
    try:
        labels = tuple(map(str, tokens))
    except TypeError as error:
        raise TypeError(f"{name}: {type(tokens).__name__}, expected a sequence of str") from error
    if len(labels) != count:
        raise ValueError(f"{name}: {len(labels)} labels, expected {count}, one for each {kind}")
    return labels


def _first(values: Array, invalid: Array) -> str:
    """The first of the invalid numbers, and its index."""
    index = tuple(int(i) for i in np.argwhere(invalid)[0])
    return f"{values[index]} at {index}"
