"""The types of the table in ``operations``: sizes of calls, operations, options of attention, and cases.

Only NumPy is needed: ``smoke.py`` reads the table where neither pytest nor hypothesis is installed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

import oracle

Array = oracle.Array
Shape = tuple[int, ...]
#: Makes the array for an argument: its name and its shape.
Make = Callable[[str, Shape], Array]
Arguments = dict[str, Any]


class Sizes(NamedTuple):
    """The sizes of a call. Each operation takes the shapes of its arguments from them."""

    lead: Shape = (2, 4)  # the axes before the last two; of attention, batch and heads
    kv_heads: int = 2
    queries: int = 9  # the rows of every x
    keys: int = 17
    head_dim: int = 12  # the columns of every x; even
    value_dim: int = 10  # the columns of values, and of the result of linear

    @property
    def heads(self) -> int:
        """Of attention: below four axes there is one."""
        return self.lead[-1] if len(self.lead) > 1 else 1

    @property
    def rows(self) -> Shape:
        """The shape of x: (*lead, queries, head_dim)."""
        return (*self.lead, self.queries, self.head_dim)

    @property
    def scores(self) -> Shape:
        """(*lead, queries, keys)."""
        return (*self.lead, self.queries, self.keys)

    @property
    def kv_lead(self) -> Shape:
        """The axes of keys and values before their last two: grouped heads where there is an axis of heads."""
        return (*self.lead[:-1], self.kv_heads) if len(self.lead) > 1 else self.lead


def numbers(name: str, shape: Shape) -> Array:
    """float32 numbers that depend on nothing but the arguments: cosines and sines of angles between -pi and pi,
    slopes between 0 and 1, and normal numbers for every other argument."""
    if name in ("cos", "sin"):
        tangent = oracle.normal(np.random.default_rng([7, *shape]), shape)  # of half the angle
        turned = 1 - tangent**2 if name == "cos" else 2 * tangent
        return np.asarray(turned / (1 + tangent**2), np.float32)
    rng = np.random.default_rng([zlib.crc32(name.encode()), *shape])
    return rng.random(shape, np.float32) if name.endswith("slopes") else oracle.normal(rng, shape).astype(np.float32)


#: A strategy of values for an argument, from ``hypothesis.strategies``, a strategy of arrays of a shape, and sizes.
Draw = Callable[[Any, Callable[[Shape], Any], Sizes], Any]


@dataclass(frozen=True)
class Option:
    """A keyword of attention: a value that fits a call, values for hypothesis to draw, and values that are refused."""

    value: Callable[[Sizes, Make], Any]
    draw: Draw
    refused: tuple[tuple[type[Exception], Any], ...] = ()
    needs: Arguments = field(default_factory=dict)  # keywords without which it has no effect
    varlen: bool = True  # varlen_attention takes it
    exact: bool = True  # the oracle takes it


def kept(x: Array) -> Array:
    """A mask that keeps about two thirds; a view of one number becomes a view of one bool."""
    return x > -0.5 if any(x.strides) else np.broadcast_to(x[(0,) * x.ndim] > -0.5, x.shape)


#: Makes further arguments of a call.
Variant = Callable[[Sizes, Make], Arguments]
SMALL = Sizes((), 1, 3, 6, 4, 5)
LARGE = Sizes((1, 8), 8, 4096, 128, 128, 128)


@dataclass(frozen=True)
class Operation:
    """One function on arrays."""

    function: Callable[..., Any]
    #: The required arguments, by name and in order. The first array is the one that ``out`` may replace.
    arguments: Callable[[Sizes, Make], Arguments]
    #: The oracle's result, or results, for the same arguments; None: the results are random.
    expected: Callable[..., Any] | None
    #: Sets of further arguments; "": none.
    variants: dict[str, Variant]
    #: Those for suites where a call takes long: as a rule all of them.
    short: tuple[str, ...] = ()
    #: Optional arguments that hypothesis draws, besides a variant.
    draws: dict[str, Draw] = field(default_factory=dict)
    pairs: bool = False  # head_dim is even
    computed: bool = True  # by a backend
    out: bool = True
    in_place: bool = True  # out= may be the first array
    #: float16 and bfloat16 are computed in float32 with this absolute error, and rounded once; None: not so.
    atol_16bit: float | None = None
    #: Additional absolute error of 16-bit results, which depend on other 16-bit results.
    more_16bit: float = 0.0
    #: Small sizes for refusals and for the drawing of calls.
    small: Sizes = SMALL
    #: Sizes, by name, of calls that are shared out among four threads.
    parallel: dict[str, Sizes] = field(default_factory=dict)
    #: Sizes of calls of some megabytes whose peak of memory is measured.
    large: Sizes = LARGE
    #: The axes before the last two of a call with many rows.
    lead: Shape = ()
    #: The arguments by which headwise.vjp has gradients.
    wrt: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.function.__name__


@dataclass(frozen=True)
class Case:
    """One variant of an operation. ``str`` of it is the name in the ids of tests."""

    operation: Operation
    variant: str

    def __str__(self) -> str:
        return "-".join(filter(None, [self.operation.name, self.variant]))

    def arguments(self, sizes: Sizes, make: Make = numbers) -> Arguments:
        """All arguments by name."""
        needed = self.operation.arguments(sizes, make)
        return needed | self.operation.variants[self.variant](sizes, make)

    def run(self, arguments: Arguments, **more: Any) -> tuple[Any, ...]:
        """The results of a call."""
        result = self.operation.function(**arguments, **more)
        return result if isinstance(result, tuple) else (result,)

    @property
    def differentiable(self) -> bool:
        """Whether headwise.vjp has a rule for it: for a ``score_mod`` there is none."""
        return bool(self.operation.wrt) and self.variant != "score_mod"

    def wrt(self, arguments: Arguments) -> tuple[str, ...]:
        """The names of the arrays that have gradients."""
        return tuple(name for name in self.operation.wrt if name in arrays_in(arguments))

    def expected(self, arguments: Arguments) -> tuple[Array, ...] | None:
        """The oracle's results, in double precision; None where it has none."""
        if self.operation.expected is None or "rng" in arguments:
            return None
        with np.errstate(invalid="ignore"):  # of infinities
            result = self.operation.expected(**arguments)
        return result if isinstance(result, tuple) else (result,)


def arrays_in(arguments: Arguments) -> list[str]:
    """The names of the arguments that are arrays."""
    return [name for name, value in arguments.items() if isinstance(value, np.ndarray)]


def changed(arguments: Arguments, change: Callable[[Array], Any]) -> Arguments:
    """The same call with ``change`` applied to each array."""
    return {name: change(value) if isinstance(value, np.ndarray) else value for name, value in arguments.items()}


def cast(arguments: Arguments, dtype: Any) -> Arguments:
    """The same call with every array but those of bool in ``dtype``."""
    return changed(arguments, lambda x: x if x.dtype == bool else x.astype(dtype))
