"""The decoder of examples/generate.py as a model of ``transformers``, with the same weights."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecation warnings of the two packages
    import torch
    import transformers

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def make_model(decoder: Any) -> Any:
    """A LlamaForCausalLM in evaluation mode."""
    config = transformers.LlamaConfig(
        vocab_size=decoder.head.out_features,
        hidden_size=decoder.width,
        intermediate_size=decoder.hidden,
        num_hidden_layers=len(decoder.layers),
        num_attention_heads=decoder.num_heads,
        num_key_value_heads=decoder.num_kv_heads,
        head_dim=decoder.head_dim,
        max_position_embeddings=decoder.context,
        rms_norm_eps=decoder.eps,
        rope_parameters={"rope_type": "default", "rope_theta": decoder.file["rope.freq_base"]},
        tie_word_embeddings=True,
    )
    read = decoder.file.tensor
    state = {"model.embed_tokens.weight": read("token_embd.weight"), "model.norm.weight": read("output_norm.weight")}
    heads = {"attn_q": decoder.num_heads, "attn_k": decoder.num_kv_heads}
    for i in range(len(decoder.layers)):
        for name, renamed in _NAMES.items():
            weight = read(f"blk.{i}.{name}.weight")
            state[f"model.layers.{i}.{renamed}.weight"] = (
                _to_half_pairing(weight, heads[name]) if name in heads else weight
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.device("meta"):  # allocates and initialises no weights
            model = transformers.LlamaForCausalLM(config)
        missing = model.load_state_dict(
            {name: torch.from_numpy(a) for name, a in state.items()}, strict=False, assign=True
        )
        assert missing.missing_keys == ["lm_head.weight"], missing
        assert not missing.unexpected_keys, missing
        model.tie_weights()
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def _to_half_pairing(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows for RoPE pairs ``(2 k, 2 k + 1)``, reordered for the pairs ``(k, k + head_dim / 2)`` of ``transformers``."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
