"""Keywords that functions over chunks do not have, and arguments that are not arrays in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from headwise._ops.attention.keywords import refuse
from headwise.integrations.dask._library import base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_DROPOUT = "dropout is not applied over chunks, because its random numbers would depend on them"
_REASONS = {
    "dropout": _DROPOUT,
    "dropout_rate": _DROPOUT,
    "rng": _DROPOUT,
    "score_mod": "a function of the scores has no gradient, as in one call",
    "relative_values": "relative values join those of flash_attention alone over chunks, without gradients",
    "need_weights": "weights of query_len x key_len are not computed over chunks; attention_statistics reduces them",
    "out": "results are lazy; dask.array.store writes them to an array",
}


def refuse_in_chunks(unknown: Iterable[str], function: Callable[..., Any]) -> NoReturn:
    """TypeError for the first of the keywords ``unknown`` to ``function``."""
    name = next(iter(unknown))
    if name in _REASONS:
        raise TypeError(f"{name}: not a keyword here; {_REASONS[name]}")
    refuse(unknown, ("mask", *(getattr(function, "__kwdefaults__", None) or ())))


def refuse_collections(given: Mapping[str, Any]) -> None:
    """TypeError for a Dask collection among the arguments that all tasks have whole."""
    for name, a in given.items():
        if base.is_dask_collection(a):
            raise TypeError(f"{name}: a Dask collection, expected an array in memory, as x.compute() returns it")
