"""The cases: one line of data for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Shape = tuple[int, ...]
DType = Literal["float16", "bfloat16", "float32", "float64"]
Precision = Literal["highest", "high", "medium"]


def _commas(shape: Shape) -> str:
    return ",".join(map(str, shape))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case of one operation. A peer runs it with its method named ``operation``."""

    operation: ClassVar[str]
    shape: Shape
    dtype: DType = "float32"
    precision: Precision = "highest"  # required of products of float32
    quick: bool = False  # runs with --quick, too

    @property
    def options(self) -> str:
        return ""

    @property
    def name(self) -> str:
        dtype = "" if self.dtype == "float32" else self.dtype
        precision = "" if self.precision == "highest" else self.precision
        words = (self.operation.replace("_", " "), _commas(self.shape), self.options, precision, dtype)
        return " ".join(word for word in words if word)

    @property
    def flops(self) -> float | None:
        """Floating-point operations of the matrix products; None for operations bound by memory."""
        return None


@dataclass(frozen=True, kw_only=True)
class Attention(Case):
    """``shape`` is (batch, heads, query_len, head_dim)."""

    operation: ClassVar[str] = "attention"
    key_len: int = 0  # 0: query_len
    kv_heads: int = 0  # 0: heads
    causal: bool = False
    window: int = 0  # keys that a query attends to, its own position included; 0: all
    extra: Literal["", "boolean mask", "bias", "key padding", "ALiBi"] = ""
    weights: bool = False  # returned besides the output

    @property
    def options(self) -> str:
        words = [
            f"kv heads {self.kv_heads}" if self.kv_heads else "",
            f"keys {self.key_len}" if self.key_len else "",
            "causal" if self.causal else "",
            f"window {self.window}" if self.window else "",
            self.extra,
            "with weights" if self.weights else "",
        ]
        return " ".join(word for word in words if word)

    @property
    def keys(self) -> int:
        return self.key_len or self.shape[2]

    @property
    def lengths(self) -> list[int]:
        """Number of keys that are not padding, for each batch entry: all, a half, a quarter and so on."""
        batch = self.shape[0]
        return [self.keys >> n if self.extra == "key padding" else self.keys for n in range(batch)]

    @property
    def score_bytes(self) -> int:
        """Bytes of an array of all scores."""
        batch, heads, query_len, _ = self.shape
        return batch * heads * query_len * self.keys * (8 if self.dtype == "float64" else 4)

    @property
    def flops(self) -> float:
        """Counts the pairs that causality, window and padding keep. A boolean mask does not reduce the count."""
        _, heads, query_len, head_dim = self.shape
        pairs = 0
        for length in self.lengths:
            for query in range(query_len):
                last = min(query, length - 1) if self.causal else length - 1
                first = max(0, query - self.window + 1) if self.window else 0
                pairs += max(0, last - first + 1)
        return 4.0 * heads * pairs * head_dim


@dataclass(frozen=True, kw_only=True)
class Varlen(Case):
    """Packed sequences; ``shape`` is (sequences, heads, max_length, head_dim)."""

    operation: ClassVar[str] = "varlen"
    causal: bool = False

    @property
    def options(self) -> str:
        return "causal" if self.causal else ""

    @property
    def lengths(self) -> list[int]:
        """Evenly spaced from 1/32 of the maximum to the maximum, in a mixed order."""
        sequences, _, longest, _ = self.shape
        steps = [1 + n * (32 - 1) / (sequences - 1) for n in range(sequences)]
        return [round(longest * steps[n * 7 % sequences] / 32) for n in range(sequences)]

    @property
    def flops(self) -> float:
        _, heads, _, head_dim = self.shape
        pairs = sum(n * (n + 1) // 2 if self.causal else n * n for n in self.lengths)
        return 4.0 * heads * pairs * head_dim


@dataclass(frozen=True, kw_only=True)
class MultiHead(Case):
    """Self-attention of a layer with biases; ``shape`` is (batch, seq, d_model)."""

    operation: ClassVar[str] = "multi_head"
    heads: int = 8
    weights: bool = False

    @property
    def options(self) -> str:
        return f"{self.heads} heads" + (", weights too" if self.weights else "")

    @property
    def flops(self) -> float:
        batch, seq, d_model = self.shape
        return batch * seq * d_model * (8.0 * d_model + 4.0 * seq)


@dataclass(frozen=True, kw_only=True)
class Elementwise(Case):
    """An operation whose result has the shape of its input."""

    out: bool = False  # writes into an existing array

    @property
    def options(self) -> str:
        return "out=" if self.out else ""


@dataclass(frozen=True, kw_only=True)
class Softmax(Elementwise):
    operation: ClassVar[str] = "softmax"
    axis: int = -1

    @property
    def options(self) -> str:
        return " ".join(word for word in (f"axis {self.axis}" if self.axis != -1 else "", super().options) if word)


@dataclass(frozen=True, kw_only=True)
class LogSoftmax(Softmax):
    operation: ClassVar[str] = "log_softmax"


@dataclass(frozen=True, kw_only=True)
class Rope(Elementwise):
    """``shape`` is (batch, heads, seq_len, dim); one table of angles serves all heads."""

    operation: ClassVar[str] = "rope"


@dataclass(frozen=True, kw_only=True)
class LayerNorm(Elementwise):
    """``shape`` is (rows, n), normalised along n."""

    operation: ClassVar[str] = "layer_norm"


@dataclass(frozen=True, kw_only=True)
class RmsNorm(Elementwise):
    """``shape`` is (rows, n), normalised along n."""

    operation: ClassVar[str] = "rms_norm"


@dataclass(frozen=True, kw_only=True)
class Gelu(Elementwise):
    operation: ClassVar[str] = "gelu"


@dataclass(frozen=True, kw_only=True)
class Silu(Elementwise):
    operation: ClassVar[str] = "silu"


@dataclass(frozen=True, kw_only=True)
class Swiglu(Elementwise):
    """``shape`` is that of the gate, and of the factor."""

    operation: ClassVar[str] = "swiglu"


@dataclass(frozen=True, kw_only=True)
class Linear(Case):
    """``shape`` is (rows, in_features, out_features)."""

    operation: ClassVar[str] = "linear"

    @property
    def flops(self) -> float:
        rows, inner, columns = self.shape
        return 2.0 * rows * inner * columns


def _dense_and_causal(*shape: int, quick: bool = False) -> list[Case]:
    return [Attention(shape=shape, causal=causal, quick=quick) for causal in (False, True)]


_MASKED = (4, 8, 1024, 64)
_LARGE = (4, 8, 1024, 1024)  # 134 MB of float32
_DTYPES_16_BIT: tuple[DType, ...] = ("bfloat16", "float16")
_PRECISIONS: tuple[Precision, ...] = ("highest", "high", "medium")

SECTIONS: dict[str, list[Case]] = {
    "Attention": [
        *_dense_and_causal(1, 8, 1024, 64, quick=True),
        *_dense_and_causal(4, 8, 512, 64),
        *_dense_and_causal(1, 8, 4096, 64),
        *_dense_and_causal(1, 32, 2048, 128),
        Attention(shape=(32, 8, 50, 64), quick=True),
        Attention(shape=(2, 8, 513, 80)),
        Attention(shape=_MASKED, kv_heads=2),
    ],
    "Attention with masks": [
        Attention(shape=_MASKED, extra="boolean mask"),
        Attention(shape=_MASKED, extra="bias"),
        Attention(shape=_MASKED, extra="key padding", quick=True),
        Attention(shape=_MASKED, extra="ALiBi"),
        Attention(shape=(1, 8, 8192, 64), causal=True, window=256),
    ],
    "Attention of packed sequences": [
        Varlen(shape=(32, 8, 512, 64), causal=causal, quick=not causal) for causal in (False, True)
    ],
    "Attention with the weights returned": [
        Attention(shape=(1, 8, 1024, 64), weights=True),
        Attention(shape=(4, 8, 512, 64), weights=True),
        Attention(shape=(32, 8, 50, 64), weights=True),
    ],
    "Multi-head layer": [
        MultiHead(shape=(32, 50, 512), weights=True),
        MultiHead(shape=(32, 50, 512), quick=True),
        MultiHead(shape=(4, 512, 512), weights=True),
        MultiHead(shape=(4, 512, 512)),
        MultiHead(shape=(1, 2048, 512)),
    ],
    "Attention, one query (decoding)": [
        Attention(shape=(1, 32, 1, 128), key_len=4096, quick=True),
        Attention(shape=(1, 32, 1, 128), key_len=4096, kv_heads=8),
        Attention(shape=(1, 32, 1, 128), key_len=32768, kv_heads=8),
    ],
    "Attention, float64": [
        Attention(shape=(1, 8, 1024, 64), dtype="float64"),
        Attention(shape=(4, 8, 512, 64), causal=True, dtype="float64"),
    ],
    "Attention, float32 at lower precision": [
        Attention(shape=(1, 8, 1024, 64), precision="high"),
        Attention(shape=(1, 8, 4096, 64), precision="high"),
        Attention(shape=(1, 32, 2048, 128), precision="high"),
        Attention(shape=(1, 8, 4096, 64), precision="medium"),
    ],
    "Attention, 16 bits": [
        Attention(shape=(1, 8, 1024, 64), dtype="bfloat16", quick=True),
        Attention(shape=(1, 8, 4096, 64), dtype="bfloat16"),
        Attention(shape=(1, 32, 2048, 128), dtype="bfloat16"),
        Attention(shape=(1, 8, 4096, 64), dtype="float16"),
    ],
    "Element by element": [
        Softmax(shape=_LARGE),
        Softmax(shape=_LARGE, out=True, quick=True),
        Softmax(shape=_LARGE, dtype="float64"),
        Softmax(shape=_LARGE, dtype="float64", out=True),
        Softmax(shape=(64, 512, 512), axis=0),
        LogSoftmax(shape=_LARGE, out=True),
        Rope(shape=(4, 32, 1024, 128)),
        Rope(shape=(4, 32, 1024, 128), out=True, quick=True),
        LayerNorm(shape=(32768, 1024)),
        LayerNorm(shape=(32768, 1024), out=True),
        *(kind(shape=(32768, 1024), out=out) for kind in (RmsNorm, Gelu, Silu, Swiglu) for out in (False, True)),
    ],
    "Element by element, 16 bits": [
        kind(shape=shape, dtype=dtype)
        for kind, shape in ((Softmax, _LARGE), (Rope, (4, 32, 1024, 128)), (LayerNorm, (32768, 1024)))
        for dtype in _DTYPES_16_BIT
    ],
    "Linear": [
        Linear(shape=(1600, 512, 512)),
        Linear(shape=(2048, 512, 2048)),
        Linear(shape=(1, 4096, 4096)),
        Linear(shape=(8, 512, 512)),
        *(Linear(shape=(2048, 2048, 2048), precision=precision) for precision in _PRECISIONS),
    ],
    "Small calls": [
        Softmax(shape=(64, 64), quick=True),
        Attention(shape=(1, 1, 16, 16)),
        Attention(shape=(8, 4, 16, 16), quick=True),
        Attention(shape=(8, 4, 64, 32)),
        Attention(shape=(8, 4, 128, 64)),
        LayerNorm(shape=(64, 512)),
    ],
}
