"""The one table of headwise's operations, and of attention's options, which every table-driven suite reads.

An entry of ``OPERATIONS`` brings an operation into the suites of layouts, ``out=``, refusals, 16-bit dtypes,
arguments of backends, threads, memory, and differential tests, and into the smoke test. An entry of ``OPTIONS`` brings
an option of attention, such as a score modifier, into the same suites for all three functions of attention.

Only NumPy is needed: ``smoke.py`` reads the table where neither pytest nor hypothesis is installed.
"""

from __future__ import annotations

from collections.abc import Callable

from calls import Case, Operation
from operations.attention import ATTENTION, MERGED_AND_PACKED
from operations.linear_attention import LINEAR, unit_features
from operations.options import OPTIONS
from operations.products import PRODUCTS, packed_linear
from operations.rows import ROWS
from operations.statistics import STATISTICS

__all__ = ["OPERATIONS", "OPTIONS", "cases", "packed_linear", "unit_features"]

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in [
        *ROWS,
        *PRODUCTS,
        *ATTENTION,
        *STATISTICS,
        *LINEAR,
        *MERGED_AND_PACKED,
    ]
}


def cases(short: bool = False, where: Callable[[Operation], bool] = lambda operation: True) -> list[Case]:
    """Each variant of each operation for which ``where`` holds; ``short``: without the options of attention one by
    one."""
    return [
        Case(operation, variant)
        for operation in OPERATIONS.values()
        if where(operation)
        for variant in (operation.short if short and operation.short else operation.variants)
    ]
