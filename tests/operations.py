"""The one table of headwise's operations, and of attention's options, which every table-driven suite reads.

An entry of ``OPERATIONS`` brings an operation into the suites of layouts, ``out=``, refusals, 16-bit dtypes,
arguments of backends, threads, memory, and differential tests, and into the smoke test. An entry of ``OPTIONS`` brings
an option of attention, such as a score modifier, into the same suites for all three functions of attention.

Only NumPy is needed: ``smoke.py`` reads the table where neither pytest nor hypothesis is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import headwise as hw
import oracle
from calls import Arguments, Array, Case, Draw, Make, Operation, Option, Shape, Sizes, Variant, kept


def broadcast(st: Any, scores: Shape) -> Any:
    """Shapes that broadcast to ``scores``, of its last two axes at least."""
    sizes = st.tuples(*(st.sampled_from(sorted({1, size})) for size in scores))
    return st.tuples(sizes, st.integers(0, len(scores) - 2)).map(lambda drawn: drawn[0][drawn[1] :])


def key_lengths(s: Sizes, length: Callable[[int], int]) -> Any:
    """The length of each sequence as nested lists, of the shape of the axes before those of heads, queries and keys."""
    batch = s.lead[:-1] or s.lead
    return np.array([length(n) for n in range(int(np.prod(batch)))]).reshape(batch).tolist()


def modified_scores(score: Any, batch: Any, head: Any, q: Any, k: Any) -> Any:
    """A ``score_mod`` that depends on all of its arguments."""
    return score * (1 + 0.1 * batch) - 0.02 * (head + 1) * np.abs(q - k)


OPTIONS: dict[str, Option] = {
    "mask": Option(
        lambda s, make: kept(make("mask", s.scores)),
        lambda st, array, s: st.tuples(
            broadcast(st, s.scores).flatmap(array), st.sampled_from([None, -3.0, -0.5, 1.0])
        ).map(lambda drawn: drawn[0] if drawn[1] is None else drawn[0] > drawn[1]),
        refused=((TypeError, "causal"), (TypeError, object()), (ValueError, np.full((5, 7), 2))),
        varlen=False,
    ),
    "bias": Option(
        lambda s, make: make("bias", s.scores),
        lambda st, array, s: st.tuples(broadcast(st, s.scores).flatmap(array), st.booleans()).map(
            lambda drawn: np.where(drawn[0] > 1.5, -np.inf, 1.0) if drawn[1] else drawn[0]
        ),
        refused=((TypeError, np.ones((5, 7), bool)),),
        varlen=False,
    ),
    "is_causal": Option(
        lambda s, make: True,
        lambda st, array, s: st.booleans(),
        refused=((TypeError, "yes"), (TypeError, None)),
    ),
    "causal_alignment": Option(
        lambda s, make: "lower_right",
        lambda st, array, s: st.sampled_from(["upper_left", "lower_right"]),
        refused=((ValueError, "lower"), (ValueError, ""), (TypeError, None), (TypeError, 1)),
        needs={"is_causal": True},
    ),
    "scale": Option(
        lambda s, make: -0.3,
        lambda st, array, s: st.floats(-1, 1),
        refused=((ValueError, np.nan), (ValueError, np.inf), (TypeError, "auto"), (TypeError, 1j), (TypeError, [0.5])),
    ),
    "window_size": Option(
        lambda s, make: (s.keys // 3, s.keys // 4),
        lambda st, array, s: st.integers(-1, 70) | st.tuples(st.integers(-1, 70), st.integers(-1, 70)),
        refused=(
            (ValueError, -2),
            (ValueError, (-2, 3)),
            (ValueError, (3, -7)),
            (ValueError, (1, 2, 3)),
            (ValueError, ()),
            (TypeError, 1.5),
            (TypeError, (1.0, 2)),
            (TypeError, True),
            (TypeError, "3"),
        ),
    ),
    "softcap": Option(
        lambda s, make: 3.0,
        lambda st, array, s: st.floats(0.1, 50),
        refused=(
            (ValueError, 0.0), (ValueError, -1.0), (ValueError, np.nan), (ValueError, np.inf), (TypeError, "30"),
        ),
    ),
    "alibi_slopes": Option(
        lambda s, make: make("alibi_slopes", (s.heads,)),
        lambda st, array, s: array((s.heads,)),
    ),
    "relative_bias": Option(
        lambda s, make: make("relative_bias", (s.heads, s.queries, 2 * (s.keys // 2) + 1)),
        lambda st, array, s: st.tuples(
            st.tuples(
                *(st.sampled_from(sorted({1, size})) for size in (*(s.lead[:-1] or s.lead), s.heads, s.queries)),
                st.sampled_from([1, 5, 11, 141]),
            ),
            st.booleans(),
            st.booleans(),
        ).flatmap(
            lambda drawn: array(drawn[0][-3:] if drawn[1] else drawn[0]).map(
                lambda bias: np.where(bias > 1.5, -np.inf, bias) if drawn[2] else bias
            )
        ),
        refused=(
            (ValueError, np.ones((4, 5, 4))), (ValueError, np.ones((4, 5, 0))), (ValueError, np.ones((3, 5, 7))),
            (ValueError, np.ones((4, 3, 7))), (ValueError, np.ones(7)), (ValueError, np.ones((1, 1, 1, 1, 7))),
            (TypeError, np.ones((4, 5, 7), bool)), (TypeError, "t5"),
        ),
    ),
    "sinks": Option(
        lambda s, make: make("sinks", (s.heads,)),
        lambda st, array, s: array((s.heads,)).map(
            lambda drawn: np.where(drawn > 0.8, -np.inf, drawn)
        ),
    ),
    "key_padding_mask": Option(
        lambda s, make: kept(make("key_padding_mask", (s.lead[0] if s.lead else 1, s.keys))),
        lambda st, array, s: st.tuples(
            array((*(s.lead[:-1] or s.lead or (1,)), s.keys)), st.sampled_from([1.3, -1.3]),
            st.sampled_from([bool, np.int8, float, None]),
        ).map(lambda drawn: drawn[0] if drawn[2] is None else (drawn[0] > drawn[1]).astype(drawn[2])),
        refused=((TypeError, "causal"), (TypeError, np.ones((2, 7), complex)), (ValueError, np.full((2, 7), -1))),
        varlen=False,
    ),
    "key_lengths": Option(
        lambda s, make: key_lengths(s, lambda n: (2 * s.keys // 3 + n) % (s.keys + 1)),
        lambda st, array, s: st.integers(0, s.keys).map(
            lambda n: key_lengths(s, lambda entry: (n + entry) % (s.keys + 1))
        ),
        refused=(
            (ValueError, [8, 1]), (ValueError, [-1, 1]), (ValueError, [1, 2, 3]), (ValueError, 3),
            (TypeError, [1.0, 2.0]), (TypeError, [True, False]), (TypeError, "all"),
        ),
        varlen=False,
    ),
    "score_mod": Option(
        lambda s, make: modified_scores,
        lambda st, array, s: st.sampled_from([None, modified_scores]),
        refused=((TypeError, "alibi"), (TypeError, 1.0)),
        varlen=False,
    ),
    "precision": Option(
        lambda s, make: "highest",
        lambda st, array, s: st.sampled_from([None, "highest", "high", "medium"]),
        refused=((ValueError, "low"), (ValueError, ""), (ValueError, "HIGHEST"), (TypeError, 1)),
        exact=False,
    ),
    "return_lse": Option(
        lambda s, make: True,
        lambda st, array, s: st.booleans(),
        refused=((TypeError, 1.5),),
        exact=False,
    ),
    "dropout_rate": Option(
        lambda s, make: 0.3,
        lambda st, array, s: st.floats(0, 0.9),
        refused=((ValueError, 1.0), (ValueError, -0.1), (TypeError, "0.1")),
        needs={"rng": 3},
        varlen=False,
        exact=False,
    ),
    "rng": Option(
        lambda s, make: 3,
        lambda st, array, s: st.just(3),
        refused=(
            (TypeError, "seed"),
            (TypeError, 1.5),
            (TypeError, True),
            (ValueError, -1),
            (TypeError, np.random.RandomState(0)),
        ),
        varlen=False,
        exact=False,
    ),
}  # fmt: skip

PLAIN: dict[str, Variant] = {"": lambda s, make: {}}


def keywords(**values: Any) -> Variant:
    return lambda s, make: dict(values)


def option_variant(name: str) -> Variant:
    return lambda s, make: {**OPTIONS[name].needs, name: OPTIONS[name].value(s, make)}


def all_options(varlen: bool) -> Variant:
    """All at once, but dropout: it hides errors, and the oracle has none; and ``score_mod``, which has no kernel."""
    left_out = {"dropout_rate", "rng", "score_mod"}
    names = [name for name, option in OPTIONS.items() if name not in left_out and (option.varlen or not varlen)]
    return lambda s, make: {name: OPTIONS[name].value(s, make) for name in names}


def block_mask(s: Sizes, make: Make) -> Arguments:
    """Blocks of all three kinds, for all batch entries and heads."""
    lengths = s.queries, s.keys
    mask = hw.BlockMask.window((s.keys // 3, 2), *lengths, block_size=8)
    token = min(1, max(lengths) - 1)
    return {"mask": mask | hw.BlockMask.global_tokens([token], *lengths, block_size=8)}


def attention_variants(varlen: bool = False) -> dict[str, Variant]:
    single = {name: option_variant(name) for name, option in OPTIONS.items() if option.varlen or not varlen}
    blocks = {} if varlen else {"block_mask": block_mask}
    return PLAIN | single | blocks | {"all": all_options(varlen)}


def x_only(s: Sizes, make: Make) -> Arguments:
    return {"x": make("x", s.rows)}


AXIS: dict[str, Draw] = {
    "axis": lambda st, array, s: (
        st.integers(-len(s.rows), len(s.rows) - 1)
        | st.none()
        | st.lists(st.integers(0, len(s.rows) - 1), unique=True).map(tuple)
    ),
    "where": lambda st, array, s: broadcast(st, s.rows).flatmap(array).map(lambda drawn: drawn > -0.5),
}
AXES = PLAIN | {f"axis-{axis}": keywords(axis=axis) for axis in (0, 1, -2)}
SOFTMAX = AXES | {
    "axis-None": keywords(axis=None),
    "axis-(0, -1)": keywords(axis=(0, -1)),
    "where": lambda s, make: {"where": kept(make("where", s.rows))},
}
EPS: Draw = lambda st, array, s: st.sampled_from([1e-5, 1e-3, 1.0])  # noqa: E731
RMS_NORM = PLAIN | {"gamma": lambda s, make: {"gamma": make("gamma", (s.head_dim,)), "eps": 0.5}}
TANH = {"tanh": keywords(approximate="tanh")}
APPROXIMATE: dict[str, Draw] = {"approximate": lambda st, array, s: st.sampled_from(["none", "tanh"])}
FIRST_AXES = ("", "axis-0", "axis--2", "where")
MANY = Sizes((8,), 1, 310, 480, 480, 480)
SOFTMAX_PARALLEL = {
    "": MANY,
    "one-row": MANY._replace(lead=(), queries=1, head_dim=8 * 310 * 480),
    "long-rows": Sizes((), 1, 3, 1, 70_000, 1),
}
LINEAR_PARALLEL = {
    "": Sizes((8,), 1, 60, 1, 96, 150),
    "blocks": Sizes((), 1, 480, 1, 96, 1100),
    "one-row": Sizes((), 1, 1, 1, 960, 1500),
    "few-rows": Sizes((), 1, 9, 1, 960, 1500),
}
ATTENTION_PARALLEL = {
    "": Sizes((1, 4), 2, 130, 600, 16, 24),
    "one-head": Sizes((), 1, 130, 600, 16, 24),
    "one-row": Sizes((1, 4), 2, 1, 7000, 16, 24),
}
ATTENTION_WRT = ("query", "key", "value", "bias", "alibi_slopes", "sinks", "relative_bias")
ATTENTION_SMALL = Sizes((2, 4), 2, 5, 7, 8, 6)


def rope_arguments(s: Sizes, make: Make) -> Arguments:
    table = (s.queries, s.head_dim // 2)
    return {"x": make("x", s.rows), "cos": make("cos", table), "sin": make("sin", table)}


def normalization_arguments(s: Sizes, make: Make) -> Arguments:
    return {"x": make("x", s.rows), "gamma": make("gamma", (s.head_dim,)), "beta": make("beta", (s.head_dim,))}


def gate_and_up(s: Sizes, make: Make) -> Arguments:
    return {"gate": make("gate", s.rows), "up": make("up", s.rows)}


def with_gradient(arguments: Callable[[Sizes, Make], Arguments]) -> Callable[[Sizes, Make], Arguments]:
    """The arguments of a gradient, whose first is by the result of an elementwise operation."""
    return lambda s, make: {"d_out": make("d_out", s.rows)} | arguments(s, make)


def linear_arguments(s: Sizes, make: Make) -> Arguments:
    return {"x": make("x", s.rows), "weight": make("weight", (s.head_dim, s.value_dim))}


def packed_linear(x: Any, weight: Any, bias: Any = None, precision: Any = None, out: Any = None) -> Array:
    return hw.PackedLinear(weight, bias, precision=precision)(x, out=out)


def attention_arguments(s: Sizes, make: Make) -> Arguments:
    return {
        "query": make("query", s.rows),
        "key": make("key", (*s.kv_lead, s.keys, s.head_dim)),
        "value": make("value", (*s.kv_lead, s.keys, s.value_dim)),
    }


def merge_arguments(s: Sizes, make: Make) -> Arguments:
    return {"outputs": make("outputs", (3, *s.rows)), "lses": make("lses", (3, *s.rows[:-1]))}


def starts(total: int) -> list[int]:
    """Where sequences of 3, two thirds of the rest, 0 and the rest begin, and where the last ends."""
    first = min(3, total)
    second = first + (total - first) * 2 // 3
    return [0, first, second, second, total]


def varlen_arguments(s: Sizes, make: Make) -> Arguments:
    return {
        "query": make("query", (s.queries, s.heads, s.head_dim)),
        "key": make("key", (s.keys, s.kv_heads, s.head_dim)),
        "value": make("value", (s.keys, s.kv_heads, s.value_dim)),
        "cu_seqlens_q": starts(s.queries),
        "cu_seqlens_k": starts(s.keys),
    }


def token_variant(**values: Any) -> Variant:
    """Linear attention in which each query has a key, and these keywords."""
    return lambda s, make: {
        "key": make("key", (*s.kv_lead, s.queries, s.head_dim)),
        "value": make("value", (*s.kv_lead, s.queries, s.value_dim)),
        **values,
    }


def unit_features(x: Array) -> Array:
    """Rows of length 1, with which the delta rules are stable."""
    with np.errstate(all="ignore"):
        squares = (x * x).sum(axis=-1, keepdims=True)
        return np.asarray(x / np.sqrt(squares + (squares == 0)))


def state_variant(s: Sizes, make: Make) -> Arguments:
    return {"feature_map": None, "scale": 0.0625, "state": make("state", (*s.kv_lead, s.head_dim, s.value_dim))}


DELTA = {"rule": "delta", "beta": 0.75, "feature_map": unit_features, "normalize": False}
#: Rates are no arrays here, so that no suite takes them out of (0, 1]: tests/ops/test_linear_attention.py has arrays.
LINEAR_ATTENTION = PLAIN | {
    "state": state_variant,
    "causal": token_variant(is_causal=True, chunk=3),
    "gated": token_variant(rule="gated", decay=0.875, feature_map=None),
    "delta": token_variant(**DELTA),
    "gated_delta": token_variant(**DELTA | {"rule": "gated_delta", "decay": 0.75}),
}


def query_and_key(s: Sizes, make: Make) -> Arguments:
    arguments = attention_arguments(s, make)
    return {name: arguments[name] for name in ("query", "key")}


def statistics_variants() -> dict[str, Variant]:
    """Those of the scores, and the keywords of the statistics."""

    def without_lse(s: Sizes, make: Make) -> Arguments:
        options = all_options(varlen=False)(s, make)
        return {name: value for name, value in options.items() if name != "return_lse"}

    others = {"return_lse", "dropout_rate", "rng"}
    variants = {name: variant for name, variant in attention_variants().items() if name not in others}
    return variants | {
        "all": without_lse,
        "average_heads": keywords(average_heads=True),
        "blocks": lambda s, make: {"k": min(3, s.keys), "block_size": 4},
    }


def gradient_arguments(s: Sizes, make: Make) -> Arguments:
    return attention_arguments(s, make) | {"d_output": make("d_output", (*s.lead, s.queries, s.value_dim))}


def attention_gradients(query: Any, key: Any, value: Any, d_output: Any, **options: Any) -> tuple[Array, ...]:
    """By the arguments of flash_attention that are given."""
    wrt = ("query", "key", "value", *(name for name in ATTENTION_WRT[3:] if options.get(name) is not None))
    _, pullback = hw.vjp(hw.flash_attention, query, key, value, wrt=wrt, **options)
    return tuple(pullback(d_output))


def attention_statistics(query: Any, key: Any, **options: Any) -> tuple[Array, ...]:
    """All statistics as one tuple, without the indices of top_k, which are not continuous."""
    names = ("key_mass", "entropy", "max_weight", "top_k", "block_mass", "lse")
    found = hw.attention_statistics(query, key, which=names, **options)
    assert found.top_k is not None
    return tuple(part for part in found._replace(top_k=found.top_k.weights) if part is not None)


def expected_attention_statistics(
    query: Array,
    key: Array,
    k: int = 8,
    block_size: int = 16,
    average_heads: bool = False,
    precision: Any = None,
    **options: Any,
) -> tuple[Array, ...]:
    """The default size of blocks is that of short sequences."""
    answer = oracle.attention(query, key, key, **with_dense_mask(options))
    weights = answer.weights.mean(axis=-3) if average_heads and answer.weights.ndim > 3 else answer.weights
    starts = [np.arange(0, length, block_size) for length in weights.shape[-2:]]
    blocks = np.add.reduceat(np.add.reduceat(weights, starts[1], axis=-1), starts[0], axis=-2)
    terms = weights * np.log(np.where(weights == 0, 1, weights))
    largest = -np.sort(-weights, axis=-1)[..., :k]
    return weights.sum(axis=-2), -terms.sum(axis=-1), weights.max(axis=-1), largest, blocks, answer.lse


def with_dense_mask(options: dict[str, Any]) -> dict[str, Any]:
    mask = options.get("mask")
    return {**options, "mask": mask.to_dense()} if isinstance(mask, hw.BlockMask) else options


def expected_attention_gradients(*arrays: Any, **options: Any) -> tuple[Array, ...]:
    return oracle.attention_gradients(*arrays, **with_dense_mask(options))


def expected_linear(x: Any, weight: Any, bias: Any = None, precision: Any = None) -> Array:
    return oracle.linear(x, weight, bias)


def expected_attention(*names: str) -> Callable[..., Any]:
    """The results ``names`` of the oracle, and the log-sum-exp where it is asked for."""

    def expected(*arrays: Any, return_lse: bool = False, precision: Any = None, rng: Any = None, **options: Any) -> Any:
        answer = oracle.attention(*arrays, **with_dense_mask(options))
        return tuple(getattr(answer, name) for name in (*names, *(["lse"] if return_lse else [])))

    return expected


def expected_varlen(
    query: Array, key: Array, value: Array, cu_seqlens_q: Any, cu_seqlens_k: Any, **options: Any
) -> Any:
    """One sequence at a time."""
    return_lse, relative = options.pop("return_lse", False), options.pop("relative_bias", None)
    options.pop("precision", None)
    outputs, sums = [], []
    for i in range(len(cu_seqlens_q) - 1):
        ours, theirs = slice(*cu_seqlens_q[i : i + 2]), slice(*cu_seqlens_k[i : i + 2])
        heads = query[ours].swapaxes(0, 1), key[theirs].swapaxes(0, 1), value[theirs].swapaxes(0, 1)
        if relative is not None:
            options["relative_bias"] = relative if relative.shape[-2] == 1 else relative[..., ours, :]
        answer = oracle.attention(*(x[None] for x in heads), **options)
        outputs.append(answer.output[0].swapaxes(0, 1))
        sums.append(answer.lse[0])
    output = np.concatenate(outputs)
    return (output, np.concatenate(sums, axis=-1)) if return_lse else (output,)


OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in [
        Operation(
            hw.softmax,
            x_only,
            oracle.softmax,
            SOFTMAX,
            short=FIRST_AXES,
            draws=AXIS,
            atol_16bit=0.0,
            parallel=SOFTMAX_PARALLEL,
            wrt=("x",),
        ),
        Operation(
            hw.log_softmax,
            x_only,
            oracle.log_softmax,
            SOFTMAX,
            short=FIRST_AXES,
            draws=AXIS,
            atol_16bit=2e-6,
            parallel=SOFTMAX_PARALLEL,
            wrt=("x",),
        ),
        Operation(
            hw.logsumexp,
            x_only,
            oracle.logsumexp,
            SOFTMAX | {"keepdims": keywords(keepdims=True)},
            short=FIRST_AXES,
            draws=AXIS,
            out=False,
            atol_16bit=2e-6,
            parallel=SOFTMAX_PARALLEL,
            wrt=("x",),
        ),
        Operation(
            hw.apply_rope,
            rope_arguments,
            oracle.rope,
            PLAIN | {"interleaved": keywords(interleaved=True)},
            pairs=True,
            atol_16bit=2e-6,
            small=Sizes((2,), 1, 5, 5, 8, 8),
            parallel={"": MANY},
            wrt=("x", "cos", "sin"),
        ),
        Operation(
            hw.add_alibi,
            lambda s, make: {"scores": make("scores", s.scores)},
            oracle.add_alibi,
            PLAIN
            | {
                "slopes": lambda s, make: {"slopes": make("slopes", s.lead[-1:])},
                "offset": lambda s, make: {"slopes": make("slopes", s.lead[-1:]), "offset": 3},
            },
            draws={"offset": lambda st, array, s: st.integers(-50, 500)},
            atol_16bit=4e-5,
            small=Sizes((2, 4), 4, 5, 6, 8, 8),
            parallel={"": MANY},
            lead=(1,),
            wrt=("scores", "slopes"),
        ),
        Operation(
            hw.layer_normalization,
            normalization_arguments,
            oracle.layer_normalization,
            PLAIN
            | {
                "axis--2": lambda s, make: {
                    "gamma": make("gamma", (s.queries,)),
                    "beta": make("beta", (s.queries,)),
                    "axis": -2,
                },
                "eps": keywords(eps=0.5),
                "no-parameters": keywords(gamma=None, beta=None),
                "no-beta": keywords(beta=None),
                "no-gamma": keywords(gamma=None),
            },
            wrt=("x", "gamma", "beta"),
            draws={"eps": EPS},
            atol_16bit=5e-6,
            parallel={"": MANY},
        ),
        Operation(
            hw.rms_norm,
            x_only,
            oracle.rms_norm,
            RMS_NORM,
            wrt=("x", "gamma"),
            draws={"eps": EPS},
            atol_16bit=5e-6,
            parallel={"": MANY},
        ),
        Operation(
            hw.layer_normalization_backward,
            with_gradient(x_only),
            oracle.layer_normalization_backward,
            RMS_NORM | {"axis--2": lambda s, make: {"gamma": make("gamma", (s.queries,)), "axis": -2}},
            draws={"eps": EPS},
            out=False,
            atol_16bit=2e-5,
            parallel={"": MANY},
        ),
        Operation(
            hw.rms_norm_backward,
            with_gradient(x_only),
            oracle.rms_norm_backward,
            RMS_NORM,
            draws={"eps": EPS},
            out=False,
            atol_16bit=2e-5,
            parallel={"": MANY},
        ),
        Operation(
            hw.gelu,
            x_only,
            oracle.gelu,
            PLAIN | TANH,
            wrt=("x",),
            draws=APPROXIMATE,
            atol_16bit=2e-6,
            parallel={"": MANY},
        ),
        Operation(hw.silu, x_only, oracle.silu, PLAIN, wrt=("x",), atol_16bit=2e-6, parallel={"": MANY}),
        Operation(
            hw.swiglu, gate_and_up, oracle.swiglu, PLAIN, wrt=("gate", "up"), atol_16bit=4e-6, parallel={"": MANY}
        ),
        Operation(
            hw.geglu,
            gate_and_up,
            oracle.geglu,
            PLAIN | TANH,
            wrt=("gate", "up"),
            draws=APPROXIMATE,
            atol_16bit=4e-6,
            parallel={"": MANY},
        ),
        *(
            Operation(
                function,
                with_gradient(arguments),
                expected,
                PLAIN | (TANH if approximate else {}),
                draws=APPROXIMATE if approximate else {},
                out=False,
                atol_16bit=8e-6,
                parallel={"": MANY},
            )
            for function, arguments, expected, approximate in (
                (hw.gelu_backward, x_only, oracle.gelu_backward, True),
                (hw.silu_backward, x_only, oracle.silu_backward, False),
                (hw.swiglu_backward, gate_and_up, oracle.swiglu_backward, False),
                (hw.geglu_backward, gate_and_up, oracle.geglu_backward, True),
            )
        ),
        Operation(
            hw.linear,
            linear_arguments,
            expected_linear,
            PLAIN
            | {
                "bias": lambda s, make: {"bias": make("bias", (s.value_dim,))},
                "transposed": lambda s, make: {"weight": make("weight", (s.value_dim, s.head_dim)).T},
            },
            draws={"precision": OPTIONS["precision"].draw},
            in_place=False,
            parallel=LINEAR_PARALLEL,
            large=Sizes((), 1, 4096, 1, 512, 2048),
            wrt=("x", "weight", "bias"),
        ),
        Operation(
            packed_linear,
            linear_arguments,
            expected_linear,
            PLAIN | {"bias": lambda s, make: {"bias": make("bias", (s.value_dim,))}},
            draws={"precision": OPTIONS["precision"].draw},
            in_place=False,
            parallel=LINEAR_PARALLEL,
            large=Sizes((), 1, 4096, 1, 512, 2048),
        ),
        Operation(
            hw.dropout,
            lambda s, make: {"x": make("x", s.rows), "rate": 0.25, "rng": 0},
            None,
            PLAIN,
            computed=False,
            out=False,
            wrt=("x",),
        ),
        Operation(
            hw.flash_attention,
            attention_arguments,
            expected_attention("output"),
            attention_variants(),
            short=("", "block_mask", "all"),
            draws={name: option.draw for name, option in OPTIONS.items()},
            in_place=False,
            small=ATTENTION_SMALL,
            parallel=ATTENTION_PARALLEL,
            large=Sizes((1, 4), 4, 2048, 2048, 64, 64),
            wrt=ATTENTION_WRT,
        ),
        Operation(
            attention_gradients,
            gradient_arguments,
            expected_attention_gradients,
            {name: attention_variants()[name] for name in ("", "bias", "block_mask", "all")},
            short=("", "block_mask", "all"),
            draws={name: option.draw for name, option in OPTIONS.items() if name != "score_mod"},
            out=False,
            more_16bit=8e-3,  # the rounded output is read, and sinks sum its errors over all rows
            small=ATTENTION_SMALL,
            parallel={"": ATTENTION_PARALLEL[""], "one-head": ATTENTION_PARALLEL["one-head"]},
            large=Sizes((1, 4), 4, 2048, 2048, 64, 64),
        ),
        Operation(
            hw.scaled_dot_product_attention,
            attention_arguments,
            expected_attention("output", "weights"),
            attention_variants(),
            short=("", "all"),
            draws={name: option.draw for name, option in OPTIONS.items()},
            in_place=False,
            small=ATTENTION_SMALL,
            parallel={"": ATTENTION_PARALLEL[""]},
            large=Sizes((1, 4), 4, 2048, 2048, 64, 64),
            wrt=ATTENTION_WRT,
        ),
        Operation(
            attention_statistics,
            query_and_key,
            expected_attention_statistics,
            statistics_variants(),
            short=("", "block_mask", "all"),
            draws={
                "average_heads": lambda st, array, s: st.booleans(),
                "block_size": lambda st, array, s: st.integers(1, 9),
                **{name: OPTIONS[name].draw for name in ("mask", "bias", "is_causal", "window_size", "sinks")},
            },
            out=False,
            small=ATTENTION_SMALL,
            parallel={"": ATTENTION_PARALLEL[""]},
            large=Sizes((1, 4), 4, 2048, 2048, 64, 64),
        ),
        Operation(
            hw.linear_attention,
            attention_arguments,
            oracle.linear_attention,
            LINEAR_ATTENTION,
            draws={"chunk": lambda st, array, s: st.integers(1, 40), "scale": OPTIONS["scale"].draw},
            out=False,
            small=ATTENTION_SMALL,
            parallel={"": Sizes((2, 4), 4, 600, 600, 32, 24)},
            large=Sizes((1, 4), 4, 4096, 4096, 64, 64),
            lead=(1,),
        ),
        Operation(
            hw.merge_attention,
            merge_arguments,
            oracle.merge_attention,
            PLAIN
            | {
                "axis--1": lambda s, make: (
                    {
                        name: np.moveaxis(x, 0, axis)
                        for (name, x), axis in zip(merge_arguments(s, make).items(), (-2, -1), strict=True)
                    }
                    | {"axis": -1}
                )
            },
            computed=False,
            out=False,
            wrt=("outputs", "lses"),
        ),
        Operation(
            hw.varlen_attention,
            varlen_arguments,
            expected_varlen,
            attention_variants(varlen=True),
            short=("", "all"),
            draws={name: option.draw for name, option in OPTIONS.items() if option.varlen},
            in_place=False,
            small=Sizes((1, 4), 2, 9, 9, 8, 6),
            parallel={"": Sizes((1, 4), 2, 300, 300, 16, 16)},
            large=Sizes((1, 4), 4, 4096, 4096, 64, 64),
            lead=(1, 1),
            wrt=tuple(name for name in ATTENTION_WRT if name != "bias"),
        ),
    ]
}


def cases(short: bool = False, where: Callable[[Operation], bool] = lambda operation: True) -> list[Case]:
    """Each variant of each operation for which ``where`` holds; ``short``: without the options of attention one by
    one."""
    return [
        Case(operation, variant)
        for operation in OPERATIONS.values()
        if where(operation)
        for variant in (operation.short if short and operation.short else operation.variants)
    ]
