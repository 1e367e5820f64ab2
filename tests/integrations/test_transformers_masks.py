"""Masks of transformers as patterns: what is recognized, and the bool tensors that it stands for."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

from headwise.integrations import _transformers_masks as masks  # noqa: E402
from headwise.integrations import transformers as hwt  # noqa: E402

utils: Any = transformers.masking_utils
pytestmark = pytest.mark.single_implementation

CAUSAL = utils.causal_mask_function
FUNCTIONS = {
    "causal": CAUSAL,
    "all": utils.bidirectional_mask_function,
    "window": utils.sliding_window_causal_mask_function(3),
    "window of one": utils.sliding_window_causal_mask_function(1),
}
#: Documents of 14 positions in two rows.
PACKED = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3], [0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3]])
if hasattr(utils, "chunked_overlay"):
    FUNCTIONS["chunks"] = utils.chunked_causal_mask_function(3, torch.tensor([2, 0]))
    FUNCTIONS["chunks, not causal"] = utils.chunked_overlay(4, torch.tensor([0, 0]))
    FUNCTIONS["one chunk"] = utils.chunked_causal_mask_function(20, torch.tensor([0, 0]))
if hasattr(utils, "packed_sequence_mask_function"):
    packed = utils.packed_sequence_mask_function(PACKED)
    FUNCTIONS["packed"] = utils.and_masks(CAUSAL, packed)
    FUNCTIONS["packed chunks"] = utils.and_masks(utils.chunked_causal_mask_function(2, torch.tensor([0, 1])), packed)
if hasattr(utils, "sliding_window_bidirectional_mask_function"):  # from transformers 5.2 on
    FUNCTIONS["both sides"] = utils.sliding_window_bidirectional_mask_function(2)


def by_version(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a mask function, by the names of the installed version."""
    if "q_length" in inspect.signature(utils.sdpa_mask).parameters:
        return options
    length, start = options["q_length"], options.get("q_offset", 0)
    others = {name: value for name, value in options.items() if name not in ("q_length", "q_offset")}
    return others | {"cache_position": torch.arange(start, start + length)}


def implicit_mask(**options: Any) -> Any:
    return hwt.implicit_mask(**by_version(options))


def sdpa_mask(**options: Any) -> Any:
    return utils.sdpa_mask(**by_version(options), allow_is_causal_skip=False)


def padding(kind: str, batch: int, length: int) -> Any:
    keep = torch.ones(batch, length, dtype=torch.bool)
    if kind == "left":
        keep[0, :2] = False
    elif kind == "right":
        keep[0, -2:] = False
    elif kind == "scattered":
        keep[1, 1:3] = False
        keep[0, -1] = False
    return keep


@pytest.mark.parametrize("kind", ["none", "left", "right", "scattered", "absent"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("q_length", "kv_length", "q_offset", "kv_offset"),
    [(7, 7, 0, 0), (3, 7, 4, 0), (1, 7, 6, 0), (3, 9, 2, 0), (1, 9, 4, 0), (1, 4, 8, 5), (2, 5, 8, 5), (7, 7, 2, 2)],
)
def test_attention_with_patterns(
    name: str, kind: str, q_length: int, kv_length: int, q_offset: int, kv_offset: int
) -> None:
    """The bool tensor is that of transformers, and attention by the pattern is attention by that tensor."""
    seen = (
        None if kind == "absent" else padding(kind, 2, q_offset + q_length if name != "all" else kv_length + kv_offset)
    )
    options: dict[str, Any] = {
        "batch_size": 2,
        "q_length": q_length,
        "kv_length": kv_length,
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": FUNCTIONS[name],
        "attention_mask": seen,
    }
    mask, expected = implicit_mask(**options), sdpa_mask(**options)
    assert isinstance(mask, hwt.ImplicitMask)
    assert mask.shape == (2, 1, q_length, kv_length)
    assert mask.dtype == torch.bool
    if name != "all" or kind != "absent":
        assert torch.equal(mask.dense(), expected)
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(2, 4, q_length, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, kv_length, 8, generator=generator)
    visible = expected.any(-1)[:, 0]
    by_pattern = hwt.attention(None, query, key, value, mask)[0]
    by_tensor = hwt.attention(None, query, key, value, expected)[0]
    torch.testing.assert_close(by_pattern[visible], by_tensor[visible], rtol=1e-5, atol=1e-6)
    assert not by_pattern[~visible].any()


@pytest.mark.skipif("chunks" not in FUNCTIONS, reason="this version has no chunks")
def test_gradients_of_chunks() -> None:
    options = {"batch_size": 2, "q_length": 9, "kv_length": 9, "mask_function": FUNCTIONS["chunks"]}
    gradients = []
    for mask in (implicit_mask(**options), sdpa_mask(**options)):
        arrays = [
            torch.randn(2, 2, 9, 8, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in range(3)
        ]
        hwt.attention(None, *arrays, mask)[0].square().sum().backward()
        gradients.append([x.grad for x in arrays])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif("chunks" not in FUNCTIONS, reason="this version has no chunks")
@pytest.mark.parametrize("q_length", [9, 1])
def test_chunks_and_packed_sequences_stay_implicit(q_length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention makes no tensor of queries x keys, for a prompt; the blocks are made once for all layers."""
    function = utils.and_masks(FUNCTIONS["chunks"], utils.packed_sequence_mask_function(PACKED[:, :9]))
    options = {"q_length": q_length, "q_offset": 9 - q_length, "kv_length": 9}
    mask = implicit_mask(batch_size=2, mask_function=function, **options)
    query, key = torch.randn(2, 2, q_length, 8), torch.randn(2, 2, 9, 8)
    if q_length > 1:
        monkeypatch.setattr(masks.ImplicitMask, "dense", lambda _: pytest.fail("a tensor of queries x keys"))
    outputs = [hwt.attention(None, query, key, key, mask)[0] for _ in "ab"]
    assert torch.equal(*outputs)
    if q_length > 1:
        assert mask.blocks(slice(0, 9)) is mask.blocks(slice(0, 9))


def test_masked_keys_have_no_influence() -> None:
    """NaN behind the end of a static cache and in padding reaches no output."""
    seen = torch.ones(2, 5, dtype=torch.bool)
    seen[0, :2] = False
    mask = implicit_mask(batch_size=2, q_length=2, kv_length=9, q_offset=3, mask_function=CAUSAL, attention_mask=seen)
    key = torch.randn(2, 2, 9, 8)
    key[:, :, 5:] = float("nan")
    key[0, :, :2] = float("nan")
    assert hwt.attention(None, torch.randn(2, 2, 2, 8), key, key, mask)[0].isfinite().all()


def test_nothing_to_mask_is_none() -> None:
    options: dict[str, Any] = {"batch_size": 2, "q_length": 4, "kv_length": 4, "mask_function": FUNCTIONS["all"]}
    assert implicit_mask(**options, allow_is_bidirectional_skip=True) is None
    full, padded = torch.ones(2, 4, dtype=torch.bool), padding("right", 2, 4)
    assert implicit_mask(**options, allow_is_bidirectional_skip=True, attention_mask=full) is None
    assert implicit_mask(**options, allow_is_bidirectional_skip=True, attention_mask=padded) is not None


@pytest.mark.parametrize(
    "function",
    [
        utils.or_masks(CAUSAL, FUNCTIONS["window"]),
        utils.and_masks(CAUSAL, lambda batch, head, query, key: key != 1),
        utils.or_masks(CAUSAL, utils.packed_sequence_mask_function(torch.tensor([[0, 0, 1, 1]] * 2))),
        lambda batch, head, query, key: key <= query,
    ],
)
def test_other_functions_become_tensors(function: Any) -> None:
    options = {"batch_size": 2, "q_length": 4, "kv_length": 4, "mask_function": function}
    mask = implicit_mask(**options)
    assert type(mask) is torch.Tensor
    assert torch.equal(mask, sdpa_mask(**options))


def test_windows_of_this_version_are_known() -> None:
    assert masks.patterns_hold()
    assert masks.recognized(FUNCTIONS["window"]) == masks.Pattern(causal=True, left=2)
    if "both sides" in FUNCTIONS:
        assert masks.recognized(FUNCTIONS["both sides"]) == masks.Pattern(left=2, right=2)


def test_operations_see_the_bool_tensor() -> None:
    options = {"batch_size": 2, "q_length": 4, "kv_length": 4, "mask_function": CAUSAL}
    mask, expected = implicit_mask(**options), sdpa_mask(**options).contiguous()
    assert torch.equal(~mask, ~expected)
    assert torch.equal(torch.where(mask, 0.0, -1.0), torch.where(expected, 0.0, -1.0))
    assert torch.equal(copy.deepcopy(mask), expected)
    assert mask.to("cpu") is mask
    assert "causal=True" in repr(mask)
    assert not mask.written
    assert torch.equal(mask[:, :, 1:], expected[:, :, 1:])
    query = torch.randn(2, 2, 4, 8)
    mask[:, :, :, 0] = False
    expected[:, :, :, 0] = False
    written, tensor = (hwt.attention(None, query, query, query, m)[0] for m in (mask, expected))
    assert torch.equal(written, tensor)
