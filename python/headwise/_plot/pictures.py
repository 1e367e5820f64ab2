"""Pictures of attention, positional encodings and biases, drawn by Matplotlib.

    pip install 'headwise[plot]'

Each function returns a :class:`matplotlib.figure.Figure`, which shows itself in a notebook, and saves it where ``path``
says. Nothing global is touched: no pyplot, no display, and threads may draw at once. What draws is imported by the
first picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.scalars import check_real

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    Weights = ArrayLike | Mapping[str, Any]
    Path = str | os.PathLike[str]

__all__ = ["attention", "bias", "encoding", "grid", "lines"]

_NO_WEIGHT = "0 (masked)"


def attention(
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
    """Heat maps of attention weights, one for each head, in one scale of colours from 0.

    Weights that are exactly 0, as those of masked keys are, are grey. Spaces at the ends of a token, line breaks, tabs
    and empty tokens are shown by a sign; of more labels than there is room for every second, third, … is shown.

    Parameters
    ----------
    weights : array_like, (query_len, key_len), (heads, query_len, key_len) or (batch, heads, query_len, key_len)
        Or what :func:`headwise.attention_score_visualization` returns, with its tokens.
    tokens : sequence of str, optional
        A label for each key, and for each query where there are as many. Positions by default.
    query_tokens, key_tokens : sequence of str, optional
        Labels for one side, before ``tokens``.
    head : int, "mean" or sequence of int, optional
        The heads to draw, or their mean; all by default.
    batch : int
        Which of the batch to draw.
    vmax : float, optional
        The weight at which the scale ends, so that figures can be compared; the largest one drawn by default.
    cmap : str or matplotlib.colors.Colormap, optional
        "viridis" by default.
    title : str, optional
    path : str or path, optional
        File to write, ``.png`` or ``.svg``. The same picture gives the same bytes.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If a shape, a number of tokens, an index or the ending of ``path`` does not fit, or weights are negative or not
        finite.
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
    from headwise._plot import draw
    from headwise._plot import input as given

    maps = given.weight_maps(weights, tokens, query_tokens, key_tokens, head, batch)
    file, heading = given.check_path(path), given.check_title(title)
    scale = draw.one_sided([maps.values], given.check_limit(vmax))
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
    """Small heat maps of all heads of all layers: layers downwards, heads to the right, one scale of colours.

    Parameters
    ----------
    weights : sequence of array_like
        For each layer what :func:`attention` takes. Numbers of heads, queries and keys may differ between layers.
    batch, vmax, cmap, title, path
        As for :func:`attention`.

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
    >>> layers = hw.softmax(np.random.default_rng(0).standard_normal((3, 4, 10, 10)))  # of 3 layers with 4 heads
    >>> figure = hw.plot.grid(layers)
    >>> len(figure.axes)  # and the scale of colours
    13
    """
    from headwise._plot import draw
    from headwise._plot import input as given

    layers = given.layer_maps(weights, batch)
    file, heading = given.check_path(path), given.check_title(title)
    scale = draw.one_sided(layers, given.check_limit(vmax))
    masks = [maps == 0 for maps in layers]
    figure = draw.head_grid(layers, scale, draw.colours(cmap, "viridis"), masks, _NO_WEIGHT, heading)
    draw.save(figure, file)
    return figure


def lines(
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
    """From each query, at the left, to each key, at the right, a line as opaque as its attention weight is large.

    Parameters
    ----------
    weights, tokens, query_tokens, key_tokens, head, batch
        As for :func:`attention`.
    threshold : float
        Only weights above it get a line. Those too faint to be seen, below 1/512 of ``vmax``, never do.
    vmax : float, optional
        The weight from which on lines are opaque; the largest one drawn by default.
    title, path
        As for :func:`attention`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError, ImportError
        As :func:`attention`.

    References
    ----------
    Vig, "A Multiscale Visualization of Attention in the Transformer Model" (2019), https://arxiv.org/abs/1906.05714,
    which draws attention so.

    Examples
    --------
    >>> import headwise as hw
    >>> figure = hw.plot.lines([[1.0, 0.0], [0.3, 0.7]], ["so", "what"])
    >>> len(figure.axes[0].collections[0].get_paths())  # a weight of 0 has no line
    3
    """
    from headwise._plot import draw
    from headwise._plot import input as given

    maps = given.weight_maps(weights, tokens, query_tokens, key_tokens, head, batch)
    least = check_real(threshold, "threshold")
    file, heading = given.check_path(path), given.check_title(title)
    scale = draw.one_sided([maps.values], given.check_limit(vmax))
    figure = draw.token_lines(maps, scale, least, heading)
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
    """A table of positional encodings: positions downwards, features to the right, colours that part at 0.

    Parameters
    ----------
    table : array_like, (positions, features)
        Such as :attr:`headwise.SinusoidalPositionalEncoding.pe` or
        :attr:`headwise.LearnedPositionalEmbedding.embeddings`.
    vmax : float, optional
        The scale goes from ``-vmax`` to ``vmax``; as far as the numbers do by default.
    cmap : str or matplotlib.colors.Colormap, optional
        "RdBu_r" by default.
    title, path
        As for :func:`attention`.

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
    from headwise._plot import draw
    from headwise._plot import input as given

    values = given.encoding_table(table)
    file, heading = given.check_path(path), given.check_title(title)
    scale = draw.two_sided(values, given.check_limit(vmax))
    figure = draw.table_map(values, scale, draw.colours(cmap, "RdBu_r"), "position", "feature", heading)
    draw.save(figure, file)
    return figure


def bias(
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
    """Heat maps of what is added to attention scores, one for each head, in one scale of colours that part at 0.

    What is masked is grey: -inf, and -1e9 and less, which some write instead.

    Parameters
    ----------
    bias : array_like, (query_len, key_len), (heads, query_len, key_len) or (batch, heads, query_len, key_len)
        Such as :func:`headwise.alibi_bias` gives.
    tokens, query_tokens, key_tokens, head, batch
        As for :func:`attention`.
    vmax : float, optional
        The scale goes from ``-vmax`` to ``vmax``; as far as the numbers do by default.
    cmap : str or matplotlib.colors.Colormap, optional
        "RdBu_r" by default.
    title, path
        As for :func:`attention`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError, TypeError, ImportError
        As :func:`attention`; a bias may be negative, but neither NaN nor +inf.

    Examples
    --------
    >>> import headwise as hw
    >>> figure = hw.plot.bias(hw.alibi_bias(8, 16), head=[0, 7])
    >>> [panel.get_title() for panel in figure.axes[:2]]
    ['head 0', 'head 7']
    """
    from headwise._plot import draw
    from headwise._plot import input as given

    maps = given.bias_maps(bias, tokens, query_tokens, key_tokens, head, batch)
    file, heading = given.check_path(path), given.check_title(title)
    scale = draw.two_sided(maps.values, given.check_limit(vmax))
    colours = draw.colours(cmap, "RdBu_r")
    figure = draw.heat_maps(maps, np.isneginf(maps.values), scale, colours, "bias of the score", "masked", heading)
    draw.save(figure, file)
    return figure
