"""Options of a multi-head layer besides its four projections: biases, fewer key heads, other widths, positions, default
keywords, a cache, and the parameters of other libraries."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headwise as hw
import oracle

pytestmark = pytest.mark.above_operations


def by_hand(layer: Any, q: Any, k: Any, v: Any, turn: Callable[..., Any] | None = None, **keywords: Any) -> Any:
    """The layer in float64, one head at a time; ``turn(heads)`` rotates queries and keys."""

    def heads(x: Any, letter: str, count: int) -> np.ndarray:
        W, b = getattr(layer, "W_" + letter), getattr(layer, "b_" + letter)
        projected = np.asarray(x, float) @ np.asarray(W, float) + (0.0 if b is None else np.asarray(b, float))
        return np.stack(np.split(projected, count, axis=-1), axis=1)

    query, key = heads(q, "q", layer.num_heads), heads(k, "k", layer.num_kv_heads)
    if turn is not None:
        query, key = turn(query), turn(key)
    group = layer.num_heads // layer.num_kv_heads
    key, value = (np.repeat(a, group, axis=1) for a in (key, heads(v, "v", layer.num_kv_heads)))
    output, weights, lse = oracle.attention(query, key, value, **keywords)
    joined = np.concatenate(np.moveaxis(output, 1, 0), axis=-1)
    b_o = 0.0 if layer.b_o is None else layer.b_o
    return oracle.Attention(joined @ np.asarray(layer.W_o, float) + b_o, weights, lse)


def with_biases(layer: Any, seed: int = 5) -> Any:
    rng = np.random.default_rng(seed)
    for name in ("b_q", "b_k", "b_v", "b_o"):
        setattr(layer, name, rng.standard_normal(getattr(layer, name).shape))
    return layer


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((2, 7, 24))


def same(got: Any, expected: Any, atol: float = 1e-12) -> None:
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


class TestShapes:
    @pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
    @pytest.mark.parametrize("bias", [False, True])
    def test_grouped_heads_and_biases(self, x: np.ndarray, num_kv_heads: int, bias: bool) -> None:
        layer = hw.MultiHeadAttention(24, 6, num_kv_heads=num_kv_heads, bias=bias, rng=0)
        assert layer.W_k.shape == layer.W_v.shape == (24, num_kv_heads * 4)
        if bias:
            assert not any(getattr(layer, name).any() for name in ("b_q", "b_k", "b_v", "b_o"))
            with_biases(layer)
        else:
            assert layer.b_q is layer.b_k is layer.b_v is layer.b_o is None
        for _ in range(3):  # joined, then packed
            same(layer(x, return_lse=True), by_hand(copy.deepcopy(layer), x, x, x))
        single = x.astype(np.float32)
        same(layer(single, is_causal=True)[:1], by_hand(layer, x, x, x, is_causal=True)[:1], atol=1e-5)

    def test_one_bias_alone(self, x: np.ndarray) -> None:
        layer = hw.MultiHeadAttention(24, 4, rng=0)
        layer.b_v = np.arange(24.0)
        for _ in range(3):
            same(layer(x)[:1], by_hand(copy.deepcopy(layer), x, x, x)[:1])
        layer.b_v = None
        same(layer(x)[:1], by_hand(layer, x, x, x)[:1])

    def test_separate_key_and_value_widths(self, x: np.ndarray, rng: np.random.Generator) -> None:
        layer = with_biases(hw.MultiHeadAttention(24, 4, num_kv_heads=2, kdim=10, vdim=7, bias=True, rng=0))
        key, value = rng.standard_normal((2, 5, 10)), rng.standard_normal((2, 5, 7))
        assert layer.W_k.shape == (10, 12)
        assert layer.W_v.shape == (7, 12)
        for _ in range(3):
            same(layer(x, key, value)[:2], by_hand(copy.deepcopy(layer), x, key, value)[:2])
        with pytest.raises(ValueError, match=r"^key: shape .* 10"):
            layer(x)
        with pytest.raises(ValueError, match=r"^value: shape .* 7"):
            layer(x, key)

    def test_biases_keep_their_shape(self) -> None:
        layer = hw.MultiHeadAttention(24, 4, num_kv_heads=2, bias=True)
        with pytest.raises(ValueError, match=r"^b_k: shape \(24,\), expected \(kv_width\) = \(12,\)"):
            layer.b_k = np.zeros(24)
        with pytest.raises(TypeError, match=r"^W_q: None"):
            layer.W_q = None

    @pytest.mark.parametrize(
        ("error", "message", "keywords"),
        [
            (ValueError, "^num_kv_heads: 4, expected .* divisible", {"num_kv_heads": 4}),
            (ValueError, "^num_kv_heads", {"num_kv_heads": 0}),
            (ValueError, "^kdim", {"kdim": 0}),
            (TypeError, "^vdim", {"vdim": 1.5}),
            (TypeError, "^bias", {"bias": 1.5}),
            (ValueError, "^alibi", {"alibi": np.ones(5)}),
            (ValueError, "^relative", {"relative": np.ones((6, 1, 4))}),
            (ValueError, "^relative", {"relative": np.ones((1, 2, 5))}),
            (TypeError, "^relative", {"relative": "t5"}),
            (ValueError, "^relative: of width 8, expected d_k = 4", {"relative": hw.RelativePositionalEncoding(8)}),
            (ValueError, "^relative: entries .*, expected num_buckets, max_distance, b", {"relative": {"buckets": 8}}),
            (ValueError, r"^relative\['num_buckets'\]", {"relative": {"num_buckets": 3, "bidirectional": True}}),
            (TypeError, r"^relative\['bidirectional'\]", {"relative": {"num_buckets": 8, "bidirectional": "no"}}),
            (
                ValueError,
                r"^relative\['max_distance'\]",
                {"relative": {"num_buckets": 8, "bidirectional": False, "max_distance": 4}},
            ),
            (TypeError, "^sinks", {"sinks": np.ones(6)}),
            (TypeError, "^rope: int", {"rope": 4}),
            (ValueError, "^rope: of width 8, expected .* 4", {"rope": hw.RotaryPositionalEmbedding(8)}),
            (ValueError, "^window_size", {"window_size": -2}),
            (ValueError, "^softcap", {"softcap": 0.0}),
            (TypeError, "^scale", {"scale": "1"}),
            (ValueError, "^precision", {"precision": "exact"}),
        ],
    )
    def test_bad_construction(self, error: type[Exception], message: str, keywords: dict[str, Any]) -> None:
        with pytest.raises(error, match=message):
            hw.MultiHeadAttention(24, 6, **keywords)


class TestDefaults:
    def test_default_keywords(self, x: np.ndarray) -> None:
        defaults: dict[str, Any] = {"window_size": (2, 1), "softcap": 3.0, "scale": 0.7}
        layer = hw.MultiHeadAttention(24, 6, alibi=True, sinks=True, precision="high", rng=0, **defaults)
        layer.sinks = np.linspace(-1, 1, 6)
        keywords = defaults | {"sinks": layer.sinks, "alibi_slopes": hw.alibi_slopes(6)}
        tolerance = 1e-12  # float64 has one precision
        same(layer(x, return_lse=True), by_hand(layer, x, x, x, **keywords), tolerance)
        keywords["window_size"] = None
        keywords["scale"] = 0.2
        same(layer(x, window_size=None, scale=0.2)[:2], by_hand(layer, x, x, x, **keywords)[:2], tolerance)

    def test_sinks_are_a_parameter(self, x: np.ndarray) -> None:
        layer = hw.MultiHeadAttention(24, 6, sinks=True, rng=0)
        assert layer.sinks.tolist() == [0.0] * 6
        assert "sinks" in layer.state_dict()
        before = layer(x)[1].sum(axis=-1)
        layer.sinks += 1.0
        assert (layer(x)[1].sum(axis=-1) < before).all()
        layer.sinks = None
        np.testing.assert_allclose(layer(x)[1].sum(axis=-1), 1.0)


class TestRope:
    @pytest.mark.parametrize("interleaved", [False, True])
    @pytest.mark.parametrize("num_kv_heads", [2, 4])
    def test_queries_and_keys_are_rotated(self, x: np.ndarray, interleaved: bool, num_kv_heads: int) -> None:
        rope = hw.RotaryPositionalEmbedding(6, interleaved=interleaved)
        layer = hw.MultiHeadAttention(24, 4, num_kv_heads=num_kv_heads, rope=rope, rng=0)
        before = x.copy()
        for _ in range(3):
            same(layer(x)[:2], by_hand(copy.deepcopy(layer), x, x, x, rope)[:2])
        np.testing.assert_array_equal(x, before)
        positions = np.array([[5, 9, 100, 3, 0, 2, 1], [0, 1, 2, 3, 4, 5, 6]])
        turned = by_hand(layer, x, x, x, lambda heads: rope(heads, positions))
        same(layer(x, positions=positions)[:2], turned[:2])

    def test_unbatched_with_a_narrow_head(self, x: np.ndarray) -> None:
        layer = hw.MultiHeadAttention(24, 4, rope=hw.RotaryPositionalEmbedding(6), rng=0)
        same(layer(x[0])[:1], [layer(x)[0][0]])
        half = layer(x.astype(np.float16))[0]
        assert half.dtype == np.float16
        np.testing.assert_allclose(half, layer(x)[0], atol=5e-3)

    def test_positions_of_cross_attention(self, x: np.ndarray, rng: np.random.Generator) -> None:
        rope = hw.RotaryPositionalEmbedding(6)
        layer = hw.MultiHeadAttention(24, 4, rope=rope, rng=0)
        memory = rng.standard_normal((2, 9, 24))
        same(layer(x, memory)[:2], by_hand(layer, x, memory, memory, rope)[:2])
        late = np.arange(2, 9)
        turned = by_hand(layer, x, memory, memory, lambda h: rope(h, late) if h.shape[2] == 7 else rope(h))
        same(layer(x, memory, causal_alignment="lower_right")[:2], turned[:2])
        same(layer(x, memory, positions=late)[:2], turned[:2])

    def test_bad_positions(self, x: np.ndarray) -> None:
        layer = hw.MultiHeadAttention(24, 4, rope=hw.RotaryPositionalEmbedding(6), rng=0)
        with pytest.raises(ValueError, match=r"^positions"):
            layer(x, positions=[1, 2])
        with pytest.raises(ValueError, match=r"^positions: given without rope"):
            hw.MultiHeadAttention(24, 4, rng=0)(x, positions=range(7))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"rope": hw.RotaryPositionalEmbedding(6), "num_kv_heads": 2, "bias": True},
    {"alibi": True, "sinks": True, "num_kv_heads": 1},
    {"window_size": (3, 0), "softcap": 2.0, "rope": hw.RotaryPositionalEmbedding(6, interleaved=True)},
    {"relative": hw.RelativePositionalEncoding(6, 3, rng=1), "num_kv_heads": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "rope", "alibi", "window", "shaw"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-14)])
class TestCache:
    @staticmethod
    def make(options: dict[str, Any]) -> hw.CausalAttention:
        layer = hw.CausalAttention(24, 4, rng=0, **options)
        return with_biases(layer) if options.get("bias") else layer

    @pytest.mark.parametrize("sizes", [[1] * 7, [4, 3], [5, 1, 1], [7]])
    def test_chunks_equal_one_call(
        self, x: Any, options: dict[str, Any], dtype: Any, tolerance: float, sizes: list[int]
    ) -> None:
        layer, x = self.make(options), x.astype(dtype)
        whole, weights = layer(x)
        cache = layer.make_cache(2, 7, dtype=dtype)
        start = 0
        for size in sizes:
            part = slice(start, start + size)
            output, seen = layer(x[:, part], cache=cache)
            np.testing.assert_allclose(output, whole[:, part], atol=10 * tolerance)
            np.testing.assert_allclose(seen, weights[:, :, part, : part.stop], atol=10 * tolerance)
            start += size
        assert cache.lengths.tolist() == [7, 7]

    def test_a_ring_is_a_window(self, x: Any, options: dict[str, Any], dtype: Any, tolerance: float) -> None:
        layer, x = self.make(options), x.astype(dtype)
        narrowest = min(3, options.get("window_size", (3, 0))[0])
        whole, _ = layer(x, window_size=(narrowest, 0))
        for sizes in ([1] * 7, [7], [2, 5]):
            cache = layer.make_cache(2, 4, dtype=dtype, ring=True)
            parts = np.split(x, np.cumsum(sizes)[:-1], axis=1)
            outputs = [layer(part, cache=cache, need_weights=False)[0] for part in parts]
            np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole, atol=10 * tolerance)

    def test_sequences_of_different_lengths(
        self, x: Any, options: dict[str, Any], dtype: Any, tolerance: float
    ) -> None:
        """Prompts of 3 and 5 tokens, padded at the end, and two more tokens."""
        layer, x = self.make(options), x.astype(dtype)
        cache = layer.make_cache(2, 7, dtype=dtype)
        prompt = x[:, :5].copy()
        prompt[0, 3:] = np.nan
        first, _ = layer(prompt, cache=cache, lengths=[3, 5], need_weights=False)
        for i, n in enumerate([3, 5]):
            alone, _ = layer(x[i, :n])
            np.testing.assert_allclose(first[i, :n], alone, atol=10 * tolerance)
        last = np.stack([x[0, 3:5], x[1, 5:7]])
        then, _ = layer(last, cache=cache, need_weights=False)
        for i, n in enumerate([5, 7]):
            alone, _ = layer(x[i, :n])
            np.testing.assert_allclose(then[i], alone[-2:], atol=10 * tolerance)

    def test_masks_cover_the_stored_keys(self, x: Any, options: dict[str, Any], dtype: Any, tolerance: float) -> None:
        layer, x = self.make(options), x.astype(dtype)
        mask = np.random.default_rng(2).random((2, 7, 7)) < 0.7
        whole, _ = layer(x, mask=mask)
        cache = layer.make_cache(2, 7, dtype=dtype)
        layer(x[:, :4], cache=cache, mask=mask[:, :4, :4])
        output, _ = layer(x[:, 4:], cache=cache, mask=mask[:, 4:])
        np.testing.assert_allclose(output, whole[:, 4:], atol=10 * tolerance)

    def test_unbatched(self, x: Any, options: dict[str, Any], dtype: Any, tolerance: float) -> None:
        layer, x = self.make(options), x[0].astype(dtype)
        cache = layer.make_cache(1, 7, dtype=dtype)
        steps = [layer(x[i : i + 1], cache=cache)[0] for i in range(7)]
        np.testing.assert_allclose(np.concatenate(steps), layer(x)[0], atol=10 * tolerance)


class TestBadCacheCalls:
    def test_full_cache_is_refused(self, x: np.ndarray) -> None:
        layer = hw.CausalAttention(24, 4, rng=0)
        cache = layer.make_cache(2, 8, dtype=np.float64)
        layer(x, cache=cache)
        before = cache.keys.copy()
        with pytest.raises(ValueError, match=r"2 new rows, but 7 stored rows of sequence 0 leave only 1 of"):
            layer(x[:, :2], cache=cache)
        np.testing.assert_array_equal(cache.keys, before)
        assert layer(x[:, :1], cache=cache)[0].shape == (2, 1, 24)

    @pytest.mark.parametrize(
        ("error", "message", "call"),
        [
            (ValueError, "^cache: .*self-attention", lambda f, x, c: f(x, x[:, ::-1], cache=c)),
            (TypeError, "^cache: dict, expected a KVCache", lambda f, x, c: f(x, cache={})),
            (ValueError, "^cache: .*training", lambda f, x, c: f(x, cache=c, training=True)),
            (
                ValueError,
                "^key_padding_mask: .*lengths",
                lambda f, x, c: f(x, cache=c, key_padding_mask=np.ones((2, 7))),
            ),
            (ValueError, "^lengths: .*key_lengths", lambda f, x, c: f(x, lengths=[7, 7])),
            (ValueError, "^lengths: 8", lambda f, x, c: f(x, cache=c, lengths=[8, 7])),
            (ValueError, "^query: shape", lambda f, x, c: f(x[:1], cache=c)),
            (TypeError, "^query: dtype float32, expected float64", lambda f, x, c: f(x.astype(np.float32), cache=c)),
            (ValueError, "^mask", lambda f, x, c: f(x, cache=c, mask=np.ones((7, 6)))),
            (ValueError, "^batch_size", lambda f, x, c: f.make_cache(0, 3)),
        ],
    )
    def test_a_refused_call_writes_nothing(
        self, x: Any, error: type[Exception], message: str, call: Callable[..., Any]
    ) -> None:
        layer = hw.CausalAttention(24, 4, dropout=0.1, rng=0)
        cache = layer.make_cache(2, 8, dtype=np.float64)
        with pytest.raises(error, match=message):
            call(layer, x, cache)
        assert len(cache) == 0


class TestStateDicts:
    @pytest.mark.parametrize("form", ["headwise", "torch", "llama", "bert"])
    def test_round_trip(self, x: np.ndarray, form: str) -> None:
        one = with_biases(hw.MultiHeadAttention(24, 4, bias=True, rng=1))
        other = hw.MultiHeadAttention(24, 4, bias=True, rng=2)
        other.load_state_dict(one.state_dict(form, prefix="a."), prefix="a.")
        np.testing.assert_array_equal(one(x)[0], other(x)[0])

    def test_loading_replaces_packed_weights(self, x: np.ndarray) -> None:
        one, other = hw.MultiHeadAttention(24, 4, rng=1), hw.MultiHeadAttention(24, 4, rng=2)
        for _ in range(3):
            other(x)
        state = one.state_dict()
        other.load_state_dict(state)
        np.testing.assert_array_equal(one(x)[0], other(x)[0])
        state["W_q"][...] = 0.0  # both load_state_dict and state_dict copy
        np.testing.assert_array_equal(one(x)[0], other(x)[0])

    def test_a_refused_load_changes_nothing(self, x: np.ndarray) -> None:
        layer = hw.MultiHeadAttention(24, 4, num_kv_heads=2, rng=1)
        before = layer(x)[0]
        state = hw.MultiHeadAttention(24, 4, num_kv_heads=2, rng=2).state_dict("llama")
        del state["v_proj.weight"]
        state["k_proj.weight"] = np.ones((24, 24))
        state["k_proj.bias"] = np.ones(24)
        with pytest.raises(ValueError) as caught:
            layer.load_state_dict(state)
        for part in ("v_proj.weight", "k_proj.weight", "(24, 24)", "(12, 24)", "k_proj.bias"):
            assert part in str(caught.value)
        np.testing.assert_array_equal(layer(x)[0], before)

    def test_round_trip_through_torch(self, x: np.ndarray) -> None:
        torch = pytest.importorskip("torch", reason="compares with the package torch")
        theirs = torch.nn.MultiheadAttention(24, 4, batch_first=True, dtype=torch.float64).eval()
        ours = hw.MultiHeadAttention(24, 4, bias=True)
        ours.load_state_dict(theirs.state_dict())
        with torch.no_grad():
            expected = theirs(*[torch.from_numpy(x)] * 3, average_attn_weights=False)
        same(ours(x)[:2], [tensor.numpy() for tensor in expected])


def test_copies_and_pickles(x: np.ndarray) -> None:
    layer = with_biases(
        hw.CausalAttention(24, 4, num_kv_heads=2, bias=True, rope=hw.RotaryPositionalEmbedding(6), rng=0)
    )
    for _ in range(3):
        expected = layer(x)[0]
    for other in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        for _ in range(3):
            np.testing.assert_array_equal(other(x)[0], expected)
