r"""AdaPrune: the kept weights of a network change so that its layers give what they gave before.

Layer by layer, with inputs `X` of calibration data (rows) and the dense kernel `W`:

.. math:: \min_{W', b'} \| X_d W + b - X (S \circ W') - b' \|^2 + \delta \| W - S \circ W' \|^2

`X` is `X_d`, what the layer sees in the dense network, or in sequence what it sees in the network
whose earlier layers have been pruned and reconstructed. Only X^T X, X^T X_d and the means of rows
are kept of the data. Each output's kept weights solve normal equations of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.networks import capture, layerwise
from jaxprune.networks.moments import Moments, matmul, ridge
from jaxprune.trees import masks

_AT_ONCE = 2**24  # entries of the matrices that are factorised together
_STEPS, _LEARNING_RATE = 1000, 1e-3
_ROUNDED = 16  # so that layers with masks of their own share what is compiled


def reconstruct(
    apply: Callable[[chex.ArrayTree, Any], Any],
    params: chex.ArrayTree,
    mask: chex.ArrayTree,
    batches: Sequence[Any],
    *,
    sequential: bool = True,
    damping: float = 0.01,
    method: str = "closed_form",
) -> chex.ArrayTree:
    """Prunes a trained network by a mask and makes up for it, with a little data and no labels.

    Args:
      apply: `apply(params, batch)` runs the model, BatchNorm with its running averages; what it
        returns is ignored. It is traced, and the inputs of each leaf's matrix product or
        convolution are found by themselves, so any model will do; of layers that are stacked in one
        leaf and run by `jax.lax.scan`, each on its own.
      params: trained parameters.
      mask: tree of booleans and `None` like `params`, for example an N:M mask of its magnitudes;
        leaves with `None` stay as they are.
      batches: calibration data, some hundred to a thousand records in all; each shape of batches is
        compiled. What flows between two layers is held for all of them.
      sequential: whether a layer makes up for the layers before it, too. Otherwise each one sees
        what the dense network's sees.
      damping: delta, as a fraction of the mean square of the inputs; it draws towards the dense
        weights. Of the closed form only.
      method: "closed_form" solves the normal equations; "gradient" takes 1,000 steps of Adam, like
        the paper's, but on all data at once.

    Returns:
      Parameters like `params`, zero where the mask prunes. A kernel's bias, the leaf beside it
      that is named so, is fitted as well.

    Raises:
      TypeError: for an `apply` that is no function, a mask that isn't boolean, or batches that
        aren't a sequence.
      ValueError: for a mask that doesn't fit or a masked leaf without products that are seen (in
        other loops, grouped convolutions), no batches, data that give NaN or infinity, equations
        that are singular (without damping), or an unknown method.

    Source: Hubara et al. (NeurIPS 2021), section 5, for the problem; the closed form takes the
    place of its gradient steps.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> inputs = jax.random.normal(jax.random.key(0), (100, 2)) @ jnp.ones((2, 8)).cumsum(1)
    >>> params = {"kernel": jax.random.normal(jax.random.key(1), (8, 4)), "bias": jnp.zeros(4)}
    >>> apply = lambda params, x: x @ params["kernel"] + params["bias"]
    >>> mask = {"kernel": jp.nm_mask(abs(params["kernel"]), 2, 4), "bias": None}
    >>> error = lambda new: float(jnp.mean((apply(new, inputs) - apply(params, inputs)) ** 2))
    >>> new = jp.reconstruct(apply, params, mask, [inputs])
    >>> error(new) < 0.01 * error(jp.apply_mask(params, mask))
    True
    """
    batches = layerwise.check(apply, batches, damping)
    masks.check_boolean(mask)
    mask = masks.fit_mask(params, mask)
    if method not in _METHODS:
        raise ValueError(f"method must be one of {[*_METHODS]}, got {method!r}")
    keeps = jax.tree.structure(params).flatten_up_to(mask)

    def solve(problem: layerwise.Problem) -> jax.Array:
        keep = capture.as_matrix(keeps[problem.product.leaf], problem.product)
        return _METHODS[method](problem.fitted, problem.kernel, keep, damping)

    return layerwise.change(
        apply,
        params,
        masks.apply_mask(params, mask),
        [keep is not None for keep in keeps],
        batches,
        solve,
        sequential=sequential,
        damping=damping,
    )


# The least squares of one layer.


def closed_form(moments: Moments, kernel, keep, damping) -> jax.Array:
    """Solves the normal equations of each output's kept weights."""
    most = int(jnp.max(jnp.sum(keep, 0), initial=0))
    rounded = min(-(-most // _ROUNDED) * _ROUNDED, len(keep))
    return _solve(moments, kernel, keep, damping, rounded)


@functools.partial(jax.jit, static_argnames="most")
def _solve(moments: Moments, kernel, keep, damping, most: int) -> jax.Array:
    added = ridge(moments, damping)  # what comes in as nothing but zeros keeps its weight
    gram = moments.gram + jnp.diag(added)
    right = matmul(moments.cross, kernel) + added[:, None] * kernel
    kept_first = jnp.argsort(~keep, axis=0, stable=True)[:most].T  # (outputs, most)

    def of_output(args):
        places, right, keep = args
        present = keep[places]
        both = present[:, None] & present[None]
        own = jnp.where(both, gram[places[:, None], places[None]], jnp.eye(most))
        factor = jax.scipy.linalg.cho_factor(own)
        solve = functools.partial(jax.scipy.linalg.cho_solve, factor)
        wanted = jnp.where(present, right[places], 0)
        found = solve(wanted)
        found = found + solve(wanted - matmul(own, found))
        return jnp.zeros(len(gram)).at[places].set(jnp.where(present, found, 0))

    at_once = max(_AT_ONCE // max(most, 1) ** 2, 1)
    return _of_each_output(of_output, (kept_first, right.T, keep.T), at_once).T


def _of_each_output(function, arrays, at_once: int) -> jax.Array:
    """Maps over the first axis, so many at a time, of every shard alike: nothing moves."""
    outputs = len(arrays[0])
    parts = masks.most_shards(outputs, jax.typeof(arrays[0]).sharding.mesh)
    split = lambda x: jnp.swapaxes(x.reshape(parts, outputs // parts, *x.shape[1:]), 0, 1)
    size = max(at_once // parts, 1)
    found = jax.lax.map(jax.vmap(function), jax.tree.map(split, arrays), batch_size=size)
    return jnp.swapaxes(found, 0, 1).reshape(outputs, *found.shape[2:])


@jax.jit
def _gradient(moments: Moments, kernel, keep, damping) -> jax.Array:
    """Steps of Adam from the pruned kernel."""
    del damping
    optimizer = optax.adam(_LEARNING_RATE)
    right = matmul(moments.cross, kernel)

    def step(state, _):
        new, opt_state = state
        slope = matmul(moments.gram, new) - right
        slope = jnp.where(keep, slope, 0) / moments.count
        updates, opt_state = optimizer.update(slope, opt_state)
        return (optax.apply_updates(new, updates), opt_state), None

    start = jnp.where(keep, kernel, 0)
    (new, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=_STEPS)
    return new


_METHODS = {"closed_form": closed_form, "gradient": _gradient}
