"""Interruptions of Python code at every bytecode, as by Ctrl-C, whose handler runs between two of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

from implementations import PROFILE

T = TypeVar("T")

#: Of the bytecodes of a call, one in this many is interrupted.
STEP = {"default": 41, "ci": 7}.get(PROFILE, 1)

#: Modules whose with statements would seem not to end: an exception from a trace function may come between the end of
#: a block and the call of __exit__, where Python runs no signal handlers.
UNINTERRUPTED = ("headwise._base.ieee",)


def interrupted_calls(make: Callable[[], T], call: Callable[[T], Any], step: int = STEP) -> Iterator[tuple[T, bool]]:
    """A new object from ``make`` for each interruption of ``call(object)``, and whether the call was interrupted: by a
    KeyboardInterrupt before bytecode 0, ``step``, 2 ``step``, … that headwise executes, until there are no more."""
    at, interrupted = 0, True
    while interrupted:
        subject = make()
        interrupted = _interrupt(lambda subject=subject: call(subject), at)
        yield subject, interrupted
        at += step


def _interrupt(call: Callable[[], Any], at: int) -> bool:
    left = at

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        name = str(frame.f_globals.get("__name__"))
        if not name.startswith("headwise") or name in UNINTERRUPTED:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
