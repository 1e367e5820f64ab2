"""Each fuzzer, for as many examples as the profile has."""

from __future__ import annotations

import pytest

from fuzz import runner
from fuzz.twins import NATIVE

pytestmark = [
    pytest.mark.single_implementation,
    pytest.mark.skipif(not NATIVE, reason="one implementation has nothing to be compared with"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # raised by NumPy if a result overflows or is NaN
]


@pytest.mark.parametrize("name", runner.FUZZERS)
def test_no_finding(name: str) -> None:
    counts = runner.run(name)
    assert counts["calls"] > counts["errors"] > 0
