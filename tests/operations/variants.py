"""Sets of further arguments of a call."""

from __future__ import annotations

from typing import Any

import headwise as hw
from calls import Arguments, Make, Sizes, Variant
from operations.options import OPTIONS

PLAIN: dict[str, Variant] = {"": lambda s, make: {}}


def keywords(**values: Any) -> Variant:
    return lambda s, make: dict(values)


def option_variant(name: str) -> Variant:
    return lambda s, make: {**OPTIONS[name].needs, name: OPTIONS[name].value(s, make)}


def all_options(varlen: bool) -> Variant:
    """All at once, but dropout: it hides errors, and the oracle has none; and ``score_mod``, which has no kernel."""
    left_out = {"dropout_rate", "rng", "score_mod"}
    names = [name for name, option in OPTIONS.items() if name not in left_out and (option.varlen or not varlen)]
    return lambda s, make: {name: OPTIONS[name].value(s, make) for name in names}


def block_mask(s: Sizes, make: Make) -> Arguments:
    """Blocks of all three kinds, for all batch entries and heads."""
    lengths = s.queries, s.keys
    mask = hw.BlockMask.window((s.keys // 3, 2), *lengths, block_size=8)
    token = min(1, max(lengths) - 1)
    return {"mask": mask | hw.BlockMask.global_tokens([token], *lengths, block_size=8)}


def attention_variants(varlen: bool = False) -> dict[str, Variant]:
    single = {name: option_variant(name) for name, option in OPTIONS.items() if option.varlen or not varlen}
    blocks = {} if varlen else {"block_mask": block_mask}
    return PLAIN | single | blocks | {"all": all_options(varlen)}
