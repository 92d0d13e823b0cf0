r"""SparseGPT: inputs are gone through in order; what pruning one does wrong, later ones make up for.

With the Hessian H = X^T X + ridge and its inverse U^T U, U upper triangular, weight w of input i
is worth

.. math:: (w / U_{ii})^2

which is what pruning it costs if all inputs after i are free to change. Pruning subtracts
w U_ij / U_ii from the weights of input j > i of the same output, all outputs at once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.networks.moments import matmul
from jaxprune.networks.targets import Target

_LAZY = 128  # inputs whose errors are passed on together


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
    inputs, outputs = kernel.shape
    group, side_by_side = target.group(inputs, channels)
    lazy = group * max(_LAZY // group, 1)
    places = _places(inputs, side_by_side, group)
    size = -(-(places[-1] + 1) // lazy) * lazy
    spread = lambda x, fill: jnp.full((size, *x.shape[1:]), fill, x.dtype).at[places].set(x)
    factor = jnp.eye(size).at[places[:, None], places[None]].set(_inverse_factor(hessian))
    kernel, alive, real = spread(kernel, 0), spread(alive, False), spread(alive | True, False)
    counts = target.parts(inputs, outputs, group)
    counts = jnp.pad(counts, (0, size // group - len(counts)))

    def of_group(i, state, start, own):
        """Prunes inputs of the lazy ones that begin at `start`, for which `own` is the factor."""
        rows, keep, errors = state
        take = lambda x: jax.lax.dynamic_slice_in_dim(x, i * group, group)
        at = start + i * group
        flags = lambda x: jax.lax.dynamic_slice_in_dim(x, at, group)[:, None]
        worth = (take(rows) / take(jnp.diagonal(own))[:, None]) ** 2
        worth = jnp.where(flags(alive), worth, jnp.where(flags(real), 0.0, -jnp.inf))
        kept = target.part(worth, counts[at // group]) & flags(real)

        def of_input(j, state):
            rows, errors = state
            place = i * group + j
            error = jnp.where(kept[j], 0, rows[place] / own[place, place])
            return rows - jnp.outer(own[place], error), errors.at[place].set(error)

        rows, errors = jax.lax.fori_loop(0, group, of_input, (rows, errors))
        return rows, jax.lax.dynamic_update_slice_in_dim(keep, kept, i * group, 0), errors

    def of_lazy(block, state):
        kernel, keep = state
        start = block * lazy
        own = jax.lax.dynamic_slice(factor, (start, start), (lazy, lazy))
        rows = jax.lax.dynamic_slice_in_dim(kernel, start, lazy)
        begin = rows, jnp.zeros(rows.shape, bool), jnp.zeros_like(rows)
        step = functools.partial(of_group, start=start, own=own)
        rows, kept, errors = jax.lax.fori_loop(0, lazy // group, step, begin)
        later = jnp.arange(size)[None] >= start + lazy
        beyond = jnp.where(later, jax.lax.dynamic_slice_in_dim(factor, start, lazy), 0)
        kernel = jax.lax.dynamic_update_slice_in_dim(kernel, rows, start, 0)
        kernel = kernel - matmul(beyond.T, errors)
        return kernel, jax.lax.dynamic_update_slice_in_dim(keep, kept, start, 0)

    begin = kernel, jnp.zeros(kernel.shape, bool)
    kernel, keep = jax.lax.fori_loop(0, size // lazy, of_lazy, begin)
    return jnp.where(keep, kernel, 0)[places], keep[places]


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
