"""The parameters of multi-head attention: their shapes, initial values and state dicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array
from headwise._base.ieee import cast_dtype
from headwise._base.layer import Layer, Parameter, parameter_dtype
from headwise._nn.multi_head import glorot_uniform, split_heads
from headwise._nn.state_dict import read_state_dict, write_state_dict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, DTypeLike

    from headwise._base.typing import Array

_WEIGHTS = ("W_q", "W_k", "W_v", "W_o")
_BIASES = ("b_q", "b_k", "b_v", "b_o")


class MultiHeadParameters(Layer):
    """The base class of :class:`headwise.MultiHeadAttention`: its parameters without the computation."""

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
    _kv_width: int  # num_kv_heads * d_k

    def _initialize(self, rng: np.random.Generator, dtype: DTypeLike | None, *, bias: bool, sinks: bool) -> None:
        """Draw the weights; set biases and sinks to zero, or to None if the layer has none."""
        made = parameter_dtype(dtype)
        for name in (*_WEIGHTS, *_BIASES, "sinks"):
            parameter: Parameter[Any] = getattr(type(self), name)
            shape = parameter.shape(self)
            if name in _WEIGHTS:
                parameter.adopt(self, cast_dtype(glorot_uniform(rng, *shape), made))
            elif sinks if name == "sinks" else bias:
                parameter.adopt(self, np.zeros(shape, made))
            else:
                setattr(self, name, None)

    def state_dict(self, format: str = "headwise", *, prefix: str = "") -> dict[str, Array]:  # noqa: A002 (public)
        """Copies of the parameters, under the names of ``format``.

        Parameters
        ----------
        format : {"headwise", "torch", "llama", "bert"}
            The names of this library, of ``torch.nn.MultiheadAttention``, of Hugging Face's Llama and models with the
            same names, or of its BERT. All formats but "headwise" hold transposed weights, (out, in).
        prefix : str
            The beginning of all names.

        Returns
        -------
        dict of str to ndarray
            In the format "headwise": ``W_q`` and ``W_o`` (d_model, d_model), ``W_k`` (kdim, num_kv_heads * d_k),
            ``W_v`` (vdim, num_kv_heads * d_k), and the biases and ``sinks`` that are not None.

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
        return write_state_dict(self._parameters(), format=format, prefix=prefix)

    def load_state_dict(self, state: Mapping[str, ArrayLike], *, prefix: str = "", strict: bool = True) -> None:
        """Replace the parameters by copies of the entries of a state dict, in any format of :meth:`state_dict`.

        Parameters
        ----------
        state : mapping of str to array_like
            NumPy arrays, PyTorch tensors and so on, of the shapes that :meth:`state_dict` returns. The format is found
            from the names.
        prefix : str
            The beginning of the names of this layer's entries; other entries are ignored.
        strict : bool
            Whether entries without a parameter in the layer are an error.

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
        for name, array in read_state_dict(state, shapes, prefix=prefix, strict=strict).items():
            parameter: Parameter[Any] = getattr(type(self), name)
            parameter.adopt(self, array)

    def split_heads(self, x: ArrayLike) -> Array:
        """Split the features into the slices that belong to the heads.

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
        """Concatenate the features of the heads: the inverse of :meth:`split_heads`.

        Parameters
        ----------
        x : array_like, (…, num_heads, seq, d_k)

        Returns
        -------
        ndarray, (…, seq, d_model)

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
        return heads.swapaxes(-3, -2).reshape(*heads.shape[:-3], heads.shape[-2], self.d_model)

    def _parameters(self) -> dict[str, Array]:
        return {name: getattr(self, name) for name in (*_WEIGHTS, *_BIASES, "sinks") if self._has(name)}
