"""Gradients of the operations, and ``vjp``, which pairs each operation with its gradient."""
