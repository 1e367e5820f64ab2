"""Train a small language model on the documentation that ships with Python, character by character, with headwise.

    python examples/train_transformer.py                    # under two minutes on two cores
    python examples/train_transformer.py --steps 2000 --width 256

prints the loss and the tokens per second, then text that the trained model writes. The model is a transformer with
pre-normalisation and rotary positions (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019,
section 2.3; Su et al., "RoFormer", 2021). Gradients come from ``vjp`` of headwise's functions and layers; the optimiser
is Adam (Kingma & Ba, 2015), written out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from numpy.typing import NDArray

import headwise as hw

Array = NDArray[Any]
Parameters = dict[str, Array]


def text_of_python() -> str:
    """The topics of ``help()`` in ASCII, without the lines of their tables."""
    lines = "\n".join(topics[name] for name in sorted(topics)).splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith(("|", "+")))
    return "".join(character for character in text if character == "\n" or " " <= character <= "~")


class Text:
    """A text as numbers, and batches of random pieces of it."""

    def __init__(self, text: str) -> None:
        self.characters = sorted(set(text))
        numbers = {character: i for i, character in enumerate(self.characters)}
        self.tokens = np.array([numbers[character] for character in text])

    def batch(self, rng: np.random.Generator, size: int, length: int) -> tuple[Array, Array]:
        """(tokens, the token after each of them), both (size, length)."""
        starts = rng.integers(0, len(self.tokens) - length, size)
        pieces = self.tokens[starts[:, None] + np.arange(length + 1)]
        return pieces[:, :-1], pieces[:, 1:]

    def decode(self, tokens: Array) -> str:
        return "".join(self.characters[token] for token in tokens)


class LanguageModel:
    """A causal transformer; its parameters are float32 arrays under the names in ``parameters``."""

    def __init__(self, vocabulary: int, width: int, heads: int, depth: int, rng: np.random.Generator) -> None:
        rope = hw.RotaryPositionalEmbedding(width // heads)
        self.attention = [
            hw.CausalAttention(width, heads, dropout=0.0, rope=rope, rng=rng, dtype=np.float32) for _ in range(depth)
        ]

        def weights(*shape: int) -> Array:
            return (rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32)

        self.parameters: Parameters = {"embedding": weights(vocabulary, width)}
        for i, layer in enumerate(self.attention):
            # Arrays of the layer itself: an update in place changes the layer.
            self.parameters |= {f"{i}.{name}": getattr(layer, name) for name in ("W_q", "W_k", "W_v", "W_o")}
            self.parameters |= {
                f"{i}.norm_1": np.ones(width, np.float32),
                f"{i}.norm_2": np.ones(width, np.float32),
                f"{i}.up": weights(width, 4 * width),
                f"{i}.up_bias": np.zeros(4 * width, np.float32),
                f"{i}.down": weights(4 * width, width),
                f"{i}.down_bias": np.zeros(width, np.float32),
            }
        self.parameters |= {"norm": np.ones(width, np.float32), "head": weights(width, vocabulary)}

    def loss(self, tokens: Array, following: Array) -> tuple[float, Parameters]:
        """The mean cross-entropy of the following tokens, and its gradients by the parameters."""
        p = self.parameters
        x = p["embedding"][tokens]
        backward: list[Callable[[Array, Parameters], Array]] = []
        for i, layer in enumerate(self.attention):
            x = x + self._attend(i, layer, x, backward)
            x = x + self._feed_forward(i, x, backward)
        normed, from_norm = hw.vjp(hw.rms_norm, x, p["norm"])
        logits, from_head = hw.vjp(hw.linear, normed, p["head"])
        log_p, from_softmax = hw.vjp(hw.log_softmax, logits)
        chosen = *np.indices(following.shape, sparse=True), following
        loss = -float(log_p[chosen].mean())

        gradients: Parameters = {}
        d_log_p = np.zeros_like(log_p)
        d_log_p[chosen] = -1 / following.size
        (d_logits,) = from_softmax(d_log_p)
        d_normed, gradients["head"] = from_head(d_logits)
        d_x, gradients["norm"] = from_norm(d_normed)
        for step in reversed(backward):
            d_x = d_x + step(d_x, gradients)  # the residual connection passes the gradient on unchanged
        gradients["embedding"] = np.zeros_like(p["embedding"])
        np.add.at(gradients["embedding"], tokens, d_x)
        return loss, gradients

    def _attend(self, i: int, layer: hw.CausalAttention, x: Array, backward: list[Any]) -> Array:
        normed, from_norm = hw.vjp(hw.rms_norm, x, self.parameters[f"{i}.norm_1"])
        output, _, from_attention = layer.vjp(normed, need_weights=False)

        def step(d: Array, gradients: Parameters) -> Array:
            found = from_attention(d)
            gradients.update({f"{i}.{name}": gradient for name, gradient in found.parameters.items()})
            d_x, gradients[f"{i}.norm_1"] = from_norm(found.inputs.d_query)
            return d_x

        backward.append(step)
        return output

    def _feed_forward(self, i: int, x: Array, backward: list[Any]) -> Array:
        p = self.parameters
        normed, from_norm = hw.vjp(hw.rms_norm, x, p[f"{i}.norm_2"])
        hidden, from_up = hw.vjp(hw.linear, normed, p[f"{i}.up"], p[f"{i}.up_bias"])
        active, from_gelu = hw.vjp(hw.gelu, hidden)
        output, from_down = hw.vjp(hw.linear, active, p[f"{i}.down"], p[f"{i}.down_bias"])

        def step(d: Array, gradients: Parameters) -> Array:
            d_active, gradients[f"{i}.down"], gradients[f"{i}.down_bias"] = from_down(d)
            (d_hidden,) = from_gelu(d_active)
            d_normed, gradients[f"{i}.up"], gradients[f"{i}.up_bias"] = from_up(d_hidden)
            d_x, gradients[f"{i}.norm_2"] = from_norm(d_normed)
            return d_x

        backward.append(step)
        return output

    def write(self, tokens: Array, count: int, rng: np.random.Generator, temperature: float = 0.7) -> Array:
        """``tokens`` and ``count`` more, each drawn from the model's distribution, with a cache of keys and values."""
        p, written = self.parameters, list(tokens)
        caches = [layer.make_cache(1, len(tokens) + count) for layer in self.attention]
        new = np.asarray(tokens)
        for _ in range(count):
            x = p["embedding"][new[None]]
            for i, (layer, cache) in enumerate(zip(self.attention, caches, strict=True)):
                normed = hw.rms_norm(x, p[f"{i}.norm_1"])
                x = x + layer(normed, cache=cache, need_weights=False)[0]
                hidden = hw.gelu(hw.linear(hw.rms_norm(x, p[f"{i}.norm_2"]), p[f"{i}.up"], p[f"{i}.up_bias"]))
                x = x + hw.linear(hidden, p[f"{i}.down"], p[f"{i}.down_bias"])
            logits = hw.linear(hw.rms_norm(x[0, -1:], p["norm"]), p["head"])
            probabilities = hw.softmax(logits[0].astype(np.float64) / temperature)
            written.append(int(rng.choice(len(probabilities), p=probabilities)))
            new = np.array(written[-1:])
        return np.array(written)


class Adam:
    """Kingma & Ba, "Adam: A Method for Stochastic Optimization" (2015), algorithm 1."""

    def __init__(
        self, parameters: Parameters, rate: float = 2e-3, beta1: float = 0.9, beta2: float = 0.99, eps: float = 1e-8
    ) -> None:
        self.parameters = parameters
        self.rate, self.beta1, self.beta2, self.eps = rate, beta1, beta2, eps
        self.means = {name: np.zeros_like(x) for name, x in parameters.items()}
        self.squares = {name: np.zeros_like(x) for name, x in parameters.items()}
        self.steps = 0

    def step(self, gradients: Parameters) -> None:
        """Update every parameter in place."""
        self.steps += 1
        correction1, correction2 = 1 - self.beta1**self.steps, 1 - self.beta2**self.steps
        for name, parameter in self.parameters.items():
            gradient, mean, square = gradients[name], self.means[name], self.squares[name]
            mean += (1 - self.beta1) * (gradient - mean)
            square += (1 - self.beta2) * (gradient * gradient - square)
            parameter[...] -= self.rate / correction1 * mean / (np.sqrt(square / correction2) + self.eps)


def train(model: LanguageModel, text: Text, rng: np.random.Generator, args: argparse.Namespace) -> list[float]:
    """The loss of each step."""
    adam, losses, begin = Adam(model.parameters, args.rate), [], time.perf_counter()
    for step in range(1, args.steps + 1):
        loss, gradients = model.loss(*text.batch(rng, args.batch, args.length))
        adam.step(gradients)
        losses.append(loss)
        speed = step * args.batch * args.length / (time.perf_counter() - begin)
        line = f"step {step:4} of {args.steps}   loss {np.mean(losses[-20:]):.3f}   {speed:,.0f} tokens/s"
        if sys.stdout.isatty():
            print(f"\r{line}", end="\n" if step == args.steps else "", flush=True)
        elif step % max(1, args.steps // 10) == 0:
            print(line, flush=True)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16, help="sequences of a step")
    parser.add_argument("--length", type=int, default=128, help="characters of a sequence")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--depth", type=int, default=3, help="layers")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=int, default=400, help="characters to write at the end")
    args = parser.parse_args()

    rng, text = np.random.default_rng(args.seed), Text(text_of_python())
    model = LanguageModel(len(text.characters), args.width, args.heads, args.depth, rng)
    count = sum(x.size for x in model.parameters.values())
    print(f"{len(text.tokens):,} characters, {len(text.characters)} of them different; {count:,} parameters")
    train(model, text, rng, args)
    print(text.decode(model.write(text.tokens[:20], args.write, rng)))


if __name__ == "__main__":
    main()
