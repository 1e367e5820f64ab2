"""Hugging Face models with attn_implementation="headwise", "eager" and "sdpa": prefill, and tokens by a cache.

    python bench/transformers_models.py               # medians of interleaved rounds, two threads
    python bench/transformers_models.py --cases mistral,t5 --rounds 9 --threads 1
    python bench/transformers_models.py --processor-time    # one thread; for a machine that does other work

Models have random weights and two layers; T5 has the sizes of t5-small. Milliseconds are those of the whole model. An
implementation that refuses the model is left out ("-"): PyTorch's fused attention has no softcap and no sinks.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import TYPE_CHECKING, Any

import torch
import transformers

import headwise as hw
import headwise.integrations.transformers as hwt

if TYPE_CHECKING:
    from collections.abc import Callable

_GROUPED: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
    "eos_token_id": None,
}
_BERT = {
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
}
_T5: dict[str, Any] = {"vocab_size": 1024, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
_EXPERTS: dict[str, Any] = {"num_local_experts": 2, "num_experts_per_tok": 1}
_CHUNKED = _GROUPED | _EXPERTS | {"attention_chunk_size": 512, "intermediate_size_mlp": 1024}
# Linear attention of 4 key heads and 8 value heads of 128 in three of four layers.
_DELTA = _GROUPED | {
    "num_hidden_layers": 4, "linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "layer_types": ["linear_attention"] * 3 + ["full_attention"],
}  # fmt: skip
# Linear attention of 8 heads of 128 in one of two layers, with a decay for each entry of a key.
_KIMI = _GROUPED | {
    "num_key_value_heads": 8, "kv_lora_rank": 128, "linear_num_heads": 8, "linear_head_dim": 128,
    "num_local_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 512,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_PREFILL = 2048

#: Case: the configuration, its keywords, the class that loads it, batch and tokens, whether the batch is padded.
CASES: dict[str, tuple[str, dict[str, Any], str, tuple[int, int], bool]] = {
    "llama": ("Llama", _GROUPED, "AutoModel", (1, _PREFILL), False),
    "llama, left padding": ("Llama", _GROUPED, "AutoModel", (2, 1024), True),
    "mistral, window 512": ("Mistral", _GROUPED | {"sliding_window": 512}, "AutoModel", (1, _PREFILL), False),
    "llama-4, chunks of 512": ("Llama4Text", _CHUNKED, "AutoModel", (1, _PREFILL), False),
    "gemma-2": ("Gemma2", _GROUPED | {"sliding_window": 4096}, "AutoModel", (1, _PREFILL), False),
    "gpt-oss": ("GptOss", _GROUPED | _EXPERTS | {"sliding_window": 128}, "AutoModel", (1, _PREFILL), False),
    "bert, padded": ("Bert", _BERT, "AutoModel", (4, 512), True),
    "qwen3.5 (linear attention)": ("Qwen3_5Text", _DELTA, "AutoModel", (1, _PREFILL), False),
    "kimi (linear attention)": ("KimiLinear", _KIMI, "AutoModel", (1, 512), False),
    "t5 encoder": ("T5", _T5, "AutoModelForTextEncoding", (1, 1024), False),
}
DECODE = {
    "llama, 64 tokens": ("Llama", _GROUPED),
    "gemma-2, 64 tokens": ("Gemma2", _GROUPED | {"sliding_window": 512}),
    "qwen3.5, 64 tokens (linear attention)": ("Qwen3_5Text", _DELTA),
}
IMPLEMENTATIONS = ("headwise", "eager", "sdpa")


def make(config: str, keywords: dict[str, Any], auto: str) -> Any:
    torch.manual_seed(0)
    configuration = getattr(transformers, f"{config}Config")(**keywords)
    return getattr(transformers, auto).from_config(configuration, attn_implementation="eager").eval()


def prefill(model: Any, shape: tuple[int, int], padded: bool) -> Callable[[], Any]:
    ids = torch.randint(1, 1024, shape)
    mask = torch.ones_like(ids)
    if padded:
        mask[: shape[0] // 2, : shape[1] // 4] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    return lambda: model(**batch)


def decode(model: Any) -> Callable[[], Any]:
    batch = {"input_ids": torch.randint(1, 1024, (1, 512)), "attention_mask": torch.ones(1, 512, dtype=torch.long)}
    return lambda: model.generate(**batch, do_sample=False, max_new_tokens=64, min_new_tokens=64)


def measure(model: Any, call: Callable[[], Any], rounds: int, clock: Callable[[], float]) -> dict[str, float | None]:
    """Median milliseconds of each implementation; None where it refuses the model."""
    samples: dict[str, list[float]] = {name: [] for name in IMPLEMENTATIONS}
    for round_ in range(rounds + 1):
        for name in IMPLEMENTATIONS:
            try:
                model.set_attn_implementation(name)
                start = clock()
                call()
            except ValueError:
                continue
            if round_:  # the first call is a warm-up
                samples[name].append(1e3 * (clock() - start))
    return {name: statistics.median(times) if times else None for name, times in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help="cases with one of these words in their names, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--processor-time", action="store_true", help="of the calling thread, which then is the only one"
    )
    arguments = parser.parse_args()
    threads = 1 if arguments.processor_time else arguments.threads
    clock = time.thread_time if arguments.processor_time else time.perf_counter
    torch.set_num_threads(threads)
    hw.set_num_threads(threads)
    warnings.simplefilter("ignore", FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    hwt.register()

    words = arguments.cases.split(",") if arguments.cases else [""]
    print("| model | headwise ms | eager ms | sdpa ms | eager / headwise | sdpa / headwise |")
    print("| --- | --- | --- | --- | --- | --- |")
    with torch.no_grad():
        for name in [*CASES, *DECODE]:
            if not any(word in name for word in words):
                continue
            if name in CASES:
                config, keywords, auto, shape, padded = CASES[name]
                model = make(config, keywords, auto)
                title, call = f"{name}, {shape[0]} x {shape[1]}", prefill(model, shape, padded)
            else:
                model = make(*DECODE[name], "AutoModelForCausalLM")
                title, call = name, decode(model)
            times = measure(model, call, arguments.rounds, clock)
            ours = times["headwise"]
            assert ours is not None
            cells = [f"{t:,.1f}" if t is not None else "-" for t in times.values()]
            ratios = [f"{t / ours:.2f}" if t is not None else "-" for t in list(times.values())[1:]]
            print(f"| {title} | {' | '.join(cells + ratios)} |", flush=True)


if __name__ == "__main__":
    main()
