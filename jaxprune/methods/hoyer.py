"""DeepHoyer: pressure towards sparsity by links, then a threshold.

Yang, Wen, Li, "DeepHoyer: Learning Sparser Neural Network with Differentiable Scale-Invariant
Sparsity Measures" (ICLR 2020, arXiv 1908.09979). Three steps: train with `add_hoyer_square` or
`add_group_hoyer_square` in front of the optimizer, prune what is small beside the rest of its layer
(`threshold_mask`), and fine-tune with `keep_mask` at the end of the chain. A layer's norm is free
under a scale-invariant penalty, so thresholds relative to the layer are the ones that work.

A penalty added before Adam is rescaled by it together with the gradient, as in the authors' code;
added after it, and before the learning rate, it is decoupled, like AdamW's weight decay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.methods import penalties
from jaxprune.methods.keeping import needed
from jaxprune.patterns import groups
from jaxprune.trees import checks, masks, selection


class AddPenaltyState(NamedTuple):
    """`count`: updates so far, an int32 scalar."""

    count: jax.typing.ArrayLike


def add_penalty(
    penalty: Callable[[chex.ArrayTree], chex.Numeric],
    strength: optax.ScalarOrSchedule,
    *,
    where: masks.Where | None = None,
) -> optax.GradientTransformation:
    """Adds the gradient of `strength` times a penalty of the prunable parameters to the updates.

    Args:
      penalty: from the parameters, `None` in the place of leaves that can't be pruned and float32
        or wider in the others, to a scalar: `hoyer_square`, `l1`, `transformed_l1`, or with its
        axis bound `functools.partial(group_lasso, axis="outputs")`. (`optax.inject_hyperparams`
        wants to be told of functions that aren't schedules: `static_args="penalty"`.)
      strength: a number, also a traced one, or a schedule of the link's own count.
      where: which leaves can be pruned, as for `prunable`.

    Returns:
      A transformation that stands, like `optax.add_decayed_weights`, before the optimizer. The
      updates keep their dtypes.

    Raises:
      TypeError: for a penalty that is no function, or a strength that is neither a number nor a
        schedule.
      ValueError: in `update`, without parameters, or if none of them is prunable.

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.array([[3.0, -4.0]]), "bias": jnp.ones(2)}
    >>> tx = optax.chain(jp.add_penalty(jp.l1, 0.5), optax.sgd(1.0))
    >>> tx.update(optax.tree.zeros_like(params), tx.init(params), params)[0]
    {'bias': Array([-0., -0.], dtype=float32), 'kernel': Array([[-0.5,  0.5]], dtype=float32)}
    """
    checks.function("`penalty`", penalty)
    checks.strength("the strength", strength)

    def init_fn(params):
        del params
        return AddPenaltyState(count=jnp.int32(0))

    def update_fn(updates, state, params=None):
        params = needed(params, updates)
        pressed = jax.tree.map(
            lambda p, keep: None if keep is None else p.astype(masks.at_least_float32(p)),
            params,
            masks.prunable(params, where),
        )
        factor = strength(state.count) if callable(strength) else strength

        def add(update, gradient):
            if gradient is None:
                return update
            scaled = jnp.asarray(factor, gradient.dtype) * gradient
            return (update.astype(gradient.dtype) + scaled).astype(update.dtype)

        updates = jax.tree.map(add, updates, jax.grad(penalty)(pressed))
        return updates, AddPenaltyState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init_fn, update_fn)


def add_hoyer_square(
    strength: optax.ScalarOrSchedule,
    *,
    normalized: bool = False,
    where: masks.Where | None = None,
) -> optax.GradientTransformation:
    """Adds the gradient of `strength` times Hoyer-Square of each prunable leaf to the updates.

    The gradient grows as weights shrink, so weight decay beside it raises its effect.

    Args:
      strength: a number, also a traced one, or a schedule of the link's own count. The paper's
        networks took 1e-5 to 2e-4.
      normalized: divide each leaf's Hoyer-Square by its size.
      where: which leaves can be pruned, as for `prunable`.

    Returns:
      A transformation that stands before the optimizer (`add_penalty` of `hoyer_square`).

    Raises:
      TypeError: for a strength that is neither a number nor a schedule.
      ValueError: in `update`, without parameters, or if none of them is prunable.

    Source: DeepHoyer (ICLR 2020), equation 3.

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.array([[3.0, 4.0]])}
    >>> tx = optax.chain(jp.add_hoyer_square(1.0), optax.sgd(1.0))
    >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].round(4).tolist()
    [[2.9104, 4.0672]]
    """
    penalty = functools.partial(penalties.hoyer_square, normalized=normalized)
    return add_penalty(penalty, strength, where=where)


def add_group_hoyer_square(
    strength: optax.ScalarOrSchedule,
    *,
    axis: groups.Axis = ("inputs", "outputs"),
    normalized: bool = False,
    where: masks.Where | None = None,
) -> optax.GradientTransformation:
    """Adds the gradient of `strength` times group Hoyer-Square of each prunable leaf.

    Args:
      strength: a number, also a traced one, or a schedule of the link's own count.
      axis: the axes inside a group, or names, as for `group_hoyer_square`; by default the paper's:
        input channels plus filters of convolutions, rows plus columns of matrices.
      normalized: divide each leaf's group Hoyer-Square by the number of its groups.
      where: which leaves can be pruned, as for `prunable`.

    Returns:
      A transformation that stands before the optimizer (`add_penalty` of `group_hoyer_square`).

    Raises:
      TypeError: for a strength that is neither a number nor a schedule.
      ValueError: in `update`, without parameters, if none of them is prunable, or if one doesn't
        have the axes; the message names the leaf.

    Source: DeepHoyer (ICLR 2020), equation 6.

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]])}
    >>> tx = optax.chain(jp.add_group_hoyer_square(1.0, axis="outputs"), optax.sgd(1.0))
    >>> updates, _ = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].round(4).tolist()
    [[2.9104, 0.0], [0.0, 4.0672]]
    """
    groups.check(axis)
    penalty = functools.partial(penalties.group_hoyer_square, axis=axis, normalized=normalized)
    return add_penalty(penalty, strength, where=where)


def threshold_mask(
    params: chex.ArrayTree,
    threshold: chex.Numeric | Callable[[jax.Array], chex.Numeric],
    *,
    axis: groups.Axis | None = None,
    where: masks.Where | None = None,
) -> chex.ArrayTree:
    """Keeps the weights, or the groups of them, that reach a threshold.

    Args:
      params: tree of arrays.
      threshold: a number for all leaves, or a function from one leaf to its number:
        `lambda w: 0.03 * jnp.std(w)` for a multiple of its standard deviation, `trimming_point` for
        the point where Hoyer-Square turns from shrinking to growing.
      axis: `None` to compare the magnitudes of single weights; or the axes inside a group, as for
        `group_hoyer_square`, to compare the groups' norms. A function for the threshold then gets
        the norms. Of several kinds of groups a weight needs all of its own to be kept.
      where: which leaves can be pruned, as for `prunable`.

    Returns:
      A mask like `params`. What is exactly zero is pruned at any threshold.

    Raises:
      TypeError: for a threshold that is neither a number nor a function, or an axis that is none.
      ValueError: for NaN (checked outside `jit`), if nothing is prunable, or for axes that a leaf
        doesn't have; the message names the leaf.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.array([[0.1, -3.0], [0.2, 4.0]])}
    >>> jp.threshold_mask(params, 0.15)["kernel"].tolist()
    [[False, True], [True, True]]
    >>> jp.threshold_mask(params, jp.trimming_point, axis="outputs")["kernel"].tolist()
    [[False, True], [False, True]]
    """
    chosen_leaves = masks.prunable(params, where)
    limit = _limit(threshold)
    selection.check_no_nan(params)

    def keep(path, leaf, chosen):
        if chosen is None:
            return None
        name, leaf = masks.path_name(path), leaf.astype(masks.at_least_float32(leaf))
        if axis is None:
            return _reaches(name, leaf, limit)
        kept = ~jnp.isnan(leaf)
        for inside in groups.axes_inside(axis, name, leaf.shape):
            kept = kept & _reaches(name, groups.norms(leaf, inside), limit)
        return kept

    return jax.tree_util.tree_map_with_path(keep, params, chosen_leaves)


def _limit(threshold) -> Callable[[jax.Array], chex.Numeric]:
    """From a leaf to its threshold."""
    if callable(threshold):
        return threshold
    checks.number("the threshold", threshold, "a number or a function of a leaf")
    if checks.known(threshold) and threshold != threshold:
        raise ValueError("the threshold must be a number to compare with, got nan")
    return lambda _: threshold


def _reaches(name: str, x: jax.Array, limit: Callable[[jax.Array], chex.Numeric]) -> jax.Array:
    least = limit(x)
    if jnp.shape(least) != ():
        raise ValueError(
            f"the threshold of leaf '{name}' must be a scalar, got {checks.described(least)}"
        )
    return (jnp.abs(x) >= jnp.asarray(least, x.dtype)) & (x != 0)
