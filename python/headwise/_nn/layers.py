"""Multi-head attention as layers that own their projections.

Vaswani et al., "Attention Is All You Need" (2017), https://arxiv.org/abs/1706.03762, section 3.2.2. The computation is
:func:`headwise._nn.multi_head.multi_head`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

from headwise._base.scalars import check_flag, check_rate, check_rng, check_size
from headwise._nn.arguments import check_alibi, check_biases, check_defaults, check_rope
from headwise._nn.gradients import DifferentiableAttention
from headwise._nn.models.families import describe
from headwise._nn.multi_head import Call, check_keywords, check_sequences, multi_head
from headwise._nn.qk_norm import check_qk_norm
from headwise._nn.relative import check_relative
from headwise._ops.attention.keywords import hide_unknown, refuse
from headwise._ops.attention.options import AttentionOptions
from headwise._positions.rope_config import check_positive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, DTypeLike
    from typing_extensions import Unpack

    from headwise._base.typing import Array, Rng
    from headwise._kv_cache.cache import KVCache
    from headwise._nn.cross_cache import CrossCache
    from headwise._nn.multi_head import Block, Inputs
    from headwise._nn.options import LayerOptions
    from headwise._positions.relative import RelativePositionalEncoding
    from headwise._positions.rotary import RotaryPositionalEmbedding

__all__ = ["AttentionOptions", "CausalAttention", "MultiHeadAttention"]


class MultiHeadAttention(DifferentiableAttention):
    """Attention in ``num_heads`` subspaces of the features, each ``d_k`` wide.

    ``Concat(head_1, …, head_h) W_o`` with ``head_i = softmax(q_i k_i^T / sqrt(d_k)) v_i``, where ``q_i``, ``k_i`` and
    ``v_i`` are the ``i``-th slices of ``query @ W_q``, ``key @ W_k`` and ``value @ W_v`` [1]_.

    Parameters
    ----------
    d_model : int
        Width of the query and the output.
    num_heads : int
        Number of heads, a divisor of ``d_model`` unless ``head_dim`` is given.
    dropout : float
        Rate in [0, 1) of the dropout of attention weights, in training only.
    bias : bool or str
        Whether the projections add ``b_q``, ``b_k``, ``b_v`` and ``b_o``, initially zero; a string names some of them,
        such as ``"qkv"`` for Qwen2 and ``"qvo"`` for Whisper.
    num_kv_heads : int, optional
        Number of key and value heads, a divisor of ``num_heads``; each is shared by ``num_heads / num_kv_heads`` query
        heads [2]_. ``num_heads`` by default.
    head_dim : int, optional
        ``d_k``, the width of a head; ``d_model / num_heads`` by default.
    kdim, vdim : int, optional
        Widths of key and value; ``d_model`` by default.
    rope : RotaryPositionalEmbedding, optional
        Of width ``d_k``; rotates the heads of queries and keys by their positions.
    qk_norm : {"head", "full"}, optional
        RMS normalisation of queries and keys before the rotation, with the factors ``q_norm`` and ``k_norm``: of each
        head, as in Qwen3 and Gemma 3, or of all heads of a row together, as in OLMo 2.
    qk_norm_eps : float
        Added to the mean square.
    qk_norm_offset : bool
        Whether formats other than "headwise" store ``q_norm`` and ``k_norm`` minus 1, as Gemma does.
    alibi : bool or array_like, (num_heads,)
        Whether scores get the ALiBi bias, with the slopes of :func:`headwise.alibi_slopes` or the given ones.
    relative : array_like, RelativePositionalEncoding or mapping, optional
        The relative bias of calls that do not give ``relative_bias``: an array (num_heads or 1, 1, 2 M + 1); embeddings
        of width ``d_k`` for each distance, whose products with the queries are added to the scores (Shaw et al., 2018);
        or ``num_buckets``, ``max_distance`` and ``bidirectional`` of T5, whose table of buckets is learned.
    sinks : bool
        Whether each head has a learned logit in ``sinks``, initially zero, that joins the softmax denominator.
    window_size, softcap, scale, precision : optional
        Defaults for the keywords of :func:`headwise.scaled_dot_product_attention` with these names.
    rng : int or numpy.random.Generator, optional
        Draws the parameters, then the dropout of later calls.
    dtype : dtype, optional
        Of the parameters; float64 by default. The output has the floating dtype of the input, whatever this dtype.
        float16 and bfloat16 parameters stay 16-bit under float32 input: half the memory to read per token.

    Attributes
    ----------
    W_q, W_k, W_v, W_o : ndarray
        The projections, applied as ``x @ W``: (d_model, num_heads * d_k), (kdim, num_kv_heads * d_k), (vdim,
        num_kv_heads * d_k) and (num_heads * d_k, d_model). Initially uniform as in Glorot & Bengio (2010). They may be
        replaced or changed in place.
    b_q, b_k, b_v, b_o : ndarray or None
        Added to the products: (num_heads * d_k,), (num_kv_heads * d_k,), (num_kv_heads * d_k,) and (d_model,). None
        without ``bias``; each may be set separately.
    sinks : ndarray, (num_heads,), or None
    q_norm, k_norm : ndarray or None
        The factors of ``qk_norm``, initially one: both (d_k,), or (num_heads * d_k,) and (num_kv_heads * d_k,). Either
        may be set to None: its rows are not normalised then.
    relative_table : ndarray, (num_buckets, num_heads), or None
        The biases of T5's buckets, initially zero.
    relative_embeddings : ndarray, (2 M + 1, d_k), or None
        A copy of those that ``relative`` had.
    d_k : int
        Width of a head.
    dropout : float
        The rate.
    training : bool
        Whether dropout acts; initially False.

    Raises
    ------
    ValueError
        If ``d_model`` is not divisible by ``num_heads`` and ``head_dim`` is not given, or ``num_heads`` is not
        divisible by ``num_kv_heads``, a size is not positive, the rate is outside [0, 1), or the width of ``rope`` is
        not ``d_k``.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    Weights with no outside references are packed on the second call and reused until they are read or replaced; the
    projections of one input are packed as one matrix. Assignment copies. An outside reference to a parameter (``W =
    layer.W_q``) disables packing, so the parameters are copied on every call. Results are the same bit for bit. Packed
    weights take 2 to 2.5 times the memory of the parameters in the dtype of the input.

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

    A decoder layer, called token by token:

    >>> layer = hw.CausalAttention(64, 8, num_kv_heads=2, rope=hw.RotaryPositionalEmbedding(8), rng=0)
    >>> cache = layer.make_cache(batch_size=2, capacity=5, dtype=np.float64)
    >>> steps = [layer(x[:, i : i + 1], cache=cache)[0] for i in range(5)]
    >>> bool(np.allclose(np.concatenate(steps, axis=1), layer(x)[0]))
    True
    """

    d_model: int
    num_heads: int
    d_k: int
    num_kv_heads: int
    kdim: int
    vdim: int
    dropout: float
    rope: RotaryPositionalEmbedding | None
    qk_norm: Literal["head", "full"] | None
    qk_norm_eps: float
    qk_norm_offset: bool

    @hide_unknown
    def __init__(  # noqa: PLR0913 (public)
        self,
        d_model: int,
        num_heads: int,
        dropout: float = 0.1,
        *,
        bias: bool | str = False,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        kdim: int | None = None,
        vdim: int | None = None,
        rope: RotaryPositionalEmbedding | None = None,
        qk_norm: Literal["head", "full"] | None = None,
        qk_norm_eps: float = 1e-6,
        qk_norm_offset: bool = False,
        alibi: bool | ArrayLike = False,
        relative: ArrayLike | RelativePositionalEncoding | Mapping[str, Any] | None = None,
        sinks: bool = False,
        window_size: int | tuple[int, int] | None = None,
        softcap: float | None = None,
        scale: float | None = None,
        precision: str | None = None,
        rng: Rng = None,
        dtype: DTypeLike | None = None,
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            refuse(unknown, ("num_heads", "dropout", *(MultiHeadAttention.__init__.__kwdefaults__ or ())), layer=True)
        self._set_heads(d_model, num_heads, num_kv_heads, head_dim)
        self.kdim = self.d_model if kdim is None else check_size(kdim, "kdim")
        self.vdim = self.d_model if vdim is None else check_size(vdim, "vdim")
        self.dropout = check_rate(dropout, "dropout")
        self.rope = check_rope(rope, self.d_k)
        self.qk_norm = check_qk_norm(qk_norm)
        norms = (self.d_k, self.d_k) if self.qk_norm == "head" else (self._q_width, self._kv_width)
        self._q_norm_width, self._k_norm_width = norms
        self.qk_norm_eps = check_positive(qk_norm_eps, "qk_norm_eps")
        self.qk_norm_offset = check_flag(qk_norm_offset, "qk_norm_offset")
        self._defaults = check_defaults(window_size, softcap, scale, precision)
        slopes = check_alibi(alibi, self.num_heads)
        if slopes is not None:
            self._defaults["alibi_slopes"] = slopes
        given = check_relative(relative, self.num_heads, self.d_k)
        if given.bias is not None:
            self._defaults["relative_bias"] = given.bias
        self._buckets, self._num_buckets = given.buckets, given.num_buckets
        self._num_distances = 0 if given.embeddings is None else len(given.embeddings)
        zeros = {f"b_{letter}" for letter in check_biases(bias)} | ({"sinks"} if check_flag(sinks, "sinks") else set())
        zeros |= set() if given.buckets is None else {"relative_table"}
        self._rng = check_rng(rng)
        self._initialize(self._rng, dtype, zeros=zeros, ones=() if self.qk_norm is None else ("q_norm", "k_norm"))
        if given.embeddings is not None:
            type(self).relative_embeddings.adopt(self, given.embeddings.astype(self.W_q.dtype))
        self._required: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: object, layer_index: int = 0, **overrides: Any) -> MultiHeadAttention:
        """The attention of a layer of a model, by its Hugging Face configuration; the parameters are random.

        Parameters
        ----------
        config : mapping or object with ``to_dict()``
            The contents of a ``config.json``, or a configuration of transformers.
        layer_index : int
            The layer of the model, whose window and rotation may depend on it.
        **overrides
            Arguments of the constructor in place of the configuration's, such as ``dtype``, ``rng`` or a ``rope`` that
            layers share.

        Returns
        -------
        MultiHeadAttention
            A :class:`CausalAttention` if the model's attention is causal. Of Whisper and T5,
            ``CausalAttention.from_config`` is the self-attention of the decoder. Layer 0 of T5 has the table of
            relative positions; calls of the others must give its bias as ``relative_bias=`` or ``bias=``.

        Raises
        ------
        ValueError
            If the model type is unknown or attends in both directions where ``cls`` is causal, an entry that it
            requires is missing, or the configuration asks for something that layers have not.
        TypeError
            If ``config`` or an entry has a wrong type, or an override is unknown.

        Examples
        --------
        >>> import headwise as hw
        >>> config = {
        ...     "model_type": "qwen3", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        ...     "head_dim": 32, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
        ... }  # fmt: skip
        >>> layer = hw.MultiHeadAttention.from_config(config)
        >>> type(layer).__name__, layer.qk_norm, layer.W_q.shape
        ('CausalAttention', 'head', (64, 128))
        """
        model = describe(config, layer_index, cls._causal)
        layer = (CausalAttention if model.causal and not cls._causal else cls)(**{**model.arguments, **overrides})
        layer._required = model.required  # noqa: SLF001 (of this class)
        return layer

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
    def forward(  # noqa: PLR0913 (public)
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        *,
        training: bool | None = None,
        rng: Rng = None,
        cache: KVCache | CrossCache | None = None,
        lengths: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        **options: Unpack[AttentionOptions],
    ) -> tuple[Any, ...]:
        """Attend from ``query`` to ``key``, and average ``value`` with the attention weights.

        Parameters
        ----------
        query : array_like, (batch, query_len, d_model) or (query_len, d_model)
        key : array_like, (batch, key_len, kdim) or (key_len, kdim), optional
            ``query`` by default: self-attention.
        value : array_like, (batch, key_len, vdim) or (key_len, vdim), optional
            ``key`` by default.
        mask : array_like, optional
            ``(query_len, key_len)``, ``(batch, query_len, key_len)`` or ``(batch, heads, query_len, key_len)``, or
            ``(batch, key_len)`` from :func:`headwise.create_padding_mask`. Boolean, or integers 0 and 1: 1 keeps;
            floating: added to the scores, unless it holds only 0.0 and 1.0 and at least one 1.0, which keeps.
        training : bool, optional
            Whether dropout acts in this call; the attribute ``training`` by default.
        rng : int or numpy.random.Generator, optional
            Draws the dropout of this call.
        cache : KVCache or CrossCache, optional
            From :meth:`make_cross_cache`: cross-attention to its keys, in place of ``key`` and ``value``.
            From :meth:`make_cache`, for self-attention. The keys and values of this call are appended to it, and each
            query attends to all cached positions up to its own. The last axis of ``mask`` and ``bias`` then spans the
            cached keys, as for :meth:`headwise.KVCache.attend`.
        lengths : array_like of int, (batch,), optional
            With a cache: the number of rows that count for each sequence; the rows behind them are padding.
        positions : array_like of int, (query_len,) or (batch, query_len), optional
            The positions of the queries, and in self-attention of the keys, for ``rope``. By default they count from 0,
            or from the length of the cache; with ``causal_alignment="lower_right"`` the last query has the position of
            the last key.
        **options
            The other keywords of :func:`headwise.scaled_dot_product_attention`: ``is_causal``, ``key_padding_mask``
            (batch, key_len), ``key_lengths`` (batch,), ``need_weights``, ``bias`` (of the shapes of ``mask``),
            ``scale``, ``window_size``, ``softcap``, ``alibi_slopes`` (num_heads,), ``sinks`` (num_heads,),
            ``relative_bias`` (num_heads or 1, query_len or 1, 2 M + 1), ``relative_values`` (2 M + 1, d_k),
            ``return_lse``, ``precision``, ``out`` (of the shape of the output) and ``causal_alignment``.

        Returns
        -------
        output : ndarray, (batch, query_len, d_model) or (query_len, d_model)
            Of the floating dtype of the inputs; float16 and bfloat16 are computed in float32, projections included, and
            rounded once.
        weights : ndarray, (batch, num_heads, query_len, key_len) or (num_heads, query_len, key_len), or None
            Before dropout; None with ``need_weights=False``.
        lse : ndarray, (batch, num_heads, query_len) or (num_heads, query_len)
            Only with ``return_lse=True``.

        Raises
        ------
        ValueError
            If a shape or the value of a keyword does not fit; the message names the argument.
        TypeError
            If a dtype is not real, or a keyword is unknown.
        """
        check_keywords(options, "mask", "training", "rng", "cache", "lengths", "positions")
        inputs = check_sequences(query, key, value)
        acts = self.training if training is None else check_flag(training, "training")
        rate, generator = self.dropout if acts else 0.0, self._rng if rng is None else rng
        block, options = self._prepare(inputs, options)
        return multi_head(inputs, block, Call(mask, rate, generator, positions, cache, lengths), options)

    if TYPE_CHECKING:
        __call__ = forward


class CausalAttention(MultiHeadAttention):
    """:class:`MultiHeadAttention` in which no query attends to a later key.

    A key must be kept by the mask, if one is given, and by causality; ``is_causal`` has no effect. If the numbers of
    queries and keys differ, query ``i`` attends to keys ``0 .. i`` (``causal_alignment="upper_left"``), or the last
    query attends to all keys (``"lower_right"``).

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


def prepare(layer: MultiHeadAttention, inputs: Inputs, options: AttentionOptions) -> tuple[Block, AttentionOptions]:
    """The parameters of a call of ``layer``, and its keywords with the layer's own."""
    return layer._prepare(inputs, options)  # noqa: SLF001 (of a class of this module)
