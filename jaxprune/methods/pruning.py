"""Links that prune the parameters they update: to a given mask, a global budget, a threshold."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.methods import keeping
from jaxprune.trees import checks, masks, selection, wide

_LOOK_EVERY = 100  # updates of `keep_mask` between two looks at what it has pruned


def keep_mask(mask: chex.ArrayTree) -> optax.GradientTransformation:
    """Keeps pruned weights at exactly zero, whatever the optimizer before it does.

    Args:
      mask: tree like the parameters: boolean arrays, `None` where a leaf stays dense. The state
        holds a copy, found with `optax.tree.get(opt_state, "mask")`.

    Returns:
      A transformation for the end of a chain. The first update sets pruned weights to zero, if
      they aren't yet.

    Raises:
      TypeError: in `init`, for a mask that isn't boolean; the message names the leaf.
      ValueError: in `init`, if the mask doesn't fit; the message names the leaf.

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> tx = optax.chain(optax.sgd(0.1), jp.keep_mask({"w": jnp.array([True, False])}))
    >>> updates, _ = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)
    {'w': Array([0.9, 0. ], dtype=float32)}
    """

    def given(params):
        masks.check_boolean(mask)
        return jax.tree.map(jnp.copy, masks.fit_mask(params, mask))

    return keeping.keep(None, given, _LOOK_EVERY)


def keep_top_k(
    sparsity: optax.ScalarOrSchedule,
    *,
    every: int = 1,
    where: masks.Where | None = None,
) -> optax.GradientTransformation:
    """Keeps the largest magnitudes of the whole tree, and zeros the other weights.

    The mask is chosen anew at updates 0, `every`, 2 `every`, ..., over all prunable leaves at once,
    from the parameters as they come in; in between it is kept. So a pruned weight stays zero,
    unless the sparsity falls (then zeros are let go in order of position); for weights that return
    there is `straight_through`.

    Args:
      sparsity: fraction of zeros among prunable weights, in [0, 1]; a number or a schedule of the
        link's own count. n (1 - sparsity), rounded, of n weights are kept: exactly for a Python
        number; a traced one is a float32. Where a traced one is NaN or outside [0, 1], and where a
        weight is NaN, the mask in force is kept, and `problems` says so.
      every: updates between two choices of the mask.
      where: which leaves can be pruned, as for `prunable`.

    Returns:
      A transformation for the end of a chain. The mask is found with
      `optax.tree.get(opt_state, "mask")`.

    Raises:
      TypeError: for a sparsity that is neither a number nor a schedule, or an `every` that isn't
        whole.
      ValueError: for a sparsity outside [0, 1], `every` < 1, or parameters without prunable leaves.

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"w": jnp.array([[1.0, -2.0], [3.0, 0.5]])}
    >>> tx = optax.chain(optax.sgd(0.1), jp.keep_top_k(0.5))
    >>> updates, _ = tx.update({"w": jnp.ones((2, 2))}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["w"].tolist()
    [[0.0, -2.0999999046325684], [2.9000000953674316, 0.0]]
    """
    checks.fraction("sparsity", sparsity, schedule=True)

    def choice(params, count):
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        kept, valid = _kept(sparsity, count, size)
        return valid, lambda: selection.keep_largest(params, kept, magnitudes=True)

    return keeping.keep(choice, lambda params: masks.prunable(params, where), every)


def keep_above(
    threshold: Any,
    *,
    every: int = 100,
    where: masks.Where | None = None,
) -> optax.GradientTransformation:
    """Keeps the weights whose magnitude reaches a threshold, and zeros the others.

    The mask is chosen anew at updates 0, `every`, 2 `every`, ... from the parameters as they come
    in; in between it is kept. A pruned weight is zero, so it stays pruned while the threshold is
    above 0: masks only lose weights, as those of recurrent networks do in the source.

    Args:
      threshold: for all leaves, a number or a schedule of the link's own count, such as
        `ramped_threshold`; or a tree like the parameters of numbers and schedules, with `None`
        where a leaf stays dense. At 0 all weights are kept. Where one is NaN or negative, and where
        a weight is NaN, the mask in force is kept, and `problems` says so.
      every: updates between two choices of the mask.
      where: which leaves can be pruned, as for `prunable`; with a tree of thresholds, which says it
        already, nothing.

    Returns:
      A transformation for the end of a chain. The mask is found with
      `optax.tree.get(opt_state, "mask")`.

    Raises:
      TypeError: for a threshold that is neither a number nor a schedule, or an `every` that isn't
        whole.
      ValueError: for a negative threshold, `every` < 1, a `where` beside a tree; in `init`, for a
        tree that doesn't fit, or parameters of which nothing is chosen.

    Source: Narang et al., "Exploring sparsity in recurrent neural networks" (ICLR 2017).

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"w": jnp.array([[1.0, -2.0], [3.0, 0.5]])}
    >>> tx = optax.chain(optax.sgd(0.1), jp.keep_above(1.5))
    >>> updates, _ = tx.update({"w": jnp.ones((2, 2))}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["w"].tolist()
    [[0.0, -2.0999999046325684], [2.9000000953674316, 0.0]]
    """
    alone = jax.tree_util.all_leaves([threshold])
    for path, one in jax.tree_util.tree_leaves_with_path(threshold):
        _check_threshold("the threshold" + f" of leaf '{masks.path_name(path)}'" * bool(path), one)
    if not alone and where is not None:
        raise ValueError(
            "`where` goes with one threshold; a tree of them has None for other leaves"
        )

    def first(params):
        if alone:
            return masks.prunable(params, where)
        masks.leaves_like(params, threshold, "the tree of thresholds", "`jax.tree.map`")
        chosen = {masks.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(threshold)}
        return masks.prunable(params, lambda path, leaf: path in chosen)

    def limits(params, count):
        now = lambda one: jnp.asarray(one(count) if callable(one) else one, jnp.float32)
        if alone:
            return jax.tree.map(lambda leaf: now(threshold), params)
        return jax.tree.map(lambda leaf, one: now(one), params, masks.visible(params, threshold))

    def choice(params, count):
        least = limits(params, count)
        valid = jnp.all(jnp.stack(jax.tree.leaves(least)) >= 0)
        reach = lambda leaf, limit: jnp.abs(leaf.astype(jnp.float32)) >= limit
        return valid, lambda: jax.tree.map(reach, params, least)

    return keeping.keep(choice, first, every)


def _check_threshold(name: str, threshold) -> None:
    if callable(threshold):
        return
    checks.number(name, threshold, "a number or a schedule")
    if checks.known(threshold) and not threshold >= 0:
        raise ValueError(f"{name} must not be negative, got {threshold}")


@wide.counts_in_64_bits
def _kept(sparsity, count, size: int) -> tuple[jax.Array, jax.Array]:
    """How many of so many weights stay, as uint64, and whether the sparsity lies in [0, 1]."""
    if isinstance(sparsity, (int, float)):
        return jnp.uint64(size - round(sparsity * size)), jnp.bool_(True)
    value = jnp.asarray(sparsity(count) if callable(sparsity) else sparsity, jnp.float32)
    valid = (value >= 0) & (value <= 1)
    kept = jnp.round((1.0 - jnp.where(valid, value, 0.0)) * jnp.float32(size))
    return jnp.minimum(kept.astype(jnp.uint64), jnp.uint64(size)), valid
