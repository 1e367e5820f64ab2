"""Values and names of the user in messages of errors: printable, and not longer than a line or two."""

from __future__ import annotations

import reprlib

_MAX_LENGTH = 120

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = _MAX_LENGTH


def shown(value: object) -> str:
    """``repr(value)``, with the middle left out if it is long; an object whose repr raises is named by its type."""
    return _short.repr(value)


def label(name: str) -> str:
    """A name as it begins a message: itself, or as :func:`shown` if it has line breaks, escapes or is long."""
    return name if name.isprintable() and len(name) <= _MAX_LENGTH else shown(name)
