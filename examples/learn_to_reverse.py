"""One layer of attention learns to reverse sequences of digits; its attention before and after training.

    python examples/learn_to_reverse.py                    # a few seconds
    python examples/learn_to_reverse.py --plot attention   # writes attention-before.png and attention-after.png

Each output position must find the position that it copies, so the weights of a trained model lie on a diagonal from
the lower left to the upper right.
"""

from __future__ import annotations

import argparse

import numpy as np

import headwise as hw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--length", type=int, default=8)
    parser.add_argument("--plot", metavar="NAME", help="draw the weights with Matplotlib")
    args = parser.parse_args()

    rng, width = np.random.default_rng(0), 64
    embedding, head = 0.5 * rng.standard_normal((10, width)), 0.1 * rng.standard_normal((width, 10))
    positions = hw.LearnedPositionalEmbedding(args.length, width, rng=rng)
    positions.embeddings = 0.5 * rng.standard_normal((args.length, width))
    layer = hw.MultiHeadAttention(width, num_heads=1, dropout=0.0, rng=rng)
    parameters = {"embedding": embedding, "head": head, "positions": positions.embeddings}
    parameters |= {name: getattr(layer, name) for name in ("W_q", "W_k", "W_v", "W_o")}
    squares = {name: np.zeros_like(x) for name, x in parameters.items()}
    example = rng.integers(0, 10, (1, args.length))

    def show(when: str) -> None:
        _, weights = layer(positions(embedding[example]))
        print(f"{when} training, attention of each output position (row) to the digits {example[0]}:")
        print(weights[0, 0].round(1))
        if args.plot:
            hw.plot.attention(weights, tokens=[str(digit) for digit in example[0]], path=f"{args.plot}-{when}.png")

    show("before")
    for step in range(1, args.steps + 1):
        digits = rng.integers(0, 10, (64, args.length))
        wanted = digits[:, ::-1]

        x, from_positions = positions.vjp(embedding[digits])
        mixed, _, from_layer = layer.vjp(x)
        logits, from_head = hw.vjp(hw.linear, mixed, head)
        log_p, from_softmax = hw.vjp(hw.log_softmax, logits)
        at = *np.indices(wanted.shape, sparse=True), wanted
        loss, accuracy = -log_p[at].mean(), (logits.argmax(axis=-1) == wanted).mean()

        d_log_p = np.zeros_like(log_p)
        d_log_p[at] = -1 / wanted.size
        gradients = {}
        d_mixed, gradients["head"] = from_head(*from_softmax(d_log_p))
        by_layer = from_layer(d_mixed)
        by_positions = from_positions(by_layer.inputs.d_query)
        gradients |= {**by_layer.parameters, "positions": by_positions.parameters["embeddings"]}
        gradients["embedding"] = np.zeros_like(embedding)
        np.add.at(gradients["embedding"], digits, by_positions.inputs.d_x)
        for name, parameter in parameters.items():  # RMSProp: Adam without momentum
            squares[name] += 0.05 * (gradients[name] ** 2 - squares[name])
            parameter[...] -= 2e-3 * gradients[name] / (np.sqrt(squares[name]) + 1e-8)
        if step % (args.steps // 4) == 0:
            print(f"step {step}: loss {loss:.3f}, {accuracy:.0%} of the digits right")
    show("after")


if __name__ == "__main__":
    main()
