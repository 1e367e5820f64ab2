"""Operations on rows: softmax, RoPE, ALiBi, normalisation and activations, and their gradients."""

from __future__ import annotations

from collections.abc import Callable

import headwise as hw
import oracle
from calls import Arguments, Draw, Make, Operation, Sizes, kept
from operations.options import broadcast
from operations.variants import PLAIN, keywords


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


ROWS = [
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
    Operation(hw.swiglu, gate_and_up, oracle.swiglu, PLAIN, wrt=("gate", "up"), atol_16bit=4e-6, parallel={"": MANY}),
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
        hw.dropout,
        lambda s, make: {"x": make("x", s.rows), "rate": 0.25, "rng": 0},
        None,
        PLAIN,
        computed=False,
        out=False,
        wrt=("x",),
    ),
]
