"""The formats of state dicts: the names of their entries, and the parameters in each entry.

A layout maps the name of an entry to the parameters that it holds, joined along its rows. In the formats "headwise" and
"gpt2" weights are (in, out), applied as ``x @ W``; in the other formats they are (out, in).
"""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from headwise._base.messages import label, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from headwise._base.typing import Array, Shape

    Shapes = Mapping[str, Shape]  # of a layer's parameters, by name
    Layout = dict[str, tuple[str, ...]]

__all__ = [
    "FORMATS",
    "as_rows",
    "check_format",
    "detect_format",
    "entry_layout",
    "entry_shape",
    "inner_prefix",
    "is_buffer",
    "is_interleaved",
    "is_own",
    "listed",
    "stores_in_out",
    "unsupported",
    "why_extra",
]

_QKV = "qkv"
_BIASES = ("b_q", "b_k", "b_v", "b_o")


class _Format(NamedTuple):
    layout: Layout
    grouped: bool = True  # whether keys and values may have fewer heads than queries
    stores_in_out: bool = False
    # Whether the rows of a joint entry are, for each key head, its query heads, the key head and the value head.
    interleaved: bool = False
    inner: tuple[str, ...] = ("",)  # prefixes of the names within a layer's attention
    more: tuple[str, ...] = ()  # names of attention that are in no layout


def _one_by_one(weight: str, bias: str, *names: str) -> Layout:
    """The entries of the maps to query, key, value and output, whose names follow one pattern."""
    layout: Layout = {}
    for name, letter in zip(names, "qkvo", strict=True):
        layout |= {weight.format(name): (f"W_{letter}",), bias.format(name): (f"b_{letter}",)}
    return layout


def _joint(inputs: str, output: str) -> Layout:
    """The entries of one map to query, key and value together, and of the map to the output."""
    layout: Layout = {}
    for kind, letter in (("weight", "W"), ("bias", "b")):
        layout |= {f"{inputs}.{kind}": tuple(f"{letter}_{c}" for c in _QKV), f"{output}.{kind}": (f"{letter}_o",)}
    return layout


_SINKS: Layout = {"sinks": ("sinks",)}
_NORMS: Layout = {"q_norm.weight": ("q_norm",), "k_norm.weight": ("k_norm",)}
_RELATIVE = ("relative_table", "relative_embeddings")  # tables, which have one layout in every format
_GATES = ("W_decay", "b_decay", "W_beta", "b_beta")  # of LinearAttention
# torch.nn.MultiheadAttention: packed if query, key and value have the width of the output, else (kdim, vdim) separate.
_TORCH_BIASES: Layout = {"in_proj_bias": ("b_q", "b_k", "b_v"), "out_proj.weight": ("W_o",), "out_proj.bias": ("b_o",)}
_TORCH_PACKED: Layout = {"in_proj_weight": ("W_q", "W_k", "W_v"), **_TORCH_BIASES}
_TORCH_SEPARATE: Layout = {f"{letter}_proj_weight": (f"W_{letter}",) for letter in _QKV} | _TORCH_BIASES
_PER_HEAD = _joint("query_key_value", "dense")

# Formats with the same names are tried in this order.
_FORMATS: dict[str, _Format] = {
    "headwise": _Format(
        _one_by_one("W_{}", "b_{}", *"qkvo")
        | _SINKS
        | {name: (name,) for name in ("q_norm", "k_norm", *_RELATIVE, *_GATES)},
        stores_in_out=True,
    ),
    # bias_k and bias_v (add_bias_kv=True) are in no layout, as no layer has such parameters.
    "torch": _Format(_TORCH_PACKED | _TORCH_SEPARATE, grouped=False, more=("bias_k", "bias_v")),
    # transformers: Llama, Mistral, Qwen2 and 3, Gemma, OLMo 2, Cohere, gpt-oss.
    "llama": _Format(_one_by_one("{}.weight", "{}.bias", "q_proj", "k_proj", "v_proj", "o_proj") | _SINKS | _NORMS),
    # BERT and RoBERTa; in a BertLayer, "output.dense" belongs to the feed-forward network.
    "bert": _Format(
        _one_by_one("{}.weight", "{}.bias", "self.query", "self.key", "self.value", "output.dense"),
        grouped=False,
        inner=("", "attention."),
    ),
    # Whisper, BART, OPT, CLIP, SigLIP, wav2vec 2, GPT-J.
    "out_proj": _Format(_one_by_one("{}.weight", "{}.bias", "q_proj", "k_proj", "v_proj", "out_proj")),
    "gpt2": _Format(_joint("c_attn", "c_proj"), grouped=False, stores_in_out=True),
    "neox": _Format(_PER_HEAD, grouped=False, interleaved=True),
    "bloom": _Format(_PER_HEAD, grouped=False, interleaved=True),
    "falcon": _Format(_PER_HEAD, interleaved=True),
    "t5": _Format(
        {
            **{f"{letter}.weight": (f"W_{letter}",) for letter in "qkvo"},
            "relative_attention_bias.weight": ("relative_table",),
        }
    ),
    "phi3": _Format(_joint("qkv_proj", "o_proj")),
    "mpt": _Format(_joint("Wqkv", "out_proj")),
    "modernbert": _Format(_joint("Wqkv", "Wo"), grouped=False),
    "timm": _Format(_joint("qkv", "proj") | _NORMS, grouped=False),  # vision transformers of the package timm
}
FORMATS = tuple(_FORMATS)
_MAX_LISTED = 12  # names in a message: a state may be that of a whole model

# Parameters of attention that some models have, besides those of the layouts: norms of queries and keys (with biases),
# sinks, tables of relative positions. Without them a layer would compute something else.
_OWN = re.compile(
    r"(self\.|attention\.)*((q|k|v|query|key|value)_?(layer_?)?(norm|ln)|sinks?|rel|relative|distance_embedding"
    r"|position_bias|logit_scale|pos_proj|pos_bias)",
    re.IGNORECASE,
)
# Masks and tables of angles in older checkpoints, which are no parameters.
_BUFFERS = ("masked_bias", "rotary_emb.inv_freq", "embed_positions")


def check_format(form: object) -> str:
    if not isinstance(form, str) or form not in _FORMATS:
        *most, last = map(repr, FORMATS)
        raise ValueError(f"format: {shown(form)}, expected {', '.join(most)} or {last}")
    return form


def detect_format(found: list[str], state: Mapping[str, Any], prefix: str, shapes: Shapes) -> tuple[str, str]:
    """The format that explains most of the names in ``found``, and the prefix of these names within attention."""
    seen: dict[tuple[str, str], set[str]] = {}
    for form, inner in _candidates(FORMATS):
        here = {name for name in (inner + known for known in _names(form)) if name in found}
        if any(inner + name in here for name in _inputs(form)):
            seen[form, inner] = here
    best = [key for key, names in seen.items() if not any(names < other for other in seen.values())]
    if not best:
        known = "; ".join(f"{form!r} ({', '.join(_names(form))})" for form in FORMATS)
        where = f" under the prefix {shown(prefix)}" if prefix else ""
        there = f"only {listed(prefix + name for name in found)}" if found else "no names at all"
        raise ValueError(f"state: no names of a known format{where}, {there}{_hint(state)}; expected those of {known}")
    if len({frozenset(seen[key]) for key in best}) > 1:
        both = " and ".join(
            f"{form!r} ({listed(prefix + inner + name for name in _names(form) if inner + name in found)})"
            for form, inner in best
        )
        raise ValueError(f"state: names of the formats {both}, expected names of one format")
    return next((key for key in best if not unsupported(key[0], shapes)), best[0])


def inner_prefix(form: str, found: list[str]) -> str:
    """The prefix of the names of ``form`` within attention."""
    for _, inner in _candidates((form,)):
        if any(inner + name in found for name in _inputs(form)):
            return inner
    return ""


def entry_layout(form: str, shapes: Shapes, found: set[str]) -> Layout:
    """The entries that hold the parameters of ``shapes``. In the format "torch" they are packed or separate as in
    ``found``."""
    layout = _FORMATS[form].layout
    if form == "torch":
        packed = len({shapes[f"W_{letter}"] for letter in _QKV}) == 1
        if "in_proj_weight" not in found and found & {"q_proj_weight", "k_proj_weight", "v_proj_weight"}:
            packed = False
        layout = _TORCH_PACKED if packed else _TORCH_SEPARATE
    return {name: members for name, members in layout.items() if all(member in shapes for member in members)}


def entry_shape(form: str, members: tuple[str, ...], shapes: Shapes) -> Shape:
    """The shape of an entry that holds the parameters ``members``."""
    outputs = sum(shapes[member][-1] for member in members)
    inputs = shapes[members[0]][:-1]
    return (*inputs, outputs) if stores_in_out(form, members) else (outputs, *inputs)


def stores_in_out(form: str, members: tuple[str, ...]) -> bool:
    """Whether an entry with these parameters has their shape, rather than the transposed one."""
    return _FORMATS[form].stores_in_out or members[0] in _RELATIVE


def is_interleaved(form: str) -> bool:
    return _FORMATS[form].interleaved


def as_rows(form: str, members: tuple[str, ...], entry: Array) -> Array:
    """A view of an entry with the outputs of its map along the first axis; a vector is unchanged."""
    return entry.T if stores_in_out(form, members) else entry


def unsupported(form: str, shapes: Shapes) -> str:
    """Why the format cannot describe a layer of these shapes, as the end of a message; empty if it can."""
    widths = {name: shapes[name][1] for name in ("W_q", "W_k", "W_v")}
    if not _FORMATS[form].grouped and len(set(widths.values())) > 1:
        grouped = ", ".join(f"{name} {shapes[name]}" for name in widths)
        return f"has no grouped key and value heads, as the layer has ({grouped}); {_with_grouped()} have them"
    held = set(chain.from_iterable(_FORMATS[form].layout.values()))
    missing = [name for name in shapes if name not in held]
    if missing:
        able = [repr(f) for f in FORMATS if set(missing) <= set(chain.from_iterable(_FORMATS[f].layout.values()))]
        verb = "have" if len(able) > 1 else "has"
        return f"has no {', '.join(missing)}, as the layer has; {' and '.join(able)} {verb} them"
    return _unsupported_torch(shapes) if form == "torch" else _unsupported_joint(form, shapes)


def _unsupported_torch(shapes: Shapes) -> str:
    biases = [name for name in _BIASES if name in shapes]
    if len(biases) not in (0, 4):
        return f"has all biases or none, but the layer has {', '.join(biases)}"
    if shapes["W_q"][0] != shapes["W_q"][1]:
        return f"has heads that together are as wide as the model, but the layer has W_q {shapes['W_q']}"
    return ""


def _unsupported_joint(form: str, shapes: Shapes) -> str:
    if all(len(members) == 1 for members in _FORMATS[form].layout.values()):
        return ""
    biases = [name for name in _BIASES if name in shapes]
    if sum(name != "b_o" for name in biases) not in (0, 3):
        return f"has one bias for query, key and value, but the layer has {', '.join(biases)}"
    inputs = [shapes[f"W_{letter}"][0] for letter in _QKV]
    if len(set(inputs)) > 1:
        return f"has one weight for query, key and value, but theirs are {', '.join(map(str, inputs))} wide"
    return ""


def is_own(form: str, name: str) -> bool:
    """Whether an entry ``name`` is a parameter of attention, of this format or of a model with further ones."""
    return name in _names(form) or _OWN.match(name) is not None


def is_buffer(name: str, entry: object) -> bool:
    """Whether an entry is a mask or a table of an older checkpoint, which holds no parameter."""
    return name in _BUFFERS or (name == "bias" and len(getattr(entry, "shape", ())) == 4)


def why_extra(form: str, name: str, shapes: Shapes) -> str:
    """Why the layer has no parameter for the entry ``name``, as the end of a message."""
    plain = dict.fromkeys((*_RELATIVE, "relative_attention_bias.weight"), "; the layer has none (relative=)") | {
        "sinks": "; the layer has none (sinks=True)",
        **{name: f"; the layer has none ({name[2:]}='learned')" for name in _GATES},
        "bias_k": "; keys and values of add_bias_kv=True are not supported",
        "bias_v": "; keys and values of add_bias_kv=True are not supported",
    }
    if name in plain:
        return plain[name]
    if name in ("q_norm", "k_norm", *_NORMS):
        known = name in _names(form)
        return "; the layer has none (qk_norm='head' or 'full')" if known else f"; the format {form!r} has none"
    if name in _names(form):
        if name.endswith("bias") or name.startswith("b_"):
            return "; the layer has no such bias (bias=True)"
        widths = ", ".join(str(shapes[f"W_{letter}"][0]) for letter in _QKV)
        return f"; the layer's query, key and value are {widths} wide"
    if not _OWN.match(name):
        return "; strict=False ignores it"
    relative = re.search("rel|distance|position|pos_", name)
    return (
        "; layers have no such table: give its bias as relative= or bias="
        if relative
        else "; layers have no such parameter"
    )


def listed(names: Iterable[str]) -> str:
    """The first few of ``names``, with their number if there are more."""
    every = list(names)
    more = f", … ({len(every)} in all)" if len(every) > _MAX_LISTED else ""
    return ", ".join(map(label, every[:_MAX_LISTED])) + more


def _candidates(forms: Iterable[str]) -> list[tuple[str, str]]:
    return [(form, inner) for form in forms for inner in _FORMATS[form].inner]


def _names(form: str) -> tuple[str, ...]:
    return (*_FORMATS[form].layout, *_FORMATS[form].more)


def _inputs(form: str) -> list[str]:
    """The names that hold the maps to query, key and value."""
    return [name for name, members in _FORMATS[form].layout.items() if members[0][-2:] in ("_q", "_k", "_v")]


def _with_grouped() -> str:
    *most, last = [repr(form) for form in FORMATS if _FORMATS[form].grouped]
    return f"{', '.join(most)} and {last}"


def _hint(state: Mapping[str, Any]) -> str:
    """Prefixes under which ``state`` has names of a known format."""
    marks = tuple(dict.fromkeys(f".{name}" for form in FORMATS for name in _inputs(form) if not name.endswith("bias")))
    prefixes = dict.fromkeys(name[: -len(mark) + 1] for mark in marks for name in state if name.endswith(mark))
    return f"; known names have the prefix {listed(map(shown, prefixes))}" if prefixes else ""
