"""Attention and its gradients; sequences one after another; parts of the keys, merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import headwise as hw
import oracle
from calls import Arguments, Array, Make, Operation, Sizes
from operations.options import OPTIONS
from operations.variants import PLAIN, attention_variants

ATTENTION_PARALLEL = {
    "": Sizes((1, 4), 2, 130, 600, 16, 24),
    "one-head": Sizes((), 1, 130, 600, 16, 24),
    "one-row": Sizes((1, 4), 2, 1, 7000, 16, 24),
}
ATTENTION_WRT = ("query", "key", "value", "bias", "alibi_slopes", "sinks", "relative_bias", "relative_values")
ATTENTION_SMALL = Sizes((2, 4), 2, 5, 7, 8, 6)


def attention_arguments(s: Sizes, make: Make) -> Arguments:
    return {
        "query": make("query", s.rows),
        "key": make("key", (*s.kv_lead, s.keys, s.head_dim)),
        "value": make("value", (*s.kv_lead, s.keys, s.value_dim)),
    }


def gradient_arguments(s: Sizes, make: Make) -> Arguments:
    return attention_arguments(s, make) | {"d_output": make("d_output", (*s.lead, s.queries, s.value_dim))}


def attention_gradients(query: Any, key: Any, value: Any, d_output: Any, **options: Any) -> tuple[Array, ...]:
    """By the arguments of flash_attention that are given."""
    wrt = ("query", "key", "value", *(name for name in ATTENTION_WRT[3:] if options.get(name) is not None))
    _, pullback = hw.vjp(hw.flash_attention, query, key, value, wrt=wrt, **options)
    return tuple(pullback(d_output))


def with_dense_mask(options: dict[str, Any]) -> dict[str, Any]:
    mask = options.get("mask")
    return {**options, "mask": mask.to_dense()} if isinstance(mask, hw.BlockMask) else options


def expected_attention_gradients(*arrays: Any, **options: Any) -> tuple[Array, ...]:
    return oracle.attention_gradients(*arrays, **with_dense_mask(options))


def expected_attention(*names: str) -> Callable[..., Any]:
    """The results ``names`` of the oracle, and the log-sum-exp where it is asked for."""

    def expected(*arrays: Any, return_lse: bool = False, precision: Any = None, rng: Any = None, **options: Any) -> Any:
        answer = oracle.attention(*arrays, **with_dense_mask(options))
        return tuple(getattr(answer, name) for name in (*names, *(["lse"] if return_lse else [])))

    return expected


def merge_arguments(s: Sizes, make: Make) -> Arguments:
    return {"outputs": make("outputs", (3, *s.rows)), "lses": make("lses", (3, *s.rows[:-1]))}


def starts(total: int) -> list[int]:
    """Where sequences of 3, two thirds of the rest, 0 and the rest begin, and where the last ends."""
    first = min(3, total)
    second = first + (total - first) * 2 // 3
    return [0, first, second, second, total]


def varlen_arguments(s: Sizes, make: Make) -> Arguments:
    return {
        "query": make("query", (s.queries, s.heads, s.head_dim)),
        "key": make("key", (s.keys, s.kv_heads, s.head_dim)),
        "value": make("value", (s.keys, s.kv_heads, s.value_dim)),
        "cu_seqlens_q": starts(s.queries),
        "cu_seqlens_k": starts(s.keys),
    }


def expected_varlen(
    query: Array, key: Array, value: Array, cu_seqlens_q: Any, cu_seqlens_k: Any, **options: Any
) -> Any:
    """One sequence at a time."""
    return_lse, relative = options.pop("return_lse", False), options.pop("relative_bias", None)
    options.pop("precision", None)
    outputs, sums = [], []
    for i in range(len(cu_seqlens_q) - 1):
        ours, theirs = slice(*cu_seqlens_q[i : i + 2]), slice(*cu_seqlens_k[i : i + 2])
        heads = query[ours].swapaxes(0, 1), key[theirs].swapaxes(0, 1), value[theirs].swapaxes(0, 1)
        if relative is not None:
            options["relative_bias"] = relative if relative.shape[-2] == 1 else relative[..., ours, :]
        answer = oracle.attention(*(x[None] for x in heads), **options)
        outputs.append(answer.output[0].swapaxes(0, 1))
        sums.append(answer.lse[0])
    output = np.concatenate(outputs)
    return (output, np.concatenate(sums, axis=-1)) if return_lse else (output,)


ATTENTION = [
    Operation(
        hw.flash_attention,
        attention_arguments,
        expected_attention("output"),
        attention_variants(),
        short=("", "block_mask", "all"),
        draws={name: option.draw for name, option in OPTIONS.items()},
        in_place=False,
        small=ATTENTION_SMALL,
        parallel=ATTENTION_PARALLEL,
        large=Sizes((1, 4), 4, 2048, 2048, 64, 64),
        wrt=ATTENTION_WRT,
    ),
    Operation(
        attention_gradients,
        gradient_arguments,
        expected_attention_gradients,
        {name: attention_variants()[name] for name in ("", "bias", "block_mask", "all")},
        short=("", "block_mask", "all"),
        draws={name: option.draw for name, option in OPTIONS.items() if name != "score_mod"},
        out=False,
        more_16bit=8e-3,  # the rounded output is read, and sinks sum its errors over all rows
        small=ATTENTION_SMALL,
        parallel={"": ATTENTION_PARALLEL[""], "one-head": ATTENTION_PARALLEL["one-head"]},
        large=Sizes((1, 4), 4, 2048, 2048, 64, 64),
    ),
    Operation(
        hw.scaled_dot_product_attention,
        attention_arguments,
        expected_attention("output", "weights"),
        attention_variants(),
        short=("", "all"),
        draws={name: option.draw for name, option in OPTIONS.items()},
        in_place=False,
        small=ATTENTION_SMALL,
        parallel={"": ATTENTION_PARALLEL[""]},
        large=Sizes((1, 4), 4, 2048, 2048, 64, 64),
        wrt=ATTENTION_WRT,
    ),
]

MERGED_AND_PACKED = [
    Operation(
        hw.merge_attention,
        merge_arguments,
        oracle.merge_attention,
        PLAIN
        | {
            "axis--1": lambda s, make: (
                {
                    name: np.moveaxis(x, 0, axis)
                    for (name, x), axis in zip(merge_arguments(s, make).items(), (-2, -1), strict=True)
                }
                | {"axis": -1}
            )
        },
        computed=False,
        out=False,
        wrt=("outputs", "lses"),
    ),
    Operation(
        hw.varlen_attention,
        varlen_arguments,
        expected_varlen,
        attention_variants(varlen=True),
        short=("", "all"),
        draws={name: option.draw for name, option in OPTIONS.items() if option.varlen},
        in_place=False,
        small=Sizes((1, 4), 2, 9, 9, 8, 6),
        parallel={"": Sizes((1, 4), 2, 300, 300, 16, 16)},
        large=Sizes((1, 4), 4, 4096, 4096, 64, 64),
        lead=(1, 1),
        wrt=tuple(name for name in ATTENTION_WRT if name != "bias"),
    ),
]
