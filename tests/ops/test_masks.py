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

    def test_reductions_become_arrays(self, padding: masks.PaddingMask) -> None:
        assert type(padding.sum(axis=1)) is np.ndarray
        assert padding.sum(axis=1).tolist() == [1, 2, 3, 4]
        assert int(padding.sum()) == 10
        assert type(np.add.outer(padding, 1)) is np.ndarray
