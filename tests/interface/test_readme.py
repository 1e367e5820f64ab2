"""The Python examples of the README and of docs/ run, the names in them exist, and relative links have a target."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headwise as hw

pytestmark = pytest.mark.single_implementation

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))


def python_blocks(file: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def a_model() -> dict[str, Any]:
    """A checkpoint with more than one layer, and embeddings of tokens."""
    prefixes = [f"model.layers.{i}.self_attn." for i in range(2)]
    made = [hw.MultiHeadAttention(512, 8, num_kv_heads=2, bias=True, rng=i) for i in range(2)]
    state = {}
    for prefix, layer in zip(prefixes, made, strict=True):
        state |= layer.state_dict("llama", prefix=prefix)
    tokens = np.random.default_rng(0).standard_normal((1, 501, 512), dtype=np.float32)
    return {"np": np, "hw": hw, "state": state, "prompt": tokens[:, :500], "token": tokens[:, 500:]}


def nothing() -> dict[str, Any]:
    return {}


# The names that each block of the README uses without defining them.
GIVEN: list[Callable[[], dict[str, Any]]] = [nothing, a_model]
BLOCKS = python_blocks(README)


def test_every_block_of_the_readme_has_its_given_names() -> None:
    assert len(BLOCKS) == len(GIVEN)


@pytest.mark.parametrize(("block", "given"), list(zip(BLOCKS, GIVEN, strict=False)), ids=["the start", "a layer"])
def test_blocks_of_the_readme_run(block: str, given: Callable[[], dict[str, Any]]) -> None:
    names = given()
    exec(compile(block, "README.md", "exec"), names)
    if given is nothing:
        assert names["output"].shape == (32, 50, 512) and names["weights"].shape == (32, 8, 50, 50)
    else:
        assert names["output"].shape == (1, 1, 512) and len(names["cache"]) == 501


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_blocks_of_a_guide_run_in_order(guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for pictures
    blocks = python_blocks(guide)
    runnable = [block for block in blocks if find_spec("matplotlib") or "hw.plot." not in block]
    names: dict[str, Any] = {}
    for block in runnable:
        exec(compile(block, guide.name, "exec"), names)
    if len(runnable) < len(blocks):
        pytest.skip("the blocks that draw need Matplotlib; the others ran")


def test_names_in_the_documentation_exist() -> None:
    """Names after ``hw.`` or ``headwise.`` everywhere, and all names in the README's table of contents."""
    text = "\n".join(file.read_text(encoding="utf-8") for file in [README, *GUIDES])
    dotted = re.findall(r"(?<![\w/.-])(?:hw|headwise)\.([a-z_]\w*)(?!\.h)\b", text)
    readme = README.read_text(encoding="utf-8")
    table = re.findall(r"`(\w+)`", readme.split("## What is there")[1].split("\n\nfloat64")[0])
    assert len(dotted) > 10 and len(table) > 20
    assert [name for name in {*dotted, *table} if not hasattr(hw, name)] == []


def test_relative_links_have_a_target() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "check_links.py")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
