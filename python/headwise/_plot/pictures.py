"""Figures of attention, positional encodings and biases, drawn by Matplotlib.

The functions check their arguments here, and import the modules that draw on the first call: Matplotlib is optional and
takes long to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.blocks import KeepBlocks
from headwise._base.scalars import check_real

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    Weights = ArrayLike | Mapping[str, Any]
    Path = str | os.PathLike[str]

__all__ = ["attention", "bias", "block_mask", "encoding", "grid", "lines"]

_NO_WEIGHT = "0 (masked)"


def attention(  # noqa: PLR0913 (public)
    weights: Weights,
    tokens: Iterable[object] | None = None,
    *,
    query_tokens: Iterable[object] | None = None,
    key_tokens: Iterable[object] | None = None,
    head: int | str | Sequence[int] | None = None,
    batch: int = 0,
    vmax: float | None = None,
    cmap: str | Colormap | None = None,
    title: str | None = None,
    path: Path | None = None,
) -> Figure:
    """Heat maps of attention weights, one for each head, with one colour scale from 0.

    Weights that are exactly 0, such as those of masked keys, are grey. Leading and trailing spaces of a token, line
    breaks, tabs and empty tokens are shown as signs. If there is no room for all labels, every second, third, … is
    shown.

    Parameters
    ----------
    weights : array_like, (query_len, key_len), (heads, query_len, key_len) or (batch, heads, query_len, key_len)
        Or the result of :func:`headwise.attention_score_visualization`, which provides the tokens too.
    tokens : sequence of str, optional
        A label for each key, and for each query if there are equally many; positions by default.
    query_tokens, key_tokens : sequence of str, optional
        Labels of queries (query_len,) and of keys (key_len,), instead of ``tokens``.
    head : int, "mean" or sequence of int, optional
        The heads to draw, or their mean; all by default.
    batch : int
        The batch entry to draw.
    vmax : float, optional
        The end of the colour scale, for example to compare figures; the maximum weight drawn by default.
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
    ValueError
        If a shape, the number of tokens, an index or the suffix of ``path`` does not fit, or weights are negative or
        not finite.
    TypeError
        If an argument has a wrong type.
    ImportError
        If Matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = np.random.default_rng(0).standard_normal((5, 8))
    >>> _, weights = hw.MultiHeadAttention(d_model=8, num_heads=2, rng=0)(x[np.newaxis], is_causal=True)
    >>> figure = hw.plot.attention(weights, "the cat sat down .".split(), title="Who looks at whom")
    >>> [panel.get_title() for panel in figure.axes[:2]]
    ['head 0', 'head 1']
    """
    from headwise._plot import arguments, draw

    maps = arguments.weight_maps(weights, tokens, query_tokens, key_tokens, head, batch)
    file, heading = arguments.check_path(path), arguments.check_title(title)
    scale = draw.one_sided([maps.values], arguments.check_limit(vmax))
    colours = draw.colours(cmap, "viridis")
    figure = draw.heat_maps(maps, maps.values == 0, scale, colours, "attention weight", _NO_WEIGHT, heading)
    draw.save(figure, file)
    return figure


def grid(
    weights: Sequence[Weights] | ArrayLike,
    *,
    batch: int = 0,
    vmax: float | None = None,
    cmap: str | Colormap | None = None,
    title: str | None = None,
    path: Path | None = None,
) -> Figure:
    """Small heat maps of all heads of all layers, with layers as rows, heads as columns and one colour scale.

    Parameters
    ----------
    weights : sequence of array_like
        For each layer (query_len, key_len), (heads, query_len, key_len) or (batch, heads, query_len, key_len), as for
        :func:`attention`. The numbers of heads, queries and keys may differ between layers.
    batch : int
        The batch entry to draw.
    vmax : float, optional
        The end of the colour scale; the maximum weight drawn by default.
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
        As :func:`attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> layers = hw.softmax(np.random.default_rng(0).standard_normal((3, 4, 10, 10)))  # 3 layers with 4 heads
    >>> figure = hw.plot.grid(layers)
    >>> len(figure.axes)  # 12 maps and the colour bar
    13
    """
    from headwise._plot import arguments, draw

    layers = arguments.layer_maps(weights, batch)
    file, heading = arguments.check_path(path), arguments.check_title(title)
    scale = draw.one_sided(layers, arguments.check_limit(vmax))
    masks = [maps == 0 for maps in layers]
    figure = draw.head_grid(layers, scale, draw.colours(cmap, "viridis"), masks, _NO_WEIGHT, heading)
    draw.save(figure, file)
    return figure


def lines(  # noqa: PLR0913 (public)
    weights: Weights,
    tokens: Iterable[object] | None = None,
    *,
    query_tokens: Iterable[object] | None = None,
    key_tokens: Iterable[object] | None = None,
    head: int | str | Sequence[int] | None = None,
    batch: int = 0,
    threshold: float = 0.0,
    vmax: float | None = None,
    title: str | None = None,
    path: Path | None = None,
) -> Figure:
    """A line from each query on the left to each key on the right, with an opacity proportional to the weight [1]_.

    Parameters
    ----------
    weights : array_like, (query_len, key_len), (heads, query_len, key_len) or (batch, heads, query_len, key_len)
        Or the result of :func:`headwise.attention_score_visualization`, which provides the tokens too.
    tokens : sequence of str, optional
        A label for each key, and for each query if there are equally many; positions by default.
    query_tokens, key_tokens : sequence of str, optional
        Labels of queries (query_len,) and of keys (key_len,), instead of ``tokens``.
    head : int, "mean" or sequence of int, optional
        The heads to draw, or their mean; all by default.
    batch : int
        The batch entry to draw.
    threshold : float
        Only greater weights have a line. Weights below 1/512 of ``vmax``, which would be invisible, never have one.
    vmax : float, optional
        The minimum weight of an opaque line; the maximum weight drawn by default.
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
        As :func:`attention`.

    References
    ----------
    .. [1] J. Vig, "A Multiscale Visualization of Attention in the Transformer Model", 2019,
       https://arxiv.org/abs/1906.05714.

    Examples
    --------
    >>> import headwise as hw
    >>> figure = hw.plot.lines([[1.0, 0.0], [0.3, 0.7]], ["so", "what"])
    >>> len(figure.axes[0].collections[0].get_paths())  # a weight of 0 has no line
    3
    """
    from headwise._plot import arguments, draw

    maps = arguments.weight_maps(weights, tokens, query_tokens, key_tokens, head, batch)
    minimum = check_real(threshold, "threshold")
    file, heading = arguments.check_path(path), arguments.check_title(title)
    scale = draw.one_sided([maps.values], arguments.check_limit(vmax))
    figure = draw.token_lines(maps, scale, minimum, heading)
    draw.save(figure, file)
    return figure


def encoding(
    table: ArrayLike,
    *,
    vmax: float | None = None,
    cmap: str | Colormap | None = None,
    title: str | None = None,
    path: Path | None = None,
) -> Figure:
    """A heat map of positional encodings, with positions as rows and features as columns; the colours diverge at 0.

    Parameters
    ----------
    table : array_like, (positions, features)
        Such as :attr:`headwise.SinusoidalPositionalEncoding.pe` or
        :attr:`headwise.LearnedPositionalEmbedding.embeddings`.
    vmax : float, optional
        The colour scale is from ``-vmax`` to ``vmax``; the maximum absolute value by default.
    cmap : str or matplotlib.colors.Colormap, optional
        "RdBu_r" by default.
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
        As :func:`attention`.

    Examples
    --------
    >>> import headwise as hw
    >>> figure = hw.plot.encoding(hw.SinusoidalPositionalEncoding(d_model=64, max_len=128).pe)
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
    ('feature', 'position')
    """
    from headwise._plot import arguments, draw

    values = arguments.encoding_table(table)
    file, heading = arguments.check_path(path), arguments.check_title(title)
    scale = draw.two_sided(values, arguments.check_limit(vmax))
    figure = draw.table_map(values, scale, draw.colours(cmap, "RdBu_r"), "position", "feature", heading)
    draw.save(figure, file)
    return figure


def bias(  # noqa: PLR0913 (public)
    bias: ArrayLike,
    tokens: Iterable[object] | None = None,
    *,
    query_tokens: Iterable[object] | None = None,
    key_tokens: Iterable[object] | None = None,
    head: int | str | Sequence[int] | None = None,
    batch: int = 0,
    vmax: float | None = None,
    cmap: str | Colormap | None = None,
    title: str | None = None,
    path: Path | None = None,
) -> Figure:
    """Heat maps of a bias of attention scores, one for each head, with one colour scale that diverges at 0.

    Masked keys are grey: a bias of -inf, or of at most -1e9, which is in use instead.

    Parameters
    ----------
    bias : array_like, (query_len, key_len), (heads, query_len, key_len) or (batch, heads, query_len, key_len)
        Such as the result of :func:`headwise.alibi_bias`.
    tokens : sequence of str, optional
        A label for each key, and for each query if there are equally many; positions by default.
    query_tokens, key_tokens : sequence of str, optional
        Labels of queries (query_len,) and of keys (key_len,), instead of ``tokens``.
    head : int, "mean" or sequence of int, optional
        The heads to draw, or their mean; all by default.
    batch : int
        The batch entry to draw.
    vmax : float, optional
        The colour scale is from ``-vmax`` to ``vmax``; the maximum absolute value by default.
    cmap : str or matplotlib.colors.Colormap, optional
        "RdBu_r" by default.
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
        As :func:`attention`; a bias may be negative, but not NaN or +inf.

    Examples
    --------
    >>> import headwise as hw
    >>> figure = hw.plot.bias(hw.alibi_bias(8, 16), head=[0, 7])
    >>> [panel.get_title() for panel in figure.axes[:2]]
    ['head 0', 'head 7']
    """
    from headwise._plot import arguments, draw

    maps = arguments.bias_maps(bias, tokens, query_tokens, key_tokens, head, batch)
    file, heading = arguments.check_path(path), arguments.check_title(title)
    scale = draw.two_sided(maps.values, arguments.check_limit(vmax))
    colours = draw.colours(cmap, "RdBu_r")
    figure = draw.heat_maps(maps, np.isneginf(maps.values), scale, colours, "bias of the score", "masked", heading)
    draw.save(figure, file)
    return figure


def block_mask(
    mask: KeepBlocks,
    *,
    head: int | str | Sequence[int] | None = None,
    batch: int = 0,
    cmap: str | Colormap | None = None,
    title: str | None = None,
    path: Path | None = None,
) -> Figure:
    """The blocks of a mask: the share of its pairs that each one keeps, with dropped blocks grey.

    Parameters
    ----------
    mask : BlockMask
        The mask. Rows are blocks of queries and columns blocks of keys, labelled by their first position.
    head : int, "mean" or sequence of int, optional
        The heads to draw, or their mean; all by default.
    batch : int
        The batch entry to draw.
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
        As :func:`attention`, or if `mask` is not a BlockMask.

    Examples
    --------
    >>> import headwise as hw
    >>> mask = hw.BlockMask.causal(1024, 1024) & hw.BlockMask.window(200, 1024, 1024)
    >>> figure = hw.plot.block_mask(mask, title="A causal window of 200 keys")
    >>> figure.get_suptitle()
    'A causal window of 200 keys'
    """
    from headwise._plot import arguments, draw

    if not isinstance(mask, KeepBlocks):
        raise TypeError(f"mask: {type(mask).__name__}, expected a BlockMask")
    shares = mask.block_shares()
    sizes = zip(mask.block_size, shares.shape[-2:], strict=True)
    starts = [[str(n * size) for n in range(count)] for size, count in sizes]
    maps = arguments.weight_maps(shares, None, starts[0], starts[1], head, batch)
    file, heading = arguments.check_path(path), arguments.check_title(title)
    scale = draw.one_sided([maps.values], 1.0)
    colours = draw.colours(cmap, "viridis")
    figure = draw.heat_maps(maps, maps.values == 0, scale, colours, "share of the pairs kept", "dropped", heading)
    draw.save(figure, file)
    return figure
