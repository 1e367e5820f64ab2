"""Unexpected keywords: the error names the keyword of headwise that has the meaning.

Functions take ``**unknown`` and pass it to :func:`refuse`; :func:`hide_unknown` removes it from their signatures. A
call pays for one empty dict (20 ns); a wrapper that catches the error would cost 150 ns.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    F = TypeVar("F", bound=Callable[..., Any])

_KEEPS = "True and 1 keep a key"
_IGNORES = f"{_KEEPS}; in torch.nn.MultiheadAttention True ignores it: pass ~"

#: A name that another library has: headwise's names for it, of which a function has one at most, and an explanation.
_NAMES: dict[str, tuple[tuple[str, ...], str]] = {
    "attention_bias": (("bias",), ""),
    "attention_mask": (("mask", "key_padding_mask"), f"{_KEEPS}; (batch, key_len) is key_padding_mask"),
    "attn_bias": (("bias",), ""),
    "attn_mask": (("mask",), _KEEPS),
    "block_mask": (("mask",), "a BlockMask"),
    "causal": (("is_causal",), ""),
    "dropout_p": (("dropout", "dropout_rate", "training"), ""),
    "dropout_seed": (("rng",), ""),
    "embed_dim": (("d_model",), ""),
    "generator": (("rng",), ""),
    "is_training": (("training", "dropout", "dropout_rate"), ""),
    "key_lengths": (("lengths",), "of the cache's new rows"),
    "key_mask": (("key_padding_mask",), _KEEPS),
    "key_padding_mask": (("lengths",), "the number of rows that are no padding"),
    "key_value_seq_lengths": (("key_lengths",), ""),
    "kv_cache": (("cache",), ""),
    "local_window_size": (("window_size",), ""),
    "logit_soft_cap": (("softcap",), ""),
    "logits_soft_cap": (("softcap",), ""),
    "n_head": (("num_heads",), ""),
    "n_heads": (("num_heads",), ""),
    "nhead": (("num_heads",), ""),
    "nonpad_kv_seqlen": (("key_lengths",), ""),
    "num_attention_heads": (("num_heads",), ""),
    "num_key_value_heads": (("num_kv_heads",), ""),
    "output_attentions": (("need_weights",), ""),
    "padding_mask": (("key_padding_mask",), _KEEPS),
    "past_key_value": (("cache",), ""),
    "past_key_values": (("cache",), ""),
    "position_bias": (("bias",), ""),
    "position_ids": (("positions",), ""),
    "return_attention_scores": (("need_weights",), ""),
    "return_weights": (("need_weights",), ""),
    "scale_factor": (("scale",), ""),
    "seed": (("rng",), ""),
    "seqused_k": (("key_lengths",), ""),
    "sliding_window": (("window_size",), "(left, right); a number opens both sides"),
    "sm_scale": (("scale",), ""),
    "soft_cap": (("softcap",), ""),
    "softmax_scale": (("scale",), ""),
    "src_key_padding_mask": (("key_padding_mask",), _IGNORES),
    "src_mask": (("mask",), _IGNORES),
    "tgt_mask": (("mask",), _IGNORES),
    "training": (("dropout", "dropout_rate"), "which acts if it is not 0"),
    "use_causal_mask": (("is_causal",), ""),
    "window": (("window_size",), ""),
}

_OF_PACKED = "packed sequences have none; flash_attention takes BlockMask.documents(ids) & a BlockMask of the same rows"

#: Names without a keyword of headwise.
_WITHOUT = {
    "add_bias_kv": "there is none",
    "add_zero_attn": "there is none; sinks= are logits that join the softmax denominator",
    "average_attn_weights": "weights are those of each head: weights.mean(axis=-3) is their average",
    "block_mask": _OF_PACKED,
    "batch_first": "arrays are (batch, seq, width)",
    "cu_seqlens_k": "packed sequences are for varlen_attention",
    "cu_seqlens_q": "packed sequences are for varlen_attention",
    "device": "arrays are in main memory",
    "enable_gqa": "key and value may always have fewer heads than query",
    "implementation": "HEADWISE_BACKEND and set_target choose",
    "key_lengths": "the cumulative lengths tell",
    "key_padding_mask": "sequences without padding need none",
    "mask": _OF_PACKED,
    "max_seqlen_k": "the cumulative lengths tell",
    "max_seqlen_q": "the cumulative lengths tell",
    "need_weights": "scaled_dot_product_attention returns weights",
    "query_mask": "the results of padded queries are to be ignored",
    "query_seq_lengths": "the results of padded queries are to be ignored",
    "relative_values": "they join the values of softmax attention, and no weight depends on them",
}


def refuse(unknown: Iterable[str], known: Collection[str], *, layer: bool = False) -> NoReturn:
    """TypeError for the first of the keywords ``unknown`` to a function with the keywords ``known``."""
    name = next(iter(unknown))
    known = sorted(set(known))
    ours, note = _NAMES.get(name, ((), ""))
    if layer and name == "attn_mask":
        note = _IGNORES
    for candidate in ours:
        if candidate in known:
            raise TypeError(f"{name}: not a keyword here, expected {candidate}={f' ({note})' if note else ''}")
    if name in _WITHOUT:
        raise TypeError(f"{name}: not a keyword here; {_WITHOUT[name]}")
    import difflib  # noqa: PLC0415 (takes 1 ms to import)

    close = difflib.get_close_matches(name, known, 1)
    meant = f"{close[0]}=" if close else f"one of {', '.join(known)}"
    raise TypeError(f"{name}: not a keyword here, expected {meant}")


def hide_unknown(function: F) -> F:
    """``function`` without its parameter ``**unknown`` in the signature that :mod:`inspect` and ``help`` show."""
    signature = inspect.signature(function)
    shown = [parameter for name, parameter in signature.parameters.items() if name != "unknown"]
    function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return function
