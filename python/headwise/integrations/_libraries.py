"""The libraries that headwise has modules for: their versions, and the error where one is missing or too old."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from typing import Any, NamedTuple


class Integration(NamedTuple):
    """A module of :mod:`headwise.integrations` and the library that it needs."""

    name: str  # of the module in headwise.integrations
    library: str  # the name by which the library is imported
    minimum: str  # the oldest version that works
    install: str  # the name by which pip installs it
    does: str  # its purpose, in a line


#: Every module of this package, in alphabetic order; a new module adds its line.
INTEGRATIONS: tuple[Integration, ...] = (
    Integration("autograd", "autograd", "1.7", "autograd", "the differentiable functions as primitives of autograd"),
    Integration("dask", "dask", "2024.8", "dask", "attention, gradients and statistics over Dask arrays"),
    Integration("jax", "jax", "0.5", "jax", "the differentiable functions under jit, grad and vmap, on CPU"),
    Integration("mygrad", "mygrad", "2.3", "mygrad", "the differentiable functions as operations of mygrad"),
    Integration("onnx", "onnx", "1.22", "onnx", "operators for ONNX's reference evaluator, and run_model"),
    Integration("torch", "torch", "2.6", "torch", "scaled_dot_product_attention of PyTorch on CPU, and its gradients"),
    Integration("transformers", "transformers", "5.0", "transformers", 'models with attn_implementation="headwise"'),
    Integration("xarray", "xarray", "2024.7", "xarray", "attention and its statistics by the names of dimensions"),
)


def require(name: str) -> Any:
    """The library of the module ``headwise.integrations.<name>``, imported.

    Raises
    ------
    ImportError
        If the library is missing or older than the module needs.
    """
    entry = next(entry for entry in INTEGRATIONS if entry.name == name)
    module, way_out = f"headwise.integrations.{name}", f"pip install '{entry.install}>={entry.minimum}'"
    try:
        library = importlib.import_module(entry.library)
    except ModuleNotFoundError as missing:
        if missing.name != entry.library:
            raise
        raise ImportError(
            f"{module} needs the package {entry.install}, which is not installed: {way_out}", name=entry.library
        ) from None
    version = str(getattr(library, "__version__", "")) or _installed(entry) or "0"
    if _numbers(version) < _numbers(entry.minimum):
        raise ImportError(
            f"{module} needs {entry.install} {entry.minimum} or newer, found {version}: {way_out}", name=entry.library
        )
    return library


def usable() -> list[Integration]:
    """The integrations whose library is installed and new enough. No library is imported."""
    return [entry for entry in INTEGRATIONS if _numbers(_installed(entry) or "0") >= _numbers(entry.minimum)]


def _installed(entry: Integration) -> str | None:
    try:
        return importlib.metadata.version(entry.install)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 13, 0) of "2.13.0+cpu"."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in found[0].split(".")) if found else (0,)
