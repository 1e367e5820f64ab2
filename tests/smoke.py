"""Every operation in each floating type, on shapes around the widths of vectors, against the oracle.

A plain script, for where the suite would take too long or lacks its packages: a wheel in a bare environment, another
processor, an emulated one. It needs NumPy, and ml_dtypes for bfloat16.

    python tests/smoke.py                              # the default implementation
    python tests/smoke.py --backend native --target avx2  # and it must be this, chosen or forced (HEADWISE_TARGET)
    python tests/smoke.py --every-target               # each instruction set of the machine in turn
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

import headwise as hw
import oracle
from calls import Sizes, cast, numbers
from operations import cases

Array = oracle.Array

# Of |error| / (1 + |expected|): that of the type computed in, and of the one rounded to at the end.
BOUNDS = {"float64": 1e-13, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
LENGTHS = (1, 2, 3, 5, 8, 9, 15, 16, 17, 33, 67)
# Lengths of queries and of keys, features, features of values.
ATTENTION = ((1, 1, 1, 1), (1, 67, 17, 9), (4, 33, 8, 3), (9, 5, 19, 20), (17, 70, 7, 33), (33, 40, 32, 24))
ATTENTION_SIZES = [Sizes((1, 2), kv_heads, *lengths) for lengths in ATTENTION for kv_heads in (1, 2)]
# Rows, features, and features of the result.
LINEAR = (*((n, 19, n) for n in LENGTHS), (5, 67, 130), (37, 64, 259))
LINEAR_SIZES = [Sizes((), 1, rows, rows, inner, columns) for rows, inner, columns in LINEAR]
SIZES_OF = {
    "linear": LINEAR_SIZES,
    "packed_linear": LINEAR_SIZES,
    "flash_attention": ATTENTION_SIZES,
    "scaled_dot_product_attention": ATTENTION_SIZES,
    "varlen_attention": ATTENTION_SIZES,
}

Result = tuple[str, Array, Array, float]  # name, result, the oracle's result, an additional bound


def dtypes() -> Iterator[Any]:
    yield from map(np.dtype, ("float64", "float32", "float16"))
    try:
        yield np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ModuleNotFoundError as missing:
        print(f"bfloat16 is left out: {missing}")


def argument(name: str, shape: tuple[int, ...]) -> Array:
    """Products of a weight with numbers of size 1 are of size 1; everything else is as the table makes it."""
    return numbers(name, shape) / np.float32(np.sqrt(shape[0])) if name == "weight" else numbers(name, shape)


def results(dtype: Any) -> Iterator[Result]:
    """Every operation of the table, in every variant, that the oracle answers."""
    for case in cases():
        name, pairs = case.operation.name, case.operation.pairs
        rows = [Sizes((2, 4), 4, 3, n, 2 * n if pairs else n, n) for n in LENGTHS]
        for sizes in SIZES_OF.get(name, rows):
            arguments = cast(case.arguments(sizes, argument), dtype)
            expected = case.expected(arguments)
            for got, answer in zip(case.run(arguments), expected or (), strict=expected is not None):
                result = np.asarray(got)
                more = case.operation.more_16bit if result.dtype.itemsize == 2 else 0.0
                yield f"{case} of {tuple(sizes)}", result, answer, more


def run() -> None:
    """Print the configuration and the number of right results; SystemExit with the first wrong ones."""
    now, wrong, count = hw.config(), [], 0
    for dtype in dtypes():
        for name, got, expected, more in results(dtype):
            count += 1
            with np.errstate(all="ignore"):  # inf - inf, where the first condition holds
                error = np.abs(oracle.double(got) - expected) / (1 + np.abs(expected))
                near = (oracle.double(got) == expected) | (error <= BOUNDS[dtype.name] + more)
            if got.shape != expected.shape or not near.all():
                wrong.append(f"{dtype.name}, {name}: {got}, expected {expected}")
    version, backend, target = (now[key] for key in ("version", "backend", "target"))
    print(f"headwise {version}, {backend}, {target} of {', '.join(now['targets'])}, {now['threads']} threads, ", end="")
    print(f"NumPy {now['numpy']}: {count - len(wrong)} of {count} results are right", flush=True)
    if wrong or hw.config() != now:
        raise SystemExit("\n".join(wrong[:4]) or f"something else ran in the end: {hw.config()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--backend", help="the backend that must be in force: native or numpy")
    parser.add_argument("--target", help="the instruction set that must be in force")
    parser.add_argument("--every-target", action="store_true", help="go on with all others of this machine")
    options = parser.parse_args()
    for key in ("backend", "target"):
        if getattr(options, key) not in (None, hw.config()[key]):
            raise SystemExit(f"expected the {key} {getattr(options, key)}: {hw.config()}")
    run()
    for target in hw.list_targets() if options.every_target else ():
        if target != hw.config()["target"]:
            hw.set_target(target)
            run()


if __name__ == "__main__":
    main()
