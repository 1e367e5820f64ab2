"""Parameters of attention layers under the names that checkpoints give them.

A layout maps the name of each entry to the parameters in it, which stand one after another along its first axis. Only
"headwise" keeps weights as (in, out), applied as ``x @ W``; in the others they are (out, in).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._base.arrays import as_array, is_bfloat16, promote
from headwise._base.scalars import check_flag

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headwise._base.typing import Array

    Shape = tuple[int, ...]
    Shapes = Mapping[str, Shape]
    Layout = dict[str, tuple[str, ...]]

__all__ = ["FORMATS", "read_state_dict", "write_state_dict"]


def _one_by_one(weight: str, bias: str, *names: str) -> Layout:
    """The entries of four linear maps that are named alike, query, key, value and output."""
    layout: Layout = {}
    for name, letter in zip(names, "qkvo", strict=True):
        layout |= {weight.format(name): (f"W_{letter}",), bias.format(name): (f"b_{letter}",)}
    return layout


_SINKS: Layout = {"sinks": ("sinks",)}
_HEADWISE = _one_by_one("W_{}", "b_{}", *"qkvo") | _SINKS

# torch.nn.MultiheadAttention, whose inputs are all as wide as the output, and one made with kdim or vdim.
_TORCH_BIASES: Layout = {"in_proj_bias": ("b_q", "b_k", "b_v"), "out_proj.weight": ("W_o",), "out_proj.bias": ("b_o",)}
_TORCH_PACKED: Layout = {"in_proj_weight": ("W_q", "W_k", "W_v"), **_TORCH_BIASES}
_TORCH_SEPARATE: Layout = {f"{letter}_proj_weight": (f"W_{letter}",) for letter in "qkv"} | _TORCH_BIASES

# transformers: LlamaAttention, Mistral's, Qwen2's and so on; sinks are GptOssAttention's.
_LLAMA = _one_by_one("{}.weight", "{}.bias", "q_proj", "k_proj", "v_proj", "o_proj") | _SINKS
# transformers: BertAttention, RoBERTa's and so on.
_BERT = _one_by_one("{}.weight", "{}.bias", "self.query", "self.key", "self.value", "output.dense")

# Every name of each format; no layer has a parameter for add_bias_kv's entries, which no layout holds.
_NAMES: dict[str, list[str]] = {
    "headwise": list(_HEADWISE),
    "torch": [*(_TORCH_PACKED | _TORCH_SEPARATE), "bias_k", "bias_v"],
    "llama": list(_LLAMA),
    "bert": list(_BERT),
}
FORMATS = tuple(_NAMES)
# In a whole BertLayer "output.dense" is the feed-forward network's, and attention's begin with this.
_BERT_OUTER = "attention."
_STRIP_BYTES = 512  # of a row; (4096, 4096) in float32 takes 0.32 s so, 1.05 s at once
_LISTED = 12  # names in a message about what was found, of a state that may be a whole model's


def read_state_dict(
    state: Mapping[str, Any], shapes: Shapes, *, prefix: str = "", strict: bool = True
) -> dict[str, Array]:
    """The parameters of a multi-head attention layer, from a state dict in any format that its names tell.

    Parameters
    ----------
    state : mapping of str to array_like
        In the names of "headwise" (``W_q``, ``b_q``, …), "torch" (``torch.nn.MultiheadAttention``), "llama"
        (``q_proj.weight``, … in ``transformers``) or "bert" (``self.query.weight``, …, also under ``attention.``).
        PyTorch's tensors are taken as they are, bfloat16 and those that require gradients included.
    shapes : mapping of str to tuple of int
        What the layer has: ``W_q``, ``W_k``, ``W_v`` and ``W_o``, (in, out); ``b_q``, ``b_k``, ``b_v``, ``b_o`` and
        ``sinks`` where it has these.
    prefix : str
        What the names of the layer's entries begin with, its dot included. Other entries are not looked at.
    strict : bool
        Whether entries that are no part of the format are an error. Attention's own which the layer has no parameter
        for, as biases, always are: without them the layer would compute something else.

    Returns
    -------
    dict of str to ndarray
        One for each of ``shapes``, C-contiguous, in the dtype of its entry and in memory of its own.

    Raises
    ------
    ValueError
        If the names are of no format or of more than one, if the format cannot describe such a layer, or if entries are
        missing, extra or of another shape or dtype: all of them, one a line, in the names and shapes of ``state``.
    TypeError
        If ``state`` is not a mapping with names for keys, or ``prefix`` not a str.

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
    form, inner = _detect(found, state, prefix)
    if reason := _beyond(form, shapes):
        raise ValueError(f"state: in the format {form!r}, {reason}")
    start = prefix + inner
    layout = _layout(form, shapes, {name[len(inner) :] for name in found if name.startswith(inner)})

    problems: list[str] = []
    entries: dict[str, Array] = {}
    for name, parts in layout.items():
        expected = _entry_shape(form, parts, shapes)
        if inner + name not in found:
            problems.append(f"{start}{name}: missing, expected shape {expected}")
            continue
        try:
            entry = entries[name] = _as_array(state[start + name], start + name)
        except (TypeError, ValueError) as error:
            problems.append(str(error))
            continue
        if entry.shape != expected:
            problems.append(f"{start}{name}: shape {entry.shape}, expected {expected}")
        if not _is_floating(entry.dtype):
            problems.append(f"{start}{name}: dtype {entry.dtype}, expected float16, bfloat16, float32 or float64")
    for name in found:
        own = name[len(inner) :] if name.startswith(inner) else ""
        if own not in layout and (strict or own in _NAMES[form]):
            shape = getattr(state[prefix + name], "shape", None)
            of_shape = "" if shape is None else f" (shape {tuple(shape)})"
            problems.append(f"{prefix}{name}: extra{of_shape}{_why_extra(form, own, shapes)}")
    if problems:
        raise ValueError("\n  ".join([f"state: in the format {form!r}, does not fit the layer:", *problems]))

    parameters: dict[str, Array] = {}
    for name, parts in layout.items():
        row = 0
        for part in parts:
            rows = shapes[part][0 if form == "headwise" else -1]
            parameters[part] = _copy(_turned(form, entries[name][row : row + rows]))
            row += rows
    return {name: parameters[name] for name in shapes}


def write_state_dict(
    parameters: Mapping[str, Array], *, format: str = "headwise", prefix: str = ""
) -> dict[str, Array]:
    """The state dict that :func:`read_state_dict` reads ``parameters`` from.

    Parameters
    ----------
    parameters : mapping of str to ndarray
        As :func:`read_state_dict` returns them.
    format : {"headwise", "torch", "llama", "bert"}
        Whose names and layout to write. "torch" has one ``in_proj_weight`` where query, key and value are equally wide,
        as ``torch.nn.MultiheadAttention`` has, else three weights.
    prefix : str
        What all names begin with, its dot included.

    Returns
    -------
    dict of str to ndarray
        C-contiguous, in memory of their own, each in the dtype of its parameter (what several parameters promote to).

    Raises
    ------
    ValueError
        If ``format`` is unknown or cannot describe such a layer: grouped key and value heads and sinks in "torch" and
        "bert", biases of some projections only in "torch".
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
    if not isinstance(format, str) or format not in FORMATS:
        raise ValueError(f"format: {format!r}, expected {_either(map(repr, FORMATS))}")
    shapes = {name: array.shape for name, array in parameters.items()}
    if reason := _beyond(format, shapes):
        raise ValueError(f"format: {format!r}, but {reason}")
    state: dict[str, Array] = {}
    for name, parts in _layout(format, shapes, set()).items():
        entry = np.empty(_entry_shape(format, parts, shapes), promote(*((part, parameters[part]) for part in parts))[1])
        row = 0
        for part in parts:
            turned = _turned(format, parameters[part])
            _fill(entry[row : row + len(turned)], turned)
            row += len(turned)
        state[prefix + name] = entry
    return state


# --- formats ---


def _detect(found: list[str], state: Mapping[str, Any], prefix: str) -> tuple[str, str]:
    """The format whose names are among ``found``, and what these names begin with."""
    seen: dict[tuple[str, str], list[str]] = {}
    for form, inner in [*((form, "") for form in FORMATS), ("bert", _BERT_OUTER)]:
        shared = ("output.dense.",) if form == "bert" and not inner else ("sinks",)
        names = [inner + name for name in _NAMES[form] if not name.startswith(shared)]
        if here := [name for name in names if name in found]:
            seen[form, inner] = here
    if len(seen) == 1:
        return next(iter(seen))
    if seen:
        listed = " and ".join(f"{form!r} ({_some(prefix + name for name in here)})" for (form, _), here in seen.items())
        raise ValueError(f"state: names of the formats {listed}, expected names of one")
    known = "; ".join(f"{form!r} ({', '.join(names)})" for form, names in _NAMES.items())
    where = f"under the prefix {prefix!r}" if prefix else "in it"
    there = f"only {_some(prefix + name for name in found)}" if found else "none at all"
    raise ValueError(f"state: no names of a known format {where}, {there}{_hint(state)}; expected those of {known}")


def _hint(state: Mapping[str, Any]) -> str:
    """Prefixes under which the entries of ``state`` would be known."""
    marks = tuple(
        f".{name}" for name in ("W_q", "in_proj_weight", "q_proj_weight", "q_proj.weight", "self.query.weight")
    )
    starts = dict.fromkeys(name[: -len(mark) + 1] for mark in marks for name in state if name.endswith(mark))
    return f"; known ones have the prefix {_some(map(repr, starts))}" if starts else ""


def _layout(form: str, shapes: Shapes, found: set[str]) -> Layout:
    """The entries that hold the parameters of ``shapes``; where "torch" has two ways, as it is in ``found``."""
    packed = len({shapes[f"W_{letter}"] for letter in "qkv"}) == 1
    if "in_proj_weight" not in found and found & {"q_proj_weight", "k_proj_weight", "v_proj_weight"}:
        packed = False
    layouts = {
        "headwise": _HEADWISE,
        "torch": _TORCH_PACKED if packed else _TORCH_SEPARATE,
        "llama": _LLAMA,
        "bert": _BERT,
    }
    return {name: parts for name, parts in layouts[form].items() if all(part in shapes for part in parts)}


def _beyond(form: str, shapes: Shapes) -> str:
    """Why a layer of these shapes has no state dict of the format; empty if it has."""
    if form not in ("torch", "bert"):
        return ""
    widths = {name: shapes[name][1] for name in ("W_q", "W_k", "W_v")}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} {shapes[name]}" for name in widths)
        return (
            f"which has no grouped key and value heads, as the layer has ({listed}); 'headwise' and 'llama' have them"
        )
    if "sinks" in shapes:
        return "which has no sinks, as the layer has; 'headwise' and 'llama' have them"
    biases = [name for name in ("b_q", "b_k", "b_v", "b_o") if name in shapes]
    if form == "torch" and len(biases) not in (0, 4):
        return f"which has all biases or none, where the layer has {', '.join(biases)}"
    if form == "torch" and shapes["W_q"][0] != shapes["W_q"][1]:
        return f"whose heads together are as wide as the model, where the layer has W_q {shapes['W_q']}"
    return ""


def _why_extra(form: str, name: str, shapes: Shapes) -> str:
    if name in ("bias_k", "bias_v") and form == "torch":
        return "; keys and values of add_bias_kv=True are not supported"
    if name == "sinks":
        return "; the layer has none (sinks=True)"
    if name in _NAMES[form]:
        if name.endswith("bias") or name.startswith("b_"):
            return "; the layer has no such bias (bias=True)"
        widths = ", ".join(str(shapes[f"W_{letter}"][0]) for letter in "qkv")
        return f"; the layer's query, key and value are {widths} wide"
    return "; strict=False ignores it"


def _entry_shape(form: str, parts: tuple[str, ...], shapes: Shapes) -> Shape:
    if form == "headwise":
        return shapes[parts[0]]
    return (sum(shapes[part][-1] for part in parts), *shapes[parts[0]][:-1])


def _turned(form: str, a: Array) -> Array:
    """A weight between (in, out) and the format's order of axes, a view; a vector is itself."""
    return a if form == "headwise" else a.T


# --- entries ---


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
            raise TypeError(f"state: key {name!r} of type {type(name).__name__}, expected names")
    return [name[len(prefix) :] for name in state if name.startswith(prefix)]


def _as_array(x: Any, name: str) -> Array:
    """:func:`as_array`, also of PyTorch's tensors that require gradients or hold bfloat16."""
    if getattr(x, "requires_grad", False) is True:
        x = x.detach()
    if str(getattr(x, "dtype", "")) != "torch.bfloat16":
        return as_array(x, name)
    # Neither __array__ nor NumPy's DLPack knows the type; its bits pass as integers.
    try:
        bfloat16 = importlib.import_module("ml_dtypes").bfloat16
    except ImportError:
        raise TypeError(
            f"{name}: dtype torch.bfloat16, which NumPy has from the package ml_dtypes only: "
            "pip install ml_dtypes, or give it as float()"
        ) from None
    return as_array(x.view(sys.modules["torch"].int16), name).view(bfloat16)


def _is_floating(dtype: np.dtype[Any]) -> bool:
    return (dtype.kind == "f" and dtype.itemsize in (2, 4, 8)) or is_bfloat16(dtype)


def _copy(a: Array) -> Array:
    copy = np.empty(a.shape, a.dtype.newbyteorder("="))
    _fill(copy, a)
    return copy


def _fill(to: Array, a: Array) -> None:
    """``to[...] = a``; where that transposes, in strips of columns whose cache lines stay until they are used up."""
    step = a.shape[-1] if a.flags.c_contiguous else _STRIP_BYTES // a.itemsize
    for start in range(0, a.shape[-1], step):
        to[..., start : start + step] = a[..., start : start + step]


# --- messages ---


def _either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


def _some(names: Iterable[str]) -> str:
    """The first few of ``names``, and how many there are if these are not all."""
    every = list(names)
    return ", ".join(every[:_LISTED]) + (f", … ({len(every)} in all)" if len(every) > _LISTED else "")
