"""The ``__module__`` of public objects, which private packages define."""

from __future__ import annotations

import sys
import typing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


def name_public_modules(*modules: ModuleType) -> None:
    """Set the ``__module__`` of everything public to the first of ``modules`` that exports it.

    repr and pydoc show that name, and pickles store it.
    """
    for module in modules:
        for name in module.__all__:
            exported = getattr(module, name)
            if not getattr(exported, "__module__", "").startswith("headwise._"):
                continue
            overloads = typing.get_overloads(exported) if sys.version_info >= (3, 11) else ()
            for function in (exported, *overloads):
                function.__module__ = module.__name__
            for function in overloads:  # typing.get_overloads finds them by the new name
                typing.overload(function)
