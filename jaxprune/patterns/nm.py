"""N:M masks: n kept of every m weights along one side of each matrix."""

import functools
import math

import chex
import jax
import jax.numpy as jnp

from jaxprune.patterns import tiles
from jaxprune.trees import masks


def nm_mask(
    scores: chex.ArrayTree, n: int | jax.Array, m: int, *, axis: str | int = "inputs"
) -> chex.ArrayTree:
    """Keeps the n largest of every m consecutive scores along an axis.

    Args:
      scores: an array, or a tree of floating-point arrays and `None`. Equal scores are kept in
        order of position.
      n: how many of a group to keep, 0 <= n <= m; an integer or, inside `jax.jit`, an int32 scalar.
      m: the size of a group, 1 to 32. If the axis doesn't divide by it, the last group is smaller,
        and at most n of it are kept.
      axis: "inputs" (the last axis but one of a kernel in Flax's layout, over which its product
        sums, as the hardware wants it), "outputs" (the last one: for Equinox's layout), or an axis
        of the arrays.

    Returns:
      A mask like `scores`. Inside `jax.jit`, where values can't be checked, NaN ranks with -inf.

    Raises:
      ValueError: for n or m out of range, a tree without leaves, leaves that aren't floating-point
        or don't have the axis, or NaN (outside `jit`); the message names the leaf.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> kernel = jnp.array([[1.0, -4.0], [2.0, 3.0], [-3.0, 2.0], [4.0, 1.0]])  # (inputs, outputs)
    >>> jp.nm_mask(abs(kernel), 2, 4).astype(int).tolist()
    [[0, 1], [0, 1], [1, 0], [1, 0]]
    """
    tiles.check("an N:M mask", scores, n, m)
    return masks.sharded_alike(functools.partial(_nm_tree, n=n, m=m, axis=axis), scores)(scores)


def _nm_tree(scores, n, m, axis):
    def of_leaf(path, leaf):
        own = tiles.axes_of(axis, masks.path_name(path), leaf.shape)
        first, last = own[0], own[-1] + 1
        sides = (leaf.shape[:first], leaf.shape[first:last], leaf.shape[last:])
        return _nm(leaf.reshape([math.prod(side) for side in sides]), n, m).reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(of_leaf, scores)


@functools.partial(jax.jit, static_argnums=2)
def _nm(x: jax.Array, n, m: int) -> jax.Array:
    """Along the middle one of three axes."""
    before, size, after = x.shape
    x = jnp.where(jnp.isnan(x), -jnp.inf, x)
    missing = -size % m
    # Padding comes last and is -inf, so it loses even to -inf.
    x = jnp.pad(x, ((0, 0), (0, missing), (0, 0)), constant_values=-jnp.inf)
    x = x.reshape(before, -1, m, after)
    entries = [x[:, :, k] for k in range(m)]

    def rank(k):
        larger = [
            (other >= entries[k] if j < k else other > entries[k]).astype(jnp.int32)
            for j, other in enumerate(entries)
            if j != k
        ]
        return functools.reduce(jnp.add, larger, jnp.zeros(entries[k].shape, jnp.int32))

    kept = jnp.stack([rank(k) < n for k in range(m)], axis=2)
    return kept.reshape(before, size + missing, after)[:, :size]
