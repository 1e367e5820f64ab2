"""Conversion of projection weights between the two pairings of rotated features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.arrays import as_array
from headwise._base.messages import shown
from headwise._base.scalars import check_axis, check_size

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array


def permute_rope_weights(
    weight: ArrayLike, num_heads: int, *, to: str, rotary_dim: int | None = None, axis: int = -1
) -> Array:
    """Reorder the output features of a query or key projection, from one pairing of features to the other.

    If the query and the key projection are both reordered, the other pairing gives the same scores, because each pair
    keeps its two features and its frequency. All other weights of attention stay unchanged.

    Parameters
    ----------
    weight : array_like, (…, num_heads * head_dim)
        A weight (in_features, out_features), or a bias (out_features,).
    num_heads : int
        Number of heads of the projection: for keys the number of key heads.
    to : {"half", "interleaved"}
        The new pairing: ``(k, k + rotary_dim / 2)`` or ``(2 k, 2 k + 1)``. The weight has the other one.
    rotary_dim : int, optional
        Number of rotated features of a head, its first ones; all by default.
    axis : int
        The axis of the features: 0 for weights (out_features, in_features), such as those of PyTorch.

    Returns
    -------
    ndarray, of the shape of ``weight``
        A copy in the dtype of ``weight``.

    Raises
    ------
    ValueError
        If the axis is not divisible by ``num_heads``, ``rotary_dim`` is odd or too large, or ``to`` is unknown.
    TypeError
        If a number is not an integer, or ``to`` is not a str.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> hw.permute_rope_weights([0, 1, 2, 3], num_heads=1, to="half")  # the pairs were (0, 1) and (2, 3)
    array([0, 2, 1, 3])

    Weights of the original LLaMA, in the order of Hugging Face:

    >>> x, query, key = np.random.default_rng(0).standard_normal((3, 5, 5))[:, :, :4]
    >>> interleaved = hw.RotaryPositionalEmbedding(4, interleaved=True)
    >>> scores = interleaved(x @ query[:4]) @ interleaved(x @ key[:4]).T
    >>> query, key = (hw.permute_rope_weights(weight[:4], 1, to="half") for weight in (query, key))
    >>> half = hw.RotaryPositionalEmbedding(4)
    >>> np.allclose(half(x @ query) @ half(x @ key).T, scores)
    True
    """
    features = as_array(weight, "weight")
    heads = check_size(num_heads, "num_heads")
    if not isinstance(to, str):
        raise TypeError(f"to: {type(to).__name__}, expected 'half' or 'interleaved'")
    if to not in ("half", "interleaved"):
        raise ValueError(f"to: {shown(to)}, expected 'half' or 'interleaved'")
    features_axis = check_axis(axis, features, "weight")
    size = features.shape[features_axis]
    if size == 0 or size % heads:
        raise ValueError(f"weight: shape {features.shape}, expected axis {axis} divisible by num_heads = {heads}")
    head_dim = size // heads
    width = head_dim if rotary_dim is None else check_size(rotary_dim, "rotary_dim")
    if width % 2 or width > head_dim:
        name = "weight" if rotary_dim is None else "rotary_dim"
        raise ValueError(f"{name}: {width} features of {head_dim} in pairs, expected an even number of at most that")
    order = np.arange(size).reshape(heads, head_dim)
    pairs = order[:, :width].reshape((heads, -1, 2) if to == "half" else (heads, 2, -1))
    order[:, :width] = pairs.swapaxes(1, 2).reshape(heads, width)
    return np.take(features, order.ravel(), axis=features_axis)
