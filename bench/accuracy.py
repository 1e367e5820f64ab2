"""Errors of headwise and other libraries against the formulas in float64 on the same inputs, as a Markdown table.

python bench/accuracy.py
python bench/accuracy.py --attention 1,8,4096,64 --seeds 1 --peers torch,openvino
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from compare import parse_peers, positive
from comparison.cases import Attention, Case, DType, Linear, Precision
from comparison.data import make_data
from comparison.peers import load

import headwise
from comparison import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import SimpleNamespace

    from comparison.peers import Peer

Array = np.ndarray[Any, Any]

DTYPES: tuple[DType, ...] = ("float32", "bfloat16", "float16")
# Queries per block of scores in memory.
_BLOCK = 256


@dataclass(frozen=True)
class Row:
    """A row of the table: a library with a dtype, a precision and, for headwise, a target."""

    peer: Peer
    dtype: DType
    precision: Precision = "highest"
    target: str = ""  # headwise's instruction set

    @property
    def name(self) -> str:
        words = (self.peer.label, self.target, self.dtype, "" if self.precision == "highest" else self.precision)
        return " ".join(word for word in words if word)

    def result(self, case: Case, data: SimpleNamespace) -> Array | None:
        if self.target:
            headwise.set_target(self.target)
        call = self.peer.prepare(replace(case, precision=self.precision), data)
        return None if call is None else _double(self.peer.arrays(case, call())[0])


@dataclass
class Error:
    max: float = 0.0
    squares: float = 0.0
    count: int = 0

    def add(self, error: Array) -> None:
        self.max = float(np.maximum(self.max, np.abs(error).max()))  # np.maximum propagates NaN
        self.squares += float(np.square(error).sum())
        self.count += error.size

    @property
    def rms(self) -> float:
        return math.sqrt(self.squares / self.count)


def main() -> None:
    args = make_parser().parse_args()
    threads = environment.available_processors()
    (own, *peers), missing = load([name for name in args.peers if name != "copyto"], threads)
    facts = environment.describe([own, *peers], missing, threads)
    dtypes = [dtype for dtype in DTYPES if dtype != "bfloat16" or environment.has_bfloat16()]
    cases = {
        f"attention {_commas(args.attention)}": Attention(shape=args.attention),
        "causal": Attention(shape=args.attention, causal=True),
        f"linear {_commas(args.linear)}": Linear(shape=args.linear),
    }
    rows = [
        *headwise_rows(own, dtypes),
        *(Row(peer, dtype) for peer in peers for dtype in dtypes if dtype in peer.dtypes),
    ]
    errors = measure(rows, list(cases.values()), args.seeds)

    versions = ", ".join(f"{label} {version}" for label, version in facts.versions.items())
    print(f"{facts.cpu}; {facts.system}; {versions}.\n")
    print("| max error · root mean square |", " | ".join(cases), "|")
    print("| --- |", " | ".join("---:" for _ in cases), "|")
    for row in rows:
        found = (errors.get((row, case)) for case in cases.values())
        print(f"| {row.name} |", " | ".join(f"{e.max:.1e} · {e.rms:.1e}" if e else "" for e in found), "|")


def headwise_rows(peer: Peer, dtypes: list[DType]) -> Iterator[Row]:
    """The best target that uses FMA for float32, and the targets that use a bf16 split, at every precision."""
    targets = headwise.list_targets()
    split = [target for target in targets if target.endswith(("_amx", "_bf16"))]
    fma = next(target for target in targets if target not in split)
    for target in (fma, *split):
        for dtype in dtypes:
            levels = get_args(Precision) if dtype == "float32" and target != fma else ("highest",)
            yield from (Row(peer, dtype, level, target) for level in levels)


def measure(rows: list[Row], cases: list[Case], seeds: int) -> dict[tuple[Row, Case], Error]:
    errors: dict[tuple[Row, Case], Error] = defaultdict(Error)
    for case in cases:
        for dtype in dict.fromkeys(row.dtype for row in rows):
            typed = replace(case, dtype=dtype)
            for seed in range(seeds):
                data = make_data(typed, seed)
                expected = _EXACT[case.operation](typed, data)
                for row in rows:
                    if row.dtype == dtype and (result := row.result(typed, data)) is not None:
                        errors[row, case].add(result - expected)
    return errors


def exact_attention(case: Attention, data: SimpleNamespace) -> Array:
    query, key, value = _double(data.query), _double(data.key), _double(data.value)
    output = np.empty(case.shape)
    for start in range(0, case.shape[2], _BLOCK):
        rows = slice(start, start + _BLOCK)
        scores = query[:, :, rows] @ key.swapaxes(-1, -2) * case.shape[-1] ** -0.5
        if case.causal:
            scores[..., np.arange(case.keys) > np.arange(case.shape[2])[rows, None]] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        output[:, :, rows] = weights / weights.sum(axis=-1, keepdims=True) @ value
    return output


def exact_linear(case: Linear, data: SimpleNamespace) -> Array:
    return _double(data.x) @ _double(data.weight) + _double(data.bias)


_EXACT: dict[str, Callable[[Any, SimpleNamespace], Array]] = {"attention": exact_attention, "linear": exact_linear}


def _double(a: Any) -> Array:
    return np.asarray(a).astype(np.float64)


def _commas(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--attention", type=sizes(4), default=(1, 8, 1024, 64), metavar="SHAPE", help="batch,heads,query_len,head_dim"
    )
    parser.add_argument(
        "--linear", type=sizes(3), default=(1024, 1024, 1024), metavar="SHAPE", help="rows,in_features,out_features"
    )
    parser.add_argument("--seeds", type=positive, default=3, help="number of random inputs (%(default)s)")
    parser.add_argument("--peers", type=parse_peers, default=["torch"], help="as in compare.py; default: torch")
    return parser


def sizes(rank: int) -> Callable[[str], tuple[int, ...]]:
    def shape(text: str) -> tuple[int, ...]:
        found = tuple(map(positive, text.split(",")))
        if len(found) != rank:
            message = f"{text}: expected {rank} numbers"
            raise argparse.ArgumentTypeError(message)
        return found

    return shape


if __name__ == "__main__":
    main()
