"""MultiHeadAttention and CausalAttention: their numbers, masks, dropout, dtypes, and the casts of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import headwise as hw
from layers.formulas import NAMES, by_hand

pytestmark = pytest.mark.above_operations


@pytest.fixture
def layer() -> hw.MultiHeadAttention:
    return hw.MultiHeadAttention(12, 3, rng=0)


@pytest.fixture
def query(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((2, 4, 12))


@pytest.fixture
def memory(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((2, 6, 12))


class TestNumbers:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-5)])
    def test_cross_attention_equals_the_formula(
        self, layer: Any, query: np.ndarray, memory: np.ndarray, dtype: type, tolerance: float
    ) -> None:
        expected = by_hand(layer, query, memory, memory[::-1])
        got = layer(*(a.astype(dtype) for a in (query, memory, memory[::-1])), return_lse=True)
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == dtype
            np.testing.assert_allclose(a, b, atol=tolerance)

    def test_key_defaults_to_query_and_value_to_key(self, layer: Any, query: np.ndarray, memory: Any) -> None:
        np.testing.assert_array_equal(layer(query)[0], layer(query, query, query)[0])
        np.testing.assert_array_equal(layer(query, memory)[0], layer(query, memory, memory)[0])
        np.testing.assert_allclose(layer(query, value=query)[0], by_hand(layer, query, query, query).output, atol=1e-13)
        other = query[:, ::-1] + 1
        expected = by_hand(layer, query, other, query)
        np.testing.assert_allclose(layer(query, other, query)[0], expected.output, atol=1e-13)

    def test_calling_is_forward(self, layer: Any, query: np.ndarray) -> None:
        np.testing.assert_array_equal(layer(query)[1], layer.forward(query)[1])

    def test_every_keyword_reaches_attention(self, layer: Any, query: np.ndarray, memory: Any, rng: Any) -> None:
        keywords: dict[str, Any] = {
            "bias": rng.standard_normal((4, 6)),
            "is_causal": True,
            "causal_alignment": "lower_right",
            "scale": 0.3,
            "window_size": (3, 0),
            "softcap": 2.0,
            "alibi_slopes": [0.5, 0.1, 0.2],
            "sinks": [0.3, 0.0, -1.0],
            "key_padding_mask": [[1, 1, 1, 1, 0, 1], [0, 1, 1, 1, 1, 1]],
        }
        expected = by_hand(layer, query, memory, memory, **keywords)
        got = layer(query, memory, **keywords, return_lse=True, precision="highest")
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-13)
        output, none = layer(query, memory, **keywords, need_weights=False)
        assert none is None
        np.testing.assert_allclose(output, expected.output, atol=1e-13)

    def test_unbatched(self, layer: Any, query: np.ndarray) -> None:
        for single, batch in zip(layer(query[0], return_lse=True), layer(query, return_lse=True), strict=True):
            np.testing.assert_allclose(single, batch[0], atol=1e-14)
        assert layer(query[0], is_causal=True)[1].shape == (3, 4, 4)

    def test_out(self, layer: Any, query: np.ndarray) -> None:
        expected, _ = layer(query)
        for out in (np.empty((2, 4, 12)), np.empty((2, 4, 24))[..., ::2]):
            assert layer(query, out=out)[0] is out
            np.testing.assert_array_equal(out, expected)
        half = np.empty((2, 4, 12), np.float16)
        assert layer(query.astype(np.float16), out=half)[0] is half
        np.testing.assert_array_equal(half, layer(query.astype(np.float16))[0])
        single = np.empty((4, 12))
        assert layer(query[0], out=single)[0] is single
        with pytest.raises(ValueError, match=r"^out"):
            layer(query, out=np.empty((2, 4, 11)))
        with pytest.raises(TypeError, match=r"^out"):
            layer(query, out=np.empty((2, 4, 12), np.float32))

    @pytest.mark.parametrize("shape", [(0, 4, 12), (2, 0, 12)])
    def test_empty(self, layer: Any, shape: tuple[int, ...]) -> None:
        output, weights = layer(np.empty(shape))
        assert output.shape == shape
        assert weights.shape == (shape[0], 3, shape[1], shape[1])

    def test_no_keys(self, layer: Any, query: np.ndarray) -> None:
        output, weights = layer(query, np.empty((2, 0, 12)))
        assert (output == 0).all()
        assert weights.shape == (2, 3, 4, 0)

    def test_arrays_of_any_layout(self, layer: Any, query: np.ndarray) -> None:
        expected, _ = layer(query)
        swapped = query.astype(query.dtype.newbyteorder())
        for same in (query[::-1].copy()[::-1], np.asfortranarray(query), swapped, query.tolist()):
            np.testing.assert_allclose(layer(same)[0], expected, atol=1e-14)

    def test_heads(self, layer: Any, query: np.ndarray) -> None:
        assert layer.d_k == 4
        split = layer.split_heads(query)
        assert split.shape == (2, 3, 4, 4)
        assert np.shares_memory(split, query)
        np.testing.assert_array_equal(split[1, 2], query[1, :, 8:])
        np.testing.assert_array_equal(layer.combine_heads(split), query)
        np.testing.assert_array_equal(layer.combine_heads(layer.split_heads(query[0])), query[0])


class TestMasks:
    def test_mask_shapes(self, layer: Any, query: np.ndarray, memory: np.ndarray, rng: np.random.Generator) -> None:
        for shape in ((4, 6), (2, 4, 6), (1, 4, 6), (2, 1, 6), (2, 3, 4, 6), (2, 1, 1, 6), (1, 3, 4, 6)):
            mask = rng.random(shape) < 0.6
            four = mask[:, None] if mask.ndim == 3 else mask
            expected = by_hand(layer, query, memory, memory, mask=np.broadcast_to(four, (2, 3, 4, 6)))
            output, weights = layer(query, memory, mask=mask)
            np.testing.assert_allclose(weights, expected.weights, atol=1e-13)
            np.testing.assert_allclose(output, expected.output, atol=1e-13)

    def test_a_3d_mask_is_per_sequence(self) -> None:
        """With as many sequences as heads, (n, Sq, Sk) is a mask per sequence, not per head."""
        layer, x = hw.MultiHeadAttention(12, 3, rng=0), np.random.default_rng(0).standard_normal((3, 5, 12))
        mask = np.ones((3, 5, 5), int)
        mask[1, :, 2] = 0
        _, weights = layer(x, mask=mask)
        assert (weights[1, ..., 2] == 0).all()
        assert (weights[[0, 2]] > 0).all()

    def test_additive_masks(self, layer: Any, query: np.ndarray, rng: np.random.Generator) -> None:
        added = np.where(rng.random((2, 4, 4)) < 0.3, -np.inf, rng.standard_normal((2, 4, 4)))
        expected = by_hand(layer, query, query, query, bias=added[:, None])
        np.testing.assert_allclose(layer(query, mask=added)[1], expected.weights, atol=1e-13)
        np.testing.assert_allclose(layer(query, bias=added)[1], expected.weights, atol=1e-13)
        tril = np.tril(np.ones((4, 4)))
        np.testing.assert_array_equal(layer(query, mask=tril)[1], layer(query, is_causal=True)[1])

    def test_padding_masks(self, layer: Any, query: np.ndarray, memory: np.ndarray) -> None:
        kept = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
        by_keyword = layer(query, memory, key_padding_mask=kept)
        assert (by_keyword[1][0, ..., 4:] == 0).all()
        assert (by_keyword[1][1, ..., 2:] == 0).all()
        np.testing.assert_array_equal(layer(query, memory, mask=hw.create_padding_mask(kept))[0], by_keyword[0])
        np.testing.assert_array_equal(layer(query, memory, mask=kept)[0], by_keyword[0])

    def test_masked_keys_have_no_influence(self, layer: Any, query: np.ndarray, memory: np.ndarray) -> None:
        kept = hw.create_padding_mask([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]])
        expected = layer(query, memory, mask=kept)
        memory[np.asarray(kept) == 0] = np.nan
        for got, want in zip(layer(query, memory, mask=kept), expected, strict=True):
            np.testing.assert_array_equal(got, want)

    def test_fully_masked_rows(self, layer: Any, query: np.ndarray) -> None:
        mask = np.ones((4, 4), bool)
        mask[2] = False
        output, weights = layer(query, mask=mask)
        assert (output[:, 2] == 0).all()
        assert (weights[:, :, 2] == 0).all()


class TestCausal:
    @pytest.fixture
    def causal(self) -> hw.CausalAttention:
        return hw.CausalAttention(12, 3, rng=0)

    def test_causal_attention_equals_is_causal(self, causal: Any, layer: Any, query: np.ndarray) -> None:
        np.testing.assert_array_equal(causal(query)[0], layer(query, is_causal=True)[0])
        np.testing.assert_array_equal(causal(query, is_causal=False)[0], causal.forward(query, query, query)[0])
        assert isinstance(causal, hw.MultiHeadAttention)

    @pytest.mark.parametrize("alignment", ["upper_left", "lower_right"])
    def test_other_key_lengths(self, causal: Any, query: np.ndarray, memory: np.ndarray, alignment: str) -> None:
        for q, k in ((query, memory), (memory, query)):
            expected = by_hand(causal, q, k, k, is_causal=True, causal_alignment=alignment)
            output, weights = causal(q, k, causal_alignment=alignment)
            np.testing.assert_allclose(weights, expected.weights, atol=1e-13)
            np.testing.assert_allclose(output, expected.output, atol=1e-13)

    def test_a_mask_is_combined_with_causality(self, causal: Any, query: np.ndarray) -> None:
        padding = hw.create_padding_mask([[1, 1, 0, 1], [1, 0, 1, 1]])
        _, weights = causal(query, mask=padding)
        kept = np.tri(4, dtype=int) * np.asarray(padding)[:, None, None, :]
        np.testing.assert_array_equal(weights > 0, np.broadcast_to(kept > 0, weights.shape))


class TestDropout:
    def test_dropout_acts_in_training_only(self, query: np.ndarray) -> None:
        layer = hw.MultiHeadAttention(12, 3, dropout=0.5, rng=0)
        assert layer.training is False
        assert layer.dropout == 0.5
        still, _ = layer(query)
        np.testing.assert_array_equal(layer(query)[0], still)
        assert not np.array_equal(layer(query, training=True)[0], still)
        layer.training = True
        assert not np.array_equal(layer(query)[0], layer(query)[0])
        np.testing.assert_array_equal(layer(query, rng=3)[0], layer(query, rng=3)[0])
        np.testing.assert_array_equal(layer(query, training=False)[0], still)

    def test_returned_weights_are_those_before_dropout(self, query: np.ndarray) -> None:
        layer = hw.MultiHeadAttention(12, 3, dropout=0.5, rng=0)
        np.testing.assert_allclose(layer(query, training=True)[1], layer(query)[1], atol=1e-14)

    def test_the_same_seed_gives_the_same_dropout(self, query: np.ndarray) -> None:
        one, two = (hw.CausalAttention(12, 3, rng=5) for _ in range(2))
        np.testing.assert_array_equal(one.W_v, two.W_v)
        for _ in range(2):
            np.testing.assert_array_equal(one(query, training=True)[0], two(query, training=True)[0])
        assert not np.array_equal(one.W_v, hw.CausalAttention(12, 3).W_v)


class TestParameters:
    def test_initial_parameters(self) -> None:
        layer = hw.MultiHeadAttention(128, 4, rng=0)
        limit = np.sqrt(6 / 256)
        for name in NAMES:
            W = getattr(layer, name)
            assert W.shape == (128, 128)
            assert W.dtype == np.float64
            assert type(W) is np.ndarray
            assert 0.99 * limit < abs(W).max() <= limit
            assert abs(W.std() - limit / np.sqrt(3)) < 0.02 * limit

    @pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
    def test_the_input_determines_the_dtype(self, query: np.ndarray, name: str) -> None:
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need the package ml_dtypes")
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        exact = hw.MultiHeadAttention(12, 3, rng=0)
        layer = hw.MultiHeadAttention(12, 3, rng=0, dtype=dtype)
        assert layer.W_k.dtype == dtype
        assert layer(query)[0].dtype == np.float64
        assert layer(query.astype(np.float32))[0].dtype == np.float32
        narrow = query.astype(dtype)
        output, weights = exact(narrow)
        assert output.dtype == weights.dtype == dtype
        expected = by_hand(exact, narrow.astype(float), narrow.astype(float), narrow.astype(float))
        rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 1e-6, "float64": 1e-14}[name]
        np.testing.assert_allclose(output.astype(float), expected.output, rtol=1.01 * rounding, atol=5e-6)

    @pytest.mark.parametrize("name", ["float16", "bfloat16"])
    def test_16bit_parameters_under_float32(self, query: np.ndarray, name: str) -> None:
        """They count with the values that they have; no product is rounded to 16 bits."""
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need the package ml_dtypes")
        layer = hw.MultiHeadAttention(12, 3, rng=0, bias=True, dtype=np.dtype(getattr(ml_dtypes, name, name)))
        wide = hw.MultiHeadAttention(12, 3, rng=0, bias=True, dtype=np.float64)
        for parameter in (*NAMES, "b_q", "b_k", "b_v", "b_o"):
            setattr(wide, parameter, getattr(layer, parameter).astype(float))
        expected = wide(query.astype(np.float32).astype(float))[0]
        for _ in range(3):  # with the parameters as they are, then packed
            np.testing.assert_allclose(layer(query.astype(np.float32))[0], expected, rtol=2e-6, atol=2e-6)

    def test_mixed_dtypes_promote(self, layer: Any, query: np.ndarray) -> None:
        output, weights = layer(query.astype(np.float32), query, query.astype(np.float16))
        assert output.dtype == weights.dtype == np.float64

    def test_integers(self, layer: Any) -> None:
        assert layer(np.arange(24).reshape(1, 2, 12))[0].dtype == np.float64

    def test_replaced_parameters_are_used(self, layer: Any, query: np.ndarray) -> None:
        W = np.random.default_rng(1).standard_normal((12, 12))
        layer.W_q = W
        np.testing.assert_array_equal(layer.W_q, W)
        assert layer.W_q is layer.W_q is not W
        layer.W_o = np.eye(12, dtype=int)
        assert layer.W_o.dtype == np.float64
        np.testing.assert_allclose(layer(query)[0], by_hand(layer, query, query, query).output, atol=1e-13)

    @pytest.mark.parametrize(
        ("error", "message", "call"),
        [
            (ValueError, "divisible", lambda: hw.MultiHeadAttention(10, 3)),
            (ValueError, "^d_model", lambda: hw.MultiHeadAttention(0, 1)),
            (ValueError, "^num_heads", lambda: hw.CausalAttention(8, -2)),
            (TypeError, "^num_heads", lambda: hw.MultiHeadAttention(8, 2.0)),  # type: ignore[arg-type]
            (TypeError, "^d_model", lambda: hw.MultiHeadAttention(True, 1)),
            (ValueError, "^dropout", lambda: hw.MultiHeadAttention(8, 2, 1.0)),
            (ValueError, "^dropout", lambda: hw.MultiHeadAttention(8, 2, dropout=-0.5)),
            (TypeError, "^dropout", lambda: hw.MultiHeadAttention(8, 2, dropout=None)),  # type: ignore[arg-type]
            (TypeError, "^rng", lambda: hw.MultiHeadAttention(8, 2, rng=np.random.RandomState(0))),  # type: ignore[arg-type]
            (TypeError, "^dtype", lambda: hw.MultiHeadAttention(8, 2, dtype=np.int64)),
            (TypeError, "^dtype", lambda: hw.MultiHeadAttention(8, 2, dtype=complex)),
            (ValueError, "^W_q: shape", lambda: setattr(hw.MultiHeadAttention(8, 2), "W_q", np.eye(7))),
            (TypeError, "^W_o", lambda: setattr(hw.MultiHeadAttention(8, 2), "W_o", [["a"]])),
        ],
    )
    def test_bad_construction(self, error: type[Exception], message: str, call: Callable[[], Any]) -> None:
        with pytest.raises(error, match=message):
            call()

    @pytest.mark.parametrize(
        ("error", "message", "call"),
        [
            (ValueError, "^query", lambda f, x: f(x[..., :11])),
            (ValueError, "^query", lambda f, x: f(x[None])),
            (ValueError, "^key", lambda f, x: f(x, x[:1])),
            (ValueError, "^key", lambda f, x: f(x, x[..., :4])),
            (ValueError, "^key", lambda f, x: f(x, x[0])),
            (ValueError, "^value", lambda f, x: f(x, x, x[:, :2])),
            (TypeError, "^key", lambda f, x: f(x, x.astype(str))),
            (ValueError, "^mask", lambda f, x: f(x, mask=np.ones((3, 3)))),
            (ValueError, "^mask", lambda f, x: f(x, mask=np.ones((3, 4, 4)))),
            (ValueError, "^mask", lambda f, x: f(x, mask=np.ones((2, 2, 4, 4)))),
            (ValueError, "^key_padding_mask", lambda f, x: f(x, key_padding_mask=np.ones((4, 4)))),
            (ValueError, "^softcap", lambda f, x: f(x, softcap=-1.0)),
            (ValueError, "^precision", lambda f, x: f(x, precision="sloppy")),
            (TypeError, "^training", lambda f, x: f(x, training="no")),
            (TypeError, "nonsense", lambda f, x: f(x, nonsense=1)),
            (ValueError, "^x", lambda f, x: f.split_heads(x[..., :4])),
            (ValueError, "^x", lambda f, x: f.combine_heads(x)),
        ],
    )
    def test_bad_calls(self, layer: Any, query: np.ndarray, error: type[Exception], message: str, call: Any) -> None:
        with pytest.raises(error, match=message):
            call(layer, query)
