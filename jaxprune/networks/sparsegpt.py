r"""SparseGPT: inputs are gone through in order, and later ones make up for what pruning does wrong.

With the Hessian H = X^T X + ridge and its inverse U^T U, U upper triangular, weight w of input i
is worth

.. math:: (w / U_{ii})^2

which is what pruning it costs if all inputs after i are free to change. Pruning subtracts
w U_ij / U_ii from the weights of input j > i of the same output, all outputs at once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.networks.moments import matmul
from jaxprune.networks.targets import Target

_LAZY = 128  # inputs whose errors are passed on together


class _Inputs(NamedTuple):
    """Inputs in their order, filled up to whole groups: U, which count, which are there.

    `counts` says how many weights each group keeps, for targets that leave this open.
    """

    factor: jax.Array
    alive: jax.Array
    real: jax.Array
    counts: jax.Array

    def block(self, start: jax.Array, size: int) -> "_Inputs":
        """So many of them."""
        part = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        groups = size * len(self.counts) // len(self.real)
        first = start * len(self.counts) // len(self.real)
        counts = jax.lax.dynamic_slice_in_dim(self.counts, first, groups)
        factor = jax.lax.dynamic_slice(self.factor, (start, start), (size, size))
        return _Inputs(factor, part(self.alive), part(self.real), counts)


@functools.partial(jax.jit, static_argnames=("target", "channels"))
def sparsegpt(
    hessian: jax.Array, kernel: jax.Array, alive: jax.Array, target: Target, channels: int
) -> tuple[jax.Array, jax.Array]:
    """The pruned kernel (inputs, outputs), and its mask.

    Args:
      hessian: (inputs, inputs), positive definite.
      kernel: (inputs, outputs).
      alive: which inputs are ever anything; the others are worth nothing.
      target: what may be kept.
      channels: how many inputs lie side by side.
    """
    group, side_by_side = target.group(len(kernel), channels)
    lazy = group * max(_LAZY // group, 1)
    places = _places(len(kernel), side_by_side, group)
    size = -(-(places[-1] + 1) // lazy) * lazy
    counts = target.parts(len(kernel), kernel.shape[1], group)
    inputs = _Inputs(
        jnp.eye(size).at[places[:, None], places[None]].set(_inverse_factor(hessian)),
        jnp.zeros(size, bool).at[places].set(alive),
        jnp.zeros(size, bool).at[places].set(True),
        jnp.pad(counts, (0, size // group - len(counts))),
    )
    filled = jnp.zeros((size, kernel.shape[1])).at[places].set(kernel)
    step = functools.partial(_prune_block, inputs, target, lazy)
    new, keep = jax.lax.fori_loop(0, size // lazy, step, (filled, jnp.zeros(filled.shape, bool)))
    return jnp.where(keep, new, 0)[places], keep[places]


def _prune_block(inputs: _Inputs, target: Target, size: int, number, state):
    """Prunes a block of inputs, and passes its errors on to those after it."""
    kernel, keep = state
    start, put = number * size, jax.lax.dynamic_update_slice_in_dim
    rows = jax.lax.dynamic_slice_in_dim(kernel, start, size)
    own = inputs.block(start, size)
    step = functools.partial(_prune_group, own, target)
    state = rows, jnp.zeros(rows.shape, bool), jnp.zeros_like(rows)
    rows, kept, errors = jax.lax.fori_loop(0, len(own.counts), step, state)
    later = jnp.arange(len(kernel))[None] >= start + size
    beyond = jnp.where(later, jax.lax.dynamic_slice_in_dim(inputs.factor, start, size), 0)
    return put(kernel, rows, start, 0) - matmul(beyond.T, errors), put(keep, kept, start, 0)


def _prune_group(block: _Inputs, target: Target, number, state):
    """Chooses among the inputs of a group, and passes their errors on inside the block."""
    rows, keep, errors = state
    size = len(rows) // len(block.counts)
    own = block.block(number * size, size)
    here = jax.lax.dynamic_slice_in_dim(rows, number * size, size)
    worth = jnp.square(here / jnp.diagonal(own.factor)[:, None])
    worth = jnp.where(own.alive[:, None], worth, jnp.where(own.real[:, None], 0.0, -jnp.inf))
    kept = target.part(worth, own.counts[0]) & own.real[:, None]

    def prune_input(j, state):
        rows, errors = state
        i = number * size + j
        error = jnp.where(kept[j], 0, rows[i] / block.factor[i, i])
        return rows - jnp.outer(block.factor[i], error), errors.at[i].set(error)

    rows, errors = jax.lax.fori_loop(0, size, prune_input, (rows, errors))
    return rows, jax.lax.dynamic_update_slice_in_dim(keep, kept, number * size, 0), errors


def _places(inputs: int, side_by_side: int, group: int) -> np.ndarray:
    """Where inputs lie if those side by side are filled up to whole groups."""
    filled = -(-side_by_side // group) * group
    number = np.arange(inputs)
    return number // side_by_side * filled + number % side_by_side


def _inverse_factor(hessian: jax.Array) -> jax.Array:
    """Upper triangular U with U^T U the inverse; without forming it.

    H from its last row to its first is L L^T; so H is R R^T with an upper triangular R, and U is
    the inverse of R.
    """
    upper = jnp.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]
    identity = jnp.eye(len(hessian), dtype=hessian.dtype)
    return jax.scipy.linalg.solve_triangular(upper, identity, lower=False)
