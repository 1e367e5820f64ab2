"""Which cases of a test run on which implementation, where not all of them run on all.

Every case runs on NumPy and the best instruction set, and on one of the others, which a checksum of the number of the
case chooses. The choice is the same in every run and has no period that could coincide with that of a parameter: the
others share the values of every parameter. ``HEADWISE_TEST_ROTATION`` is added to the checksum: after as many runs as
there are others, with 0, 1, 2, ..., every case has run on every implementation.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Sequence

import pytest

FIRST = int(os.environ.get("HEADWISE_TEST_ROTATION", "0"))
#: A test of no more cases runs with all of them on every implementation.
FEW_CASES = 8


def turn(number: int, count: int) -> int:
    """Whose turn it is of ``count`` implementations in the case with this number."""
    return (zlib.crc32(b"%d" % number) + FIRST) % count


def rotated(items: Sequence[pytest.Item], always: Sequence[str]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The tests that run, and those that do not, in their order. Implementations in ``always`` run every case."""
    cases: Counter[tuple[str, str]] = Counter()
    numbers = []
    for item in items:
        key = function(item), implementation(item)
        numbers.append(cases[key])
        cases[key] += 1
    others: dict[str, list[str]] = {}
    for name, chosen in cases:
        if chosen and chosen not in always:
            others.setdefault(name, []).append(chosen)
    running, waiting = [], []
    for item, number in zip(items, numbers, strict=True):
        name, chosen = function(item), implementation(item)
        names = others.get(name, [])
        runs = chosen not in names or cases[name, chosen] <= FEW_CASES or chosen == names[turn(number, len(names))]
        (running if runs else waiting).append(item)
    return running, waiting


def function(item: pytest.Item) -> str:
    return item.nodeid.split("[")[0]


def implementation(item: pytest.Item) -> str:
    """'': the test does not run on each implementation."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return str(parameters.get("implementation", ""))
