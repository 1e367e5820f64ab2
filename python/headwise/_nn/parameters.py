"""The parameters of multi-head attention: their shapes, initial values, state dicts and caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from headwise._base.arrays import as_array, promote
from headwise._base.ieee import cast_dtype
from headwise._base.layer import Layer, Parameter, parameter_dtype
from headwise._kv_cache.cache import KVCache
from headwise._nn.cross_cache import CrossCache
from headwise._nn.multi_head import Block, Heads, check_sequences, glorot_uniform, project, split_heads
from headwise._nn.projections import LayerProjections
from headwise._nn.qk_norm import QKNorm
from headwise._nn.state_dict import Stored, read_state_dict, write_state_dict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, DTypeLike

    from headwise._base.typing import Array
    from headwise._nn.projections import Packs
    from headwise._ops.attention.options import AttentionOptions
    from headwise._positions.rotary import RotaryPositionalEmbedding

_WEIGHTS = ("W_q", "W_k", "W_v", "W_o")
_BIASES = ("b_q", "b_k", "b_v", "b_o")
_NORMS = ("q_norm", "k_norm")


class MultiHeadParameters(Layer):
    """The base class of :class:`headwise.MultiHeadAttention`: its parameters without the computation."""

    W_q: Parameter[Array] = Parameter("d_model", "_q_width")
    W_k: Parameter[Array] = Parameter("kdim", "_kv_width")
    W_v: Parameter[Array] = Parameter("vdim", "_kv_width")
    W_o: Parameter[Array] = Parameter("_q_width", "d_model")
    b_q: Parameter[Any] = Parameter.optional("_q_width")
    b_k: Parameter[Any] = Parameter.optional("_kv_width")
    b_v: Parameter[Any] = Parameter.optional("_kv_width")
    b_o: Parameter[Any] = Parameter.optional("d_model")
    sinks: Parameter[Any] = Parameter.optional("num_heads")
    q_norm: Parameter[Any] = Parameter.optional("_q_norm_width")
    k_norm: Parameter[Any] = Parameter.optional("_k_norm_width")

    d_model: int
    num_heads: int
    d_k: int
    num_kv_heads: int
    kdim: int
    vdim: int
    qk_norm: Literal["head", "full"] | None
    qk_norm_eps: float
    qk_norm_offset: bool
    rope: RotaryPositionalEmbedding | None
    _defaults: AttentionOptions
    _packs: Packs
    _required: tuple[str, ...]
    _q_width: int  # num_heads * d_k
    _kv_width: int  # num_kv_heads * d_k
    _q_norm_width: int
    _k_norm_width: int

    def _initialize(self, rng: np.random.Generator, dtype: DTypeLike | None, *, biases: str, sinks: bool) -> None:
        """Draw the weights; set biases and sinks to zero and norms to one, or to None if the layer has none."""
        made = parameter_dtype(dtype)
        present = {f"b_{letter}" for letter in biases} | ({"sinks"} if sinks else set())
        for name in (*_WEIGHTS, *_BIASES, "sinks", *_NORMS):
            parameter: Parameter[Any] = getattr(type(self), name)
            shape = parameter.shape(self)
            if name in _WEIGHTS:
                parameter.adopt(self, cast_dtype(glorot_uniform(rng, *shape), made))
            elif name in present:
                parameter.adopt(self, np.zeros(shape, made))
            elif name in _NORMS and self.qk_norm is not None:
                parameter.adopt(self, np.ones(shape, made))
            else:
                setattr(self, name, None)

    def state_dict(self, format: str = "headwise", *, prefix: str = "") -> dict[str, Array]:  # noqa: A002 (public)
        """Copies of the parameters, under the names of ``format``.

        Parameters
        ----------
        format : str
            The names and the layout of the entries: "headwise", "torch" (``torch.nn.MultiheadAttention``), or those of
            models in transformers: "llama" (also Mistral, Qwen, Gemma, OLMo 2, gpt-oss), "bert", "out_proj" (Whisper,
            BART, OPT, CLIP, SigLIP, wav2vec 2, GPT-J), "gpt2", "neox", "bloom", "falcon", "t5", "phi3", "mpt" and
            "modernbert"; "timm" for vision transformers of that package. Weights are (in, out) in "headwise" and
            "gpt2", else (out, in).
        prefix : str
            The beginning of all names.

        Returns
        -------
        dict of str to ndarray
            In the format "headwise": ``W_q`` (d_model, num_heads * d_k), ``W_k`` (kdim, num_kv_heads * d_k), ``W_v``
            (vdim, num_kv_heads * d_k), ``W_o`` (num_heads * d_k, d_model), and the biases, ``sinks``, ``q_norm`` and
            ``k_norm`` that are not None.

        Raises
        ------
        ValueError
            If the format is unknown, or cannot describe the layer.
        TypeError
            If ``prefix`` is not a str.

        Examples
        --------
        >>> import headwise as hw
        >>> list(hw.MultiHeadAttention(8, 2, bias=True).state_dict("torch", prefix="attn."))
        ['attn.in_proj_weight', 'attn.in_proj_bias', 'attn.out_proj.weight', 'attn.out_proj.bias']
        """
        return write_state_dict(self._parameters(), self._stored(), format=format, prefix=prefix)

    def load_state_dict(
        self,
        state: Mapping[str, ArrayLike],
        prefix: str = "",
        format: str | None = None,  # noqa: A002 (as state_dict)
        *,
        strict: bool = True,
    ) -> None:
        """Replace the parameters by copies of the entries of a state dict, in any format of :meth:`state_dict`.

        Parameters
        ----------
        state : mapping of str to array_like
            NumPy arrays, PyTorch tensors and so on, of the shapes that :meth:`state_dict` returns.
        prefix : str
            The beginning of the names of this layer's entries; other entries are ignored.
        format : str, optional
            The format; by default the one that the names tell.
        strict : bool
            Whether entries that do not belong to attention are an error. Entries of attention for which the layer has
            no parameter, such as biases, norms and sinks, always are one.

        Raises
        ------
        ValueError
            If entries are missing or extra, or have a wrong shape or dtype. The message lists all of them, and nothing
            is loaded.
        TypeError
            If ``state`` is not a mapping with str keys, or another argument has a wrong type.

        Examples
        --------
        >>> import headwise as hw
        >>> one, other = hw.MultiHeadAttention(8, 2, rng=1), hw.MultiHeadAttention(8, 2, rng=2)
        >>> other.load_state_dict(one.state_dict("llama"))
        >>> bool((one.W_k == other.W_k).all())
        True
        """
        shapes = {name: array.shape for name, array in self._parameters().items()}
        read = read_state_dict(state, shapes, self._stored(), prefix=prefix, format=format, strict=strict)
        slots = {name: getattr(type(self), name).slot(self, array) for name, array in read.items()}
        vars(self).update(slots)  # all at once: an interruption comes before or after

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

    def split_heads(self, x: ArrayLike) -> Array:
        """Split the features into the slices that belong to the heads.

        Parameters
        ----------
        x : array_like, (…, seq, num_heads * d_k)

        Returns
        -------
        ndarray, (…, num_heads, seq, d_k)
            A view where the strides allow.

        Raises
        ------
        ValueError
            If the last axis has another width.

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
        if rows.ndim < 2 or rows.shape[-1] != self._q_width:
            raise ValueError(f"x: shape {rows.shape}, expected (…, seq, num_heads * d_k = {self._q_width})")
        return split_heads(rows, self.num_heads)

    def combine_heads(self, x: ArrayLike) -> Array:
        """Concatenate the features of the heads: the inverse of :meth:`split_heads`.

        Parameters
        ----------
        x : array_like, (…, num_heads, seq, d_k)

        Returns
        -------
        ndarray, (…, seq, num_heads * d_k)

        Raises
        ------
        ValueError
            If the number or the width of the heads does not fit.

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
        return heads.swapaxes(-3, -2).reshape(*heads.shape[:-3], heads.shape[-2], self._q_width)

    def _block(self, norm: QKNorm | None) -> Block:
        widths = self.d_model, self.kdim, self.vdim
        heads = Heads(widths, self.d_model, self.num_heads, self.num_kv_heads, self.d_k)
        return Block(heads, LayerProjections(vars(self), self._packs), self.rope, norm)

    def _norm(self, dtype: np.dtype[Any]) -> QKNorm | None:
        """The normalisation of queries and keys in ``dtype``."""
        if self.qk_norm is None:
            return None
        q, k = (self._cast(name, dtype) if self._has(name) else None for name in ("q_norm", "k_norm"))
        return QKNorm(q, k, self.qk_norm_eps)

    def _stored(self) -> Stored:
        outside = {"relative_attention_bias.weight"} if "bias" in self._required else set()
        return Stored(self.num_kv_heads, self.qk_norm_offset, frozenset(outside))

    def _parameter_names(self) -> list[str]:
        return [name for name in (*_WEIGHTS, *_BIASES, "sinks", *_NORMS) if self._has(name)]

    def _parameters(self) -> dict[str, Array]:
        return {name: getattr(self, name) for name in self._parameter_names()}
