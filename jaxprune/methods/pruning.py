"""Links that prune the parameters they update: to a given mask, or to a global budget.

A link stands last in an `optax.chain`. It sees the parameters and returns updates after which
pruned weights are exactly zero: `params + (-params) == 0` in any dtype.

A weight that such a link has pruned starts from zero again. `straight_through` goes around a whole
optimizer and its projection instead, and keeps pruned weights alive behind the zeros.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.trees import masks, selection, wide


class KeepMaskState(NamedTuple):
    """`mask`: the mask that is kept."""

    mask: chex.ArrayTree


def keep_mask(mask: chex.ArrayTree) -> optax.GradientTransformation:
    """Keeps pruned weights at exactly zero, whatever the optimizer before it does.

    Args:
      mask: tree like the parameters: boolean arrays, `None` where a leaf stays dense. The state
        holds a copy, found with `optax.tree.get(opt_state, "mask")`.

    Returns:
      A transformation for the end of a chain. The first update sets pruned weights to zero, if
      they aren't yet.

    Raises:
      ValueError: in `init`, if the mask doesn't fit; the message names the leaf.

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> tx = optax.chain(optax.sgd(0.1), jp.keep_mask({"w": jnp.array([True, False])}))
    >>> updates, _ = tx.update({"w": jnp.ones(2)}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)
    {'w': Array([0.9, 0. ], dtype=float32)}
    """

    def init_fn(params):
        return KeepMaskState(mask=jax.tree.map(jnp.copy, masks.fit_mask(params, mask)))

    def update_fn(updates, state, params=None):
        return _pruned_updates(updates, needed(params), state.mask), state

    return optax.GradientTransformation(init_fn, update_fn)


class ProjectionState(NamedTuple):
    """`count`: updates so far, an int32 scalar. `mask`: the mask in force."""

    count: jax.typing.ArrayLike
    mask: chex.ArrayTree


def keep_top_k(
    sparsity: optax.ScalarOrSchedule,
    *,
    every: int = 1,
    where: masks.Where | None = None,
) -> optax.GradientTransformation:
    """Projects the parameters onto a global sparsity: the largest magnitudes of the tree stay.

    The mask is chosen anew at updates 0, `every`, 2 `every`, ... from the magnitudes of the updated
    parameters, over all prunable leaves at once; in between it is kept. A pruned weight can return
    at such an update, if its new value is large enough.

    Args:
      sparsity: fraction of zeros among prunable weights, in [0, 1]; a number or a schedule of the
        link's own count. n (1 - sparsity), rounded, of n weights are kept: exactly for a Python
        number; a traced one is a float32.
      every: updates between two choices of the mask.
      where: which leaves can be pruned, as for `prunable`.

    Returns:
      A transformation for the end of a chain. The mask is found with
      `optax.tree.get(opt_state, "mask")`.

    Raises:
      ValueError: for a sparsity outside [0, 1], `every` < 1, or parameters without prunable leaves.

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"w": jnp.array([[1.0, -2.0], [3.0, 0.5]])}
    >>> tx = optax.chain(optax.sgd(0.1), jp.keep_top_k(0.5))
    >>> updates, _ = tx.update({"w": jnp.ones((2, 2))}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["w"].tolist()
    [[0.0, -2.0999999046325684], [2.9000000953674316, 0.0]]
    """
    check_fraction("sparsity", sparsity)

    def choose(magnitudes, count):
        size = sum(leaf.size for leaf in jax.tree.leaves(magnitudes))
        return selection.keep_largest(magnitudes, _kept(sparsity, count, size))

    return project(choose, lambda params: masks.prunable(params, where), every)


def project(
    choose: Callable[[chex.ArrayTree, jax.typing.ArrayLike], chex.ArrayTree],
    chosen: Callable[[chex.ArrayTree], chex.ArrayTree],
    every: int,
) -> optax.GradientTransformation:
    """A link that keeps to a mask, chosen anew at every so many updates.

    Args:
      choose: from the magnitudes of the updated parameters, `None` for leaves that stay dense, and
        the link's count to the mask.
      chosen: from the parameters to a mask that keeps every weight that can be pruned.
      every: updates between two choices.
    """
    if isinstance(every, int) and every < 1:
        raise ValueError(f"`every` must be at least 1, got {every}")

    def init_fn(params):
        return ProjectionState(count=jnp.int32(0), mask=chosen(params))

    def update_fn(updates, state, params=None):
        params = needed(params)

        def choose_anew():
            magnitudes = jax.tree.map(
                lambda p, m: None if m is None else jnp.abs(p),
                optax.apply_updates(params, updates),
                state.mask,
            )
            return choose(magnitudes, state.count)

        if isinstance(every, int) and every == 1:
            mask = choose_anew()
        else:
            mask = jax.lax.cond(state.count % every == 0, choose_anew, lambda: state.mask)
        state = ProjectionState(count=optax.safe_increment(state.count), mask=mask)
        return _pruned_updates(updates, params, mask), state

    return optax.GradientTransformation(init_fn, update_fn)


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
    with `keep_top_k` it is dynamic pruning with feedback. The decay of pruned weights makes
    them return less often; it is added to the gradient before the optimizer, Adam too.

    Args:
      inner: the optimizer. It sees the dense weights as its parameters: weight decay acts on all.
      projection: a link that projects parameters: `keep_nm`, `keep_transposable_nm`,
        `keep_top_k`, or a chain of them.
      decay: lambda; 2e-4 is SR-STE's with SGD. A scalar.

    Returns:
      A transformation that takes a whole chain's place. The first update is dense: parameters
      become sparse with it. The mask is found with `optax.tree.get(opt_state, "mask")`, the dense
      weights with `optax.tree.get(opt_state, "dense")`; they cost a copy of the parameters.

    Raises:
      ValueError: for arguments that aren't transformations, a decay that isn't a scalar, and what
        `projection` raises.

    Sources: Bengio et al. (2013) for the estimator; Zhou et al., "Learning N:M fine-grained
    structured sparse neural networks from scratch" (ICLR 2021), equation 9, for the decay; Lin et
    al., "Dynamic model pruning with feedback" (ICLR 2020).

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.array([[1.0], [-2.0], [3.0], [0.5]])}
    >>> tx = jp.straight_through(optax.sgd(0.1), jp.keep_nm(2, 4))
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
            raise ValueError(f"`{name}` must be an optax transformation, got {type(link).__name__}")
    if callable(decay):
        raise ValueError("`decay` must be a scalar, got a function")
    inner = optax.with_extra_args_support(inner)

    def init_fn(params):
        dense = jax.tree.map(_at_least_float32_copy, params)
        return StraightThroughState(dense, inner.init(dense), projection.init(dense))

    def update_fn(updates, state, params=None, **extra_args):
        params = needed(params)
        dense = state.dense

        def with_decay(update, param, weight):
            pruned = jnp.where(param == 0, weight, jnp.zeros_like(weight))
            return update.astype(weight.dtype) + jnp.asarray(decay, weight.dtype) * pruned

        updates = jax.tree.map(with_decay, updates, params, dense)
        updates, inner_state = inner.update(updates, state.inner_state, dense, **extra_args)
        dense = optax.apply_updates(dense, updates)
        still = optax.tree.zeros_like(dense)
        to_sparse, projection_state = projection.update(still, state.projection_state, dense)
        sparse = optax.apply_updates(dense, to_sparse)
        updates = jax.tree.map(lambda s, p: s - p.astype(s.dtype), sparse, params)
        return updates, StraightThroughState(dense, inner_state, projection_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _at_least_float32_copy(x):
    return jnp.array(x, masks.at_least_float32(x)) if masks.is_floating(x) else jnp.copy(x)


def check_fraction(name: str, value) -> None:
    """Raises a ValueError for a Python number outside [0, 1]; schedules and arrays pass."""
    if isinstance(value, (int, float)) and not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


@wide.counts_in_64_bits
def _kept(sparsity, count, size: int) -> jax.Array:
    """How many of so many weights stay, as uint64."""
    if isinstance(sparsity, (int, float)):
        return jnp.uint64(size - round(sparsity * size))
    value = sparsity(count) if callable(sparsity) else sparsity
    kept = jnp.round((1.0 - jnp.asarray(value, jnp.float32)) * jnp.float32(size))
    return jnp.minimum(jnp.maximum(kept, 0.0).astype(jnp.uint64), jnp.uint64(size))


def needed(params: chex.ArrayTree | None) -> chex.ArrayTree:
    """The parameters, or a ValueError that says how to pass them."""
    if params is None:
        raise ValueError(
            "this link needs the parameters: call `tx.update(grads, opt_state, params)`"
        )
    return params


def _pruned_updates(updates, params, mask):
    """Updates after which the parameters are zero where the mask is False."""

    def prune(update, param, keep):
        if keep is None:
            return update
        dtype = masks.wider_dtype(update, param)  # in a narrower one -param is rounded
        return jnp.where(keep, update.astype(dtype), -param.astype(dtype))

    return jax.tree.map(prune, updates, params, mask)
