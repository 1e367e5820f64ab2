"""Multi-head attention as layers that own their projections.

Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762, section 3.2.2. The computation is
:func:`headwise._nn.multi_head.multi_head`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from headwise._base.arrays import as_array, promote
from headwise._base.layer import Layer, Parameter, parameter_dtype
from headwise._base.scalars import check_flag, check_rate, check_real, check_rng, check_size
from headwise._kv_cache.cache import KVCache
from headwise._nn.multi_head import Heads, check_heads, check_sequences, glorot_uniform, multi_head, split_heads
from headwise._nn.projections import LayerProjections, Packs
from headwise._nn.state_dict import read_state_dict, write_state_dict
from headwise._ops.attention.options import AttentionOptions
from headwise._ops.attention.spec import check_softcap, check_window
from headwise._ops.positions import alibi_slopes
from headwise._positions.rotary import RotaryPositionalEmbedding
from headwise._runtime.precision import check_precision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, DTypeLike
    from typing_extensions import Unpack

    from headwise._base.typing import Array, Rng
    from headwise._nn.options import LayerOptions

__all__ = ["AttentionOptions", "CausalAttention", "MultiHeadAttention"]


_WEIGHTS = ("W_q", "W_k", "W_v", "W_o")
_BIASES = ("b_q", "b_k", "b_v", "b_o")


class MultiHeadAttention(Layer):
    """Attention in ``num_heads`` subspaces of the width at once, each ``d_k = d_model / num_heads`` wide.

    ``Concat(head_1, …, head_h) W_o`` with ``head_i = softmax(q_i k_i^T / sqrt(d_k)) v_i``, where ``q_i``, ``k_i`` and
    ``v_i`` are the ``i``-th slices of ``query @ W_q``, ``key @ W_k`` and ``value @ W_v``.

    Parameters
    ----------
    d_model : int
        Width of the query and the output.
    num_heads : int
        Number of heads, a divisor of ``d_model``.
    dropout : float
        Rate in [0, 1) at which attention weights are dropped, in training only.
    bias : bool
        Whether the projections add ``b_q``, ``b_k``, ``b_v`` and ``b_o``, zero at first.
    num_kv_heads : int, optional
        Number of key and value heads, a divisor of ``num_heads``, each shared by as many query heads [2]_;
        ``num_heads`` by default.
    kdim, vdim : int, optional
        Widths of key and value; ``d_model`` by default.
    rope : RotaryPositionalEmbedding, optional
        Of width ``d_k``; turns the heads of queries and keys by their positions.
    alibi : bool
        Whether distances are penalised by :func:`headwise.alibi_slopes`.
    sinks : bool
        Whether each head has a learned logit ``sinks`` that joins the softmax's denominator, zero at first.
    window_size, softcap, scale, precision : optional
        What :func:`headwise.scaled_dot_product_attention` takes under these names, for every call that does not say
        otherwise.
    rng : int or numpy.random.Generator, optional
        Draws the parameters, then the dropout of later calls.
    dtype : dtype, optional
        Of the parameters; float64 by default. It does not decide the dtype of the output: a layer computes and answers
        in the floating dtype of its input.

    Attributes
    ----------
    W_q, W_k, W_v, W_o : ndarray
        The projections, applied as ``x @ W``: (d_model, d_model), (kdim, num_kv_heads * d_k), (vdim, num_kv_heads *
        d_k) and (d_model, d_model), drawn uniformly as by Glorot & Bengio (2010). They may be replaced or changed in
        place.
    b_q, b_k, b_v, b_o : ndarray or None
        Added to the products; None without ``bias``. They may be set one by one.
    sinks : ndarray, (num_heads,), or None
    d_k : int
        Width of a head.
    dropout : float
        The rate.
    training : bool
        Whether dropout acts; False at first.

    Raises
    ------
    ValueError
        If ``d_model`` is not divisible by ``num_heads``, or ``num_heads`` by ``num_kv_heads``, a size is not positive,
        the rate is outside [0, 1), or ``rope`` has another width than ``d_k``.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    Parameters that nobody else holds on to are packed for the products at the second call that finds them unchanged,
    queries, keys and values of one input in a single one, and packed anew after somebody has read or replaced one.
    Whoever keeps a reference to a parameter (``W = layer.W_q``, or the array that was assigned) may change it at any
    time, and pays with a copy of the parameters at each call. Results have the same bits either way. What is packed
    takes 2 to 2.5 times the memory of the parameters in the dtype of the input.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017, section 3.2.2.
    .. [2] J. Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
       2023, section 2.2.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> layer = hw.MultiHeadAttention(d_model=64, num_heads=8, rng=0)
    >>> x = np.random.default_rng(0).standard_normal((2, 5, 64))
    >>> output, weights = layer(x)
    >>> output.shape, weights.shape
    ((2, 5, 64), (2, 8, 5, 5))

    A decoder's layer, fed token by token:

    >>> layer = hw.CausalAttention(64, 8, num_kv_heads=2, rope=hw.RotaryPositionalEmbedding(8), rng=0)
    >>> cache = layer.make_cache(batch_size=2, capacity=5, dtype=np.float64)
    >>> steps = [layer(x[:, i : i + 1], cache=cache)[0] for i in range(5)]
    >>> bool(np.allclose(np.concatenate(steps, axis=1), layer(x)[0]))
    True
    """

    W_q: Parameter[Array] = Parameter("d_model", "d_model")
    W_k: Parameter[Array] = Parameter("kdim", "_kv_width")
    W_v: Parameter[Array] = Parameter("vdim", "_kv_width")
    W_o: Parameter[Array] = Parameter("d_model", "d_model")
    b_q: Parameter[Any] = Parameter.optional("d_model")
    b_k: Parameter[Any] = Parameter.optional("_kv_width")
    b_v: Parameter[Any] = Parameter.optional("_kv_width")
    b_o: Parameter[Any] = Parameter.optional("d_model")
    sinks: Parameter[Any] = Parameter.optional("num_heads")

    d_model: int
    num_heads: int
    d_k: int
    num_kv_heads: int
    kdim: int
    vdim: int
    dropout: float
    rope: RotaryPositionalEmbedding | None

    _causal = False

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float = 0.1,
        *,
        bias: bool = False,
        num_kv_heads: int | None = None,
        kdim: int | None = None,
        vdim: int | None = None,
        rope: RotaryPositionalEmbedding | None = None,
        alibi: bool = False,
        sinks: bool = False,
        window_size: int | tuple[int, int] | None = None,
        softcap: float | None = None,
        scale: float | None = None,
        precision: str | None = None,
        rng: Rng = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        self.d_model, self.num_heads = check_heads(d_model, num_heads)
        self.d_k = self.d_model // self.num_heads
        self.num_kv_heads = self.num_heads if num_kv_heads is None else check_size(num_kv_heads, "num_kv_heads")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads: {num_kv_heads}, expected num_heads = {num_heads} to be divisible by it")
        self.kdim = self.d_model if kdim is None else check_size(kdim, "kdim")
        self.vdim = self.d_model if vdim is None else check_size(vdim, "vdim")
        self._kv_width = self.num_kv_heads * self.d_k
        self.dropout = check_rate(dropout, "dropout")
        self.rope = self._check_rope(rope)
        self._defaults = self._check_defaults(window_size, softcap, scale, precision)
        if check_flag(alibi, "alibi"):
            self._defaults["alibi_slopes"] = alibi_slopes(self.num_heads)
        has_bias, has_sinks = check_flag(bias, "bias"), check_flag(sinks, "sinks")
        self._rng = check_rng(rng)
        made = parameter_dtype(dtype)
        for name in (*_WEIGHTS, *_BIASES, "sinks"):
            axes = self._shape_of(name)
            if name in _WEIGHTS:
                setattr(self, name, glorot_uniform(self._rng, *axes).astype(made, copy=False))
            else:
                wanted = has_sinks if name == "sinks" else has_bias
                setattr(self, name, np.zeros(axes, made) if wanted else None)
        self._packs = Packs()

    @overload
    def forward(
        self, query: ArrayLike, key: ArrayLike | None = None, value: ArrayLike | None = None,
        mask: ArrayLike | None = None, *,
        need_weights: Literal[True] = True, return_lse: Literal[False] = False, **options: Unpack[LayerOptions],
    ) -> tuple[Array, Array]: ...  # fmt: skip
    @overload
    def forward(
        self, query: ArrayLike, key: ArrayLike | None = None, value: ArrayLike | None = None,
        mask: ArrayLike | None = None, *,
        need_weights: Literal[False], return_lse: Literal[False] = False, **options: Unpack[LayerOptions],
    ) -> tuple[Array, None]: ...  # fmt: skip
    @overload
    def forward(
        self, query: ArrayLike, key: ArrayLike | None = None, value: ArrayLike | None = None,
        mask: ArrayLike | None = None, *,
        need_weights: bool = True, return_lse: Literal[True], **options: Unpack[LayerOptions],
    ) -> tuple[Array, Any, Array]: ...  # fmt: skip
    @overload
    def forward(
        self, query: ArrayLike, key: ArrayLike | None = None, value: ArrayLike | None = None,
        mask: ArrayLike | None = None, *,
        need_weights: bool = True, return_lse: bool = False, **options: Unpack[LayerOptions],
    ) -> tuple[Any, ...]: ...  # fmt: skip
    def forward(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        *,
        training: bool | None = None,
        rng: Rng = None,
        cache: KVCache | None = None,
        lengths: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        **options: Unpack[AttentionOptions],
    ) -> tuple[Any, ...]:
        """Attend from ``query`` to ``key``, and mix ``value`` accordingly.

        Parameters
        ----------
        query : array_like, (batch, query_len, d_model) or (query_len, d_model)
        key : array_like, (batch, key_len, kdim) or (key_len, kdim), optional
            ``query`` by default: self-attention.
        value : array_like, (batch, key_len, vdim) or (key_len, vdim), optional
            ``key`` by default.
        mask : array_like, optional
            ``(query_len, key_len)``, ``(batch, query_len, key_len)`` or ``(batch, heads, query_len, key_len)``, or
            ``(batch, key_len)`` from :func:`headwise.create_padding_mask`. Boolean or integer: nonzero keeps; floating:
            added to the scores, unless it holds only 0.0 and 1.0.
        training : bool, optional
            Whether dropout acts in this call; the attribute ``training`` decides by default.
        rng : int or numpy.random.Generator, optional
            Draws this call's dropout.
        cache : KVCache, optional
            From :meth:`make_cache`, for self-attention. The keys and values of this call join it, and each query
            attends to all that the cache holds up to its own position. A ``mask`` then is over the keys that
            the cache holds.
        lengths : array_like of int, (batch,), optional
            With a cache: how many of the rows count for each sequence; the others are padding behind them.
        positions : array_like of int, (query_len,) or (batch, query_len), optional
            Where the queries stand, and in self-attention the keys, for ``rope``. By default they are counted from 0,
            or from what the cache holds; under ``causal_alignment="lower_right"`` the last query stands beside the last
            key.
        **options
            The other keywords of :func:`headwise.scaled_dot_product_attention`: ``is_causal``, ``key_padding_mask``,
            ``need_weights``, ``bias``, ``scale``, ``window_size``, ``softcap``, ``alibi_slopes``, ``sinks``,
            ``return_lse``, ``precision``, ``out`` and so on. ``bias`` takes the shapes of ``mask``.

        Returns
        -------
        output : ndarray, (batch, query_len, d_model)
            Of the rank of ``query`` and of the floating dtype of the inputs; float16 and bfloat16 are computed in
            float32, projections included, and rounded once.
        weights : ndarray, (batch, num_heads, query_len, key_len), or None
            Before dropout; None with ``need_weights=False``.
        lse : ndarray, (batch, num_heads, query_len)
            Only with ``return_lse=True``.

        Raises
        ------
        ValueError
            If a shape or a keyword's value does not fit; it names the argument.
        TypeError
            If a dtype is not real, or a keyword is unknown.
        """
        q, k, v = check_sequences(query, key, value)
        acts = self.training if training is None else check_flag(training, "training")
        rate, generator = self.dropout if acts else 0.0, self._rng if rng is None else rng
        return self._attend(
            q, k, v, mask, rate, generator, cache=cache, lengths=lengths, positions=positions, **options
        )

    if TYPE_CHECKING:
        __call__ = forward

    def _attend(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: ArrayLike | None,
        dropout: float,
        rng: Rng,
        *,
        cache: KVCache | None = None,
        lengths: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        **options: Unpack[AttentionOptions],
    ) -> tuple[Any, ...]:
        """:meth:`forward` of what ``check_sequences`` gives, with dropout at any rate."""
        options = {**self._defaults, **options}
        if self._causal:
            options["is_causal"] = True
        if self._has("sinks") and "sinks" not in options:
            dtype, _ = promote(("query", q), ("key", k), ("value", v))
            options["sinks"] = self._cast("sinks", dtype)
        heads = Heads((self.d_model, self.kdim, self.vdim), self.d_model, self.num_heads, self.num_kv_heads)
        projections = LayerProjections(vars(self), self._packs)
        return multi_head(
            q, k, v, projections, heads, mask, dropout, rng,
            rope=self.rope, positions=positions, cache=cache, lengths=lengths, **options,
        )  # fmt: skip

    def make_cache(
        self, batch_size: int, capacity: int, *, ring: bool = False, dtype: DTypeLike = np.float32
    ) -> KVCache:
        """An empty :class:`headwise.KVCache` for :meth:`forward`, for ``capacity`` positions.

        Parameters
        ----------
        batch_size, capacity : int
        ring : bool
            Whether the oldest positions make room for new ones, where a full cache is an error otherwise.
        dtype : dtype
            That of the inputs that will be given.

        Returns
        -------
        KVCache

        Raises
        ------
        ValueError
            If a size is not positive.
        TypeError
            If an argument has a wrong type.
        """
        return KVCache(batch_size, self.num_kv_heads, capacity, self.d_k, dtype=dtype, ring=ring)

    def state_dict(self, format: str = "headwise", *, prefix: str = "") -> dict[str, Array]:
        """Copies of the parameters, under the names of ``format``.

        Parameters
        ----------
        format : {"headwise", "torch", "llama", "bert"}
            Our own names; those of ``torch.nn.MultiheadAttention``; of Hugging Face's Llama and its kin; of BERT's.
            All but ours hold transposed weights, (out, in).
        prefix : str
            What the names begin with.

        Returns
        -------
        dict of ndarray

        Raises
        ------
        ValueError
            If the format is unknown, or cannot express the layer.

        Examples
        --------
        >>> import headwise as hw
        >>> list(hw.MultiHeadAttention(8, 2, bias=True).state_dict("torch", prefix="attn."))
        ['attn.in_proj_weight', 'attn.in_proj_bias', 'attn.out_proj.weight', 'attn.out_proj.bias']
        """
        return write_state_dict(self._parameters(), format=format, prefix=prefix)

    def load_state_dict(self, state: Mapping[str, ArrayLike], *, prefix: str = "", strict: bool = True) -> None:
        """Replace the parameters by copies of those of a state dict, in any format of :meth:`state_dict`.

        Parameters
        ----------
        state : mapping of str to array_like
            NumPy arrays, PyTorch tensors and so on. The names tell the format.
        prefix : str
            What the names of this layer's entries begin with; others are not looked at.
        strict : bool
            Whether entries that the layer has not are an error.

        Raises
        ------
        ValueError
            If entries are missing, misshapen or too many: all of them are listed, and nothing is loaded.

        Examples
        --------
        >>> import headwise as hw
        >>> one, other = hw.MultiHeadAttention(8, 2, rng=1), hw.MultiHeadAttention(8, 2, rng=2)
        >>> other.load_state_dict(one.state_dict("llama"))
        >>> bool((one.W_k == other.W_k).all())
        True
        """
        shapes = {name: array.shape for name, array in self._parameters().items()}
        for name, array in read_state_dict(state, shapes, prefix=prefix, strict=strict).items():
            setattr(self, name, array)

    def _parameters(self) -> dict[str, Array]:
        return {name: getattr(self, name) for name in (*_WEIGHTS, *_BIASES, "sinks") if self._has(name)}

    def _shape_of(self, name: str) -> tuple[int, ...]:
        parameter: Parameter[Any] = getattr(type(self), name)
        return parameter.shape(self)

    def _check_rope(self, rope: object) -> RotaryPositionalEmbedding | None:
        if rope is None:
            return None
        if not isinstance(rope, RotaryPositionalEmbedding):
            raise TypeError(f"rope: {type(rope).__name__}, expected a RotaryPositionalEmbedding")
        if rope.d_model != self.d_k:
            raise ValueError(f"rope: of width {rope.d_model}, expected d_model / num_heads = {self.d_k}")
        return rope

    @staticmethod
    def _check_defaults(window_size: Any, softcap: Any, scale: Any, precision: Any) -> AttentionOptions:
        """The options among these that are given."""
        given: AttentionOptions = {}
        if window_size is not None:
            check_window(window_size, 0)
            given["window_size"] = window_size
        if softcap is not None:
            given["softcap"] = check_softcap(softcap)
        if scale is not None:
            given["scale"] = check_real(scale, "scale")
        if precision is not None:
            given["precision"] = check_precision(precision)
        return given

    def split_heads(self, x: ArrayLike) -> Array:
        """The slices of the features that belong to each head.

        Parameters
        ----------
        x : array_like, (…, seq, d_model)

        Returns
        -------
        ndarray, (…, num_heads, seq, d_k)
            A view where the strides allow.

        Raises
        ------
        ValueError
            If the last axis is not ``d_model`` wide.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> layer = hw.MultiHeadAttention(d_model=4, num_heads=2)
        >>> layer.split_heads([[1, 2, 3, 4], [5, 6, 7, 8]])
        array([[[1, 2],
                [5, 6]],
               [[3, 4],
                [7, 8]]])
        """
        rows = as_array(x, "x")
        if rows.ndim < 2 or rows.shape[-1] != self.d_model:
            raise ValueError(f"x: shape {rows.shape}, expected (…, seq, d_model = {self.d_model})")
        return split_heads(rows, self.num_heads)

    def combine_heads(self, x: ArrayLike) -> Array:
        """Heads side by side: what :meth:`split_heads` undoes.

        Parameters
        ----------
        x : array_like, (…, num_heads, seq, d_k)

        Returns
        -------
        ndarray, (…, seq, d_model)

        Raises
        ------
        ValueError
            If the number of heads or their width is another.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> layer = hw.MultiHeadAttention(d_model=4, num_heads=2)
        >>> layer.combine_heads([[[1, 2], [5, 6]], [[3, 4], [7, 8]]])
        array([[1, 2, 3, 4],
               [5, 6, 7, 8]])
        """
        heads = as_array(x, "x")
        if heads.ndim < 3 or heads.shape[-3] != self.num_heads or heads.shape[-1] != self.d_k:
            raise ValueError(f"x: shape {heads.shape}, expected (…, {self.num_heads}, seq, {self.d_k})")
        return heads.swapaxes(-3, -2).reshape(*heads.shape[:-3], heads.shape[-2], self.d_model)


class CausalAttention(MultiHeadAttention):
    """:class:`MultiHeadAttention` in which no query attends to a later key.

    A mask given besides is ANDed with causality; ``is_causal`` makes no difference. With fewer or more keys than
    queries, query ``i`` attends to keys ``0 .. i`` (``causal_alignment="upper_left"``) or the last query to all keys
    (``"lower_right"``).

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> layer = hw.CausalAttention(d_model=8, num_heads=2, rng=0)
    >>> _, weights = layer(np.random.default_rng(0).standard_normal((1, 3, 8)))
    >>> bool(np.triu(weights, k=1).any())
    False
    """

    _causal = True
