"""Tiny models of transformers with random weights: one entry per family, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

VOCABULARY = 61
_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
_GROUPED = _SMALL | {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": None}
_BART: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
_MOE: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}

#: Name of the configuration's class without "Config", and its keywords.
DECODERS: dict[str, dict[str, Any]] = {
    "Llama": _GROUPED,
    "Qwen2": _GROUPED,
    "Qwen3": _GROUPED,
    "Mistral": _GROUPED | {"sliding_window": 5},
    "Mixtral": _GROUPED | _MOE,
    "Gemma": _GROUPED,
    "Gemma2": _GROUPED | {"sliding_window": 5, "attn_logit_softcapping": 2.0},
    "Gemma3Text": _GROUPED | {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "GptOss": _GROUPED | _MOE | {"sliding_window": 5},
    "Olmo2": _GROUPED,
    "Phi3": _GROUPED,
    "Cohere2": _GROUPED | {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "StableLm": _GROUPED,
    "SmolLM3": _GROUPED,
    "GPT2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "eos_token_id": None},
    "GPTNeoX": _SMALL | {"eos_token_id": None},
    "OPT": _SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32, "eos_token_id": None},
    "GPTJ": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "eos_token_id": None},
    "Llama4Text": _GROUPED | _MOE | {"attention_chunk_size": 6, "intermediate_size_mlp": 48, "head_dim": 8},
    "DeepseekV3": _SMALL
    | {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 4,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "eos_token_id": None,
    },
}
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "layer_types": ["linear_attention", "full_attention"],
}
_DELTA_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_KIMI: dict[str, Any] = _SMALL | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "bos_token_id": 1,
    "eos_token_id": None,
}
#: Decoders whose first layer has linear attention, by the gated delta rule.
LINEAR: dict[str, dict[str, Any]] = {
    "Qwen3Next": _GROUPED | _DELTA | _DELTA_EXPERTS,
    "Qwen3_5Text": _GROUPED | _DELTA,
    "Qwen3_5MoeText": _GROUPED | _DELTA | _DELTA_EXPERTS,
    "OlmoHybrid": _GROUPED | _DELTA | {"linear_num_value_heads": 2},
    "LaraMini": _GROUPED | _DELTA,
    "KimiLinear": _KIMI,
    "BailingHybrid": _KIMI | {"head_dim": 8, "n_group": 2, "topk_group": 2, "first_k_dense_replace": 1},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": _SMALL,
    "Roberta": _SMALL,
    "DistilBert": {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "Electra": _SMALL,
    "Albert": _SMALL | {"embedding_size": 16},
    "ModernBert": _SMALL | {"local_attention": 6, "global_attn_every_n_layers": 2},
    "XLMRoberta": _SMALL,
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "Bart": _BART,
    "MBart": _BART,
    "Marian": _BART,
    "Pegasus": _BART,
    "T5": _T5,
    "MT5": _T5,
}


def make_model(name: str, keywords: dict[str, Any], auto: str, implementation: str = "eager") -> Any:
    """A model in evaluation mode of the class that `auto` ("AutoModel", …) chooses; the same weights at every call."""
    import torch
    import transformers

    torch.manual_seed(0)
    make: Callable[..., Any] = getattr(transformers, auto).from_config
    model = make(getattr(transformers, f"{name}Config")(**keywords), attn_implementation=implementation).eval()
    for parameter in model.parameters():  # larger than by default, so that scores differ; T5's are large enough
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        elif not name.endswith("T5"):
            parameter.data.mul_(3)
    return model
