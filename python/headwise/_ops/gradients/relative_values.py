"""Gradients of attention by its relative values, and by its weights through them.

With the formulas of :mod:`headwise._ops.attention.relative_values`, and dropout as in the forward pass::

    d_relative_values = sum over queries of dropout(mass).T @ d_output
    d_P[j]            = ... + (d_output @ relative_values.T)[M + t(j)]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from headwise._base.ieee import ieee
from headwise._base.outputs import allocate
from headwise._numpy.attention import masked_product
from headwise._ops.attention.relative_values import (
    heads_of,
    mass_by_distance,
    mass_of_weights,
    rows_by_table,
    weight_gradients,
)
from headwise._runtime.backend import current

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headwise._base.attention_spec import AttentionSpec
    from headwise._base.typing import Array


class RelativeValues(NamedTuple):
    """The relative values, (heads or 1, 2 M + 1, value_dim), and the sum of their gradients, if it is asked for."""

    table: Array
    d_table: Array | None

    @ieee
    def d_weights(self, rows: Mapping[str, Array], key: Array, spec: AttentionSpec) -> Array:
        """The gradient by the weights of a block of query rows; that by the relative values is added to the sum.

        ``rows`` has the arrays of :class:`headwise._ops.gradients.attention.Arrays` of the block, by name.
        """
        d_output = rows["d_output"]
        if self.d_table is not None:
            self._add_gradient(self.d_table, self._mass(rows, key, spec), d_output, spec.precision)
        d_mass = rows_by_table(np.ascontiguousarray(d_output), self.table.swapaxes(1, 2), spec.precision)
        d_weights = weight_gradients(d_mass, spec, key.shape[2])
        if "d_weights" in rows:
            d_weights += rows["d_weights"]
        return d_weights

    @staticmethod
    def _add_gradient(d_table: Array, mass: Array, d_output: Array, precision: str) -> None:
        """Add ``mass.T @ d_output``, where a mass of 0 adds 0, to the gradient by each head's table."""
        for n, heads in enumerate(heads_of(d_table)):
            columns = np.ascontiguousarray(mass[:, heads].reshape((-1, mass.shape[3])).T)
            gradients = np.ascontiguousarray(d_output[:, heads].reshape((columns.shape[1], d_output.shape[3])))
            if np.isfinite(gradients).all():
                part = allocate(d_table[n].shape, d_table.dtype)
                current().linear(columns, gradients, None, part, precision)
            else:
                part = masked_product(columns, gradients)
            d_table[n] += part

    def _mass(self, rows: Mapping[str, Array], key: Array, spec: AttentionSpec) -> Array:
        query, width = rows["query"], self.table.shape[1]
        if spec.dropout_keep is None:
            return mass_by_distance(query, key, rows["lse"], spec, width)
        weights = allocate((*query.shape[:3], key.shape[2]), rows["lse"].dtype)
        nothing, no_values = allocate((*query.shape[:3], 0), query.dtype), allocate((*key.shape[:3], 0), key.dtype)
        current().attention(query, key, no_values, nothing, weights, None, spec)
        return mass_of_weights(weights, spec, width)
