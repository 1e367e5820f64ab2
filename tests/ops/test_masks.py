"""Masks: their contents, their repr, and their class, which determines how attention reads them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import headwise as hw
from headwise import attention, masks, positional_encoding


def test_padding_mask_marks_tokens() -> None:
    sequences = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]])
    mask = hw.create_padding_mask(sequences, pad_token=0)
    assert np.issubdtype(mask.dtype, np.integer)
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert str(mask) == "[[1 1 1 0 0]\n [1 1 0 0 0]]"


def test_padding_mask_of_another_token() -> None:
    assert hw.create_padding_mask([[7, 0, -1], [-1, 3, 7]], pad_token=-1).tolist() == [[1, 1, 0], [0, 1, 1]]
    assert hw.create_padding_mask([[7, 0]], 7).tolist() == [[0, 1]]


def test_padding_mask_of_one_sequence() -> None:
    assert hw.create_padding_mask([4, 0, 0]).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "keywords"), [((5,), {}), ((), {"size": 5}), ((), {"seq_len": 5}), ((np.int64(5),), {})]
)
def test_look_ahead_mask_by_every_name(arguments: Any, keywords: Any) -> None:
    mask = hw.create_look_ahead_mask(*arguments, **keywords)
    assert np.issubdtype(mask.dtype, np.integer)
    np.testing.assert_array_equal(mask, [[int(j <= i) for j in range(5)] for i in range(5)])


def test_aliases() -> None:
    assert hw.create_causal_mask is hw.create_look_ahead_mask
    for module in (attention, masks):
        assert module.causal_mask is hw.create_causal_mask
        assert module.padding_mask is hw.create_padding_mask
    assert positional_encoding.create_look_ahead_mask is hw.create_look_ahead_mask


KEPT = np.array([[1, 1, 1, 0]])

#: Ways to write that key 3 of four is masked, as (the argument's name, the mask).
WRITTEN = {
    "padding": ("mask", hw.create_padding_mask([[7, 3, 9, 0]])),
    "complement": ("mask", ~hw.create_padding_mask([[0, 0, 0, 4]])),
    "arithmetic": ("mask", (1 - hw.create_padding_mask([[7, 3, 9, 0]])) * -1e9),
    "where": ("mask", np.where(hw.create_padding_mask([[7, 3, 9, 0]]), 0, -np.inf)),
    "padding-bool": ("key_padding_mask", KEPT != 0),
    "padding-integer": ("key_padding_mask", KEPT),
    "padding-float": ("key_padding_mask", KEPT * 1.0),
    "padding-inf": ("key_padding_mask", [[0, 0, 0, -np.inf]]),
    "padding-1e9": ("key_padding_mask", [[0, 0, 0, -1e9]]),
    "padding-lowest": ("key_padding_mask", (1 - KEPT) * np.finfo(np.float32).min),
    "padding-arithmetic": ("key_padding_mask", (1 - hw.create_padding_mask([[7, 3, 9, 0]])) * -1e9),
}


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mask_is_never_read_the_other_way_round(written: str, dtype: str) -> None:
    """Functions, layers and caches: keys 0 to 2 are kept, key 3 is masked."""
    x = np.eye(4, dtype=dtype)[None]
    name, mask = WRITTEN[written]
    expected = np.broadcast_to(KEPT > 0, (1, 4, 4))
    for given in (mask, np.asarray(mask).astype(np.float32)):
        weights = hw.scaled_dot_product_attention(x, x, x, **{name: given})[1]
        np.testing.assert_array_equal(weights > 0, expected)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
        layer = hw.MultiHeadAttention(4, 2, rng=0)
        np.testing.assert_array_equal(layer(x, **{name: given})[1][:, 0] > 0, expected)
        np.testing.assert_array_equal(hw.self_attention(x, 4, **{name: given})[1] > 0, expected)
    if name == "mask":
        cache = hw.KVCache(1, 1, capacity=4, head_dim=4, dtype=dtype)
        weights = cache.extend(x[:, None], x[:, None], x[:, None], mask=mask, need_weights=True)[1][0]
        np.testing.assert_array_equal(weights > 0, expected & np.tri(4, dtype=bool))


@pytest.mark.parametrize("dtype", ["complex128", "object", "U1", "M8[D]"])
@pytest.mark.parametrize("name", ["mask", "key_padding_mask"])
def test_errors_of_dtypes_speak_of_masks(name: str, dtype: str) -> None:
    x = np.eye(4)[None]
    with pytest.raises(TypeError, match=rf"^{name}: dtype .*keeps a key.*added to the scores"):
        hw.flash_attention(x, x, x, **{name: np.ones((1, 4), int).astype(dtype)})


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "size", lambda: hw.create_look_ahead_mask(0)),
        (ValueError, "seq_len", lambda: hw.create_look_ahead_mask(seq_len=-3)),
        (TypeError, "size", lambda: hw.create_look_ahead_mask(2.0)),  # type: ignore[arg-type]
        (TypeError, "size", lambda: hw.create_look_ahead_mask(True)),
        (TypeError, "size", hw.create_look_ahead_mask),
        (TypeError, "size", lambda: hw.create_look_ahead_mask(3, seq_len=3)),
        (ValueError, "seq", lambda: hw.create_padding_mask(np.zeros((2, 3, 4)))),
        (ValueError, "seq", lambda: hw.create_padding_mask(3)),
        (ValueError, "seq", lambda: hw.create_padding_mask([[1, 2], [3]])),
        (TypeError, "seq", lambda: hw.create_padding_mask([["a", "b"]])),
        (TypeError, "pad_token", lambda: hw.create_padding_mask([[1]], pad_token="0")),  # type: ignore[arg-type]
        (TypeError, "pad_token", lambda: hw.create_padding_mask([[1]], pad_token=None)),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=f"^{message}:"):
        call()


class TestReading:
    """With as many sequences as queries, only the class distinguishes (batch, key_len) from (query_len, key_len)."""

    size = 4

    @pytest.fixture
    def arrays(self) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((3, self.size, self.size, 8))

    @pytest.fixture
    def padding(self) -> masks.PaddingMask:
        return hw.create_padding_mask([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])

    def test_padding_is_by_sequence(self, arrays: np.ndarray, padding: masks.PaddingMask) -> None:
        _, weights = hw.scaled_dot_product_attention(*arrays, mask=padding)
        for sequence in range(self.size):
            assert (weights[sequence, :, sequence + 1 :] == 0).all()
            assert (weights[sequence, :, : sequence + 1] > 0).all()

    def test_causal_is_by_query(self, arrays: np.ndarray) -> None:
        _, weights = hw.scaled_dot_product_attention(*arrays, mask=hw.create_causal_mask(self.size))
        np.testing.assert_array_equal(weights > 0, np.broadcast_to(np.tri(self.size) > 0, weights.shape))

    def test_a_plain_array_is_by_query(self, arrays: np.ndarray, padding: masks.PaddingMask) -> None:
        plain = np.asarray(padding)
        assert type(plain) is np.ndarray
        _, weights = hw.scaled_dot_product_attention(*arrays, mask=plain)
        np.testing.assert_array_equal(weights > 0, np.broadcast_to(plain > 0, weights.shape))

    def test_a_causal_mask_is_never_read_as_padding(self) -> None:
        query, key = np.ones((4, 2, 8)), np.ones((4, 4, 8))
        assert hw.scaled_dot_product_attention(query, key, key, mask=np.tri(4, dtype=int))[0].shape == (4, 2, 8)
        with pytest.raises(ValueError, match="mask"):
            hw.scaled_dot_product_attention(query, key, key, mask=hw.create_causal_mask(4))

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.astype(bool),
            lambda m: m.copy(),
            lambda m: m == 1,
            lambda m: m * 1,
            lambda m: 1 - (1 - m),
            lambda m: np.logical_not(m == 0),
            lambda m: m & m,
            lambda m: ~~m,
            lambda m: ~(~m).astype(bool),
            lambda m: m.astype(np.float32),
            lambda m: m[:],
            copy.deepcopy,
            lambda m: pickle.loads(pickle.dumps(m)),
        ],
    )
    def test_operations_keep_the_mask_class(self, arrays: np.ndarray, padding: masks.PaddingMask, change: Any) -> None:
        changed = change(padding)
        assert type(changed) is masks.PaddingMask
        expected = hw.scaled_dot_product_attention(*arrays, mask=padding)[1]
        np.testing.assert_array_equal(hw.scaled_dot_product_attention(*arrays, mask=changed)[1], expected)

    def test_in_place_operations_keep_the_mask_class(self, padding: masks.PaddingMask) -> None:
        same = padding
        same &= 1
        same *= np.ones(self.size, int)
        assert same is padding
        assert type(same) is masks.PaddingMask

    def test_mixed_masks_become_arrays(self, padding: masks.PaddingMask) -> None:
        causal = hw.create_causal_mask(self.size)
        for mixed in (padding & causal, causal & padding, padding[:1] & causal, np.multiply(padding, np.ones(4))):
            assert type(mixed) is np.ndarray
        np.testing.assert_array_equal(padding[:1] & causal, np.asarray(padding)[:1] & np.asarray(causal))

    @pytest.mark.parametrize("dtype", ["int64", "uint8", "bool"])
    def test_invert_is_the_logical_complement(self, padding: masks.PaddingMask, dtype: str) -> None:
        mask = padding.astype(dtype)
        complement = ~mask
        assert type(complement) is masks.PaddingMask
        assert complement.dtype == mask.dtype
        np.testing.assert_array_equal(np.asarray(complement), np.asarray(padding) == 0)

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: (1 - m) * -1e9,
            lambda m: (1 - m) * -10000,
            lambda m: (1.0 - m.astype(float)) * -1e9,
            lambda m: -m,
            lambda m: m / 2,
            lambda m: m + m,
            lambda m: m * 1.0,
            lambda m: np.log(m + 1e-9),
            lambda m: np.where(m, 0.0, -np.inf),
            lambda m: m @ m,
            lambda m: np.cumsum(m, axis=1),
        ],
    )
    def test_what_is_no_keep_mask_is_an_array(self, padding: masks.PaddingMask, change: Any) -> None:
        assert type(change(padding)) is np.ndarray

    def test_reductions_become_arrays(self, padding: masks.PaddingMask) -> None:
        assert type(padding.sum(axis=1)) is np.ndarray
        assert padding.sum(axis=1).tolist() == [1, 2, 3, 4]
        assert int(padding.sum()) == 10
        assert type(np.add.outer(padding, 1)) is np.ndarray
