"""Calls of the functions, with arguments that fit or with one that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import assume, note
from hypothesis import strategies as st

from comparison import both
from contract.test_differential import CALLS
from fuzz.twins import COUNTS, TARGETS, run, spoilt

ARGUMENTS = {"name": st.sampled_from(sorted(CALLS)), "native": TARGETS, "spoil": st.booleans(), "data": st.data()}


def agree(name: str, native: str, spoil: bool, data: st.DataObject) -> None:
    COUNTS["examples"] += 1
    function, strategy = CALLS[name]
    arguments: dict[str, Any] = data.draw(strategy)
    if spoil:
        place = data.draw(st.sampled_from(sorted(arguments)))
        # logsumexp may reduce the long axis: a short result of a call without end.
        arguments[place] = data.draw(spoilt(arguments[place], huge=name != "logsumexp"))
        assume(place != "rng" or arguments[place] is not None)  # valid, and without a seed
    note(f"{name} on {native}: {arguments!r}")
    call: Callable[[], Any] = lambda: run(lambda: function(**arguments))  # noqa: E731
    both(native, call, arguments)
