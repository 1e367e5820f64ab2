"""Dropout of the entries of an array."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.arrays import as_array, cast_layout, promote
from headwise._base.ieee import cast_dtype
from headwise._base.outputs import finalize
from headwise._base.scalars import check_flag, check_rate, check_rng

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headwise._base.typing import Array


def dropout(x: ArrayLike, rate: float, *, training: bool = True, rng: int | np.random.Generator | None = None) -> Array:
    """Set random entries to 0 and divide the others by ``1 - rate``, which preserves the expectation [1]_.

    Parameters
    ----------
    x : array_like
        Real numbers, of any shape.
    rate : float
        The probability in [0, 1) that an entry becomes 0.
    training : bool
        If False, `x` is returned unchanged.
    rng : int or numpy.random.Generator, optional
        Seed or generator of the random numbers. NumPy's global random state is not used.

    Returns
    -------
    ndarray
        In the shape and dtype of `x`; float64 for integers and bool. `x` itself if no entry can become 0.

    Raises
    ------
    ValueError
        If `rate` is not in [0, 1).
    TypeError
        If `x` is not real, or another argument has a wrong type.

    References
    ----------
    .. [1] N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = hw.dropout(np.ones(1000), 0.2, rng=0)
    >>> np.unique(x), bool(abs(x.mean() - 1) < 0.05)
    (array([0.  , 1.25]), True)
    """
    a = as_array(x, "x")
    compute, dtype = promote(("x", a))
    rate = check_rate(rate, "rate")
    training = check_flag(training, "training")
    generator = check_rng(rng) if training or rng is not None else None
    if generator is None or not training or rate == 0.0:
        return cast_dtype(a, dtype)
    kept = generator.random(a.shape, dtype=np.float32) >= rate
    result = np.zeros(a.shape, compute)
    with np.errstate(all="ignore"):
        np.multiply(cast_layout(a, compute), 1.0 / (1.0 - rate), out=result, where=kept)
    return finalize(result, None, dtype)
