"""Linear attention as a layer that owns its projections. The computation is :func:`headwise.linear_attention`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from headwise._base.arrays import as_array, promote
from headwise._base.ieee import cast_dtype
from headwise._base.layer import LayerGradients, Parameter, parameter_dtype
from headwise._base.linear_attention_spec import RULES
from headwise._base.outputs import check_room, finalize
from headwise._base.scalars import check_flag, check_real, check_rng, check_size
from headwise._base.typing import FLOAT32, FLOAT64
from headwise._nn.arguments import check_biases
from headwise._nn.gates import check_rate, gate, gate_gradients, initial_decay_bias
from headwise._nn.gradients import Rows, output_gradients, row_gradients
from headwise._nn.multi_head import Block, Heads, Inputs, project, split_heads
from headwise._nn.projected import ProjectedLayer
from headwise._nn.projections import LayerProjections
from headwise._ops.attention.keywords import hide_unknown, refuse
from headwise._ops.gradients.linear_attention import linear_attention_rule
from headwise._ops.gradients.results import check_pulled, check_wrt, finish, gradients_of
from headwise._ops.linear_attention.arguments import check_feature_map, check_rule
from headwise._ops.linear_attention.function import linear_attention

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, DTypeLike

    from headwise._base.layer import Slot
    from headwise._base.typing import Array, Rng

    FeatureMap = str | Callable[[Array], ArrayLike] | None

RATES = ("decay", "beta")
_NAMES = ("x", "state", *RATES)  # the arguments that have gradients


class LinearAttention(ProjectedLayer):
    """Self-attention without a softmax: :func:`headwise.linear_attention` between projections.

    ``Concat(head_1, …, head_h) W_o``, where ``head_i`` is linear attention of the ``i``-th slices of ``x @ W_q``, ``x @
    W_k`` and ``x @ W_v`` [1]_. A call returns the state after its last token, from which the next call continues.

    Parameters
    ----------
    d_model : int
        Width of the input and the output.
    num_heads : int
        Number of heads, a divisor of ``d_model`` unless ``head_dim`` is given.
    num_kv_heads : int, optional
        Number of key and value heads, a divisor of ``num_heads``; each is shared by ``num_heads / num_kv_heads`` query
        heads. ``num_heads`` by default.
    head_dim : int, optional
        ``d_k``, the width of a head; ``d_model / num_heads`` by default.
    feature_map : {"elu"}, callable or None
        As for :func:`headwise.linear_attention`: "elu" is ``elu(x) + 1``, and None uses queries and keys as they are.
    rule : {"linear", "gated", "delta", "gated_delta"}
        How a token updates the state.
    decay : float, array_like, (num_kv_heads,), or "learned", optional
        Factors in (0, 1] for the rules "gated" and "gated_delta". By default those of RetNet, ``1 - 2 ** -(5 + h)`` for
        head ``h`` [2]_. "learned" are ``sigmoid(x @ W_decay + b_decay)``, one for each head and token [3]_. Calls may
        give others.
    beta : float, array_like, (num_kv_heads,), or "learned", optional
        Rates for the rules "delta" and "gated_delta"; "learned" are ``sigmoid(x @ W_beta + b_beta)``, as in DeltaNet
        [4]_. If None, each call must give its own.
    is_causal : bool
        Whether a token sees itself and earlier tokens only. The rules other than "linear" always are causal.
    normalize : bool, optional
        Whether to divide outputs by the sum of their weights; by default with a feature map only.
    scale : float
        Factor of outputs that are not normalized.
    bias : bool or str
        Whether the projections add ``b_q``, ``b_k``, ``b_v`` and ``b_o``, initially zero; a string names some of them.
    rng : int or numpy.random.Generator, optional
        Draws the parameters.
    dtype : dtype, optional
        Of the parameters; float64 by default. The output has the floating dtype of the input, whatever this dtype.

    Attributes
    ----------
    W_q, W_k, W_v, W_o : ndarray
        The projections, applied as ``x @ W``: (d_model, num_heads * d_k), (d_model, num_kv_heads * d_k), (d_model,
        num_kv_heads * d_k) and (num_heads * d_k, d_model). Initially uniform as in Glorot & Bengio (2010).
    b_q, b_k, b_v, b_o : ndarray or None
        Added to the products.
    W_decay, W_beta : ndarray, (d_model, num_kv_heads), or None
        The weights of learned rates, initially zero.
    b_decay, b_beta : ndarray, (num_kv_heads,), or None
        Their biases, with which decays begin as those of RetNet, and ``beta`` as 1 / 2.
    d_k : int
        Width of a head.

    Raises
    ------
    ValueError
        If a size or a number of heads does not fit, ``rule`` or ``feature_map`` is unknown, a decay is outside (0, 1],
        or ``decay`` or ``beta`` is given to a rule without it.
    TypeError
        If an argument has a wrong type.

    See Also
    --------
    MultiHeadAttention : Attention with a softmax.

    Notes
    -----
    The delta rules are stable for keys of length 1 and rates in [0, 1]: see the second example.

    References
    ----------
    .. [1] A. Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
       2020, section 3.
    .. [2] Y. Sun et al., "Retentive Network: A Successor to Transformer for Large Language Models", 2023, equation (8).
    .. [3] S. Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", 2024, section 4.4;
       there, one for each entry of the key.
    .. [4] S. Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024, section
       2.2.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> layer = hw.LinearAttention(d_model=64, num_heads=8, rng=0)
    >>> x = np.random.default_rng(0).standard_normal((2, 9, 64))
    >>> output, state = layer(x)
    >>> output.shape, state.shape
    ((2, 9, 64), (2, 8, 8, 9))
    >>> first, state = layer(x[:, :5])
    >>> second, state = layer(x[:, 5:], state)
    >>> bool(np.allclose(np.concatenate([first, second], axis=1), output))
    True

    DeltaNet, with keys and queries of length 1 and a rate for each head and token:

    >>> def unit(x):
    ...     return x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + 1e-6)
    >>> layer = hw.LinearAttention(64, 8, rule="delta", feature_map=unit, normalize=False, rng=0)
    >>> output, state = layer(x, beta=np.full((2, 8, 9), 0.5))
    >>> state.shape
    (2, 8, 8, 8)

    Gated DeltaNet with rates that the layer computes:

    >>> layer = hw.LinearAttention(
    ...     64, 8, rule="gated_delta", feature_map=unit, normalize=False, decay="learned", beta="learned", rng=0
    ... )
    >>> output, state = layer(x)
    >>> layer.W_beta.shape, layer.b_beta.shape
    ((64, 8), (8,))
    """

    W_decay: Parameter[Any] = Parameter.optional("d_model", "num_kv_heads")
    b_decay: Parameter[Any] = Parameter.optional("num_kv_heads")
    W_beta: Parameter[Any] = Parameter.optional("d_model", "num_kv_heads")
    b_beta: Parameter[Any] = Parameter.optional("num_kv_heads")

    d_model: int
    num_heads: int
    d_k: int
    num_kv_heads: int
    feature_map: FeatureMap
    rule: str
    decay: Array | str | None
    beta: Array | str | None
    is_causal: bool
    normalize: bool
    scale: float
    _names = (*ProjectedLayer._names, "W_decay", "b_decay", "W_beta", "b_beta")  # noqa: SLF001 (of the base class)

    @hide_unknown
    def __init__(  # noqa: PLR0913 (public)
        self,
        d_model: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        feature_map: FeatureMap = "elu",
        rule: str = "linear",
        decay: ArrayLike | None = None,
        beta: ArrayLike | None = None,
        is_causal: bool = True,
        normalize: bool | None = None,
        scale: float = 1.0,
        bias: bool | str = False,
        rng: Rng = None,
        dtype: DTypeLike | None = None,
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            refuse(unknown, ("num_heads", *(LinearAttention.__init__.__kwdefaults__ or ())), layer=True)
        self._set_heads(d_model, num_heads, num_kv_heads, head_dim)
        check_feature_map(feature_map)
        self.feature_map, self.rule = feature_map, check_rule(rule)
        self.decay = check_rate(decay, "decay", self.rule, self.num_kv_heads)
        self.beta = check_rate(beta, "beta", self.rule, self.num_kv_heads)
        if RULES[self.rule][0] and self.decay is None:
            self.decay = 1.0 - 2.0 ** -(5.0 + np.arange(self.num_kv_heads))
        self.is_causal = check_flag(is_causal, "is_causal") or self.rule != "linear"
        self.normalize = feature_map is not None if normalize is None else check_flag(normalize, "normalize")
        self.scale = check_real(scale, "scale")
        learned = {f"{kind}_{name}" for name in RATES if self._learns(name) for kind in "Wb"}
        self._initialize(check_rng(rng), dtype, zeros={f"b_{letter}" for letter in check_biases(bias)} | learned)
        if self._learns("decay"):
            self.b_decay = cast_dtype(initial_decay_bias(self.num_kv_heads), self.b_decay.dtype)

    def make_state(self, batch_size: int, *, dtype: DTypeLike = np.float32) -> Array:
        """The state before the first token, which is 0.

        States are arrays: ``state[beams]`` repeats and reorders sequences, and calls never change them.

        Parameters
        ----------
        batch_size : int
            Number of sequences.
        dtype : dtype
            float32, or float64 for inputs of float64.

        Returns
        -------
        ndarray, (batch_size, num_kv_heads, features, d_k)
            ``features`` is ``d_k``, or what ``feature_map`` gives. Normalized layers have one more column, ``d_k + 1``,
            for the sums of weights.

        Raises
        ------
        ValueError
            If the size is not positive.
        TypeError
            If an argument has a wrong type.

        Examples
        --------
        >>> import headwise as hw
        >>> hw.LinearAttention(d_model=8, num_heads=2).make_state(3).shape
        (3, 2, 4, 5)
        """
        batch, made = check_size(batch_size, "batch_size"), parameter_dtype(dtype)
        if made not in (FLOAT32, FLOAT64):
            raise TypeError(f"dtype: {made}, expected float32 or float64")
        features = self.d_k
        if callable(self.feature_map):
            features = as_array(self.feature_map(np.zeros((1, 1, 1, self.d_k), made)), "feature_map").shape[-1]
        shape = batch, self.num_kv_heads, features, self.d_k + self.normalize
        check_room(*shape)
        return np.zeros(shape, made)

    def forward(
        self,
        x: ArrayLike,
        state: ArrayLike | None = None,
        *,
        decay: ArrayLike | None = None,
        beta: ArrayLike | None = None,
    ) -> tuple[Array, Array]:
        """Attend from each token of ``x`` to the tokens before it, or to all, and to those of ``state``.

        Parameters
        ----------
        x : array_like, (batch, seq, d_model) or (seq, d_model)
        state : array_like, (batch, num_kv_heads, features, d_k), optional
            What an earlier call returned; 0 by default. Without an axis of sequences if ``x`` has none.
        decay : array_like, optional
            In place of the layer's: a number, (num_kv_heads,), (batch, num_kv_heads, seq) or (batch, num_kv_heads, seq,
            d_k).
        beta : array_like, optional
            In place of the layer's: a number, (num_kv_heads,) or (batch, num_kv_heads, seq).

        Returns
        -------
        output : ndarray, (batch, seq, d_model) or (seq, d_model)
            Of the floating dtype of ``x``; float16 and bfloat16 are computed in float32, projections included, and
            rounded once.
        state : ndarray, (batch, num_kv_heads, features, d_k) or (num_kv_heads, features, d_k)
            After the last token; float64 for inputs of float64, else float32. Normalized layers have one more column.

        Raises
        ------
        ValueError
            If a shape does not fit, a decay is outside (0, 1], or the rule needs a rate that neither the layer nor the
            call has.
        TypeError
            If a dtype is not real.
        """
        call = self._prepare(x, state, decay, beta)
        output, new_state = linear_attention(**call.arguments)
        joined = _join_heads(output)
        y = call.block.projections(joined if call.batched else joined[0], "o", None)
        return finalize(y, None, call.dtype), new_state if call.batched else new_state[0]

    def vjp(
        self,
        x: ArrayLike,
        state: ArrayLike | None = None,
        *,
        decay: ArrayLike | None = None,
        beta: ArrayLike | None = None,
        wrt: tuple[str, ...] | None = None,
    ) -> tuple[Array, Array, Callable[..., LayerGradients]]:
        """The results of :meth:`forward`, and a function that computes gradients.

        Parameters
        ----------
        x, state, decay, beta
            As for :meth:`forward`.
        wrt : tuple of str, optional
            The arrays whose gradients are asked for besides those of the parameters: some of "x", "state", "decay" and
            "beta". By default those of ``x`` and ``state`` that are given.

        Returns
        -------
        output, state : ndarray
            As :meth:`forward`.
        pullback : callable
            ``pullback(d_output, d_state=None)``, with the gradients of a loss by the results, returns ``inputs``, a
            named tuple with the fields ``d_x`` and so on, and ``parameters``, a dict of the gradients by the parameters
            under the names of :meth:`state_dict`. Until it is called, ``x`` and the parameters must not change.

        Raises
        ------
        ValueError, TypeError
            As :meth:`forward`, and if the feature map has no gradients, or ``wrt`` names an array that has
            no gradient or is not given.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> layer = hw.LinearAttention(d_model=8, num_heads=2, rng=0)
        >>> output, state, pullback = layer.vjp(np.random.default_rng(0).standard_normal((1, 5, 8)))
        >>> grads = pullback(2 * output)
        >>> grads.inputs.d_x.shape, sorted(grads.parameters)
        ((1, 5, 8), ['W_k', 'W_o', 'W_q', 'W_v'])
        """
        given = {"x": x, "state": state, "decay": decay, "beta": beta}
        default = ("x",) if state is None else ("x", "state")
        names = default if wrt is None else check_wrt(wrt, _NAMES, given)
        call = self._prepare(x, state, decay, beta)
        defaults = {**(linear_attention.__kwdefaults__ or {}), **call.arguments}
        (output, new_state), pull = linear_attention_rule(
            defaults, ("query", "key", "value", *(name for name in names if name != "x"), *call.learned)
        )
        joined = _join_heads(output)
        y = call.block.projections(joined if call.batched else joined[0], "o", None)
        slots = {name: vars(self)[name].array.dtype for name in self._parameter_names()}

        def pullback(*d_results: ArrayLike | None) -> LayerGradients:
            d_output, d_state = check_pulled(d_results, 2)
            d_joined, parameters = output_gradients(d_output, joined, y.shape, call.block, None)
            if d_state is not None and not call.batched:
                d_state = as_array(d_state, "d_state")[np.newaxis]
            found = pull((split_heads(d_joined, self.num_heads), d_state))
            rows = Rows(call.inputs, dict.fromkeys("qkv", "query"), {}, None)
            found["x"] = row_gradients(rows, found, call.block, None, ("query",), parameters)["query"]
            for name, (rates, *slots_of) in call.learned.items():
                by_gate = gate_gradients(found[name], rates, call.inputs.query, *slots_of)
                found["x"] = found["x"] + by_gate["x"]
                parameters |= {f"W_{name}": by_gate["weight"], f"b_{name}": by_gate["bias"]}
            arrays = {name: as_array(given[name], name) for name in names}
            by_input = {
                name: finish(found[name].reshape(array.shape), array, call.dtype) for name, array in arrays.items()
            }
            return LayerGradients(
                gradients_of(names, by_input),
                {
                    name: cast_dtype(parameters[name], dtype)
                    if name in parameters
                    else np.zeros_like(getattr(self, name))
                    for name, dtype in slots.items()
                },
            )

        return finalize(y, None, call.dtype), new_state if call.batched else new_state[0], pullback

    if TYPE_CHECKING:
        __call__ = forward

    def _prepare(self, x: Any, state: Any, decay: Any, beta: Any) -> _Call:
        """A checked call: its projections, and the arguments of :func:`headwise.linear_attention`."""
        rows = as_array(x, "x")
        if rows.ndim not in (2, 3) or rows.shape[-1] != self.d_model:
            raise ValueError(f"x: shape {rows.shape}, expected (batch, seq, {self.d_model}) or (seq, {self.d_model})")
        compute, dtype = promote(("x", rows))
        batched = rows.ndim == 3
        rows = cast_dtype(rows if batched else rows[np.newaxis], compute)
        options: dict[str, Any] = {"state": state, "decay": decay, "beta": beta}
        lead, values = ("batch, " if batched else ""), self.d_k + self.normalize
        if state is not None and as_array(state, "state").ndim != (4 if batched else 3):
            raise ValueError(
                f"state: shape {np.shape(state)}, expected ({lead}{self.num_kv_heads}, features, {values}) beside x of "
                f"shape {rows.shape if batched else rows.shape[1:]}"
            )
        for name, array in options.items():
            if not batched and array is not None:
                a = as_array(array, name)
                options[name] = a[np.newaxis] if a.ndim > 1 else a
        learned = {}
        for name in RATES:
            if options[name] is not None:
                continue
            if self._learns(name):
                parameters = vars(self)[f"W_{name}"], vars(self)[f"b_{name}"]
                options[name] = gate(rows, *parameters)
                learned[name] = (options[name], *parameters)
            else:
                options[name] = getattr(self, name)
        heads = Heads((self.d_model,) * 3, self.d_model, self.num_heads, self.num_kv_heads, self.d_k)
        block, inputs = Block(heads, LayerProjections(vars(self), self._packs)), Inputs(rows, rows, rows)
        found = project(inputs._asdict(), block, compute, None, None)
        for name in ("feature_map", "normalize", "scale", "is_causal", "rule"):
            options[name] = getattr(self, name)
        arguments = {"query": found["q"], "key": found["k"], "value": found["v"], **options}
        return _Call(block, inputs, arguments, dtype, batched, learned)

    def _learns(self, name: str) -> bool:
        return isinstance(getattr(self, name), str)


class _Call(NamedTuple):
    block: Block
    inputs: Inputs  # (batch, seq, d_model), in the dtype of the computation
    arguments: dict[str, Any]  # of linear_attention
    dtype: np.dtype[Any]  # of the output
    batched: bool  # whether the caller's arrays have an axis of sequences
    learned: dict[str, tuple[Array, Slot, Slot]]  # rates that were computed from the input, with their parameters


def _join_heads(x: Array) -> Array:
    """(batch, heads, seq, d_k) as (batch, seq, heads * d_k), a copy."""
    batch, heads, seq, width = x.shape
    return x.swapaxes(1, 2).reshape(batch, seq, heads * width)
