"""The mask in force: what the links in an optimizer state keep to, through any nesting.

A link holds its mask under the paths of the leaves that it updates, whatever stands around it.
`optax.masked` and `optax.partition` leave out the leaves of others, and a chain may have several
links: their masks are merged path by path.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.trees import checks, masks


def current_mask(params: chex.ArrayTree, opt_state: optax.OptState) -> chex.ArrayTree:
    """The mask that the `keep_...` links in an optimizer state keep to.

    Args:
      params: the parameters that the state belongs to, or their shapes.
      opt_state: of any nesting of transformations: `chain`, `partition`, `masked`, `MultiSteps`,
        `apply_if_finite`, `inject_hyperparams`, `straight_through`, NNX's `Optimizer`.

    Returns:
      A mask like `params`, `None` for leaves that no link prunes. Where several links prune a leaf,
      it keeps what all of them keep. Inside `jax.jit` too. Arrays may be the state's own, which go
      when the state is donated: copy or pack a mask that is to outlive the next step.

    Raises:
      TypeError: for what is no tree of arrays.
      ValueError: for a state without such a link, or of other parameters; the message names the
        leaf.

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"a": jnp.array([[3.0, 1.0]]), "b": jnp.array([[1.0, 2.0]]), "c": jnp.ones(2)}
    >>> pruned, dense = optax.chain(optax.adam(0.1), jp.keep_sparse(0.5)), optax.sgd(0.1)
    >>> tx = optax.partition({"p": pruned, "d": dense}, {"a": "p", "b": "d", "c": "p"})
    >>> _, state = tx.update(params, tx.init(params), params)
    >>> jp.current_mask(params, state)
    {'a': Array([[ True, False]], dtype=bool), 'b': None, 'c': None}

    An average of the parameters is dense where the mask has changed; with the present one it is as
    sparse as they are:

    >>> average = params
    >>> average = optax.incremental_update(params, average, 0.01)
    >>> jp.apply_mask(average, jp.current_mask(params, state))["a"]
    Array([[3., 0.]], dtype=float32)
    """
    checks.tree("the parameters", params)
    found = by_path(opt_state)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {path: jnp.shape(leaf) for path, leaf in leaves}
    for path, keep in found.items():
        if shapes.get(path) != keep.shape:
            checks.modules_apart(params, opt_state)
            raise ValueError(
                f"the optimizer state has a mask of shape {keep.shape} for leaf "
                f"'{masks.path_name(path)}', of which the parameters have "
                f"{shapes.get(path, 'none')}: pass those that the link updates"
            )
    return jax.tree_util.tree_map_with_path(lambda path, _: found.get(path), params)


def by_path(opt_state: optax.OptState) -> dict[tuple, jax.Array]:
    """The merged masks of all links, under the paths of the leaves that they prune."""
    checks.tree("the optimizer state", opt_state)
    links = links_masks(opt_state)
    if not links:
        raise ValueError(
            "nothing in the optimizer state keeps to a mask: put a link such as "
            "`keep_mask(mask)` into the chain, and pass the parameters first, then the state of "
            "the chain"
        )
    found: dict[tuple, list[jax.Array]] = {}
    for mask in links:
        for path, keep in jax.tree_util.tree_leaves_with_path(mask):
            found.setdefault(path, []).append(keep)
    return {path: functools.reduce(operator.and_, own) for path, own in found.items()}


def links_masks(opt_state: optax.OptState) -> list[chex.ArrayTree]:
    """The mask of each link: the field of a state that has `problems` too.

    A parameter of that name is none, nor are its moments.
    """
    links = fields(opt_state, "problems")
    return [mask for state, mask in fields(opt_state, "mask").items() if state in links]


def fields(opt_state: optax.OptState, name: str) -> dict[tuple, Any]:
    """The fields of this name of all named tuples, under the paths of these."""
    is_field = lambda path, _: isinstance(path[-1], optax.tree_utils.NamedTupleKey)
    found = optax.tree.get_all_with_path(opt_state, name, is_field)
    return {path[:-1]: value for path, value in found}
