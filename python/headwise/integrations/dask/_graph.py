"""Tasks that reduce the results of others, and arrays made of results."""

from __future__ import annotations

import itertools
import operator
from typing import TYPE_CHECKING, Any

from headwise.integrations import _parts
from headwise.integrations.dask._library import arrays, graphs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    Graph = dict[Any, Any]
    Where = tuple[int, ...]


def tree(graph: Graph, name: str, where: Where, reduce: Callable[[Any], Any], parts: list[Any], every: int) -> Any:
    """The last task of a tree that reduces the results of ``parts``, ``every`` of them at a time."""
    for level in itertools.count():
        if len(parts) <= every:
            break
        reduced = []
        for n, group in enumerate(_parts.groups(len(parts), every)):
            graph[(name, *where, level, n)] = (reduce, [parts[m] for m in group])
            reduced.append((name, *where, level, n))
        parts = reduced
    return (reduce, parts)


def merged(
    graph: Graph,
    name: str,
    where: Where,
    parts: list[Any],
    every: int,
    sinks: np.ndarray[Any, Any] | None,
    empty: tuple[tuple[int, ...], np.dtype[Any]],
) -> None:
    """Add the task ``(name, *where)``, the attention of a chunk of queries to the keys of all ``parts``.

    ``empty`` are the shape and dtype of its output.
    """
    task = tree(graph, f"merge-{name}", where, _parts.merge, parts, every) if parts else (_parts.without_keys, *empty)
    graph[(name, *where)] = task if sinks is None else (_parts.add_sinks, task, sinks)


def collected(name: str, graph: Graph, sources: list[Any]) -> Any:
    """The tasks of ``graph`` as a layer of this name over those of the arrays ``sources``."""
    return graphs.HighLevelGraph.from_collections(name, graph, dependencies=sources)


def result(
    layer: tuple[str, Any],
    own: str,
    chunks: Any,
    dtype: np.dtype[Any],
    source: Callable[[Where], Any],
    pick: int | str | Callable[[Any], Any],
) -> Any:
    """The Dask array of this name whose chunks are entry ``pick``, or that function, of the results of ``source``."""
    name, graph = layer
    blocks: Sequence[Where] = list(itertools.product(*(range(len(sizes)) for sizes in chunks)))
    function: Any = pick if callable(pick) else operator.itemgetter(pick)
    tasks = {(own, *block): (function, source(block)) for block in blocks}
    whole = graphs.HighLevelGraph({**graph.layers, own: tasks}, {**graph.dependencies, own: {name}})
    return arrays.Array(whole, own, chunks=chunks, dtype=dtype)
