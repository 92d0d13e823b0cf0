"""Dense weights behind the zeros: they are trained by the gradients of the pruned ones.

Where a link at the end of a chain prunes a weight, it stays zero. Here a whole optimizer and its
projection stand together, and what is pruned goes on learning until it returns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.methods.keeping import needed
from jaxprune.trees import checks, masks


class StraightThroughState(NamedTuple):
    """`dense`: the weights behind the zeros; the states of the optimizer and the projection."""

    dense: optax.Params
    inner_state: optax.OptState
    projection_state: optax.OptState


def straight_through(
    inner: optax.GradientTransformation,
    projection: optax.GradientTransformation,
    *,
    decay: jax.typing.ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains dense weights by the gradients of pruned ones, which are the parameters.

    The parameters that the loss sees are always projected. Their gradient goes straight through to
    dense weights `d`, kept in the state in float32 or wider, pruned ones included; from these
    the projection makes the next parameters `w`:

    .. math:: g = \nabla L(w) + \lambda \, [w = 0] \, d \qquad
      d \leftarrow d + \mathrm{inner}(g, d) \qquad w = \mathrm{projection}(d)

    With an N:M mask and `decay` = 0 this is the straight-through estimator, with `decay` SR-STE;
    with `keep_sparse` it is dynamic pruning with feedback. The decay of pruned weights makes
    them return less often; it is added to the gradient before the optimizer, Adam too.

    A projection that chooses its mask now and then (`every` above 1) chooses it from the dense
    weights as they were before the update: between two choices a step then moves what it moves
    under a fixed mask.

    Args:
      inner: the optimizer. It sees the dense weights as its parameters: weight decay acts on all.
      projection: a link that projects parameters: `keep_sparse`, or several of them in a chain,
        `optax.partition` or `optax.masked`.
      decay: lambda; 2e-4 is SR-STE's with SGD. A scalar.

    Returns:
      A transformation that takes a whole chain's place. The first update is dense: parameters
      become sparse with it. The mask is `current_mask(params, opt_state)`, the dense weights are
      `optax.tree.get(opt_state, "dense")`; they cost a copy of the parameters.

    Raises:
      TypeError: for arguments that aren't transformations, or a decay that is no number.
      ValueError: in `init` for a projection that keeps to no mask (swapped arguments), and what
        `projection` raises.

    Sources: Bengio et al. (2013) for the estimator; Zhou et al., "Learning N:M fine-grained
    structured sparse neural networks from scratch" (ICLR 2021), equation 9, for the decay; Lin et
    al., "Dynamic model pruning with feedback" (ICLR 2020).

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.array([[1.0], [-2.0], [3.0], [0.5]])}
    >>> tx = jp.straight_through(optax.sgd(0.1), jp.keep_sparse("2:4"))
    >>> state = tx.init(params)
    >>> for slope in (0.0, -20.0):
    ...     gradients = {"kernel": jnp.full((4, 1), slope)}
    ...     updates, state = tx.update(gradients, state, params)
    ...     params = optax.apply_updates(params, updates)
    ...     print(params["kernel"].ravel())
    [ 0. -2.  3.  0.]
    [3. 0. 5. 0.]
    """
    for name, link in (("inner", inner), ("projection", projection)):
        if not isinstance(link, optax.GradientTransformation):
            given = checks.described(link)
            raise TypeError(f"`{name}` must be an optax transformation, got {given}")
    checks.number("`decay`", decay, "a number")
    inner = optax.with_extra_args_support(inner)
    projection = optax.with_extra_args_support(projection)

    def init_fn(params):
        dense = jax.tree.map(_at_least_float32_copy, params)
        state = StraightThroughState(dense, inner.init(dense), projection.init(dense))
        if not optax.tree.get_all_with_path(state.projection_state, "mask"):
            raise ValueError(
                "`projection` must be a link that keeps to a mask, such as `keep_sparse`, but its "
                "state has none: pass the optimizer first, `straight_through(optimizer, ...)`"
            )
        return state

    def update_fn(updates, state, params=None, **extra_args):
        params = needed(params, updates)
        dense, grad = state.dense, extra_args.get("grad", updates)

        def with_decay(update, param, weight):
            pruned = jnp.where(param == 0, weight, jnp.zeros_like(weight))
            return update.astype(weight.dtype) + jnp.asarray(decay, weight.dtype) * pruned

        updates = jax.tree.map(with_decay, updates, params, dense)
        updates, inner_state = inner.update(updates, state.inner_state, dense, **extra_args)
        dense = optax.apply_updates(dense, updates)
        still = optax.tree.zeros_like(dense)
        to_sparse, projection_state = projection.update(
            still, state.projection_state, dense, zeroed=params, before=state.dense, grad=grad
        )
        sparse = optax.apply_updates(dense, to_sparse)
        updates = jax.tree.map(lambda s, p: s - p.astype(s.dtype), sparse, params)
        return updates, StraightThroughState(dense, inner_state, projection_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _at_least_float32_copy(x):
    return jnp.array(x, masks.at_least_float32(x)) if masks.is_floating(x) else jnp.copy(x)
