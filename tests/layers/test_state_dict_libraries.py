"""State dicts of PyTorch and transformers: they load, with the results of their modules."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import headwise as hw
from headwise._nn.state_dict import read_state_dict, write_state_dict
from layers.state_dicts import D_MODEL, HEADS, Shapes, assert_same_bits, draw, layer_shapes, message
from support import dtype_named, normal

pytestmark = pytest.mark.single_implementation


def attend(
    parameters: Mapping[str, np.ndarray],
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    heads: int,
    *,
    rotate: Any = None,
    **keywords: Any,
) -> np.ndarray:
    """Multi-head attention of these parameters, in float64."""
    exact = {name: array.astype(np.float64) for name, array in parameters.items()}
    d_k = exact["W_q"].shape[1] // heads

    def project(x: np.ndarray, letter: str) -> np.ndarray:
        return hw.linear(x, exact[f"W_{letter}"], exact.get(f"b_{letter}"))

    q, k, v = (
        (projected := project(x, letter)).reshape(*projected.shape[:-1], -1, d_k).swapaxes(-3, -2)
        for x, letter in ((query, "q"), (key, "k"), (value, "v"))
    )
    if rotate is not None:
        q, k = rotate(q), rotate(k)
    output, _ = hw.scaled_dot_product_attention(q, k, v, sinks=exact.get("sinks"), **keywords)
    return project(output.swapaxes(-3, -2).reshape(*query.shape[:-1], -1), "o")


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch's own state dicts need the package torch")


@pytest.fixture(scope="module")
def transformers(torch: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecations
        package = pytest.importorskip("transformers", reason="its own state dicts need the package transformers")
        for name in ("bert", "gpt_oss", "llama", "qwen2"):
            importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        return package


def randomize(torch: Any, module: Any) -> Any:
    """Draws every parameter: PyTorch's biases are initially 0."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module.eval()


def as_numpy(tensor: Any) -> np.ndarray:
    """The bits of a tensor, without the conversion of bfloat16 that headwise uses."""
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.detach().float().numpy().astype(dtype_named("bfloat16"))
    return tensor.detach().numpy()


class TestTorch:
    """torch.nn.MultiheadAttention."""

    @pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
    @pytest.mark.parametrize(("kdim", "vdim"), [(None, None), (20, 12), (20, None), (None, 12), (20, 20)])
    @pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
    def test_torch_state_dict_loads(
        self, torch: Any, bias: bool, kdim: int | None, vdim: int | None, dtype: str
    ) -> None:
        module = torch.nn.MultiheadAttention(D_MODEL, HEADS, bias=bias, kdim=kdim, vdim=vdim, batch_first=True)
        module = randomize(torch, module).to(getattr(torch, dtype))
        state = module.state_dict()
        parameters = read_state_dict(state, layer_shapes(kdim=kdim, vdim=vdim, bias=bias))
        assert {array.dtype for array in parameters.values()} == {dtype_named(dtype)}
        assert_same_bits(
            write_state_dict(parameters, format="torch"), {name: as_numpy(state[name]) for name in sorted(state)}
        )
        assert list(write_state_dict(parameters, format="torch")) == list(state)

        inputs = normal((2, 5, D_MODEL)), normal((2, 7, kdim or D_MODEL), 1), normal((2, 7, vdim or D_MODEL), 2)
        inputs = tuple(x.astype(np.float64) for x in inputs)
        with torch.no_grad():
            expected, _ = module.double()(*(torch.from_numpy(x) for x in inputs))
        np.testing.assert_allclose(attend(parameters, *inputs, HEADS), expected.numpy(), atol=1e-12)

    @pytest.mark.parametrize("kdim", [None, 20])
    @pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
    def test_torch_loads_our_state_dict(self, torch: Any, bias: bool, kdim: int | None) -> None:
        parameters = draw(layer_shapes(kdim=kdim, bias=bias), "float64")
        module = torch.nn.MultiheadAttention(
            D_MODEL, HEADS, bias=bias, kdim=kdim, batch_first=True, dtype=torch.float64
        )
        state = write_state_dict(parameters, format="torch")
        module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=True)
        inputs = normal((5, D_MODEL), 1, np.float64), normal((7, kdim or D_MODEL), 2, np.float64), None
        inputs = (*inputs[:2], normal((7, D_MODEL), 3, np.float64))
        with torch.no_grad():
            expected, _ = module.eval()(*(torch.from_numpy(x) for x in inputs))
        np.testing.assert_allclose(attend(parameters, *inputs, HEADS), expected.numpy(), rtol=1e-12, atol=1e-12)

    def test_state_dict_of_a_whole_model(self, torch: Any) -> None:
        layers = torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(D_MODEL, HEADS, batch_first=True), 11, enable_nested_tensor=False
        )
        state = randomize(torch, layers).state_dict()
        shapes = layer_shapes(bias=True)
        for index in (1, 10):
            prefix = f"layers.{index}.self_attn."
            got = read_state_dict(state, shapes, prefix=prefix)
            assert_same_bits(got, read_state_dict(layers.layers[index].self_attn.state_dict(), shapes))
            assert_same_bits(
                write_state_dict(got, format="torch", prefix=prefix),
                {name: as_numpy(tensor) for name, tensor in state.items() if name.startswith(prefix)},
            )
        assert "the prefix 'layers.0.self_attn.', 'layers.1.self_attn.', " in message(state, shapes)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_parameters_that_require_gradients(self, torch: Any, dtype: str) -> None:
        module = torch.nn.MultiheadAttention(D_MODEL, HEADS, dtype=getattr(torch, dtype))
        named = dict(module.named_parameters())
        assert all(parameter.requires_grad for parameter in named.values())
        shapes = layer_shapes(bias=True)
        assert_same_bits(read_state_dict(named, shapes), read_state_dict(module.state_dict(), shapes))

    def test_bfloat16_keeps_every_bit(self, torch: Any) -> None:
        """Payloads of NaN, infinities and subnormal numbers, for any strides."""
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(256, 256)
        state = {f"{name}_proj.weight": every.T for name in "qkvo"}
        weight = read_state_dict(state, layer_shapes(256, 4))["W_k"]
        np.testing.assert_array_equal(weight.view(np.int16), np.arange(-(2**15), 2**15).reshape(256, 256))

    def test_bfloat16_without_ml_dtypes(self, torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        state = torch.nn.MultiheadAttention(D_MODEL, HEADS, dtype=torch.bfloat16).state_dict()
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
        said = message(state, layer_shapes(bias=True))
        assert said.count("dtype torch.bfloat16, which NumPy has from the package ml_dtypes only: pip install") == 4

    def test_learned_bias_k_and_bias_v_are_refused(self, torch: Any) -> None:
        state = torch.nn.MultiheadAttention(D_MODEL, HEADS, bias=False, add_bias_kv=True).state_dict()
        for strict in (True, False):
            assert message(state, layer_shapes(), strict=strict).splitlines()[1:] == [
                f"  bias_{letter}: extra (shape (1, 1, 16)); keys and values of add_bias_kv=True are not supported"
                for letter in "kv"
            ]

    def test_tensors_without_a_numpy_equivalent(self, torch: Any) -> None:
        state = torch.nn.MultiheadAttention(D_MODEL, HEADS, bias=False, device="meta").state_dict()
        assert "\n  in_proj_weight: Tensor cannot be read as an array: " in message(state, layer_shapes())


class TestTimm:
    """Attention of vision transformers as in timm: one map to query, key and value, all heads of each in turn."""

    @pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
    def test_fused_maps_load(self, torch: Any, bias: bool) -> None:
        qkv = randomize(torch, torch.nn.Linear(D_MODEL, 3 * D_MODEL, bias=bias).double())
        proj = randomize(torch, torch.nn.Linear(D_MODEL, D_MODEL, bias=True).double())
        module = torch.nn.ModuleDict({"qkv": qkv, "proj": proj})
        x = normal((2, 5, D_MODEL), dtype=np.float64)
        with torch.no_grad():
            q, k, v = qkv(torch.from_numpy(x)).reshape(2, 5, 3, HEADS, D_MODEL // HEADS).permute(2, 0, 3, 1, 4)
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            expected = proj(mixed.transpose(1, 2).reshape(2, 5, D_MODEL)).numpy()
        layer = hw.MultiHeadAttention(D_MODEL, HEADS, bias=True if bias else "o")
        layer.load_state_dict({f"blocks.0.attn.{key}": t for key, t in module.state_dict().items()}, "blocks.0.attn.")
        np.testing.assert_allclose(layer(x)[0], expected, atol=1e-12)
        assert_same_bits(layer.state_dict("timm"), {key: t.numpy() for key, t in module.state_dict().items()})


class TestTransformers:
    @pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
    @pytest.mark.parametrize("kv_heads", [1, 2, 4])
    @pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
    def test_llama_state_dict_loads(self, torch: Any, transformers: Any, bias: bool, kv_heads: int, dtype: str) -> None:
        llama = transformers.models.llama.modeling_llama
        config = self.config(transformers.LlamaConfig, num_key_value_heads=kv_heads, attention_bias=bias)
        module = randomize(torch, llama.LlamaAttention(config, 0)).to(getattr(torch, dtype))
        self.check_decoder(torch, module, "llama", layer_shapes(kv_heads=kv_heads, bias=bias))

    @pytest.mark.parametrize("kv_heads", [2, 4])
    def test_gpt_oss_sinks_load(self, torch: Any, transformers: Any, kv_heads: int) -> None:
        gpt_oss = transformers.models.gpt_oss.modeling_gpt_oss
        config = self.config(transformers.GptOssConfig, num_key_value_heads=kv_heads, head_dim=D_MODEL // HEADS)
        module = randomize(torch, gpt_oss.GptOssAttention(config, 0))
        self.check_decoder(torch, module, "llama", layer_shapes(kv_heads=kv_heads, bias=True, sinks=True))
        assert message(module.state_dict(), layer_shapes(kv_heads=kv_heads, bias=True)).endswith(
            "\n  sinks: extra (shape (4,)); the layer has none (sinks=True)"
        )

    def test_qwen2_biases_load(self, torch: Any, transformers: Any) -> None:
        """Qwen2 has no bias at the output."""
        qwen = transformers.models.qwen2.modeling_qwen2
        config = self.config(transformers.Qwen2Config, num_key_value_heads=2)
        module = randomize(torch, qwen.Qwen2Attention(config, 0))
        shapes = layer_shapes(kv_heads=2, bias=True)
        assert message(module.state_dict(), shapes).splitlines()[1:] == ["  o_proj.bias: missing, expected shape (16,)"]
        shapes.pop("b_o")
        self.check_decoder(torch, module, "llama", shapes)

    @pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
    def test_bert_state_dict_loads(self, torch: Any, transformers: Any, dtype: str) -> None:
        bert = transformers.models.bert.modeling_bert
        module = randomize(torch, bert.BertLayer(self.config(transformers.BertConfig))).to(getattr(torch, dtype))
        shapes = layer_shapes(bias=True)
        parameters = read_state_dict(module.attention.state_dict(), shapes, strict=False)
        state = {name: as_numpy(tensor) for name, tensor in module.attention.state_dict().items()}
        norm = {name: state.pop(name) for name in ("output.LayerNorm.weight", "output.LayerNorm.bias")}
        assert_same_bits(write_state_dict(parameters, format="bert"), state)
        said = message(module.attention.state_dict(), shapes).splitlines()[1:]
        assert said == [f"  {name}: extra (shape (16,)); strict=False ignores it" for name in norm]

        x = normal((2, 5, D_MODEL), 1, np.float64)
        with torch.no_grad():
            mixed, *_ = module.double().attention.self(torch.from_numpy(x))
            expected = module.attention.output.dense(mixed).numpy()
        np.testing.assert_allclose(attend(parameters, x, x, x, HEADS), expected, atol=1e-12)

    def test_bert_prefix_of_the_attention_block(self, torch: Any, transformers: Any) -> None:
        """``output.dense`` of the surrounding layer belongs to the feed-forward network."""
        bert = transformers.models.bert.modeling_bert
        module = randomize(torch, bert.BertModel(self.config(transformers.BertConfig, num_hidden_layers=2)))
        shapes = layer_shapes(bias=True)
        state = module.state_dict()
        expected = read_state_dict(module.encoder.layer[1].attention.state_dict(), shapes, strict=False)
        for prefix in ("encoder.layer.1.", "encoder.layer.1.attention."):
            assert_same_bits(read_state_dict(state, shapes, prefix=prefix, strict=False), expected)
        assert "\n  encoder.layer.1.output.dense.weight: extra" in message(state, shapes, prefix="encoder.layer.1.")
        missing = {name: tensor for name, tensor in state.items() if ".attention.output.dense" not in name}
        assert message(missing, shapes, prefix="encoder.layer.1.", strict=False).splitlines()[1:] == [
            "  encoder.layer.1.attention.output.dense.weight: missing, expected shape (16, 16)",
            "  encoder.layer.1.attention.output.dense.bias: missing, expected shape (16,)",
        ]

    @staticmethod
    def config(kind: Any, **keywords: Any) -> Any:
        config = kind(hidden_size=D_MODEL, num_attention_heads=HEADS, intermediate_size=32, vocab_size=40, **keywords)
        config._attn_implementation = "eager" if "GptOss" in kind.__name__ else "sdpa"  # Llama computes in float32
        return config

    @staticmethod
    def check_decoder(torch: Any, module: Any, form: str, shapes: Shapes) -> None:
        """A module with its own rotation and mask: the same results, and the same state dict."""
        state = module.state_dict()
        parameters = read_state_dict(state, shapes)
        assert_same_bits(write_state_dict(parameters, format=form), {name: as_numpy(state[name]) for name in state})

        x = normal((2, 6, D_MODEL), 1, np.float64)
        rope = hw.RotaryPositionalEmbedding(D_MODEL // HEADS)
        cos, sin = (torch.from_numpy(table[:6].copy())[None] for table in (rope.cos_cached, rope.sin_cached))
        if "sinks" not in shapes:  # GPT-OSS stores the angle of each pair once
            cos, sin = cos.repeat(1, 1, 2), sin.repeat(1, 1, 2)
        mask = torch.full((6, 6), -torch.inf, dtype=torch.float64).triu(1)[None, None]
        with torch.no_grad():
            expected, _ = module.double()(torch.from_numpy(x), position_embeddings=(cos, sin), attention_mask=mask)
        got = attend(parameters, x, x, x, HEADS, rotate=rope, is_causal=True)
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-12)
