"""The parts of a Hugging Face configuration that describe attention, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headwise._base.messages import shown
from headwise._base.scalars import check_flag, check_int, check_real, check_size
from headwise._positions.rope_scaling import TRAINED
from headwise._positions.rotary import RotaryPositionalEmbedding

if TYPE_CHECKING:
    from collections.abc import Callable

FULL, SLIDING = "full_attention", "sliding_attention"
_MISSING: Any = object()  # of an entry that the model type requires
_TEXT_PARTS = ("gemma3",)  # configurations of several models, of which the text model is meant


class Config:
    """Read-only access by name to the entries of a configuration, some of which have several names."""

    def __init__(self, config: object) -> None:
        if not isinstance(config, Mapping):
            to_dict = getattr(config, "to_dict", None)
            if to_dict is None:
                raise TypeError(f"config: {type(config).__name__}, expected a mapping or an object with to_dict()")
            config = to_dict()
        if not isinstance(config, Mapping):
            raise TypeError(f"config: to_dict() gave {type(config).__name__}, expected a mapping")
        entries: Mapping[str, Any] = config
        self.model_type = _model_type(entries)
        if self.model_type in _TEXT_PARTS and isinstance(entries.get("text_config"), Mapping):
            entries = entries["text_config"]
            self.model_type = _model_type({"model_type": self.model_type, **entries})
        self._entries = entries

    def get(self, *names: str, default: Any = None) -> Any:
        """The first entry with one of the names that is not None."""
        return next((self._entries[n] for n in names if self._entries.get(n) is not None), default)

    def has(self, name: str) -> bool:
        """Whether there is an entry of this name, None included."""
        return name in self._entries

    def size(self, *names: str, default: int = _MISSING) -> int:
        number: int = self._checked(check_size, names, default)
        return number

    def real(self, *names: str, default: float = _MISSING) -> float:
        number: float = self._checked(check_real, names, default)
        return number

    def positive(self, name: str, default: float) -> float:
        number = self.real(name, default=default)
        if number <= 0:
            raise ValueError(f"config[{name!r}]: {number}, expected a number above 0")
        return number

    def flag(self, name: str, default: bool) -> bool:
        value: bool = self._checked(check_flag, (name,), default)
        return value

    def refuse(self, name: str, *allowed: object) -> None:
        """ValueError if the entry asks for something that layers have not. None and False never do."""
        value = self.get(name, default=False)
        if value is not False and not any(isinstance(value, type(other)) and value == other for other in allowed):
            expected = " or ".join(map(repr, allowed)) if allowed else "False or none"
            raise ValueError(f"config[{name!r}]: {shown(value)}, which attention layers have not, expected {expected}")

    def layer(self, index: object) -> int:
        """``index``, checked against the number of layers."""
        count = self.size("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", default=1 << 30)
        return check_int(index, "layer_index", 0, count - 1)

    def kind(self, index: int, default: Callable[[int], bool]) -> str:
        """Whether layer ``index`` has a window: by ``layer_types``, else by the model type's pattern ``default``."""
        kinds = self.get("layer_types")
        if kinds is None:
            return SLIDING if default(index) else FULL
        if not isinstance(kinds, (list, tuple)) or len(kinds) <= index:
            raise ValueError(f"config['layer_types']: {shown(kinds)}, expected a list with an entry for layer {index}")
        if not isinstance(kinds[index], str) or kinds[index] not in (FULL, SLIDING):
            raise ValueError(f"config['layer_types'][{index}]: {shown(kinds[index])}, expected {FULL!r} or {SLIDING!r}")
        kind: str = kinds[index]
        return kind

    def rope(
        self,
        head_dim: int,
        kind: str = FULL,
        *,
        theta: float = 1e4,
        fraction: float = 1.0,
        rotary_dim: int | None = None,
        interleaved: bool = False,
    ) -> RotaryPositionalEmbedding:
        """The rotation of layers of this kind; ``theta`` and ``fraction`` are the model type's defaults."""
        entry = self.get("rope_parameters", "rope_scaling", default={})
        if not isinstance(entry, Mapping):
            raise TypeError(f"config['rope_parameters']: {type(entry).__name__}, expected a mapping")
        local = self.get("rope_local_base_freq", "local_rope_theta") if kind == SLIDING else None
        if entry and all(isinstance(value, Mapping) for value in entry.values()):  # one for each kind of layer
            if kind not in entry:
                raise ValueError(f"config['rope_parameters']: no {kind!r}, the kind of the layer")
            entry = entry[kind]
        elif local is not None:  # Gemma 3 before transformers 5: the entry is that of layers without a window
            entry = {"rope_theta": local}
        entry = {key: value for key, value in entry.items() if value is not None}
        entry.setdefault("rope_theta", self.get("rope_theta", "rotary_emb_base", "global_rope_theta", default=theta))
        if rotary_dim is None:
            entry.setdefault("partial_rotary_factor", self.get("partial_rotary_factor", "rotary_pct", default=fraction))
        trained = self.get(TRAINED)
        if trained is not None:
            entry.setdefault(TRAINED, trained)
        longest = self.get("max_position_embeddings", "n_positions")
        return RotaryPositionalEmbedding(
            head_dim,
            scaling=entry,
            rotary_dim=rotary_dim,
            max_position_embeddings=longest,
            interleaved=interleaved,
        )

    def _checked(self, check: Callable[[object, str], Any], names: tuple[str, ...], default: Any) -> Any:
        for name in names:
            if self._entries.get(name) is not None:
                return check(self._entries[name], f"config[{name!r}]")
        if default is _MISSING:
            raise ValueError(f"config: no {names[0]!r}, which model type {shown(self.model_type)} requires")
        return default


def _model_type(entries: Mapping[str, Any]) -> str:
    name = entries.get("model_type")
    if name is None:
        raise ValueError("config: no 'model_type', expected the name of a model type")
    if not isinstance(name, str):
        raise TypeError(f"config['model_type']: {type(name).__name__}, expected a string")
    return name
