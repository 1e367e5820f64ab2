"""Keywords of other libraries: the TypeError names headwise's keyword. Signatures stay those that exist."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import headwise as hw

X = np.ones((1, 3, 8), np.float32)
LAYER = hw.MultiHeadAttention(8, 2, rng=0, dtype=np.float32)
FUNCTIONS: dict[str, Any] = {
    "sdpa": lambda **keywords: hw.scaled_dot_product_attention(X, X, X, **keywords),
    "flash": lambda **keywords: hw.flash_attention(X, X, X, **keywords),
    "varlen": lambda **keywords: hw.varlen_attention(X, X, X, [0, 1], **keywords),
    "self": lambda **keywords: hw.self_attention(X, 8, **keywords),
    "cross": lambda **keywords: hw.cross_attention(X, X, 8, **keywords),
    "multi-head": lambda **keywords: hw.multi_head_attention(X, X, X, 2, 8, **keywords),
    "multi-head-self": lambda **keywords: hw.multi_head_self_attention(X, 2, 8, **keywords),
    "layer": lambda **keywords: LAYER(X, **keywords),
    "constructor": lambda **keywords: hw.MultiHeadAttention(8, 2, **keywords),
    "cache": lambda **keywords: LAYER.make_cache(1, 4).attend(X[:, None, :, :4].repeat(2, 1), **keywords),
}
EVERYWHERE = set(FUNCTIONS) - {"constructor"}
MASKED = EVERYWHERE - {"varlen"}
WITH_WEIGHTS = EVERYWHERE - {"varlen", "flash"}

#: The name elsewhere, the words that the error has, and the functions that have headwise's keyword.
NAMES: list[tuple[str, str, set[str]]] = [
    ("attn_mask", "mask=.*keep", MASKED),
    ("attn_mask", "MultiheadAttention True ignores", {"layer", "multi-head"}),
    ("attention_mask", "mask=.*keep", MASKED),
    ("src_key_padding_mask", "key_padding_mask=.*True ignores", MASKED - {"cache"}),
    ("key_mask", "key_padding_mask=.*keep", MASKED - {"cache"}),
    ("dropout_p", "dropout=", {"sdpa", "self", "cross"}),
    ("dropout_p", "dropout_rate=", {"flash", "multi-head"}),
    ("dropout_p", "training=", {"layer"}),
    ("training", "dropout(_rate)?=.*not 0", {"sdpa", "flash", "self", "cross", "multi-head"}),
    ("is_training", "dropout", {"sdpa", "flash"}),
    ("is_training", "training=", {"layer"}),
    ("enable_gqa", "fewer heads", EVERYWHERE),
    ("causal", "is_causal=", EVERYWHERE - {"cache"}),
    ("use_causal_mask", "is_causal=", EVERYWHERE - {"cache"}),
    ("scale_factor", "scale=", set(FUNCTIONS)),
    ("sm_scale", "scale=", set(FUNCTIONS)),
    ("softmax_scale", "scale=", set(FUNCTIONS)),
    ("window", "window_size=", set(FUNCTIONS)),
    ("sliding_window", "window_size=", set(FUNCTIONS)),
    ("local_window_size", "window_size=", set(FUNCTIONS)),
    ("logits_soft_cap", "softcap=", set(FUNCTIONS)),
    ("return_attention_scores", "need_weights=", WITH_WEIGHTS),
    ("output_attentions", "need_weights=", WITH_WEIGHTS),
    ("need_weights", "scaled_dot_product_attention", {"flash", "varlen"}),
    ("average_attn_weights", "weights.mean", EVERYWHERE),
    ("key_value_seq_lengths", "key_lengths=", MASKED - {"cache"}),
    ("key_lengths", "lengths=", {"cache"}),
    ("key_padding_mask", "lengths=", {"cache"}),
    ("key_padding_mask", "without padding", {"varlen"}),
    ("key_lengths", "cumulative lengths", {"varlen"}),
    ("mask", r"flash_attention takes BlockMask.documents\(ids\) & ", {"varlen"}),
    ("block_mask", r"flash_attention takes BlockMask.documents\(ids\) & ", {"varlen"}),
    ("block_mask", r"mask= \(a BlockMask\)", MASKED),
    ("past_key_values", "cache=", {"layer"}),
    ("position_ids", "positions=", {"layer"}),
    ("batch_first", "batch, seq, width", {"constructor"}),
    ("num_key_value_heads", "num_kv_heads=", {"constructor"}),
    ("softcapp", "softcap=", set(FUNCTIONS)),
    ("anything_else", "expected one of .*scale", set(FUNCTIONS)),
]


@pytest.mark.parametrize(("name", "words", "where"), NAMES, ids=[f"{name}-{n}" for n, (name, _, _) in enumerate(NAMES)])
def test_the_error_names_our_keyword(name: str, words: str, where: set[str]) -> None:
    for function in sorted(where):
        with pytest.raises(TypeError, match=rf"^{name}: not a keyword here.*{words}"):
            FUNCTIONS[function](**{name: True})


@pytest.mark.parametrize(
    "function",
    [
        hw.scaled_dot_product_attention,
        hw.flash_attention,
        hw.varlen_attention,
        hw.MultiHeadAttention,
        hw.CausalAttention,
        hw.LinearAttention,
    ],
    ids=lambda function: function.__name__,
)
def test_signatures_show_the_keywords_that_exist(function: Any) -> None:
    parameters = inspect.signature(function).parameters.values()
    assert "unknown" not in [parameter.name for parameter in parameters]
    assert all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters)
