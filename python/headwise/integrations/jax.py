"""The differentiable functions of headwise for JAX: under ``jit``, ``grad`` and ``vmap``, on CPU.

>>> import jax  # doctest: +SKIP
>>> from headwise.integrations.jax import flash_attention  # doctest: +SKIP
>>> loss = jax.jit(lambda q: flash_attention(q, key, value, is_causal=True).sum())  # doctest: +SKIP
>>> jax.grad(loss)(query)  # doctest: +SKIP
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

import headwise as hw
from headwise._ops.gradients.vjp import arguments_of, differentiable, rule_of
from headwise.integrations._jax_host import on_host
from headwise.integrations._libraries import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from headwise._base.typing import Array

jax: Any = require("jax")
jnp: Any = importlib.import_module("jax.numpy")


class _Call:
    """A call of ``function``: the names of its arrays, in order, and all other arguments."""

    def __init__(self, function: Callable[..., Any], names: tuple[str, ...], others: dict[str, Any]) -> None:
        self.function, self.names, self.others = function, names, others
        self.wrt = tuple(name for name in names if name in rule_of(function).names)
        self.present: list[bool] | None = None  # the results that are not None; None: not a tuple

    def forward(self, *arrays: Array) -> list[Array]:
        """The results for plain arrays, without those that are None."""
        output = self.function(**self.others, **dict(zip(self.names, arrays, strict=True)))
        if not isinstance(output, tuple):
            return [np.asarray(output)]
        self.present = [result is not None for result in output]
        return [np.asarray(result) for result in output if result is not None]

    def backward(self, *arrays: Array) -> list[Array]:
        """The gradients by ``wrt``, for the arrays of the call followed by the gradients by its results."""
        count = len(self.names)
        given = dict(zip(self.names, arrays[:count], strict=True))
        _, pull = hw.vjp(self.function, **self.others, **given, wrt=self.wrt)
        d_results = iter(arrays[count:])
        return list(pull(*(next(d_results) if there else None for there in self.present or [True])))

    def results(self, arrays: tuple[Any, ...]) -> list[Any]:
        """Shapes and dtypes of the results: those of a call with zeros, which checks the arguments as well."""
        zeros = {name: np.zeros(x.shape, x.dtype) for name, x in zip(self.names, arrays, strict=True)}
        for lengths, rows in (("cu_seqlens_q", "query"), ("cu_seqlens_k", "key")):
            if lengths in zeros and zeros[lengths].size:
                zeros[lengths][-1] = zeros[rows].shape[0]  # one sequence of all rows
        return [jax.ShapeDtypeStruct(y.shape, y.dtype) for y in self.forward(*zeros.values())]

    def as_returned(self, results: Any) -> Any:
        if self.present is None:
            return results[0]
        given = iter(results)
        return tuple(next(given) if there else None for there in self.present)


def _is_traced(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(call: _Call, *arrays: Any) -> tuple[Any, ...]:
    if not any(map(_is_traced, arrays)):
        return tuple(map(jnp.asarray, call.forward(*map(np.asarray, arrays))))
    return tuple(on_host(call.forward, call.results(arrays), arrays))


def _run_forward(call: _Call, *arrays: Any) -> tuple[Any, Any]:
    return _run(call, *arrays), arrays


def _run_backward(call: _Call, arrays: tuple[Any, ...], d_results: tuple[Any, ...]) -> tuple[Any, ...]:
    everything = (*arrays, *d_results)
    if any(map(_is_traced, everything)):
        by_name = dict(zip(call.names, arrays, strict=True))
        like = [jax.ShapeDtypeStruct(by_name[name].shape, by_name[name].dtype) for name in call.wrt]
        found = on_host(call.backward, like, everything)
    else:
        found = [jnp.asarray(d) for d in call.backward(*map(np.asarray, everything))]
    gradients = dict(zip(call.wrt, found, strict=True))
    return tuple(gradients.get(name) for name in call.names)


_run.defvjp(_run_forward, _run_backward)


def _is_array(x: Any) -> bool:
    return any(map(_is_array, x)) if isinstance(x, (list, tuple)) else isinstance(x, (jax.Array, np.ndarray))


def _checked(name: str, x: Any) -> Any:
    """``x`` as one array of JAX on one device."""
    x = jnp.stack([_checked(name, entry) for entry in x]) if isinstance(x, (list, tuple)) else jnp.asarray(x)
    if not _is_traced(x) and len(x.sharding.device_set) > 1:
        raise ValueError(
            f"{name}: an array on {len(x.sharding.device_set)} devices, expected one device: headwise computes on the "
            "CPU of one process; gather it by jax.device_put(x, jax.devices()[0])"
        )
    return x


def _adapted(function: Callable[..., Any]) -> Callable[..., Any]:
    differentiable_names = rule_of(function).names

    @functools.wraps(function)
    def wrapper(*args: Any, **keywords: Any) -> Any:
        given = arguments_of(function, args, keywords)
        if given.pop("out", None) is not None:
            raise TypeError("out: given, but arrays of JAX do not change; expected a call without it")
        arrays = {}
        for name, x in given.items():
            if (name in differentiable_names and _is_array(x)) or _is_traced(x):
                arrays[name] = _checked(name, x)
            elif isinstance(x, jax.Array):
                given[name] = np.asarray(_checked(name, x))
        if isinstance(given.get("rng"), np.random.Generator) and any(map(_is_traced, arrays.values())):
            raise TypeError("rng: a Generator, whose state a traced function would change; expected an int")
        call = _Call(function, tuple(arrays), {name: x for name, x in given.items() if name not in arrays})
        return call.as_returned(_run(call, *arrays.values()))

    wrapper.__module__ = __name__
    wrapper.__doc__ = (
        f":func:`headwise.{function.__name__}` of arrays of JAX, with gradients by {', '.join(differentiable_names)}."
        f"\n\nParameters and results are those of :func:`headwise.{function.__name__}`."
    )
    return wrapper


_functions = {name: _adapted(function) for name, function in differentiable().items()}
globals().update(_functions)

__all__ = sorted(_functions)  # noqa: PLE0605 (one name for each rule of headwise.vjp)


def __getattr__(name: str) -> Any:  # for type checkers, which do not see the names above
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}, expected one of {', '.join(__all__)}")
