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

from jaxprune.trees import masks
from jaxprune.trees.report import Problem

Renew = Callable[[chex.ArrayTree, chex.ArrayTree, Any], tuple[chex.ArrayTree, jax.Array]]


class KeepState(NamedTuple):
    """`count`: updates so far, int32. `mask`: the one in force. `problems`: see `problems`."""

    count: jax.typing.ArrayLike
    mask: chex.ArrayTree
    problems: jax.typing.ArrayLike


def keep(
    renew: Renew,
    first: Callable[[chex.ArrayTree], chex.ArrayTree],
    every: jax.typing.ArrayLike,
    look_at: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """A link that keeps to a mask and chooses it anew at every so many updates.

    Args:
      renew: from the parameters, `None` for leaves that stay dense, the mask in force and the
        link's count to the next mask and the problems found, an int32 scalar.
      first: from the parameters to the mask that is in force before the first choice.
      every: updates between two choices.
      look_at: the first choice is made at this update.
    """
    if isinstance(every, int) and every < 1:
        raise ValueError(f"`every` must be at least 1, got {every}")

    def init_fn(params):
        return KeepState(count=jnp.int32(0), mask=first(params), problems=jnp.int32(0))

    def update_fn(updates, state, params=None, *, zeroed=None, **extra_args):
        """`zeroed` are the parameters that must have zeros, where `params` are those behind."""
        del extra_args
        params = needed(params)
        count = state.count

        def look():
            changed = _nonzero_where_pruned(params if zeroed is None else zeroed, state.mask)
            return state.problems | Problem.CHANGED * (changed & (count > 0)).astype(jnp.int32)

        def choose():
            chosen = jax.tree.map(lambda p, m: None if m is None else p, params, state.mask)
            mask, found = renew(chosen, state.mask, count)
            return mask, look() | found

        if isinstance(every, int) and every == 1:
            mask, problems = choose()
        else:
            due = count % every == look_at
            wait = lambda: (state.mask, state.problems)
            only_look = lambda: (state.mask, look())
            # Right after the first update too: that is when a wrong order shows.
            branch = jnp.where(due, 2, jnp.where(count == 1, 1, 0))
            mask, problems = jax.lax.switch(branch, [wait, only_look, choose])
        state = KeepState(optax.safe_increment(count), mask, problems)
        return pruned_updates(updates, params, mask), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _nonzero_where_pruned(params, mask) -> jax.Array:
    """Whether any weight under `False` isn't zero."""
    stray = jax.tree.map(
        lambda p, keep: jnp.any((p != 0) & ~keep) if masks.is_boolean(keep) else None, params, mask
    )
    return jnp.any(jnp.stack(jax.tree.leaves(stray)))


def or_in_force(usable: jax.Array, new: chex.ArrayTree, old: chex.ArrayTree) -> chex.ArrayTree:
    """The new mask where it is usable, else the one in force."""
    return jax.tree.map(lambda n, o: jnp.where(usable, n, o), new, old)


def has_nan(params: chex.ArrayTree) -> jax.Array:
    """Whether a weight that can be pruned is NaN."""
    return jnp.any(jnp.stack([jnp.any(jnp.isnan(leaf)) for leaf in jax.tree.leaves(params)]))


def needed(params: chex.ArrayTree | None) -> chex.ArrayTree:
    """The parameters, or a ValueError that says how to pass them."""
    if params is None:
        raise ValueError(
            "this link needs the parameters: call `tx.update(grads, opt_state, params)`"
        )
    return params


def check_fraction(name: str, value) -> None:
    """Raises a ValueError for a Python number outside [0, 1]; schedules and arrays pass."""
    if isinstance(value, (int, float)) and not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def pruned_updates(updates, params, mask):
    """Updates after which the parameters are zero where the mask is False."""

    def prune(update, param, keep):
        if keep is None:
            return update
        dtype = masks.wider_dtype(update, param)  # in a narrower one -param is rounded
        return jnp.where(keep, update.astype(dtype), -param.astype(dtype))

    return jax.tree.map(prune, updates, params, mask)
