"""Multi-head attention together with its gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.arrays import as_array, promote
from headwise._base.ieee import cast_dtype
from headwise._base.layer import LayerGradients
from headwise._base.outputs import allocate, finalize
from headwise._base.scalars import check_flag
from headwise._nn.multi_head import (
    Call,
    Inputs,
    check_call,
    check_keywords,
    check_sequences,
    over_heads,
    product_groups,
    project,
    rope_positions,
    scale_queries,
    split_heads,
    widths_of,
    with_key_lengths,
    with_relative,
)
from headwise._nn.parameters import MultiHeadParameters
from headwise._nn.relative import shaw_gradients, t5_bias, t5_gradient
from headwise._ops.gradients.linear import linear_gradients
from headwise._ops.gradients.results import as_gradient, check_pulled, check_wrt, finish, gradients_of
from headwise._ops.gradients.rules import attention_pullback
from headwise._ops.linear import linear
from headwise._positions.rotary import rotate_back

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import ArrayLike
    from typing_extensions import Unpack

    from headwise._base.typing import Array, Rng
    from headwise._nn.multi_head import Block
    from headwise._ops.attention.options import AttentionOptions

#: The arguments of a layer that have gradients.
NAMES = ("query", "key", "value", "bias", "alibi_slopes", "sinks", "relative_bias", "relative_values")


class DifferentiableAttention(MultiHeadParameters):
    """The base class of :class:`headwise.MultiHeadAttention` that has its gradients."""

    dropout: float
    _rng: np.random.Generator
    _causal = False

    def vjp(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        *,
        wrt: tuple[str, ...] | None = None,
        training: bool | None = None,
        rng: Rng = None,
        positions: ArrayLike | None = None,
        **options: Unpack[AttentionOptions],
    ) -> tuple[Any, ...]:
        """The results of :meth:`forward`, and a function that computes gradients.

        Parameters
        ----------
        query, key, value, mask
            As for :meth:`forward`.
        wrt : tuple of str, optional
            The arrays whose gradients are asked for besides those of the parameters: some of "query", "key", "value",
            "bias", "alibi_slopes", "sinks", "relative_bias" and "relative_values". By default those of query, key and
            value that are given.
        training, rng, positions
            As for :meth:`forward`.
        **options
            The other keywords of :meth:`forward`, without ``cache``, ``lengths`` and ``out``.

        Returns
        -------
        output, weights : ndarray
            As :meth:`forward`, with ``lse`` behind them if ``return_lse`` is set.
        pullback : callable
            ``pullback(d_output, d_weights=None, d_lse=None)``, with the gradients of a loss by the results, returns
            ``inputs``, a named tuple with the fields ``d_query`` and so on, and ``parameters``, a dict of the gradients
            by the parameters under the names of :meth:`state_dict`. The gradient by ``query`` includes those by ``key``
            and ``value`` where these are not given. Nothing is stored on the layer. Until the pullback is called, the
            inputs and the parameters must not change.

        Raises
        ------
        ValueError, TypeError
            As :meth:`forward`, and if ``wrt`` names an array that has no gradient or is not given.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> layer = hw.MultiHeadAttention(d_model=8, num_heads=2, rng=0)
        >>> x = np.random.default_rng(0).standard_normal((1, 5, 8))
        >>> output, weights, pullback = layer.vjp(x)
        >>> grads = pullback(2 * output)  # of the sum of squares
        >>> grads.inputs.d_query.shape, sorted(grads.parameters)
        ((1, 5, 8), ['W_k', 'W_o', 'W_q', 'W_v'])
        >>> layer.W_o -= 0.1 * grads.parameters["W_o"]
        >>> bool((layer(x)[0] ** 2).sum() < (output ** 2).sum())
        True
        """
        check_keywords(options, "mask", "wrt", "training", "rng", "positions")
        if options.get("out") is not None:
            raise TypeError("out: given to vjp, expected a call without it")
        inputs = check_sequences(query, key, value)
        acts = self.training if training is None else check_flag(training, "training")
        rate, generator = self.dropout if acts else 0.0, self._rng if rng is None else rng
        own_sinks = "sinks" not in options and self._has("sinks")
        own_table = options.get("relative_bias") is None and self._has("relative_table")
        block, options = self._prepare(inputs, options)
        given = {"query": query, "key": key, "value": value, **options}
        rows = tuple(name for name in Inputs._fields if given[name] is not None)
        own = [name for name, mine in (("sinks", own_sinks), ("relative_bias", own_table)) if mine]
        names = rows if wrt is None else check_wrt(wrt, NAMES, {**given, **dict.fromkeys(own)})
        call = Call(mask, rate, generator, positions)
        results, pull = multi_head_vjp(inputs, rows, block, call, options, (*names, *own))
        slots = {name: vars(self)[name].array for name in self._parameter_names()}
        dtypes = {name: (array.shape, array.dtype) for name, array in slots.items()}
        arrays = inputs._asdict() | {name: as_array(given[name], name) for name in names if name not in rows}

        def pullback(*d_results: ArrayLike | None) -> LayerGradients:
            found = pull(*check_pulled(d_results, len(results)))
            if own_sinks:
                found.parameters["sinks"] = found.arguments["sinks"]
            if own_table and self._buckets is not None:
                d_bias = found.arguments["relative_bias"]
                found.parameters["relative_table"] = t5_gradient(d_bias, self._buckets, self._num_buckets)
            parameters = {
                name: cast_dtype(found.parameters[name], dtype) if name in found.parameters else np.zeros(shape, dtype)
                for name, (shape, dtype) in dtypes.items()
            }
            by_input = {
                name: finish(found.arguments[name].reshape(arrays[name].shape), arrays[name], results[0].dtype)
                for name in names
            }
            return LayerGradients(gradients_of(names, by_input), parameters)

        return *results, pullback

    def _prepare(self, inputs: Inputs, options: AttentionOptions) -> tuple[Block, AttentionOptions]:
        """The parameters of a call, and its keywords with the layer's own."""
        options = {**self._defaults, **options}
        learned = options.get("relative_bias") is None and (
            self._has("relative_table") or self._has("relative_embeddings")
        )
        relative = None
        if learned or self.qk_norm is not None or self._has("sinks"):
            dtype, _ = promote(*zip(Inputs._fields, inputs, strict=True))
        if learned and self._has("relative_table") and self._buckets is not None:
            options["relative_bias"] = t5_bias(self._cast("relative_table", dtype), self._buckets)
        elif learned:
            relative = self._cast("relative_embeddings", dtype)
        for name in self._required:
            if options.get(name) is None and options.get("relative_bias") is None:
                raise ValueError(
                    f"{name}: None, expected the bias of the model's relative positions, or relative_bias="
                )
        if self._causal:
            options["is_causal"] = True
        norm = None
        if self.qk_norm is not None or self._has("sinks"):
            if self._has("sinks") and "sinks" not in options:
                options["sinks"] = self._cast("sinks", dtype)
            norm = self._norm(dtype)
        return self._block(norm, relative), options


class Found(NamedTuple):
    """Gradients by arguments, and by parameters under their names, in the dtype of the computation."""

    arguments: dict[str, Array]
    parameters: dict[str, Array]


class Rows(NamedTuple):
    """What the forward pass projected."""

    inputs: Inputs  # (batch, seq, width), in the dtype of the computation
    owners: dict[str, str]  # of "q", "k" and "v": the argument that their rows are
    unnormalized: dict[str, Array]  # see `project`
    positions: ArrayLike | None


def multi_head_vjp(
    inputs: Inputs, given: tuple[str, ...], block: Block, call: Call, options: AttentionOptions, wrt: tuple[str, ...]
) -> tuple[tuple[Any, ...], Callable[..., Found]]:
    """The results of :func:`headwise._nn.multi_head.multi_head`, and the pullback of gradients by them.

    ``given`` are the names of those of query, key and value that the caller gave; the others are one of these. The
    pullback reads the parameters of ``block``.
    """
    dtype, result_dtype = promote(*inputs._asdict().items())
    check_call(inputs, block, call, options, result_dtype)
    options = with_key_lengths(inputs, call, options)
    precision, batched = options.get("precision"), inputs.query.ndim == 3
    mask, passed = over_heads(inputs, call, options)
    key = "key" if "key" in given else "query"
    owners = {"q": "query", "k": key, "v": "value" if "value" in given else key}
    rows = Rows(_with_batch(inputs, dtype), owners, {}, rope_positions(inputs, block, call, options))
    found = project(rows.inputs._asdict(), block, dtype, precision, rows.positions, rows.unnormalized)
    query = rows.inputs.query
    own_bias = block.relative is not None and passed.get("relative_bias") is None
    passed = with_relative(passed, found["q"], block)
    joined = allocate((*query.shape[:2], block.heads.num_heads * block.heads.width), dtype)
    arguments: dict[str, Any] = {"query": found["q"], "key": found["k"], "value": found["v"], "mask": mask, **passed}
    for name in ("out", "return_lse", "need_weights"):
        arguments.pop(name, None)
    more = tuple(name for name in NAMES[3:] if name in wrt)
    (_, weights, lse), pull = attention_pullback(
        arguments | {"dropout": call.dropout, "rng": call.rng},
        ("query", "key", "value", *more, *(("relative_bias",) if own_bias else ())),
        weights=options.get("need_weights", True),
        out=split_heads(joined, block.heads.num_heads),
    )
    x = joined if batched else joined[0]
    output = finalize(block.projections(x, "o", precision), None, result_dtype)
    results = [output, *(a if a is None or batched else a[0] for a in (weights, lse))]
    if weights is not None:
        results[1] = finalize(results[1], None, result_dtype)

    def pullback(d_output: Any = None, d_weights: Any = None, d_lse: Any = None) -> Found:
        d_joined, parameters = output_gradients(d_output, joined, output.shape, block, precision)
        of_results = [
            d if d is None or batched else as_array(d, name)[np.newaxis]
            for name, d in (("d_weights", d_weights), ("d_lse", d_lse))
        ]
        by_heads = pull((split_heads(d_joined, block.heads.num_heads), *of_results))
        if own_bias and block.relative is not None:
            d_query, parameters["relative_embeddings"] = shaw_gradients(
                by_heads["relative_bias"], found["q"], block.relative, options.get("scale")
            )
            by_heads = {**by_heads, "query": by_heads["query"] + d_query}
        by_rows = row_gradients(rows, by_heads, block, precision, wrt, parameters)
        if not batched:
            by_rows = {name: d[0] for name, d in by_rows.items()}
        return Found(by_rows | {name: by_heads[name] for name in more}, parameters)

    return tuple(results if options.get("return_lse", False) else results[:2]), pullback


def _with_batch(inputs: Inputs, dtype: np.dtype[Any]) -> Inputs:
    """The inputs in ``dtype`` with an axis of sequences; those that are one array stay one."""
    made: dict[int, Array] = {}
    for x in inputs:
        if id(x) not in made:
            made[id(x)] = cast_dtype(x if x.ndim == 3 else x[np.newaxis], dtype)
    return Inputs(*(made[id(x)] for x in inputs))


def output_gradients(
    d_output: Any, joined: Array, shape: tuple[int, ...], block: Block, precision: str | None
) -> tuple[Array, dict[str, Array]]:
    """The gradient by the concatenated heads, and those by the parameters of the output projection."""
    if d_output is None:
        d_output = np.broadcast_to(np.zeros(1, joined.dtype), shape)
    d = as_gradient(d_output, "d_output", shape, joined.dtype, "output").reshape((*joined.shape[:2], shape[-1]))
    weight, bias = block.projections.joined("o", joined.dtype)
    names = ("x", "weight") if bias is None else ("x", "weight", "bias")
    found = linear_gradients(d, joined, weight, bias, precision, names)
    return found["x"], {
        f"{letter}_o": found[name] for letter, name in (("W", "weight"), ("b", "bias")) if name in found
    }


def row_gradients(
    rows: Rows,
    by_heads: Mapping[str, Array],
    block: Block,
    precision: str | None,
    wrt: tuple[str, ...],
    parameters: dict[str, Array],
) -> dict[str, Array]:
    """The gradients by query, key and value, those of ``wrt``; those of the parameters are added to ``parameters``."""
    by_letter = {name[0]: x for name, x in rows.inputs._asdict().items()}
    found: dict[str, Array] = {}
    for group in product_groups(by_letter):
        x, widths = by_letter[group[0]], widths_of(group, block.heads)
        d_product = allocate((*x.shape[:2], sum(widths.values())), x.dtype)
        columns, first = {}, 0
        for c in group:
            columns[c] = slice(first, first + widths[c])
            first += widths[c]
            d = _unturned(by_heads[{"q": "query", "k": "key", "v": "value"}[c]], c, group, rows, block)
            split_heads(d_product[..., columns[c]], d.shape[1])[...] = d
        if group in rows.unnormalized and block.norm is not None:
            parameters |= block.norm.backward(d_product, rows.unnormalized[group], group, widths)
        weight, bias = block.projections.joined(group, x.dtype)
        products = linear_gradients(
            d_product, x, weight, bias, precision, ("weight",) if bias is None else ("weight", "bias")
        )
        for c in group:
            parameters[f"W_{c}"] = products["weight"][:, columns[c]]
            if bias is not None:
                parameters[f"b_{c}"] = products["bias"][columns[c]]
        for owner in dict.fromkeys(rows.owners[c] for c in group):
            if owner in wrt:
                own = [columns[c] for c in group if rows.owners[c] == owner]
                part = slice(own[0].start, own[-1].stop)
                d_x = linear(d_product[..., part], weight[:, part].T, precision=precision)
                found[owner] = found[owner] + d_x if owner in found else d_x
    return found


def _unturned(d: Array, letter: str, group: str, rows: Rows, block: Block) -> Array:
    """The gradient by the heads before the rotation and the scale of queries; ``d`` may be changed."""
    if block.rope is None or letter == "v":
        return d
    positions = rows.positions if "q" in group else None
    if letter == "q":
        scale_queries(d, block.rope, positions)
    return rotate_back(block.rope, d, positions)
