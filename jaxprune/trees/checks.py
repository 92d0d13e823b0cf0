"""What arguments may be, and errors that say which argument isn't.

A wrong kind (a string for a number, a function for a tree, floats for booleans) is a TypeError, a
wrong value of the right kind (a sparsity of 1.2, a shape that doesn't fit) a ValueError. Traced
values can't be looked at and pass.
"""

import functools
import math
import numbers
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def number(name: str, value: Any, allowed: str) -> None:
    """Raises a TypeError unless it is a real number or a scalar array of one."""
    dtype = getattr(value, "dtype", None)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return
    if dtype is None or not jnp.issubdtype(dtype, jnp.number) or jnp.shape(value) != ():
        raise TypeError(f"{name} must be {allowed}, got {described(value)}")


def known(value: Any) -> bool:
    """Whether a number can be looked at."""
    return not isinstance(value, jax.core.Tracer)


def fraction(name: str, value: Any, *, schedule: bool = False) -> None:
    """Raises an error unless it is a number in [0, 1], or a schedule where that is allowed."""
    if schedule and callable(value):
        return
    number(name, value, "a number in [0, 1]" + (" or a schedule" if schedule else ""))
    if known(value) and not 0 <= value <= 1:
        raise ValueError(
            f"{name} must lie in [0, 1], got {value}: give a fraction, not a percentage"
        )


def strength(name: str, value: Any) -> None:
    """Raises an error unless it is a finite number or a schedule."""
    if callable(value):
        return
    number(name, value, "a number or a schedule")
    if known(value) and not math.isfinite(float(value)):
        raise ValueError(f"{name} must be finite, got {value}")


def integer(name: str, value: Any, least: int) -> int:
    """The value as a Python integer; raises an error unless it is a whole number that large."""
    try:
        if isinstance(value, bool):
            raise TypeError
        whole = operator.index(value)
    except TypeError:
        message = f"{name} must be a whole number, got {described(value)}"
        raise TypeError(message) from None
    if whole < least:
        raise ValueError(f"{name} must be at least {least}, got {whole}")
    return whole


def key(value: Any) -> None:
    """Raises an error unless it is one random key, new style or a raw uint32 pair."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if value.shape:
            raise ValueError(
                f"the key must be one key, got {described(value)}: split it, and use `jax.vmap`"
            )
    elif dtype != jnp.uint32 or jnp.ndim(value) != 1:
        raise TypeError(
            f"the first argument must be a key such as `jax.random.key(0)`, got {described(value)}"
        )


def function(name: str, value: Any) -> None:
    """Raises a TypeError unless it can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {described(value)}")


def function_alone(value: Any) -> Callable[..., Any] | None:
    """What is a function, and not a tree, which may be a module that can be called as well."""
    alone = isinstance(value, functools.partial) or jax.tree_util.all_leaves([value])
    return value if callable(value) and alone else None


def tree(name: str, value: Any) -> None:
    """Raises a TypeError for what is no tree of arrays: None, a function, a key, text."""
    dtype = getattr(value, "dtype", None)
    is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    alone = jax.tree_util.all_leaves([value])
    if value is None or is_key or (alone and dtype is None):
        raise TypeError(f"{name} must be a tree of arrays, got {described(value)}")


def modules_apart(params: Any, *others: Any) -> None:
    """Raises a TypeError for a module of Flax NNX beside a tree that has none, such as its state.

    A module is a tree as well, but not that of its state.
    """
    if len(set(map(_has_nnx_module, (params, *others)))) > 1:
        raise TypeError(
            "a module of Flax NNX was given beside a tree that isn't one: pass its state, "
            "`nnx.state(model, nnx.Param)` or what `nnx.split(model, nnx.Param, ...)` gives, in "
            "the place of parameters everywhere"
        )


def _has_nnx_module(tree: Any) -> bool:
    return any(map(_is_nnx_module, jax.tree.leaves(tree, is_leaf=_is_nnx_module)))


def _is_nnx_module(node: Any) -> bool:
    """By name, since this library doesn't load Flax for those who don't use it."""
    kinds = type(node).__mro__
    return any(kind.__name__ == "Module" and "flax.nnx" in kind.__module__ for kind in kinds)


def described(value: Any) -> str:
    """What was given, in a few words."""
    if hasattr(value, "dtype"):
        return f"an array of shape {jnp.shape(value)} and dtype {value.dtype}"
    if value is None or isinstance(value, (str, numbers.Number)):
        return repr(value)
    if callable(value):
        return f"the function {getattr(value, '__name__', type(value).__name__)}"
    return f"a {type(value).__name__}"
