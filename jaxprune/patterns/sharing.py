"""Which leaves have which target: one for all of them, or a tree with one for each.

Leaves that share a target share its budget. They are the leaves of a `Part`.
"""

from typing import Any, NamedTuple

import chex
import jax

from jaxprune.patterns.targets import NM, Above, Blocks, Target, target
from jaxprune.trees import checks, masks


class Part(NamedTuple):
    """A target, and which leaves share it: None where a leaf stays dense."""

    target: Target
    own: chex.ArrayTree

    def of(self, tree: chex.ArrayTree) -> chex.ArrayTree:
        """The tree with None for other leaves."""
        return jax.tree.map(lambda leaf, own: leaf if own else None, tree, self.own)


def first_mask(params: chex.ArrayTree, sparsity: Any, where: masks.Where | None) -> chex.ArrayTree:
    """The mask that keeps all weights of the leaves that have a target.

    Raises:
      TypeError: for what is no target.
      ValueError: for a tree of targets that doesn't fit, that comes beside a `where` or that has
        None everywhere, leaves without a target's axes, and if no leaf is chosen.
    """
    single = is_single(sparsity)
    mask = _chosen(params, target(sparsity), where) if single else _given(params, sparsity, where)
    for part in parts(mask, sparsity, "layer"):
        check = lambda path, leaf, own=part.target: own.check(masks.path_name(path), leaf)
        jax.tree_util.tree_map_with_path(check, part.of(mask))
    return mask


def parts(mask: chex.ArrayTree, sparsity: Any, scope: str) -> list[Part]:
    """The targets with the leaves that share them, of those that the mask isn't None for."""
    leaves, structure = jax.tree.flatten(mask)
    if is_single(sparsity):
        wanted = [target(sparsity)] * len(leaves)
        together = scope == "global" or isinstance(wanted[0], NM)
        shared = [[*range(len(leaves))]] if together else [[i] for i in range(len(leaves))]
    else:
        wanted = [target(each) for each in structure.flatten_up_to(masks.visible(mask, sparsity))]
        alike: dict[Any, list[int]] = {}
        for i, each in enumerate(wanted):  # one program finds the masks of equal patterns
            pattern = isinstance(each, NM) and not hasattr(each.n, "dtype")  # arrays are no keys
            alike.setdefault(each if pattern else i, []).append(i)
        shared = [*alike.values()]
    own = lambda mine: structure.unflatten(i in mine for i in range(len(leaves)))
    return [Part(wanted[mine[0]], own(frozenset(mine))) for mine in shared]


def is_single(sparsity: Any) -> bool:
    """Whether it is one target for all leaves, not a tree of them."""
    return isinstance(sparsity, (str, NM, Blocks, Above)) or jax.tree_util.all_leaves([sparsity])


def of_leaves(params: chex.ArrayTree, sparsity: Any, where) -> list[Target | None]:
    """The target of each leaf from a tree of them; raises an error for what is none."""
    if where is not None:
        raise ValueError(
            "a tree of sparsities has None for leaves that stay dense: leave out `where`"
        )
    masks.leaves_like(params, sparsity, "the sparsity", "`jax.tree.map` of `params`")
    given = jax.tree.structure(params).flatten_up_to(masks.visible(params, sparsity))
    found = [None if each is None else target(each) for each in given]
    if not any(found):
        raise ValueError("the tree of sparsities has None everywhere: no leaf is to be pruned")
    return found


def _chosen(params: chex.ArrayTree, own: Target, where: masks.Where | None) -> chex.ArrayTree:
    """The leaves that `where` chooses; by default the kernels that the pattern divides."""
    if where is not None or not isinstance(own, NM):
        return masks.prunable(params, where)
    kernels = masks.kernel_names(params)
    try:
        return masks.prunable(
            params, lambda path, leaf: path in kernels and own.divides(path, leaf)
        )
    except ValueError as error:
        divide = " and ".join(map(str, own.axes))
        raise ValueError(
            f"{error} Without `where` it takes kernels whose {divide} divide by {own.m}."
        ) from error


def _given(params: chex.ArrayTree, sparsity: Any, where) -> chex.ArrayTree:
    """The leaves that a tree has targets for."""
    wanted = of_leaves(params, sparsity, where)
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(params)
    own = {}
    for (path, leaf), each in zip(paths_and_leaves, wanted, strict=True):
        own[masks.path_name(path)] = each
        if each is not None and not masks.is_floating(leaf):
            raise TypeError(
                f"leaf '{masks.path_name(path)}' isn't floating-point, got "
                f"{checks.described(leaf)}: its sparsity must be None"
            )
    return masks.prunable(params, lambda path, leaf: own[path] is not None)
