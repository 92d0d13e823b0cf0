"""Exact sums of up to 2**64, where arrays have 32 bits.

JAX has 64-bit integers only where x64 is switched on, which for a whole process would change the
user's own program. Here it is on while a function counts, and off again when it returns. Budgets of
this library hold to the element, past 2**31 weights, and give the same bits on one device and on
many: integers don't depend on the order in which they are added, float32 sums do.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

_Function = TypeVar("_Function", bound=Callable[..., Any])


def counts_in_64_bits(function: _Function) -> _Function:
    """The function, run (or traced) with 64-bit integers; uint64 must not leave it to users."""

    @functools.wraps(function)
    def wide(*args, **kwargs):
        with jax.enable_x64(True):
            return function(*args, **kwargs)

    return wide  # type: ignore[return-value]


@counts_in_64_bits
def least_float32(x: jax.Array) -> jax.Array:
    """The least float32 that isn't below an integer: what fits a budget then is known to."""
    x = x.astype(jnp.int64)
    near = x.astype(jnp.float32)
    above = jnp.nextafter(near, jnp.full_like(near, jnp.inf))
    return jnp.where(near.astype(jnp.int64) < x, above, near)


def exact_sums(rows: Sequence[Sequence[jax.Array]]) -> jax.Array:
    """The exact sum of each array, as uint64 of shape (rows, arrays of a row), modulo 2**64.

    Of a sharded array nothing but its device's sum leaves a device.

    Args:
      rows: one sequence for each leaf of a tree: boolean or uint32 arrays of the leaf's shape.
    """
    return jnp.stack([jnp.stack(_sums(row)) for row in rows])


def _sums(values: Sequence[jax.Array]) -> Sequence[jax.Array]:
    """All sums of a row, in the way that each compiler does best."""
    axes = tuple(range(values[0].ndim))
    if not axes:
        return [value.astype(jnp.uint64) for value in values]

    def add_up(values, axes, dtype):
        values = [value.astype(dtype) for value in values]
        return jax.lax.reduce(values, [dtype(0)] * len(values), _add, axes)

    def in_one_pass(*values):
        return tuple(add_up(values, axes, jnp.uint64))

    def last_axis_first(*values):
        # XLA's CPU compiler then runs on all cores, in a seventh of the time.
        ones = all(value.dtype == jnp.bool_ for value in values)
        narrow = ones and values[0].shape[-1] < 2**32
        partial = add_up(values, axes[-1:], jnp.uint32 if narrow else jnp.uint64)
        return tuple(add_up(partial, axes[:-1], jnp.uint64))

    def one_by_one(*values):
        # Of a reduction of several arrays over a mesh, it would gather what the devices found.
        return tuple(jnp.sum(value, dtype=jnp.uint64) for value in values)

    on_cpu = one_by_one if jax.typeof(values[0]).sharding.mesh.size > 1 else last_axis_first
    return jax.lax.platform_dependent(*values, cpu=on_cpu, default=in_one_pass)


def _add(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> list[jax.Array]:
    return [x + y for x, y in zip(a, b, strict=True)]
