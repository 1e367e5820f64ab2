"""The base class of layers that project queries, keys and values by heads: their parameters and state dicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array
from headwise._base.ieee import cast_dtype
from headwise._base.layer import Layer, Parameter, parameter_dtype
from headwise._base.scalars import check_size
from headwise._nn.multi_head import check_heads, glorot_uniform, split_heads
from headwise._nn.projections import Packs
from headwise._nn.state_dict import Stored, read_state_dict, write_state_dict

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import ArrayLike, DTypeLike

    from headwise._base.typing import Array

_WEIGHTS = ("W_q", "W_k", "W_v", "W_o")
_BIASES = ("b_q", "b_k", "b_v", "b_o")


class ProjectedLayer(Layer):
    """A layer with projections to the heads of queries, keys and values, and from the heads to the output."""

    W_q: Parameter[Array] = Parameter("d_model", "_q_width")
    W_k: Parameter[Array] = Parameter("d_model", "_kv_width")
    W_v: Parameter[Array] = Parameter("d_model", "_kv_width")
    W_o: Parameter[Array] = Parameter("_q_width", "d_model")
    b_q: Parameter[Any] = Parameter.optional("_q_width")
    b_k: Parameter[Any] = Parameter.optional("_kv_width")
    b_v: Parameter[Any] = Parameter.optional("_kv_width")
    b_o: Parameter[Any] = Parameter.optional("d_model")

    d_model: int
    num_heads: int
    d_k: int
    num_kv_heads: int
    _names: tuple[str, ...] = (*_WEIGHTS, *_BIASES)  # of all parameters
    _packs: Packs
    _q_width: int  # num_heads * d_k
    _kv_width: int  # num_kv_heads * d_k

    def _set_heads(self, d_model: object, num_heads: object, num_kv_heads: object, head_dim: object) -> None:
        """Set the sizes to the arguments of a constructor, checked."""
        if head_dim is None:
            self.d_model, self.num_heads = check_heads(d_model, num_heads)
            self.d_k = self.d_model // self.num_heads
        else:
            self.d_model, self.num_heads = check_size(d_model, "d_model"), check_size(num_heads, "num_heads")
            self.d_k = check_size(head_dim, "head_dim")
        self.num_kv_heads = self.num_heads if num_kv_heads is None else check_size(num_kv_heads, "num_kv_heads")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads: {num_kv_heads}, expected num_heads = {num_heads} to be divisible by it")
        self._q_width, self._kv_width = self.num_heads * self.d_k, self.num_kv_heads * self.d_k

    def _initialize(
        self,
        rng: np.random.Generator,
        dtype: DTypeLike | None,
        *,
        zeros: Collection[str],
        ones: Collection[str] = (),
    ) -> None:
        """Draw the weights, and set the other parameters to zeros, ones or None."""
        made = parameter_dtype(dtype)
        for name in self._names:
            parameter: Parameter[Any] = getattr(type(self), name)
            shape = parameter.shape(self)
            if name in _WEIGHTS:
                parameter.adopt(self, cast_dtype(glorot_uniform(rng, *shape), made))
            elif name in zeros or name in ones:
                parameter.adopt(self, np.zeros(shape, made) if name in zeros else np.ones(shape, made))
            else:
                setattr(self, name, None)
        self._packs = Packs()

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
            (vdim, num_kv_heads * d_k), ``W_o`` (num_heads * d_k, d_model), and those of the other parameters, such as
            biases and ``sinks``, that are not None.

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

    def _stored(self) -> Stored:
        return Stored(self.num_kv_heads)

    def _parameter_names(self) -> list[str]:
        return [name for name in self._names if self._has(name)]

    def _parameters(self) -> dict[str, Array]:
        return {name: getattr(self, name) for name in self._parameter_names()}
