"""Channels that die in training by themselves: a link that only looks.

Mehta, Kim, Theobalt, "On Implicit Filter Level Sparsity in Convolutional Neural Networks" (CVPR
2019, arXiv 1811.12495). Where a norm follows a layer, weight decay as an L2 term in the gradient
drives scales of the norm to zero, under Adam most of all: the filter in front of such a scale is
gone without any pruning. Whoever claims to have removed filters should know how many would have
gone anyway.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.methods.keeping import needed
from jaxprune.trees import checks, masks, norms


class CountDyingState(NamedTuple):
    """`dying`: of each leaf that is watched how many entries are small, int32 scalars."""

    dying: chex.ArrayTree


def count_dying(
    below: float = 1e-3, *, where: masks.Where | None = None
) -> optax.GradientTransformation:
    """Counts the channels whose norm scales them by almost nothing. Changes no update.

    Args:
      below: a channel is dying if the magnitude of its scale is smaller; a positive number.
      where: which leaves are watched, as for `prunable`. By default the scales of norms: leaves
        called `scale` or `gamma`, and one-dimensional ones called `weight`.

    Returns:
      A transformation that may stand anywhere in a chain. Its state, which
      `optax.tree.get(opt_state, "dying")` finds, is a tree like the parameters of int32 scalars,
      `None` for leaves that aren't watched: of the parameters that came with the last update, or
      that `init` was given. A network without norms has nothing but `None`.

    Raises:
      TypeError: for a `below` that is no number.
      ValueError: for one that isn't positive and finite; in `init`, if `where` chooses nothing; in
        `update`, without parameters.

    Source: Mehta et al. (CVPR 2019), section 3, for the threshold of 1e-3.

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.zeros((2, 3)), "scale": jnp.array([1.0, 1e-4, -1e-5])}
    >>> tx = optax.chain(jp.count_dying(), optax.add_decayed_weights(5e-4), optax.adam(1e-3))
    >>> optax.tree.get(tx.init(params), "dying")
    {'kernel': None, 'scale': Array(2, dtype=int32)}
    """
    checks.number("`below`", below, "a positive number")
    if not 0 < below < math.inf:
        raise ValueError(f"`below` must be positive and finite, got {below}")

    def counted(params):
        watched = _watched(params, where)
        return CountDyingState(jax.tree.map(functools.partial(_small, below), params, watched))

    def update_fn(updates, state, params=None):
        return updates, counted(needed(params, updates))

    return optax.GradientTransformation(counted, update_fn)


def _small(below: float, leaf: jax.Array, watched: jax.Array | None) -> jax.Array | None:
    return None if watched is None else jnp.sum(jnp.abs(leaf) < below, dtype=jnp.int32)


def _watched(params: chex.ArrayTree, where: masks.Where | None) -> chex.ArrayTree:
    """A mask of the leaves; no leaf at all if there are no norms."""
    if where is not None:
        return masks.prunable(params, where)
    found = norms.scales(params)
    if not found:
        return jax.tree.map(lambda leaf: None, params)
    return masks.prunable(params, lambda path, leaf: path in found)
