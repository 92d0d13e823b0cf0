"""Channel gates: a number for each group of channels that multiplies what its norms give.

A gate g behind a norm multiplies its scale and its shift, so gating is a pure function of the
parameters and the model stays as it is. Gates are sigmoids that a schedule sharpens until they are
all but open or shut. Since a gate belongs to all that leaves the network together, what is cut
really leaves.

Guo, Wu, Kittler, Feng, "Differentiable Neural Architecture Learning for Efficient Neural Network
Design" (DNAL, 2022, arXiv 2103.02126): train the weights, then the gates, cut those that don't
open, and train the weights that are left.
"""

from __future__ import annotations

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from jaxprune.networks import group_trees
from jaxprune.networks.channels import Channels
from jaxprune.trees import checks, masks, norms


def init_gates(
    params: chex.ArrayTree,
    channels: Channels,
    *,
    value: float = 3.0,
    where: masks.Where | None = None,
) -> tuple[jax.Array | None, ...]:
    """A gate for each group of channels that goes through a norm, to be trained.

    Args:
      params: the parameters that the groups were found in.
      channels: of `channel_groups`.
      value: what the gates start from, before the sigmoid: by default they are open by 0.95.
      where: which leaves gates multiply, as for `prunable`. By default the scales of norms
        (`scale`, `gamma`, a one-dimensional `weight`) and the shifts beside them.

    Returns:
      For each family of `channels.groups` a float32 array of shape (family.size,), or None for a
      family that no norm scales: it stays whole.

    Raises:
      TypeError: for what is no tree of arrays, not of `channel_groups`, or a value that is no
        number.
      ValueError: for other parameters, or if there is no gate at all.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"a": jnp.ones((2, 3)), "scale": jnp.ones(3), "b": jnp.ones((3, 1))}
    >>> apply = lambda p, x: jax.nn.relu(x @ p["a"] * p["scale"]) @ p["b"]
    >>> channels = jp.channel_groups(apply, params, jnp.ones((1, 2)))
    >>> jp.init_gates(params, channels)
    (Array([3., 3., 3.], dtype=float32),)
    """
    checks.number("`value`", value, "a number")
    gated = _gated_leaves(params, channels, where)
    gates = tuple(
        jnp.full(family.size, value, jnp.float32)
        if any(place.leaf in gated for place in family.places)
        else None
        for family in channels.groups
    )
    if all(gate is None for gate in gates):
        raise ValueError(
            "no group of channels goes through the scale of a norm: choose by `where` which leaves "
            f"gates multiply; the families are {[family.name for family in channels.groups]}"
        )
    return gates


def apply_gates(
    params: chex.ArrayTree,
    channels: Channels,
    gates: Sequence[jax.Array | None],
    sharpness: chex.Numeric = 1.0,
    *,
    where: masks.Where | None = None,
) -> chex.ArrayTree:
    r"""Multiplies scales and shifts of norms by the gates of their channels.

    .. math:: g_c = \sigma(\delta s_c)

    The sharpness delta follows a schedule of the user's, such as
    `optax.exponential_decay(1.0, steps, 1e4)`. The loss has a pressure on the sigmoids themselves::

        def loss(gates, step):
            gated = jp.apply_gates(params, channels, gates, sharpness(step))
            opened = map(jax.nn.sigmoid, jax.tree.leaves(gates))
            return task(gated) + 1e-4 * sum(map(jnp.sum, opened))

    What is open in the end is `jax.nn.sigmoid(delta * s) > 0.9`, a mask for `channel_mask`. Train
    gates with BatchNorm in its evaluation form: a norm that measures its own batch scales up what
    gates before it have made small, so that all of them could shut together at no loss.

    Args:
      params: the parameters that the groups were found in.
      channels: of `channel_groups`.
      gates: for each family an array s of shape (family.size,), or None; `init_gates`.
      sharpness: delta, a number or a scalar that may be traced.
      where: as for `init_gates`.

    Returns:
      A tree like `params`, with its dtypes. A scale that several gates act on has their product.

    Raises:
      TypeError: for gates that aren't floating-point, a sharpness that is no number, or what isn't
        of `channel_groups`.
      ValueError: for another number of families or gates, or for other parameters.

    Source: Guo et al. (2022), the scaled sigmoid.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"a": jnp.ones((2, 2)), "scale": jnp.ones(2), "b": jnp.ones((2, 1))}
    >>> apply = lambda p, x: jax.nn.relu(x @ p["a"] * p["scale"]) @ p["b"]
    >>> channels = jp.channel_groups(apply, params, jnp.ones((1, 2)))
    >>> jp.apply_gates(params, channels, (jnp.array([0.1, -0.1]),), 1e3)["scale"]
    Array([1., 0.], dtype=float32)
    """
    checks.number("`sharpness`", sharpness, "a number")
    gated = _gated_leaves(params, channels, where)
    group_trees.checked(channels, gates, "`gates`")
    for family, own in zip(channels.groups, gates, strict=True):
        if masks.is_boolean(own):
            raise TypeError(
                f"`gates` of {family.name} must be floating-point, as of `init_gates`, got a mask: "
                "apply this by `channel_mask`"
            )
    soft = jax.tree.map(lambda s: jax.nn.sigmoid(_widened(s) * sharpness), tuple(gates))
    in_a_norm = lambda place: place.leaf in gated
    return masks.apply_mask(params, group_trees.at_places(params, channels, soft, in_a_norm))


def _widened(s: jax.Array) -> jax.Array:
    """Sharpened scores of 10^4 have no room in bfloat16's eight bits."""
    return s.astype(masks.at_least_float32(s))


def _gated_leaves(
    params: chex.ArrayTree, channels: Channels, where: masks.Where | None
) -> set[str]:
    """The paths of the leaves that gates multiply."""
    checks.tree("the parameters", params)
    group_trees.check_channels(channels)
    if where is None:
        return norms.scales_and_shifts(params)
    chosen = jax.eval_shape(lambda: masks.prunable(params, where))
    return {masks.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(chosen)}
