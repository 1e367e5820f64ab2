"""State dicts of attention layers: PyTorch's and transformers' own, round trips, and what is said of those that do not
fit."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headwise as hw
from headwise._nn.state_dict import FORMATS, read_state_dict, write_state_dict
from support import dtype_named, normal

pytestmark = pytest.mark.single_implementation

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]

D_MODEL, HEADS = 16, 4


def layer_shapes(
    d_model: int = D_MODEL,
    heads: int = HEADS,
    kv_heads: int | None = None,
    kdim: int | None = None,
    vdim: int | None = None,
    *,
    bias: bool = False,
    sinks: bool = False,
) -> Shapes:
    """The shapes of the parameters of a layer with these arguments."""
    inner = d_model // heads * (kv_heads or heads)
    shapes = {
        "W_q": (d_model, d_model),
        "W_k": (kdim or d_model, inner),
        "W_v": (vdim or d_model, inner),
        "W_o": (d_model, d_model),
    }
    if bias:
        shapes |= {"b_q": (d_model,), "b_k": (inner,), "b_v": (inner,), "b_o": (d_model,)}
    return shapes | ({"sinks": (heads,)} if sinks else {})


def draw(shapes: Shapes, dtype: str = "float32") -> Arrays:
    return {name: normal(shape, seed).astype(dtype_named(dtype)) for seed, (name, shape) in enumerate(shapes.items())}


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


def assert_same_bits(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        got = actual[name]
        assert type(got) is np.ndarray
        assert (got.dtype, got.shape) == (array.dtype, array.shape), name
        assert got.flags.c_contiguous and got.flags.writeable and got.flags.owndata, name
        assert got.tobytes() == array.tobytes(), name


def message(state: Any, shapes: Shapes, **keywords: Any) -> str:
    """The message of the ValueError."""
    with pytest.raises(ValueError, match=r"^state: ") as refusal:
        read_state_dict(state, shapes, **keywords)
    return str(refusal.value)


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


class Lazy(Mapping[str, Any]):
    """A state dict that fails if entries without the prefix are read."""

    def __init__(self, entries: Mapping[str, Any], prefix: str) -> None:
        self.entries, self.prefix = entries, prefix

    def __getitem__(self, name: str) -> Any:
        assert name.startswith(self.prefix), f"{name} was read"
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


@st.composite
def layers(draw_: st.DrawFn) -> tuple[Shapes, list[str]]:
    """A layer, and the formats that can express all its parameters."""
    heads = draw_(st.integers(1, 6))
    kv_heads = draw_(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    width = st.integers(1, 24)
    bias, sinks, kdim, vdim = draw_(st.booleans()), draw_(st.booleans()), draw_(width | st.none()), draw_(width)
    vdim = vdim if draw_(st.booleans()) else None
    shapes = layer_shapes(heads * draw_(st.integers(1, 5)), heads, kv_heads, kdim, vdim, bias=bias, sinks=sinks)
    return shapes, ["headwise", "llama"] if sinks or kv_heads != heads else list(FORMATS)


class TestRoundTrips:
    @given(layers(), st.data(), st.sampled_from(["float16", "float32", "float64"]), st.text("ab.é ", max_size=6))
    def test_any_layer_round_trips(self, layer: tuple[Shapes, list[str]], data: Any, dtype: str, prefix: str) -> None:
        shapes, forms = layer
        parameters = draw(shapes, dtype)
        for form in FORMATS:
            if form not in forms:
                with pytest.raises(ValueError, match=f"^format: '{form}' has no (grouped|sinks)"):
                    write_state_dict(parameters, format=form, prefix=prefix)
                continue
            state = write_state_dict(parameters, format=form, prefix=prefix)
            assert all(name.startswith(prefix) for name in state)
            others = {f"not {prefix}{name}": None for name in state if prefix}
            order = data.draw(st.permutations([*state, *others]))
            read = read_state_dict(
                Lazy({name: (state | others)[name] for name in order}, prefix), shapes, prefix=prefix
            )
            assert_same_bits(read, parameters)
            assert_same_bits(write_state_dict(read, format=form, prefix=prefix), state)
            assert list(read) == list(shapes)

    @given(layers(), st.data())
    def test_a_missing_or_misshapen_entry_is_named(self, layer: tuple[Shapes, list[str]], data: Any) -> None:
        shapes, forms = layer
        state = write_state_dict(draw(shapes), format=data.draw(st.sampled_from(forms)), prefix="layer.")
        gone, grown = (data.draw(st.sampled_from([*state])) for _ in range(2))
        shape = state[grown].shape
        state[grown] = np.ones((shape[0] + 1, *shape[1:]), np.float32)
        expected = {f"  {grown}: shape {state[grown].shape}, expected {shape}"}
        if gone != grown:
            expected.add(f"  {gone}: missing, expected shape {state[gone].shape}")
            del state[gone]
        said = message(state, shapes, prefix="layer.", strict=data.draw(st.booleans()))
        assert set(said.splitlines()[1:]) == expected

    @pytest.mark.parametrize("form", FORMATS)
    def test_entries_are_copies(self, form: str) -> None:
        parameters = draw(layer_shapes(bias=True))
        state = write_state_dict(parameters, format=form)
        read = read_state_dict(state, layer_shapes(bias=True))
        arrays = [*parameters.values(), *state.values(), *read.values()]
        for index, one in enumerate(arrays):
            assert not any(np.shares_memory(one, other) for other in arrays[:index])

    @pytest.mark.parametrize("form", FORMATS)
    def test_wide_weights_are_transposed(self, form: str) -> None:
        """Larger than a block of the transposition."""
        shapes = layer_shapes(300, 3, bias=True)
        parameters = draw(shapes, "float64")
        state = write_state_dict(parameters, format=form)
        assert_same_bits(read_state_dict(state, shapes), parameters)
        key = state[
            {"headwise": "W_k", "torch": "in_proj_weight", "llama": "k_proj.weight"}.get(form, "self.key.weight")
        ]
        key = key[300:600] if form == "torch" else key
        np.testing.assert_array_equal(key, parameters["W_k"] if form == "headwise" else parameters["W_k"].T)

    def test_bfloat16_round_trips(self) -> None:
        parameters = draw(layer_shapes(bias=True), "bfloat16")
        for form in FORMATS:
            assert_same_bits(
                read_state_dict(write_state_dict(parameters, format=form), layer_shapes(bias=True)), parameters
            )

    def test_mixed_dtypes_are_promoted(self) -> None:
        """Parameters that share an entry get their promoted dtype."""
        parameters = draw(layer_shapes())
        parameters["W_k"] = parameters["W_k"].astype(np.float64)
        parameters["W_o"] = parameters["W_o"].astype(np.float16)
        dtypes = {name: array.dtype.name for name, array in write_state_dict(parameters, format="torch").items()}
        assert dtypes == {"in_proj_weight": "float64", "out_proj.weight": "float16"}
        assert_same_bits(read_state_dict(write_state_dict(parameters, format="llama"), layer_shapes()), parameters)

    def test_safetensors(self) -> None:
        safetensors = pytest.importorskip("safetensors.numpy", reason="the file format needs the package safetensors")
        shapes = layer_shapes(kv_heads=2, bias=True)
        parameters = draw(shapes, "float16")
        saved = safetensors.save(write_state_dict(parameters, format="llama", prefix="model.layers.3.self_attn."))
        assert_same_bits(
            read_state_dict(safetensors.load(saved), shapes, prefix="model.layers.3.self_attn."), parameters
        )

    @pytest.mark.parametrize("form", FORMATS)
    def test_any_array_like_is_accepted(self, form: str) -> None:
        """Lists, read-only and byte-swapped arrays, strides, DLPack."""

        class Exported:
            def __init__(self, array: np.ndarray) -> None:
                self.array = array

            def __dlpack__(self, **keywords: Any) -> Any:
                return self.array.__dlpack__(**keywords)

            def __dlpack_device__(self) -> Any:
                return self.array.__dlpack_device__()

        shapes = layer_shapes(bias=True)
        parameters = draw(shapes, "float64")
        state = write_state_dict(parameters, format=form)
        for held in (
            {name: array.tolist() for name, array in state.items()},
            {name: np.asfortranarray(array.astype(">f8")) for name, array in state.items()},
            {name: array[::-1].copy()[::-1] for name, array in state.items()},
            {name: Exported(array) for name, array in state.items()},
        ):
            assert_same_bits(read_state_dict(held, shapes), parameters)

    def test_separate_weights_of_equal_width(self) -> None:
        """Three separate weights load where PyTorch would write a joint one."""
        parameters = draw(layer_shapes())
        state = {f"{letter}_proj_weight": parameters[f"W_{letter}"].T for letter in "qkv"}
        assert_same_bits(read_state_dict(state | {"out_proj.weight": parameters["W_o"].T}, layer_shapes()), parameters)


class TestRefusals:
    def test_one_error_lists_every_problem(self) -> None:
        state = {
            "x.in_proj_weight": np.ones((48, 20), np.int8),
            "x.in_proj_bias": np.ones(48, np.complex64),
            "x.out_proj.bias": None,
            "x.bias_k": np.ones((1, 1, 16)),
            "x.q_proj_weight": np.ones((16, 16)),
            "x.norm.weight": np.ones(16),
            "x.norm._extra_state": object(),
            "y.whatever": None,
        }
        assert message(state, layer_shapes(bias=True), prefix="x.").splitlines() == [
            "state: in the format 'torch', does not fit the layer:",
            "  x.in_proj_weight: shape (48, 20), expected (48, 16)",
            "  x.in_proj_weight: dtype int8, expected float16, bfloat16, float32 or float64",
            "  x.in_proj_bias: dtype complex64, expected float16, bfloat16, float32 or float64",
            "  x.out_proj.weight: missing, expected shape (16, 16)",
            "  x.out_proj.bias: None, expected an array",
            "  x.bias_k: extra (shape (1, 1, 16)); keys and values of add_bias_kv=True are not supported",
            "  x.q_proj_weight: extra (shape (16, 16)); the layer's query, key and value are 16, 16, 16 wide",
            "  x.norm.weight: extra (shape (16,)); strict=False ignores it",
            "  x.norm._extra_state: extra; strict=False ignores it",
        ]
        said = message(state, layer_shapes(bias=True), prefix="x.", strict=False)
        assert "missing" in said and "shape" in said and "norm" not in said

    @pytest.mark.parametrize("form", FORMATS)
    @pytest.mark.parametrize("strict", [True, False])
    def test_biases_for_a_layer_without_biases(self, form: str, strict: bool) -> None:
        """Zero or not, and also with strict=False, which ignores entries of other layers."""
        parameters = draw(layer_shapes(bias=True))
        parameters |= {name: np.zeros_like(array) for name, array in parameters.items() if name.startswith("b_")}
        state = write_state_dict(parameters, format=form)
        said = message(state, layer_shapes(), strict=strict).splitlines()[1:]
        biases = [name for name, array in state.items() if array.ndim == 1]
        assert len(biases) == (2 if form == "torch" else 4)
        assert said == [
            f"  {name}: extra (shape {state[name].shape}); the layer has no such bias (bias=True)" for name in biases
        ]

    @pytest.mark.parametrize("form", FORMATS)
    def test_extra_entries_without_strict(self, form: str) -> None:
        parameters = draw(layer_shapes())
        state = write_state_dict(parameters, format=form, prefix="x.") | {"x.more": None, "x.": None}
        assert_same_bits(read_state_dict(state, layer_shapes(), prefix="x.", strict=False), parameters)
        assert message(state, layer_shapes(), prefix="x.").count("extra") == 2

    def test_joint_weight_for_inputs_of_different_widths(self) -> None:
        state = write_state_dict(draw(layer_shapes()), format="torch")
        assert message(state, layer_shapes(kdim=20)).splitlines()[1:] == [
            "  q_proj_weight: missing, expected shape (16, 16)",
            "  k_proj_weight: missing, expected shape (16, 20)",
            "  v_proj_weight: missing, expected shape (16, 16)",
            "  in_proj_weight: extra (shape (48, 16)); the layer's query, key and value are 16, 20, 16 wide",
        ]

    def test_separate_weights_for_inputs_of_equal_width(self) -> None:
        state = write_state_dict(draw(layer_shapes(kdim=20)), format="torch")
        assert message(state, layer_shapes()).splitlines()[1:] == ["  k_proj_weight: shape (16, 20), expected (16, 16)"]

    @pytest.mark.parametrize("form", ["torch", "bert"])
    @pytest.mark.parametrize("keywords", [{"kv_heads": 2}, {"sinks": True}], ids=["grouped", "sinks"])
    def test_options_that_a_format_cannot_express(self, form: str, keywords: dict[str, Any]) -> None:
        why = "has no grouped key and value heads" if "kv_heads" in keywords else "has no sinks"
        parameters = draw(layer_shapes(**keywords))
        with pytest.raises(ValueError, match=f"^format: '{form}' {why}"):
            write_state_dict(parameters, format=form)
        state = write_state_dict(draw(layer_shapes()), format=form)
        assert f"the format '{form}' {why}" in message(state, layer_shapes(**keywords))

    def test_torch_needs_all_biases_and_full_widths(self) -> None:
        parameters = draw(layer_shapes(bias=True))
        del parameters["b_o"]
        with pytest.raises(ValueError, match=r"^format: 'torch' has all biases or none.*b_q, b_k, b_v$"):
            write_state_dict(parameters, format="torch")
        parameters = draw({"W_q": (16, 24), "W_k": (16, 24), "W_v": (16, 24), "W_o": (24, 16)})
        with pytest.raises(ValueError, match=r"^format: 'torch' has heads .*W_q \(16, 24\)$"):
            write_state_dict(parameters, format="torch")
        for form in ("headwise", "llama", "bert"):
            shapes = {name: array.shape for name, array in parameters.items()}
            assert_same_bits(read_state_dict(write_state_dict(parameters, format=form), shapes), parameters)

    def test_unrecognised_entries(self) -> None:
        said = message({"a.q.weight": None, "b.q.weight": None}, layer_shapes(), prefix="a.")
        assert said.startswith("state: no names of a known format under the prefix 'a.', only a.q.weight; expected ")
        for form, name in zip(FORMATS, ("W_q", "in_proj_weight", "q_proj.weight", "self.query.weight"), strict=True):
            assert re.search(rf"{form!r} \([^)]*{re.escape(name)}", said)
        assert "a known format, no names at all; expected" in message({}, layer_shapes())
        assert "only sinks; expected" in message({"sinks": np.ones(4)}, layer_shapes(sinks=True))
        many = {f"x{index}": None for index in range(300)}
        assert message(many, layer_shapes()).count("x1") < 10
        assert "(300 in all)" in message(many, layer_shapes())

    @pytest.mark.parametrize("form", FORMATS)
    def test_the_error_suggests_the_prefix(self, form: str) -> None:
        state = write_state_dict(draw(layer_shapes()), format=form, prefix="a.b.")
        for prefix in ("", "a.", "a.b", "b.", "A.b."):
            assert "known names have the prefix 'a.b.'; expected" in message(state, layer_shapes(), prefix=prefix)

    def test_entries_of_two_formats(self) -> None:
        parameters = draw(layer_shapes())
        state = write_state_dict(parameters) | write_state_dict(parameters, format="llama")
        said = message(state, layer_shapes())
        assert said == (
            "state: names of the formats 'headwise' (W_q, W_k, W_v, W_o) and "
            "'llama' (q_proj.weight, k_proj.weight, v_proj.weight, o_proj.weight), expected names of one format"
        )
        bert = write_state_dict(parameters, format="bert")
        both = bert | write_state_dict(parameters, format="bert", prefix="attention.")
        assert "names of the formats 'bert' (self.query.weight" in message(both, layer_shapes())

    @pytest.mark.parametrize("dtype", ["int64", "bool", "complex64", "longdouble", "object", "S3"])
    def test_unsupported_dtypes(self, dtype: str) -> None:
        state = {name: np.zeros(shape, dtype) for name, shape in layer_shapes().items()}
        assert message(state, layer_shapes()).count("dtype") == 4
        with pytest.raises(ValueError, match="\n  W_o: a masked array"):
            read_state_dict(draw(layer_shapes()) | {"W_o": np.ma.zeros((16, 16))}, layer_shapes())

    def test_bad_arguments(self) -> None:
        shapes = layer_shapes()
        for state in ([], None, "W_q", {1: 2}):
            with pytest.raises(TypeError, match=r"^state: "):
                read_state_dict(state, shapes)  # type: ignore[arg-type]
        for prefix in (None, 3, b""):
            with pytest.raises(TypeError, match=r"^prefix: "):
                read_state_dict({}, shapes, prefix=prefix)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match=r"^prefix: "):
                write_state_dict(draw(shapes), prefix=prefix)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^strict: "):
            read_state_dict(draw(shapes), shapes, strict="yes")  # type: ignore[arg-type]
        for form in ("pytorch", None, ["torch"]):
            with pytest.raises(ValueError, match=r"^format: .*, expected 'headwise', 'torch', 'llama' or 'bert'$"):
                write_state_dict(draw(shapes), format=form)  # type: ignore[arg-type]
