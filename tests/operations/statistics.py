"""Statistics of the weights of attention."""

from __future__ import annotations

from typing import Any

import numpy as np

import headwise as hw
import oracle
from calls import Arguments, Array, Make, Operation, Sizes, Variant
from operations.attention import ATTENTION_PARALLEL, ATTENTION_SMALL, attention_arguments, with_dense_mask
from operations.options import OPTIONS
from operations.variants import all_options, attention_variants, keywords


def query_and_key(s: Sizes, make: Make) -> Arguments:
    arguments = attention_arguments(s, make)
    return {name: arguments[name] for name in ("query", "key")}


def statistics_variants() -> dict[str, Variant]:
    """Those of the scores, and the keywords of the statistics."""

    def of_scores(s: Sizes, make: Make) -> Arguments:
        options = all_options(varlen=False)(s, make)
        return {name: value for name, value in options.items() if name not in others}

    others = {"return_lse", "dropout_rate", "rng", "relative_values"}
    variants = {name: variant for name, variant in attention_variants().items() if name not in others}
    return variants | {
        "all": of_scores,
        "average_heads": keywords(average_heads=True),
        "blocks": lambda s, make: {"k": min(3, s.keys), "block_size": 4},
    }


def attention_statistics(query: Any, key: Any, **options: Any) -> tuple[Array, ...]:
    """All statistics as one tuple, without the indices of top_k, which are not continuous."""
    names = ("key_mass", "entropy", "max_weight", "top_k", "block_mass", "lse")
    found = hw.attention_statistics(query, key, which=names, **options)
    assert found.top_k is not None
    return tuple(part for part in found._replace(top_k=found.top_k.weights) if part is not None)


def expected_attention_statistics(
    query: Array,
    key: Array,
    k: int = 8,
    block_size: int = 16,
    average_heads: bool = False,
    precision: Any = None,
    **options: Any,
) -> tuple[Array, ...]:
    """The default size of blocks is that of short sequences."""
    answer = oracle.attention(query, key, key, **with_dense_mask(options))
    weights = answer.weights.mean(axis=-3) if average_heads and answer.weights.ndim > 3 else answer.weights
    starts = [np.arange(0, length, block_size) for length in weights.shape[-2:]]
    blocks = np.add.reduceat(np.add.reduceat(weights, starts[1], axis=-1), starts[0], axis=-2)
    terms = weights * np.log(np.where(weights == 0, 1, weights))
    largest = -np.sort(-weights, axis=-1)[..., :k]
    return weights.sum(axis=-2), -terms.sum(axis=-1), weights.max(axis=-1), largest, blocks, answer.lse


STATISTICS = [
    Operation(
        attention_statistics,
        query_and_key,
        expected_attention_statistics,
        statistics_variants(),
        short=("", "block_mask", "all"),
        draws={
            "average_heads": lambda st, array, s: st.booleans(),
            "block_size": lambda st, array, s: st.integers(1, 9),
            **{name: OPTIONS[name].draw for name in ("mask", "bias", "is_causal", "window_size", "sinks")},
        },
        out=False,
        small=ATTENTION_SMALL,
        parallel={"": ATTENTION_PARALLEL[""]},
        large=Sizes((1, 4), 4, 2048, 2048, 64, 64),
    ),
]
