"""How dense each leaf is where training is sparse from the start, and random masks of it.

A random mask keeps exactly the asked number of weights in each leaf: those of the largest of so
many random numbers.
"""

from __future__ import annotations

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxprune.trees import checks, masks, sampling, selection, wide


def erk_sparsities(
    params: chex.ArrayTree, sparsity: float, *, where: masks.Where | None = None
) -> chex.ArrayTree:
    r"""A sparsity for each leaf, so that small leaves stay denser (Erdos-Renyi kernel).

    .. math:: 1 - s_l = \min\Big(1, \epsilon \, \frac{\sum_i d_i}{\prod_i d_i}\Big)

    with the dimensions d of leaf l and the one epsilon for which the whole tree has the sparsity.

    Args:
      params: tree of arrays; shapes suffice.
      sparsity: of all prunable weights together, in [0, 1]; not traced.
      where: which leaves can be pruned, as for `prunable`.

    Returns:
      A tree like `params` of Python floats, and `None` for leaves that stay dense.

    Raises:
      TypeError: for a sparsity that is no number or traced, or what `prunable` refuses.
      ValueError: for a sparsity outside [0, 1], or if nothing is prunable.

    Source: Evci et al., "Rigging the lottery" (ICML 2020), section 3.1; Mocanu et al. (2018).

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"large": jnp.ones((40, 40)), "small": jnp.ones((4, 10)), "bias": jnp.ones(4)}
    >>> jp.erk_sparsities(params, 0.9)
    {'bias': None, 'large': 0.91276..., 'small': 0.38936...}
    """
    _check_known("the sparsity", sparsity)
    chosen = jax.eval_shape(lambda params: masks.prunable(params, where), params)
    leaves, structure = jax.tree.flatten(chosen)
    densities = _erk_densities([leaf.shape for leaf in leaves], 1.0 - float(sparsity))
    return structure.unflatten(1.0 - density for density in densities)


def _erk_densities(shapes: list[tuple[int, ...]], density: float) -> list[float]:
    """Leaves whose share would exceed their weights are dense, and the others share again."""
    sizes = [math.prod(shape) for shape in shapes]
    sides = [max(sum(shape), 1) for shape in shapes]  # a scalar has none
    budget, sparse, full = density * sum(sizes), set(range(len(shapes))), {-1}
    scale = 0.0
    while sparse and full:
        scale = budget / sum(sides[i] for i in sparse)
        full = {i for i in sparse if scale * sides[i] >= sizes[i]}
        budget, sparse = budget - sum(sizes[i] for i in full), sparse - full
    return [scale * sides[i] / sizes[i] if i in sparse else 1.0 for i in range(len(shapes))]


def random_mask(
    key: chex.PRNGKey,
    params: chex.ArrayTree,
    sparsity: float | chex.ArrayTree,
    *,
    where: masks.Where | None = None,
) -> chex.ArrayTree:
    """A random mask that keeps exactly so many weights of each leaf.

    Args:
      key: one `jax.random.key`.
      params: tree of arrays.
      sparsity: in [0, 1], for each leaf, not traced; or a tree like `params` of such numbers, with
        `None` where a leaf stays dense, such as `erk_sparsities`.
      where: which leaves can be pruned, as for `prunable`; with a tree of sparsities, which says it
        already, nothing.

    Returns:
      A mask like `params`. Of a leaf of n weights n (1 - sparsity), rounded, are kept.

    Raises:
      TypeError: for a sparsity or key that is none, a traced sparsity, or what `prunable` refuses.
      ValueError: for a sparsity outside [0, 1], a tree that doesn't fit, or a `where` beside it.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.ones((10, 10)), "bias": jnp.ones(10)}
    >>> mask = jp.random_mask(jax.random.key(0), params, 0.9)
    >>> jp.count(mask), mask["bias"]
    (10, None)
    """
    checks.key(key)
    sparsities = _of_leaves(params, sparsity, where)
    chosen = jax.tree.map(lambda p, s: None if s is None else p, params, sparsities)
    return jax.tree.map(_keep_some, sampling.keys_like(key, chosen), chosen, sparsities)


def _of_leaves(params, sparsity: Any, where) -> chex.ArrayTree:
    """A sparsity for each leaf that can be pruned."""
    if jax.tree_util.all_leaves([sparsity]):
        _check_known("the sparsity", sparsity)
        chosen = jax.eval_shape(lambda params: masks.prunable(params, where), params)
        return jax.tree.map(lambda _: sparsity, chosen)
    if where is not None:
        raise ValueError("`where` goes with one sparsity; a tree of them has None for other leaves")
    masks.leaves_like(params, sparsity, "the tree of sparsities", "`erk_sparsities`")
    for path, value in jax.tree_util.tree_leaves_with_path(sparsity):
        _check_known(f"the sparsity of leaf '{masks.path_name(path)}'", value)
    return sparsity


def _check_known(name: str, sparsity: Any) -> None:
    checks.fraction(name, sparsity)
    if not checks.known(sparsity):
        raise TypeError(
            f"{name} must be a number that is known while JAX traces, got a traced one: give a "
            "Python number, as a static argument of `jax.jit`"
        )


@wide.counts_in_64_bits
def _keep_some(key: chex.PRNGKey, leaf: jax.Array, sparsity: float) -> jax.Array:
    kept = jnp.uint64(leaf.size - round(float(sparsity) * leaf.size))
    return masks.sharded_alike(_largest_of_random, leaf)(leaf, key, kept)


@jax.jit  # else a leaf's random numbers would be made on one device
def _largest_of_random(leaf: jax.Array, key: chex.PRNGKey, kept: jax.Array) -> jax.Array:
    ranked = sampling.at_random(leaf, key)
    return ranked.kept(selection.cut(ranked, kept))
