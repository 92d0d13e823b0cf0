"""Trees of groups: a tuple with one array for each family, in the order of `channels.groups`.

Scores, probabilities and masks of groups have this form, so that whatever there is for trees of
weights works on them as it is. Here are the ways between such trees and the network: from the
parameters to norms, from a choice of groups to a mask of the parameters, and to what is left of
the network's cost.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.networks.channels import ChannelGroups, Channels, Place
from jaxprune.networks.costs import Cost
from jaxprune.patterns import groups
from jaxprune.trees import checks, masks, wide


def channel_norms(params: chex.ArrayTree, channels: Channels) -> tuple[jax.Array, ...]:
    """The Euclidean norm of each group: of all that goes with it, over all leaves and axes.

    An entry that belongs to a group by two axes, as on the diagonal of a recurrent kernel, counts
    once. So `add_penalty(lambda p: hoyer_square(channel_norms(p, channels)), 1e-3)` is DeepHoyer
    over groups that can leave the network.

    Args:
      params: the parameters that the groups were found in. Leaves may be None: they are skipped.
      channels: of `channel_groups`.

    Returns:
      A tuple of float32 (or wider) arrays of shape (family.size,), in the order of
      `channels.groups`. Right at any scale, with gradient 0 for a group of zeros.

    Raises:
      TypeError: for what is no tree of arrays, or not of `channel_groups`.
      ValueError: for other parameters, or a family of which no leaf is there.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = [jnp.array([[0.0, 1.0], [0.0, 2.0]]), jnp.array([[3.0], [2.0]])]
    >>> channels = jp.channel_groups(lambda p, x: x @ p[0] @ p[1], params, jnp.ones((1, 2)))
    >>> jp.channel_norms(params, channels)
    (Array([3., 3.], dtype=float32),)
    """
    checks.tree("the parameters", params)
    check_channels(channels)
    leaves = {name: leaf for name, leaf in _by_name(params).items() if masks.is_floating(leaf)}
    norms = lambda leaves: tuple(_family_norms(family, leaves) for family in channels.groups)
    return masks.whole(norms, leaves)(leaves)


def channel_mask(
    params: chex.ArrayTree, channels: Channels, keep: Sequence[chex.Array | None]
) -> chex.ArrayTree:
    """The mask that keeps some groups and prunes all that goes with the others.

    Args:
      params: the parameters that the groups were found in.
      channels: of `channel_groups`.
      keep: for each family of `channels.groups` an array of shape (family.size,), or None to keep
        all of it. Booleans, as of `budget_mask`, or floating-point numbers, as of
        `relaxed_bernoulli`; they may be traced.

    Returns:
      A tree like `params`, None for leaves that aren't floating-point. Of booleans a mask, `False`
      where an entry belongs to a group that goes; of numbers a float32 (or wider) tree, whose
      entries are the products of the numbers of all groups that they belong to.

    Raises:
      TypeError: for arrays of another kind, or what isn't of `channel_groups`.
      ValueError: for another number of families or groups, or for other parameters.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = [jnp.ones((2, 2)), jnp.ones((2, 1))]
    >>> channels = jp.channel_groups(lambda p, x: x @ p[0] @ p[1], params, jnp.ones((1, 2)))
    >>> jp.channel_mask(params, channels, (jnp.array([True, False]),))
    [Array([[ True, False],
           [ True, False]], dtype=bool), Array([[ True],
           [False]], dtype=bool)]
    """
    checks.tree("the parameters", params)
    keep = checked(channels, keep)
    if all(map(_on_one_device, jax.tree.leaves((params, keep)))):  # nothing needs to be compiled
        ones = lambda leaf: np.ones(leaf.shape, bool) if masks.is_floating(leaf) else None
        mask = _masked(channels, np, jax.tree.map(ones, params), [np.asarray(x) for x in keep])
        return jax.tree.map(_placed_like, params, mask)
    everything = masks.prunable(params, lambda path, leaf: True)
    masked = functools.partial(_masked, channels, jnp)
    return masks.sharded_alike(masked, everything)(everything, keep)


def channel_cost(
    channels: Channels, keep: Sequence[chex.Array | None], of: str = "flops"
) -> chex.Numeric:
    """What the network costs with the groups that stay.

    All groups are taken together: a convolution that loses half of its inputs and half of its
    outputs costs a quarter. The cost is a polynomial in `keep`, so it has a gradient and takes
    probabilities, of which it is the cost of the mean widths.

    Args:
      channels: of `channel_groups`.
      keep: for each family an array of shape (family.size,), as for `channel_mask`.
      of: "flops", two for each multiplication and addition of matrix products and convolutions, for
        the example inputs, but for those of constants and inside what isn't looked into
        (`custom_vjp`, `while`); or "parameters", the entries of all leaves.

    Returns:
      For booleans a Python integer, exactly; inside `jax.jit` the least float32 that isn't smaller,
      so that what seems to fit a budget does. For numbers a float32 scalar (float64 for float64),
      right to 1e-6 of it.

    Raises:
      TypeError: for arrays of another kind, or what isn't of `channel_groups`.
      ValueError: for another number of families or groups, or another `of`.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = [jnp.ones((2, 3)), jnp.ones((3, 1))]
    >>> channels = jp.channel_groups(lambda p, x: x @ p[0] @ p[1], params, jnp.ones((1, 2)))
    >>> jp.channel_cost(channels, (jnp.array([True, False, True]),), of="parameters")
    6
    >>> float(jp.channel_cost(channels, (jnp.array([0.5, 0.0, 1.0]),)))
    9.0
    """
    keep = checked(channels, keep)
    if of not in channels.costs:
        raise ValueError(f"`of` must be one of {sorted(channels.costs)}, got {of!r}")
    cost = channels.costs[of]
    if not all(map(masks.is_boolean, keep)):
        return masks.whole(lambda keep: cost.total(jnp.concatenate(keep)), keep)(keep)
    if all(map(checks.known, keep)):
        return int(cost.total(np.concatenate([np.ones(0, bool), *keep]).astype(int)))
    return masks.whole(functools.partial(_least_float32, cost), keep)(keep)


@wide.counts_in_64_bits
def _least_float32(cost: Cost, keep: Sequence[jax.Array]) -> jax.Array:
    return wide.least_float32(cost.total(jnp.concatenate(keep).astype(jnp.int64)))


def _placed_like(leaf: Any, mask: np.ndarray | None) -> jax.Array | None:
    """The mask on the devices that its leaf was put on."""
    sharding = leaf.sharding if getattr(leaf, "committed", False) else None
    return None if mask is None else jax.device_put(mask, sharding)


def _on_one_device(leaf: Any) -> bool:
    sharding = getattr(leaf, "sharding", None)
    return checks.known(leaf) and (sharding is None or len(sharding.device_set) == 1)


def _masked(channels: Channels, xp: Any, everything: chex.ArrayTree, keep: Sequence[Any]):
    """A tree of ones, times what is kept of each group."""
    dtype = keep[0].dtype if keep else bool
    values = {name: leaf.astype(dtype) for name, leaf in _by_name(everything).items()}
    for family, own in zip(channels.groups, keep, strict=True):
        for name, places in _by_leaf(family).items():
            if name not in values:
                raise ValueError(f"'{name}' is no floating-point leaf of the parameters")
            _check_leaf(name, values[name], places)
            values[name] = _times(xp, values[name], own, places)
    return jax.tree.structure(everything).unflatten(values.values())


def _times(xp: Any, value: Any, keep: Any, places: Sequence[Place]) -> Any:
    """The value times what is kept of the group that an entry belongs to, by whatever axis."""
    one = xp.ones(1, keep.dtype)
    of_group = xp.concatenate([keep, one])
    for _, group, again in _groups_along(xp, places, value.shape):
        factor = of_group[group]
        value = value * (factor if again is None else xp.where(again, one[0], factor))
    return value


def _family_norms(family: ChannelGroups, leaves: dict[str, Any]) -> jax.Array:
    """Norms of norms of slices."""
    places = {name: own for name, own in _by_leaf(family).items() if name in leaves}
    for name, own in places.items():
        _check_leaf(name, leaves[name], own)
    parts = [part for name, own in places.items() for part in _slice_norms(leaves[name], own)]
    if not parts:
        raise ValueError(
            f"nothing of {family.name} is among the parameters: choose at least one of its leaves "
            f"{[*_by_leaf(family)]}, in `add_penalty` by `where`"
        )
    widest = functools.reduce(jnp.promote_types, [part.dtype for part in parts])
    together = jnp.concatenate([part.astype(widest) for part in parts], axis=1)
    return groups.norms(together, (1,))[:, 0]


def _slice_norms(leaf: jax.Array, places: Sequence[Place]) -> Iterator[jax.Array]:
    """By each axis the norms (groups, entries) of what no axis before gave to the same group."""
    for place, _, again in _groups_along(jnp, places, leaf.shape):
        new = leaf if again is None else jnp.where(again, jnp.zeros_like(leaf), leaf)
        yield _norms_along(new, place.axis)[place.indices]


@functools.partial(jax.jit, static_argnums=1)  # or outside `jit` each of its steps is compiled
def _norms_along(leaf: jax.Array, axis: int) -> jax.Array:
    inside = tuple(other for other in range(leaf.ndim) if other != axis)
    return groups.norms(leaf, inside).ravel()


def _groups_along(xp: Any, places: Sequence[Place], shape: tuple[int, ...]):
    """By each axis the group of an index, and whether an axis before gives an entry to it as well.

    Both broadcast against the leaf. Indices in no group have the number of groups in place of one;
    nothing (None) is given again by the first axis.
    """
    before: list[Any] = []
    for place in places:
        none = len(place.indices)
        of_index = np.full(shape[place.axis], none, np.int32)
        of_index[place.indices] = np.arange(none)[:, None]
        along = [-1 if axis == place.axis else 1 for axis in range(len(shape))]
        group = xp.asarray(of_index.reshape(along))
        again = [(group == other) & (group < none) for other in before]
        yield place, group, functools.reduce(operator.or_, again) if again else None
        before.append(group)


def _by_name(params: chex.ArrayTree) -> dict[str, Any]:
    return {masks.path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}


def _by_leaf(family: ChannelGroups) -> dict[str, list[Place]]:
    places: dict[str, list[Place]] = {}
    for place in family.places:
        places.setdefault(place.leaf, []).append(place)
    return places


def _check_leaf(name: str, leaf: jax.Array, places: Sequence[Place]) -> None:
    for place in places:
        needed = place.indices.max() + 1
        if leaf.ndim <= place.axis or leaf.shape[place.axis] < needed:
            raise ValueError(
                f"leaf '{name}' has the shape {leaf.shape}, but the groups were found in one with "
                f"at least {needed} indices of axis {place.axis}: take `channel_groups` of these "
                "parameters"
            )


def check_channels(channels: Channels) -> None:
    """Raises a TypeError for what isn't of `channel_groups`."""
    if not isinstance(channels, Channels):
        raise TypeError(
            f"`channels` must be what `channel_groups` returns, got {checks.described(channels)}"
        )


def at_places(
    params: chex.ArrayTree,
    channels: Channels,
    values: Sequence[Any],
    chosen: Callable[[Place], bool],
) -> chex.ArrayTree:
    """As `channel_mask`, of the places chosen alone; None for leaves without any."""
    only = [
        (family._replace(places=places), own)
        for family, own in zip(channels.groups, values, strict=True)
        if own is not None and (places := tuple(filter(chosen, family.places)))
    ]
    groups, values = tuple(family for family, _ in only), tuple(own for _, own in only)
    leaves = {place.leaf for family in groups for place in family.places}
    tree = channel_mask(params, channels._replace(groups=groups), values)
    there = lambda path, leaf: leaf if masks.path_name(path) in leaves else None
    return jax.tree_util.tree_map_with_path(there, tree)


def checked(channels: Channels, keep: Sequence[Any], name: str = "`keep`") -> tuple[Any, ...]:
    """Arrays of one kind, boolean or floating-point, with ones for None."""
    check_channels(channels)
    families = channels.groups
    if not isinstance(keep, (tuple, list)):
        raise TypeError(f"{name} must be a tuple of arrays, got {checks.described(keep)}")
    if len(keep) != len(families):
        raise ValueError(
            f"{name} must have an array, or None, for each of the {len(families)} families of "
            f"`channels.groups`, got {len(keep)}"
        )
    given = [(family, own) for family, own in zip(families, keep, strict=True) if own is not None]
    for family, own in given:
        if not (masks.is_boolean(own) or masks.is_floating(own)):
            raise TypeError(
                f"{name} of {family.name} must be boolean, or floating-point as a soft mask, got "
                f"{checks.described(own)}"
            )
        if own.shape != (family.size,):
            raise ValueError(
                f"{name} of {family.name} must have the shape ({family.size},), one entry for each "
                f"group, got {own.shape}"
            )
    if len({masks.is_boolean(own) for _, own in given}) > 1:
        raise TypeError(f"{name} must be boolean for all families, or floating-point for all")
    return _of_one_kind(families, keep)


def _of_one_kind(families: Sequence[ChannelGroups], keep: Sequence[Any]) -> tuple[Any, ...]:
    """Booleans as they are, or numbers of the widest dtype from float32 on; ones for None."""
    sizes = [family.size for family in families]
    if not any(map(masks.is_floating, keep)):
        return tuple(np.ones(n, bool) if x is None else x for n, x in zip(sizes, keep, strict=True))
    arrays = [
        jnp.ones(n) if x is None else jnp.asarray(x) for n, x in zip(sizes, keep, strict=True)
    ]
    dtype = functools.reduce(jnp.promote_types, map(masks.at_least_float32, arrays))
    return tuple(x.astype(dtype) for x in arrays)
