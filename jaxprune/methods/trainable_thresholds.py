"""Pruning by thresholds that are trained with the weights: one for each output of each kernel.

A weight is kept where its magnitude exceeds the threshold of its output. The step has no gradient
to learn by, so that of a long-tailed bump stands in for it: a threshold then rises where the loss
would rather lose its weights. What presses thresholds upwards is a term of the user's loss.
"""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp

from jaxprune.patterns import groups
from jaxprune.trees import checks, masks

_ROUNDED = 1 + 2.0**-50  # since 0.29 * 100 is below 29 in double precision


def init_thresholds(params: chex.ArrayTree, *, where: masks.Where | None = None) -> chex.ArrayTree:
    """Thresholds of zero, one for each output, to be trained beside the weights.

    Args:
      params: tree of arrays.
      where: which leaves can be pruned, as for `prunable`; they need outputs, as for `group_norms`
        with axis "outputs".

    Returns:
      A tree like `params` of float32 arrays, with the leaf's dimensions and length 1 in all that
      aren't its outputs (nor layers of attention in one stack); `None` for leaves that stay dense.

    Raises:
      TypeError, ValueError: for what `prunable` refuses, or a leaf without outputs.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.init_thresholds({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': None, 'kernel': Array([[0., 0., 0.]], dtype=float32)}
    """

    def zeros(path, leaf, chosen):
        if chosen is None:
            return None
        (inside,) = groups.axes_inside("outputs", masks.path_name(path), leaf.shape)
        of_outputs = jnp.max(leaf, axis=inside, keepdims=True, initial=0)  # which lie like them
        return jnp.zeros_like(of_outputs, jnp.float32)

    return jax.tree_util.tree_map_with_path(zeros, params, masks.prunable(params, where))


def above_thresholds(params: chex.ArrayTree, thresholds: chex.ArrayTree) -> chex.ArrayTree:
    r"""Weights with zeros where thresholds prune, and a gradient for weights and thresholds.

    .. math:: w \, [x > 0], \quad x = |w| - t, \quad \frac{d [x > 0]}{dx} :=
      2 - 4 |x| \text{ for } |x| \le 0.4, \quad 0.4 \text{ up to } 1, \quad 0 \text{ beyond}

    Train both at once, with the pressure of a small alpha on the thresholds, and without weight
    decay on them; after each update, `reset_thresholds`::

        def loss(trained):
            params = jp.above_thresholds(trained["params"], trained["thresholds"])
            pressure = sum(jnp.sum(jnp.exp(-t)) for t in jax.tree.leaves(trained["thresholds"]))
            return task(params) + 5e-4 * pressure

    Args:
      params: tree of arrays.
      thresholds: tree like it, with shapes that broadcast to the leaves' and `None` where a leaf
        stays dense; `init_thresholds`. Negative ones count as any other: all weights exceed them.

    Returns:
      A tree like `params`, with its dtypes: the weights that the network computes with.

    Raises:
      TypeError: for thresholds that aren't floating-point.
      ValueError: if they don't fit; the message names the leaf.

    Source: Liu et al., "Dynamic sparse training: find efficient sparse network from scratch with
    trainable masked layers" (ICLR 2020), sections 3.2 to 3.4.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> weights, threshold = jnp.array([[0.2, -0.8]]), jnp.array([[0.5, 0.5]])
    >>> jp.above_thresholds(weights, threshold)
    Array([[ 0. , -0.8]], dtype=float32)
    >>> total = lambda t: jnp.sum(jp.above_thresholds(weights, t))
    >>> jax.grad(total)(threshold).round(2)
    Array([[-0.16,  0.64]], dtype=float32)
    """
    _check(params, thresholds)

    def masked(weight, threshold):
        if threshold is None:
            return weight
        exact = weight.astype(masks.at_least_float32(weight))
        keep = _step(jnp.abs(exact) - threshold.astype(exact.dtype))
        return (exact * keep).astype(weight.dtype)

    return jax.tree.map(masked, params, thresholds)


@jax.custom_jvp
def _step(x: jax.Array) -> jax.Array:
    """Whether x > 0, as 0 or 1, with a long-tailed derivative."""
    return (x > 0).astype(x.dtype)


@_step.defjvp
def _step_jvp(primals, tangents):
    size = jnp.abs(primals[0])
    slope = jnp.where(size <= 0.4, 2.0 - 4.0 * size, jnp.where(size <= 1.0, 0.4, 0.0))
    return _step(*primals), slope * tangents[0]


def reset_thresholds(
    params: chex.ArrayTree, thresholds: chex.ArrayTree, *, least: float = 0.01
) -> chex.ArrayTree:
    """Sets the thresholds of a leaf back to zero if they keep too few of its weights.

    Args:
      params: tree of arrays.
      thresholds: tree like it, as for `above_thresholds`.
      least: the density that a leaf needs more than, in [0, 1].

    Returns:
      Thresholds: those of leaves that keep more, and zeros. To be called after each update, inside
      `jax.jit`.

    Raises:
      TypeError, ValueError: as `above_thresholds`, and for a density outside [0, 1].

    Source: Liu et al. (ICLR 2020), section 3.4.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.reset_thresholds(jnp.array([[0.2, -0.8]]), jnp.array([[0.5, 0.9]]))
    Array([[0., 0.]], dtype=float32)
    """
    _check(params, thresholds)
    checks.fraction("the least density", least)

    def reset(weight, threshold):
        if threshold is None:
            return None
        exact = weight.astype(masks.at_least_float32(weight))
        kept = masks.nonzeros([jnp.abs(exact) > threshold.astype(exact.dtype)])
        return jnp.where(kept > _part(least, weight.size), threshold, jnp.zeros_like(threshold))

    return jax.tree.map(reset, params, thresholds)


def _part(density: float, size: int) -> chex.Numeric:
    """The largest count that isn't more than this part of so many; of a traced part the product."""
    product = density * size
    return float(math.floor(product * _ROUNDED)) if checks.known(product) else product


def _check(params: chex.ArrayTree, thresholds: chex.ArrayTree) -> None:
    """Raises an error that names the leaf unless thresholds fit the parameters."""
    masks.leaves_like(params, thresholds, "the tree of thresholds", "`init_thresholds(params)`")
    masks.check_floating("thresholds", thresholds)

    def fits(path, weight, threshold):
        if threshold is not None and not _broadcasts(threshold.shape, weight.shape):
            raise ValueError(
                f"the thresholds of leaf '{masks.path_name(path)}' have shape {threshold.shape}, "
                f"which doesn't broadcast to {weight.shape}: make them by `init_thresholds`"
            )

    jax.tree_util.tree_map_with_path(fits, params, thresholds)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) == len(to) and all(a in (1, b) for a, b in zip(shape, to, strict=True))
