"""RoPE entries of published configurations, pinned sequence lengths, given frequencies and tables."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import headwise as hw
from headwise.rope import rope_parameters
from positions.rope_scalings import SMALL, YARN, longrope
from support import normal

once = pytest.mark.single_implementation

MROPE: list[dict[str, Any]] = [
    {"type": "mrope", "mrope_section": [16, 24, 24]},  # Qwen2-VL
    {"rope_type": "default", "type": "default", "mrope_section": [16, 24, 24]},  # Qwen2.5-VL
    {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True, "interleaved": True},
]
#: Ministral 3 as published, with the length as in the mapping.
MINISTRAL: dict[str, Any] = {
    "type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "max_position_embeddings": 262144,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}


@pytest.fixture
def transformers() -> Any:
    pytest.importorskip("torch", reason="transformers computes with PyTorch, which is not installed")
    return pytest.importorskip("transformers", reason="the comparison needs the package transformers")


@once
@pytest.mark.parametrize("scaling", MROPE, ids=["qwen2-vl", "qwen2.5-vl", "qwen3-omni"])
def test_sections_of_images_change_nothing_for_text(scaling: dict[str, Any]) -> None:
    np.testing.assert_array_equal(rope_parameters(128, scaling=scaling)[0], rope_parameters(128)[0])
    long_context = {**YARN, "mrope_section": [16, 24, 24]}
    np.testing.assert_array_equal(rope_parameters(128, scaling=long_context)[0], rope_parameters(128, scaling=YARN)[0])


@once
def test_text_of_qwen2_vl(transformers: Any) -> None:
    import torch
    from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen

    sections = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = transformers.Qwen2VLTextConfig(hidden_size=32, num_attention_heads=2, rope_parameters=sections)
    query = normal((2, 4, 9, 16))
    positions = torch.arange(9).expand(3, 2, 9)  # text: three equal coordinates
    cos, sin = qwen.Qwen2VLRotaryEmbedding(config)(torch.from_numpy(query), positions)
    section = [] if cos.ndim == 3 else [sections["mrope_section"]]
    rotate = qwen.apply_rotary_pos_emb if cos.ndim == 3 else qwen.apply_multimodal_rotary_pos_emb
    expected, _ = rotate(torch.from_numpy(query), torch.from_numpy(query), cos, sin, *section)
    np.testing.assert_allclose(hw.RotaryPositionalEmbedding(16, scaling=sections)(query), expected, atol=2e-5)


@once
def test_scales_of_phi_moe(transformers: Any) -> None:
    """For longer sequences the module of transformers 5.24 takes the divisors of short ones; its function does not."""
    import torch
    from transformers.models.phimoe import modeling_phimoe as phi

    scaling = {**longrope(8, 32), "short_mscale": 1.25, "long_mscale": 1.75, "rope_theta": 1e4}
    config = transformers.PhimoeConfig(
        hidden_size=32, num_attention_heads=2, max_position_embeddings=256, rope_parameters=dict(scaling)
    )
    theirs = phi.PhimoeRotaryEmbedding(config)
    ours = hw.RotaryPositionalEmbedding(16, scaling=scaling)
    assert ours.attention_factor == 1.25
    for length in (5, 32, 33, 60):
        x = np.ones((1, 1, length, 16))
        cos, _ = theirs(torch.zeros(1), torch.arange(length)[None])
        inv_freq, factor = rope_parameters(16, scaling=scaling, seq_len=length)
        assert factor == pytest.approx(cos[0, 0, 0].item()) == (1.25 if length <= 32 else 1.75)
        if length <= 32:
            np.testing.assert_allclose(hw.rope_tables(range(length), inv_freq, factor)[0], cos[0, :, :8], atol=1e-5)
        expected = hw.apply_rope(x, *hw.rope_tables(range(length), inv_freq, factor))
        np.testing.assert_array_equal(ours(x), expected)


@once
def test_query_scale_of_ministral(transformers: Any) -> None:
    import torch
    from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale

    rope = hw.RotaryPositionalEmbedding(16, scaling=MINISTRAL)
    positions = np.array([[0, 1, 16383, 16384], [16385, 40000, 262143, 5]])
    expected = get_llama_4_attn_scale(torch.from_numpy(positions), 0.1, 16384)[:, 0, :, 0]
    got = rope.query_scale(positions)
    assert got is not None
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-6)
    assert hw.RotaryPositionalEmbedding(16).query_scale(positions) is None


def test_layers_scale_queries() -> None:
    """Whole, token by token, and with positions of each sequence."""
    scaling = {"rope_type": "default", "original_max_position_embeddings": 4, "llama_4_scaling_beta": 0.5}
    x = normal((2, 9, 24), dtype=np.float64)
    layer = hw.CausalAttention(24, 4, rope=hw.RotaryPositionalEmbedding(6, scaling=scaling), rng=0)
    plain = hw.CausalAttention(24, 4, rope=hw.RotaryPositionalEmbedding(6), rng=0)
    # The ratio of the first two weights of a row is exp of the difference of their scores.
    first, second = (np.log(one(x)[1][:, :, 1:, 0] / one(x)[1][:, :, 1:, 1]) for one in (layer, plain))
    np.testing.assert_allclose(first, second * (1 + 0.5 * np.log1p(np.arange(1, 9) // 4)), atol=1e-12)
    whole, _ = layer(x)
    cache = layer.make_cache(2, 9, dtype=np.float64)
    steps = [layer(x[:, i : i + 1], cache=cache)[0] for i in range(9)]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), whole, atol=1e-13)
    positions = np.stack([np.arange(9), np.arange(3, 12)])
    each = [layer(x[i : i + 1], positions=positions[i])[0] for i in range(2)]
    np.testing.assert_allclose(layer(x, positions=positions)[0], np.concatenate(each), atol=1e-13)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
@pytest.mark.parametrize("sizes", [[20, 40], [1] * 60, [20, 39, 1]])
def test_chunks_of_a_pinned_length_equal_one_call(name: str, sizes: list[int]) -> None:
    x = normal((1, 60, 16), dtype=np.float64)

    def chunks(rope: hw.RotaryPositionalEmbedding) -> np.ndarray:
        starts = np.cumsum([0, *sizes]).tolist()
        return np.concatenate([rope(x[:, a:b], offset=a) for a, b in pairwise(starts)], axis=1)

    def layer(**more: Any) -> hw.RotaryPositionalEmbedding:
        return hw.RotaryPositionalEmbedding(16, scaling=SMALL[name], max_position_embeddings=32, **more)

    whole = layer()(x)
    pinned = layer(regime=60)
    np.testing.assert_array_equal(chunks(pinned), whole)
    assert np.abs(chunks(layer()) - whole).max() > 0.01  # frequencies of the first chunk are those of its length
    inv_freq, factor = rope_parameters(16, scaling=SMALL[name], seq_len=60, max_position_embeddings=32)
    np.testing.assert_array_equal(pinned.inv_freq, inv_freq)
    assert pinned.attention_factor == factor
    np.testing.assert_array_equal(layer(regime=5)(x[:, :20]), layer()(x[:, :20]))


@pytest.mark.parametrize("name", SMALL)
def test_keys_move_without_a_second_factor(name: str) -> None:
    rope = hw.RotaryPositionalEmbedding(16, scaling=SMALL[name], max_position_embeddings=32)
    again = hw.RotaryPositionalEmbedding(16, inv_freq=rope.inv_freq)
    assert again.attention_factor == 1.0
    key = normal((1, 2, 6, 16), dtype=np.float64)
    np.testing.assert_allclose(again(rope(key, offset=3), [7] * 6), rope(key, offset=10), atol=1e-13)
    np.testing.assert_allclose(again(rope(key, offset=10), [-7] * 6), rope(key, offset=3), atol=1e-13)


def test_given_frequencies() -> None:
    x = normal((2, 5, 12), dtype=np.float64)
    inv_freq = np.array([0.5, 0.0, -2.0])
    rope = hw.RotaryPositionalEmbedding(12, inv_freq=inv_freq, interleaved=True)
    assert rope.rotary_dim == 6
    expected = x.copy()
    expected[..., :6] = hw.apply_rope(x[..., :6], *hw.rope_tables(range(5), inv_freq), interleaved=True)
    np.testing.assert_array_equal(rope(x), expected)
    inv_freq[:] = 9.0
    np.testing.assert_array_equal(rope(x), expected)


@once
def test_tables_equal_those_of_the_layer() -> None:
    rope = hw.RotaryPositionalEmbedding(16, scaling=SMALL["yarn"])
    cos, sin = hw.rope_tables(np.arange(2048), rope.inv_freq, rope.attention_factor)
    np.testing.assert_array_equal(cos, rope.cos_cached)
    np.testing.assert_array_equal(sin, rope.sin_cached)
    half, _ = hw.rope_tables([[0.5, 3.5]], [1.0, 2.0])
    np.testing.assert_allclose(half, np.cos([[[0.5, 1.0], [3.5, 7.0]]]))
    assert hw.rope_tables(3, [1.0])[0].shape == (1,)


@once
@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"^inv_freq: shape \(1, 2\), expected a number for each pair", {"inv_freq": [[1.0, 2.0]]}),
        (ValueError, "^inv_freq: nan, expected finite", {"inv_freq": [1.0, np.nan]}),
        (ValueError, "^inv_freq: 5 numbers, expected 1 to d_model / 2 = 4", {"inv_freq": [1.0] * 5}),
        (ValueError, "^inv_freq: 0 numbers", {"inv_freq": []}),
        (ValueError, "^inv_freq: given with scaling", {"inv_freq": [1.0], "scaling": YARN}),
        (ValueError, "^rotary_dim: 6, expected 2 as by inv_freq", {"inv_freq": [1.0], "rotary_dim": 6}),
        (TypeError, "^inv_freq: dtype", {"inv_freq": ["a"]}),
        (ValueError, "^regime: 0, expected at least 1", {"regime": 0}),
        (TypeError, "^regime: ", {"regime": "long"}),
    ],
)
def test_bad_arguments(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        hw.RotaryPositionalEmbedding(8, **arguments)


@once
def test_bad_tables() -> None:
    with pytest.raises(ValueError, match=r"^inv_freq: shape \(1, 1\), expected \(pairs,\)"):
        hw.rope_tables([0], [[1.0]])
    with pytest.raises(TypeError, match=r"^positions: dtype"):
        hw.rope_tables(["a"], [1.0])
    with pytest.raises(ValueError, match=r"^factor: nan"):
        hw.rope_tables([0], [1.0], np.nan)
    with pytest.raises(ValueError, match=r"^positions: shape \(3, 2, 5\).*several coordinates use rope_tables"):
        hw.RotaryPositionalEmbedding(4)(np.ones((2, 1, 5, 4)), np.zeros((3, 2, 5), int))


@once
@pytest.mark.parametrize("times", [5e-324, 1e-320, 1e300])
def test_extreme_yarn_betas(times: float) -> None:
    for key in ("beta_fast", "beta_slow"):
        given = {"beta_fast": 1e300, "beta_slow": 5e-324, key: times}
        inv_freq, _ = rope_parameters(16, scaling={**YARN, **given})
        assert np.isfinite(inv_freq).all()
