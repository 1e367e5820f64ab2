"""Rotary embedding and ALiBi."""

from __future__ import annotations

import decimal
import functools
import math
from decimal import Decimal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from oracle.numbers import Array, double


def rope(x: ArrayLike, cos: ArrayLike, sin: ArrayLike, interleaved: bool = False) -> Array:
    """Su et al. (2021), equation 13: each pair of features is a complex number, multiplied by ``cos + i sin``."""
    x, cos, sin = double(x), double(cos), double(sin)
    answer = np.empty(x.shape, x.dtype)
    half = x.shape[-1] // 2
    real, imaginary = (np.s_[..., 0::2], np.s_[..., 1::2]) if interleaved else (np.s_[..., :half], np.s_[..., half:])
    with np.errstate(invalid="ignore"):  # NumPy's complex product would make NaN of an infinite part alone
        answer[real] = x[real] * cos - x[imaginary] * sin
        answer[imaginary] = x[real] * sin + x[imaginary] * cos
    return answer


def rope_tables(
    positions: ArrayLike, head_dim: int, base: float = 10000.0, dtype: DTypeLike = np.float64
) -> tuple[Array, Array]:
    """Cosine and sine of ``position * base ** (-2 i / head_dim)``, rounded once, from 80 digits, to ``dtype``.

    The bits are the same on every processor and with every NumPy. Those of ``np.cos`` and ``np.sin`` are not: NumPy
    chooses among implementations by instruction set.

    Parameters
    ----------
    positions
        Integers, of any shape (...).
    head_dim
        Of which each pair ``i`` is turned; an odd one has a last pair of one feature.
    base
        Of the geometric series of frequencies.
    dtype
        float64 or longdouble.

    Returns
    -------
    cos, sin
        Both (..., (head_dim + 1) // 2).
    """
    positions, pairs = np.asarray(positions, np.int64), (head_dim + 1) // 2
    with decimal.localcontext() as context:
        context.prec = 80
        frequencies = [Decimal(base) ** (Decimal(-2 * i) / head_dim) for i in range(pairs)]
        columns = [_turns(positions.ravel().tolist(), frequency) for frequency in frequencies]
    # From text, longdouble is rounded once, too; NumPy makes one of a Decimal by way of float64.
    number = (lambda x: np.longdouble(str(x))) if np.dtype(dtype) == np.longdouble else float
    numbers = np.array([[list(map(number, turn)) for turn in column] for column in columns], dtype)
    cos, sin = (
        np.ascontiguousarray(numbers.reshape(pairs, -1, 2)[..., part].T).reshape(*positions.shape, pairs)
        for part in (0, 1)
    )
    return cos, sin


_TWO_PI = Decimal("6.2831853071795864769252867665590057683943387987502116419498891846156328125724179972560696506842")


def _turns(positions: list[int], frequency: Decimal) -> list[tuple[Decimal, Decimal]]:
    """Cosine and sine of ``position * frequency``, each from the ones before it by the addition theorem."""
    cos_sin = functools.cache(lambda position: _cos_sin(position * frequency))
    turns, before, cos, sin = [], 0, Decimal(1), Decimal(0)
    for position in positions:
        c, s = cos_sin(position - before)
        cos, sin, before = cos * c - sin * s, cos * s + sin * c, position
        turns.append((cos, sin))
    return turns


def _cos_sin(angle: Decimal) -> tuple[Decimal, Decimal]:
    """Their Taylor series, after whole turns are taken off."""
    angle -= _TWO_PI * (angle / _TWO_PI).to_integral_value()
    sums, term, n = [Decimal(1), Decimal(0)], Decimal(1), 0
    while n < 8 or abs(term) > Decimal("1e-70"):
        n += 1
        term = term * angle / n
        sums[n % 2] += term if n % 4 < 2 else -term
    return sums[0], sums[1]


def alibi_slopes(num_heads: int) -> Array:
    """Press et al. (2022): for ``n = 2**k`` heads the geometric series whose first term and ratio are ``2**(-8/n)``.

    Other head counts take the series of the power of two below, then every other entry of the series of the power of
    two above, as the authors' code does.
    """

    def series(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    below = 2 ** int(math.log2(num_heads))
    return np.array(series(below) + series(2 * below)[0::2][: num_heads - below])


def alibi_bias(slopes: ArrayLike, query_len: int, key_len: int, offset: int = 0) -> Array:
    """``-slope * |i + offset - j|``."""
    slopes = double(slopes)
    bias = np.empty((len(slopes), query_len, key_len), slopes.dtype)
    for head, slope in enumerate(slopes):
        for i in range(query_len):
            for j in range(key_len):
                bias[head, i, j] = -slope * abs(i + offset - j)
    return bias


def add_alibi(scores: ArrayLike, slopes: ArrayLike | None = None, offset: int = 0) -> Array:
    """Scores with ``alibi_bias`` added; without slopes, those of the paper."""
    scores = double(scores)
    heads, query_len, key_len = scores.shape[-3:]
    with np.errstate(invalid="ignore"):
        return scores + alibi_bias(alibi_slopes(heads) if slopes is None else slopes, query_len, key_len, offset)
