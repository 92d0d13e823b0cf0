"""The row-major position of every entry of an array, elementwise, so that it fuses and shards."""

import math

import jax
import jax.numpy as jnp

_WORD = 2**32


def flat(shape: tuple[int, ...]) -> jax.Array:
    """uint32 positions, modulo 2**32."""
    return _positions(shape, jnp.uint32)


def exact(shape: tuple[int, ...]) -> jax.Array:
    """The positions as uint32 where they fit, else as uint64 (which takes `counts_in_64_bits`)."""
    return _positions(shape, exact_dtype(shape))


def exact_dtype(shape: tuple[int, ...]):
    """Of `exact` positions."""
    return jnp.uint32 if math.prod(shape) < _WORD else jnp.uint64


def _positions(shape, dtype) -> jax.Array:
    position, stride = jnp.zeros(shape, dtype), 1
    for axis in reversed(range(len(shape))):
        index = jax.lax.broadcasted_iota(dtype, shape, axis)
        position = position + index * dtype(stride % 2 ** (8 * jnp.dtype(dtype).itemsize))
        stride *= shape[axis]
    return position
