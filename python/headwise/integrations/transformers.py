"""headwise as an attention implementation of Hugging Face transformers, for models on CPU.

>>> import headwise.integrations.transformers as hwt  # doctest: +SKIP
>>> hwt.register()  # doctest: +SKIP
>>> model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="headwise")  # doctest: +SKIP

Masks that consist of causality, a sliding window and padding are handed on as such: no array of queries x keys is
built. Softcap, sinks and position bias are computed by the same call. Linear attention by the gated delta rule follows.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import warnings
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

from headwise.integrations._libraries import require
from headwise.integrations._transformers_calls import (
    flash_attention,
    in_order,
    needs_gradient,
    options_of_mask,
    with_weights,
)
from headwise.integrations._transformers_linear import adopt
from headwise.integrations._transformers_masks import ImplicitMask, Pattern, implicit_mask, masking_utils

if TYPE_CHECKING:
    from headwise.integrations._transformers_masks import Tensor

transformers: Any = require("transformers")
torch: Any = importlib.import_module("torch")
modeling_utils: Any = importlib.import_module("transformers.modeling_utils")
sdpa_attention: Any = importlib.import_module("transformers.integrations.sdpa_attention")

__all__ = ["ImplicitMask", "Pattern", "attention", "implicit_mask", "register"]

#: Keywords that models pass to every implementation and that do not change the result of attention: those of windows
#: and packed sequences repeat what the mask says.
_WITHOUT_EFFECT = frozenset(transformers.utils.TransformersKwargs.__annotations__) | {
    "cache", "cache_position", "cu_seqlens", "deterministic", "dim", "hidden_act", "hidden_dim", "hidden_states",
    "layer_idx", "logits_to_keep", "past_key_value", "past_key_values", "position_embeddings", "position_ids",
    "seq_idx", "sliding_window", "token_type_ids", "use_cache",
}  # fmt: skip
_KNOWN = _WITHOUT_EFFECT | {
    "dropout", "is_causal", "output_attentions", "position_bias", "s_aux", "scaling", "sinks", "softcap",
}  # fmt: skip
_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
#: (class of a module or model, reason) of the warnings that were given.
_warned: set[tuple[type, str]] = set()


def register() -> None:
    """Make ``attn_implementation="headwise"`` known to transformers, for all of its models in this process.

    The name is given to ``from_pretrained``, ``from_config`` or ``model.set_attn_implementation``. A second call
    changes nothing. What a model needs and headwise does not compute falls back to transformers' own implementation,
    with one UserWarning for each class of module that says why:

    - models whose code does not use transformers' ``AttentionInterface`` keep transformers' default,
    - tensors on other devices than CPU, ``torch.export`` and ``torch.jit.trace`` run on the model's eager function,
    - so do calls with keywords that are not known here, such as the indices of sparse attention.

    Layers of linear attention by the gated delta rule (Qwen3-Next, Kimi Linear and others) follow the implementation of
    their model: with "headwise", :func:`headwise.linear_attention` computes what needs no gradient.

    See Also
    --------
    attention : The function that models call.
    implicit_mask : The function that makes their masks.

    Examples
    --------
    >>> import headwise.integrations.transformers as hwt  # doctest: +SKIP
    >>> hwt.register()  # doctest: +SKIP
    >>> model = AutoModel.from_pretrained(name, attn_implementation="headwise")  # doctest: +SKIP
    """
    modeling_utils.AttentionInterface.register("headwise", attention)
    masking_utils.AttentionMaskInterface.register("headwise", implicit_mask)
    _check_models()


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **keywords: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of a module of transformers, which calls this function by ``attn_implementation="headwise"``.

    Parameters
    ----------
    module : torch.nn.Module
        The attention module. Its ``is_causal`` decides where there is no mask.
    query : Tensor, (batch, heads, query_len, head_dim)
    key : Tensor, (batch, kv_heads, key_len, head_dim)
    value : Tensor, (batch, kv_heads, key_len, value_dim)
    attention_mask : Tensor, (batch or 1, heads or 1, query_len, key_len), optional
        An :class:`ImplicitMask`, a bool tensor that keeps a key where it is True, or a floating tensor that is added.
    **keywords
        ``scaling``, ``dropout``, ``is_causal``, ``softcap``, ``position_bias``, ``s_aux`` (sinks) and
        ``output_attentions`` have effect.

    Returns
    -------
    output : Tensor, (batch, query_len, heads, value_dim)
    weights : Tensor, (batch, heads, query_len, key_len), or None
        With ``output_attentions=True`` only.
    """
    reason = _reason_against(query, key, value, keywords)
    if reason is not None:
        result: tuple[Tensor, Tensor | None] = _fall_back(reason, module, query, key, value, attention_mask, keywords)
        return result
    return _attention(module, query, key, value, attention_mask, keywords)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, keywords: Any
) -> tuple[Tensor, Tensor | None]:
    if key.shape[0] != query.shape[0]:  # as learned queries that all sequences share
        batch = max(key.shape[0], query.shape[0])
        query, key, value = (x.expand(batch, -1, -1, -1) for x in (query, key, value))
    query_len, key_len = query.shape[2], key.shape[2]
    if mask is None:
        options: dict[str, Any] = {}
        keys = slice(None)
        if _is_causal(module, query_len, keywords):
            options["is_causal"] = True
            keys = slice(query_len)  # more keys are those of a static cache that are not written yet
    else:
        options, keys = options_of_mask(mask, query.shape[0], query_len, key_len)
    bias = keywords.get("position_bias")
    if bias is not None:
        bias = in_order(bias) if keys.indices(key_len) == (0, key_len, 1) else bias[..., keys]
        options["bias"] = bias + options["bias"] if "bias" in options else bias
    options |= {"scale": keywords.get("scaling"), "softcap": keywords.get("softcap"), "sinks": _sinks(keywords)}
    if keywords.get("dropout"):
        options["dropout_rate"] = keywords["dropout"]
    if keys.indices(key_len) != (0, key_len, 1):
        key, value = key[:, :, keys], value[:, :, keys]
    options = {name: option for name, option in options.items() if option is not None}
    weights = None
    if keywords.get("output_attentions"):
        output, weights = with_weights(query, key, value, **options)
        if weights.shape[-1] != key_len:
            start, stop, _ = keys.indices(key_len)
            weights = torch.nn.functional.pad(weights, (start, key_len - stop))
        return output, weights
    return flash_attention(query, key, value, **options), None


def _is_causal(module: Any, query_len: int, keywords: Any) -> bool:
    """Whether a call without a mask is causal, as transformers' ``sdpa_attention_forward`` decides it."""
    is_causal = keywords.get("is_causal")
    return query_len > 1 and bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


def _sinks(keywords: Any) -> Tensor | None:
    sinks = keywords.get("s_aux")
    return keywords.get("sinks") if sinks is None else sinks


def _reason_against(query: Tensor, key: Tensor, value: Tensor, keywords: Any) -> str | None:
    """Why headwise cannot compute the call, None if it can."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return "headwise is not part of an exported or traced graph"
    if not (query.is_cpu and key.is_cpu and value.is_cpu):
        return f"its tensors are on {query.device}, headwise computes on CPU"
    if not (query.dtype == key.dtype == value.dtype and query.dtype in _DTYPES):
        return f"its tensors are of {query.dtype}, {key.dtype} and {value.dtype}, headwise needs one floating dtype"
    if query.dtype == torch.bfloat16 and not _has_bfloat16():
        return "NumPy has bfloat16 from the package ml_dtypes only: pip install ml_dtypes"
    if keywords.get("output_attentions") and needs_gradient(query, key, value):
        return "it returns weights with gradients, headwise returns those of the output only"
    return _reason_against_keywords(query.shape[1], keywords)


def _reason_against_keywords(heads: int, keywords: Any) -> str | None:
    sinks = _sinks(keywords)
    if sinks is not None and sinks.shape != (heads,):
        return f"its sinks have the shape {tuple(sinks.shape)}, headwise needs one for each of {heads} heads"
    unknown = [name for name, option in keywords.items() if name not in _KNOWN and option is not None]
    return f"headwise does not know its keyword {unknown[0]}" if unknown else None


@cache
def _has_bfloat16() -> bool:
    return importlib.util.find_spec("ml_dtypes") is not None


def _warn_once(cls: type, reason: str, used: str) -> None:
    if (cls, reason) not in _warned:
        _warned.add((cls, reason))
        warnings.warn(f"{cls.__name__} runs on {used}, not on headwise: {reason}", UserWarning, stacklevel=4)


@torch.compiler.disable
def _fall_back(
    reason: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    keywords: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """The attention of the eager function of the module's file, or of PyTorch if it has none."""
    cls: Any = type(module)
    eager = eager_function(cls)
    _warn_once(cls, reason, f"transformers' {'sdpa' if eager is None else 'eager'} attention")
    if isinstance(mask, ImplicitMask):
        mask = mask.dense()
    result: tuple[Tensor, Tensor | None]
    if eager is None:
        result = sdpa_attention.sdpa_attention_forward(module, query, key, value, mask, **keywords)
        return result
    if mask is None and _is_causal(module, query.shape[2], keywords):
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    result = eager(module, query, key, value, mask, **keywords)
    return result


@cache
def eager_function(cls: Any) -> Any:
    """The function ``eager_attention_forward`` of the file that defines the class of a module or its base."""
    for base in cls.__mro__:
        function = getattr(sys.modules.get(base.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    return None


def _check_models() -> None:
    """Have transformers ask, for every new model, whether its code can use headwise at all.

    transformers accepts the name of any registered implementation, for models that then do not call it, too.
    """
    model = modeling_utils.PreTrainedModel
    original = getattr(model, "get_correct_attn_implementation", None)
    if original is None or hasattr(original, "checks_headwise"):
        return

    @wraps(original)
    def checked(self: Any, requested_attention: str | None, *arguments: Any, **options: Any) -> Any:
        if requested_attention == "headwise":
            cls: Any = type(self)
            reason = _reason_against_model(cls)
            if reason is not None:
                _warn_once(cls, reason, "transformers' default attention")
                requested_attention = None
            else:
                adopt(self)
        return original(self, requested_attention, *arguments, **options)

    vars(checked)["checks_headwise"] = True
    model.get_correct_attn_implementation = checked


@cache
def _reason_against_model(cls: Any) -> str | None:
    if hasattr(cls, "_can_set_attn_implementation") and not cls._can_set_attn_implementation():
        return "its code does not use transformers' AttentionInterface"
    try:
        code = inspect.getsource(sys.modules[cls.__module__])
    except (KeyError, OSError, TypeError):
        return None
    if '_attn_implementation in ("eager", "sdpa")' in code:
        return "its sparse attention needs a mask that it makes for eager and sdpa only"
    return None
