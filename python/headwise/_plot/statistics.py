"""Figures of the results of ``attention_statistics``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.attention_statistics import AttentionStatistics
from headwise._base.messages import shown

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# What a figure shows: the positions of a row, and the name of the colour scale.
_OF_ROWS = {
    "key_mass": ("key", "sum of the key's weights"),
    "entropy": ("query", "entropy in nats"),
    "max_weight": ("query", "largest weight"),
}
_NAMES = (*_OF_ROWS, "block_mass")


def statistics(
    found: AttentionStatistics,
    which: str = "key_mass",
    *,
    head: int | str | Sequence[int] | None = None,
    batch: int = 0,
    vmax: float | None = None,
    cmap: str | Colormap | None = None,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """A heat map of one statistic of attention's weights.

    Parameters
    ----------
    found : AttentionStatistics
        The result of :func:`headwise.attention_statistics`.
    which : {"key_mass", "entropy", "max_weight", "block_mass"}
        The statistic. That of keys or queries is one map with heads as rows; "block_mass" is a map for each head, with
        blocks of queries as rows and blocks of keys as columns, whose blocks without any weight are grey.
    head : int, "mean" or sequence of int, optional
        The heads to draw, or their mean; all by default.
    batch : int
        The batch entry to draw.
    vmax : float, optional
        The end of the colour scale; the maximum value by default.
    cmap : str or matplotlib.colors.Colormap, optional
        "viridis" by default.
    title : str, optional
        A title above the figure.
    path : str or path, optional
        The file to write, ``.png`` or ``.svg``. The same figure gives the same bytes.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError, ImportError
        As :func:`attention`, or if `found` is not such a result or does not have the statistic.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = np.random.default_rng(0).standard_normal((1, 4, 256, 16), dtype=np.float32)
    >>> found = hw.attention_statistics(x, x, is_causal=True)
    >>> figure = hw.plot.statistics(found, "entropy", title="Entropy of each query")
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
    ('query', 'head')
    """
    from headwise._plot import arguments, draw

    if not isinstance(found, AttentionStatistics):
        raise TypeError(f"found: {type(found).__name__}, expected the result of headwise.attention_statistics")
    if which not in _NAMES:
        raise ValueError(f"which: {shown(which)}, expected one of {', '.join(_NAMES)}")
    values = getattr(found, which)
    if values is None:
        raise ValueError(f"found: no {which}; headwise.attention_statistics(..., which={which!r}) computes it")
    file, heading = arguments.check_path(path), arguments.check_title(title)
    limit = arguments.check_limit(vmax)
    of_blocks = which == "block_mass"
    if not of_blocks:
        values = values[..., np.newaxis, :]  # a map of one row for each head
    if values.ndim == 3:
        values = values[:, np.newaxis]  # of batch entries without heads
    if of_blocks:
        maps = arguments.weight_maps(values, None, None, None, head, batch)
        scale, colours = draw.one_sided([maps.values], limit), draw.colours(cmap, "viridis")
        figure = draw.heat_maps(maps, maps.values == 0, scale, colours, "sum of the weights", "0 (masked)", heading)
    else:
        positions, meaning = _OF_ROWS[which]
        maps = arguments.weight_maps(values, None, None, None, head, batch)
        rows = maps.values[:, 0]
        scale, colours = draw.one_sided([rows], limit), draw.colours(cmap, "viridis")
        figure = draw.table_map(rows, scale, colours, "head", positions, heading, meaning)
        if head is not None:
            figure.axes[0].set_yticks(range(len(rows)), labels=maps.titles)
    draw.save(figure, file)
    return figure
