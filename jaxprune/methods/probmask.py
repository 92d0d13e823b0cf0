"""ProbMask: a probability of being kept for every weight, trained under one global budget.

Zhou, Zhang, Xu, Zhang, "Effective Sparsification of Neural Networks with Global Sparsity
Constraint" (CVPR 2021, arXiv 2105.01571). The probabilities are a second tree beside the weights.
The loss samples a soft mask of them (`relaxed_bernoulli`), an optimizer updates them, and
`project_probabilities` takes them back to the budget; each layer's density is an outcome. At the
end a mask is fixed: the exact budget by `top_k_mask`, or the best of several samples by
`best_sampled_mask`. Frozen weights (`optax.set_to_zero`) make it a search for a supermask.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.methods.keeping import needed
from jaxprune.trees import checks, masks, projections, sampling
from jaxprune.trees.report import Problem, noted

_SLACK = 1.001  # of a budget: float32 sums of what the links before have left
_ROUNDINGS = 4.0  # units in the last place
_FAR_TOO_MUCH = 1e30  # of a budget; finite, since a function of costs may multiply it by 0


def init_probabilities(
    params: chex.ArrayTree, *, where: masks.Where | None = None, value: float = 1.0
) -> chex.ArrayTree:
    """A keep probability for every prunable weight.

    Args:
      params: tree of arrays.
      where: which leaves can be pruned, as for `prunable`.
      value: the probability to start from. At 1 the gradient is exactly 0, so frozen weights need
        a start below 1.

    Returns:
      A tree like `params` of float32 arrays filled with `value`, `None` where a leaf stays dense.

    Raises:
      TypeError: for a value that is no number.
      ValueError: for a value outside [0, 1], or if nothing is prunable.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.init_probabilities({"kernel": jnp.zeros((1, 2)), "bias": jnp.zeros(2)})
    {'bias': None, 'kernel': Array([[1., 1.]], dtype=float32)}
    """
    checks.fraction("the initial probability", value)
    # From the mask, since a constant would not lie like the leaf on a mesh.
    fill = lambda keep: jnp.where(keep, jnp.float32(value), jnp.float32(0))
    return jax.tree.map(fill, masks.prunable(params, where))


class ProjectProbabilitiesState(NamedTuple):
    """`count`: updates so far, int32. `density`: the last in range. `problems`: see `problems`."""

    count: jax.typing.ArrayLike
    density: jax.typing.ArrayLike
    problems: jax.typing.ArrayLike


Costs = chex.ArrayTree | Callable[[chex.ArrayTree], chex.Numeric] | None


def project_probabilities(
    sparsity: optax.ScalarOrSchedule, *, costs: Costs = None
) -> optax.GradientTransformation:
    """Projects keep probabilities onto one budget over all layers, after the links before it.

    The updated probabilities lie in [0, 1] and cost at most (1 - sparsity) of what keeping
    everything costs (`projection_capped_simplex`; up to float32's rounding of params + updates).

    Args:
      sparsity: in [0, 1]; a number, or a schedule of the link's own count (`cubic_sparsity`). The
        budget is calculated in double precision for a Python number, in float32 for a traced one.
        Where a traced one is NaN or out of range, the budget in force is kept: the last one, or at
        first that of sparsity 0.
      costs: of one weight, as for `projection_capped_simplex`; by default 1. Or a function from
        the tree that the link sees to what its probabilities cost in all, non-decreasing and
        differentiable, such as `functools.partial(channel_cost, channels, of="flops")`. The budget
        then holds to 1e-5, for probabilities that are the nearest as far as first derivatives tell.

    Returns:
      A transformation for the end of a chain over the tree of probabilities alone:
      `optax.partition` joins it with the weights' optimizer. A probability that becomes NaN
      stays NaN, and counts 0 in the budget. The next update notes it for `problems`, and notes
      probabilities that something else has moved; a sparsity out of range is noted at once.

    Raises:
      TypeError: for a sparsity that is neither a number nor a schedule.
      ValueError: for a sparsity outside [0, 1], or costs that don't fit; in `init`, for a budget
        below what a function says of no probabilities at all; for NaN (outside `jit`).

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> probs = {"w": jnp.array([1.0, 1.0, 1.0, 1.0])}
    >>> tx = optax.chain(optax.adam(0.1), jp.project_probabilities(0.5))
    >>> grads = {"w": jnp.array([-1.0, -1.0, 1.0, 1.0])}
    >>> updates, _ = tx.update(grads, tx.init(probs), probs)
    >>> optax.apply_updates(probs, updates)["w"].round(3).tolist()
    [0.6000000238418579, 0.6000000238418579, 0.4000000059604645, 0.4000000059604645]
    """
    checks.fraction("sparsity", sparsity, schedule=True)

    def init_fn(params):
        cost_of = checks.function_alone(costs)
        if cost_of is not None:
            _check_budget(sparsity, cost_of, params)
        return initial_state()

    def update_fn(updates, state, params=None):
        params = needed(params, updates)
        masks.check_floating("the projection", params)
        moved: Any = optax.apply_updates(params, updates)
        projected, state = projection(
            moved, params, state, sparsity=sparsity, costs=costs, rounding=roundings(params)
        )
        updates = jax.tree.map(jnp.subtract, projected, params)
        return nan_where_nan(updates, moved), state

    return optax.GradientTransformation(init_fn, update_fn)


def initial_state() -> ProjectProbabilitiesState:
    """The state before the first update, when the budget is that of sparsity 0."""
    return ProjectProbabilitiesState(jnp.int32(0), jnp.float32(1), jnp.int32(0))


def projection(
    moved: chex.ArrayTree,
    before: chex.ArrayTree,
    state: Any,
    *,
    sparsity: optax.ScalarOrSchedule,
    costs: Costs = None,
    rounding: float,
    left: Callable[[Any], chex.Numeric] = lambda density: density,
) -> tuple[chex.ArrayTree, ProjectProbabilitiesState]:
    """The projected probabilities, with 0 in the place of NaN, and the next state.

    Args:
      moved: the probabilities after the update.
      before: those before it, which the link has projected, unless it is the first update.
      state: the last `ProjectProbabilitiesState`.
      sparsity: as for `project_probabilities`.
      costs: as for `project_probabilities`.
      rounding: by how much a probability may be off, though nothing has moved it.
      left: of a density, what `moved` may have of it.
    """
    priced = _priced(moved, costs)
    density, valid = _density(sparsity, state, priced.least)
    projected = priced.projected(moved, left(density) * priced.most)
    # One sum says all: it is NaN if a probability is, and far above if one lies outside [0, 1].
    seen = priced.spent(_marked(before, rounding))
    limit = (_SLACK * state.density + rounding) * priced.most
    nan, beyond = jnp.isnan(seen), (state.count > 0) & (seen > limit)
    problems = state.problems | noted(Problem.NAN, nan) | noted(Problem.BEYOND, beyond)
    problems = problems | noted(Problem.BUDGET, ~valid)
    count = optax.safe_increment(state.count)
    return projected, ProjectProbabilitiesState(count, jnp.asarray(density, jnp.float32), problems)


def nan_where_nan(updates: chex.ArrayTree, moved: chex.ArrayTree) -> chex.ArrayTree:
    """The updates, NaN where the sum with the parameters has become NaN: nothing hides it."""
    return jax.tree.map(lambda u, x: jnp.where(jnp.isnan(x), x.astype(u.dtype), u), updates, moved)


def roundings(tree: chex.ArrayTree) -> float:
    """Some units in the last place of numbers near 1, in the coarsest dtype of a tree."""
    return _ROUNDINGS * max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(tree))


def _marked(probs: chex.ArrayTree, rounding: float) -> chex.ArrayTree:
    """Far too much for what lies outside [0, 1]."""
    stray = lambda p: (p < -rounding) | (p > 1 + rounding)
    return jax.tree.map(lambda p: jnp.where(stray(p), jnp.full_like(p, _FAR_TOO_MUCH), p), probs)


def _cost_of_all(prob: float, cost_of, probs: chex.ArrayTree) -> Any:
    fill = lambda leaf: jnp.full_like(leaf, prob, dtype=jnp.float32)
    return cost_of(jax.tree.map(fill, probs))


def _check_budget(sparsity, cost_of, probs: chex.ArrayTree) -> None:
    masks.check_floating("the projection", probs)
    least, most = (_cost_of_all(prob, cost_of, probs) for prob in (0.0, 1.0))
    checks.number("what `costs` returns", most, "a number")
    if callable(sparsity) or not all(map(checks.known, (sparsity, least, most))):
        return
    budget = (1.0 - sparsity) * most
    if budget < least:
        raise ValueError(
            f"a sparsity of {sparsity} allows {budget:.4g} of {most:.4g}, but to keep nothing "
            f"costs {least:.4g}: at most {1.0 - least / most:.4g} can be asked for"
        )


class _Priced(NamedTuple):
    """What it costs to keep everything, and which share of it to keep nothing.

    `spent(probs)` is what probabilities cost, `projected(probs, budget)` are those within a budget.
    """

    most: chex.Numeric
    least: chex.Numeric
    spent: Callable[[chex.ArrayTree], Any]
    projected: Callable[[chex.ArrayTree, chex.Numeric], chex.ArrayTree]


def _priced(probs: chex.ArrayTree, costs: Costs) -> _Priced:
    cost_of = checks.function_alone(costs)
    if cost_of is None:
        return _priced_by_weight(probs, costs)
    least, most = (_cost_of_all(prob, cost_of, probs) for prob in (0.0, 1.0))
    within = functools.partial(projections.projection_within_cost, cost=cost_of)
    return _Priced(most, least / most, cost_of, within)


def _priced_by_weight(probs: chex.ArrayTree, costs: Any) -> _Priced:
    here = None
    if costs is not None:
        masks.leaves_like(probs, costs, "the costs", "`jax.tree.map` over the probabilities")
        here = masks.visible(probs, costs)

    def spent(probs):
        # In float32, whose rounding is far below the slack.
        prices = jax.tree.map(lambda p: 1.0, probs) if here is None else here
        of_leaf = lambda p, c: jnp.sum(p.astype(jnp.float32) * jnp.asarray(c, jnp.float32))
        return optax.tree.sum(jax.tree.map(of_leaf, probs, prices))

    within = functools.partial(projections.projection_capped_simplex, costs=here)
    return _Priced(_total_cost(probs, here), 0.0, spent, within)


def _density(
    sparsity, state: ProjectProbabilitiesState, least: chex.Numeric
) -> tuple[chex.Numeric, jax.Array]:
    """1 - sparsity and True; where a traced one is out of range, the last density and False."""
    zeros = sparsity(state.count) if callable(sparsity) else sparsity
    if isinstance(zeros, numbers.Real):
        checks.fraction("what the schedule of the sparsity gives", zeros)
        return 1.0 - float(zeros), jnp.bool_(True)
    zeros = jnp.asarray(zeros, jnp.float32)
    valid = (zeros >= 0) & (zeros <= 1) & (1.0 - zeros >= least * (1.0 - 1e-6))
    return jnp.where(valid, 1.0 - zeros, state.density), valid


def _total_cost(probs, costs) -> chex.Numeric:
    if costs is None:
        return float(sum(leaf.size for leaf in jax.tree.leaves(probs)))
    mean = lambda cost: jnp.mean(jnp.asarray(cost, jnp.float32))
    spent = jax.tree.map(lambda p, c: float(p.size) * mean(c), probs, costs)
    return jnp.asarray(optax.tree.sum(spent))


def best_sampled_mask(
    key: chex.PRNGKey,
    probs: chex.ArrayTree,
    score: Callable[[chex.ArrayTree], chex.Numeric],
    *,
    draws: int = 10,
) -> tuple[chex.ArrayTree, chex.Numeric]:
    """Draws masks from the probabilities and returns the one with the highest score.

    The number of kept weights is random: its mean is the sum of s, its variance the sum of s (1 -
    s). For an exact number use `top_k_mask(probs, k)`.

    Args:
      key: one `jax.random.key`.
      probs: tree of keep probabilities and `None`.
      score: from a mask to a number, such as the accuracy on held-out training data.
      draws: how many masks to try.

    Returns:
      The best mask and its score. NaN is never better than a number.

    Raises:
      TypeError: for what is no key, no tree of probabilities, no function or no whole number.
      ValueError: for `draws` below 1.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> probs = {"w": jnp.array([0.5, 0.5])}
    >>> mask, score = jp.best_sampled_mask(jax.random.key(0), probs, lambda m: m["w"].sum())
    >>> mask, int(score)
    ({'w': Array([ True,  True], dtype=bool)}, 2)
    """
    checks.key(key)
    checks.function("`score`", score)
    draws = checks.integer("`draws`", draws, least=1)
    masks_drawn = (sampling.bernoulli_mask(k, probs) for k in jax.random.split(key, draws))
    rank = lambda scored: -math.inf if scored[1] != scored[1] else scored[1]  # of NaN the lowest
    return max(((mask, score(mask)) for mask in masks_drawn), key=rank)


def vrpge_gradient(
    probs: chex.ArrayTree, masks: Sequence[chex.ArrayTree], losses: jax.Array
) -> chex.ArrayTree:
    r"""Estimates the gradient of the probabilities from losses alone, without back-propagation.

    .. math::
      g = \frac{1}{I-1} \sum_j (L_j - \bar L) \frac{m_j - s}{\sqrt{\max(s(1-s), \epsilon)}}

    an unbiased estimate of sqrt(s (1 - s)) dE[L]/ds (VRPGE: "Efficient Neural Network Training via
    Forward and Backward Propagation Sparsification", NeurIPS 2021, section 3).

    Args:
      probs: tree of keep probabilities and `None`.
      masks: I >= 2 hard masks, samples of `bernoulli_mask`.
      losses: shape (I,): the loss under each mask.

    Returns:
      A tree like `probs`, float32.

    Raises:
      TypeError: for masks that aren't a list of boolean trees, or losses that are no array.
      ValueError: for fewer than two masks, another number of losses, or masks that don't fit.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> probs, kept = {"w": jnp.array([0.5])}, {"w": jnp.array([True])}
    >>> jp.vrpge_gradient(probs, [kept, {"w": jnp.array([False])}], jnp.array([1.0, 3.0]))
    {'w': Array([-2.], dtype=float32)}
    """
    draws = _checked_draws(probs, masks, losses)
    advantages = (losses - jnp.mean(losses)) / (draws - 1)

    def estimate(prob, *drawn):
        prob = prob.astype(jnp.float32)
        spread = jnp.sqrt(jnp.maximum(prob * (1.0 - prob), 1e-20))
        return sum(
            advantage * (mask.astype(jnp.float32) - prob) / spread
            for advantage, mask in zip(advantages, drawn, strict=True)
        )

    return jax.tree.map(estimate, probs, *masks)


def _checked_draws(probs, drawn, losses) -> int:
    """How many masks were drawn."""
    masks.check_floating("the gradient of probabilities", probs)
    if not isinstance(drawn, (list, tuple)):
        kind = checks.described(drawn)
        raise TypeError(f"`masks` must be a sequence of masks, such as a list, got {kind}")
    if not hasattr(losses, "shape"):
        raise TypeError(f"`losses` must be an array, got {checks.described(losses)}")
    if len(drawn) < 2 or losses.shape != (len(drawn),):
        raise ValueError(
            f"needs at least two masks and one loss for each, got {len(drawn)} masks and losses of "
            f"shape {losses.shape}"
        )
    for mask in drawn:
        masks.check_boolean(mask)
        masks.fit_mask(probs, mask)
    return len(drawn)
