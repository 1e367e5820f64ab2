"""RoPE types: frequencies compared with transformers, where it is installed, and errors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import headwise as hw
from headwise.rope import rope_frequencies, rope_parameters
from positions.rope_scalings import DEEPSEEK, DYNAMIC, LINEAR, LLAMA3, PROPORTIONAL, SMALL, YARN, longrope
from support import normal

once = pytest.mark.single_implementation
LENGTHS = 4096, 131072  # trained and extended

#: Heads of 8 features: the base, the model's and the sequence's length, what is given, frequencies and factor.
#: Numbers of transformers 5.23, made to compute in float64.
GOLDEN: dict[str, tuple[float, int, int | None, dict[str, Any], list[float], float]] = {
    "linear": (1e4, 4096, None, LINEAR, [0.25, 0.025, 0.0025, 0.00025], 1.0),
    "proportional": (1e6, 4096, None, PROPORTIONAL, [0.5, 0.01581138830084, 0.0, 0.0], 1.0),
    "dynamic": (1e4, 4096, 8192, DYNAMIC, [1.0, 0.06933612743506, 0.004807498567691, 0.0003333333333333], 1.0),
    "yarn": (1e4, 131072, None, DEEPSEEK, [1.0, 0.1, 0.005125, 2.5e-05], 1.0857263992561355),
    "yarn-not-truncated": (
        1e6,
        131072,
        None,
        {**YARN, "factor": 4.0, "original_max_position_embeddings": 32768, "truncate": False},
        [1.0, 0.03162277660168, 0.0006074079378798, 7.905694150421e-06],
        1.138629436111989,
    ),
    "llama3": (5e5, 131072, None, LLAMA3, [1.0, 0.03760603093086, 0.000524846160993, 6.647869871181e-06], 1.0),
    "longrope-short": (
        1e4,
        131072,
        4096,
        {**longrope(4), "short_factor": [1.0, 1.25, 1.5, 2.0]},
        [1.0, 0.08, 0.006666666666667, 0.0005],
        1.1902380714238083,
    ),
    "longrope-long": (
        1e4,
        131072,
        4097,
        {**longrope(4), "long_factor": [1.0, 4.0, 16.0, 48.0]},
        [1.0, 0.025, 0.000625, 2.083333333333e-05],
        1.1902380714238083,
    ),
}


@once
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name: str) -> None:
    base, longest, seq_len, scaling, expected, factor = GOLDEN[name]
    inv_freq, attention_factor = rope_parameters(
        8, base, scaling=scaling, seq_len=seq_len, max_position_embeddings=longest
    )
    assert inv_freq.dtype == np.float64
    np.testing.assert_allclose(inv_freq, expected, rtol=1e-12)
    assert attention_factor == pytest.approx(factor, rel=1e-14)


def configurations(dim: int) -> dict[str, dict[str, Any]]:
    """The scalings to compare for ``dim`` rotated features of each head."""
    pairs = (dim + 1) // 2
    return {
        "linear": LINEAR,
        "proportional": {"rope_type": "proportional"},
        "proportional-factor": {"rope_type": "proportional", "factor": 8.0},
        "dynamic": DYNAMIC,
        "dynamic-8": {"rope_type": "dynamic", "factor": 8},
        "yarn": YARN,
        "yarn-mscale": DEEPSEEK,
        "yarn-mscale-0": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.0},
        "yarn-betas": {**YARN, "factor": None, "beta_fast": 64, "beta_slow": 2.5},
        "yarn-attention": {**YARN, "truncate": False, "attention_factor": 1.25},
        "yarn-one": {**YARN, "factor": 1.0},
        "yarn-short": {**YARN, "original_max_position_embeddings": 6},
        "llama3": LLAMA3,
        "llama3-step": {**LLAMA3, "factor": 16.0, "high_freq_factor": 1.0},
        "yarn-inert": {**YARN, "attn_factor": 1.5, "max_position_embeddings": 7, "beta_fast": None, "mscale": None},
        "llama3-32": {**LLAMA3, "factor": 32.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 2048},
        "longrope": longrope(pairs),
        "longrope-factor": longrope(pairs, factor=16.0),
        "longrope-attention": longrope(pairs, attention_factor=1.19),
        "longrope-one": longrope(pairs, factor=1.0),
    }


@pytest.fixture
def init_functions() -> Any:
    """The functions of transformers for the same frequencies."""
    pytest.importorskip("torch", reason="transformers makes frequencies with PyTorch, which is not installed")
    pytest.importorskip("transformers", reason="the comparison needs the package transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return ROPE_INIT_FUNCTIONS


@pytest.fixture
def torch_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch with float64 where transformers asks for float32."""
    torch = pytest.importorskip("torch", reason="transformers makes frequencies with PyTorch, which is not installed")
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def configuration(head_dim: int, base: float, scaling: dict[str, Any], longest: int) -> Any:
    """The attributes of a configuration that the functions read; a real one takes milliseconds to make."""
    return SimpleNamespace(
        head_dim=head_dim,
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=longest,
        rope_parameters={"rope_theta": base, **scaling},
        standardize_rope_params=lambda: None,
    )


def compare(init_functions: Any, head_dim: int, base: float, fraction: float | None, rtol: float) -> int:
    """Compares all configurations and lengths for one head; returns their number."""
    count = 0
    for name, configured in configurations(int(head_dim * (fraction or 1.0))).items():
        scaling = {**configured, "partial_rotary_factor": fraction} if fraction else configured
        rope_type = scaling["rope_type"]
        longest = LENGTHS[rope_type != "dynamic"]
        by_length = rope_type in ("dynamic", "longrope")
        for seq_len in (None, 1, 4096, 4097, 10_000, 300_000) if by_length else (None, 10_000):
            config = configuration(head_dim, base, scaling, longest)
            theirs, their_factor = init_functions[rope_type](config, "cpu", seq_len=seq_len)
            ours, factor = rope_parameters(
                head_dim, base, scaling=scaling, seq_len=seq_len, max_position_embeddings=longest
            )
            # In a ramp the error of float32 is multiplied by the factor.
            bound = rtol * (scaling["factor"] or LENGTHS[1] / LENGTHS[0]) if rope_type in ("yarn", "llama3") else rtol
            where = f"{name}, seq_len {seq_len}"
            np.testing.assert_allclose(ours, theirs.numpy().astype(np.float64), rtol=bound, err_msg=where)
            assert factor == pytest.approx(their_factor, rel=1e-14), where
            count += 1
    return count


@once
@pytest.mark.parametrize("fraction", [None, 0.25, 0.75])
@pytest.mark.parametrize("base", [1e3, 1e4, 5e5, 5e6])
@pytest.mark.parametrize("head_dim", [16, 80, 128, 256])
def test_frequencies_equal_those_of_transformers(
    init_functions: Any, head_dim: int, base: float, fraction: float | None
) -> None:
    """Frequencies of transformers are float32: an ulp of the exponent times ``ln(base)``."""
    assert compare(init_functions, head_dim, base, fraction, 1e-6) == 6 * 6 + 14 * 2


@once
@pytest.mark.usefixtures("torch_in_float64")
@pytest.mark.parametrize("fraction", [None, 0.5, 0.3])
@pytest.mark.parametrize("base", [1e4, 5e5])
@pytest.mark.parametrize("head_dim", [40, 64, 128])
def test_formulas_equal_those_of_transformers(
    init_functions: Any, head_dim: int, base: float, fraction: float | None
) -> None:
    if int(head_dim * (fraction or 1.0)) % 2:
        with pytest.raises(RuntimeError):  # YaRN of transformers fails for an odd partial width
            compare(init_functions, head_dim, base, fraction, 1e-12)
    else:
        assert compare(init_functions, head_dim, base, fraction, 1e-12) == 6 * 6 + 14 * 2


@once
def test_odd_partial_width(init_functions: Any) -> None:
    """As in transformers, 0.3 of 64 features are 19, which have 10 pairs."""
    for configured in (LINEAR, DYNAMIC, LLAMA3, longrope(10)):
        scaling = {**configured, "partial_rotary_factor": 0.3}
        theirs, _ = init_functions[scaling["rope_type"]](configuration(64, 1e4, scaling, 4096), "cpu", seq_len=9000)
        ours, _ = rope_parameters(64, scaling=scaling, seq_len=9000, max_position_embeddings=4096)
        assert ours.shape == (10,)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)
        assert hw.RotaryPositionalEmbedding(64, scaling=scaling, max_position_embeddings=4096).rotary_dim == 20


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("length", [5, 32, 33, 60])
def test_rotation_equals_a_transformers_layer(init_functions: Any, name: str, length: int) -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    scaling = {"rope_theta": 1e4, **SMALL[name]}
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=2, head_dim=16, max_position_embeddings=32, rope_parameters=scaling
    )
    theirs = LlamaRotaryEmbedding(config)
    ours = hw.RotaryPositionalEmbedding(16, scaling=SMALL[name], max_position_embeddings=32)
    query, key = normal((2, 4, length, 16), 1), normal((2, 2, length, 16), 2)
    cos, sin = theirs(torch.from_numpy(query), torch.arange(length)[None])
    expected = apply_rotary_pos_emb(torch.from_numpy(query), torch.from_numpy(key), cos, sin)
    np.testing.assert_allclose(ours(query), expected[0].numpy(), rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(ours(key), expected[1].numpy(), rtol=1e-5, atol=2e-5)
    assert ours.attention_factor == pytest.approx(theirs.attention_scaling)


@once
def test_equivalent_configurations() -> None:
    plain, _ = rope_parameters(8, 500.0)
    np.testing.assert_array_equal(plain, rope_frequencies(8, 500.0))
    for scaling in (
        {},
        {"rope_type": "default"},
        {"type": "default"},
        {"rope_type": None, "factor": None},
        {"rope_theta": 500.0},
    ):
        np.testing.assert_array_equal(rope_parameters(8, 500.0, scaling=scaling)[0], plain)
    np.testing.assert_array_equal(rope_parameters(8, scaling={"rope_type": "default", "rope_theta": 500})[0], plain)
    by_type = {"type": "su", **{key: value for key, value in longrope(4, factor=4.0).items() if key != "rope_type"}}
    for seq_len in (None, 5000):
        old = rope_parameters(8, scaling=by_type, seq_len=seq_len)
        new = rope_parameters(8, scaling={**longrope(4, factor=4.0), "type": "su"}, seq_len=seq_len)
        np.testing.assert_array_equal(old[0], new[0])
        assert old[1] == new[1]
    # Lengths in place of the factor that follows from them.
    given = rope_parameters(8, scaling=YARN)[0]
    without = {key: value for key, value in YARN.items() if key != "factor"}
    np.testing.assert_array_equal(rope_parameters(8, scaling=without, max_position_embeddings=40 * 4096)[0], given)
    without = {key: value for key, value in YARN.items() if key != "original_max_position_embeddings"}
    np.testing.assert_array_equal(rope_parameters(8, scaling=without, max_position_embeddings=4096)[0], given)


# --- errors ---

LONGROPE = longrope(4, factor=4.0)
BAD_SCALINGS: dict[str, tuple[type[Exception], str, Any]] = {
    "list": (TypeError, "^scaling: list, expected None or a mapping", [1]),
    "name": (TypeError, "^scaling: str", "yarn"),
    "unknown": (ValueError, r"rope_type'\]: 'ntk', expected one of default, linear, .*longrope", {"rope_type": "ntk"}),
    "unknown-legacy": (ValueError, "'mixed', expected one of", {"type": "mixed"}),
    "axial": (ValueError, "'axial', rotation by the row and the column of an image patch", {"rope_type": "axial"}),
    "one-mscale": (ValueError, "no 'long_mscale', which rope_type 'longrope'", {**LONGROPE, "short_mscale": 1.2}),
    "beta-no-length": (
        ValueError,
        "no 'original_max_position_embeddings', which 'llama_4_scaling_beta' requires",
        {"llama_4_scaling_beta": 0.1},
    ),
    "type": (TypeError, r"rope_type'\]: int, expected a string", {"rope_type": 3}),
    "missing": (ValueError, "^scaling: no 'factor', which rope_type 'linear' requires", {"rope_type": "linear"}),
    "missing-three": (
        ValueError,
        "no 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'",
        {"rope_type": "llama3", "factor": 8.0},
    ),
    "missing-none": (ValueError, "no 'factor'", {"rope_type": "linear", "factor": None}),
    "yarn-no-factor": (ValueError, "'factor'.*max_position_embeddings", {**YARN, "factor": None}),
    "yarn-no-length": (
        ValueError,
        "no 'original_max_position_embeddings'",
        {**YARN, "original_max_position_embeddings": None},
    ),
    "longrope-no-factor": (ValueError, "no 'factor'.*max_position_embeddings to compute it", longrope(4)),
    "longrope-no-length": (
        ValueError,
        "no 'original_max_position_embeddings'",
        {**LONGROPE, "original_max_position_embeddings": None},
    ),
    "dynamic-no-length": (ValueError, "^max_position_embeddings: None", DYNAMIC),
    "unexpected": (
        ValueError,
        "^scaling: 'beta_fast', expected only factor, .* for rope_type 'linear'",
        {**LINEAR, "beta_fast": 32},
    ),
    "unexpected-default": (ValueError, "^scaling: 'factor'", {"factor": 2.0}),
    "nested": (
        ValueError,
        "'full_attention', 'sliding_attention', expected the one for a single kind of layer",
        {"full_attention": LINEAR, "sliding_attention": {}},
    ),
    "factor-small": (ValueError, r"^scaling\['factor'\]: 0.5, expected at least 1", {**LINEAR, "factor": 0.5}),
    "factor-nan": (ValueError, r"^scaling\['factor'\]: nan", {**LINEAR, "factor": np.nan}),
    "factor-text": (TypeError, r"^scaling\['factor'\]: str, expected a real number", {**LINEAR, "factor": "4"}),
    "factor-bool": (TypeError, r"^scaling\['factor'\]: bool", {**LINEAR, "factor": True}),
    "theta": (ValueError, r"^scaling\['rope_theta'\]: -1.0, expected a positive number", {"rope_theta": -1}),
    "fraction-zero": (ValueError, r"partial_rotary_factor'\]: 0.0, expected a fraction", {"partial_rotary_factor": 0}),
    "fraction-big": (ValueError, r"partial_rotary_factor'\]: 1.5", {"partial_rotary_factor": 1.5}),
    "fraction-of-nothing": (ValueError, "rotates 0 of 8 features", {"partial_rotary_factor": 0.1}),
    "length-float": (
        TypeError,
        "original_max_position_embeddings.*integer",
        {**YARN, "original_max_position_embeddings": 4096.0},
    ),
    "length-zero": (
        ValueError,
        "original_max_position_embeddings.*at least 1",
        {**YARN, "original_max_position_embeddings": 0},
    ),
    "beta-order": (ValueError, "beta_fast.*at least beta_slow", {**YARN, "beta_fast": 1, "beta_slow": 32}),
    "beta-zero": (ValueError, r"beta_slow'\]: 0.0, expected a positive", {**YARN, "beta_slow": 0}),
    "mscale": (ValueError, r"mscale'\]: -1.0, expected at least 0", {**YARN, "mscale": -1}),
    "truncate": (TypeError, r"truncate'\]: str, expected True or False", {**YARN, "truncate": "no"}),
    "attention": (ValueError, r"attention_factor'\]: 0.0", {**YARN, "attention_factor": 0}),
    "yarn-base": (ValueError, "^base: 1.0, expected more than 1", {**YARN, "rope_theta": 1.0}),
    "llama3-order": (ValueError, "high_freq_factor.*at least low_freq_factor", {**LLAMA3, "low_freq_factor": 5.0}),
    "llama3-zero": (ValueError, r"low_freq_factor'\]: 0.0", {**LLAMA3, "low_freq_factor": 0}),
    "divisors-few": (ValueError, r"short_factor'\]: 3 numbers, expected 4", {**LONGROPE, "short_factor": [1.0] * 3}),
    "divisors-many": (ValueError, r"long_factor'\]: 5 numbers, expected 4", {**LONGROPE, "long_factor": [1.0] * 5}),
    "divisors-rank": (ValueError, r"long_factor'\]: shape \(1, 4\)", {**LONGROPE, "long_factor": [[1.0] * 4]}),
    "divisors-zero": (ValueError, r"long_factor'\].*positive", {**LONGROPE, "long_factor": [1.0, 0.0, 1.0, 1.0]}),
    "divisors-text": (TypeError, r"long_factor'\]", {**LONGROPE, "long_factor": ["a"] * 4}),
    "longrope-length": (ValueError, "at least 2", {**LONGROPE, "original_max_position_embeddings": 1}),
}


@once
@pytest.mark.parametrize("name", BAD_SCALINGS)
def test_bad_scaling(name: str) -> None:
    error, message, scaling = BAD_SCALINGS[name]
    for make in (rope_parameters, hw.RotaryPositionalEmbedding):
        with pytest.raises(error, match=message) as refusal:
            make(8, scaling=scaling)
        assert type(refusal.value) is error


@once
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "^dim: 7, expected an even number", {"dim": 7}),
        (ValueError, "^dim: 0", {"dim": 0}),
        (TypeError, "^dim: ", {"dim": 8.0}),
        (ValueError, "^base: 0.0, expected a positive number", {"base": 0}),
        (ValueError, "^seq_len: -1", {"seq_len": -1}),
        (TypeError, "^seq_len: ", {"seq_len": 1.5}),
        (ValueError, "^max_position_embeddings: 0", {"max_position_embeddings": 0}),
        (TypeError, "^max_position_embeddings: ", {"max_position_embeddings": "long"}),
        (
            ValueError,
            "original_max_position_embeddings.*4096, expected at most max_position_embeddings",
            {"scaling": {**YARN, "factor": None}, "max_position_embeddings": 1024},
        ),
    ],
)
def test_bad_parameters(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        rope_parameters(**{"dim": 8, **arguments})
