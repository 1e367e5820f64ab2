"""The decoder of the examples on small files of other models, with random weights, against ``transformers``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import dtype_named

sys.path.append(str(Path(__file__).parents[2] / "examples"))
gguf = pytest.importorskip("gguf", reason="the decoder needs the package gguf: pip install 'headwise[examples]'")
pytest.importorskip("tokenizers", reason="the decoder needs the package tokenizers: pip install 'headwise[examples]'")

from generate import Decoder  # noqa: E402 (after the packages that it needs)
from gguf_model import ModelFile, make_tokenizer  # noqa: E402

pytestmark = pytest.mark.single_implementation

VOCABULARY = 259  # 256 bytes, a pair and two control tokens
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
CONFIG = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama, untied": ("Llama", {"tie_word_embeddings": False, "head_dim": 16}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),  # biases, pairs i and i + head_dim / 2
    "qwen3": ("Qwen3", {"head_dim": 16}),  # norms of queries and keys
}


def make_model(name: str) -> Any:
    """A model of ``transformers`` with random weights, gains and biases too."""
    torch = pytest.importorskip("torch", reason="the comparison needs PyTorch, package torch")
    transformers = pytest.importorskip("transformers", reason="the comparison needs the package transformers")
    kind, options = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, f"{kind}Config")(**CONFIG | options)
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.normal_(1.0, 0.3)
    return model


def write(path: Path, name: str, model: Any) -> None:
    config, architecture = model.config, MODELS[name][0].lower()
    writer = gguf.GGUFWriter(str(path), architecture)
    numbers = {
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim if hasattr(config, "head_dim") else 12,
    }  # fmt: skip
    for key, number in numbers.items():
        writer.add_uint32(f"{architecture}.{key}", number)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{architecture}.rope.freq_base", config.rope_parameters["rope_theta"])
    tokens = [*byte_alphabet(), "ab", "<begin>", "<end>"]
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", [1] * 257 + [3] * 2)
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    writer.add_uint32("tokenizer.ggml.eos_token_id", 258)
    for key, tensor in model.state_dict().items():
        weight = tensor.numpy()
        if key == "lm_head.weight":
            if not config.tie_word_embeddings:
                writer.add_tensor("output.weight", weight)
            continue
        own = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(key)
        if own is None:
            _, _, layer, rest = key.split(".", 3)
            stem, end = rest.rsplit(".", 1)
            own = f"blk.{layer}.{NAMES[stem]}.{end}"
            if architecture == "llama" and NAMES[stem] in ("attn_q", "attn_k"):  # interleaved pairs
                heads = numbers["attention.head_count" + "_kv" * (NAMES[stem] == "attn_k")]
                weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(own, np.ascontiguousarray(weight))
    if config.rope_parameters["rope_type"] == "llama3":
        head_dim = numbers["attention.key_length"]
        plain = 500.0 ** (-np.arange(0, head_dim, 2) / head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_alphabet() -> list[str]:
    """The characters that stand for the bytes in GPT-2's tokens, in the order of the bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(256 + others.index(byte)) for byte in range(256)]


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers(name: str, weights: str, tmp_path: Path) -> None:
    model = make_model(name)
    write(tmp_path / "model.gguf", name, model)
    decoder = Decoder(tmp_path / "model.gguf", dtype_named(weights))
    import torch

    if weights != "float32":  # the maps are rounded; embeddings, gains and biases are not
        rounded = getattr(torch, weights)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.data.clone())  # no longer tied
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = module.weight.data.to(rounded).to(torch.float32)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 40).tolist()
    with torch.inference_mode():
        expected = model.double()(torch.tensor([ids])).logits[0].numpy()
    cache = decoder.new_cache(40)
    logits = np.concatenate([decoder.forward(part, cache) for part in (ids[:30], ids[30:31], ids[31:])])
    assert logits.dtype == np.float32
    assert abs(logits - expected).max() <= 1e-5 * abs(expected).max()


def test_chat_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jinja2", reason="chat templates need the package jinja2")
    path = tmp_path / "model.gguf"
    write(path, "llama", make_model("llama"))
    file = ModelFile(path)
    assert file.chat("Hi") is None  # no template
    file.metadata["tokenizer.chat_template"] = (
        "{% for message in messages %}\n  {% if loop.first %}\n[{{ message.role }}] {% endif %}{{ message['content'] }}"
        "{% endfor %}{{ eos_token }}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert file.chat("Hi") == "[user] Hi<end>[assistant]"
    monkeypatch.setitem(sys.modules, "jinja2.sandbox", None)
    assert file.chat("Hi") is None


@pytest.mark.parametrize("key", ["general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre"])
def test_unknown_files_are_refused(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    write(path, "llama", make_model("llama"))
    file = ModelFile(path)
    file.metadata[key] = file.architecture = "mamba"
    monkeypatch.setattr("generate.ModelFile", lambda _: file)
    refused = Decoder if key == "general.architecture" else make_tokenizer
    with pytest.raises(ValueError, match=r"mamba.*expected"):
        refused(path if refused is Decoder else file.metadata)  # type: ignore[arg-type]


def test_sentence_piece() -> None:
    """The pair whose union has the highest score is merged first; characters without a token are bytes."""
    pieces = {"<unk>": 0, "<s>": 0} | {f"<0x{byte:02X}>": 0 for byte in range(256)}
    pieces |= {"▁": -9, "a": -9, "b": -9, "c": -9, "ab": -3, "bc": -2, "▁a": -4, "abc": -5}
    metadata = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": list(pieces), "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.scores": list(map(float, pieces.values())),
        "tokenizer.ggml.token_type": [2, 3, *[6] * 256, *[1] * 8],
    }  # fmt: skip
    tokenizer = make_tokenizer(metadata)
    assert tokenizer.encode("abc").tokens == ["▁a", "bc"]
    assert tokenizer.encode("ab é").tokens == ["▁", "ab", "▁", "<0xC3>", "<0xA9>"]
    for text in ("abc", " ab  c", "日本 a"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
