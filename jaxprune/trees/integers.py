"""Codes of kept weights as packed integers, for files: `bits` for each, and none for a zero.

The codes of a leaf follow each other in order of position, two's complement, the highest bit
first; `numpy.packbits` fills up the last byte. What they mean is in the leaf's `Grid`, where they
belong is in the mask (`pack_mask`). All of it happens on the host, where files are written.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import numpy as np

from jaxprune.trees import masks, quantizing


def pack_quantized(
    params: chex.ArrayTree, mask: chex.ArrayTree, grids: chex.ArrayTree
) -> chex.ArrayTree:
    """Packs the codes of kept weights, `bits` for each; `unpack_quantized` is the way back.

    Args:
      params: tree of arrays, whose kept weights lie on the grids up to rounding.
      mask: tree like `params`: boolean arrays, `None` where a leaf isn't quantized.
      grids: tree like `params` of a `Grid` for each leaf of the mask, as of `compress_to`.

    Returns:
      A tree like `params` of NumPy arrays of uint8, of ceil(kept * bits / 8) bytes each; `None` for
      leaves that aren't quantized. Waits for the device; leaves come to the host whole.

    Raises:
      TypeError: for a mask that isn't boolean.
      ValueError: if mask or grids don't fit; the message names the leaf.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params, mask = {"w": jnp.array([0.5, 0.0, -1.5])}, {"w": jnp.array([True, False, True])}
    >>> grids = {"w": jp.Grid(jnp.int32(2), jnp.float32(1.0))}
    >>> packed = jp.pack_quantized(params, mask, grids)
    >>> packed, jp.unpack_quantized(params, mask, grids, packed)["w"].tolist()
    ({'w': array([32], dtype=uint8)}, [0.5, 0.0, -1.5])
    """
    mask = _checked(params, mask, grids)

    def of_leaf(leaf, keep, grid):
        if keep is None:
            return None
        codes = np.asarray(_codes(leaf, grid))[np.asarray(keep)].astype(np.int8).view(np.uint8)
        bits = np.unpackbits(codes[:, None], axis=1)[:, 8 - int(grid.bits) :]
        return np.packbits(bits)

    return jax.tree.map(of_leaf, params, mask, grids)


def unpack_quantized(
    params: chex.ArrayTree, mask: chex.ArrayTree, grids: chex.ArrayTree, packed: chex.ArrayTree
) -> chex.ArrayTree:
    """The weights whose codes were packed, zero where the mask prunes.

    Args:
      params: tree of arrays; quantized leaves are replaced, and give their dtypes.
      mask: the mask that the codes were packed with.
      grids: their grids.
      packed: what `pack_quantized` returned, perhaps saved and loaded.

    Returns:
      A tree like `params`.

    Raises:
      TypeError: for a mask that isn't boolean.
      ValueError: if mask, grids or the packed codes don't fit; the message names the leaf.

    >>> import jax.numpy as jnp, numpy as np
    >>> import jaxprune as jp
    >>> params, mask = {"w": jnp.zeros(3)}, {"w": jnp.array([True, False, True])}
    >>> grids = {"w": jp.Grid(jnp.int32(1), jnp.float32(2.0))}
    >>> jp.unpack_quantized(params, mask, grids, {"w": np.uint8([64])})["w"].tolist()
    [1.0, 0.0, -1.0]
    """
    mask = _checked(params, mask, grids)
    masks.leaves_like(params, packed, "the packed codes", "`pack_quantized(params, mask, grids)`")

    def of_leaf(path, leaf, keep, grid, own):
        if keep is None:
            return leaf
        keep, width = np.asarray(keep), int(grid.bits)
        count = int(keep.sum())
        if own is None or np.shape(own) != (-(-count * width // 8),):
            raise ValueError(
                f"the packed codes of leaf '{masks.path_name(path)}' must be "
                f"{-(-count * width // 8)} bytes, for {count} weights of {width} bits, got "
                f"{np.shape(own)}: pass the mask and the grids that they were packed with"
            )
        bits = np.unpackbits(own, count=count * width).reshape(count, width)
        codes = np.packbits(bits, axis=1)[:, 0].view(np.int8) >> (8 - width)  # with the sign
        values = np.zeros(keep.shape, np.float32)
        values[keep] = (codes.astype(np.float32) + np.float32(0.5)) * np.asarray(grid.step)
        return jax.numpy.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(of_leaf, params, mask, grids, packed)


def _checked(params: chex.ArrayTree, mask: chex.ArrayTree, of_leaves: chex.ArrayTree) -> Any:
    mask = quantizing.fit(params, mask)
    quantizing.check(params, mask, of_leaves)
    return mask


_codes = jax.jit(quantizing.codes)
