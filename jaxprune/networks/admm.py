r"""ADMM: the mask of least error is looked for by weights W that fit and weights D that are sparse.

In coordinates in which every input has a mean square of 1, so that magnitudes are worth the same,

.. math::
  W &= \arg\min \tfrac12 \| X (W - W_*) \|^2 + \langle V, W - D \rangle
       + \tfrac\rho2 \| W - D \|^2 \\
  D &= P(W + V / \rho), \qquad V \leftarrow V + \rho (W - D)

where P keeps the largest squares that the pattern allows: exactly, of transposable patterns too.
The penalty rises until both are the same.
"""

import functools

import jax
import jax.numpy as jnp

from jaxprune.networks.moments import matmul
from jaxprune.networks.targets import Target

_STEPS = 300
_FIRST, _LAST = 0.01, 10.0  # of the penalty; the Hessian's mean eigenvalue is 1


@functools.partial(jax.jit, static_argnames=("target", "channels"))
def admm_mask(
    hessian: jax.Array, kernel: jax.Array, alive: jax.Array, target: Target, channels: int
) -> jax.Array:
    """The mask (inputs, outputs); arguments as for `sparsegpt`."""
    scale = jnp.where(alive, jnp.sqrt(jnp.diagonal(hessian)), 1.0)
    wanted = jnp.where(alive[:, None], kernel * scale[:, None], 0)
    values, vectors = jnp.linalg.eigh(hessian / jnp.outer(scale, scale))
    turned = matmul(vectors.T, wanted) * values[:, None]
    project = lambda x: target.mask(x**2, channels)

    def step(i, state):
        keep, sparse, dual = state
        penalty = _FIRST * (_LAST / _FIRST) ** (i / _STEPS)
        right = turned + matmul(vectors.T, penalty * sparse - dual)
        weights = matmul(vectors, right / (values + penalty)[:, None])
        free = weights + dual / penalty
        keep = project(free)
        sparse = jnp.where(keep, free, 0)
        return keep, sparse, penalty * (free - sparse)

    keep = project(wanted)
    start = keep, jnp.where(keep, wanted, 0), jnp.zeros_like(wanted)
    return jax.lax.fori_loop(0, _STEPS, step, start)[0]
