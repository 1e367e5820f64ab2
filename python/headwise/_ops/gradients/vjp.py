"""``vjp``: the results of a function together with its gradients."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from headwise._ops.gradients.results import check_pulled, check_wrt, gradients_of

if TYPE_CHECKING:
    from headwise._base.typing import Array

    F = TypeVar("F", bound=Callable[..., Any])

#: The gradients by the arguments asked for, from those by the results; None: no gradient by a result.
Pullback: TypeAlias = Callable[[tuple[Any, ...]], Mapping[str, "Array"]]


class Rule(NamedTuple):
    """How a function is differentiated."""

    names: tuple[str, ...]  # the arguments that have gradients
    #: From all arguments by name, defaults included, and the names asked for: the result of the function, and how its
    #: gradients are pulled back. Arguments are checked by the function itself.
    run: Callable[[dict[str, Any], tuple[str, ...]], tuple[Any, Pullback]]


_rules: dict[Callable[..., Any], Rule] = {}


def set_rule(function: Callable[..., Any], names: tuple[str, ...], run: Any) -> None:
    """Make ``function`` differentiable by the arguments ``names``; see :class:`Rule`."""
    _rules[function] = Rule(names, run)


def vjp(function: Callable[..., Any], /, *args: Any, wrt: tuple[str, ...] | None = None, **keywords: Any) -> Any:
    """The result of a function of headwise, and a function that computes gradients from it.

    The name is JAX's: gradients are the product of a vector, the gradient of a loss by the result, with the Jacobian of
    the function.

    Parameters
    ----------
    function : callable
        A differentiable function of headwise, such as :func:`flash_attention`, :func:`linear` or :func:`softmax`.
        Layers have a method ``vjp`` of their own.
    *args
        The arguments of the function.
    wrt : tuple of str, optional
        The names of the arguments whose gradients are asked for, such as ``("query", "bias")``. By default those given
        by position that have gradients.
    **keywords
        The keywords of the function, without ``out``.

    Returns
    -------
    output : ndarray or tuple
        What ``function(*args, **keywords)`` returns.
    pullback : callable
        ``pullback(d_output)``, with the gradient of a loss by the output, returns a named tuple of the gradients in the
        order of `wrt`, each in the shape and dtype of its argument. If the output is a tuple, it takes one gradient for
        each entry; those left out, and None, are 0. It may be called several times.

    Raises
    ------
    ValueError
        If `wrt` names an argument that has no gradient or is not given, and as the function.
    TypeError
        If the function is not differentiable, and as the function.

    Notes
    -----
    The pullback refers to the arguments and does not copy them: they must not change before it is called. It repeats
    the random draws of dropout from the state that the generator had.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> q, k, v, d_output = np.random.default_rng(0).standard_normal((4, 1, 2, 5, 8))
    >>> output, pullback = hw.vjp(hw.flash_attention, q, k, v, is_causal=True)
    >>> d_query, d_key, d_value = pullback(d_output)
    >>> d_query.shape
    (1, 2, 5, 8)

    The gradient of a learned bias:

    >>> bias = np.zeros((2, 1, 5))
    >>> output, pullback = hw.vjp(hw.flash_attention, q, k, v, bias=bias, wrt=("bias",))
    >>> pullback(d_output).d_bias.shape
    (2, 1, 5)
    """
    rule = rule_of(function)
    given = arguments_of(function, args, keywords)
    positional = list(given)[: len(args)]
    if given.pop("out", None) is not None:
        raise TypeError("out: given to vjp, expected a call without it, whose output nobody else changes")
    if wrt is None:
        names = tuple(name for name in positional if name in rule.names and given[name] is not None)
        if not names:
            raise ValueError(f"wrt: None and no array given by position, expected some of {', '.join(rule.names)}")
    else:
        names = check_wrt(wrt, rule.names, given)
    output, pull = rule.run(dict(given), names)
    count = len(output) if isinstance(output, tuple) else 1

    def pullback(*d_outputs: Any) -> Any:
        return gradients_of(names, pull(check_pulled(d_outputs, count)))

    return output, pullback


def arguments_of(function: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, defaults included, in the order of the signature."""
    try:
        bound = _signature(function).bind(*args, **keywords)
    except TypeError:
        function(*args, **keywords)  # its own error is clearer
        raise
    bound.apply_defaults()
    given = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            given.update(given.pop(parameter.name))
    return given


def differentiable() -> dict[str, Callable[..., Any]]:
    """Every function that has a rule, by name."""
    return {function.__name__: function for function in _rules}


@functools.cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def rule_of(function: Any) -> Rule:
    rule = _rules.get(function) if callable(function) and getattr(function, "__hash__", None) else None
    if rule is not None:
        return rule
    if hasattr(function, "vjp") or hasattr(getattr(function, "__self__", None), "vjp"):
        raise TypeError("function: a layer, expected its method: layer.vjp(x, ...)")
    known = ", ".join(sorted(known.__name__ for known in _rules))
    name = getattr(function, "__name__", type(function).__name__)
    raise TypeError(f"function: {name}, expected a differentiable function of headwise: {known}")
