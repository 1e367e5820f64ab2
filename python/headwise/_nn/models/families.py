"""Model types of Hugging Face configurations as arguments of attention layers.

Each function reads what its model type's attention depends on. What a configuration asks for and layers have not is an
error. Defaults are those of the configuration classes of transformers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.messages import shown
from headwise._nn.models.config import FULL, SLIDING, Config
from headwise._nn.multi_head import check_heads
from headwise._ops.alibi import alibi_slopes

if TYPE_CHECKING:
    from collections.abc import Callable

    from headwise._base.typing import Array

    Arguments = dict[str, Any]  # of MultiHeadAttention


class Model(NamedTuple):
    """The attention of one layer of a model."""

    causal: bool
    arguments: Arguments
    # Keywords that every call must give, because the layer does not hold what its model adds to the scores.
    required: tuple[str, ...] = ()


def describe(config: object, layer_index: object, decoder: bool) -> Model:
    """The attention of a layer. ``decoder`` chooses the decoder of a model that has an encoder too."""
    read = Config(config)
    if read.model_type not in _FAMILIES:
        raise ValueError(f"config['model_type']: {shown(read.model_type)}, expected one of {', '.join(_FAMILIES)}")
    model = _FAMILIES[read.model_type](read, read.layer(layer_index), decoder)
    if decoder and not model.causal:
        raise ValueError(
            f"config['model_type']: {read.model_type!r} attends in both directions, "
            "expected MultiHeadAttention.from_config"
        )
    return model


def _sizes(config: Config, head_dim: int | None = None) -> Arguments:
    """Sizes and dropout under the names that most configurations use; ``head_dim`` is the model type's default."""
    heads = config.size("num_attention_heads", "n_head", "n_heads", "num_heads")
    width = config.size("hidden_size", "n_embd", "d_model")
    head_dim = config.get("head_dim", default=head_dim)
    return {
        "d_model": width,
        "num_heads": heads,
        "num_kv_heads": config.size("num_key_value_heads", default=heads),
        "head_dim": config.size("head_dim", default=head_dim or 1) if head_dim else None,
        "dropout": config.real(
            "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "dropout_rate", default=0.0
        ),
    }


def _width(arguments: Arguments) -> int:
    """The width of a head."""
    head_dim: int | None = arguments["head_dim"]
    if head_dim is None:
        width, heads = check_heads(arguments["d_model"], arguments["num_heads"])
        return width // heads
    return head_dim


def _causal(arguments: Arguments, **more: Any) -> Model:
    return Model(True, arguments | more)


def _window(config: Config, kind: str, default: int | None) -> tuple[int, int] | None:
    """The window of a causal layer: the key of the query itself and ``sliding_window - 1`` before."""
    if kind == FULL:
        return None
    absent = default if not config.has("sliding_window") else None
    width = config.get("sliding_window", default=absent)
    return None if width is None else (config.size("sliding_window", default=width) - 1, 0)


# --- decoders with rotation ---


def _llama(config: Config, _index: int, _decoder: bool) -> Model:
    sizes = _sizes(config)
    return _causal(sizes, bias=config.flag("attention_bias", False), rope=config.rope(_width(sizes)))


def _mistral(config: Config, index: int, _decoder: bool) -> Model:
    kind, sizes = config.kind(index, lambda _: True), _sizes(config)
    absent = 4096 if config.model_type == "mistral" else None
    theta = 1e4 if config.model_type == "mistral" else 1e6
    return _causal(sizes, rope=config.rope(_width(sizes), kind, theta=theta), window_size=_window(config, kind, absent))


def _qwen(config: Config, index: int, _decoder: bool) -> Model:
    first = config.size("max_window_layers", default=28)
    sliding = config.flag("use_sliding_window", False)
    kind = config.kind(index, lambda i: sliding and i >= first)
    sizes = _sizes(config, head_dim=128 if config.model_type == "qwen3" else None)
    window = _window(config, kind, 4096) if sliding else None
    more: Arguments = {"bias": "qkv"}
    if config.model_type == "qwen3":
        more = {"bias": config.flag("attention_bias", False), **_head_norms(config)}
    return _causal(sizes, rope=config.rope(_width(sizes), kind), window_size=window, **more)


def _head_norms(config: Config) -> Arguments:
    return {"qk_norm": "head", "qk_norm_eps": config.real("rms_norm_eps", default=1e-6)}


def _gemma(config: Config, index: int, _decoder: bool) -> Model:
    """Gemma 1, 2 and 3."""
    config.refuse("use_bidirectional_attention")
    sizes = _sizes(config, head_dim=256)
    more: Arguments = {"bias": config.flag("attention_bias", False)}
    if config.model_type == "gemma":
        return _causal(sizes, rope=config.rope(_width(sizes)), **more)
    third = config.model_type != "gemma2"
    every = config.size("sliding_window_pattern", default=6) if third else 2
    kind = config.kind(index, lambda i: bool((i + 1) % every))
    more["scale"] = config.positive("query_pre_attn_scalar", default=256.0) ** -0.5
    more["window_size"] = _window(config, kind, 4096)
    if third:
        theta = 1e6 if kind == FULL else 1e4
        rope = config.rope(_width(sizes), kind, theta=theta)
        return _causal(sizes, rope=rope, qk_norm_offset=True, **_head_norms(config), **more)
    softcap = config.get("attn_logit_softcapping", default=None if config.has("attn_logit_softcapping") else 50.0)
    return _causal(sizes, rope=config.rope(_width(sizes), kind), softcap=softcap, **more)


def _olmo2(config: Config, _index: int, _decoder: bool) -> Model:
    sizes = _sizes(config)
    return _causal(
        sizes,
        bias=config.flag("attention_bias", False),
        rope=config.rope(_width(sizes)),
        qk_norm="full",
        qk_norm_eps=config.real("rms_norm_eps", default=1e-5),
    )


def _cohere(config: Config, _index: int, _decoder: bool) -> Model:
    config.refuse("use_qk_norm")  # a norm that subtracts the mean, with a factor for each head
    sizes = _sizes(config)
    rope = config.rope(_width(sizes), theta=5e5, interleaved=True)
    return _causal(sizes, bias=config.flag("attention_bias", False), rope=rope)


def _phi3(config: Config, index: int, _decoder: bool) -> Model:
    kind, sizes = config.kind(index, lambda _: True), _sizes(config)
    return _causal(sizes, rope=config.rope(_width(sizes), kind), window_size=_window(config, kind, None))


def _gpt_oss(config: Config, index: int, _decoder: bool) -> Model:
    kind = config.kind(index, lambda i: bool((i + 1) % 2))
    sizes = _sizes(config, head_dim=64)
    return _causal(
        sizes,
        bias=config.flag("attention_bias", True),
        sinks=True,
        rope=config.rope(_width(sizes), kind, theta=150000.0),
        window_size=_window(config, kind, 128),
    )


def _gpt_neox(config: Config, _index: int, _decoder: bool) -> Model:
    sizes = _sizes(config)
    return _causal(
        sizes, bias=config.flag("attention_bias", True), rope=config.rope(_width(sizes), theta=1e4, fraction=0.25)
    )


def _gptj(config: Config, _index: int, _decoder: bool) -> Model:
    sizes = _sizes(config)
    width = _width(sizes)
    rotary_dim = config.size("rotary_dim", default=width)
    return _causal(sizes, rope=config.rope(width, rotary_dim=rotary_dim, interleaved=True))


# --- decoders with learned positions or ALiBi ---


def _gpt2(config: Config, index: int, _decoder: bool) -> Model:
    sizes = _sizes(config)
    scale = _width(sizes) ** -0.5 if config.flag("scale_attn_weights", True) else 1.0
    if config.flag("scale_attn_by_inverse_layer_idx", False):
        scale /= index + 1
    return _causal(sizes, bias=True, scale=scale)


def _bloom(config: Config, _index: int, _decoder: bool) -> Model:
    return _causal(_sizes(config), bias=True, alibi=True)


def _falcon(config: Config, _index: int, _decoder: bool) -> Model:
    """With ALiBi, scores are scaled after the bias is added, so the slopes are scaled, too."""
    sizes = _sizes(config)
    heads, width = sizes["num_heads"], _width(sizes)
    if config.flag("new_decoder_architecture", False):
        sizes["num_kv_heads"] = config.size("num_kv_heads", "n_head_kv", default=heads)
    elif config.flag("multi_query", True):
        sizes["num_kv_heads"] = 1
    bias = config.flag("bias", False)
    if config.flag("alibi", False):
        return _causal(sizes, bias=bias, alibi=alibi_slopes(heads) / math.sqrt(width))
    return _causal(sizes, bias=bias, rope=config.rope(width))


def _mpt(config: Config, _index: int, _decoder: bool) -> Model:
    config.refuse("no_bias", True)
    if config.get("no_bias", default=True) is False:
        raise ValueError("config['no_bias']: False, which transformers reads as True, expected True")
    inner = Config({"model_type": "mpt", **config.get("attn_config", default={})})
    for name in ("clip_qkv", "prefix_lm", "qk_ln", "qk_gn", "rope", "attn_uses_sequence_id"):
        inner.refuse(name)
    inner.refuse("attn_type", "multihead_attention")
    sizes = _sizes(config) | {"dropout": inner.real("attn_pdrop", default=0.0)}
    more: Arguments = {"scale": inner.get("softmax_scale")}
    if inner.flag("alibi", True):
        more["alibi"] = _mpt_slopes(int(sizes["num_heads"]), inner.real("alibi_bias_max", default=8.0))
    return _causal(sizes, **more)


def _mpt_slopes(heads: int, largest: float) -> Array:
    """``2 ** (-m i / n)`` for ``i = 1 … n``, with the next power of two as ``n``: odd ``i`` come after even ones unless
    ``n`` is the number of heads (the reference code of MPT)."""
    power = 1 << (heads - 1).bit_length()
    slopes: Array = np.exp2(-largest / power * np.arange(1, power + 1))
    return slopes if power == heads else np.concatenate([slopes[1::2], slopes[::2]])[:heads]


def _opt(config: Config, _index: int, _decoder: bool) -> Model:
    return _causal(_sizes(config), bias=config.flag("enable_bias", True))


# --- encoders, and models with an encoder and a decoder ---


def _bert(config: Config, _index: int, _decoder: bool) -> Model:
    config.refuse("position_embedding_type", "absolute")
    return Model(config.flag("is_decoder", False), _sizes(config) | {"bias": True})


def _modernbert(config: Config, index: int, _decoder: bool) -> Model:
    every = config.size("global_attn_every_n_layers", default=3)
    kind, sizes = config.kind(index, lambda i: bool(i % every)), _sizes(config)
    reach = config.size("local_attention", default=128) // 2
    more: Arguments = {
        "bias": config.flag("attention_bias", False),
        "rope": config.rope(_width(sizes), kind, theta=160000.0 if kind == FULL else 1e4),
        "window_size": (reach, reach) if kind == SLIDING else None,
    }
    return Model(False, sizes | more)


def _encoder(config: Config, _index: int, _decoder: bool) -> Model:
    """Vision models, and the text model of SigLIP."""
    bias = True if config.flag("qkv_bias", True) else "o"
    return Model(False, _sizes(config) | {"bias": bias})


def _clip_text(config: Config, _index: int, _decoder: bool) -> Model:
    return _causal(_sizes(config), bias=True)


def _whisper(config: Config, _index: int, decoder: bool) -> Model:
    side = "decoder_attention_heads" if decoder else "encoder_attention_heads"
    sizes = {"d_model": config.size("d_model"), "num_heads": config.size(side)}
    dropout = config.real("attention_dropout", default=0.0)
    return Model(decoder, {**sizes, "bias": "qvo", "dropout": dropout})


def _t5(config: Config, index: int, decoder: bool) -> Model:
    """The first layer of T5 holds the table of relative positions for all."""
    sizes = _sizes(config) | {"head_dim": config.size("d_kv", default=64), "scale": 1.0}
    if index == 0:
        sizes["relative"] = {
            "num_buckets": config.size("relative_attention_num_buckets", default=32),
            "max_distance": config.size("relative_attention_max_distance", default=128),
            "bidirectional": not decoder,
        }
    return Model(decoder, sizes, required=("bias",))


_FAMILIES: dict[str, Callable[[Config, int, bool], Model]] = {
    "llama": _llama,
    "mistral": _mistral,
    "ministral3": _mistral,
    "qwen2": _qwen,
    "qwen3": _qwen,
    "gemma": _gemma,
    "gemma2": _gemma,
    "gemma3": _gemma,
    "gemma3_text": _gemma,
    "olmo2": _olmo2,
    "cohere": _cohere,
    "phi3": _phi3,
    "gpt_oss": _gpt_oss,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gptj": _gptj,
    "bloom": _bloom,
    "falcon": _falcon,
    "mpt": _mpt,
    "opt": _opt,
    "bert": _bert,
    "roberta": _bert,
    "modernbert": _modernbert,
    "clip_text_model": _clip_text,
    "clip_vision_model": _encoder,
    "siglip_text_model": _encoder,
    "siglip_vision_model": _encoder,
    "vit": _encoder,
    "whisper": _whisper,
    "t5": _t5,
}
