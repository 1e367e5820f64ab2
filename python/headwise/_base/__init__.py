"""Shared by all packages above: input and output arrays, checks of scalars, types, and the attention spec."""
