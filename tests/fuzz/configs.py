"""Configurations of models, as published or with entries replaced, and the layers made from them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
from hypothesis import note
from hypothesis import strategies as st

import headwise as hw
from comparison import assert_same
from fuzz.twins import COUNTS, TARGETS, rows, run
from headwise._nn.models.families import _FAMILIES
from headwise._nn.state_dict import FORMATS
from implementations import choose
from strategies import ARBITRARY, ROPE_SCALINGS

SMALL, REAL = st.sampled_from([1, 2, 4, 8]), st.floats(0.1, 1e4)
WIDTH = st.sampled_from([8, 16, 24])
KINDS = st.lists(st.sampled_from(["full_attention", "sliding_attention"]), max_size=4)
#: Entries of the configurations of all model types, with values that each may have.
ENTRIES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "max_position_embeddings", "n_positions"], WIDTH),
    **dict.fromkeys(
        ["num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
         "num_key_value_heads", "num_kv_heads", "head_dim", "d_kv", "sliding_window", "local_attention", "rotary_dim",
         "num_hidden_layers", "n_layer", "max_window_layers", "global_attn_every_n_layers", "sliding_window_pattern",
         "relative_attention_num_buckets", "relative_attention_max_distance"],
        SMALL,
    ),
    **dict.fromkeys(
        ["attention_bias", "qkv_bias", "no_bias", "alibi", "multi_query", "new_decoder_architecture", "is_decoder",
         "use_sliding_window", "use_qk_norm", "use_bidirectional_attention", "scale_attn_by_inverse_layer_idx"],
        st.booleans(),
    ),
    **dict.fromkeys(
        ["rope_theta", "rotary_emb_base", "rope_local_base_freq", "query_pre_attn_scalar", "attn_logit_softcapping",
         "rms_norm_eps", "partial_rotary_factor", "rotary_pct", "clip_qkv", "attention_dropout"],
        REAL | st.floats(0, 1),
    ),
    **dict.fromkeys(["rope_scaling", "rope_parameters"], ROPE_SCALINGS),
    "layer_types": KINDS,
    "position_embedding_type": st.sampled_from(["absolute", "rope", "relative_key"]),
    "attn_config": st.dictionaries(st.sampled_from(["alibi", "attn_type", "qk_ln", "clip_qkv"]), st.booleans()),
}  # fmt: skip
REQUIRED = {name: ENTRIES[name] for name in ("hidden_size", "d_model", "n_embd", "num_attention_heads", "n_head")}
ARGUMENTS = {
    "config": st.fixed_dictionaries(
        {"model_type": st.sampled_from(sorted(_FAMILIES)) | st.text(max_size=3), **REQUIRED},
        optional={name: value for name, value in ENTRIES.items() if name not in REQUIRED},
    ),
    "spoilt": st.dictionaries(st.sampled_from(["model_type", *ENTRIES]), ARBITRARY, max_size=2),
    "index": st.integers(0, 3) | ARBITRARY,
    "causal": st.booleans(),
    "native": TARGETS,
}


def agree(config: dict[str, Any], spoilt: dict[str, Any], index: Any, causal: bool, native: str) -> None:
    """An error of a documented type, or a layer that computes, is pickled, and reads the state dicts that it writes."""
    COUNTS["examples"] += 1
    config = {**config, **spoilt}
    note(f"{config!r}")
    choose(native)
    kind = hw.CausalAttention if causal else hw.MultiHeadAttention
    layer = run(lambda: kind.from_config(config, index, rng=1))
    if isinstance(layer, Exception):
        return
    x = rows((1, 3, layer.d_model), 1)
    output = run(lambda: layer(x, need_weights=False)[0])
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_same(run(lambda other=other: other(x, need_weights=False)[0]), output)
    state = layer.state_dict()
    for form in FORMATS:
        written = run(lambda form=form: layer.state_dict(form))
        if not isinstance(written, Exception):
            layer.load_state_dict(written, format=form)
            for name, array in layer.state_dict().items():
                np.testing.assert_array_equal(array, state[name])
