"""Writes the largest error of each operation, for each dtype and instruction set, to ERRORS.md beside this file.

python bench/errors.py            # measures the targets of this machine and PyTorch; other columns stay as they are
python bench/errors.py --check    # compares instead, and prints errors that are larger or much smaller than stated
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from error_rows import ROWS, Draw, Row, oracle

import headwise as hw
from comparison import environment
from headwise._runtime import backend as _backend

Array = np.ndarray[Any, Any]
Cell = tuple[str, str, str]  # dtype, name of the row, column

FILE = Path(__file__).with_name("ERRORS.md")
DTYPES = ("float64", "float32", "float16", "bfloat16")
TARGETS = ("avx512_amx", "avx512_bf16", "avx512", "avx2", "sse4", "scalar")
#: Precision levels with results of their own, besides "highest".
LEVELS = {"avx512_amx": ("high", "medium"), "avx512_bf16": ("medium",)}
FALLBACK, TORCH = "NumPy backend", "PyTorch"
# Factors by which an error may exceed the stated one, and fall below it. The results of a target have the same bits on
# every machine. Those of the NumPy backend depend on the kernels that NumPy and its BLAS choose for the processor: with
# those of AVX-512, AVX2, AVX and SSE3 errors differ by a factor of up to 2.8.
SLACK = {FALLBACK: 4.0}
STALE = {FALLBACK: 8.0}
# Uncertainty of the reference. For float64 it has a mantissa of 64 bits, and its exponentials and logarithms are x87
# instructions, whose last bits differ between processors: 2^-9 of the unit. For other dtypes it is computed in float64
# by NumPy and a BLAS: a fraction of 10^-8 of the error.
UNCERTAINTY, UNCERTAIN_FRACTION = {"float64": 2.0**-9}, 2.0**-20


def main() -> int:
    args = make_parser().parse_args()
    begin, stated = time.perf_counter(), read(FILE.read_text()) if FILE.exists() else {}
    measured = dict(measure(args.dtypes, args.rows, torch=not args.check))
    failures = list(compare(measured, stated)) if args.check else []
    if args.check:
        for line in unstated(measured, stated):
            print(line)
    else:
        FILE.write_text(document(stated | {cell: rounded_up(x) for cell, x in measured.items()}))
    print(*failures, sep="\n", end="\n" if failures else "")
    columns = ", ".join(dict.fromkeys(column for _, _, column in measured))
    done = f"compared, {len(failures)} failures" if args.check else f"written to {FILE}"
    print(f"{len(measured)} errors {done}, in {time.perf_counter() - begin:.0f} s: {columns}")
    return bool(failures)


def columns_of(dtype: str) -> list[str]:
    columns = []
    for target in TARGETS:
        columns += [target] * has_own_results(target, dtype)
        columns += [f"{target} {level}" for level in LEVELS.get(target, ()) if dtype == "float32"]
    return [*columns, FALLBACK, TORCH]


def has_own_results(target: str, dtype: str) -> bool:
    """Whether the target has a column for the dtype; otherwise it computes the same as avx512."""
    return target != "avx512_bf16" or dtype == "bfloat16"


def measure(dtypes: list[str], substring: str, torch: bool) -> Iterator[tuple[Cell, float]]:
    """Measure each row on each target of this machine, on the NumPy backend and, optionally, in PyTorch."""
    for dtype in dtypes:
        if dtype == "bfloat16" and not environment.has_bfloat16():
            continue
        for row in ROWS:
            if substring not in row.name:
                continue
            inputs, info = inputs_of(row, dtype)
            if not all(np.isfinite(a).all() for a in inputs.values() if isinstance(a, np.ndarray)):
                continue  # the inputs exceed the range of float16
            expected = exact(row, inputs, dtype)
            if np.abs(expected).max() > float(info.max):
                continue
            for column, result in results(row, inputs, dtype, torch):
                yield (dtype, row.name, column), error(result, expected, info)


def inputs_of(row: Row, dtype: str) -> tuple[dict[str, Any], Any]:
    """Draw the inputs of a row. Returns them and the ``finfo`` of the dtype."""
    if dtype == "bfloat16":
        import ml_dtypes

        info = ml_dtypes.finfo(ml_dtypes.bfloat16)
        return row.inputs(Draw(np.dtype(ml_dtypes.bfloat16), info)), info
    return row.inputs(Draw(np.dtype(dtype), np.finfo(dtype))), np.finfo(dtype)


def exact(row: Row, inputs: dict[str, Any], dtype: str) -> Array:
    """Compute the reference from the same inputs, in longdouble for float64 and in float64 for the other dtypes."""

    def widened(x: Any) -> Any:
        return oracle.wide(x) if isinstance(x, np.ndarray) and x.dtype == np.float64 else x

    result: Array = row.exact(**{name: widened(x) if dtype == "float64" else x for name, x in inputs.items()})
    return result


def results(row: Row, inputs: dict[str, Any], dtype: str, torch: bool) -> Iterator[tuple[str, Array]]:
    """Compute the result for each column of the row."""
    used = _backend.name()
    for target in [FALLBACK, *hw.list_targets()]:
        if target == FALLBACK:
            _backend.use("numpy")
        elif target in TARGETS:
            hw.set_target(target)
        else:
            continue
        if has_own_results(target, dtype):
            yield target, row.compute(**inputs)
        if target == FALLBACK:
            _backend.use(used)
        elif dtype == "float32" and row.products:
            for level in LEVELS.get(target, ()):
                with hw.precision(level):
                    yield f"{target} {level}", row.compute(**inputs)
    if torch and row.torch is not None:
        yield TORCH, by_torch(row, inputs)


def by_torch(row: Row, inputs: dict[str, Any]) -> Array:
    import torch
    from comparison.peers.with_torch import tensor

    assert row.torch is not None
    tensors = {name: tensor(x) if isinstance(x, np.ndarray) else x for name, x in inputs.items()}
    with torch.no_grad():
        result = row.torch(torch, **tensors)
    return np.asarray(result.float() if result.dtype == torch.bfloat16 else result)


def error(result: Array, expected: Array, info: Any) -> float:
    """Return the largest error, in units of the dtype's eps times the largest magnitude in the row of the result."""
    size = np.abs(expected).max(axis=-1, keepdims=True, initial=0)
    unit = np.maximum(float(info.eps) * size, float(info.smallest_subnormal))
    return float((np.abs(oracle.double(result) - expected) / unit).max(initial=0))


def rounded_up(x: float) -> str:
    """Round up to two digits."""
    if x == 0 or not math.isfinite(x):
        return "0" if x == 0 else str(x)
    digits = 1 - math.floor(math.log10(x))
    text = f"{math.ceil(x * 10.0**digits) / 10.0**digits:.2g}"
    return f"{float(text):.0f}" if 100 <= float(text) < 100_000 else text


def compare(measured: dict[Cell, float], stated: dict[Cell, str]) -> Iterator[str]:
    slack = {row.name: row.slack for row in ROWS}
    for cell, got in measured.items():
        dtype, name, column = cell
        where = f"{name}, {dtype}, {column}: {rounded_up(got)}"
        if cell not in stated:
            if not any(other[:2] == (dtype, name) for other in stated):
                yield f"{where}, but no error is stated for any instruction set"
            continue
        limit = float(stated[cell])
        if not got * (1 - UNCERTAIN_FRACTION) - UNCERTAINTY.get(dtype, 0.0) <= limit * max(
            SLACK.get(column, 1.0), slack[name]
        ):
            yield f"{where}, worse than the {stated[cell]} stated"
        elif got * max(STALE.get(column, 2.0), 2.0 * slack[name]) < limit:
            yield f"{where}, much better than the {stated[cell]} stated"
    for name in dict.fromkeys(name for _, name, _ in stated):
        if not any(row.name == name for row in ROWS):
            yield f"{name}: stated, but the row does not exist"


def unstated(measured: dict[Cell, float], stated: dict[Cell, str]) -> Iterator[str]:
    """Lines for instruction sets that the machine of the author of a row did not have."""
    for cell, got in measured.items():
        if cell not in stated:
            dtype, name, column = cell
            yield f"not stated: {name}, {dtype}, {column}: {rounded_up(got)}"


def document(cells: dict[Cell, str]) -> str:
    lines = [HEAD.format(numpy=np.__version__, torch=version("torch").partition("+")[0])]
    for dtype in DTYPES:
        columns = columns_of(dtype)
        lines += [f"## {dtype}\n", f"| | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
        for row in ROWS:
            found = [cells.get((dtype, row.name, column), "") for column in columns]
            if any(found):
                lines.append(f"| {row.name} | {' | '.join(found)} |")
        lines.append("")
    return "\n".join(lines)


def read(text: str) -> dict[Cell, str]:
    """Parse the text that `document` wrote."""
    cells: dict[Cell, str] = {}
    for section in text.split("\n## ")[1:]:
        dtype, *lines = section.splitlines()
        lines = [line for line in lines if line.startswith("|")]
        columns = split(lines[0])[1:]
        for line in lines[2:]:
            name, *found = split(line)
            cells.update({(dtype, name, column): x for column, x in zip(columns, found, strict=True) if x})
    return cells


def split(line: str) -> list[str]:
    return [part.strip() for part in line.strip("|").split("|")]


HEAD = """\
# Errors

The largest error of each operation on the inputs named, against its formula in float64 (80-bit numbers for the float64
rows) on the same inputs. `python bench/errors.py` writes this file. `python bench/errors.py --check`, which CI runs,
fails if an error is larger than stated, or less than half as large; the exceptions for results that depend on NumPy are
below.

**Unit.** `eps` of the dtype times the largest magnitude in the same row (last axis) of the exact result, which is one
to two times the distance from that magnitude to the next number. Rounding the exact result costs up to 0.5. For
subnormal results the unit is the smallest subnormal number. The unit is relative to the largest entry of a row, as rows
are used in sums and products; small entries beside large ones have small errors in this unit. `eps` is 2.2e-16
(float64), 1.2e-7 (float32), 9.8e-4 (float16) and 7.8e-3 (bfloat16). Errors are rounded up to two digits.

**Inputs.** Normally distributed numbers of variance 1 in the dtype of the table, unless the row says otherwise;
`error_rows.py` defines each of them. head_dim is 64. Weights of `linear` are scaled for results of variance 1 (the sums
of 4,096 numbers from 0 to 1 are 16). "Subnormal" rows use a sixteenth of the smallest normal number as their scale.
"All options" is a boolean mask, a bias, causality, a window, softcap, ALiBi, sinks, key padding and grouped-query heads
in one call. "Relative bias" has 65 distances for each head, "relative values" 33, and "block mask" is a window of 40
keys to each side with 8 global tokens. Tables for `apply_rope` are computed with 80 decimal digits and rounded to
float64, then to the dtype. Inputs are the same on every processor: none of them comes from NumPy's mathematical
functions or from a BLAS.

**Columns.** The instruction sets, of which one is selected at import (`headwise.list_targets()`), the NumPy backend
(here with NumPy {numpy}), and PyTorch {torch} on the same inputs for comparison.

- Instruction sets: errors are the same on every machine and for any number of threads. The exception is
  `RotaryPositionalEmbedding`, whose tables come from NumPy's power, cosine and sine: `--check` permits twice the stated
  error. `neon` is not measured.
- NumPy backend: errors depend on the processor, NumPy and its BLAS. `--check` permits four times the stated error.
- PyTorch: not compared by `--check`. Its float64 column was measured on a processor with AMX, with inputs that differ
  by up to 2^-31.
- `high` and `medium` are levels of `precision=`. They change the results of avx512_amx and, at `medium`, of
  avx512_bf16. Except for these and for bfloat16, avx512_bf16 computes the same as avx512.

A cell is empty if the operation has no such level or peer, if the numbers exceed the range of the dtype, or if the row
was added on a machine without the instruction set.

**Rows that need an explanation.** "Scores times 30": the error of a weight is proportional to the error of its score,
and the latter grows with the score. "Subnormal": bf16 backends treat subnormal numbers as 0. "Positions from 10^6" in
float64: an angle of 10^6 radians is accurate to 10^-10 in float64, which does not affect float32.
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with ERRORS.md instead of writing it")
    parser.add_argument("--rows", default="", metavar="SUBSTRING", help="only rows with this text in their names")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES, help="only these dtypes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
