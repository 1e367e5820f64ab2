"""Small configurations of the model types that ``from_config`` knows, and their attention modules in transformers."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np

WIDTH, HEADS, LAYERS = 24, 4, 4
GROUPED = {"num_key_value_heads": 2}
SIZES: dict[str, Any] = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS}
TEXT: dict[str, Any] = {
    "vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "intermediate_size": 48,
}  # fmt: skip
GPT: dict[str, Any] = {"n_embd": WIDTH, "n_head": HEADS, "n_layer": LAYERS}
SPAN = 3  # of windows
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 1e4}
SCALED = {**YARN, "llama_4_scaling_beta": 0.5, "max_position_embeddings": 32}


@dataclass(frozen=True)
class ModelCase:
    """A configuration, its attention module and the format of its state dict."""

    package: str  # transformers.models.<package>
    config: str
    attention: str
    form: str
    given: dict[str, Any] = field(default_factory=dict)
    layer: int = 0
    make: Callable[[Any, Any, int], Any] | None = None  # the module, if not attention(config, layer)
    rotary: str = ""
    decoder: bool = False  # the decoder of a model with an encoder
    causal: bool = True
    window: str = ""  # the function of transformers.masking_utils that makes the mask
    tolerance: float = 1e-12  # more where the module computes angles or scales in float32


def _decoder(name: str, form: str = "llama", *, sizes: dict[str, Any] | None = None, **more: Any) -> ModelCase:
    stem = more.pop("stem", None) or "".join(part.capitalize() for part in name.split("_"))
    package = more.pop("package", name)
    case = {key: more.pop(key) for key in ("layer", "make", "window", "causal", "decoder", "tolerance") if key in more}
    config = more.pop("config", f"{stem}Config")
    rotary = more.pop("rotary", f"{stem}RotaryEmbedding")
    given = {**(SIZES | TEXT if sizes is None else sizes), **more}
    return ModelCase(package, config, f"{stem}Attention", form, given, rotary=rotary, **case)


SLIDING = "create_sliding_window_causal_mask"
CASES: dict[str, ModelCase] = {
    "llama": _decoder("llama", **GROUPED),
    "llama-bias": _decoder("llama", attention_bias=True, head_dim=10, rope_parameters=YARN),
    "mistral": _decoder("mistral", **GROUPED, head_dim=8, sliding_window=SPAN, window=SLIDING),
    "ministral3": _decoder(
        "ministral3", **GROUPED, head_dim=8, sliding_window=None, rope_parameters=SCALED, max_position_embeddings=32,
        tolerance=1e-7,
    ),
    "qwen2": _decoder("qwen2", **GROUPED),
    "qwen2-sliding": _decoder(
        "qwen2", **GROUPED, use_sliding_window=True, sliding_window=SPAN, max_window_layers=2, layer=3, window=SLIDING
    ),
    "qwen3": _decoder("qwen3", **GROUPED, head_dim=8),
    "gemma": _decoder("gemma", **GROUPED, head_dim=8),
    "gemma2-sliding": _decoder(
        "gemma2", **GROUPED, head_dim=8, sliding_window=SPAN, query_pre_attn_scalar=10, attn_logit_softcapping=2.0,
        window=SLIDING,
    ),
    "gemma2": _decoder("gemma2", **GROUPED, head_dim=8, attn_logit_softcapping=2.0, layer=1),
    "gemma3-sliding": _decoder(
        "gemma3", **GROUPED, config="Gemma3TextConfig", head_dim=8, sliding_window=SPAN, layer=1, window=SLIDING
    ),
    "gemma3": _decoder(
        "gemma3", **GROUPED, config="Gemma3TextConfig", head_dim=8, query_pre_attn_scalar=12, layer=3,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
    ),
    "olmo2": _decoder("olmo2", **GROUPED),
    "cohere": _decoder("cohere", **GROUPED),
    "phi3": _decoder("phi3", "phi3", **GROUPED, sliding_window=SPAN, window=SLIDING),
    "phi3-partial": _decoder(
        "phi3", "phi3", partial_rotary_factor=0.5, max_position_embeddings=64, original_max_position_embeddings=16,
        rope_parameters={"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0], "rope_theta": 1e4},
        sizes={**SIZES, **TEXT, "num_attention_heads": 6},
    ),
    "gpt-oss": _decoder("gpt_oss", **GROUPED, head_dim=8, sliding_window=SPAN, window=SLIDING),
    "gpt-oss-full": _decoder("gpt_oss", **GROUPED, head_dim=8, layer=1),
    "gpt2": _decoder("gpt2", "gpt2", stem="GPT2", sizes=GPT, rotary="", scale_attn_by_inverse_layer_idx=True, layer=2),
    "gpt-neox": _decoder("gpt_neox", "neox", stem="GPTNeoX", rope_parameters={"rope_theta": 1e3, "rope_type": "default",
                         "partial_rotary_factor": 0.67}),
    "gptj": _decoder("gptj", "out_proj", stem="GPTJ", sizes=GPT, rotary_dim=4, tolerance=1e-7),
    "bloom": _decoder("bloom", "bloom", rotary="", sizes={"hidden_size": WIDTH, "n_head": HEADS, "n_layer": LAYERS}),
    "falcon-7b": _decoder("falcon", "falcon", multi_query=True),
    "falcon-40b": _decoder("falcon", "falcon", new_decoder_architecture=True, num_kv_heads=2),
    "falcon-rw": _decoder("falcon", "falcon", multi_query=False, alibi=True, bias=True, rotary=""),
    "mpt": _decoder(
        "mpt", "mpt", rotary="", sizes={"d_model": WIDTH, "n_heads": 6, "n_layers": LAYERS},
        attn_config={"softmax_scale": 0.3},
    ),
    "opt": _decoder("opt", "out_proj", stem="OPT", rotary="", sizes={**SIZES, "ffn_dim": 48}),
    "bert": _decoder("bert", "bert", rotary="", causal=False, make=lambda kind, config, _: kind(config)),
    "modernbert": _decoder(
        "modernbert", "modernbert", stem="ModernBert", causal=False, local_attention=2 * SPAN, layer=1,
        window="create_bidirectional_sliding_window_mask",
        sizes={**SIZES, **TEXT, "sep_token_id": 0, "cls_token_id": 0},
    ),
    "modernbert-full": _decoder(
        "modernbert", "modernbert", stem="ModernBert", causal=False, attention_bias=True,
        sizes={**SIZES, **TEXT, "sep_token_id": 0, "cls_token_id": 0},
    ),
    "clip-text": _decoder(
        "clip", "out_proj", stem="CLIP", rotary="", config="CLIPTextConfig", make=lambda kind, config, _: kind(config)
    ),
    "clip-vision": _decoder(
        "clip", "out_proj", stem="CLIP", rotary="", config="CLIPVisionConfig", causal=False, sizes=SIZES,
        make=lambda kind, config, _: kind(config),
    ),
    "siglip-vision": _decoder(
        "siglip", "out_proj", rotary="", config="SiglipVisionConfig", causal=False, sizes=SIZES,
        make=lambda kind, config, _: kind(config),
    ),
    "vit": _decoder(
        "vit", "llama", stem="ViT", rotary="", causal=False, sizes=SIZES, qkv_bias=False,
        make=lambda kind, config, _: kind(config),
    ),
    "whisper-encoder": _decoder(
        "whisper", "out_proj", rotary="", causal=False, make=lambda kind, config, _: kind(WIDTH, 3, config=config),
        sizes={"d_model": WIDTH, "encoder_attention_heads": 3, "decoder_attention_heads": 4},
    ),
    "whisper-decoder": _decoder(
        "whisper", "out_proj", rotary="", decoder=True,
        make=lambda kind, config, index: kind(WIDTH, 4, is_decoder=True, layer_idx=index, config=config),
        sizes={"d_model": WIDTH, "encoder_attention_heads": 3, "decoder_attention_heads": 4},
    ),
}  # fmt: skip


class Reference:
    """The attention module of a case, with random weights, in float64."""

    def __init__(self, case: ModelCase) -> None:
        import torch
        import transformers

        self.case, self.torch = case, torch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own deprecations
            self.package = importlib.import_module(f"transformers.models.{case.package}.modeling_{case.package}")
        self.config = getattr(transformers, case.config)(**case.given)
        self.config._attn_implementation = "eager"
        kind = getattr(self.package, case.attention)
        make = case.make or (lambda kind, config, index: kind(config, layer_idx=index))
        torch.manual_seed(0)
        self.module = make(kind, self.config, case.layer).double().eval()
        with torch.no_grad():
            for parameter in self.module.parameters():
                parameter.copy_(parameter.normal_(std=0.4).float())  # numbers of a float32 checkpoint

    @property
    def state(self) -> dict[str, np.ndarray]:
        names = self.module.state_dict()
        return {name: tensor.numpy() for name, tensor in names.items() if "LayerNorm" not in name}

    def __call__(self, x: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
        """The results for rows ``x``; ``keep`` is false for padding, which precedes a sequence."""
        torch, case = self.torch, self.case
        rows = torch.from_numpy(x)
        batch, seq, _ = x.shape
        kept = np.ones((batch, seq), bool) if keep is None else keep
        positions = torch.from_numpy(np.maximum(np.cumsum(kept, axis=1) - 1, 0))
        keywords: dict[str, Any] = {"attention_mask": self._mask(rows, kept, positions)}
        if case.rotary:
            keywords["position_embeddings"] = self.rotation(rows, positions)
        if case.package == "ministral3":
            keywords["position_ids"] = positions
        with torch.no_grad():
            return self._call(rows, kept, keywords)

    def _mask(self, rows: Any, kept: np.ndarray, positions: Any) -> Any:
        from transformers import masking_utils

        name = self.case.window or ("create_causal_mask" if self.case.causal else "create_bidirectional_mask")
        skip = "allow_is_causal_skip" if "causal" in name else "allow_is_bidirectional_skip"
        keywords = {"position_ids": positions} if "causal" in name else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(masking_utils, name)(
                config=self.config, inputs_embeds=rows, attention_mask=self.torch.from_numpy(kept), cache=None,
                **{skip: False}, **keywords,
            )  # fmt: skip

    def rotation(self, rows: Any, positions: Any) -> Any:
        rotary = getattr(self.package, self.case.rotary)(self.config)
        kinds = getattr(self.config, "layer_types", None)
        if self.case.package in ("gemma3", "modernbert"):
            return rotary(rows, positions, layer_type=kinds[self.case.layer])
        return rotary(rows, positions)

    def _call(self, rows: Any, kept: np.ndarray, keywords: dict[str, Any]) -> np.ndarray:
        torch, module = self.torch, self.module
        if self.case.package in ("bloom", "falcon"):
            alibi = None
            if not self.case.rotary:
                build = getattr(self.package, "build_alibi_tensor", None) or self.package.BloomModel.build_alibi_tensor
                mask = torch.from_numpy(kept.astype(np.int64))
                alibi = build(*([None] if "self" in build.__code__.co_varnames else []), mask, HEADS, torch.float64)
            if self.case.package == "bloom":
                return module(rows, torch.zeros_like(rows), alibi, **keywords)[0].numpy()
            return module(rows, alibi, **keywords)[0].numpy()
        if self.case.package == "mpt":
            bias = self.package.build_mpt_alibi_tensor(6, rows.shape[1])
            keywords["attention_mask"] = keywords["attention_mask"] < -1.0
            return module(rows, bias, **keywords)[0].numpy()
        if self.case.package == "bert":
            mixed = module.self(rows, **keywords)[0]
            return module.output.dense(mixed).numpy()
        return module(rows, **keywords)[0].numpy()


@contextmanager
def float64_for_float32() -> Iterator[None]:
    """PyTorch with float64 where transformers asks for float32."""
    import torch

    with (
        patch.multiple(torch, float=torch.float64, float32=torch.float64),
        patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        yield
