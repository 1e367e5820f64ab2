"""Attention under jax.jit and jax.grad by headwise and by jax.nn: the table of docs/integrations/jax.md.

    python bench/jax_calls.py                      # medians of interleaved rounds; all threads of JAX, two of headwise
    python bench/jax_calls.py --cases gradients --rounds 21
    taskset -c 0 python bench/jax_calls.py --processor-time    # one thread; for a machine that does other work

Both are compiled. Queries and keys of JAX are (batch, sequence, heads, head_dim), as its function takes them. Results
are compared first.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from comparison.in_turn import medians

import headwise as hw
from headwise.integrations.jax import flash_attention, softmax

if TYPE_CHECKING:
    from collections.abc import Callable


class Case(NamedTuple):
    name: str
    peer: Callable[..., Any]
    own: Callable[..., Any]
    arguments: tuple[Any, ...]  # those of the peer
    swaps: bool = True  # whether headwise takes, and returns, heads before the sequence


def with_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.value_and_grad(lambda *arrays: (function(*arrays) ** 2).sum(), argnums=(0, 1, 2))


def cases() -> list[Case]:
    keys = jax.random.split(jax.random.key(0), 3)
    long = tuple(jax.random.normal(key, (1, 1024, 8, 64)) for key in keys)
    grouped = (long[0], *(x[:, :, :2] for x in long[1:]))
    small = tuple(jax.random.normal(key, (1, 16, 8, 64)) for key in keys)
    rows = (jax.random.normal(keys[0], (1, 6)),)

    def peer(*arrays: Any) -> Any:
        return jax.nn.dot_product_attention(*arrays, is_causal=True)

    def own(*arrays: Any) -> Any:
        return flash_attention(*arrays, is_causal=True)

    def window(*arrays: Any) -> Any:
        return jax.nn.dot_product_attention(*arrays, is_causal=True, local_window_size=(127, 0))

    def own_window(*arrays: Any) -> Any:
        return flash_attention(*arrays, is_causal=True, window_size=(127, 0))

    shape = "(1, 8, 1024, 64)"
    return [
        Case(f"{shape}", jax.nn.dot_product_attention, flash_attention, long),
        Case(f"{shape}, causal", peer, own, long),
        Case(f"{shape}, causal, 2 key heads", peer, own, grouped),
        Case(f"{shape}, causal, window 128", window, own_window, long),
        Case(f"{shape}, causal, with gradients", with_gradients(peer), with_gradients(own), long),
        Case("small call (1, 8, 16, 64), causal", peer, own, small),
        Case("softmax of six numbers", jax.nn.softmax, softmax, rows, swaps=False),
    ]


def calls(case: Case) -> dict[str, Callable[[], Any]]:
    """The compiled calls, whose results agree."""
    own, peer = jax.jit(case.own), jax.jit(case.peer)
    arguments = tuple(x.swapaxes(1, 2) for x in case.arguments) if case.swaps else case.arguments

    def in_peers_layout(x: Any) -> Any:
        return np.swapaxes(x, 1, 2) if case.swaps and x.ndim == 4 else np.asarray(x)

    results = (jax.tree.leaves(own(*arguments)), jax.tree.leaves(peer(*case.arguments)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(in_peers_layout(ours), theirs, rtol=2e-4, atol=2e-4)
    return {
        "jax": lambda: jax.block_until_ready(peer(*case.arguments)),
        "headwise": lambda: jax.block_until_ready(own(*arguments)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="parts of the names of cases, with commas; all by default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--processor-time", action="store_true", help="processor time of the process, all of its threads"
    )
    arguments = parser.parse_args()
    hw.set_num_threads(1 if arguments.processor_time else arguments.threads)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    print("| case | jax.nn, ms | headwise, ms | ratio |\n| --- | --- | --- | --- |")
    for case in cases():
        if any(word.strip() in case.name for word in arguments.cases.split(",")):
            ms = {name: 1e3 * seconds for name, seconds in medians(calls(case), arguments.rounds, clock).items()}
            ratio = ms["jax"] / ms["headwise"]
            print(f"| {case.name} | {ms['jax']:.3g} | {ms['headwise']:.3g} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
