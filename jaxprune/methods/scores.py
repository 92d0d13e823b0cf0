"""Which weights matter: scores of which the largest stay.

A score is a name, a tree of scores, or a function of the parameters and their gradients. Movement
has a state, which follows every step; the others are made when a mask is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp

from jaxprune.trees import checks, masks, sampling

Score: TypeAlias = str | chex.ArrayTree | Callable[[chex.ArrayTree, chex.ArrayTree], chex.ArrayTree]


class Scored(NamedTuple):
    """How scores are made.

    `of(params, grad, state)` are the scores, where `of` None stands for magnitudes; `init(params)`
    is the state, and `follow(params, grad, state)` the next one.
    """

    of: Callable[..., chex.ArrayTree] | None
    init: Callable[[chex.ArrayTree], Any] = lambda params: ()
    follow: Callable[..., Any] | None = None
    needs_gradients: bool = False


def grasp_scores(
    loss: Callable[[chex.ArrayTree], jax.Array], params: chex.ArrayTree
) -> chex.ArrayTree:
    """What weights do for the flow of gradients: for `prune_to` at initialisation (GraSP).

    To prune weight w changes the squared norm of the gradient g by -2 w (H g), to first order, with
    the Hessian H. So w (H g) is the score, of which the largest stay; it may be negative.

    Args:
      loss: from parameters to a scalar, on one batch. The paper divides logits by 200.
      params: tree of floating-point arrays.

    Returns:
      A tree like `params`, float32 or wider.

    Raises:
      TypeError: for a loss that is no function, or leaves that aren't floating-point.

    Source: Wang, Zhang and Grosse, "Picking winning tickets before training by preserving gradient
    flow" (ICLR 2020), equation 8.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> loss = lambda w: w[0] ** 2 + w[0] * w[1]
    >>> jp.grasp_scores(loss, jnp.array([1.0, 2.0])).tolist()  # g = (4, 1), H g = (9, 4)
    [9.0, 8.0]
    """
    checks.function("`loss`", loss)
    masks.check_floating("`grasp_scores`", params)
    gradient = jax.grad(loss)
    _, curvature = jax.jvp(gradient, (params,), (gradient(params),))
    return jax.tree.map(_product, params, curvature)


def scored(score: Score) -> Scored:
    """What a score stands for.

    Raises:
      ValueError: for an unknown name.
    """
    if isinstance(score, str):
        if score not in _NAMED:
            raise ValueError(
                f"`score` must be one of {[*_NAMED]}, a tree of scores or a function of (params, "
                f"gradients), got {score!r}"
            )
        return _NAMED[score]
    function = checks.function_alone(score)
    if function is not None:
        return Scored(lambda params, grad, state: function(params, grad))
    checks.tree("`score`", score)
    tree: Any = score
    return Scored(lambda params, grad, state: tree)


def prunable(params: chex.ArrayTree, mask: chex.ArrayTree) -> chex.ArrayTree:
    """The parameters with None for leaves that stay dense."""
    return jax.tree.map(lambda p, m: None if m is None else p, params, mask)


def of(score: Scored, params: chex.ArrayTree, grad, gathered, mask: chex.ArrayTree):
    """The scores of what can be pruned, checked; for magnitudes the parameters themselves."""
    chosen = prunable(params, mask)
    if score.of is None:
        return chosen
    found = like(params, score.of(chosen, grad, gathered), mask, "the score")
    masks.check_floating("the score", found)
    return found


def like(params: chex.ArrayTree, tree: chex.ArrayTree, mask: chex.ArrayTree, name: str):
    """The tree with None for leaves that stay dense, and without what is hidden from a link.

    Raises:
      ValueError: if it doesn't fit the parameters; the message names the leaf.
    """
    masks.leaves_like(params, tree, name, "`jax.tree.map` of `params`")

    def of_leaf(path, param, leaf, keep):
        if keep is None:
            return None
        if jnp.shape(leaf) != jnp.shape(param):
            raise ValueError(
                f"{name} of leaf '{masks.path_name(path)}' must have the leaf's shape "
                f"{jnp.shape(param)}, got {getattr(leaf, 'shape', leaf)}"
            )
        return leaf

    visible = masks.visible(params, tree)
    return jax.tree_util.tree_map_with_path(of_leaf, params, visible, mask)


def _saliency(params, grad, state):
    return jax.tree.map(lambda w, g: jnp.abs(_product(w, g)), params, grad)


def _product(weight, gradient):
    dtype = masks.at_least_float32(weight)
    return weight.astype(dtype) * gradient.astype(dtype)


def _no_movement(params):
    return jax.tree.map(lambda w: jnp.zeros_like(w, masks.at_least_float32(w)), params)


def _moved(params, grad, movement):
    return jax.tree.map(lambda w, g, m: m - _product(w, g), params, grad, movement)


def _random(params, grad, state):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return structure.unflatten(map(_random_like, leaves, keys))


@jax.jit  # else a leaf's random numbers would be made on one device
def _random_like(leaf, key):
    # The upper 24 bits, which float32 holds.
    return (sampling.counter_bits_like(leaf, key) >> 8).astype(jnp.float32)


MAGNITUDE = Scored(None)

_NAMED = {
    "magnitude": MAGNITUDE,
    "saliency": Scored(_saliency, needs_gradients=True),
    "movement": Scored(
        lambda params, grad, movement: movement, _no_movement, _moved, needs_gradients=True
    ),
    "random": Scored(_random),
}
