"""Layers made from configurations equal the attention modules of transformers, with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import headwise as hw
from layers.models import CASES, SPAN, WIDTH, ModelCase, Reference, float64_for_float32
from layers.state_dicts import assert_same_bits
from support import dtype_named, normal

DOCUMENT = Path(__file__).parents[2] / "docs" / "architectures.md"
cases = pytest.mark.parametrize("name", CASES)


@pytest.fixture
def torch_in_float64() -> Iterator[None]:
    pytest.importorskip("torch", reason="transformers computes with PyTorch, which is not installed")
    pytest.importorskip("transformers", reason="the comparison needs the package transformers")
    with float64_for_float32():
        yield


def loaded(case: ModelCase, reference: Reference, **overrides: Any) -> Any:
    kind = hw.CausalAttention if case.decoder else hw.MultiHeadAttention
    layer = kind.from_config(reference.config, case.layer, **overrides)
    layer.load_state_dict(reference.state)
    return layer


@cases
@pytest.mark.usefixtures("torch_in_float64")
def test_whole_chunks_tokens_and_left_padding(name: str) -> None:
    case = CASES[name]
    reference = Reference(case)
    layer = loaded(case, reference)
    assert isinstance(layer, hw.CausalAttention) == case.causal
    x = normal((2, 11, WIDTH), dtype=np.float64)
    expected = reference(x)
    scale = np.abs(expected).max()
    whole, _ = layer(x)
    np.testing.assert_allclose(whole, expected, rtol=0, atol=case.tolerance * scale)

    if case.causal:
        for sizes in ([1] * 11, [6, 5]):
            cache = layer.make_cache(2, 11, dtype=np.float64)
            parts = np.split(x, np.cumsum(sizes)[:-1], axis=1)
            chunks = [layer(part, cache=cache, need_weights=False)[0] for part in parts]
            np.testing.assert_allclose(np.concatenate(chunks, axis=1), whole, rtol=0, atol=case.tolerance * scale)

    keep = np.ones((2, 11), bool)
    keep[1, :4] = False
    positions = np.maximum(np.cumsum(keep, axis=1) - 1, 0)
    padded, _ = layer(x, key_padding_mask=keep, **({"positions": positions} if layer.rope is not None else {}))
    np.testing.assert_allclose(padded[keep], reference(x, keep)[keep], rtol=0, atol=case.tolerance * scale)


@pytest.mark.single_implementation
@cases
@pytest.mark.usefixtures("torch_in_float64")
def test_state_dicts_both_ways(name: str) -> None:
    """Bit for bit, in float32 and bfloat16, by the names alone and with the format told."""
    case = CASES[name]
    reference = Reference(case)
    layer = loaded(case, reference)
    for dtype in map(dtype_named, ("float32", "bfloat16")):
        state = {key: array.astype(dtype) for key, array in reference.state.items()}
        for form in (None, case.form):
            layer.load_state_dict({f"x.{key}": array for key, array in state.items()}, "x.", form)
            assert_same_bits(layer.state_dict(case.form), {key: state[key] for key in layer.state_dict(case.form)})
            assert layer.state_dict(case.form).keys() == state.keys()


@pytest.mark.single_implementation
def test_the_documented_table_has_every_case() -> None:
    rows = [line.split("|")[1].strip() for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    assert rows[2:] == list(CASES)


class TestT5:
    """The first layer of a model holds the table of relative positions; the others are given its bias."""

    CONFIG: ClassVar[dict[str, Any]] = {
        "model_type": "t5",
        "d_model": WIDTH,
        "num_heads": 4,
        "d_kv": 8,
        "num_layers": 2,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
    }

    def module(self, decoder: bool, index: int = 0) -> tuple[Any, Any]:
        """The module of transformers, in float64, and the configuration."""
        torch = pytest.importorskip("torch", reason="transformers computes with PyTorch, which is not installed")
        transformers = pytest.importorskip("transformers", reason="the comparison needs the package transformers")
        from transformers.models.t5.modeling_t5 import T5Attention

        given = {key: value for key, value in self.CONFIG.items() if key != "model_type"}
        config = transformers.T5Config(**given, is_decoder=decoder)
        config._attn_implementation = "eager"
        torch.manual_seed(0)
        return T5Attention(config, has_relative_attention_bias=index == 0, layer_idx=index).double().eval(), config

    @pytest.mark.parametrize("decoder", [False, True])
    def test_layers_equal_the_modules(self, decoder: bool) -> None:
        (first, config), (second, _) = self.module(decoder), self.module(decoder, 1)
        torch = pytest.importorskip("torch", reason="transformers computes with PyTorch")
        kind = hw.CausalAttention if decoder else hw.MultiHeadAttention
        layer, other = (kind.from_config(config, index) for index in (0, 1))
        layer.load_state_dict(first.state_dict())
        other.load_state_dict(second.state_dict())
        x = normal((2, 20, WIDTH), dtype=np.float64)
        with torch.no_grad():
            bias = first.compute_bias(20, 20)
            mask = torch.full((20, 20), -1e30, dtype=torch.float64).triu(1) if decoder else 0.0
            if decoder:
                bias = bias + mask
            expected, then = (m(torch.from_numpy(x), position_bias=bias)[0].numpy() for m in (first, second))
        tolerance = 1e-6 * np.abs(expected).max()  # the module's softmax is in float32
        np.testing.assert_allclose(layer(x)[0], expected, rtol=0, atol=tolerance)
        shared = hw.t5_relative_bias(layer.relative_table, 12, bidirectional=not decoder, max_distance=12)
        np.testing.assert_allclose(other(x, relative_bias=shared)[0], then, rtol=0, atol=tolerance)
        if decoder:
            cache = layer.make_cache(2, 20, dtype=np.float64)
            steps = [layer(x[:, i : i + 1], cache=cache, need_weights=False)[0] for i in range(20)]
            np.testing.assert_allclose(np.concatenate(steps, axis=1), layer(x)[0], rtol=0, atol=1e-12)

    @pytest.mark.single_implementation
    def test_state_dicts_both_ways(self) -> None:
        module, config = self.module(decoder=False)
        layer = hw.MultiHeadAttention.from_config(config)
        assert layer.relative_table.shape == (8, 4) and not layer.relative_table.any()
        for dtype in map(dtype_named, ("float32", "bfloat16")):
            state = {f"x.{key}": array.numpy().astype(dtype) for key, array in module.state_dict().items()}
            for form in (None, "t5"):
                layer.load_state_dict(state, "x.", form)
                assert_same_bits(layer.state_dict("t5", prefix="x."), state)
        assert_same_bits({"table": layer.state_dict()["relative_table"]}, {"table": layer.relative_table})
        with pytest.raises(
            ValueError, match="'llama' has no relative_table, as the layer has; 'headwise' and 't5' have"
        ):
            layer.state_dict("llama")

    @pytest.mark.single_implementation
    def test_missing_and_extra_tables(self) -> None:
        layer, second = (hw.MultiHeadAttention.from_config(self.CONFIG, index) for index in (0, 1))
        with pytest.raises(ValueError, match=r"relative_attention_bias.weight: missing, expected shape \(8, 4\)"):
            layer.load_state_dict(second.state_dict("t5"))
        with pytest.raises(ValueError, match=r"^bias: None, expected the bias of the model's relative positions"):
            second(np.zeros((1, 3, WIDTH)))
        given = hw.MultiHeadAttention.from_config(self.CONFIG, relative=np.zeros((4, 1, 3)))
        given.load_state_dict(layer.state_dict("t5"))  # whose table the caller has made into the bias
        assert given.relative_table is None


HUB: dict[str, dict[str, Any]] = {
    # Entries as in the config.json of the first releases, before version 5 of transformers.
    "llama-3.1": {
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2,
        "rope_theta": 500000.0, "max_position_embeddings": 131072, "num_hidden_layers": 32,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    },
    "gemma-3": {
        "model_type": "gemma3", "vision_config": {"model_type": "siglip_vision_model"},
        "text_config": {"model_type": "gemma3_text", "hidden_size": 64, "num_attention_heads": 4, "head_dim": 32,
                        "num_key_value_heads": 2, "sliding_window": 16, "sliding_window_pattern": 3,
                        "rope_local_base_freq": 1e4, "rope_theta": 1e6, "query_pre_attn_scalar": 64,
                        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "num_hidden_layers": 6},
    },
    "pythia": {"model_type": "gpt_neox", "hidden_size": 64, "num_attention_heads": 4, "rotary_pct": 0.25,
               "rotary_emb_base": 10000},
    "phi-3-128k": {"model_type": "phi3", "hidden_size": 32, "num_attention_heads": 4, "sliding_window": 5,
                   "original_max_position_embeddings": 4096, "max_position_embeddings": 131072,
                   "rope_scaling": {"type": "su", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}},
    "falcon-rw": {"model_type": "falcon", "hidden_size": 64, "n_head": 4, "n_layer": 2, "multi_query": False,
                  "alibi": True, "bias": True},
}  # fmt: skip


@pytest.mark.single_implementation
class TestPublishedConfigurations:
    def test_llama(self) -> None:
        layer = hw.MultiHeadAttention.from_config(HUB["llama-3.1"], 31, dtype=np.float32)
        assert layer.rope is not None and layer.rope.base == 500000.0 and layer.W_k.shape == (64, 16)
        assert layer.rope.scaling is not None and layer.rope.scaling["factor"] == 8.0
        assert layer.W_q.dtype == np.float32

    @pytest.mark.parametrize(("index", "base", "reach"), [(0, 1e4, 15), (1, 1e4, 15), (2, 1e6, None), (5, 1e6, None)])
    def test_gemma_3(self, index: int, base: float, reach: int | None) -> None:
        layer = hw.MultiHeadAttention.from_config(HUB["gemma-3"], index)
        assert layer.rope is not None and layer.rope.base == base
        np.testing.assert_allclose(layer.rope.inv_freq[0], 1.0 if reach else 1 / 8)
        assert layer._defaults.get("window_size") == (None if reach is None else (reach, 0))
        assert layer._defaults["scale"] == 1 / 8 and layer.qk_norm_offset and layer.d_k == 32

    def test_pythia_falcon_and_phi(self) -> None:
        pythia = hw.MultiHeadAttention.from_config(HUB["pythia"])
        assert pythia.rope is not None and pythia.rope.rotary_dim == 4 and pythia.b_o is not None
        falcon = hw.MultiHeadAttention.from_config(HUB["falcon-rw"], 1)
        assert falcon.rope is None and falcon.num_kv_heads == 4
        np.testing.assert_allclose(falcon._defaults["alibi_slopes"], hw.alibi_slopes(4) / 4)
        phi = hw.MultiHeadAttention.from_config(HUB["phi-3-128k"])
        assert phi.rope is not None and phi.rope.attention_factor == pytest.approx(1.1902380714238083)
        assert phi._defaults["window_size"] == (4, 0)

    def test_overrides(self) -> None:
        rope = hw.RotaryPositionalEmbedding(8)
        layer = hw.MultiHeadAttention.from_config(HUB["llama-3.1"], rope=rope, window_size=(SPAN, 0), rng=0)
        assert layer.rope is rope and layer._defaults["window_size"] == (SPAN, 0)

    @pytest.mark.parametrize(
        ("error", "message", "config"),
        [
            (ValueError, r"^config\['model_type'\]: 'mamba', expected one of llama, .*t5", {"model_type": "mamba"}),
            (ValueError, "^config: no 'model_type'", {}),
            (TypeError, r"^config\['model_type'\]: int", {"model_type": 3}),
            (TypeError, "^config: list, expected a mapping or an object with to_dict", []),
            (ValueError, "^config: no 'num_attention_heads', which model type 'opt' requires", {"model_type": "opt"}),
            (ValueError, r"^config\['hidden_size'\]: 0", {**HUB["pythia"], "hidden_size": 0}),
            (ValueError, r"^config\['use_qk_norm'\]: True", {
                **HUB["llama-3.1"], "model_type": "cohere", "use_qk_norm": True}),
            (ValueError, r"^config\['use_bidirectional_attention'\]", {
                **HUB["llama-3.1"], "model_type": "gemma", "use_bidirectional_attention": True}),
            (ValueError, r"^config\['no_bias'\]: array", {"model_type": "mpt", "no_bias": np.ones(2)}),
            (ValueError, r"^config\['clip_qkv'\]: 8.0, which attention layers have not", {
                "model_type": "mpt", "d_model": 64, "n_heads": 4, "attn_config": {"clip_qkv": 8.0}}),
            (ValueError, r"^config\['position_embedding_type'\]: 'relative_key'", {
                "model_type": "bert", "hidden_size": 64, "num_attention_heads": 4,
                "position_embedding_type": "relative_key"}),
            (ValueError, r"^config\['layer_types'\]\[0\]: 'chunked_attention'", {
                **HUB["llama-3.1"], "model_type": "qwen3", "layer_types": ["chunked_attention"]}),
            (ValueError, r"^config\['query_pre_attn_scalar'\]: 0.0, expected a number above 0", {
                **HUB["llama-3.1"], "model_type": "gemma2", "query_pre_attn_scalar": 0.0}),
            (ValueError, "^d_model: 8, expected a number divisible by num_heads = 16", {
                "model_type": "gpt2", "n_embd": 8, "n_head": 16}),
            (ValueError, r"^scaling\['rope_type'\]: 'axial'", {
                **HUB["llama-3.1"], "rope_scaling": {"rope_type": "axial"}}),
        ],
    )  # fmt: skip
    def test_errors(self, error: type[Exception], message: str, config: Any) -> None:
        with pytest.raises(error, match=message):
            hw.MultiHeadAttention.from_config(config)

    def test_bad_layers_and_kinds(self) -> None:
        with pytest.raises(ValueError, match=r"^layer_index: 32, expected at most 31"):
            hw.MultiHeadAttention.from_config(HUB["llama-3.1"], 32)
        with pytest.raises(TypeError, match=r"^layer_index: "):
            hw.MultiHeadAttention.from_config(HUB["llama-3.1"], 1.0)  # type: ignore[arg-type]
        with pytest.raises(
            ValueError, match=r"'vit' attends in both directions, expected MultiHeadAttention.from_config"
        ):
            hw.CausalAttention.from_config({"model_type": "vit", "hidden_size": 64, "num_attention_heads": 4})
        with pytest.raises(TypeError, match="width"):
            hw.MultiHeadAttention.from_config(HUB["llama-3.1"], width=3)
