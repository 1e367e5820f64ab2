"""The options of attention: an entry brings an option, such as a score modifier, into the table-driven suites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from calls import Option, Shape, Sizes, kept


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
    "relative_values": Option(
        lambda s, make: make("relative_values", (s.heads, 2 * (s.keys // 3) + 1, s.value_dim)),
        lambda st, array, s: st.tuples(
            st.sampled_from([(), (1,), (s.heads,)]), st.sampled_from([1, 5, 11, 141])
        ).flatmap(lambda drawn: array((*drawn[0], drawn[1], s.value_dim))),
        refused=(
            (ValueError, np.ones((4, 4, 6))), (ValueError, np.ones((0, 6))), (ValueError, np.ones((3, 5, 6))),
            (ValueError, np.ones((5, 7))), (ValueError, np.ones(6)), (ValueError, np.ones((1, 1, 5, 6))),
            (TypeError, np.ones((5, 6), bool)), (TypeError, "shaw"),
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
