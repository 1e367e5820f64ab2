"""Sequences of calls on an attention layer: forward passes, with and without a cache, and changes of its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

import headwise as hw
from comparison import assert_same
from fuzz.twins import DTYPES, DUPLICATES, SEEDS, TARGETS, Array, Twins, rows, run, set_threads, spoilt
from headwise._nn.state_dict import FORMATS
from strategies import ARBITRARY, PRECISIONS

PARAMETERS = ("W_q", "W_k", "W_v", "W_o", "b_q", "b_k", "b_v", "b_o", "sinks", "q_norm", "k_norm")
KEYWORDS = st.fixed_dictionaries(
    {"heads": st.sampled_from([1, 2, 4]), "group": st.sampled_from([1, 2]), "d_k": st.sampled_from([2, 4, 6])},
    optional={
        "bias": st.booleans() | st.sampled_from(["qkv", "qvo", "o"]),
        "head_dim": st.sampled_from([2, 8]),
        "qk_norm": st.sampled_from(["head", "full"]),
        "qk_norm_eps": st.sampled_from([1e-6, 1e-3]),
        "qk_norm_offset": st.booleans(),
        "alibi": st.booleans(),
        "sinks": st.booleans(),
        "kdim": st.integers(1, 12),
        "vdim": st.integers(1, 12),
        "window_size": st.integers(0, 9),
        "softcap": st.floats(1, 50),
        "precision": PRECISIONS,
        "dtype": DTYPES,
        "interleaved": st.booleans(),
        "relative": st.just({"num_buckets": 6, "max_distance": 7, "bidirectional": True}),
    },
)
#: Changes of an array that a layer still takes, as a parameter or in a state dict.
LAYOUTS: dict[str, Any] = {
    "copy": np.array,
    "Fortran": np.asfortranarray,
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "float16": lambda a: a.astype(np.float16),
    "float64": lambda a: a.astype(np.float64),
    "big-endian": lambda a: a.astype(">f4"),
    "list": lambda a: a.astype(float).tolist(),
    "read-only": lambda a: np.broadcast_to(a, a.shape),
}


class LazyState(Mapping[str, Any]):
    """A mapping that reads an entry when it is asked for, as the readers of model files do."""

    def __init__(self, entries: dict[str, Any]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> Any:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def rename(draw: Any, entries: dict[Any, Any], name: Any) -> None:
    start = draw(st.text(max_size=4) | st.sampled_from(["a.", "\x1b[2J", "self.", "model."]))
    entries[f"{start}{name}"] = entries.pop(name)


def spoil(draw: Any, entries: dict[Any, Any], name: Any) -> None:
    entries[name] = draw(spoilt(entries[name]))


def turn(draw: Any, entries: dict[Any, Any], name: Any) -> None:
    array = np.asarray(entries[name])
    entries[name] = array.T if draw(st.booleans()) else array[..., None]


def swap(draw: Any, entries: dict[Any, Any], name: Any) -> None:
    other = draw(st.sampled_from(sorted(entries, key=repr)))
    entries[name], entries[other] = entries[other], entries[name]


def add(draw: Any, entries: dict[Any, Any], name: Any) -> None:
    more = ["bias_k", "q_norm.weight", "sinks", "relative_table", "W_q", "in_proj_bias", 1, None, (2,), b"W_q"]
    entries[draw(st.sampled_from(more))] = entries[name]


FAULTS = (lambda draw, entries, name: entries.pop(name), rename, spoil, turn, swap, add)


@st.composite
def mangled(draw: st.DrawFn, state: dict[str, Any]) -> Any:
    """A state dict with one to three faults, or another object."""
    entries: dict[Any, Any] = dict(state)
    for fault in draw(st.lists(st.sampled_from(FAULTS), min_size=1, max_size=3)):
        if entries:
            fault(draw, entries, draw(st.sampled_from(sorted(entries, key=repr))))
    return draw(st.sampled_from([entries, entries, LazyState(entries)]) | ARBITRARY)


class LayerMachine(RuleBasedStateMachine):
    """A layer, its twin, and one cache for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer: Twins
        self.held: list[Any] = []

    @initialize(drawn=KEYWORDS, causal=st.booleans(), seed=SEEDS, native=TARGETS)
    def make(self, drawn: dict[str, Any], causal: bool, seed: int, native: str) -> None:
        keywords = dict(drawn)
        heads, group, d_k = (keywords.pop(name) for name in ("heads", "group", "d_k"))
        self.d_model, self.heads = heads * group * d_k, heads * group
        self.precision = keywords.get("precision")
        interleaved = keywords.pop("interleaved", None)
        self.widths = (self.d_model, keywords.get("kdim", self.d_model), keywords.get("vdim", self.d_model))

        def made() -> Any:
            width = keywords.get("head_dim", d_k)
            rope = None if interleaved is None else hw.RotaryPositionalEmbedding(width, interleaved=interleaved)
            kind = hw.CausalAttention if causal else hw.MultiHeadAttention
            return kind(self.d_model, self.heads, num_kv_heads=heads, rope=rope, rng=seed, **keywords)

        self.keywords = {**keywords, "rope": interleaved}
        self.made, self.native = made, native
        self.layer = Twins(native, made)
        assert self.layer.error is None
        self.cache: Twins | None = None
        self.past: Array | None = None

    @rule(
        batch=st.integers(1, 2),
        sizes=st.tuples(st.integers(0, 6), st.integers(0, 9)),
        seed=SEEDS,
        dtype=DTYPES,
        options=st.fixed_dictionaries(
            {},
            optional={
                "mask": st.booleans(),
                "need_weights": st.booleans(),
                "return_lse": st.booleans(),
                "training": st.booleans(),
                "is_causal": st.booleans(),
                "causal_alignment": st.sampled_from(["upper_left", "lower_right"]),
                "key_padding_mask": SEEDS,
                "precision": PRECISIONS,
            },
        ),
    )
    def forward(self, batch: int, sizes: tuple[int, int], seed: int, dtype: str, options: dict[str, Any]) -> None:
        inputs = self._inputs(batch, sizes, seed, dtype)
        given = dict(options)
        keys = inputs[-1].shape[1]
        if "mask" in given:
            given["mask"] = rows((inputs[0].shape[1], keys), seed, "float64") > (-0.5 if given["mask"] else -9)
        if "key_padding_mask" in given:
            given["key_padding_mask"] = rows((batch, keys), given["key_padding_mask"], "float64") > -0.5
        result = self.layer.call(lambda layer: layer(*inputs, rng=seed, **given), self._precision(given))
        assert not isinstance(result, Exception), result

    @rule(data=st.data())
    def hostile(self, data: st.DataObject) -> None:
        """One argument is replaced by an arbitrary object."""
        inputs = self._inputs(2, (3, 3), 0, "float32")
        arguments: dict[str, Any] = dict(zip(("query", "key", "value"), inputs, strict=False))
        names = ["mask", "bias", "key_padding_mask", "window_size", "positions", "lengths", "rng", "training", "out"]
        names += ["cache", "precision", "sinks", "alibi_slopes", "softcap", "scale"]
        place = data.draw(st.sampled_from([*arguments, *names]))
        arguments[place] = data.draw(spoilt(arguments.get(place)))
        if place == "rng" and arguments[place] is None:
            return
        self.layer.duplicate().call(lambda layer: layer(**{"rng": 1, **arguments}), self._precision(arguments))

    @rule(
        new=st.integers(0, 5),
        seed=SEEDS,
        ring=st.booleans(),
        dtype=st.sampled_from(["float32", "float64"]),
        need_weights=st.booleans(),
    )
    def decode(self, new: int, seed: int, ring: bool, dtype: str, need_weights: bool) -> None:
        """The outputs with a cache are those of the whole sequence so far, if that is causal."""
        if set(self.widths) != {self.d_model}:
            return
        if self.cache is None:
            self.cache = Twins(self.layer.native, lambda: self.made().make_cache(2, 12, ring=ring, dtype=dtype))
            assert self.cache.error is None
            self.past = np.zeros((2, 0, self.d_model), dtype)
            self.ring = ring
        assert self.past is not None
        x = rows((2, new, self.d_model), seed, self.past.dtype.name)
        both = Twins.paired(self.layer, self.cache)
        call = lambda pair: pair[0](x, cache=pair[1], need_weights=need_weights)[0]  # noqa: E731
        result = both.call(call, self._precision({}))
        if isinstance(result, Exception):
            assert not self.ring and self.past.shape[1] + new > 12, result
            return
        self.past = np.concatenate([self.past, x.astype(x.dtype.newbyteorder("="))], axis=1)
        window = min(11, self.keywords.get("window_size", 11)) if self.ring else self.keywords.get("window_size")
        options = {} if window is None else {"window_size": window}
        whole = self.layer.call(
            lambda layer: layer(self.past, is_causal=True, need_weights=False, **options)[0], self._precision({})
        )
        if self._precision({}) in (None, "highest"):
            assert_same(result, whole[:, whole.shape[1] - new :])

    @rule(form=st.sampled_from(FORMATS), prefix=st.sampled_from(["", "model.layers.0.self_attn."]), seed=SEEDS)
    def load(self, form: str, prefix: str, seed: int) -> None:
        """The parameters of another layer with the same arguments; a format that cannot describe them is refused."""
        state = run(lambda: self._other(seed).state_dict(form, prefix=prefix))
        if isinstance(state, ValueError):
            assert str(state).startswith("format: ")
            return
        result = self.layer.call(
            lambda layer: layer.load_state_dict(LazyState(state) if seed % 2 else state, prefix=prefix)
        )
        if isinstance(result, Exception):  # a bias may have been set to None
            self._check_unchanged(state, prefix)
        self._forget()

    @rule(form=st.sampled_from(FORMATS), strict=st.booleans(), prefix=st.sampled_from(["", "attn."]), data=st.data())
    def load_mangled(self, form: str, strict: bool, prefix: str, data: st.DataObject) -> None:
        state = run(lambda: self._other(3).state_dict(form, prefix=prefix))
        if isinstance(state, Exception):
            return
        state = data.draw(mangled(state))
        before = self.layer.call(lambda layer: layer.state_dict())
        result = self.layer.call(lambda layer: layer.load_state_dict(state, prefix=prefix, strict=strict))
        if isinstance(result, Exception):
            assert_same(self.layer.call(lambda layer: layer.state_dict()), before)
        self._forget()

    @rule(name=st.sampled_from(PARAMETERS), seed=SEEDS, layout=st.sampled_from(sorted(LAYOUTS)), hold=st.booleans())
    def assign(self, name: str, seed: int, layout: str, hold: bool) -> None:
        old = self.layer.call(lambda layer: getattr(layer, name))
        if old is None:
            return
        value = LAYOUTS[layout](rows(old.shape, seed).astype(np.float32))
        assert self.layer.call(lambda layer: setattr(layer, name, value)) is None
        if hold:
            self.held.append(value)
        self._forget()

    @rule(name=st.sampled_from(PARAMETERS), data=st.data())
    def assign_mangled(self, name: str, data: st.DataObject) -> None:
        old = self.layer.call(lambda layer: getattr(layer, name))
        value = data.draw(spoilt(old))
        result = self.layer.call(lambda layer: setattr(layer, name, value))
        if isinstance(result, Exception):
            assert_same(self.layer.call(lambda layer: getattr(layer, name)), old)
        self._forget()

    @rule(name=st.sampled_from(PARAMETERS), factor=st.floats(-2, 2), hold=st.booleans())
    def change_in_place(self, name: str, factor: float, hold: bool) -> None:
        def change(layer: Any) -> None:
            array = getattr(layer, name)
            if array is not None and array.flags.writeable:
                array *= array.dtype.type(factor)
                if hold:
                    self.held.append(array)

        self.layer.call(change)
        self._forget()

    @rule()
    def release(self) -> None:
        self.held.clear()

    @rule(way=st.sampled_from(DUPLICATES))
    def duplicate(self, way: Any) -> None:
        self.layer.replace(way)

    @rule(seed=SEEDS)
    def equals_a_new_layer(self, seed: int) -> None:
        """Packed parameters give the bits of others."""
        x = rows((1, 4, self.d_model), seed, "float32")
        inputs = (x, rows((1, 4, self.widths[1]), seed + 1), rows((1, 4, self.widths[2]), seed + 2))

        def both(layer: Any) -> bool:
            other = self.made()
            for name in PARAMETERS:
                setattr(other, name, getattr(layer, name))
            return bool(np.array_equal(layer(*inputs)[0], other(*inputs)[0], equal_nan=True))

        if set(self.layer.call(lambda layer: [name for name in PARAMETERS if getattr(layer, name) is None])) <= set(
            PARAMETERS[4:]
        ):
            assert self.layer.call(both) is True

    @rule(native=TARGETS, threads=st.integers(1, 3))
    def change_target(self, native: str, threads: int) -> None:
        self.layer.native = native
        set_threads(threads)

    def teardown(self) -> None:
        set_threads(2)

    def _inputs(self, batch: int, sizes: tuple[int, int], seed: int, dtype: str) -> tuple[Array, ...]:
        """Self-attention if the widths are equal and the seed is even, else a query, a key and a value."""
        query = rows((batch, sizes[0], self.widths[0]), seed, dtype)
        if set(self.widths) == {self.d_model} and seed % 2 == 0:
            return (query,)
        key, value = (rows((batch, sizes[1], width), seed + 1, dtype) for width in self.widths[1:])
        return query, key, value

    def _precision(self, options: dict[str, Any]) -> Any:
        given = options.get("precision")
        return self.precision if given is None else given

    def _other(self, seed: int) -> Any:
        other = self.made()
        for name in PARAMETERS:
            old = getattr(other, name)
            if old is not None:
                setattr(other, name, rows(old.shape, seed).astype(old.dtype))
        return other

    def _check_unchanged(self, state: Any, prefix: str) -> None:
        before = self.layer.call(lambda layer: layer.state_dict())
        self.layer.call(lambda layer: layer.load_state_dict(state, prefix=prefix))
        assert_same(self.layer.call(lambda layer: layer.state_dict()), before)

    def _forget(self) -> None:
        """Drops the cache, whose rows are those of former parameters."""
        self.cache = self.past = None
