"""Subnetworks of untrained weights: rescaling, and logits under a budget.

Dupont, Alaoui, Sahbi, Lebois, "Extracting effective subnetworks with Gumbel-softmax" (ICIP 2022,
arXiv 2202.12986). Weights stay as they were initialised. A logit for each is trained instead: the
loss draws a mask (`gumbel_mask`), and one learned scale a layer (`rescale`) sets right what the
pruning takes from its output. At the end a weight is kept if its logit is 0 or more, and the scale
goes into the weights: the network is then a plain one.
"""

from __future__ import annotations

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.methods import probmask
from jaxprune.methods.keeping import needed
from jaxprune.trees import checks, masks

_LIMIT = 10.0  # of a logit whose projected probability is 0 or 1
_LEAST = 1.0 / (1.0 + math.exp(_LIMIT))  # what such a limit leaves of a probability of 0
_SPAN = 1.0 - 2.0 * _LEAST


def signed_constant(params: chex.ArrayTree, mask: chex.ArrayTree) -> chex.ArrayTree:
    """Gives all weights of a leaf that can be pruned one magnitude: its standard deviation.

    What is learned is then the topology alone: a weight's sign is random, its size says nothing.

    Args:
      params: tree of arrays.
      mask: tree like `params`, `None` where a leaf stays as it is.

    Returns:
      A tree like `params`. Signs stay, that of 0 is positive.

    Raises:
      ValueError: if the mask doesn't fit; the message names the leaf.

    Source: Zhou et al. (NeurIPS 2019), section 4; Dupont et al. (ICIP 2022).

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"w": jnp.array([3.0, -1.0, -4.0, 2.0])}
    >>> jp.signed_constant(params, jp.prunable(params, "w"))["w"].round(3)
    Array([ 2.739, -2.739, -2.739,  2.739], dtype=float32)
    """

    def constant(weight, keep):
        if keep is None:
            return weight
        size = jnp.std(weight.astype(masks.at_least_float32(weight))).astype(weight.dtype)
        return jnp.where(weight < 0, -size, size)

    return jax.tree.map(constant, params, masks.fit_mask(params, mask))


def rescale(params: chex.ArrayTree, scales: chex.ArrayTree) -> chex.ArrayTree:
    """Multiplies each leaf by its scale.

    Args:
      params: tree of arrays, such as weights under a mask.
      scales: tree like `params` of scalars, `None` where a leaf stays as it is: learned ones, which
        start from 1 (`jax.tree.map(lambda _: jnp.float32(1), mask)`), or `inverse_density`.

    Returns:
      A tree like `params`, with its dtypes; the products are float32 or wider.

    Raises:
      TypeError: for what is no tree of scales.
      ValueError: if the scales don't have the structure of `params`, or one isn't a scalar.

    Source: Dupont et al. (ICIP 2022), section 3.3, "smart rescaling". In a network of ReLUs
    without biases only the product of all scales matters, as an inverse temperature of the logits.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.rescale({"w": jnp.array([1.0, 2.0]), "b": jnp.ones(1)}, {"w": jnp.array(3.0), "b": None})
    {'b': Array([1.], dtype=float32), 'w': Array([3., 6.], dtype=float32)}
    """

    def scaled(path, weight, scale):
        if scale is None:
            return weight
        if jnp.shape(scale) != ():
            raise ValueError(
                f"the scale of leaf '{masks.path_name(path)}' must be a scalar, got "
                f"{checks.described(scale)}"
            )
        dtype = masks.at_least_float32(weight)
        return (weight.astype(dtype) * jnp.asarray(scale, dtype)).astype(weight.dtype)

    masks.leaves_like(params, scales, "the scales", "`jax.tree.map` over their mask")
    return jax.tree_util.tree_map_with_path(scaled, params, scales)


def inverse_density(mask: chex.ArrayTree) -> chex.ArrayTree:
    """The scales of the dynamic rescale: the size of each leaf over the number of its kept weights.

    Args:
      mask: tree of masks, boolean or of 0 and 1, and `None`. No gradient goes through.

    Returns:
      A tree like `mask` of float32 scalars; 1 where nothing is kept.

    Raises:
      TypeError: for what is no tree of arrays.

    Source: Zhou et al. (NeurIPS 2019), section 5.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.inverse_density({"w": jnp.array([True, False, False, False])})
    {'w': Array(4., dtype=float32)}
    """

    def of_leaf(keep):
        kept = masks.nonzeros([jax.lax.stop_gradient(keep)])
        return jnp.where(kept > 0, float(keep.size) / jnp.maximum(kept, 1.0), 1.0)

    checks.tree("the mask", mask)
    return jax.tree.map(of_leaf, mask)


def project_logits(sparsity: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Projects logits so that their probabilities are within one budget over all layers.

    A chosen sparsity, which the paper doesn't have: sigma(logits) is projected as ProbMask's
    probabilities are (`project_probabilities`), and taken back to logits within +-10. These leave
    4.5e-5 of each probability of 0, which the budget contains: it holds up to a sparsity of
    0.99995, and beyond it all projected logits are -10.

    Args:
      sparsity: in [0, 1], as for `project_probabilities`.

    Returns:
      A transformation for the end of a chain over the tree of logits alone.

    Raises:
      TypeError: for a sparsity that is neither a number nor a schedule.
      ValueError: for a sparsity outside [0, 1].

    >>> import jax, jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> logits = {"w": jnp.zeros(4)}
    >>> tx = optax.chain(optax.sgd(1.0), jp.project_logits(0.75))
    >>> grads = {"w": jnp.array([-1.0, 0.0, 0.0, 0.0])}
    >>> updates, _ = tx.update(grads, tx.init(logits), logits)
    >>> float(jax.nn.sigmoid(optax.apply_updates(logits, updates)["w"]).mean())
    0.25
    """
    checks.fraction("sparsity", sparsity, schedule=True)

    def update_fn(updates, state, params=None):
        params = needed(params, updates)
        masks.check_floating("the projection", params)
        moved: Any = optax.apply_updates(params, updates)
        probs, before = _probabilities(moved), _probabilities(params)
        rounding = 2.0 * _LEAST + probmask.roundings(params)
        # As from [_LEAST, 1 - _LEAST] to [0, 1], which leaves nearest points nearest.
        shares = jax.tree.map(lambda prob: (prob - _LEAST) / _SPAN, probs)
        projected, state = probmask.projection(
            shares, before, state, sparsity=sparsity, rounding=rounding, left=_left
        )

        def back(logit, share, new, old):
            limited = jnp.clip(jax.scipy.special.logit(_LEAST + _SPAN * new), -_LIMIT, _LIMIT)
            same = new == jnp.clip(share, 0.0, 1.0)
            return jnp.where(same, logit, limited.astype(logit.dtype)) - old

        updates = jax.tree.map(back, moved, shares, projected, params)
        return probmask.nan_where_nan(updates, moved), state

    return optax.GradientTransformation(lambda params: probmask.initial_state(), update_fn)


def _left(density: chex.Numeric) -> chex.Numeric:
    """What a density leaves to shares, beside the least of each probability."""
    left = (density - _LEAST) / _SPAN
    return max(left, 0.0) if isinstance(left, float) else jnp.maximum(left, 0.0)


def _probabilities(logits: chex.ArrayTree) -> chex.ArrayTree:
    return jax.tree.map(lambda a: jax.nn.sigmoid(a.astype(masks.at_least_float32(a))), logits)
