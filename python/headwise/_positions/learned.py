"""Learned embeddings of absolute positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise._base.arrays import as_array, check_dtype, promote
from headwise._base.ieee import cast_dtype, ieee
from headwise._base.layer import Layer, LayerGradients, Parameter, parameter_dtype
from headwise._base.outputs import check_room, finalize
from headwise._base.scalars import check_real, check_rng, check_size
from headwise._ops.gradients.results import as_gradient, finish, gradients_of
from headwise._positions.position_table import embedded_rows, row_positions

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, DTypeLike

    from headwise._base.typing import Array, Rng

__all__ = ["LearnedPositionalEmbedding", "fresh_embeddings"]


def fresh_embeddings(rng: Rng, rows: int, d_model: int, dtype: DTypeLike | None) -> Array:
    """Initial embeddings (rows, d_model): normal with standard deviation 0.02, as in BERT and GPT-2."""
    made = parameter_dtype(dtype)
    check_room(rows, d_model)
    return cast_dtype(check_rng(rng).normal(0.0, 0.02, (rows, d_model)), made)


class LearnedPositionalEmbedding(Layer):
    """Adds a trainable vector for each position, as in BERT [1]_ and GPT-2.

    Parameters
    ----------
    max_len : int
        Number of positions; a longer input is an error.
    d_model : int
        Number of features.
    rng : int or numpy.random.Generator, optional
        Draws the embeddings: normal with standard deviation 0.02.
    dtype : dtype, optional
        Of the embeddings; float64 by default.

    Attributes
    ----------
    embeddings : ndarray, (max_len, d_model)
        May be replaced or changed in place.

    Raises
    ------
    ValueError
        If a size is not positive.

    References
    ----------
    .. [1] J. Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2018,
       section 3. Also J. Gehring et al., "Convolutional Sequence to Sequence Learning", 2017, section 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> learned = hw.LearnedPositionalEmbedding(max_len=3, d_model=2, rng=0)
    >>> learned.embeddings = np.zeros((3, 2))
    >>> learned.update_embeddings([[1.0, -1.0]], learning_rate=0.5)
    >>> learned(np.ones((1, 2, 2)))
    array([[[0.5, 1.5],
            [1. , 1. ]]])
    """

    embeddings: Parameter[Array] = Parameter("max_len", "d_model")

    max_len: int
    d_model: int

    def __init__(self, max_len: int, d_model: int, *, rng: Rng = None, dtype: DTypeLike | None = None) -> None:
        self.max_len = check_size(max_len, "max_len")
        self.d_model = check_size(d_model, "d_model")
        self.embeddings = fresh_embeddings(rng, self.max_len, self.d_model, dtype)

    @ieee
    def forward(self, x: ArrayLike, positions: ArrayLike | None = None, *, offset: int = 0) -> Array:
        """Add the embedding of its position to each row of ``x``.

        Parameters
        ----------
        x : array_like, (…, seq, d_model)
            Embeddings of tokens.
        positions : array_like of int, (seq,) or (…, seq), optional
            The position of each row, 0 to ``max_len - 1``; ``offset .. offset + seq - 1`` by default.
        offset : int
            The position of the first row, if ``positions`` are not given.

        Returns
        -------
        ndarray, (…, seq, d_model)
            Of the floating dtype of ``x`` (float64 for integers); float16 and bfloat16 are computed in float32 and
            rounded once.

        Raises
        ------
        ValueError
            If a position is outside 0 to ``max_len - 1``, the last axis is not ``d_model`` wide, the shape of
            ``positions`` does not fit, or both ``positions`` and ``offset`` are given.
        TypeError
            If the dtype of ``x`` is not real, or ``positions`` or ``offset`` are not integers.
        """
        rows, dtype, result_dtype = embedded_rows(x, self.d_model)
        where = row_positions(positions, offset, rows.shape)
        if where is None:
            self._check_length("x", rows.shape)
            added = self._cast("embeddings", dtype)[: rows.shape[-2]]
        else:
            self._check_range(where, "positions" if positions is not None else "offset")
            added = self._cast("embeddings", dtype)[where]
        return finalize(rows + added, None, result_dtype)

    if TYPE_CHECKING:
        __call__ = forward

    def vjp(
        self, x: ArrayLike, positions: ArrayLike | None = None, *, offset: int = 0
    ) -> tuple[Array, Callable[[ArrayLike], LayerGradients]]:
        """The result of :meth:`forward`, and a function that computes gradients.

        Parameters
        ----------
        x, positions, offset
            As for :meth:`forward`.

        Returns
        -------
        output : ndarray, (…, seq, d_model)
        pullback : callable
            ``pullback(d_output)`` returns ``inputs``, with the gradient ``d_x``, and ``parameters``, with that of
            ``embeddings``, (max_len, d_model): the sum over the rows of each position.

        Raises
        ------
        ValueError, TypeError
            As :meth:`forward`.

        Examples
        --------
        >>> import numpy as np
        >>> import headwise as hw
        >>> learned = hw.LearnedPositionalEmbedding(max_len=3, d_model=2, rng=0)
        >>> output, pullback = learned.vjp(np.zeros((5, 2, 2)))
        >>> pullback(np.ones((5, 2, 2))).parameters["embeddings"]
        array([[5., 5.],
               [5., 5.],
               [0., 0.]])
        """
        rows = as_array(x, "x")
        where = row_positions(positions, offset, rows.shape) if rows.ndim > 1 else None
        output = self.forward(rows, positions, offset=offset)
        compute, _ = promote(("x", rows))
        stored = vars(self)["embeddings"].array.dtype

        @ieee
        def pullback(d_output: ArrayLike) -> LayerGradients:
            d = as_gradient(d_output, "d_output", output.shape, output.dtype, "output")
            total = np.zeros((self.max_len, self.d_model), compute)
            if where is None:
                lead = tuple(range(d.ndim - 2))
                total[: d.shape[-2]] = d.sum(axis=lead, dtype=compute) if lead else d
            else:
                np.add.at(total, np.broadcast_to(where, d.shape[:-1]), cast_dtype(d, compute))
            by_x = gradients_of(("x",), {"x": finish(d, rows, output.dtype)})
            return LayerGradients(by_x, {"embeddings": cast_dtype(total, stored)})

        return output, pullback

    @ieee
    def update_embeddings(self, gradients: ArrayLike, learning_rate: float = 0.001) -> None:
        """A step of gradient descent, in place: ``embeddings -= learning_rate * gradients``.

        Parameters
        ----------
        gradients : array_like, (max_len, d_model), (seq, d_model) or (batch, seq, d_model)
            Gradients of the loss with respect to the embeddings or to the output of :meth:`forward`. A batch is summed.
            The embeddings of positions from ``seq`` on stay unchanged.
        learning_rate : float
            The factor of the step.

        Raises
        ------
        ValueError
            If a shape does not fit, the learning rate is not finite, or the embeddings are read-only.
        TypeError
            If the dtype of the gradients is not real, or the learning rate is not a real number.
        """
        step = as_array(gradients, "gradients")
        check_dtype(step.dtype, "gradients")
        if step.ndim not in (2, 3) or step.shape[-1] != self.d_model:
            raise ValueError(
                f"gradients: shape {step.shape}, expected (max_len, d_model) = ({self.max_len}, {self.d_model}), "
                f"(seq, {self.d_model}) or (batch, seq, {self.d_model})"
            )
        self._check_length("gradients", step.shape)
        rate = check_real(learning_rate, "learning_rate")
        embeddings = self.embeddings
        if not embeddings.flags.writeable:
            raise ValueError("embeddings: a read-only array, expected one that can be updated in place")
        wide = np.result_type(embeddings.dtype, np.float32)
        total = step.astype(wide, copy=False) if step.ndim == 2 else step.sum(axis=0, dtype=wide)
        rows = embeddings[: len(total)]
        rows[...] = rows.astype(wide, copy=False) - rate * total

    def _check_range(self, where: Array, name: str) -> None:
        outside = where[(where < 0) | (where >= self.max_len)]
        if outside.size:
            raise ValueError(f"{name}: position {outside[0]}, expected 0 to max_len - 1 = {self.max_len - 1}")

    def _check_length(self, name: str, shape: tuple[int, ...]) -> None:
        if shape[-2] > self.max_len:
            raise ValueError(
                f"{name}: shape {shape} is a sequence of {shape[-2]}, expected at most max_len = {self.max_len}"
            )
