"""Groups of weights that leave a layer together: rows, columns, channels, filters, heads.

A group is given by the axes inside it. Names for them are resolved here, once for all layouts that
Flax has: kernels are (..., inputs, outputs), that is (in, out) of a Dense layer and HWIO of a
convolution; attention's query, key and value are (inputs, heads, size) and its out (heads, size,
outputs), known by these names and three dimensions or more. Axes before these are of layers in one
stack (`flax.linen.scan`, `nnx.vmap`), each of which has groups of its own. Convolutions may have
these names too: of more than three dimensions, a kernel with a square window is one.
"""

from __future__ import annotations

import functools
import math
import numbers
import re
from collections.abc import Sequence
from typing import TypeAlias

import chex
import jax
import jax.numpy as jnp

from jaxprune.trees import masks

Axis: TypeAlias = int | str | Sequence[int] | Sequence[str]

_NAMES = ("inputs", "outputs", "heads")
# What of a kernel is its inputs, and so on; other kernels have inputs at -2 and outputs at -1.
_ATTENTION = {
    "query": {"inputs": (0,), "heads": (1,), "outputs": (1, 2)},
    "key": {"inputs": (0,), "heads": (1,), "outputs": (1, 2)},
    "value": {"inputs": (0,), "heads": (1,), "outputs": (1, 2)},
    "out": {"inputs": (0, 1), "heads": (0,), "outputs": (2,)},
}
_ATTENTION_KERNEL = re.compile(r"(?:^|/)(query|key|value|out)/kernel(?:/value)?$")


def group_norms(params: chex.ArrayTree, axis: Axis) -> chex.ArrayTree:
    """The Euclidean norm of each group of each leaf, to choose groups by.

    Args:
      params: an array, or a tree of floating-point arrays and `None`.
      axis: the axes inside a group, over which the norm runs: an integer or a tuple of integers,
        the same for each leaf; or a name. "outputs": a group holds what makes one output: a
        matrix's column, a convolution's filter. "inputs": what one input goes to: a row, an input
        channel. "heads": what belongs to one head of Flax's attention. Attention is known by the
        names query, key, value and out of kernels with three dimensions or more, if it is no
        convolution with a square window; where layers of it lie in one stack, along axes before
        these, each has its own groups.

    Returns:
      A tree like `params`, float32 or wider, with length 1 along the axes inside a group, so that
      it broadcasts against the leaf.

    Raises:
      TypeError: for leaves that aren't floating-point, or an axis that is none.
      ValueError: for a tree without leaves, or axes that a leaf doesn't have; the message names the
        leaf.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.group_norms({"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]])}, "outputs")
    {'kernel': Array([[5., 1.]], dtype=float32)}

    The one output of largest norm, as a mask of weights:

    >>> kernel = jnp.array([[3.0, 0.0], [4.0, 1.0]])
    >>> jnp.broadcast_to(jp.top_k_mask(jp.group_norms(kernel, "outputs"), 1), kernel.shape)
    Array([[ True, False],
           [ True, False]], dtype=bool)
    """
    masks.check_floating("a group norm", params)

    def of_leaf(path, leaf):
        inside = axes_inside(axis, masks.path_name(path), leaf.shape)
        if len(inside) > 1:
            raise ValueError(f"norms are of one kind of group, got {axis}: call once for each")
        return norms(leaf, inside[0])

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def axes_inside(axis: Axis, path: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The axes inside a group of this leaf, as non-negative integers, for each kind of group.

    Raises:
      TypeError: for what is neither integers nor names.
      ValueError: if the leaf doesn't have them.
    """
    wanted = _as_tuple(axis)
    if isinstance(wanted[0], str):
        return [_beside(side(str(name), path, shape), path, shape) for name in wanted]
    integers = tuple(map(int, wanted))
    inside = sorted(i % len(shape) for i in integers if -len(shape) <= i < len(shape))
    if len(set(inside)) != len(integers):
        raise ValueError(
            f"`axis` {integers} must be different axes of leaf '{path}' of shape {shape}; "
            "choose leaves with `where`, or name the groups ('inputs', 'outputs')"
        )
    return [tuple(inside)]


def check(axis: Axis) -> None:
    """Raises an error unless it names axes that some leaf may have."""
    for name in _as_tuple(axis):
        if isinstance(name, str):
            _check_name(name)


def _check_name(name: str) -> None:
    if name not in _NAMES:
        raise ValueError(f"groups are named {', '.join(_NAMES)}, got {name!r}")


def _as_tuple(axis: Axis) -> tuple:
    """One or more axes, all integers or all names."""
    single = isinstance(axis, (str, numbers.Integral))
    wanted = (axis,) if single else tuple(axis) if isinstance(axis, (tuple, list)) else ()
    for kind in (str, numbers.Integral):
        if wanted and all(isinstance(x, kind) and not isinstance(x, bool) for x in wanted):
            return wanted
    raise TypeError(
        "`axis` must be an integer, a tuple of integers, a name or a tuple of names among "
        f"{_NAMES}, got {axis!r}"
    )


def side(name: str, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The consecutive axes of a leaf that are its inputs, outputs or heads.

    Raises:
      ValueError: if the leaf has none.
    """
    _check_name(name)
    part = _part_of_attention(path, shape)
    if part:
        return tuple(len(shape) - 3 + axis for axis in _ATTENTION[part][name])
    if name == "heads":
        raise ValueError(
            f"leaf '{path}' of shape {shape} has no heads: only kernels of query, key, "
            "value and out with three dimensions or more are known to have some; choose leaves "
            "with `where`, or give the axes inside a group as integers"
        )
    if len(shape) < 2:
        raise ValueError(
            f"leaf '{path}' of shape {shape} has no {name}: choose leaves with `where`, or give "
            "the axes inside a group as integers"
        )
    return (len(shape) - 2,) if name == "inputs" else (len(shape) - 1,)


def _part_of_attention(path: str, shape: tuple[int, ...]) -> str | None:
    """Such as "query"; None for another kernel, or a convolution with a square window."""
    is_window = len(shape) > 3 and len({*shape[:-2]}) == 1
    found = _ATTENTION_KERNEL.search(path) if len(shape) >= 3 and not is_window else None
    return found and found[1]


def _beside(axes: tuple[int, ...], path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The other axes of one layer."""
    first = len(shape) - 3 if _part_of_attention(path, shape) else 0
    return tuple(axis for axis in range(first, len(shape)) if axis not in axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def norms(x: jax.Array, inside: tuple[int, ...]) -> jax.Array:
    """Euclidean norms over the axes, float32 or wider, safe at any scale, with a gradient at 0."""
    inverse, squares = _scaled_squares(x.astype(masks.at_least_float32(x)), inside)
    return jnp.sqrt(squares) / inverse


@norms.defjvp
def _norms_jvp(inside, primals, tangents):
    (x,), (tangent,) = primals, tangents
    norm = norms(x, inside)
    # Made once for a group: each weight is then only multiplied.
    inverse = jnp.where(norm >= jnp.finfo(norm.dtype).tiny, 1.0 / or_one(norm), 0.0)
    along = (x.astype(norm.dtype) * inverse) * tangent.astype(norm.dtype)
    return norm, jnp.sum(along, axis=inside, keepdims=True)


def or_one(x: jax.Array) -> jax.Array:
    """A denominator that isn't zero."""
    return jnp.where(x == 0, 1.0, x)


@functools.partial(jax.jit, static_argnums=1)  # or it is compiled at every call
def _scaled_squares(x: jax.Array, inside: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The inverse of a scale for each group, and the sum of (x / scale)^2, in one read of x.

    In two ways. CPUs are bound by arithmetic and take a branch, which is for rare weights; but a
    branch wants x in memory, widened, and accelerators are bound by memory.
    """
    bind = functools.partial
    return jax.lax.platform_dependent(
        x, cpu=bind(_squares_by_branch, inside=inside), default=bind(squares_by_sums, inside=inside)
    )


def squares_by_sums(x: jax.Array, inside: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """By three sums, one of which is right: none of its squares that count under- or overflows."""
    squares = lambda factor: jnp.sum((x * factor) ** 2, axis=inside, keepdims=True)
    entries = math.prod(x.shape[axis] for axis in inside)
    plain, above, below = squares(1.0), squares(large(x.dtype)), squares(1.0 / large(x.dtype))
    tiny, huge = plain < entries * least_square(x.dtype), ~(plain < jnp.inf)
    inverse = jnp.where(tiny, large(x.dtype), jnp.where(huge, 1.0 / large(x.dtype), 1.0))
    return inverse.astype(x.dtype), jnp.where(tiny, above, jnp.where(huge, below, plain))


def _squares_by_branch(x: jax.Array, inside: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """By the sum of the squares as they are; of scaled entries only where one group needs it."""
    squares = lambda x: jnp.sum(x * x, axis=inside, keepdims=True)
    entries = math.prod(x.shape[axis] for axis in inside)
    plain, tiny = squares(x), float(jnp.finfo(x.dtype).tiny)
    right = jnp.all((plain >= entries * least_square(x.dtype)) & (plain < jnp.inf))

    def of_scaled(x):
        largest = jnp.max(jnp.abs(x), axis=inside, keepdims=True, initial=0.0)
        inverse = 1.0 / jnp.clip(largest, tiny, 1.0 / tiny)  # neither it nor its inverse is 0
        return inverse, squares(x * inverse)

    return jax.lax.cond(right, lambda _: (jnp.ones_like(plain), plain), of_scaled, x)


def least_square(dtype) -> float:
    """A mean square whose sum is right, though the least of them have underflowed."""
    return float(jnp.finfo(dtype).tiny) / float(jnp.finfo(dtype).eps)


def large(dtype) -> float:
    """A power of two: squares of tiny weights times it, and of huge ones over it, are normal."""
    return 2.0 ** (-int(jnp.finfo(dtype).minexp) * 5 // 8)


def count(shape: tuple[int, ...], inside: tuple[int, ...]) -> int:
    """The number of groups, at least 1."""
    return math.prod(max(size, 1) for axis, size in enumerate(shape) if axis not in inside)
