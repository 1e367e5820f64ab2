"""The parameters of multi-head attention: their shapes, initial values, state dicts and caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from headwise._base.arrays import promote
from headwise._base.layer import Parameter
from headwise._kv_cache.cache import KVCache
from headwise._nn.cross_cache import CrossCache
from headwise._nn.multi_head import Block, Heads, check_sequences, project
from headwise._nn.projected import ProjectedLayer
from headwise._nn.projections import LayerProjections
from headwise._nn.qk_norm import QKNorm
from headwise._nn.state_dict import Stored

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from headwise._base.typing import Array
    from headwise._ops.attention.options import AttentionOptions
    from headwise._positions.rotary import RotaryPositionalEmbedding


class MultiHeadParameters(ProjectedLayer):
    """The base class of :class:`headwise.MultiHeadAttention`: its parameters without the computation."""

    W_k: Parameter[Array] = Parameter("kdim", "_kv_width")
    W_v: Parameter[Array] = Parameter("vdim", "_kv_width")
    sinks: Parameter[Any] = Parameter.optional("num_heads")
    q_norm: Parameter[Any] = Parameter.optional("_q_norm_width")
    k_norm: Parameter[Any] = Parameter.optional("_k_norm_width")
    relative_table: Parameter[Any] = Parameter.optional("_num_buckets", "num_heads")
    relative_embeddings: Parameter[Any] = Parameter.optional("_num_distances", "d_k")

    kdim: int
    vdim: int
    qk_norm: Literal["head", "full"] | None
    qk_norm_eps: float
    qk_norm_offset: bool
    rope: RotaryPositionalEmbedding | None
    _names = (*ProjectedLayer._names, "sinks", "q_norm", "k_norm", "relative_table", "relative_embeddings")  # noqa: SLF001 (of the base class)
    _defaults: AttentionOptions
    _required: tuple[str, ...]
    _q_norm_width: int
    _k_norm_width: int
    _buckets: Array | None  # of the distances -M to M, rows of relative_table
    _num_buckets: int
    _num_distances: int  # 2 M + 1 rows of relative_embeddings

    def make_cache(
        self,
        batch_size: int,
        capacity: int,
        *,
        ring: bool = False,
        keep_first: int = 0,
        dtype: DTypeLike = np.float32,
    ) -> KVCache:
        """An empty :class:`headwise.KVCache` for :meth:`forward`.

        Parameters
        ----------
        batch_size : int
            Number of sequences.
        capacity : int
            Maximum number of positions of a sequence or, in a ring, of keys that a query sees.
        ring : bool
            Whether new positions replace the oldest ones of a full cache, which is an error otherwise.
        keep_first : int
            Number of first positions that a ring never replaces.
        dtype : dtype or "int8"
            That keys and values are stored in: the dtype of the computation, which is float64 for inputs of float64 and
            else float32; or float16, bfloat16 or int8 where that is float32.

        Returns
        -------
        KVCache
            With ``num_kv_heads`` heads of width ``d_k``.

        Raises
        ------
        ValueError
            If a size is not positive.
        TypeError
            If an argument has a wrong type.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> layer = hw.CausalAttention(8, 2, rng=0)
        >>> cache = layer.make_cache(batch_size=1, capacity=16, dtype=np.float64)
        >>> output, _ = layer(np.ones((1, 3, 8)), cache=cache)
        >>> cache.lengths
        array([3])
        """
        return KVCache(batch_size, self.num_kv_heads, capacity, self.d_k, dtype=dtype, ring=ring, keep_first=keep_first)

    def make_cross_cache(self, key_value: ArrayLike, value: ArrayLike | None = None) -> CrossCache:
        """Keys and values of cross-attention, projected once, for the ``cache`` of :meth:`forward`.

        Parameters
        ----------
        key_value : array_like, (batch, key_len, kdim) or (key_len, kdim)
            The output of an encoder.
        value : array_like, (batch, key_len, vdim) or (key_len, vdim), optional
            ``key_value`` by default.

        Returns
        -------
        CrossCache
            Calls ``layer(query, cache=cache)`` equal ``layer(query, key_value)``. Its method ``select`` repeats, drops
            and reorders sequences.

        Raises
        ------
        ValueError
            If a shape does not fit.
        TypeError
            If a dtype is not real.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> layer, rng = hw.MultiHeadAttention(8, 2, rng=0), np.random.default_rng(0)
        >>> token, encoded = rng.standard_normal((1, 1, 8)), rng.standard_normal((1, 5, 8))
        >>> cache = layer.make_cross_cache(encoded)
        >>> bool(np.allclose(layer(token, cache=cache)[0], layer(token, encoded)[0]))
        True
        """
        key, _, values = check_sequences(key_value, None, value)
        for name, x, width in (("key_value", key, self.kdim), ("value", values, self.vdim)):
            if x.shape[-1] != width:
                raise ValueError(f"{name}: shape {x.shape}, expected a last axis of {width}")
        dtype, _ = promote(("key_value", key), ("value", values))
        block, precision = self._block(self._norm(dtype)), self._defaults.get("precision")
        found = project({"key": key, "value": values}, block, dtype, precision, None)
        return CrossCache(found["k"], found["v"])

    def _block(self, norm: QKNorm | None, relative: Array | None = None) -> Block:
        widths = self.d_model, self.kdim, self.vdim
        heads = Heads(widths, self.d_model, self.num_heads, self.num_kv_heads, self.d_k)
        return Block(heads, LayerProjections(vars(self), self._packs), self.rope, norm, relative)

    def _norm(self, dtype: np.dtype[Any]) -> QKNorm | None:
        """The normalisation of queries and keys in ``dtype``."""
        if self.qk_norm is None:
            return None
        q, k = (self._cast(name, dtype) if self._has(name) else None for name in ("q_norm", "k_norm"))
        return QKNorm(q, k, self.qk_norm_eps)

    def _stored(self) -> Stored:
        outside = (
            {"relative_attention_bias.weight"}
            if "bias" in self._required and not self._has("relative_table")
            else set()
        )
        return Stored(self.num_kv_heads, self.qk_norm_offset, frozenset(outside))
