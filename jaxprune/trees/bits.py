"""Masks of a bit a weight, for checkpoints.

Eight weights that follow each other along one axis share a byte, as `numpy.packbits` has them. The
axis depends on the shape alone, so that what one mesh has packed another can unpack: a long one,
whose shards are likely to divide by 8 and then stay on their devices, and not the last, along which
a TPU would rearrange its tiles. `jnp.packbits` does turn the axis to the end.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxprune.trees import checks, masks


def pack_mask(mask: chex.ArrayTree) -> chex.ArrayTree:
    """Packs a mask to a bit a weight; `unpack_mask` is the way back.

    Args:
      mask: tree of boolean arrays and `None`.

    Returns:
      A tree like the mask, of uint8: `numpy.packbits` along the axis on which the smallest part is
        filled up with zeros, of these the longest one but the last axis; of a scalar of shape (1,).
        Leaves stay sharded, and nothing is moved where shards of that axis divide by 8. Works
        inside `jax.jit`.

    Raises:
      TypeError: for leaves that aren't boolean.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> mask = {"w": jnp.arange(16).reshape(8, 2) % 3 == 0, "b": None}
    >>> jp.pack_mask(mask)
    {'b': None, 'w': Array([[146,  73]], dtype=uint8)}
    """
    masks.check_boolean(mask)
    return jax.tree.map(_packed, mask)


def unpack_mask(params: chex.ArrayTree, packed: chex.ArrayTree) -> chex.ArrayTree:
    """The mask that was packed.

    Args:
      params: the parameters, or their shapes.
      packed: what `pack_mask` returned, perhaps saved and loaded.

    Returns:
      A mask like `params`. Works inside `jax.jit`.

    Raises:
      TypeError: for leaves that aren't uint8, or what is no tree of arrays; the message names the
        leaf.
      ValueError: if it doesn't fit the parameters; the message names the leaf.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    >>> jp.unpack_mask(params, jp.pack_mask({"w": jnp.eye(2, 3) > 0, "b": None}))
    {'b': None, 'w': Array([[ True, False, False],
           [False,  True, False]], dtype=bool)}
    """
    checks.tree("the parameters", params)
    masks.leaves_like(params, packed, "the packed mask", "`pack_mask(mask)`")
    return jax.tree_util.tree_map_with_path(_unpacked, params, packed)


def _axis(shape: tuple[int, ...]) -> int | None:
    """The axis whose last byte wastes the smallest part; of these the longest but the last axis."""

    def badness(axis):
        size = shape[axis]
        return (-size % 8) / max(size, 1), axis == len(shape) - 1, -size

    return min(reversed(range(len(shape))), key=badness, default=None)


def _packed_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    axis = _axis(shape)
    if axis is None:
        return (1,)
    return (*shape[:axis], -(-shape[axis] // 8), *shape[axis + 1 :])


def _packed(keep: jax.Array) -> jax.Array:
    return _placed(_pack, keep, _packed_shape(keep.shape))(keep)


def _unpacked(path, leaf, packed: jax.Array | None) -> jax.Array | None:
    if packed is None:
        return None
    shape = jnp.shape(leaf)
    _check(path, shape, packed)
    return _placed(functools.partial(_unpack, shape=shape), packed, shape)(packed)


@jax.jit
def _pack(keep: jax.Array) -> jax.Array:
    axis = _axis(keep.shape)
    if axis is None:
        return _pack(keep.reshape(1))
    padding = [(0, -size % 8 if i == axis else 0, 0) for i, size in enumerate(keep.shape)]
    bits = jax.lax.pad(keep.astype(jnp.uint8), jnp.uint8(0), padding)
    *before, size = bits.shape[: axis + 1]
    bits = bits.reshape(*before, size // 8, 8, *bits.shape[axis + 1 :])
    return jnp.sum(bits << _shifts(bits.ndim, axis + 1), axis + 1, dtype=jnp.uint8)


@functools.partial(jax.jit, static_argnames="shape")
def _unpack(packed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    axis = _axis(shape)
    if axis is None:
        return _unpack(packed, (1,)).reshape(())
    octets = jnp.expand_dims(packed, axis + 1)
    bits = (octets >> _shifts(octets.ndim, axis + 1)) & 1 != 0
    padded = (*shape[:axis], 8 * packed.shape[axis], *shape[axis + 1 :])
    return jax.lax.slice_in_dim(bits.reshape(padded), 0, shape[axis], axis=axis)


def _shifts(rank: int, axis: int) -> jax.Array:
    """Where the bits of a byte lie, along an axis: the first one is the highest."""
    return 7 - jax.lax.broadcasted_iota(
        jnp.uint8, [8 if i == axis else 1 for i in range(rank)], axis
    )


def _check(path, shape: tuple[int, ...], packed: jax.Array) -> None:
    name = masks.path_name(path)
    if getattr(packed, "dtype", None) != jnp.uint8:
        raise TypeError(
            f"the packed mask of leaf '{name}' must be uint8, as of `pack_mask`, got "
            f"{checks.described(packed)}"
        )
    if packed.shape != _packed_shape(shape):
        raise ValueError(
            f"the packed mask of leaf '{name}' must have shape {_packed_shape(shape)}, since the "
            f"leaf has {shape}, got {packed.shape}: pass the parameters that it was made for"
        )


def _placed(function, leaf: jax.Array, shape: tuple[int, ...]):
    """The function with a result that is sharded like the leaf, but for axes that don't divide."""
    sharding: Any = jax.typeof(leaf).sharding
    if len(shape) != leaf.ndim:
        return masks.whole(function, leaf)
    spec = [*sharding.spec, *[None] * leaf.ndim][: leaf.ndim]
    own = [
        axes if size % _shards(sharding.mesh, axes) == 0 else None
        for size, axes in zip(shape, spec, strict=True)
    ]
    return masks.sharded_as(function, sharding.update(spec=jax.P(*own)))


def _shards(mesh, axes) -> int:
    names = axes if isinstance(axes, tuple) else () if axes is None else (axes,)
    return math.prod(mesh.shape[name] for name in names)
