"""The formats of state dicts: the names of their entries, and the parameters in each entry.

A layout maps the name of an entry to the parameters that it holds, concatenated along its first axis. In the format
"headwise" weights are (in, out), applied as ``x @ W``; in the other formats they are (out, in).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from headwise._base.typing import Array, Shape

    Shapes = Mapping[str, Shape]  # of a layer's parameters, by name
    Layout = dict[str, tuple[str, ...]]

__all__ = [
    "FORMATS",
    "detect_format",
    "entry_layout",
    "entry_shape",
    "is_known",
    "listed",
    "transposed",
    "unsupported",
    "why_extra",
]


def _one_by_one(weight: str, bias: str, *names: str) -> Layout:
    """The entries of the maps to query, key, value and output, whose names follow one pattern."""
    layout: Layout = {}
    for name, letter in zip(names, "qkvo", strict=True):
        layout |= {weight.format(name): (f"W_{letter}",), bias.format(name): (f"b_{letter}",)}
    return layout


_SINKS: Layout = {"sinks": ("sinks",)}
_HEADWISE = _one_by_one("W_{}", "b_{}", *"qkvo") | _SINKS

# torch.nn.MultiheadAttention: packed if query, key and value have the width of the output, else (kdim, vdim) separate.
_TORCH_BIASES: Layout = {"in_proj_bias": ("b_q", "b_k", "b_v"), "out_proj.weight": ("W_o",), "out_proj.bias": ("b_o",)}
_TORCH_PACKED: Layout = {"in_proj_weight": ("W_q", "W_k", "W_v"), **_TORCH_BIASES}
_TORCH_SEPARATE: Layout = {f"{letter}_proj_weight": (f"W_{letter}",) for letter in "qkv"} | _TORCH_BIASES

# transformers: LlamaAttention, MistralAttention, Qwen2Attention and others; GptOssAttention has sinks.
_LLAMA = _one_by_one("{}.weight", "{}.bias", "q_proj", "k_proj", "v_proj", "o_proj") | _SINKS
# transformers: BertAttention, RobertaAttention and others.
_BERT = _one_by_one("{}.weight", "{}.bias", "self.query", "self.key", "self.value", "output.dense")

# All names of each format. bias_k and bias_v (add_bias_kv=True) are in no layout, as no layer has such parameters.
_NAMES: dict[str, list[str]] = {
    "headwise": list(_HEADWISE),
    "torch": [*(_TORCH_PACKED | _TORCH_SEPARATE), "bias_k", "bias_v"],
    "llama": list(_LLAMA),
    "bert": list(_BERT),
}
FORMATS = tuple(_NAMES)
# The prefix of attention's entries in a BertLayer, where "output.dense" belongs to the feed-forward network.
_BERT_OUTER = "attention."
_MAX_LISTED = 12  # names in a message: a state may be that of a whole model


def detect_format(found: list[str], state: Mapping[str, Any], prefix: str) -> tuple[str, str]:
    """The format whose names are among ``found``, and the prefix of these names (empty except within a BertLayer)."""
    seen: dict[tuple[str, str], list[str]] = {}
    for form, inner in [*((form, "") for form in FORMATS), ("bert", _BERT_OUTER)]:
        ambiguous = ("output.dense.",) if form == "bert" and not inner else ("sinks",)
        names = [inner + name for name in _NAMES[form] if not name.startswith(ambiguous)]
        if here := [name for name in names if name in found]:
            seen[form, inner] = here
    if len(seen) == 1:
        return next(iter(seen))
    if seen:
        both = " and ".join(f"{form!r} ({listed(prefix + name for name in here)})" for (form, _), here in seen.items())
        raise ValueError(f"state: names of the formats {both}, expected names of one format")
    known = "; ".join(f"{form!r} ({', '.join(names)})" for form, names in _NAMES.items())
    where = f" under the prefix {prefix!r}" if prefix else ""
    there = f"only {listed(prefix + name for name in found)}" if found else "no names at all"
    raise ValueError(f"state: no names of a known format{where}, {there}{_hint(state)}; expected those of {known}")


def entry_layout(form: str, shapes: Shapes, found: set[str]) -> Layout:
    """The entries that hold the parameters of ``shapes``. In the format "torch" they are packed or separate as in
    ``found``."""
    packed = len({shapes[f"W_{letter}"] for letter in "qkv"}) == 1
    if "in_proj_weight" not in found and found & {"q_proj_weight", "k_proj_weight", "v_proj_weight"}:
        packed = False
    layouts = {
        "headwise": _HEADWISE,
        "torch": _TORCH_PACKED if packed else _TORCH_SEPARATE,
        "llama": _LLAMA,
        "bert": _BERT,
    }
    return {name: members for name, members in layouts[form].items() if all(member in shapes for member in members)}


def entry_shape(form: str, members: tuple[str, ...], shapes: Shapes) -> Shape:
    """The shape of an entry that holds the parameters ``members``."""
    if form == "headwise":
        return shapes[members[0]]
    return (sum(shapes[member][-1] for member in members), *shapes[members[0]][:-1])


def transposed(form: str, a: Array) -> Array:
    """A weight converted between (in, out) and the axis order of the format, as a view; a vector is unchanged."""
    return a if form == "headwise" else a.T


def unsupported(form: str, shapes: Shapes) -> str:
    """Why the format cannot describe a layer of these shapes, as the end of a message; empty if it can."""
    if form not in ("torch", "bert"):
        return ""
    widths = {name: shapes[name][1] for name in ("W_q", "W_k", "W_v")}
    if len(set(widths.values())) > 1:
        grouped = ", ".join(f"{name} {shapes[name]}" for name in widths)
        return f"has no grouped key and value heads, as the layer has ({grouped}); 'headwise' and 'llama' have them"
    if "sinks" in shapes:
        return "has no sinks, as the layer has; 'headwise' and 'llama' have them"
    biases = [name for name in ("b_q", "b_k", "b_v", "b_o") if name in shapes]
    if form == "torch" and len(biases) not in (0, 4):
        return f"has all biases or none, but the layer has {', '.join(biases)}"
    if form == "torch" and shapes["W_q"][0] != shapes["W_q"][1]:
        return f"has heads that together are as wide as the model, but the layer has W_q {shapes['W_q']}"
    return ""


def is_known(form: str, name: str) -> bool:
    """Whether an entry ``name`` belongs to attention in this format."""
    return name in _NAMES[form]


def why_extra(form: str, name: str, shapes: Shapes) -> str:
    """Why the layer has no parameter for the entry ``name``, as the end of a message."""
    if name in ("bias_k", "bias_v") and form == "torch":
        return "; keys and values of add_bias_kv=True are not supported"
    if name == "sinks":
        return "; the layer has none (sinks=True)"
    if is_known(form, name):
        if name.endswith("bias") or name.startswith("b_"):
            return "; the layer has no such bias (bias=True)"
        widths = ", ".join(str(shapes[f"W_{letter}"][0]) for letter in "qkv")
        return f"; the layer's query, key and value are {widths} wide"
    return "; strict=False ignores it"


def listed(names: Iterable[str]) -> str:
    """The first few of ``names``, with their number if there are more."""
    every = list(names)
    return ", ".join(every[:_MAX_LISTED]) + (f", … ({len(every)} in all)" if len(every) > _MAX_LISTED else "")


def _hint(state: Mapping[str, Any]) -> str:
    """Prefixes under which ``state`` has names of a known format."""
    marks = tuple(
        f".{name}" for name in ("W_q", "in_proj_weight", "q_proj_weight", "q_proj.weight", "self.query.weight")
    )
    prefixes = dict.fromkeys(name[: -len(mark) + 1] for mark in marks for name in state if name.endswith(mark))
    return f"; known names have the prefix {listed(map(repr, prefixes))}" if prefixes else ""
