"""Rotary embedding beyond the plain one: families of frequencies, partial rotation, offsets, tables, pairings."""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle
from headwise import _layer
from headwise.rope import rope_frequencies, rope_parameters
from support import LAYOUTS, assert_close, dtype_named, normal

once = pytest.mark.single_implementation
pairing = pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])

LENGTHS = 4096, 131072  # trained and extended
LINEAR = {"rope_type": "linear", "factor": 4.0}
PROPORTIONAL = {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096}
DEEPSEEK = {**YARN, "mscale": 1.0, "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def longrope(pairs: int, trained: int = 4096, **more: Any) -> dict[str, Any]:
    short, long = np.linspace(1.0, 2.0, pairs).tolist(), np.geomspace(1.0, 48.0, pairs).tolist()
    lengths = {"original_max_position_embeddings": trained}
    return {"rope_type": "longrope", "short_factor": short, "long_factor": long, **lengths, **more}


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
    """The scalings to compare for ``dim`` turned features of each head."""
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
        "llama3-32": {**LLAMA3, "factor": 32.0, "high_freq_factor": 2.0, "original_max_position_embeddings": 2048},
        "longrope": longrope(pairs),
        "longrope-factor": longrope(pairs, factor=16.0),
        "longrope-attention": longrope(pairs, attention_factor=1.19),
        "longrope-one": longrope(pairs, factor=1.0),
    }


@pytest.fixture
def init_functions() -> Any:
    """transformers' functions of the same purpose."""
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
    """What the functions look at of a configuration; a real one takes milliseconds to make."""
    return SimpleNamespace(
        head_dim=head_dim,
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=longest,
        rope_parameters={"rope_theta": base, **scaling},
        standardize_rope_params=lambda: None,
    )


def compare(init_functions: Any, head_dim: int, base: float, fraction: float | None, rtol: float) -> int:
    """All configurations and lengths for one head; how many there were."""
    count = 0
    for name, scaling in configurations(int(head_dim * (fraction or 1.0))).items():
        if fraction:
            scaling = {**scaling, "partial_rotary_factor": fraction}
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
def test_the_numbers_of_transformers(init_functions: Any, head_dim: int, base: float, fraction: float | None) -> None:
    """Theirs are float32: a unit in the last place of the exponent times ``ln(base)``."""
    assert compare(init_functions, head_dim, base, fraction, 1e-6) == 6 * 6 + 12 * 2


@once
@pytest.mark.usefixtures("torch_in_float64")
@pytest.mark.parametrize("fraction", [None, 0.5, 0.3])
@pytest.mark.parametrize("base", [1e4, 5e5])
@pytest.mark.parametrize("head_dim", [40, 64, 128])
def test_the_formulas_of_transformers(init_functions: Any, head_dim: int, base: float, fraction: float | None) -> None:
    if int(head_dim * (fraction or 1.0)) % 2:
        with pytest.raises(RuntimeError):  # of a partial width that is odd their YaRN makes nothing
            compare(init_functions, head_dim, base, fraction, 1e-12)
    else:
        assert compare(init_functions, head_dim, base, fraction, 1e-12) == 6 * 6 + 12 * 2


@once
def test_odd_partial_width(init_functions: Any) -> None:
    """As in transformers, 0.3 of 64 features are 19, whose exponents these are, in 10 pairs."""
    for scaling in (LINEAR, DYNAMIC, LLAMA3, longrope(10)):
        scaling = {**scaling, "partial_rotary_factor": 0.3}
        theirs, _ = init_functions[scaling["rope_type"]](configuration(64, 1e4, scaling, 4096), "cpu", seq_len=9000)
        ours, _ = rope_parameters(64, scaling=scaling, seq_len=9000, max_position_embeddings=4096)
        assert ours.shape == (10,)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)
        assert hw.RotaryPositionalEmbedding(64, scaling=scaling, max_position_embeddings=4096).rotary_dim == 20


#: Scalings for heads of 16 features and a trained length of 32, that a layer of either package takes.
SMALL: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": LINEAR,
    "dynamic": DYNAMIC,
    "yarn": {**YARN, "original_max_position_embeddings": 32, "factor": 8.0},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 32},
    "longrope": longrope(8, 32, factor=8.0),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("length", [5, 32, 33, 60])
def test_a_layer_of_transformers(init_functions: Any, name: str, length: int) -> None:
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
def test_ways_to_say_the_same() -> None:
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
    # Lengths stand in for what can be derived from them.
    given = rope_parameters(8, scaling=YARN)[0]
    without = {key: value for key, value in YARN.items() if key != "factor"}
    np.testing.assert_array_equal(rope_parameters(8, scaling=without, max_position_embeddings=40 * 4096)[0], given)
    without = {key: value for key, value in YARN.items() if key != "original_max_position_embeddings"}
    np.testing.assert_array_equal(rope_parameters(8, scaling=without, max_position_embeddings=4096)[0], given)


@once
def test_what_is_given_is_left_alone() -> None:
    scaling = longrope(4, factor=4.0)
    before = copy.deepcopy(scaling)
    rope = hw.RotaryPositionalEmbedding(8, scaling=scaling)
    scaling["long_factor"][:] = [1e9] * 4
    scaling["factor"] = 1e9
    fresh = hw.RotaryPositionalEmbedding(8, scaling=before)
    x = normal((4100, 8))
    np.testing.assert_array_equal(rope(x), fresh(x))


# --- the layer ---


def turned(x: np.ndarray, positions: Any, inv_freq: np.ndarray, factor: float, interleaved: bool) -> np.ndarray:
    """The rotation in float64, of the features that the frequencies are for."""
    angles = np.multiply.outer(np.asarray(positions, np.float64), inv_freq)
    if angles.ndim == 3 and x.ndim == 4:
        angles = angles[:, None]
    width = 2 * len(inv_freq)
    answer = oracle.double(x).copy()
    answer[..., :width] = oracle.rope(x[..., :width], factor * np.cos(angles), factor * np.sin(angles), interleaved)
    return answer


LAYERS: dict[str, dict[str, Any]] = {
    **{name: {"scaling": scaling} for name, scaling in SMALL.items()},
    "proportional": {"scaling": PROPORTIONAL},
    "partial": {"rotary_dim": 6},
    "partial-yarn": {"scaling": SMALL["yarn"], "rotary_dim": 10},
    "partial-factor": {"scaling": {**DYNAMIC, "partial_rotary_factor": 0.25}},
    "partial-both": {"scaling": {"partial_rotary_factor": 0.5}, "rotary_dim": 8},
}


def layer(name: str, **more: Any) -> hw.RotaryPositionalEmbedding:
    return hw.RotaryPositionalEmbedding(16, max_position_embeddings=32, **LAYERS[name], **more)


def parameters(name: str, length: int) -> tuple[np.ndarray, float]:
    given = LAYERS[name]
    scaling = dict(given.get("scaling", {}))
    dim = given.get("rotary_dim", 16)
    if "rotary_dim" in given:
        scaling.pop("partial_rotary_factor", None)
    return rope_parameters(dim, scaling=scaling, seq_len=length, max_position_embeddings=32)


@pairing
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_rotation(name: str, dtype: str, interleaved: bool) -> None:
    rope = layer(name, interleaved=interleaved)
    for shape in ((7, 16), (3, 40, 16), (2, 3, 33, 16), (2, 3, 1, 16)):
        x = normal(shape).astype(dtype_named(dtype))
        expected = turned(x, np.arange(shape[-2]), *parameters(name, shape[-2]), interleaved)
        got = rope(x)
        assert got.dtype == x.dtype
        assert_close(got, expected, 2.0)
        width = rope.rotary_dim
        assert width == 2 * len(rope.inv_freq)
        np.testing.assert_array_equal(got[..., width:].view(np.uint8), x[..., width:].copy().view(np.uint8))


@pairing
@pytest.mark.parametrize("name", LAYERS)
def test_norms_and_distances(name: str, interleaved: bool) -> None:
    """Norms grow by the attention factor, and scores depend on the distance alone, within one regime."""
    rope = layer(name, interleaved=interleaved)
    width, factor = rope.rotary_dim, rope.attention_factor
    query, key = (np.tile(normal((16,), seed, np.float64), (50, 1)) for seed in (1, 2))
    queries, keys = rope(query), rope(key)
    for part in (slice(0, width), slice(width, 16)):
        norms = np.linalg.norm(queries[:, part], axis=-1)
        scale = factor if part.start == 0 else 1.0
        np.testing.assert_allclose(norms, scale * np.linalg.norm(query[:, part], axis=-1), rtol=1e-13)
    scores = queries @ keys.T
    for distance in (-40, -3, 0, 1, 49):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=0, atol=1e-11)
    assert np.ptp(scores[0]) > 1e-3


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("offset", [0, 1, 31, 60, 5000, -3])
def test_offset_and_positions(name: str, offset: int) -> None:
    """The same thing said in each way, and in float64 what the formula says."""
    rope = layer(name, max_len=8)
    for seq in (1, 2, 9):
        x = normal((2, 3, seq, 16), dtype=np.float64)
        where = np.arange(offset, offset + seq)
        expected = turned(x, where, *parameters(name, max(0, offset + seq)), False)
        np.testing.assert_allclose(rope(x, offset=offset), expected, rtol=0, atol=1e-10)
        for positions in (where, where[None], np.tile(where, (2, 1)), where.tolist(), where.astype(np.int32)):
            np.testing.assert_allclose(rope(x, positions), expected, rtol=0, atol=1e-10)
            np.testing.assert_allclose(rope.forward(x[:, 0], positions), expected[:, 0], rtol=0, atol=1e-10)
        np.testing.assert_allclose(rope(x[0, 0], offset=np.int64(offset)), expected[0, 0], rtol=0, atol=1e-10)
        reversed_ = rope(x[:, :, ::-1], where[::-1])
        np.testing.assert_allclose(reversed_, expected[:, :, ::-1], rtol=0, atol=1e-10)


def test_positions_of_each_sequence() -> None:
    """One step of a batch whose sequences are of different lengths; the longest decides on the frequencies."""
    for name in LAYERS:
        rope, x = layer(name), normal((3, 2, 1, 16), dtype=np.float64)
        for positions in ([[3], [0], [31]], [[3], [40], [7]]):
            expected = turned(x, positions, *parameters(name, int(np.max(positions)) + 1), False)
            np.testing.assert_allclose(rope(x, positions), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("position", [10**5 + 1, 10**6, 10**6 + 1, 10**9])
def test_far_positions_are_exact(position: int) -> None:
    """Float32 angles would be wrong by 0.03 at 10^6. The reference has 64 bits or more of the product."""
    rope = hw.RotaryPositionalEmbedding(64)
    inv_freq = np.longdouble(10000.0) ** (-np.arange(0, 64, 2).astype(np.longdouble) / 64)
    angles = position * inv_freq
    x = normal((1, 64), dtype=np.float64)
    expected = oracle.rope(x, np.cos(angles), np.sin(angles))
    bound = 4e-16 * position + 1e-15
    for got in (rope(x, offset=position), rope(x, [position]), rope(np.tile(x, (2, 1)), [0, position])[1:]):
        np.testing.assert_allclose(got, expected, rtol=0, atol=bound)
        got32 = rope(x.astype(np.float32), offset=position)
        np.testing.assert_allclose(got32, expected, rtol=0, atol=1e-6 + bound)
    difference = rope(x, offset=position) @ rope(x, offset=position - 5).T
    np.testing.assert_allclose(difference, rope(x, offset=5) @ x.T, rtol=0, atol=64 * bound)


@pytest.mark.parametrize("name", ["dynamic", "longrope", "partial-factor"])
def test_regimes_back_and_forth(name: str) -> None:
    """What came before has no influence."""
    rope = layer(name, max_len=4)
    x = normal((100, 16), dtype=np.float64)
    for length in (5, 40, 33, 100, 32, 100, 2, 41, 40, 5):
        expected = turned(x[:length], np.arange(length), *parameters(name, length), False)
        for dtype in (np.float32, np.float64, np.float32):
            assert_close(rope(x[:length].astype(dtype)), expected.astype(dtype), 2.0)
            for position in (length, length, length - 1, length + 7):
                step = turned(x[:1], [position], *parameters(name, position + 1), False)
                assert_close(rope(x[:1].astype(dtype), offset=position), step.astype(dtype), 2.0)
    # Attributes are those of the trained length.
    trained, _ = parameters(name, 32)
    np.testing.assert_array_equal(rope.inv_freq, trained)


def test_tables_are_what_turns() -> None:
    rope = layer("yarn", max_len=6)
    angles = np.multiply.outer(np.arange(6), rope.inv_freq)
    assert rope.cos_cached.shape == rope.sin_cached.shape == (6, 8)
    np.testing.assert_allclose(rope.cos_cached, rope.attention_factor * np.cos(angles), rtol=0, atol=1e-15)
    np.testing.assert_allclose(rope.sin_cached, rope.attention_factor * np.sin(angles), rtol=0, atol=1e-15)
    rope(normal((1, 16)), offset=20)
    assert len(rope.cos_cached) >= 21
    for array in (rope.cos_cached, rope.sin_cached, rope.inv_freq):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_a_far_step_costs_no_table() -> None:
    """Decoding at a length whose frequencies nothing else has, and behind what a table may hold."""
    x = normal((1, 16))
    for rope, offset in ((layer("dynamic"), 50_000), (layer("longrope"), 10**8), (layer("default"), 10**8)):
        rope(x)
        tracemalloc.start()
        rope(x, offset=offset)
        rope(x, [offset])
        rope(np.tile(x, (3, 1)), [offset, 0, 7])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000
        assert len(rope.cos_cached) == 2048
    assert _layer._MAX_TABLE_BYTES < 10**8


@pairing
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["yarn", "partial"])
def test_layouts_and_out(name: str, layout: str, interleaved: bool) -> None:
    rope = layer(name, interleaved=interleaved)
    plain = normal((2, 3, 9, 16))
    expected = turned(plain, np.arange(4, 13), *parameters(name, 13), interleaved)
    x = LAYOUTS[layout](plain.copy())
    assert_close(rope(x, offset=4), expected, 2.0)
    np.testing.assert_array_equal(x, plain)  # the input is left alone
    out = np.full_like(plain, np.nan)
    assert rope(x, offset=4, out=out) is out
    assert_close(out, expected, 2.0)
    if x.flags.writeable and x.flags.aligned and x.dtype.isnative:
        assert rope(x, offset=4, out=x) is x
        assert_close(x, expected, 2.0)
        strided = LAYOUTS[layout](np.zeros_like(plain))
        assert rope(plain, np.arange(4, 13), out=strided) is strided
        assert_close(strided, expected, 2.0)


@pytest.mark.parametrize("name", ["default", "partial"])
def test_in_place_in_a_joint_projection(name: str) -> None:
    """Queries and keys as views of what one projection made: the values beside them stay."""
    joint = normal((2, 5, 3 * 2 * 16))
    before = joint.copy()
    query, key, value = joint.reshape(2, 5, 3, 2, 16).transpose(2, 0, 3, 1, 4)
    rope = layer(name)
    expected = [rope(part.copy(), offset=7) for part in (query, key)]
    for part in (query, key):
        assert rope.forward(part, offset=7, out=part) is part
    np.testing.assert_array_equal(query, expected[0])
    np.testing.assert_array_equal(key, expected[1])
    np.testing.assert_array_equal(value, before.reshape(2, 5, 3, 2, 16).transpose(2, 0, 3, 1, 4)[2])


def test_partial_rotation_touches_nothing_else() -> None:
    """NaN with its payload, infinities and subnormal numbers come out of the other features as they went in."""
    odd = np.array([np.nan, -np.inf, 1e-45, -0.0, 3e38], np.float32)
    odd[:1].view(np.uint32)[:] |= 0x1234
    x = np.concatenate([normal((3, 6)), np.tile(odd, (3, 2))], axis=1)
    rope = layer("partial")
    for out in (None, np.empty_like(x), x.copy()):
        got = rope(x if out is None or out[0, 0] != x[0, 0] else out, out=out)
        np.testing.assert_array_equal(got[:, 6:].view(np.uint32), x[:, 6:].view(np.uint32))
        assert np.isfinite(got[:, :6]).all()
    integers = np.arange(32).reshape(2, 16)
    assert rope(integers).dtype == np.float64
    np.testing.assert_array_equal(rope(integers)[:, 6:], integers[:, 6:])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(0, 16), (0, 3, 16), (2, 0, 3, 16), (2, 3, 0, 16)])
def test_empty(name: str, shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float32)
    assert layer(name)(x).shape == layer(name)(x, offset=100).shape == shape
    assert layer(name)(x, np.arange(shape[-2])).shape == shape


@pairing
@pytest.mark.parametrize("name", ["default", "partial"])
def test_rotate_half(name: str, interleaved: bool) -> None:
    rope, x = layer(name, interleaved=interleaved), normal((2, 5, 16), dtype=np.float64)
    cos, sin = np.ones((5, 16)), np.zeros((5, 16))
    for full, table in ((cos, rope.cos_cached[:5]), (sin, rope.sin_cached[:5])):
        full[:, : rope.rotary_dim] = np.repeat(table, 2, axis=-1) if interleaved else np.tile(table, 2)
    np.testing.assert_allclose(x * cos + rope.rotate_half(x) * sin, rope(x), rtol=0, atol=1e-14)


@once
@pytest.mark.parametrize("name", LAYERS)
def test_copies(name: str) -> None:
    rope = layer(name, max_len=5)
    x = normal((50, 16))
    rope(x), rope(x[:, :], offset=3)
    for twin in (copy.copy(rope), copy.deepcopy(rope), pickle.loads(pickle.dumps(rope))):
        for offset in (0, 3, 100, 0):
            np.testing.assert_array_equal(twin(x, offset=offset), rope(x, offset=offset))
        assert not twin.cos_cached.flags.writeable and not twin.inv_freq.flags.writeable
    assert len(pickle.dumps(rope)) < 4000  # tables are made anew


@pytest.mark.parametrize("name", ["default", "dynamic", "longrope", "partial-yarn"])
def test_from_many_threads(name: str) -> None:
    """Threads that grow tables and change regimes at once get what each gets alone."""
    lengths = [3, 40, 33, 90, 20, 31, 64, 5]
    x = {dtype: normal((100, 16), dtype=dtype) for dtype in (np.float32, np.float64)}

    def calls(rope: hw.RotaryPositionalEmbedding, dtype: type, length: int) -> list[np.ndarray]:
        """A sequence, a step behind it, and a step of two sequences of different lengths."""
        rows = x[dtype]
        step, steps = rope(rows[:1], offset=length), rope(rows[:2, None], [[length], [2]])
        return [rope(rows[:length]), step, steps, rope(rows[:1], [length])]

    expected = {key: calls(layer(name), *key) for key in itertools.product((np.float32, np.float64), lengths)}
    rope = layer(name, max_len=2)
    wrong: list[tuple[type, int]] = []
    start = threading.Barrier(len(lengths))

    def work(seed: int) -> None:
        start.wait()
        for turn in range(30):
            key = (np.float32, np.float64)[(seed + turn // 2) % 2], lengths[(seed + turn) % len(lengths)]
            if not all(map(np.array_equal, calls(rope, *key), expected[key])):
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(len(lengths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- weights for the other pairing ---


@pytest.mark.parametrize("rotary_dim", [None, 10])
@pytest.mark.parametrize("to", ["half", "interleaved"])
def test_permuted_projections_give_the_same_scores(to: str, rotary_dim: int | None) -> None:
    heads, kv_heads, head_dim = 4, 2, 16
    x = normal((2, 9, 24), 1, np.float64)
    weights = normal((24, heads * head_dim), 2, np.float64), normal((24, kv_heads * head_dim), 3, np.float64)
    biases = normal((heads * head_dim,), 4, np.float64), normal((kv_heads * head_dim,), 5, np.float64)

    def scores(weights: Any, biases: Any, interleaved: bool) -> np.ndarray:
        rope = hw.RotaryPositionalEmbedding(head_dim, interleaved=interleaved, rotary_dim=rotary_dim)
        query, key = (
            rope(hw.linear(x, weight, bias).reshape(2, 9, -1, head_dim).swapaxes(1, 2))
            for weight, bias in zip(weights, biases, strict=True)
        )
        return query @ np.repeat(key, heads // kv_heads, axis=1).swapaxes(-1, -2)

    counts = heads, kv_heads
    moved = [
        [hw.permute_rope_weights(a, n, to=to, rotary_dim=rotary_dim) for a, n in zip(arrays, counts, strict=True)]
        for arrays in (weights, biases)
    ]
    before, after = scores(weights, biases, to == "half"), scores(*moved, to != "half")
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-11)
    assert np.abs(scores(weights, biases, to != "half") - before).max() > 1.0, "the pairing matters"


@once
@pytest.mark.parametrize("rotary_dim", [None, 2, 6])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int64"])
def test_permutation_round_trip(dtype: str, rotary_dim: int | None) -> None:
    weight = normal((5, 24), dtype=np.float64).astype(dtype_named(dtype))
    for axis, source in ((-1, weight), (1, weight), (0, weight.T), (-2, weight.T)):
        for to, back in (("half", "interleaved"), ("interleaved", "half")):
            moved = hw.permute_rope_weights(source, 3, to=to, rotary_dim=rotary_dim, axis=axis)
            assert moved.dtype == source.dtype and moved.shape == source.shape
            assert not np.shares_memory(moved, source)
            again = hw.permute_rope_weights(moved, 3, to=back, rotary_dim=rotary_dim, axis=axis)
            np.testing.assert_array_equal(again, source)
            assert np.array_equal(moved, source) == (rotary_dim == 2)


@once
def test_permutation_by_hand() -> None:
    features = np.arange(12)
    assert hw.permute_rope_weights(features, 2, to="half").tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert hw.permute_rope_weights(features, 2, to="interleaved").tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    partial = hw.permute_rope_weights(features, 2, to="half", rotary_dim=4)
    assert partial.tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]


# --- refusals ---

LONGROPE = longrope(4, factor=4.0)
BAD_SCALINGS: dict[str, tuple[type[Exception], str, Any]] = {
    "list": (TypeError, "^scaling: list, expected None or a mapping", [1]),
    "name": (TypeError, "^scaling: str", "yarn"),
    "unknown": (ValueError, r"rope_type'\]: 'ntk', expected one of default, linear, .*longrope", {"rope_type": "ntk"}),
    "unknown-legacy": (ValueError, "'mrope', expected one of", {"type": "mrope"}),
    "type": (TypeError, r"rope_type'\]: int, expected a string", {"rope_type": 3}),
    "missing": (ValueError, "^scaling: no 'factor', which rope_type 'linear' needs", {"rope_type": "linear"}),
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
    "longrope-no-factor": (ValueError, "no 'factor'.*max_position_embeddings to derive it", longrope(4)),
    "longrope-no-length": (
        ValueError,
        "no 'original_max_position_embeddings'",
        {**LONGROPE, "original_max_position_embeddings": None},
    ),
    "dynamic-no-length": (ValueError, "^max_position_embeddings: None", DYNAMIC),
    "unexpected": (
        ValueError,
        "^scaling: 'beta_fast', expected for rope_type 'linear' any of factor",
        {**LINEAR, "beta_fast": 32},
    ),
    "unexpected-default": (ValueError, "^scaling: 'factor'", {"factor": 2.0}),
    "nested": (
        ValueError,
        "'full_attention', 'sliding_attention', expected that of one kind of layer",
        {"full_attention": LINEAR, "sliding_attention": {}},
    ),
    "factor-small": (ValueError, r"^scaling\['factor'\]: 0.5, expected at least 1", {**LINEAR, "factor": 0.5}),
    "factor-nan": (ValueError, r"^scaling\['factor'\]: nan", {**LINEAR, "factor": np.nan}),
    "factor-text": (TypeError, r"^scaling\['factor'\]: str, expected a real number", {**LINEAR, "factor": "4"}),
    "factor-bool": (TypeError, r"^scaling\['factor'\]: bool", {**LINEAR, "factor": True}),
    "theta": (ValueError, r"^scaling\['rope_theta'\]: -1.0, expected a positive number", {"rope_theta": -1}),
    "fraction-zero": (ValueError, r"partial_rotary_factor'\]: 0.0, expected a fraction", {"partial_rotary_factor": 0}),
    "fraction-big": (ValueError, r"partial_rotary_factor'\]: 1.5", {"partial_rotary_factor": 1.5}),
    "fraction-of-nothing": (ValueError, "turns 0 of 8 features", {"partial_rotary_factor": 0.1}),
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
    "llama3-order": (ValueError, "high_freq_factor.*more than low_freq_factor", {**LLAMA3, "high_freq_factor": 1.0}),
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


@once
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "^d_model: 7, expected an even number", {"d_model": 7}),
        (ValueError, "^rotary_dim: 3, expected an even number", {"rotary_dim": 3}),
        (ValueError, "^rotary_dim: 10, expected an even number up to d_model = 8", {"rotary_dim": 10}),
        (ValueError, "^rotary_dim: 0", {"rotary_dim": 0}),
        (TypeError, "^rotary_dim: ", {"rotary_dim": 4.0}),
        (ValueError, "^rotary_dim: 4, expected the 2", {"rotary_dim": 4, "scaling": {"partial_rotary_factor": 0.25}}),
        (ValueError, "^rotary_dim: 4, expected None with", {"rotary_dim": 4, "scaling": PROPORTIONAL}),
        (TypeError, "^interleaved: ", {"interleaved": "yes"}),
        (ValueError, "^base: -2.0", {"base": -2}),
    ],
)
def test_bad_layers(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        hw.RotaryPositionalEmbedding(**{"d_model": 8, **arguments})
    assert hw.RotaryPositionalEmbedding(7, rotary_dim=4)(np.ones((2, 7))).shape == (2, 7)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "^x: shape", {"x": np.ones((2, 6))}),
        (ValueError, "^x: shape", {"x": np.ones(8)}),
        (ValueError, "^x: shape", {"x": np.ones((1, 1, 1, 2, 8))}),
        (ValueError, "^offset: 3, expected 0 where positions are given", {"offset": 3, "positions": [0, 1]}),
        (TypeError, "^offset: ", {"offset": 1.0}),
        (TypeError, "^offset: ", {"offset": None}),
        (ValueError, "^offset: ", {"offset": 2**60}),
        (ValueError, "^positions: shape", {"positions": [0, 1, 2]}),
        (TypeError, "^positions: ", {"positions": [0.0, 1.0]}),
        (TypeError, "^positions: ", {"positions": [True, False]}),
        (ValueError, "^out: shape", {"out": np.ones((2, 6))}),
        (TypeError, "^out: dtype float32", {"out": np.ones((2, 8), np.float32)}),
        (TypeError, "^out: list", {"out": []}),
    ],
)
def test_bad_calls(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    out = arguments.get("out")
    before = None if out is None else np.copy(out)
    with pytest.raises(error, match=message):
        hw.RotaryPositionalEmbedding(8).forward(**{"x": np.ones((2, 8)), **arguments})
    if out is not None:
        np.testing.assert_array_equal(out, before)


def test_out_that_overlaps() -> None:
    memory = np.ones((3, 8))
    with pytest.raises(ValueError, match=r"^out: shares memory with x"):
        hw.RotaryPositionalEmbedding(8)(memory[:2], out=memory[1:])


@once
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "^to: 'halves', expected 'half' or 'interleaved'", {"to": "halves"}),
        (TypeError, "^to: bool", {"to": True}),
        (ValueError, "^weight: shape .*divisible by num_heads = 5", {"num_heads": 5}),
        (ValueError, "^weight: .*even", {"num_heads": 4, "weight": np.ones((2, 12))}),
        (ValueError, "^num_heads: 0", {"num_heads": 0}),
        (TypeError, "^num_heads: ", {"num_heads": 2.0}),
        (ValueError, "^rotary_dim: 3 ", {"rotary_dim": 3}),
        (ValueError, "^rotary_dim: 6 ", {"rotary_dim": 6}),
        (ValueError, "^axis: 2", {"axis": 2}),
        (ValueError, "^weight: a scalar", {"weight": 1.0}),
        (ValueError, "^weight: shape", {"weight": np.ones((2, 0))}),
    ],
)
def test_bad_permutations(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        hw.permute_rope_weights(**{"weight": np.ones((2, 8)), "num_heads": 2, "to": "half", **arguments})
