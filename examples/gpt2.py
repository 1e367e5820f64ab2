"""GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019) on headwise.

    pip install 'headwise[examples]'
    python examples/gpt2.py "Hello" --folder gpt2 --tokens 20

continues a text by a model in a folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json``, as
``huggingface-cli download gpt2 --local-dir gpt2`` makes it. Without a folder the model is a small one with random
weights, whose tokens are bytes: it writes noise, and shows the code at work.

The attention of a layer is made by its configuration and loads its weights by their names: three lines of ``GPT2``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import headwise as hw

Array = NDArray[Any]

REMEDY = "pip install 'headwise[examples]' installs what this example requires"
SMALL = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256, "vocab_size": 256}


class GPT2:
    """A GPT-2 in the dtype of its weights.

    Parameters
    ----------
    config : mapping
        The entries of ``config.json``.
    state : mapping of arrays
        The weights by the names of ``transformers``, with or without ``transformer.`` before them. Maps are stored as
        (in_features, out_features).
    """

    def __init__(self, config: Mapping[str, Any], state: Mapping[str, Array]) -> None:
        activation = config.get("activation_function", "gelu_new")
        if activation not in ("gelu_new", "gelu_pytorch_tanh"):
            raise ValueError(f"activation_function: {activation!r}, expected gelu_new")
        self.config = config = {"layer_norm_epsilon": 1e-5, **config}
        self.eps: float = config["layer_norm_epsilon"]
        prefix = "transformer." if "transformer.wte.weight" in state else ""
        self.state = {name.removeprefix(prefix): array for name, array in state.items()}
        self.tokens, self.positions = self.state["wte.weight"], self.state["wpe.weight"]
        self.attention, self.mlp = [], []
        for i in range(config["n_layer"]):
            layer = hw.CausalAttention.from_config(config, i, dtype=self.tokens.dtype)
            layer.load_state_dict(self.state, prefix=f"h.{i}.attn.")
            self.attention.append(layer)
            self.mlp.append([hw.PackedLinear(*self._pair(f"h.{i}.mlp.{name}")) for name in ("c_fc", "c_proj")])
        self.head = hw.PackedLinear(np.ascontiguousarray(self.tokens.T))

    def new_cache(self, capacity: int) -> list[Any]:
        """A cache of ``capacity`` tokens for each layer."""
        return [layer.make_cache(1, capacity, dtype=self.tokens.dtype) for layer in self.attention]

    def forward(self, ids: Sequence[int], cache: list[Any]) -> Array:
        """Logits (tokens, vocabulary) after each token. The cache holds the preceding tokens."""
        begin = len(cache[0])
        x = self.tokens[np.asarray(ids)] + self.positions[begin : begin + len(ids)]
        for i, (attention, (widen, narrow), past) in enumerate(zip(self.attention, self.mlp, cache, strict=True)):
            attended, _ = attention(self._normalize(x, f"h.{i}.ln_1")[np.newaxis], cache=past, need_weights=False)
            x = x + attended[0]
            hidden = widen(self._normalize(x, f"h.{i}.ln_2"))
            x += narrow(hw.gelu(hidden, approximate="tanh", out=hidden))
        return self.head(self._normalize(x, "ln_f"))

    def generate(self, ids: Sequence[int], tokens: int) -> Iterator[int]:
        """The ``tokens`` most likely ids that continue ``ids``, one after the other."""
        limit = len(self.positions)
        if not ids or not 0 < tokens <= limit - len(ids):
            raise ValueError(f"ids, tokens: {len(ids)} and {tokens}, expected 1 or more, together at most {limit}")
        cache = self.new_cache(len(ids) + tokens)
        for _ in range(tokens):
            token = int(np.argmax(self.forward(ids, cache)[-1]))
            yield token
            ids = [token]

    def _normalize(self, x: Array, name: str) -> Array:
        return hw.layer_normalization(x, *self._pair(name), eps=self.eps)

    def _pair(self, name: str) -> tuple[Array, Array]:
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


def random_state(config: Mapping[str, Any], seed: int = 0) -> dict[str, Array]:
    """Weights of a model that has not been trained, of standard deviation 0.02."""
    rng = np.random.default_rng(seed)
    width = config["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config["vocab_size"], width),
        "wpe.weight": (config["n_positions"], width),
    }
    for i in range(config["n_layer"]):
        for name, inner, outer in (
            ("attn.c_attn", 1, 3),
            ("attn.c_proj", 1, 1),
            ("mlp.c_fc", 1, 4),
            ("mlp.c_proj", 4, 1),
        ):
            shapes[f"h.{i}.{name}.weight"] = (inner * width, outer * width)
            shapes[f"h.{i}.{name}.bias"] = (outer * width,)
    state = {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}
    norms = [f"h.{i}.ln_{j}" for i in range(config["n_layer"]) for j in (1, 2)] + ["ln_f"]
    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    return state | {f"{name}.weight": ones for name in norms} | {f"{name}.bias": zeros for name in norms}


def load(folder: Path) -> tuple[GPT2, Any]:
    """The model of a folder and its tokenizer."""
    try:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed; {REMEDY}") from error
    config = json.loads((folder / "config.json").read_text())
    return GPT2(config, load_file(folder / "model.safetensors")), Tokenizer.from_file(str(folder / "tokenizer.json"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Continue a text with GPT-2 on headwise.")
    parser.add_argument("prompt", nargs="?", default="Hello")
    parser.add_argument("--folder", type=Path, help="of the model; default: random weights")
    parser.add_argument("--tokens", type=int, default=20, metavar="N", help="number of tokens (%(default)s)")
    options = parser.parse_args(arguments)
    model, tokenizer = (GPT2(SMALL, random_state(SMALL)), Bytes()) if options.folder is None else load(options.folder)
    ids = tokenizer.encode(options.prompt)
    ids = getattr(ids, "ids", ids)
    try:
        written = list(model.generate(ids, options.tokens))
    except ValueError as error:
        parser.error(str(error))
    print(tokenizer.decode([*ids, *written]))


if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as error:
        sys.exit(str(error))
