"""Pruned channels leave the network: smaller parameters, and a function that computes with them.

A group leaves when, with the weights that the mask prunes at zero, nothing of it reaches what
stays, or constants that a bias can hold (`leaving`). So what is left computes what the masked
network computed. The function follows the axes of the jaxpr for whatever inputs it gets
(`coupling`) and computes at the indices that are left (`resizing`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.networks import channels, folding, resizing, silence
from jaxprune.networks.channels import Analysis, Members
from jaxprune.networks.coupling import Coupled, coupled
from jaxprune.networks.leaving import PARTIAL, Leaving, leaving
from jaxprune.networks.program import traced
from jaxprune.trees import masks, mirrors

_OTHER_SHAPES = (
    "for inputs of these shapes {} than for the example inputs: shrink it with inputs such as these"
)


@dataclasses.dataclass(frozen=True)
class Kept:
    """The shape of a leaf, and which indices of each axis are kept: boolean arrays."""

    shape: tuple[int, ...]
    axes: tuple[np.ndarray, ...]

    def of(self, leaf: Any) -> Any:
        """The leaf at the indices that are kept; sharded as it was, where these can be divided.

        Axes before those of the shape stay whole.
        """
        before = (np.ones(size, bool) for size in jnp.shape(leaf)[: -len(self.axes) or None])
        small = resizing.taken(leaf, (*before, *self.axes), lambda keep: keep)
        sharding = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
        if not isinstance(sharding, jax.sharding.NamedSharding):
            return small
        try:
            sharding.shard_shape(small.shape)
        except ValueError:
            return small
        return jax.device_put(small, sharding)

    @property
    def small_shape(self) -> tuple[int, ...]:
        """The shape of what is kept."""
        return tuple(int(keep.sum()) for keep in self.axes)


class Shrunk(NamedTuple):
    """A network without its pruned channels.

    `params` are the smaller parameters and `apply(params, *inputs)` computes with them. `keep` says
    of each family of `channel_groups` which groups stay, as for `channel_mask`; `mask` is the mask
    that the network is equal to, `difference` the largest difference of the outputs for the example
    inputs, relative to the largest output. `indices` is a tree like `params` of what stays of each
    leaf. `folded` names the leaves that hold constants which pruned channels sent, `approximated`
    the families of groups without which a statistic is another one.
    """

    params: chex.ArrayTree
    apply: Callable[..., Any]
    keep: tuple[jax.Array, ...]
    mask: chex.ArrayTree
    difference: float
    indices: chex.ArrayTree
    folded: tuple[str, ...]
    approximated: tuple[str, ...]

    def like(self, tree: Any) -> Any:
        """Shrinks what mirrors the parameters: an optimizer state, an average, the mask.

        Args:
          tree: any tree. A leaf mirrors a parameter if its path ends with the parameter's path and
            its shape with the parameter's old shape: it is cut to the indices that are kept. All
            other leaves stay.

        Raises:
          ValueError: for what belongs to a parameter that was cut, but has another shape, such as
            the factors of Adafactor; the message names it.
        """

        def cut(path, leaf, kept):
            if kept is None or kept.small_shape == kept.shape or np.size(leaf) == 1:
                return leaf
            if mirrors.ends_with(jnp.shape(leaf), kept.shape):
                return kept.of(leaf)
            raise ValueError(
                f"'{masks.path_name(path)}' of shape {jnp.shape(leaf)} belongs to a parameter of "
                f"shape {kept.shape} that was cut to {kept.small_shape}, and can't be cut alike: "
                "begin anew, with `tx.init(small.params)` if it is the state of an optimizer"
            )

        owners = mirrors.owned(tree, self.indices, self.indices)
        return jax.tree_util.tree_map_with_path(cut, tree, owners)


def shrink(
    apply: Callable[..., Any],
    params: chex.ArrayTree,
    mask: chex.ArrayTree,
    *example_inputs: Any,
    partial: str = "refuse",
    approximate: bool = False,
) -> Shrunk:
    """Removes pruned channels, neurons, heads and widths: a smaller network that computes the same.

    A group of `channel_groups` that the mask prunes in some leaf leaves if, in the masked network,
    nothing of it reaches what stays: either all that it sends is zero, or all weights that would
    receive it are. A group whose kernel is pruned but not its bias (or the shift of a BatchNorm)
    sends a constant. It leaves as well, if all that hears it are products, or convolutions without
    padding, whose results go to a bias (or a running mean) that can hold the constant instead. All
    this is found without looking at inputs, so it holds for all of them.

    Args:
      apply: pure function `apply(params, *inputs)`, as for `channel_groups`.
      params: tree of arrays.
      mask: tree of booleans and `None` like `params`.
      *example_inputs: trees of arrays. They show shapes, and both networks are compared on them.
      partial: what to do with other groups that the mask prunes in some leaf: "refuse" raises an
        error that names them; "complete" prunes the rest of them, so that `mask` of the result is
        another; "keep" leaves them in.
      approximate: whether groups may leave that a statistic runs over, as in `channel_groups`. Then
        the networks differ, and `difference` says how far they are apart.

    Returns:
      `Shrunk(params, apply, keep, mask, difference, ...)`. Its `apply` can be jitted,
      differentiated and exported, and takes inputs of other shapes as far as the old one does; it
      traces the old one each time it is called, so call it under `jax.jit`. `like(tree)` shrinks
      what mirrors the parameters, such as the state of an optimizer. Numbers in the network stay:
      a LayerNorm that lost inputs still divides by their old number, as the masked network does. So
      even where its variance is approximated, its mean is exact.

    Raises:
      TypeError: for an `apply` that is no function, a mask that isn't boolean.
      ValueError: for a mask that doesn't fit, that prunes a part of a group, or that leaves nothing
        of an axis; for an unknown `partial`; or if the networks differ by more than rounding
        though nothing is approximated.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"a": jnp.ones((2, 3)), "m": jnp.ones(3), "b": jnp.ones((3, 4)), "n": jnp.ones(4)}
    >>> apply = lambda p, x: jax.nn.relu(x @ p["a"] + p["m"]) @ p["b"] + p["n"]
    >>> mask = jp.prunable(params) | {"a": jnp.array([[True, False, True]] * 2)}
    >>> small = jp.shrink(apply, params, mask, jnp.ones((1, 2)))
    >>> {name: leaf.shape for name, leaf in small.params.items()}
    {'a': (2, 2), 'b': (2, 4), 'm': (2,), 'n': (4,)}
    >>> small.folded, small.params["n"]
    (('n',), Array([2., 2., 2., 2.], dtype=float32))
    >>> small.apply(small.params, jnp.ones((5, 2))).shape
    (5, 4)
    """
    if partial not in PARTIAL:
        raise ValueError(f"`partial` must be one of {[*PARTIAL]}, got {partial!r}")
    analysis = channels.analysed(apply, params, example_inputs, approximate)
    masks.check_boolean(mask)
    verdict = leaving(analysis, params, masks.fit_mask(params, mask), partial)
    kept = _kept(params, analysis.found, verdict.groups)
    structure = jax.tree.structure(params)
    small = jax.tree.map(Kept.of, kept, structure.unflatten(verdict.folded()))
    unchanged = _unchanged_constants(analysis.found, verdict)
    small_apply = _smaller(apply, params, kept, approximate, unchanged)
    with jax.default_matmul_precision("highest"):
        masked = jax.jit(apply)(structure.unflatten(verdict.leaves), *example_inputs)
        shrunk = jax.jit(small_apply)(small, *example_inputs)
    keep = tuple(_groups_that_stay(analysis.members, {*verdict.groups}))
    exact = analysis.statistics.keys().isdisjoint(verdict.groups)
    difference = _difference(masked, shrunk, exact)
    folded = tuple(analysis.names[leaf] for leaf in verdict.added)
    approximated = () if exact else tuple(_approximated(analysis, {*verdict.groups}))
    return Shrunk(small, small_apply, keep, verdict.mask, difference, kept, folded, approximated)


def cut(
    apply: Callable[..., Any], params: chex.ArrayTree, mask: chex.ArrayTree
) -> tuple[Callable[..., Any], chex.ArrayTree]:
    """The function and the parameters without the groups that a mask prunes whole.

    Nobody looks at what they send: the masked network may compute something else. It takes as long
    as the shrunk one, though.
    """

    def of_leaf(leaf, keep):
        whole = np.ones(jnp.shape(leaf), bool)
        numbers = silence.numbers_of(whole if keep is None else keep)
        return Kept(whole.shape, tuple(axis != 0 for axis in numbers))

    kept = jax.tree.map(of_leaf, params, mask)
    small_apply = _smaller(apply, params, kept, False, lambda found, gone: True)
    return small_apply, jax.tree.map(Kept.of, kept, params)


def _kept(params, found: Coupled, groups: list[int]) -> chex.ArrayTree:
    gone = found.terms.leaving(groups)
    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten(
        Kept(jnp.shape(leaf), tuple(~gone[axis] for axis in axes))
        for leaf, axes in zip(leaves, found.leaves, strict=True)
    )


def _groups_that_stay(of: Members, groups: set[int]):
    for variables in channels.families(of).values():
        yield jnp.array([variable not in groups for variable in variables])


def _approximated(analysis: Analysis, groups: set[int]):
    """The families of groups that leave and change a statistic."""
    changed = groups & analysis.statistics.keys()
    families = channels.families(analysis.members).values()
    for family, variables in zip(channels.described(*analysis).groups, families, strict=True):
        if not changed.isdisjoint(variables):
            yield family.name


def _unchanged_constants(found: Coupled, verdict: Leaving) -> Callable[..., bool]:
    """Whether a network that has been traced anew sends the constants that were folded."""
    if not verdict.added:
        return lambda found, gone: True
    numbers, gone = verdict.numbers, found.terms.leaving(verdict.groups)
    before = folding.constants(found, numbers, gone)

    def unchanged(found: Coupled, gone: np.ndarray) -> bool:
        with jax.ensure_compile_time_eval():
            return folding.same(before, folding.constants(found, numbers, gone))

    return unchanged


def _smaller(
    apply, params: chex.ArrayTree, kept: chex.ArrayTree, approximate: bool, unchanged
) -> Callable[..., Any]:
    """The function of smaller parameters, for any inputs that the old one can be traced with."""
    full = jax.eval_shape(lambda tree: tree, params)

    def small_apply(params, *inputs):
        leaves = _checked_leaves(params, kept)
        program, structure = traced(apply, full, *inputs)
        found = coupled(program, len(leaves), approximate)
        gone = found.terms.leaving(_left(found, jax.tree.leaves(kept)))
        if not unchanged(found, gone):
            raise ValueError(_OTHER_SHAPES.format("pruned channels send other constants"))
        values = [*leaves, *jax.tree.leaves(inputs)]
        outputs = resizing.evaluate(found, lambda axis: ~gone[axis], values)
        return structure.unflatten(outputs)

    return small_apply


def _left(found: Coupled, kept: list[Kept]) -> list[int]:
    """The groups of a network that has been traced anew of which nothing is kept."""
    stays = lambda places: any(
        kept[leaf].axes[axis][indices].any() for (leaf, axis), indices in places.items()
    )
    left = [v for v, places in channels.members(found).items() if not stays(places)]
    gone = found.terms.leaving(left)
    for one, axes in zip(kept, found.leaves, strict=True):
        for keep, terms in zip(one.axes, axes, strict=True):
            if (keep == gone[terms]).any():
                raise ValueError(_OTHER_SHAPES.format("the network has other groups of channels"))
    return left


def _checked_leaves(params: chex.ArrayTree, kept: chex.ArrayTree) -> list[Any]:
    masks.leaves_like(kept, params, "the first argument", "`shrink(...).params`")
    paths_and_kept = jax.tree_util.tree_leaves_with_path(kept)
    leaves = jax.tree.leaves(params)
    for (path, one), leaf in zip(paths_and_kept, leaves, strict=True):
        if jnp.shape(leaf) != one.small_shape:
            raise ValueError(
                f"leaf '{masks.path_name(path)}' of the smaller network has the shape "
                f"{one.small_shape}, got {jnp.shape(leaf)}"
            )
    return leaves


def _difference(masked: Any, shrunk: Any, exact: bool) -> float:
    """The largest difference relative to the largest output."""
    pairs = zip(jax.tree.leaves(masked), jax.tree.leaves(shrunk), strict=True)
    differences = [_relative(*pair, exact) for pair in pairs if masks.is_floating(pair[0])]
    return max(differences, default=0.0)


def _relative(masked: jax.Array, shrunk: jax.Array, exact: bool) -> float:
    """An error unless it is rounding, or at least a number."""
    wide = masks.at_least_float32(masked)
    a, b = masked.astype(wide), shrunk.astype(wide)
    largest = float(jnp.max(jnp.abs(a), initial=0))
    difference = float(jnp.max(jnp.abs(a - b), initial=0)) / (largest or 1.0)
    allowed = float(jnp.finfo(masked.dtype).eps) ** 0.5 if exact else float("inf")
    if not difference <= allowed:
        raise ValueError(
            f"the smaller network differs from the masked one by {difference:.1e} of its largest "
            f"output, more than rounding ({allowed:.1e}): `apply` must be pure and its outputs on "
            "the example inputs finite"
        )
    return difference
