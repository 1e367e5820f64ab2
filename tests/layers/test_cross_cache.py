"""Cross-attention with keys and values that are projected once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import headwise as hw
from support import dtype_named, normal

pytestmark = pytest.mark.above_operations

LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_kv_heads": 2, "head_dim": 6, "bias": True, "qk_norm": "head"},
    "widths": {"kdim": 10, "qk_norm": "full"},
    "rope": {"rope": hw.RotaryPositionalEmbedding(6), "sinks": True, "softcap": 3.0},
    "alibi": {"alibi": True, "window_size": (4, 1)},
}


def make(name: str) -> tuple[hw.MultiHeadAttention, np.ndarray, np.ndarray]:
    """A layer, queries and the output of an encoder."""
    layer = hw.MultiHeadAttention(24, 4, rng=0, **LAYERS[name])
    return layer, normal((3, 5, 24)), normal((3, 8, layer.kdim), 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_results_equal_those_of_one_call(name: str, dtype: str) -> None:
    layer, x, encoded = make(name)
    x, encoded = x.astype(dtype_named(dtype)), encoded.astype(dtype_named(dtype))
    value = normal((3, 8, 24), 2).astype(encoded.dtype) if layer.kdim != layer.vdim else None
    cache = layer.make_cross_cache(encoded, value)
    assert len(cache) == 8 and cache.batch_size == 3 and bool(cache)
    keep = np.random.default_rng(0).random((3, 8)) < 0.7
    bounds = {"rtol": 0, "atol": {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6, "float64": 1e-14}[dtype]}
    right = {"causal_alignment": "lower_right", "key_lengths": [8, 5, 6]}
    for options in ({}, {"key_padding_mask": keep}, {"mask": keep[:, None]}, {"key_lengths": [8, 2, 5]}, right):
        expected = layer(x, encoded, value, return_lse=True, **options)
        for _ in range(3):  # also with packed weights
            got = layer(x, cache=cache, return_lse=True, **options)
            for ours, theirs in zip(got, expected, strict=True):
                assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
                np.testing.assert_allclose(ours.astype(float), theirs.astype(float), **bounds)
    assert layer(x, cache=cache, need_weights=False)[1] is None
    tokens = [layer(x[:, i : i + 1], cache=cache, **({"positions": [i]} if layer.rope else {}))[0] for i in range(5)]
    if name != "alibi":  # whose distances count from the first query of a call
        whole = layer(x, cache=cache)[0].astype(float)
        np.testing.assert_allclose(np.concatenate(tokens, axis=1).astype(float), whole, **bounds)


def test_unbatched_and_select() -> None:
    layer, x, encoded = make("grouped")
    one = layer.make_cross_cache(encoded[0])
    np.testing.assert_allclose(layer(x[0], cache=one)[0], layer(x[0], encoded[0])[0], atol=2e-6)
    cache = layer.make_cross_cache(encoded)
    beams = cache.select([2, 0, 0, 1])
    rows = x[[2, 0, 0, 1]]
    np.testing.assert_allclose(layer(rows, cache=beams)[0], layer(rows, encoded[[2, 0, 0, 1]])[0], atol=2e-6)
    with pytest.raises(ValueError, match="read-only"):
        cache.keys[...] = 0.0
    assert repr(beams) == "CrossCache(batch_size=4, num_kv_heads=2, key_len=8, head_dim=6)"


def test_whisper() -> None:
    """A decoder's cross-attention, from the configuration and the state dict of its module."""
    torch = pytest.importorskip("torch", reason="transformers computes with PyTorch, which is not installed")
    transformers = pytest.importorskip("transformers", reason="the comparison needs the package transformers")
    from transformers.models.whisper.modeling_whisper import WhisperAttention

    config = transformers.WhisperConfig(d_model=24, encoder_attention_heads=4, decoder_attention_heads=4)
    torch.manual_seed(0)
    module = WhisperAttention(24, 4, is_decoder=True, layer_idx=0, config=config).double().eval()
    layer = hw.MultiHeadAttention.from_config(config)
    layer.load_state_dict(module.state_dict())
    x, encoded = normal((2, 3, 24), dtype=np.float64), normal((2, 9, 24), 1, np.float64)
    with torch.no_grad():
        expected = module(torch.from_numpy(x), key_value_states=torch.from_numpy(encoded))[0].numpy()
    got, _ = layer(x, cache=layer.make_cross_cache(encoded))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.single_implementation
def test_errors() -> None:
    layer, x, encoded = make("plain")
    cache = layer.make_cross_cache(encoded)
    other = hw.MultiHeadAttention(24, 4, num_kv_heads=2)
    cases: list[tuple[type[Exception], str, Any]] = [
        (ValueError, "^cache: given with a key or value", lambda: layer(x, encoded, cache=cache)),
        (ValueError, r"^query: shape \(2, 5, 24\), expected a batch of 3", lambda: layer(x[:2], cache=cache)),
        (TypeError, "^query: dtype float64, expected .* float32", lambda: layer(x.astype(float), cache=cache)),
        (ValueError, "^cache: CrossCache.*expected 2 heads of width 6", lambda: other(x, cache=cache)),
        (
            ValueError,
            "^lengths: given with the cache of make_cross_cache",
            lambda: layer(x, cache=cache, lengths=[1] * 3),
        ),
        (
            TypeError,
            "^cache: dict, expected a KVCache, .* or the cache of make_cross_cache",
            lambda: layer(x, cache={}),
        ),
        (ValueError, r"^key_value: shape \(3, 8, 7\), expected", lambda: layer.make_cross_cache(encoded[..., :7])),
        (ValueError, r"^value: shape \(3, 8, 7\), expected", lambda: layer.make_cross_cache(encoded, encoded[..., :7])),
        (ValueError, "^indices: 3, expected at most 2", lambda: cache.select([3])),
        (ValueError, "^indices: -1, expected at least 0", lambda: cache.select([-1])),
        (ValueError, r"^indices: shape \(\)", lambda: cache.select(1)),
        (TypeError, "^indices: 0.5", lambda: cache.select([0.5])),
        (ValueError, "^mask: shape", lambda: layer(x, cache=cache, mask=np.ones((3, 5, 7)))),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
