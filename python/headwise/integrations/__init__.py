"""headwise inside the libraries that already run a model, each an optional import.

A module of this package has the name of the library that it serves: ``headwise.integrations.torch`` needs PyTorch, and
so on. None of these libraries is a dependency of headwise. Importing a module whose library is missing or too old is an
ImportError that says which version is expected and how to install it. ``import headwise`` and this package import none
of the modules; ``headwise.integrations.torch`` imports its own when it is first used.

>>> from headwise.integrations import usable
>>> [entry.name for entry in usable()]  # doctest: +SKIP
['torch']
"""

from __future__ import annotations

import importlib
from typing import Any

from headwise.integrations._libraries import INTEGRATIONS, Integration, usable

__all__ = ["INTEGRATIONS", "Integration", "usable"]


def __getattr__(name: str) -> Any:
    if any(entry.name == name for entry in INTEGRATIONS):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(entry.name for entry in INTEGRATIONS)})
