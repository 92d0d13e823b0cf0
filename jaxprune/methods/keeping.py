"""The link behind all `keep_...` links: a mask in force, and a choice of it now and then.

It stands last in an `optax.chain`, sees the parameters and returns updates after which pruned
weights are exactly zero: `params + (-params) == 0` in any dtype.

A mask is chosen from the parameters as they come in. These lie in memory anyway, while updated ones
would have to be written there for the choice to read: so between two choices a step costs what it
costs under a fixed mask. A pruned weight is zero where the choice looks, and stays so; weights that
return are what `straight_through` is for, where the choice looks at the weights behind the zeros.

What goes wrong inside `jax.jit` can't raise an error. The state notes it, and `problems` says so.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.methods import scores
from jaxprune.methods.scores import MAGNITUDE, Scored
from jaxprune.trees import checks, masks
from jaxprune.trees.report import Problem, noted

_WITH_GRADIENTS = "tx.update(grads, opt_state, params, grad=grads)"

Choice = Callable[[chex.ArrayTree, Any], tuple[jax.Array, Callable[[], chex.ArrayTree]]]


class KeepState(NamedTuple):
    """`count`: updates so far, int32. `mask`: the one in force. `problems`: see `problems`.

    `scores`: what a score such as movement has gathered, else empty.
    """

    count: jax.typing.ArrayLike
    mask: chex.ArrayTree
    problems: jax.typing.ArrayLike
    scores: Any = ()


def keep(
    choice: Choice | None,
    first: Callable[[chex.ArrayTree], chex.ArrayTree],
    every: jax.typing.ArrayLike,
    score: Scored = MAGNITUDE,
) -> optax.GradientTransformationExtraArgs:
    """A link that keeps to a mask and chooses it anew at every so many updates.

    Args:
      choice: from the scores (for magnitudes the parameters), `None` for leaves that stay dense,
        and the link's count to whether the budget is in range, and a function that makes the mask.
        `None`: the first mask is kept for good.
      first: from the parameters to the mask that is in force before the first choice.
      every: updates between two choices, or between two looks at what is pruned.
      score: how the scores are made.
    """
    if checks.known(every):
        checks.integer("`every`", every, least=1)
    always = isinstance(every, int) and every == 1

    def init_fn(params):
        mask = first(params)
        return KeepState(
            jnp.int32(0), mask, jnp.int32(0), score.init(scores.prunable(params, mask))
        )

    def update_fn(
        updates, state, params=None, *, zeroed=None, before=None, grad=None, **extra_args
    ):
        """For `straight_through`, whose dense weights are the `params`.

        `zeroed` are the parameters that must have zeros; `before` the dense weights before this
        update, which a choice that isn't due always reads: others would be written for it. `grad`
        are the gradients, for scores that need them.
        """
        del extra_args
        params = needed(params, updates, state.mask)
        grad = gradients(grad, score, params, state.mask, _WITH_GRADIENTS)
        # These come past `optax.masked` and `optax.partition`, which hide leaves of others.
        earlier = params if before is None else masks.visible(params, before)
        gathered = _gathered(score, earlier, grad, state)

        def look():
            seen = params if zeroed is None else masks.visible(params, zeroed)
            problems = looked(state, seen)
            if choice is not None:  # which looks for NaN itself
                return problems
            return problems | noted(Problem.NAN, has_nan(scores.prunable(seen, state.mask)))

        def choose():
            if choice is None:
                return state.mask, look()
            source = params if always else earlier
            chosen = scores.of(score, source, grad, gathered, state.mask)
            mask, found = _chosen(choice, chosen, state)
            return mask, look() | found

        mask, problems = choose() if always else _when_due(every, state, look, choose)
        state = KeepState(optax.safe_increment(state.count), mask, problems, gathered)
        return pruned_updates(updates, params, mask), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _gathered(score: Scored, params, grad, state):
    """What the score has gathered, with this update."""
    if score.follow is None:
        return state.scores
    return score.follow(scores.prunable(params, state.mask), grad, state.scores)


def looked(state, params) -> jax.Array:
    """The problems of a link's state, and whether pruned weights aren't zero any more."""
    changed = nonzero_where_pruned(params, state.mask) & (state.count > 0)
    return state.problems | noted(Problem.CHANGED, changed)


def _chosen(choice: Choice, chosen, state) -> tuple[chex.ArrayTree, jax.Array]:
    """The mask of the largest scores, or the one in force where there is none; and why."""
    valid, make = choice(chosen, state.count)
    nan = has_nan(chosen)
    found = noted(Problem.BUDGET, ~valid) | noted(Problem.NAN, nan)
    # As a branch, not a selection: this one writes no second mask to memory.
    return jax.lax.cond(valid & ~nan, make, lambda: state.mask), found


def _when_due(every, state, look, choose):
    """The next mask and the problems: chosen, looked at or, nearly always, as they are."""
    due = state.count % every == 0
    wait = lambda: (state.mask, state.problems)
    only_look = lambda: (state.mask, look())
    # Right after the first update too: that is when a wrong order shows.
    branch = jnp.where(due, 2, jnp.where(state.count == 1, 1, 0))
    return jax.lax.switch(branch, [wait, only_look, choose])


def gradients(grad, score: Scored, params, mask, call: str):
    """The gradients that the score may read, None for leaves that stay dense.

    Where they are missing, an error says which call passes them.
    """
    if score.of is None:
        return None
    if grad is not None:
        return scores.like(params, grad, mask, "`grad`")
    if score.needs_gradients:
        raise ValueError(f"this score needs the gradients: call `{call}`")
    return None


def nonzero_where_pruned(params, mask) -> jax.Array:
    """Whether any weight under `False` isn't zero."""
    stray = jax.tree.map(
        lambda p, keep: jnp.any((p != 0) & ~keep) if masks.is_boolean(keep) else None, params, mask
    )
    return jnp.any(jnp.stack(jax.tree.leaves(stray)))


def has_nan(params: chex.ArrayTree) -> jax.Array:
    """Whether a weight that can be pruned is NaN."""
    return jnp.any(jnp.stack([jnp.any(jnp.isnan(leaf)) for leaf in jax.tree.leaves(params)]))


def needed(params: chex.ArrayTree | None, *alike: chex.ArrayTree) -> chex.ArrayTree:
    """The parameters, or an error that says how to pass them: like these other trees."""
    if params is None:
        raise ValueError(
            "this link needs the parameters: call `tx.update(grads, opt_state, params)`"
        )
    checks.modules_apart(params, *alike)
    return params


def pruned_updates(updates, params, mask):
    """Updates after which the parameters are zero where the mask is False."""

    def prune(update, param, keep):
        if keep is None:
            return update
        dtype = masks.wider_dtype(update, param)  # in a narrower one -param is rounded
        return jnp.where(keep, update.astype(dtype), -param.astype(dtype))

    return jax.tree.map(prune, updates, params, mask)
