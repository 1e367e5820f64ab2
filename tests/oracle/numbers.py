"""Wide numbers, one rounding, random numbers with the same bits on every processor, and a cache of results."""

from __future__ import annotations

import functools
import hashlib
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Answer = TypeVar("Answer", bound=tuple[NDArray[Any], ...])


def remembered(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """``function`` with a cache of its last results, read-only, up to 2**28 bytes, keyed by the arguments: each
    implementation needs the same results."""
    answers: dict[bytes, Answer] = {}
    room = 2**28

    @functools.wraps(function)
    def ask(*args: Any, **keywords: Any) -> Answer:
        nonlocal room
        question = hashlib.sha256(pickle.dumps((args, sorted(keywords.items())))).digest()
        answer = answers.pop(question, None)
        if answer is None:
            answer = function(*args, **keywords)
            room -= sum(part.nbytes for part in answer)
            for part in answer:
                part.flags.writeable = False
        answers[question] = answer  # now the most recent
        while room < 0:
            room += sum(part.nbytes for part in answers.pop(next(iter(answers))))
        return answer

    return ask


def wide(x: ArrayLike) -> Array:
    """The same numbers (bfloat16 among them, of kind V) in the widest floating type at hand: 80 bits on x86."""
    x = np.asarray(x)
    return (x.astype(np.float32) if x.dtype.kind == "V" else x).astype(np.longdouble)


def double(x: ArrayLike) -> Array:
    """The same numbers as float64; np.longdouble stays."""
    return rounded(wide(x), x)


def rounded(answer: Array, *arguments: ArrayLike) -> Array:
    """``answer`` as float64, or as it is where an argument is np.longdouble."""
    asked = any(np.asarray(x).dtype == np.longdouble for x in arguments)
    return answer if asked else answer.astype(np.float64)


def normal(rng: np.random.Generator, shape: int | tuple[int, ...]) -> Array:
    """``rng.standard_normal(shape)``, with the same bits on every processor.

    NumPy draws by the ziggurat method (Marsaglia and Tsang, 2000), which multiplies and compares up to 3.654; the few
    numbers beyond are logarithms, whose last bits depend on the mathematical library. These are rounded to 2**-30.
    """
    x = rng.standard_normal(shape)
    return np.where(np.abs(x) > 3.5, np.round(x * 2.0**30) * 2.0**-30, x)
