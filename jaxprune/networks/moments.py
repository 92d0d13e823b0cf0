"""What is kept of a layer's inputs: means, and sums of squares and products.

Rows x are what the layer sees in the network that is pruned, d what it sees in the dense one.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.networks import capture

_HIGHEST = jax.lax.Precision.HIGHEST
matmul = functools.partial(jnp.matmul, precision=_HIGHEST)


class Moments(NamedTuple):
    """Count and means of rows x and d, sums of x x^T and x d^T about the means."""

    count: jax.Array
    sparse: jax.Array
    dense: jax.Array
    gram: jax.Array
    cross: jax.Array


@functools.partial(jax.jit, static_argnums=2)
def of_operands(sparse, dense, layout: capture.Summed | capture.Patches) -> Moments:
    """Of the rows that the operands are."""
    x, d = (layout.rows(operand).astype(jnp.float32) for operand in (sparse, dense))
    means = jnp.mean(x, 0), jnp.mean(d, 0)
    x, d = x - means[0][None], d - means[1][None]
    return Moments(jnp.float32(len(x)), *means, matmul(x.T, x), matmul(x.T, d))


@jax.jit
def together(a: Moments, b: Moments) -> Moments:
    """Of the rows of both, without the rounding of sums of squares (Chan et al. 1979)."""
    count = a.count + b.count
    sparse, dense = b.sparse - a.sparse, b.dense - a.dense
    weight = a.count * b.count / count
    return Moments(
        count,
        a.sparse + sparse * (b.count / count),
        a.dense + dense * (b.count / count),
        a.gram + b.gram + weight * jnp.outer(sparse, sparse),
        a.cross + b.cross + weight * jnp.outer(sparse, dense),
    )


@jax.jit
def about_zero(moments: Moments) -> Moments:
    """With sums about zero: what a kernel without a bias has to give."""
    rows = moments.count * moments.sparse
    return moments._replace(
        gram=moments.gram + jnp.outer(rows, moments.sparse),
        cross=moments.cross + jnp.outer(rows, moments.dense),
    )


def ridge(moments: Moments, damping: float) -> jax.Array:
    """What damping adds to the diagonal: 1 for inputs that are always zero, or constant."""
    squares = jnp.diagonal(moments.gram)
    return jnp.where(squares > 0, damping * jnp.mean(squares), 1.0)


def root_mean_squares(moments: Moments) -> jax.Array:
    """Of each input of the layer."""
    return jnp.sqrt(jnp.diagonal(about_zero(moments).gram) / moments.count)
