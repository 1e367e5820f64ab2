"""Libraries with headwise inside, beside the same libraries alone: the tables of docs/integrations.

    python bench/integrations.py torch               # medians of interleaved rounds, two threads
    python bench/integrations.py mygrad              # autograd, mygrad and xarray: a formula written in the library
    python bench/integrations.py torch --rounds 5 --threads 1 --cases "small,training"
    python bench/integrations.py torch --processor-time    # one thread; for a machine that does other work

Each case runs without and with headwise in turn, in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

import headwise as hw


class Case(NamedTuple):
    name: str
    run: Callable[[], Any]
    repeats: int = 1  # calls for each time taken
    alone: Callable[[], Any] | None = None  # the library's own way, where that is another call


def torch_cases() -> Iterator[Case]:
    import torch

    attend = torch.nn.functional.scaled_dot_product_attention

    def arrays(*shape: int, kv_heads: int | None = None, dtype: Any = torch.float32) -> list[Any]:
        batch, heads, length, dim = shape
        return [torch.randn(batch, n, length, dim, dtype=dtype) for n in (heads, *[kv_heads or heads] * 2)]

    small = arrays(1, 8, 16, 64)
    recorded = [small[0].clone().requires_grad_(), *small[1:]]
    yield Case("small call (1, 8, 16, 64)", lambda: attend(*small), 200)
    yield Case("small call, recorded by autograd", lambda: attend(*recorded), 200)
    keep = torch.rand(16, 16) < 0.8
    yield Case("small call, bool mask", lambda: attend(*small, attn_mask=keep), 200)

    long = arrays(1, 8, 2048, 64)
    yield Case("(1, 8, 2048, 64)", lambda: attend(*long))
    yield Case("(1, 8, 2048, 64), causal", lambda: attend(*long, is_causal=True))
    grouped = arrays(1, 8, 2048, 64, kv_heads=2)
    yield Case("(1, 8, 2048, 64), causal, 2 key heads", lambda: attend(*grouped, is_causal=True, enable_gqa=True))
    bfloat16 = arrays(1, 8, 2048, 64, dtype=torch.bfloat16)
    yield Case("(1, 8, 2048, 64), causal, bfloat16", lambda: attend(*bfloat16, is_causal=True))
    mask = torch.rand(2048, 2048) < 0.5
    yield Case("(1, 8, 2048, 64), bool mask", lambda: attend(*long, attn_mask=mask))
    wide = [*long[:2], torch.randn(1, 8, 2048, 32)]
    yield Case("(1, 8, 2048, 64), values of 32", lambda: attend(*wide))
    many = arrays(32, 8, 128, 64)
    yield Case("(32, 8, 128, 64)", lambda: attend(*many))
    step = [x.requires_grad_() for x in arrays(1, 8, 1024, 64)]
    d_output = torch.randn(1, 8, 1024, 64)

    def gradients(**keywords: Any) -> None:
        torch.autograd.grad(attend(*step, **keywords), step, d_output)

    yield Case("(1, 8, 1024, 64), causal, with gradients", lambda: gradients(is_causal=True))
    yield Case("(1, 8, 1024, 64), dropout, with gradients", lambda: gradients(dropout_p=0.1))
    bias = torch.randn(8, 1024, 1024, requires_grad=True)
    yield Case("(1, 8, 1024, 64), learned bias, with gradients", lambda: gradients(attn_mask=bias[None]))

    layer = torch.nn.TransformerEncoderLayer(512, 8, batch_first=True).eval()
    x = torch.randn(4, 512, 512)

    def encode() -> Any:
        with torch.inference_mode():
            return layer(x)

    yield Case("TransformerEncoderLayer (4, 512, 512), inference", encode)
    yield Case("Llama-like training step, 2 layers, 1,024 tokens", llama_training())


def llama_training() -> Callable[[], None]:
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=1024, hidden_size=512, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    tokens = torch.randint(1024, (1, 1024))

    def step() -> None:
        model.zero_grad()
        model(tokens, labels=tokens).loss.backward()

    return step


def normal(*shape: int) -> list[Any]:
    return list(np.random.default_rng(0).standard_normal((3, *shape), dtype=np.float32))


def autograd_cases() -> Iterator[Case]:
    import autograd
    import autograd.numpy as anp

    import headwise.integrations.autograd as ours

    arrays = normal(1, 8, 512, 64)
    keep = np.tri(512, dtype=bool)

    def formula(query: Any, key: Any, value: Any) -> Any:
        scores = anp.where(keep, anp.matmul(query, anp.swapaxes(key, 2, 3)) / 8, -np.inf)
        weights = anp.exp(scores - anp.max(scores, axis=-1, keepdims=True))
        return anp.matmul(weights / anp.sum(weights, axis=-1, keepdims=True), value)

    def attend(query: Any, key: Any, value: Any) -> Any:
        return ours.flash_attention(query, key, value, is_causal=True)

    def gradients(function: Any) -> Any:
        pull = autograd.grad(lambda x: anp.sum(function(*x) ** 2))
        return lambda: pull(tuple(arrays))

    yield Case("(1, 8, 512, 64), causal, with gradients", gradients(attend), alone=gradients(formula))


def mygrad_cases() -> Iterator[Case]:
    import mygrad as mg

    import headwise.integrations.mygrad as ours

    arrays = normal(1, 8, 512, 64)
    masked = np.where(np.tri(512, dtype=bool), np.float32(0), -np.inf).astype(np.float32)

    def formula(query: Any, key: Any, value: Any) -> Any:
        scores = mg.matmul(query, mg.swapaxes(key, 2, 3)) / 8 + masked
        return mg.matmul(mg.nnet.softmax(scores, axis=-1), value)

    def attend(query: Any, key: Any, value: Any) -> Any:
        return ours.flash_attention(query, key, value, is_causal=True)

    def gradients(function: Any) -> Any:
        return lambda: (function(*(mg.tensor(x) for x in arrays)) ** 2).sum().backward()

    yield Case("(1, 8, 512, 64), causal, with gradients", gradients(attend), alone=gradients(formula))


def xarray_cases() -> Iterator[Case]:
    import xarray

    from headwise.integrations.xarray import flash_attention

    query, key, value = (
        xarray.DataArray(x, dims=("batch", "head", dim, "channel"))
        for x, dim in zip(normal(1, 8, 1024, 64), ("time", "past", "past"), strict=True)
    )

    def formula() -> Any:
        scores = xarray.dot(query, key, dim="channel") / 8
        weights = np.exp(scores - scores.max("past"))
        return xarray.dot(weights / weights.sum("past"), value, dim="past")

    def attend() -> Any:
        return flash_attention(query, key, value, queries="time", keys="past", features="channel")

    yield Case("(1, 8, 1024, 64)", attend, alone=formula)


def torch_with() -> AbstractContextManager[Any]:
    from headwise.integrations.torch import enabled

    return enabled()


def torch_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


#: Library: its cases, headwise inside for a block of code, and how its number of threads is set.
LIBRARIES: dict[str, tuple[Callable[[], Iterator[Case]], Callable[[], Any], Callable[[int], None]]] = {
    "autograd": (autograd_cases, nullcontext, lambda _: None),
    "mygrad": (mygrad_cases, nullcontext, lambda _: None),
    "torch": (torch_cases, torch_with, torch_threads),
    "xarray": (xarray_cases, nullcontext, lambda _: None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", default="", help="parts of the names of cases, with commas; all by default")
    parser.add_argument("--processor-time", action="store_true", help="processor time of the process, on one thread")
    arguments = parser.parse_args()
    cases, inside, set_threads = LIBRARIES[arguments.library]
    threads = 1 if arguments.processor_time else arguments.threads
    clock = time.process_time if arguments.processor_time else time.perf_counter
    set_threads(threads)
    hw.set_num_threads(threads)
    wanted = [part.strip() for part in arguments.cases.split(",") if part.strip()]
    print(f"| {arguments.library}, milliseconds | alone | with headwise | ratio |")
    print("| --- | --- | --- | --- |")
    for case in cases():
        if wanted and not any(part in case.name for part in wanted):
            continue
        alone, ours = medians(case, inside, arguments.rounds, clock)
        print(f"| {case.name} | {alone * 1e3:.4g} | {ours * 1e3:.4g} | {alone / ours:.2f} |", flush=True)


def medians(case: Case, inside: Callable[[], Any], rounds: int, clock: Callable[[], float]) -> list[float]:
    """The median time of a call, without and with headwise."""
    ways: tuple[Callable[[], Any], ...] = (nullcontext, inside)
    times: list[list[float]] = [[] for _ in ways]
    for i in range(rounds + 1):  # the first round warms up
        for way, taken in zip(ways, times, strict=True):
            call = case.alone if case.alone is not None and taken is times[0] else case.run
            with way():
                call()
                start = clock()
                for _ in range(case.repeats):
                    call()
                if i:
                    taken.append((clock() - start) / case.repeats)
    return [statistics.median(taken) for taken in times]


if __name__ == "__main__":
    main()
