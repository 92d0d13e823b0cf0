"""Which leaves of an optimizer's state belong to which parameter: moments, averages, copies.

A state holds trees that mirror the parameters, however deep and under whatever names, so the path
of a moment ends with the path of its weight, and its shape is the weight's, with axes before it in
a memory of several steps (L-BFGS). Nothing is known by the type of a state. Adafactor's rows and
columns and GaLore's projections don't have the shape, and belong to no single weight.

`optax.tree_map_params` finds such trees by calling `init` on a placeholder. That fails for `masked`
and `partition` with trees of labels, `muon`, `lbfgs` and `sm3`, and hands on adafactor's factors.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax


def owned(state: Any, params: chex.ArrayTree, tree: chex.ArrayTree) -> Any:
    """What a tree like the parameters holds under the path that the path of a leaf ends with.

    Returns:
      A tree like `state`: leaves of `tree`, which may be None; None for what belongs to no leaf.
    """
    paths_and_leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [path for path, _ in paths_and_leaves]
    places = dict(zip(paths, structure.flatten_up_to(tree), strict=True))

    def found(path, _):
        ends = (path[start:] for start in range(len(path) + 1))  # the longest first
        return next((places[end] for end in ends if end in places), None)

    return jax.tree_util.tree_map_with_path(found, state)


def mirrored(state: optax.OptState, params: chex.ArrayTree, tree: chex.ArrayTree) -> optax.OptState:
    """What a tree like the parameters holds for each leaf of an optimizer's state.

    Returns:
      A tree like `state`: the leaf of `tree`, which may be None, where a leaf of the state mirrors
      that of `params`; None elsewhere.
    """
    mirrors = lambda leaf, owner, value: (
        value if owner is not None and ends_with(jnp.shape(leaf), jnp.shape(owner)) else None
    )
    return jax.tree.map(mirrors, state, owned(state, params, params), owned(state, params, tree))


def ends_with(shape: tuple[int, ...], end: tuple[int, ...]) -> bool:
    """Whether the last axes of a shape are these."""
    return len(shape) >= len(end) and shape[len(shape) - len(end) :] == end
