"""One map of attention weights with labels, as data for a drawing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headwise._base.arrays import as_array, check_dtype
from headwise._base.ieee import ieee
from headwise._base.scalars import check_int

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

__all__ = ["attention_score_visualization"]


@ieee
def attention_score_visualization(
    attention_weights: ArrayLike, tokens: Sequence[str] | None = None, *, batch: int = 0, head: int = 0
) -> dict[str, Any]:
    """One map of attention weights with its labels and range, as data for a drawing.

    Parameters
    ----------
    attention_weights : array_like, (query_len, key_len)
        Or (batch, query_len, key_len) or (batch, heads, query_len, key_len), of which ``batch`` and ``head`` select one
        map.
    tokens : sequence of str, optional
        A label for each key; the positions by default. If there are too few, empty labels are added; if there are too
        many, the last ones are left out. The entry ``note`` then says so.
    batch, head : int
        The indices of the map to select.

    Returns
    -------
    dict
        ``weights`` (query_len, key_len), ``tokens`` (a list of key_len str), ``shape`` (of ``weights``),
        ``max_attention`` and ``min_attention`` (floats), and ``note`` (a str) if labels were added or left out.

    Raises
    ------
    ValueError
        If the shape is not one of those above, or an index is out of its range.
    TypeError
        If a dtype or the type of an index is wrong.

    Examples
    --------
    >>> import headwise as hw
    >>> view = hw.attention_score_visualization([[0.75, 0.25], [0.5, 0.5]], tokens=["so", "it", "goes"])
    >>> view["tokens"], view["max_attention"], view["min_attention"]
    (['so', 'it'], 0.75, 0.25)
    >>> view["note"]
    'tokens: 3 labels for 2 keys, the last 1 left out'
    """
    weights = as_array(attention_weights, "attention_weights")
    check_dtype(weights.dtype, "attention_weights")
    if weights.ndim not in (2, 3, 4) or weights.size == 0:
        raise ValueError(
            f"attention_weights: shape {weights.shape}, expected (query_len, key_len), (batch, query_len, key_len) or "
            "(batch, heads, query_len, key_len), not empty"
        )
    shape = weights.shape
    for name, index, axes in (("batch", batch, weights.ndim - 2), ("head", head, weights.ndim - 3)):
        number, count = check_int(index, name), weights.shape[0] if axes > 0 else 1
        if not -count <= number < count:
            raise ValueError(f"{name}: {number}, expected {-count} to {count - 1} for weights of shape {shape}")
        if axes > 0:
            weights = weights[number]
    keys = weights.shape[1]
    labels = [str(position) for position in range(keys)] if tokens is None else list(tokens)
    view: dict[str, Any] = {
        "weights": weights,
        "tokens": (labels + [""] * (keys - len(labels)))[:keys],
        "shape": weights.shape,
        "max_attention": float(weights.max()),
        "min_attention": float(weights.min()),
    }
    if len(labels) < keys:
        view["note"] = f"tokens: {len(labels)} labels for {keys} keys, the last {keys - len(labels)} left empty"
    elif len(labels) > keys:
        view["note"] = f"tokens: {len(labels)} labels for {keys} keys, the last {len(labels) - keys} left out"
    return view
