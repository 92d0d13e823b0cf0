"""The knapsack over a tree: the entries worth most for what they cost, within a budget.

An entry has a value of its own and the cost of its leaf, such as the bits of a weight. What is kept
is taken in order of value per cost. As in `selection` the cut is found by counting, two bits at a
time, and only counts leave a device: a ratio c cuts a leaf of cost b at the value b * c, which is
one scalar for each leaf, so that no entry is ever divided.

Where the next entry doesn't fit, the search goes on among the leaves whose entries are cheaper than
what is left, until nothing fits: a round at most for each different cost. What was taken until the
first entry didn't fit is the best set of its cost, so what is missing from the best value of all is
less than that one entry.

All that is asked of a leaf is how many of its ranks reach a number. So entries may be worth what
grows with their rank, such as what a weight is worth rounded, of which no array is ever made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxprune.trees import checks, masks, positions, selection, wide
from jaxprune.trees.selection import Ranked

_MOST = 2**32 - 1  # that an entry may cost
_INFINITY = selection.INFINITY
_NO_RANK = 2 * _INFINITY + 1  # above that of infinity
_SIGNIFICANT = 24  # bits of a float32


def knapsack_mask(
    values: chex.ArrayTree, costs: chex.ArrayTree, budget: int | jax.Array
) -> chex.ArrayTree:
    r"""Keeps the entries of most value per cost that a budget allows.

    The mask :math:`x` is the greedy answer to

    .. math:: \max \sum_l \sum_i v_{li} x_{li} \quad \text{with} \quad
      \sum_l c_l \sum_i x_{li} \le \text{budget}

    in order of v / c rounded down to float32, then of position; an entry that doesn't fit is passed
    over. The budget is held exactly, and no other entry of positive value would fit. With equal
    costs the mask is the best one. With others what is missing from the best value is less than the
    first entry that was passed over: its value, times the part of its cost that was left.

    Args:
      values: tree of arrays and `None`, of the dtypes of `top_k_mask`. Entries of value 0 or less
        are never kept.
      costs: tree like `values` of whole numbers from 1 to 2**32 - 1, one for a leaf, `None` where
        it has none; Python's, or integer arrays of shape (), which may be traced.
      budget: what all kept entries may cost together: a Python integer below 2**64, or a scalar
        integer array, which may be traced (then one below 0 is taken as 0).

    Returns:
      A mask like `values`. Inside `jax.jit`, where values can't be checked, NaN is never kept.

    Raises:
      TypeError: for a cost or a budget that isn't whole, or what `top_k_mask` refuses as scores.
      ValueError: for a cost or a budget out of range, costs that don't fit the values, and for what
        `top_k_mask` refuses as scores; the message names the leaf.

    Source: Dantzig, "Discrete-variable extremum problems" (Operations Research 1957), for the
    order and its bound.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> values = {"a": jnp.array([9.0, 4.0]), "b": jnp.array([3.0, 1.0])}
    >>> jp.knapsack_mask(values, {"a": 4, "b": 1}, 6)
    {'a': Array([ True, False], dtype=bool), 'b': Array([ True,  True], dtype=bool)}
    """
    selection.check_scores("the argument of `knapsack_mask`", values)
    return keep_best(values, _as_costs(values, costs), _as_budget(budget))


def _as_costs(values: chex.ArrayTree, costs: chex.ArrayTree) -> list[jax.Array]:
    """The cost of each leaf as uint64."""
    given = masks.leaves_like(values, costs, "`costs`", "`jax.tree.map(lambda v: bits, values)`")
    paths = jax.tree_util.tree_leaves_with_path(values)
    return [_as_cost(masks.path_name(path), c) for (path, _), c in zip(paths, given, strict=True)]


@wide.counts_in_64_bits
def _as_cost(path: str, cost) -> jax.Array:
    traced = isinstance(cost, jax.core.Tracer)
    if traced and jnp.issubdtype(cost.dtype, jnp.integer) and not cost.shape:
        return jnp.clip(cost.astype(jnp.int64), 1, _MOST).astype(jnp.uint64)
    if checks.integer(f"the cost of leaf '{path}'", cost, least=1) > _MOST:
        raise ValueError(f"the cost of leaf '{path}' must be at most {_MOST}, got {cost}")
    return jnp.uint64(cost)


@wide.counts_in_64_bits
def _as_budget(budget) -> jax.Array:
    if isinstance(budget, jax.core.Tracer) and jnp.issubdtype(budget.dtype, jnp.integer):
        return jnp.maximum(budget, 0).astype(jnp.uint64)
    if checks.integer("the budget", budget, least=0) >= 2**64:
        raise ValueError(f"the budget must be below 2**64, got {budget}")
    return jnp.uint64(budget)


@wide.counts_in_64_bits
def keep_best(values: chex.ArrayTree, costs: list[jax.Array], budget: jax.Array) -> chex.ArrayTree:
    """`knapsack_mask` of checked values, with uint64 costs of the leaves and a uint64 budget."""
    return masks.sharded_alike(_keep_best, values)(values, costs, budget)


@jax.jit
def _keep_best(values, costs, budget):
    leaves, structure = jax.tree.flatten(values)
    costs = jnp.stack(costs)

    def least_ranks(ratios):
        return _INFINITY + least_values(costs, ratios)

    return structure.unflatten(
        best([*map(selection.of_scores, leaves)], least_ranks, costs, budget)
    )


class _Taken(NamedTuple):
    """What is kept so far: of each leaf all ranks from one on, and some of those below it."""

    above: jax.Array  # uint32, the rank from which all are kept
    cut: jax.Array  # uint32, the rank from which some are: what equals the ratio of the cut
    ties: jax.Array  # uint64, how many entries of the cut's ratio are kept
    partial: jax.Array  # whether that isn't all of them
    kept: jax.Array  # uint64, how many entries are kept in all
    left: jax.Array  # uint64, of the budget
    open: jax.Array  # whether a leaf has more, and what is left pays for one


@wide.counts_in_64_bits
def best(
    leaves: list[Ranked],
    least_ranks: Callable[[jax.Array], jax.Array],
    costs: jax.Array,
    budget: jax.Array,
) -> list[jax.Array]:
    """The masks of the entries of most value per cost.

    Args:
      leaves: whose entries are worth more the higher they rank.
      least_ranks: from the bits of ratios of value and cost, float32 in an array of shape
        (leaves, ratios), to the ranks in each leaf that reach them.
      costs: of an entry of each leaf, uint64 (leaves,).
      budget: uint64.
    """
    least_ranks = _none_above_infinity(least_ranks)
    nothing = jnp.full(len(leaves), _NO_RANK, jnp.uint32)
    sizes = _reaching(leaves, least_ranks(jnp.zeros((len(leaves), 1), jnp.uint32)))[:, 0]
    taken = _Taken(
        above=nothing,
        cut=nothing,
        ties=jnp.zeros_like(costs),
        partial=jnp.zeros(len(leaves), bool),
        kept=jnp.zeros_like(costs),
        left=budget,
        open=(sizes > 0) & (costs <= budget),
    )
    more = functools.partial(_take_more, leaves, least_ranks, costs, sizes)
    taken = jax.lax.while_loop(lambda taken: jnp.any(taken.open), more, taken)

    def choose(operands):
        again = [leaf._replace(operands=own) for leaf, own in zip(leaves, operands, strict=True)]
        return [
            _kept(leaf, *of_leaf)
            for leaf, *of_leaf in zip(
                again, taken.above, taken.cut, taken.ties, taken.partial, strict=True
            )
        ]

    # As a conditional, which reads its operands from memory, as in `selection`.
    none = lambda operands: [jnp.zeros(leaf.shape, bool) for leaf in leaves]
    operands = [leaf.operands for leaf in leaves]
    return jax.lax.cond(jnp.any(taken.kept > 0), choose, none, operands)


def _none_above_infinity(least_ranks):
    return lambda ratios: jnp.where(ratios > _INFINITY, _NO_RANK, least_ranks(ratios))


def _take_more(leaves, least_ranks, costs, sizes, taken: _Taken) -> _Taken:
    """One round: what fits of the open leaves, in order, until one of them has an entry too many.

    An open leaf has all entries of its cut, so that what is new in it is what lies below.
    """

    def ranks_of(ratios):
        return least_ranks(jnp.broadcast_to(jnp.stack(ratios), (len(leaves), len(ratios))))

    def new(counts):
        return jnp.where(taken.open[:, None], counts - jnp.minimum(counts, taken.kept[:, None]), 0)

    def too_much(candidates):
        counts = new(_reaching(leaves, ranks_of(candidates)))
        return jnp.sum(costs[:, None] * counts, axis=0) > taken.left

    ratio = selection.largest(too_much, (jnp.uint32(0), 30), 16)
    ranks = ranks_of([ratio + 1, ratio])
    above, reached = new(_reaching(leaves, ranks)).T
    left = taken.left - jnp.sum(costs * above)

    def fill(left, leaf):
        cost, wanted = leaf
        fits = jnp.minimum(wanted, left // cost)
        return left - cost * fits, fits

    left, ties = jax.lax.scan(fill, left, (costs, reached - above))
    kept = taken.kept + above + ties
    return _Taken(
        above=jnp.where(taken.open, ranks[:, 0], taken.above),
        cut=jnp.where(taken.open, ranks[:, 1], taken.cut),
        ties=jnp.where(taken.open, ties, taken.ties),
        partial=jnp.where(taken.open, ties < reached - above, taken.partial),
        kept=kept,
        left=left,
        open=taken.open & (kept < sizes) & (costs <= left),
    )


def least_values(costs: jax.Array, ratios: jax.Array) -> jax.Array:
    """The bits of the least positive float32 that is at least cost * ratio, of a ratio's bits.

    In integers: a float32 is significand * 2**exponent, and its bits are in the order of values.

    Args:
      costs: uint64 (leaves,).
      ratios: uint32 (leaves, ratios).
    """
    exponent = jnp.maximum(ratios >> 23, 1)
    significand = ratios - ((exponent - 1) << 23)
    product = costs[:, None] * significand.astype(jnp.uint64)
    excess = jnp.maximum(64 - jax.lax.clz(product).astype(jnp.int32) - _SIGNIFICANT, 0)
    shift = excess.astype(jnp.uint64)
    rounded_up = (product + (jnp.uint64(1) << shift) - 1) >> shift
    bits = ((exponent.astype(jnp.uint64) - 1 + shift) << 23) + rounded_up
    return jnp.clip(bits, 1, _INFINITY).astype(jnp.uint32)


def _reaching(leaves: list[Ranked], ranks: jax.Array) -> jax.Array:
    """How many entries of each leaf reach each of its ranks: uint64 (leaves, ranks)."""

    def reached(leaf, limits):
        found, limits = leaf.read_again(limits)
        return [found >= limit for limit in limits]

    return wide.exact_sums([reached(*both) for both in zip(leaves, ranks, strict=True)])


def _kept(leaf: Ranked, above, cut, ties, partial) -> jax.Array:
    """The mask of what is taken of a leaf: of ties, those in front."""

    def tied(*operands):
        ranks = leaf.ranks(*operands[:-2])
        return ((ranks < operands[-2]) & (ranks >= operands[-1])).astype(jnp.uint32)

    among = Ranked((*leaf.operands, above, cut), tied)
    inside = selection.nth_tie([among], jnp.uint32(1), jnp.where(partial, 0, 1), ties)
    everything = jnp.array(jnp.iinfo(inside.dtype).max, inside.dtype)
    limit = jnp.where(partial, inside, everything)
    ranks, (above, cut, limit) = leaf.read_again((above, cut, limit))
    place = positions.exact(leaf.shape)
    before = place < selection.saturated(limit, place.dtype)
    return (ranks >= above) | ((ranks >= cut) & before)
