"""Euclidean projection onto a box with one budget over the whole tree.

The projection of z onto {0 <= s <= 1, sum c s <= K} is clip(z - v c, 0, 1) with one number v >= 0,
the smallest for which the budget holds: the root of a piecewise linear, non-increasing function of
v (KKT; "Effective Sparsification of Neural Networks with Global Sparsity Constraint", CVPR 2021,
section 3, for c = 1). Newton's method on it, kept inside a bracket, needs a few passes over the
tree.

Each pass measures the excess over the budget in integers (units of 2**-30), so that it is exact,
doesn't depend on how leaves are cut or sharded, and loses nothing at 1e9 weights. v is a sum of two
floats: one would be too coarse for a small budget below scores near 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.trees import checks, masks, positions, selection, wide

_FRACTION = 30  # bits after the point of every quantity that is compared with the budget
_PRECISION = 2.0**-24  # of a budget in float32
_MAX_PASSES = 100  # bisection alone would need about 60
_LINEARISATIONS = 12  # from near the budget 3 are enough
_LEAST_PRICE = 1e-6  # of the highest, for what costs nothing as long as something else is gone
_HALVINGS = 24  # of a factor in [0, 1]
_TOLERANCE = 2e-6  # of the budget, so that nothing is scaled down for rounding


def projection_capped_simplex(
    scores: chex.ArrayTree,
    budget: chex.Numeric,
    *,
    costs: chex.ArrayTree | None = None,
) -> chex.ArrayTree:
    r"""Projects scores onto probabilities in [0, 1] whose total cost is within a budget.

    .. math::
      \min_s \|s - z\|^2 \quad\text{subject to}\quad 0 \le s_i \le 1,\ \sum_i c_i s_i \le K

    over all leaves at once. If clipping alone meets the budget, that is the answer: the sum is
    never raised.

    Args:
      scores: tree of floating-point arrays (z) and `None`; calculated in float32.
      budget: K >= 0 in units of the costs; a Python number, or a scalar that may be traced.
      costs: c > 0, finite; a tree like `scores` whose leaves are numbers, scalars or arrays of the
        leaf's shape; such as FLOPs, bytes or measured time of one weight. By default 1 for each.

    Returns:
      A tree like `scores`, with its dtypes. Where the budget binds, the total is within 1e-6 of it,
      relatively (2e-6 with costs; in 16-bit dtypes each entry is then rounded). Inside `jax.jit`,
      where values can't be checked, NaN gives 0.

    Raises:
      TypeError: for a budget that is no number, or leaves that aren't floating-point.
      ValueError: for a negative or non-finite budget, costs that aren't positive, an empty tree, or
        NaN (values are checked outside `jit`); the message names the leaf.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.projection_capped_simplex({"a": jnp.array([1.5, 0.5]), "b": jnp.array([0.25])}, 1.25)
    {'a': Array([1.  , 0.25], dtype=float32), 'b': Array([0.], dtype=float32)}
    """
    masks.check_floating("the projection", scores)
    selection.check_no_nan(scores)
    checks.number("the budget", budget, "a number")
    if checks.known(budget) and not 0 <= float(budget) < math.inf:
        raise ValueError(f"the budget must be finite and not negative, got {budget}")
    if costs is not None:
        costs = _checked_costs(scores, costs)
    return _project(scores, jnp.asarray(budget, jnp.float32), costs)


def projection_within_cost(
    scores: chex.ArrayTree,
    budget: chex.Numeric,
    cost: Callable[[chex.ArrayTree], chex.Numeric],
) -> chex.ArrayTree:
    r"""The nearest probabilities of which a function says that they cost no more than the budget.

    .. math::
      \min_s \|s - z\|^2 \quad\text{subject to}\quad 0 \le s_i \le 1,\ C(s) \le K

    by sequential linearisation: C is replaced by its tangent at the last s, whose slopes are the
    costs of `projection_capped_simplex`, until s meets the first-order conditions. These are all
    that can be asked for: {C <= K} isn't convex where C has products of probabilities. What still
    exceeds the budget then is scaled down to it.

    Args:
      scores: tree of floating-point arrays (z) and `None`.
      budget: K, at least C(0); may be traced.
      cost: C, differentiable and non-decreasing in each probability.
    """
    wide_scores = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), scores)

    def linearise(_, probs):
        spent, slopes = jax.value_and_grad(cost)(probs)
        highest = _largest(jax.tree.leaves(slopes))
        least = jnp.where(highest > 0, _LEAST_PRICE * highest, 1.0)
        prices = jax.tree.map(lambda slope: jnp.maximum(slope, least), slopes)
        left = budget - spent + optax.tree.vdot(prices, probs)
        return projection_capped_simplex(wide_scores, jnp.maximum(left, 0.0), costs=prices)

    start = jax.tree.map(_clipped, wide_scores)
    probs = jax.lax.fori_loop(0, _LINEARISATIONS, linearise, start)
    limit = budget * (1.0 + _TOLERANCE)
    factor = _affordable_factor(lambda factor: cost(optax.tree.scale(factor, probs)) <= limit)
    return jax.tree.map(lambda leaf, prob: (factor * prob).astype(leaf.dtype), scores, probs)


def _affordable_factor(fits: Callable[[jax.Array], Any]) -> jax.Array:
    """1 if it fits, or the largest smaller factor that does."""

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        fit = fits(middle)
        return jnp.where(fit, middle, low), jnp.where(fit, high, middle)

    one, zero = jnp.float32(1), jnp.float32(0)
    smaller = lambda: jax.lax.fori_loop(0, _HALVINGS, halve, (zero, one))[0]
    return jax.lax.cond(fits(one), lambda: one, smaller)


def _checked_costs(scores, costs):
    def checked(path, score, cost):
        name = masks.path_name(path)
        if cost is None:
            raise ValueError(f"the costs of leaf '{name}' are missing: give it a number")
        if not hasattr(cost, "dtype"):
            checks.number(f"the costs of leaf '{name}'", cost, "a number or an array")
        if jnp.shape(cost) not in ((), score.shape):
            raise ValueError(
                f"the costs of leaf '{name}' must be one number or have its shape {score.shape}, "
                f"got {jnp.shape(cost)}"
            )
        if not isinstance(cost, jax.core.Tracer):
            with jax.ensure_compile_time_eval():
                usable = bool(jnp.all((jnp.asarray(cost) > 0) & jnp.isfinite(cost)))
            if not usable:
                raise ValueError(f"the costs of leaf '{name}' must be positive and finite")
        return jnp.asarray(cost, jnp.float32)

    masks.leaves_like(scores, costs, "the costs", "`jax.tree.map` over the scores")
    return jax.tree_util.tree_map_with_path(checked, scores, costs)


class _Shift(NamedTuple):
    """v = high + low, with low below half a unit in the last place of high."""

    high: jax.Array
    low: jax.Array


def _move(v: _Shift, by: jax.Array) -> _Shift:
    """v + by (Knuth's two-sum, then normalised)."""
    high = v.high + by
    part = high - v.high
    low = v.low + ((v.high - (high - part)) + (by - part))
    total = high + low
    return _Shift(total, low - (total - high))


def _before(a: _Shift, b: _Shift) -> jax.Array:
    return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def _middle(a: _Shift, b: _Shift) -> _Shift:
    return _move(a, ((b.high - a.high) + (b.low - a.low)) / 2)


@jax.jit
def _project(scores, budget, costs):
    leaves, structure = jax.tree.flatten(scores)
    costs = [1.0] * len(leaves) if costs is None else jax.tree.leaves(costs)
    v = _shift(leaves, budget, costs)
    return structure.unflatten(
        jnp.where(budget > 0, _share(leaf, v, cost), 0.0).astype(leaf.dtype)
        for leaf, cost in zip(leaves, costs, strict=True)
    )


def _share(score, v: _Shift, cost) -> jax.Array:
    return _clipped((score.astype(jnp.float32) - v.high * cost) - v.low * cost)


def _clipped(score) -> jax.Array:
    """Within [0, 1]; 0 for NaN, which `jax.numpy.clip` would leave."""
    return jnp.where(score > 0, jnp.minimum(score, 1.0), 0.0)


def _largest(costs) -> jax.Array:
    wide_costs = (jnp.asarray(cost, jnp.float32) for cost in costs)  # float64 under x64 otherwise
    return jnp.stack([jnp.max(cost, initial=0.0) for cost in wide_costs]).max()


def _shift(leaves, budget, costs) -> _Shift:
    """The smallest v >= 0 for which sum c clip(z - v c, 0, 1) <= budget."""
    size = sum(leaf.size for leaf in leaves)
    fraction = min(_FRACTION, 62 - size.bit_length())  # so that all of it fits 64 bits
    largest = _largest(costs)
    scale = jnp.exp2(-jnp.ceil(jnp.log2(largest)))  # costs times scale lie in (0, 1]
    limit = jnp.minimum(budget * scale * 2.0**fraction, 2.0**62)
    per_leaf = all(jnp.ndim(cost) == 0 for cost in costs)

    def units(x, cost):
        """x in [0, 1] as integers; where costs make it unequal, rounded so that errors cancel."""
        up = 0.5 if isinstance(cost, float) else _evenly_spread(x.shape)
        return (x * 2.0**fraction + up).astype(jnp.int32).astype(jnp.uint32)

    def excess(v):
        """Spending above the budget at v, and by how much it falls for a unit of v; in units."""
        rows = []
        for leaf, cost in zip(leaves, costs, strict=True):
            share, weight = _share(leaf, v, cost), cost * scale
            active = (share > 0) & (share < 1)
            slope = active if per_leaf else units(jnp.where(active, weight * weight, 0.0), cost)
            rows.append([units(share * weight, cost), slope])
        above, slopes = _excess_and_slopes(rows, limit)
        if per_leaf:  # counting active weights is cheaper than adding up their costs
            slopes = slopes * jnp.stack([cost * cost * (scale * 2.0**fraction) for cost in costs])
        else:
            slopes = slopes / scale
        return above, jnp.sum(slopes)

    return _root(excess, jnp.floor(limit) * _PRECISION, 1.0 / largest)


@wide.counts_in_64_bits
def _excess_and_slopes(rows, limit):
    """By how much the first sums together exceed a limit, and each leaf's second sum; float32."""
    sums = wide.exact_sums(rows)
    excess = jnp.sum(sums[:, 0]).astype(jnp.int64) - limit.astype(jnp.int64)
    return excess.astype(jnp.float32), sums[:, 1].astype(jnp.float32)


def _evenly_spread(shape) -> jax.Array:
    """Numbers in [0, 1) that go round by the golden ratio from entry to entry."""
    turns = positions.flat(shape) * jnp.uint32(0x9E3779B9)
    return (turns >> 8).astype(jnp.float32) * 2.0**-24


class _Search(NamedTuple):
    v: _Shift
    lower: _Shift  # here the budget is exceeded
    upper: _Shift  # here it is met
    done: jax.Array
    passes: jax.Array


def _root(excess, tolerance, first_step) -> _Shift:
    """The v >= 0 at which `excess` falls to 0, by Newton in a bracket; 0 if it starts that low."""

    def improve(s: _Search):
        above, slope = excess(s.v)
        exceeded = above > 0
        lower = jax.tree.map(lambda x, y: jnp.where(exceeded, x, y), s.v, s.lower)
        upper = jax.tree.map(lambda x, y: jnp.where(exceeded, y, x), s.v, s.upper)
        newton = _move(s.v, above / jnp.maximum(slope, 1.0))
        unbounded = jnp.isinf(upper.high)
        farther = _move(s.v, jnp.maximum(first_step, s.v.high))
        fallback = jax.tree.map(
            lambda x, y: jnp.where(unbounded, x, y), farther, _middle(lower, upper)
        )
        inside = (slope > 0) & _before(lower, newton) & _before(newton, upper)
        wanted = inside & ((s.passes < _MAX_PASSES // 4) | (s.passes % 2 == 0))
        step = jax.tree.map(lambda x, y: jnp.where(wanted, x, y), newton, fallback)
        # Every share right to float32's precision, and their total too, or else to half a unit.
        near = jnp.maximum(tolerance, slope * 2.0 ** -(_FRACTION + 1))
        small = jnp.abs(above) <= jnp.minimum(near, slope * 2.0**-24)
        stuck = ~(_before(lower, step) & _before(step, upper))
        met_by_clipping = (s.passes == 0) & (above <= tolerance)
        done = small | stuck | met_by_clipping
        v = jax.tree.map(lambda x, y: jnp.where(done, x, y), s.v, step)
        return _Search(v, lower, upper, done, s.passes + 1)

    zero = _Shift(jnp.float32(0), jnp.float32(0))
    start = _Search(
        v=zero,
        lower=zero,
        upper=_Shift(jnp.float32(jnp.inf), jnp.float32(0)),
        done=jnp.bool_(False),
        passes=jnp.int32(0),
    )
    return jax.lax.while_loop(lambda s: ~s.done & (s.passes < _MAX_PASSES), improve, start).v
