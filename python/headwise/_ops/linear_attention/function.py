"""``linear_attention``: attention in linear time, by a state of fixed size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headwise._base.outputs import allocate, finalize
from headwise._ops.attention.call import with_heads
from headwise._ops.attention.keywords import hide_unknown, refuse
from headwise._ops.linear_attention.arguments import Options, check_call
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from headwise._base.typing import Array
    from headwise._ops.linear_attention.arguments import Call


@hide_unknown
def linear_attention(  # noqa: PLR0913 (the public signature)
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    feature_map: str | Callable[[Array], ArrayLike] | None = "elu",
    normalize: bool | None = None,
    scale: float = 1.0,
    is_causal: bool = False,
    decay: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    rule: str = "linear",
    state: ArrayLike | None = None,
    chunk: int | None = None,
    **unknown: Any,
) -> tuple[Array, Array]:
    """Attention without a softmax, in time linear in the number of tokens, by a state of fixed size.

    With ``phi`` the feature map and a state ``S`` of (head_dim, value_dim), each token t updates the state, and its
    output is ``phi(query[t]) @ S``::

        "linear"       S = S + outer(k, v)                                                  [1]_
        "gated"        S = decay * S + outer(k, v)                                          [2]_ [3]_
        "delta"        S = S + beta * outer(k, v - k @ S)                                   [4]_
        "gated_delta"  S = decay * S + beta * outer(k, v - k @ (decay * S))                 [5]_

    where ``k = phi(key[t])`` and ``v = value[t]``. Tokens are computed in chunks, as products of matrices [4]_.

    Parameters
    ----------
    query : array_like, (..., query_len, head_dim)
        Four axes are (batch, heads, query_len, head_dim); three are (batch, query_len, head_dim).
    key : array_like, (..., key_len, head_dim)
        With an axis of heads, (batch, kv_heads, key_len, head_dim), where `heads` is a multiple of `kv_heads`.
    value : array_like, (..., key_len, value_dim)
        As many heads as `key`.
    feature_map : {"elu"}, callable or None
        "elu" is ``elu(x) + 1`` [1]_. A function takes `query` and then `key` in float32 or float64 and returns an array
        with the same axes before a last axis of features, as :func:`performer_features` does; `head_dim` of a state is
        then the number of features. None uses `query` and `key` as they are.
    normalize : bool, optional
        Whether to divide each output by the sum of its weights: the output for values of 1. If None, outputs are
        normalized with a feature map, and not with ``feature_map=None``. `scale` cancels then.
    scale : float
        Factor of outputs that are not normalized.
    is_causal : bool
        Whether query ``i`` sees the keys up to its own position. If False, each query sees all keys, and `query_len`
        may differ from `key_len`. The rules other than "linear" depend on the order of the tokens: they are causal
        whatever this flag says.
    decay : array_like, optional
        Factors in (0, 1] of the rules "gated" and "gated_delta": a number, (kv_heads,) for keys with an axis of heads,
        (..., key_len) for one factor per token, or (..., key_len, head_dim) for one per entry of the key. Axes may
        be 1. For logarithms of decays, as ONNX has them, give ``exp(decay)``.
    beta : array_like, optional
        Rates of the rules "delta" and "gated_delta": a number, (kv_heads,) or (..., key_len), likewise.
    rule : {"linear", "gated", "delta", "gated_delta"}
        How a token updates the state.
    state : array_like, (..., kv_heads, head_dim, value_dim), optional
        The state before the first token, such as an earlier call returned; 0 if None.
    chunk : int, optional
        The number of tokens that are computed together, 64 by default; native kernels take at most 36. It changes times
        and rounding errors only.

    Returns
    -------
    output : ndarray, (..., query_len, value_dim)
        In the dtype to which `query`, `key` and `value` promote. Where the sum of weights is 0, a normalized output
        is 0.
    state : ndarray, (..., kv_heads, head_dim, value_dim)
        The state after the last token, in float64 for float64 inputs, else float32. If outputs are normalized, it has
        one more column, for the sums of weights: (..., kv_heads, head_dim, value_dim + 1).

    Raises
    ------
    ValueError
        If shapes do not match, a decay is outside (0, 1], `rule` or `feature_map` is unknown, `decay` or `beta` is
        given to a rule without it or missing, or the state has another shape.
    TypeError
        If an argument has a wrong type, or `feature_map` does not return real numbers.

    See Also
    --------
    flash_attention : Attention with a softmax.
    performer_features : Features whose products approximate the exponential of a softmax.

    Notes
    -----
    The rules are those of ONNX's operator LinearAttention (opset 27) with ``feature_map=None``. ONNX's default scale is
    ``1 / sqrt(head_dim)``, and its decays are logarithms.

    float16 and bfloat16 are computed in float32, and the output is rounded once. The delta rules are stable if
    ``beta * dot(k, k)`` is at most 2, as it is for keys of length 1 and rates in [0, 1]; beyond, states grow
    exponentially.

    References
    ----------
    .. [1] A. Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
       2020, equations (7), (9) and (12).
    .. [2] Y. Sun et al., "Retentive Network: A Successor to Transformer for Large Language Models", 2023, equation (6).
    .. [3] S. Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", 2024, equation (3).
    .. [4] S. Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024.
    .. [5] S. Yang et al., "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024, equation (10).

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 6, 4))
    >>> output, state = hw.linear_attention(q, k, v, is_causal=True)
    >>> output.shape, state.shape
    ((1, 2, 6, 4), (1, 2, 4, 5))

    The same sequence in two parts, with the state in between:

    >>> first, state = hw.linear_attention(*(x[:, :, :4] for x in (q, k, v)), is_causal=True)
    >>> second, state = hw.linear_attention(*(x[:, :, 4:] for x in (q, k, v)), is_causal=True, state=state)
    >>> bool(np.allclose(np.concatenate([first, second], axis=2), output))
    True
    """
    if unknown:
        refuse(unknown, linear_attention.__kwdefaults__ or ())
    options = Options(feature_map, normalize, scale, is_causal, decay, beta, rule, state, chunk)
    return run(check_call(query, key, value, options))


def run(call: Call) -> tuple[Array, Array]:
    """The results of a checked call."""
    result = allocate(call.output_shape, call.stored)
    new_state = allocate(call.state_shape, call.compute)
    output = result if result.ndim == 4 else with_heads(result)
    last = new_state if new_state.ndim == 4 else with_heads(new_state)
    if output.size or last.size:
        current().linear_attention(
            call.query, call.key, call.value, call.decay, call.beta, call.state, output, last, call.spec
        )
    return finalize(result, None, call.dtype), new_state
