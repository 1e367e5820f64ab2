"""Every operation in each floating type, on shapes around the widths of vectors, against the oracle.

A plain script, for where the suite would take too long or lacks its packages: a wheel in a bare environment, another
processor, an emulated one. It needs NumPy, and ml_dtypes for bfloat16.

    python tests/smoke.py                              # what a user would get
    python tests/smoke.py --backend native --target avx2  # and it must be this, chosen or forced (HEADWISE_TARGET)
    python tests/smoke.py --every-target               # each instruction set of the machine in turn
"""

from __future__ import annotations

import argparse
import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import headwise as hw
import oracle

Array = oracle.Array

# Of |error| / (1 + |expected|): that of the type computed in, and of the one rounded to at the end.
BOUNDS = {"float64": 1e-13, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
LENGTHS = (1, 2, 3, 5, 8, 9, 15, 16, 17, 33, 67)
# Lengths of queries and of keys, features, features of values.
ATTENTION = ((1, 1, 1, 1), (1, 67, 17, 9), (4, 33, 8, 3), (9, 5, 19, 20), (17, 70, 7, 33), (33, 40, 32, 24))
SLOPES, SINKS = np.array([0.5, 0.0625]), np.array([0.3, -1.2])

Result = tuple[str, Array, Array]  # what it is, what came out, the oracle's


def dtypes() -> Iterator[Any]:
    yield from map(np.dtype, ("float64", "float32", "float16"))
    try:
        yield np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ModuleNotFoundError as missing:
        print(f"bfloat16 is left out: {missing}")


def normal(dtype: Any, *shape: int) -> Array:
    return oracle.normal(np.random.default_rng(shape), shape).astype(dtype)


def softmaxes(dtype: Any) -> Iterator[Result]:
    functions: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
        (hw.softmax, oracle.softmax),
        (hw.log_softmax, oracle.log_softmax),
        (hw.logsumexp, oracle.logsumexp),
    )
    for (ours, expected), n in itertools.product(functions, LENGTHS):
        rows, columns = 4 * normal(dtype, 3, n), 4 * normal(dtype, 5, n)
        yield f"{ours.__name__} of {n}", ours(rows), expected(rows)
        yield f"{ours.__name__} of {n} columns", ours(columns, 0), expected(columns, 0)


def attention(dtype: Any) -> Iterator[Result]:
    for queries, keys, features, value_features in ATTENTION:
        query = normal(dtype, 1, 2, queries, features)
        key, value = normal(dtype, 1, 2, keys, features), normal(dtype, 1, 1, keys, value_features)
        options: dict[str, dict[str, Any]] = {
            "plain": {},
            "masked": {"mask": normal(np.float32, 2, queries, keys) > 0},
            "causal": {
                "is_causal": True, "causal_alignment": "lower_right", "window_size": (11, 0), "softcap": 3.0,
                "alibi_slopes": SLOPES, "sinks": SINKS,
            },
        }  # fmt: skip
        for name, keywords in options.items():
            heads = np.repeat(value, 2, 1) if name == "plain" else value
            ours = key if name == "plain" else key[:, :1]
            name = f"attention {name} {queries} x {keys}, {features} and {value_features} features"
            expected = oracle.attention(query, ours, heads, **keywords)
            output, weights = hw.scaled_dot_product_attention(query, ours, heads, **keywords)
            yield name, output, expected.output
            yield f"{name}, weights", weights, expected.weights
            output, lse = hw.flash_attention(query, ours, heads, **keywords, return_lse=True)
            yield f"{name}, flash", output, expected.output
            yield f"{name}, log-sum-exp", lse, expected.lse


def varlen(dtype: Any) -> Iterator[Result]:
    starts = np.cumsum([0, 5, 1, 33])
    query, key, value = (normal(dtype, int(starts[-1]), 2, n) for n in (19, 19, 9))
    expected = [
        oracle.attention(*(x[a:b].swapaxes(0, 1) for x in (query, key, value)), is_causal=True).output.swapaxes(0, 1)
        for a, b in itertools.pairwise(starts.tolist())
    ]
    yield "varlen", hw.varlen_attention(query, key, value, starts, is_causal=True), np.concatenate(expected)


def positions(dtype: Any) -> Iterator[Result]:
    for n in LENGTHS:
        x, (cos, sin) = normal(dtype, 2, 3, 2 * n), oracle.rope_tables(np.arange(3), 2 * n)
        for pairs in (False, True):
            turned = oracle.rope(x, cos, sin, pairs)
            yield f"rope of {n} pairs, interleaved: {pairs}", hw.apply_rope(x, cos, sin, interleaved=pairs), turned
        scores = normal(dtype, 2, 3, n)
        expected = oracle.double(scores) + oracle.alibi_bias(SLOPES, 3, n, 1)
        yield f"ALiBi of {n}", hw.add_alibi(scores, SLOPES, offset=1), expected


def layers(dtype: Any) -> Iterator[Result]:
    for n in LENGTHS:
        x, gamma, beta = normal(dtype, 3, n), normal(dtype, n), normal(dtype, 1, n)[0]
        expected = oracle.layer_normalization(x, gamma, beta)
        yield f"layer normalisation of {n}", hw.layer_normalization(x, gamma, beta), expected
    for rows, inner, columns in (*((n, 19, n) for n in LENGTHS), (5, 67, 130), (37, 64, 259)):
        x, bias = normal(dtype, rows, inner), normal(dtype, columns)
        weight = (normal(np.float64, inner, columns) / np.sqrt(inner)).astype(dtype)
        name, expected = f"linear {rows} x {inner} x {columns}", oracle.linear(x, weight, bias)
        yield name, hw.linear(x, weight, bias), expected
        yield f"{name}, weights of columns", hw.linear(x, np.asfortranarray(weight), bias), expected
        yield f"{name}, packed", hw.PackedLinear(weight, bias)(x), expected


def run() -> None:
    """Print what runs and how many results it had right; SystemExit with the first that are wrong."""
    now, wrong, count = hw.config(), [], 0
    for dtype in dtypes():
        for operation in (softmaxes, attention, varlen, positions, layers):
            for name, got, expected in operation(dtype):
                count += 1
                with np.errstate(all="ignore"):  # where both are infinite, which the first part sees
                    error = np.abs(oracle.double(got) - expected) / (1 + np.abs(expected))
                    near = (oracle.double(got) == expected) | (error <= BOUNDS[dtype.name])
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
