"""State dicts of attention layers: round trips, and the errors of state dicts that do not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headwise as hw
from headwise._nn.state_dict import FORMATS, Stored, read_state_dict, write_state_dict
from layers.state_dicts import JOINT, Shapes, assert_same_bits, draw, layer_shapes, layers, message

pytestmark = pytest.mark.single_implementation


#: The entry of each format that holds the map to keys.
KEY_ENTRIES = {
    "headwise": "W_k",
    "torch": "in_proj_weight",
    "llama": "k_proj.weight",
    "bert": "self.key.weight",
    "out_proj": "k_proj.weight",
    "gpt2": "c_attn.weight",
    "neox": "query_key_value.weight",
    "bloom": "query_key_value.weight",
    "falcon": "query_key_value.weight",
    "t5": "k.weight",
    "phi3": "qkv_proj.weight",
    "mpt": "Wqkv.weight",
    "modernbert": "Wqkv.weight",
    "timm": "qkv.weight",
}


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


class TestRoundTrips:
    @given(layers(), st.data(), st.sampled_from(["float16", "float32", "float64"]), st.text("ab.é ", max_size=6))
    def test_any_layer_round_trips(
        self, layer: tuple[Shapes, int, list[str]], data: Any, dtype: str, prefix: str
    ) -> None:
        shapes, kv_heads, forms = layer
        stored = Stored(kv_heads)
        parameters = draw(shapes, dtype)
        for form in FORMATS:
            if form not in forms:
                with pytest.raises(ValueError, match=f"^format: '{form}' has (no |one weight)"):
                    write_state_dict(parameters, stored, format=form, prefix=prefix)
                continue
            state = write_state_dict(parameters, stored, format=form, prefix=prefix)
            assert all(name.startswith(prefix) for name in state)
            others = {f"not {prefix}{name}": None for name in state if prefix}
            order = data.draw(st.permutations([*state, *others]))
            lazy = Lazy({name: (state | others)[name] for name in order}, prefix)
            for told in (None, form):
                read = read_state_dict(lazy, shapes, stored, prefix=prefix, format=told)
                assert_same_bits(read, parameters)
            assert_same_bits(write_state_dict(read, stored, format=form, prefix=prefix), state)
            assert list(read) == list(shapes)

    @given(layers(), st.data())
    def test_a_missing_or_misshapen_entry_is_named(self, layer: tuple[Shapes, int, list[str]], data: Any) -> None:
        shapes, _, forms = layer
        form = data.draw(st.sampled_from(forms))
        state = write_state_dict(draw(shapes), format=form, prefix="layer.")
        gone, grown = (data.draw(st.sampled_from([*state])) for _ in range(2))
        shape = state[grown].shape
        state[grown] = np.ones((shape[0] + 1, *shape[1:]), np.float32)
        expected = {f"  {grown}: shape {state[grown].shape}, expected {shape}"}
        if gone != grown:
            expected.add(f"  {gone}: missing, expected shape {state[gone].shape}")
            del state[gone]
        said = message(state, shapes, prefix="layer.", format=form, strict=data.draw(st.booleans()))
        assert set(said.splitlines()[1:]) == expected

    @pytest.mark.parametrize("form", FORMATS)
    def test_entries_are_copies(self, form: str) -> None:
        shapes = layer_shapes(bias=form != "t5")
        parameters = draw(shapes)
        state = write_state_dict(parameters, format=form)
        read = read_state_dict(state, shapes)
        arrays = [*parameters.values(), *state.values(), *read.values()]
        for index, one in enumerate(arrays):
            assert not any(np.shares_memory(one, other) for other in arrays[:index])

    @pytest.mark.parametrize("form", FORMATS)
    def test_wide_weights_are_transposed(self, form: str) -> None:
        """Larger than a block of the transposition."""
        shapes, stored = layer_shapes(300, 3, bias=form != "t5"), Stored(3)
        parameters = draw(shapes, "float64")
        state = write_state_dict(parameters, stored, format=form)
        assert_same_bits(read_state_dict(state, shapes, stored), parameters)
        key = state[KEY_ENTRIES[form]]
        if form in ("neox", "bloom", "falcon"):  # for each head its query, key and value
            key = key.reshape(3, 3, 100, 300)[:, 1].reshape(300, 300)
        elif form == "gpt2":
            key = key[:, 300:600]
        elif key.shape[0] == 900:
            key = key[300:600]
        kept = form in ("headwise", "gpt2")
        np.testing.assert_array_equal(key, parameters["W_k"] if kept else parameters["W_k"].T)

    def test_bfloat16_round_trips(self) -> None:
        for form in FORMATS:
            shapes = layer_shapes(bias=form != "t5")
            parameters = draw(shapes, "bfloat16")
            assert_same_bits(read_state_dict(write_state_dict(parameters, format=form), shapes), parameters)

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

        shapes = layer_shapes(bias=form != "t5")
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


class TestOwnEntries:
    """Parameters of attention that the layer has not are errors, also with strict=False, and no message advises it."""

    @pytest.mark.parametrize("strict", [True, False])
    @pytest.mark.parametrize(
        ("name", "shape", "why"),
        [
            ("q_norm.weight", (4,), "the layer has none (qk_norm='head' or 'full')"),
            ("k_norm.weight", (4,), "the layer has none (qk_norm='head' or 'full')"),
            ("sinks", (4,), "the layer has none (sinks=True)"),
            ("q_layernorm.weight", (4,), "layers have no such parameter"),
            ("k_norm.bias", (4,), "layers have no such parameter"),
            ("relative_attention_bias.weight", (32, 4), "the layer has none (relative=)"),
            ("rel_attn_embed.weight", (32, 4), "layers have no such table: give its bias as relative= or bias="),
            ("distance_embedding.weight", (63, 4), "layers have no such table: give its bias as relative= or bias="),
        ],
    )
    def test_they_are_errors(self, name: str, shape: tuple[int, ...], why: str, strict: bool) -> None:
        state = write_state_dict(draw(layer_shapes()), format="llama", prefix="x.")
        said = message(state | {f"x.{name}": np.ones(shape)}, layer_shapes(), prefix="x.", strict=strict)
        assert said.splitlines()[1:] == [f"  x.{name}: extra (shape {shape}); {why}"]

    def test_in_formats_that_do_not_know_them(self) -> None:
        state = write_state_dict(draw(layer_shapes()), format="mpt") | {"q_norm.weight": np.ones(4)}
        for strict in (True, False):
            assert message(state, layer_shapes(), strict=strict).endswith("; the format 'mpt' has none")

    def test_missing_norms_are_named(self) -> None:
        state = write_state_dict(draw(layer_shapes()), format="llama")
        assert message(state, layer_shapes(norm="head"), strict=False).splitlines()[1:] == [
            f"  {letter}_norm.weight: missing, expected shape (4,)" for letter in "qk"
        ]

    def test_buffers_of_older_checkpoints_are_ignored(self) -> None:
        shapes = layer_shapes(bias=True)
        parameters = draw(shapes)
        mask = {"bias": np.ones((1, 1, 8, 8), np.uint8), "masked_bias": np.float32(-1e4)}
        state = write_state_dict(parameters, format="gpt2") | mask
        assert_same_bits(read_state_dict(state, shapes), parameters)
        state = write_state_dict(parameters, format="llama") | {"rotary_emb.inv_freq": np.ones(2)}
        assert_same_bits(read_state_dict(state, shapes), parameters)
        assert "bias: extra" in message(state | {"bias": np.ones(16)}, shapes)


class TestNormsStoredMinusOne:
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    def test_round_trip(self, dtype: str) -> None:
        """The loader adds 1 in float64, which keeps every bit of numbers down to 2^-29."""
        shapes, stored = layer_shapes(norm="head"), Stored(norm_offset=True)
        state = write_state_dict(draw(shapes, dtype), format="llama")
        state["q_norm.weight"][:3] = 0.0, 2.0**-14, -1.0
        read = read_state_dict(state, shapes, stored)
        assert read["q_norm"].dtype == np.float64
        np.testing.assert_array_equal(read["q_norm"], 1.0 + state["q_norm.weight"].astype(np.float64))
        assert_same_bits(write_state_dict(read, stored, format="llama"), state)
        plain = write_state_dict(read, stored)  # "headwise" stores the factors themselves
        assert_same_bits(read_state_dict(plain, shapes, stored), read)


class TestToldFormats:
    def test_another_format_is_refused(self) -> None:
        shapes = layer_shapes()
        state = write_state_dict(draw(shapes), format="bert")
        said = message(state, shapes, format="gpt2").splitlines()
        assert said[0] == "state: in the format 'gpt2', does not fit the layer:"
        assert said[1].startswith("  c_attn.weight: missing, expected shape")
        assert any("self.query.weight: extra" in line for line in said)

    def test_llama_and_out_proj_differ_in_one_name(self) -> None:
        shapes = layer_shapes(bias=True)
        for form in ("llama", "out_proj"):
            state = write_state_dict(draw(shapes), format=form)
            assert_same_bits(read_state_dict(state, shapes), draw(shapes))
            del state["k_proj.bias"]
            assert message(state, shapes).startswith(f"state: in the format {form!r}, does not fit")

    def test_a_bias_for_query_key_and_value_together(self) -> None:
        shapes = layer_shapes(bias=True)
        del shapes["b_k"]
        with pytest.raises(ValueError, match=r"^format: 'gpt2' has one bias for query, key and value, but .*b_q, b_v"):
            write_state_dict(draw(shapes), format="gpt2")


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

    @pytest.mark.parametrize("form", [form for form in FORMATS if form != "t5"])
    @pytest.mark.parametrize("strict", [True, False])
    def test_biases_for_a_layer_without_biases(self, form: str, strict: bool) -> None:
        """Zero or not, and also with strict=False, which ignores entries of other layers."""
        parameters = draw(layer_shapes(bias=True))
        parameters |= {name: np.zeros_like(array) for name, array in parameters.items() if name.startswith("b_")}
        state = write_state_dict(parameters, format=form)
        said = message(state, layer_shapes(), strict=strict).splitlines()[1:]
        biases = [name for name, array in state.items() if array.ndim == 1]
        assert len(biases) == (2 if form in ("torch", *JOINT) else 4)
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
        said = message({"a.query.weight": None, "b.query.weight": None}, layer_shapes(), prefix="a.")
        assert said.startswith(
            "state: no names of a known format under the prefix 'a.', only a.query.weight; expected "
        )
        for form, name in KEY_ENTRIES.items():
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
            with pytest.raises(ValueError, match=r"^format: .*, expected 'headwise', 'torch', .* or 'timm'$"):
                write_state_dict(draw(shapes), format=form)  # type: ignore[arg-type]
            if form is not None:
                with pytest.raises(ValueError, match=r"^format: .*, expected 'headwise', 'torch', .* or 'timm'$"):
                    read_state_dict(draw(shapes), shapes, format=form)  # type: ignore[arg-type]


NAMES = ["\x1b[31mW_q", "W_q\nW_q: missing", "q_proj.weight\x00", "\u202eW_q", "x" * 100_000]


@pytest.mark.parametrize(
    "prefix", ["", "layer.", "\x1b]0;title\x07", "p" * 100_000], ids=["none", "dot", "escape", "long"]
)
@pytest.mark.parametrize("name", NAMES, ids=["escape", "line break", "zero", "direction", "long"])
def test_names_in_messages_are_printable(name: str, prefix: str) -> None:
    """A checkpoint from a stranger writes nothing to the terminal but its names as Python shows them."""
    layer = hw.MultiHeadAttention(8, 2, rng=0)
    states = {prefix + name: np.ones(3)}, layer.state_dict(prefix=prefix) | {prefix + name: np.ones(3)}
    for state in states:
        for keywords in ({}, {"format": name}, {"format": "headwise"}, {"format": "llama"}):
            with pytest.raises(ValueError) as refusal:
                layer.load_state_dict(state, prefix=prefix, **keywords)
            lines = str(refusal.value).split("\n  ")
            assert all(line.isprintable() for line in lines) and max(map(len, lines)) < 3000
