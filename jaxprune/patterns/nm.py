"""N:M masks: n kept of every m weights along one side of each matrix."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxprune.patterns import tiles
from jaxprune.trees import masks

_LANES, _SUBLANES = 128, (32, 8)  # sides of a TPU's tiles, for masks and for floats


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
      TypeError: for n or m that isn't whole, or leaves that aren't floating-point.
      ValueError: for n or m out of range, a tree without leaves, leaves that don't have the axis,
        or NaN (outside `jit`); the message names the leaf.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> kernel = jnp.array([[1.0, -4.0], [2.0, 3.0], [-3.0, 2.0], [4.0, 1.0]])  # (inputs, outputs)
    >>> jp.nm_mask(abs(kernel), 2, 4).astype(int).tolist()
    [[0, 1], [0, 1], [1, 0], [1, 0]]
    """
    tiles.check("an N:M mask", scores, n, m)
    return _mask(scores, n, m, axis, jnp.asarray)


def nm_mask_of_magnitudes(
    params: chex.ArrayTree, n: int | jax.Array, m: int, *, axis: str | int
) -> chex.ArrayTree:
    """`nm_mask` of checked parameters' magnitudes, which are nowhere written to memory."""
    return _mask(params, n, m, axis, jnp.abs)


def _mask(scores, n, m: int, axis: str | int, read: Callable[[jax.Array], jax.Array]):
    """Of what `read` makes of each score."""

    def of_tree(scores, n):
        def of_leaf(path, leaf):
            own = tiles.axes_of(axis, masks.path_name(path), leaf.shape)
            return _nm(leaf, n, own[0], own[-1] + 1, m, read)

        return jax.tree_util.tree_map_with_path(of_leaf, scores)

    # n as an argument: one that is traced would bring its mesh along.
    return masks.sharded_alike(of_tree, scores)(scores, jnp.int32(n))


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _nm(leaf: jax.Array, n, first: int, last: int, m: int, read) -> jax.Array:
    """Along the axes from first to before last, as one; of what `read` makes of each entry."""
    before, along, after = leaf.shape[:first], leaf.shape[first:last], leaf.shape[last:]
    size = math.prod(along)
    x = leaf.reshape(*before, size, *after)
    # Padding comes last and is NaN, which ranks with -inf: so it loses even to -inf.
    x = jax.lax.pad(x, jnp.array(jnp.nan, x.dtype), _at_axis(x, first, 0, -size % m))
    scores = lambda x: jnp.where(jnp.isnan(x), -jnp.inf, read(x))
    kept = jax.lax.platform_dependent(
        x,
        n,
        tpu=functools.partial(_by_shifts, axis=first, m=m, scores=scores),
        default=functools.partial(_by_entries, axis=first, m=m, scores=scores),
    )
    return jax.lax.slice_in_dim(kept, 0, size, axis=first).reshape(leaf.shape)


def _by_entries(x: jax.Array, n, axis: int, m: int, scores) -> jax.Array:
    """Compares the entries of each group with each other: fewest operations."""
    groups = _split(scores(x), axis, m)
    entries = [jax.lax.index_in_dim(groups, k, axis + 1, keepdims=False) for k in range(m)]

    def rank(k):
        larger = [
            (other >= entries[k] if j < k else other > entries[k]).astype(jnp.int32)
            for j, other in enumerate(entries)
            if j != k
        ]
        return functools.reduce(jnp.add, larger, jnp.zeros(entries[k].shape, jnp.int32))

    return jnp.stack([rank(k) < n for k in range(m)], axis=axis + 1).reshape(x.shape)


def _by_shifts(x: jax.Array, n, axis: int, m: int, scores) -> jax.Array:
    """Compares every entry with its neighbours in place: one kernel and no copy on TPUs.

    Shifts stay inside blocks of some groups, and so on one chip.
    """
    if axis < x.ndim - 1:
        block = _block(x, axis, m)
        return _of_blocks(_split(x, axis, block), n, axis + 1, m, scores).reshape(x.shape)
    # Along the last axis blocks lie together only if the rows are split as well, as a TPU's memory
    # is tiled: in eight rows of 128. (A shard narrower than that would waste memory.)
    block = math.lcm(m, _LANES)
    block = m if x.shape[axis] % block else block
    rows = 8 if block > m and x.ndim > 1 and x.shape[-2] % 8 == 0 else 1
    blocks = _split(x, axis, block)
    blocks = _split(blocks, axis - 1, rows) if rows > 1 else blocks[..., None, :, :]
    kept = _of_blocks(jnp.swapaxes(blocks, -3, -2), n, blocks.ndim - 1, m, scores)
    return jnp.swapaxes(kept, -3, -2).reshape(x.shape)


def _block(x: jax.Array, axis: int, m: int) -> int:
    """Whole tiles, which splitting the axis leaves alone, if a shard has them; or one group."""
    size = x.shape[axis]
    of_shard = size // masks.most_shards(size // m, jax.typeof(x).sharding.mesh)
    return next((b for b in (math.lcm(m, s) for s in _SUBLANES) if of_shard % b == 0), m)


def _of_blocks(blocks: jax.Array, n, axis: int, m: int, scores) -> jax.Array:
    def shifted(by):
        fill = jnp.zeros((), blocks.dtype)
        moved = jax.lax.pad(blocks, fill, _at_axis(blocks, axis, by, -by))
        return scores(moved)  # made before the shift, they would be written to memory

    here, place = shifted(0), jax.lax.broadcasted_iota(jnp.int32, blocks.shape, axis) % m
    rank = jnp.zeros(blocks.shape, jnp.int32)
    for distance in range(1, m):
        earlier = (shifted(distance) >= here) & (place >= distance)
        later = (shifted(-distance) > here) & (place < m - distance)
        rank = rank + earlier.astype(jnp.int32) + later.astype(jnp.int32)
    return rank < n


def _split(x: jax.Array, axis: int, size: int) -> jax.Array:
    return x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])


def _at_axis(x: jax.Array, axis: int, low: int, high: int) -> list[tuple[int, int, int]]:
    """What `jax.lax.pad` takes to pad, or cut, one axis."""
    return [(low, high, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
