"""Parameters of attention layers as state dicts, in the formats of :mod:`headwise._nn.state_formats`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._base.arrays import as_array, is_bfloat16, promote
from headwise._base.messages import label, shown
from headwise._base.scalars import check_flag
from headwise._base.typing import FLOAT64
from headwise._nn.state_formats import (
    FORMATS,
    as_rows,
    check_format,
    detect_format,
    entry_layout,
    entry_shape,
    inner_prefix,
    is_buffer,
    is_interleaved,
    is_own,
    stores_in_out,
    unsupported,
    why_extra,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headwise._base.typing import Array
    from headwise._nn.state_formats import Layout, Shapes

__all__ = ["FORMATS", "read_state_dict", "write_state_dict"]

# Bytes of a row in one block of a transposing copy, so that all of each cache line is used while it is cached. A copy
# of (4096, 4096) in float32 takes 0.32 s in blocks, and 1.05 s in one assignment.
_BLOCK_BYTES = 512
_NORMS = {"q_norm", "k_norm"}


class Stored(NamedTuple):
    """How a layer's parameters are stored, as far as their shapes do not tell."""

    kv_heads: int = 1  # for formats that store the rows of each key head together
    norm_offset: bool = False  # whether q_norm and k_norm are stored minus 1, except in "headwise"
    outside: frozenset[str] = frozenset()  # entries of attention that callers of the layer use


_PLAIN = Stored()


def read_state_dict(
    state: Mapping[str, Any],
    shapes: Shapes,
    stored: Stored = _PLAIN,
    *,
    prefix: str = "",
    format: str | None = None,  # noqa: A002 (as MultiHeadAttention.load_state_dict)
    strict: bool = True,
) -> dict[str, Array]:
    """The parameters of a multi-head attention layer from a state dict, whose format is found from its names.

    Parameters
    ----------
    state : mapping of str to array_like
        With the names of one of the formats of :meth:`headwise.MultiHeadAttention.state_dict`. PyTorch tensors may be
        bfloat16 or require gradients.
    shapes : mapping of str to tuple of int
        The parameters of the layer: ``W_q``, ``W_k``, ``W_v`` and ``W_o``, (in, out); those of ``b_q``, ``b_k``,
        ``b_v``, ``b_o``, ``sinks``, ``q_norm`` and ``k_norm`` that it has.
    stored : Stored
        How they are stored.
    prefix : str
        The beginning of the names of the layer's entries, including its dot. Other entries are ignored.
    format : str, optional
        The format; by default the one that the names tell.
    strict : bool
        Whether entries that do not belong to the format are an error. Entries of attention for which the layer has no
        parameter, such as biases and norms, always are an error: without them the layer would compute something else.

    Returns
    -------
    dict of str to ndarray
        One array for each of ``shapes``, C-contiguous, in the dtype of its entry, with its own memory.

    Raises
    ------
    ValueError
        If the names belong to no format or to several, if the format cannot describe such a layer, or if entries are
        missing, extra or of another shape or dtype. The message lists all of them, one a line, with the names and
        shapes of ``state``.
    TypeError
        If ``state`` is not a mapping with str keys, or ``prefix`` is not a str.

    Examples
    --------
    >>> import numpy as np
    >>> from headwise._nn.state_dict import read_state_dict
    >>> state = {f"self_attn.{name}_proj.weight": np.ones((4, 6), np.float32) for name in "qkv"}
    >>> state["self_attn.o_proj.weight"] = np.ones((6, 4), np.float32)
    >>> shapes = {"W_q": (6, 4), "W_k": (6, 4), "W_v": (6, 4), "W_o": (4, 6)}
    >>> {name: array.shape for name, array in read_state_dict(state, shapes, prefix="self_attn.").items()}
    {'W_q': (6, 4), 'W_k': (6, 4), 'W_v': (6, 4), 'W_o': (4, 6)}
    """
    strict = check_flag(strict, "strict")
    found = _names_under(state, prefix)
    if format is None:
        form, inner = detect_format(found, state, prefix, shapes)
    else:
        form = check_format(format)
        inner = inner_prefix(form, found)
    if reason := unsupported(form, shapes):
        raise ValueError(f"state: the format {form!r} {reason}")
    layout = entry_layout(form, shapes, {name[len(inner) :] for name in found if name.startswith(inner)})
    expected = {name: entry_shape(form, members, shapes) for name, members in layout.items()}

    entries, problems = _read_entries(state, prefix + inner, expected)
    for name in found:
        entry = name[len(inner) :] if name.startswith(inner) else ""
        if entry in layout or entry in stored.outside:
            continue
        if is_own(form, entry) or (strict and not is_buffer(entry, state[prefix + name])):
            shape = getattr(state[prefix + name], "shape", None)
            of_shape = "" if shape is None else f" (shape {tuple(shape)})"
            problems.append(f"{label(prefix + name)}: extra{of_shape}{why_extra(form, entry, shapes)}")
    if problems:
        raise ValueError("\n  ".join([f"state: in the format {form!r}, does not fit the layer:", *problems]))
    parameters = _unpack(form, layout, shapes, entries, stored)
    return {name: parameters[name] for name in shapes}


def write_state_dict(
    parameters: Mapping[str, Array],
    stored: Stored = _PLAIN,
    *,
    format: str = "headwise",  # noqa: A002 (as MultiHeadAttention.state_dict)
    prefix: str = "",
) -> dict[str, Array]:
    """The state dict from which :func:`read_state_dict` reads ``parameters``.

    Parameters
    ----------
    parameters : mapping of str to ndarray
        As :func:`read_state_dict` returns them.
    stored : Stored
        How the parameters are stored.
    format : str
        The format to write. "torch" has one ``in_proj_weight`` if query, key and value are equally wide, else three
        weights, as ``torch.nn.MultiheadAttention`` does.
    prefix : str
        The beginning of all names, including its dot.

    Returns
    -------
    dict of str to ndarray
        C-contiguous, with their own memory, each in the dtype of its parameter or to which its parameters promote.

    Raises
    ------
    ValueError
        If ``format`` is unknown or cannot describe such a layer.
    TypeError
        If ``prefix`` is not a str.

    Examples
    --------
    >>> import numpy as np
    >>> from headwise._nn.state_dict import write_state_dict
    >>> parameters = {name: np.eye(4) for name in ("W_q", "W_k", "W_v", "W_o")}
    >>> {name: array.shape for name, array in write_state_dict(parameters, format="torch", prefix="attn.").items()}
    {'attn.in_proj_weight': (12, 4), 'attn.out_proj.weight': (4, 4)}
    """
    _check_prefix(prefix)
    check_format(format)
    shapes = {name: array.shape for name, array in parameters.items()}
    if reason := unsupported(format, shapes):
        raise ValueError(f"format: {shown(format)} {reason}")
    if stored.norm_offset and format != "headwise":
        dtype = parameters["W_q"].dtype
        parameters = {n: (a.astype(FLOAT64) - 1.0).astype(dtype) if n in _NORMS else a for n, a in parameters.items()}
    state: dict[str, Array] = {}
    for name, members in entry_layout(format, shapes, set()).items():
        _, dtype = promote(*((member, parameters[member]) for member in members))
        entry = state[prefix + name] = np.empty(entry_shape(format, members, shapes), dtype)
        for rows, member, part in _parts(format, entry, members, shapes, stored):
            source = parameters[member][..., part].T
            _copy_into(*((rows.T, source.T) if stores_in_out(format, members) else (rows, source)))
    return state


def _check_prefix(prefix: object) -> None:
    if not isinstance(prefix, str):
        raise TypeError(f"prefix: {type(prefix).__name__}, expected a str")


def _names_under(state: object, prefix: str) -> list[str]:
    """The names of ``state`` that begin with ``prefix``, without it."""
    _check_prefix(prefix)
    if not isinstance(state, Mapping):
        raise TypeError(f"state: {type(state).__name__}, expected a mapping from names to arrays")
    for name in state:
        if not isinstance(name, str):
            raise TypeError(f"state: key {shown(name)} of type {type(name).__name__}, expected names")
    return [name[len(prefix) :] for name in state if name.startswith(prefix)]


def _read_entries(state: Mapping[str, Any], start: str, expected: Shapes) -> tuple[dict[str, Array], list[str]]:
    """The entries whose names are ``start`` and a name in ``expected``, by the latter, and a line on each problem."""
    entries: dict[str, Array] = {}
    problems: list[str] = []
    for name, shape in expected.items():
        if start + name not in state:
            problems.append(f"{label(start + name)}: missing, expected shape {shape}")
            continue
        try:
            entry = entries[name] = _as_array(state[start + name], label(start + name))
        except (TypeError, ValueError) as error:
            problems.append(str(error))
            continue
        if entry.shape != shape:
            problems.append(f"{label(start + name)}: shape {entry.shape}, expected {shape}")
        if not _is_floating(entry.dtype):
            problems.append(
                f"{label(start + name)}: dtype {entry.dtype}, expected float16, bfloat16, float32 or float64"
            )
    return entries, problems


def _unpack(
    form: str, layout: Layout, shapes: Shapes, entries: Mapping[str, Array], stored: Stored
) -> dict[str, Array]:
    """The parameters in the entries, as copies (in, out)."""
    parameters: dict[str, Array] = {}
    for name, members in layout.items():
        entry = entries[name]
        for member in members:
            parameters[member] = np.empty(shapes[member], entry.dtype.newbyteorder("="))
        for rows, member, part in _parts(form, entry, members, shapes, stored):
            _copy_into(parameters[member][..., part], rows.T)
    if stored.norm_offset and form != "headwise":
        for name in _NORMS & parameters.keys():
            parameters[name] = parameters[name].astype(FLOAT64) + 1.0  # exact for float32 above 2^-29 and 16-bit types
    return parameters


def _parts(
    form: str, entry: Array, members: tuple[str, ...], shapes: Shapes, stored: Stored
) -> Iterator[tuple[Array, str, slice]]:
    """The rows (out, in) of an entry, each with its parameter and the outputs of the parameter that it holds."""
    rows = as_rows(form, members, entry)
    blocks = stored.kv_heads if is_interleaved(form) and len(members) > 1 else 1
    first = 0
    for block in range(blocks):
        for member in members:
            count = shapes[member][-1] // blocks
            yield rows[first : first + count], member, slice(block * count, (block + 1) * count)
            first += count


def _as_array(x: Any, name: str) -> Array:
    """:func:`as_array` that also reads PyTorch tensors that require gradients, as those of ``state_dict`` may."""
    return as_array(x.detach() if getattr(x, "requires_grad", False) is True else x, name)


def _is_floating(dtype: np.dtype[Any]) -> bool:
    return (dtype.kind == "f" and dtype.itemsize in (2, 4, 8)) or is_bfloat16(dtype)


def _copy_into(to: Array, a: Array) -> None:
    """``to[...] = a``, in blocks of columns if the assignment transposes."""
    step = a.shape[-1] if a.flags.c_contiguous else _BLOCK_BYTES // a.itemsize
    for start in range(0, a.shape[-1], step):
        to[..., start : start + step] = a[..., start : start + step]
