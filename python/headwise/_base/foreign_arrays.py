"""Array types of other packages: those whose conversion would lose something silently, and PyTorch's bfloat16.

No other package is imported: a type is known by the name of the package that defines it or one of its base classes.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from headwise._base.typing import Array


def _is_tracer(x: Any) -> bool:
    return isinstance(x, sys.modules["jax"].core.Tracer)


#: Package: whether the conversion of an object loses something, and the error's description and way out.
_LOSSES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "astropy": (
        lambda x: getattr(x, "unit", None) is not None,
        "a quantity, whose unit would be lost; expected x.value or x.to_value(unit)",
    ),
    "autograd": (
        lambda x: hasattr(x, "_value"),
        "an array traced for its gradient, which would be lost; expected headwise.integrations.autograd, or getval(x)",
    ),
    "dask": (
        lambda x: hasattr(x, "compute"),
        "a Dask collection, all of which would be computed here; expected headwise.integrations.dask, or x.compute()",
    ),
    "jax": (
        _is_tracer,
        "a value that JAX traces, which has no numbers yet; expected headwise.integrations.jax",
    ),
    "mygrad": (
        lambda x: not getattr(x, "constant", True),
        "a tensor that requires gradients, which would be lost; expected headwise.integrations.mygrad, or x.data",
    ),
    "pint": (
        lambda x: hasattr(x, "magnitude"),
        "a quantity, whose unit would be lost; expected x.magnitude or x.m_as(unit)",
    ),
    "torch": (
        lambda x: getattr(x, "requires_grad", False) is True,
        "a tensor that requires gradients, which would be lost; expected headwise.integrations.torch, or x.detach()",
    ),
    "unyt": (
        lambda x: hasattr(x, "units"),
        "a quantity, whose unit would be lost; expected x.value or x.to_value(unit)",
    ),
}


#: Types of entries of sequences that lose nothing.
_PLAIN = frozenset((bool, int, float, np.ndarray))


def check_nothing_lost(x: object, name: str) -> None:
    """TypeError if ``x``, or an entry of nested sequences, would lose gradients, units or laziness."""
    if isinstance(x, (list, tuple)):
        for entry in x:
            if type(entry) not in _PLAIN:
                check_nothing_lost(entry, name)
        return
    for cls in type(x).__mro__:
        found = _LOSSES.get(cls.__module__.partition(".")[0])
        if found is not None and found[0](x):
            raise TypeError(f"{name}: {found[1]}")


def is_torch_bfloat16(x: object) -> bool:
    return "torch" in sys.modules and str(getattr(x, "dtype", "")) == "torch.bfloat16"


def torch_bfloat16(x: Any, name: str) -> Array:
    """A PyTorch tensor of bfloat16, by its bits: neither ``__array__`` nor NumPy's DLPack reader supports the dtype."""
    try:
        bfloat16 = importlib.import_module("ml_dtypes").bfloat16
    except ImportError:
        raise TypeError(
            f"{name}: dtype torch.bfloat16, which NumPy has from the package ml_dtypes only: "
            "pip install ml_dtypes, or give it as float()"
        ) from None
    bits: Array = x.view(sys.modules["torch"].int16).numpy()
    return bits.view(bfloat16)
