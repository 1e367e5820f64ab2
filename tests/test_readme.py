"""The README's Python runs, each block with no more than the names that it takes as given."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headwise as hw

pytestmark = pytest.mark.single_implementation

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def a_model() -> dict[str, Any]:
    """A checkpoint that has more than one layer, and embeddings of tokens."""
    prefixes = [f"model.layers.{i}.self_attn." for i in range(2)]
    made = [hw.MultiHeadAttention(512, 8, num_kv_heads=2, bias=True, rng=i) for i in range(2)]
    state = {}
    for prefix, layer in zip(prefixes, made, strict=True):
        state |= layer.state_dict("llama", prefix=prefix)
    tokens = np.random.default_rng(0).standard_normal((1, 501, 512), dtype=np.float32)
    return {"np": np, "hw": hw, "state": state, "prompt": tokens[:, :500], "token": tokens[:, 500:]}


def nothing() -> dict[str, Any]:
    return {}


GIVEN: list[Callable[[], dict[str, Any]]] = [nothing, a_model]


def test_every_block_is_known() -> None:
    assert len(BLOCKS) == len(GIVEN)


@pytest.mark.parametrize(("block", "given"), list(zip(BLOCKS, GIVEN, strict=False)), ids=["the start", "a layer"])
def test_blocks_run(block: str, given: Callable[[], dict[str, Any]]) -> None:
    names = given()
    exec(compile(block, "README.md", "exec"), names)
    if given is nothing:
        assert names["output"].shape == (32, 50, 512) and names["weights"].shape == (32, 8, 50, 50)
    else:
        assert names["output"].shape == (1, 1, 512) and len(names["cache"]) == 501


def test_names_in_the_readme_are_there() -> None:
    """After ``hw.`` or ``headwise.``, and by themselves in the table of what is there."""
    text = README.read_text(encoding="utf-8")
    dotted = re.findall(r"(?<![\w/.-])(?:hw|headwise)\.([a-z_]\w*)(?!\.h)\b", text)
    table = re.findall(r"`(\w+)`", text.split("## What is there")[1].split("\n\nfloat64")[0])
    assert len(dotted) > 10 and len(table) > 20
    assert [name for name in {*dotted, *table} if not hasattr(hw, name)] == []
