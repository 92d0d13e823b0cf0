"""The row-major position of every entry of an array, elementwise, so that it fuses and shards."""

import math

import jax
import jax.numpy as jnp

_WORD = 2**32


def flat(shape: tuple[int, ...]) -> jax.Array:
    """uint32 positions, modulo 2**32."""
    return _along(shape, range(len(shape)))


def row_and_column(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The positions as two uint32 arrays, of which the row is the more significant."""
    split = _first_column_axis(shape)
    return _along(shape, range(split)), _along(shape, range(split, len(shape)))


def rows_and_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many rows and columns `row_and_column` counts; columns take as many axes as fit.

    Raises:
      ValueError: if 32 bits don't hold the number of rows or of columns.
    """
    split = _first_column_axis(shape)
    rows, columns = math.prod(shape[:split]), math.prod(shape[split:])
    if rows >= _WORD or columns >= _WORD:
        raise ValueError(f"positions in shape {shape} don't fit two 32-bit words: reshape it")
    return rows, columns


def _first_column_axis(shape):
    split, columns = max(len(shape) - 1, 0), math.prod(shape[-1:])
    while split > 0 and columns * shape[split - 1] < _WORD:
        split -= 1
        columns *= shape[split]
    return split


def _along(shape, axes) -> jax.Array:
    position, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(axes):
        index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        position = position + index * jnp.uint32(stride % _WORD)
        stride *= shape[axis]
    return position
