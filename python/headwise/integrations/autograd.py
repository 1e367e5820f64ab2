"""The differentiable functions of headwise as primitives of autograd (HIPS).

>>> import autograd  # doctest: +SKIP
>>> from headwise.integrations.autograd import flash_attention  # doctest: +SKIP
>>> d_query = autograd.grad(lambda q: flash_attention(q, key, value).sum())(query)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headwise.integrations._functions import adapt
from headwise.integrations._libraries import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from headwise.integrations._functions import TracedCall

require("autograd")
_extend: Any = importlib.import_module("autograd.extend")
_numpy: Any = importlib.import_module("autograd.numpy")


def _is_box(x: Any) -> bool:
    return isinstance(x, _extend.Box)


@_extend.primitive
def _run(call: TracedCall, *arrays: Any) -> tuple[Any, ...]:
    return call.run(arrays)


def _gradients(
    argnums: tuple[int, ...], _: Any, args: tuple[Any, ...], __: dict[str, Any]
) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    call = args[0]

    def pull(d_results: tuple[Any, ...]) -> tuple[Any, ...]:
        if any(map(_is_box, (*args, *d_results, d_results))):
            raise TypeError(f"{call.function.__name__}: second derivatives, of which headwise has none")
        found = call.pull(tuple(d_results))
        return tuple(found[argnum - 1] for argnum in argnums)

    return pull


_extend.defvjp_argnums(_run, _gradients)


def _call(call: TracedCall, boxes: tuple[Any, ...]) -> Any:
    return call.as_returned(_run(call, *boxes))


_adapted = adapt("autograd", _is_box, _numpy.array, _call)
globals().update(_adapted)

__all__ = sorted(_adapted)  # noqa: PLE0605 (one name for each rule of headwise.vjp)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:  # for type checkers, which do not see the names above
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}, expected one of {', '.join(__all__)}")
