"""Exact selection under a budget: as many of the largest scores as a cost allows.

The masks of the k largest scores lie in one another, so what they cost grows with k, whatever the
cost is: a number for each score, or a product of how many stay here and there, as in a network.
The largest k that the budget allows is found by bisection, with some log2(n) masks.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.trees import checks, masks, selection, wide

_MOST_SCORES = 2**32 - 1  # that k can count


def budget_mask(
    scores: chex.ArrayTree,
    budget: chex.Numeric,
    cost: Callable[[chex.ArrayTree], chex.Numeric],
    *,
    least: int = 0,
    multiple_of: int = 1,
) -> chex.ArrayTree:
    """Keeps as many of the largest scores as a budget allows: one more would exceed it.

    Equal scores are kept in order of position, as by `top_k_mask`. Of a leaf the kept ones can be a
    multiple of some number: where 16 channels are worked on at once, 9 take as long.

    Args:
      scores: tree of arrays and `None`, as for `top_k_mask`; such as `channel_norms`.
      budget: what the mask may cost: a Python number, or a scalar that may be traced.
      cost: from a mask like `scores` to a number, never less for a mask that keeps more; such as
        `lambda keep: channel_cost(channels, keep, of="flops")`.
      least: how many of the largest scores of each leaf stay in any case. With 1 no family of
        channels is lost, which `shrink` would refuse.
      multiple_of: what the kept scores of each leaf are a multiple of, unless all of them stay;
        `least` is rounded up to one. Of those that the budget allows, the smallest of a leaf go.

    Returns:
      A mask like `scores`, which costs no more than the budget. Inside `jax.jit`, where `cost` is
      traced, costs are compared in float32, integers rounded up.

    Raises:
      TypeError: for a budget that is no number, a cost that is no function or gives no number,
        numbers that aren't whole, or what `top_k_mask` refuses.
      ValueError: for a budget below what the least costs, or that is NaN (outside `jit`; inside,
        the least is kept), and for what `top_k_mask` refuses.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> milliseconds = {"a": jnp.array([1.0, 1.0]), "b": jnp.array([5.0])}
    >>> cost = lambda mask: sum(jnp.sum(mask[name] * milliseconds[name]) for name in mask)
    >>> jp.budget_mask({"a": jnp.array([3.0, 1.0]), "b": jnp.array([2.0])}, 6.5, cost)
    {'a': Array([ True, False], dtype=bool), 'b': Array([ True], dtype=bool)}
    """
    selection.check_scores("the argument of `budget_mask`", scores)
    checks.function("`cost`", cost)
    multiple_of = checks.integer("`multiple_of`", multiple_of, least=1)
    least = -(-checks.integer("`least`", least, least=0) // multiple_of) * multiple_of
    leaves = jax.tree.leaves(scores)
    size = sum(leaf.size for leaf in leaves)
    if size > _MOST_SCORES:
        raise ValueError(f"a budget is held over at most {_MOST_SCORES} scores, got {size}")
    first = sum(min(least, leaf.size) for leaf in leaves)
    scores = _raised(scores, least)
    kept = lambda k: _in_multiples(selection.top_k_mask(scores, k), scores, multiple_of)
    spent = lambda k: _number("what `cost` returns", cost(kept(k)))
    budget = _number("the budget", budget)
    _check_budget(budget, spent(first), least)
    return kept(_largest_k(spent, budget, first, size))


def _largest_k(spent, budget: chex.Numeric, low: int, high: int) -> jax.Array | int:
    """The largest k up to `high` that isn't too expensive, or `low`."""
    if checks.known(budget) and checks.known(spent(low)):
        return low + bisect.bisect_right(range(low + 1, high + 1), budget, key=spent)

    def halve(ends):
        low, high = ends
        middle = low + (high - low + jnp.uint32(1)) // 2
        fits = _within(spent(middle), budget)
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle - jnp.uint32(1))

    ends = jnp.uint32(low), jnp.uint32(high)
    return jax.lax.while_loop(lambda ends: ends[0] < ends[1], halve, ends)[0]


def _number(name: str, value: chex.Numeric) -> chex.Numeric:
    """Python's number, which compares exactly, unless it is traced."""
    checks.number(name, value, "a number")
    return np.asarray(value).item() if checks.known(value) else value


def _raised(scores: chex.ArrayTree, least: int) -> chex.ArrayTree:
    """Scores with the largest of each leaf above all others."""
    if least == 0:
        return scores

    def of_leaf(leaf):
        first: Any = selection.top_k_mask(leaf, min(least, leaf.size))
        leaf = leaf if masks.is_floating(leaf) else leaf.astype(jnp.float32)
        return jnp.where(first, jnp.inf, jnp.minimum(leaf, jnp.finfo(leaf.dtype).max))

    return jax.tree.map(of_leaf, scores)


def _in_multiples(mask: chex.ArrayTree, scores: chex.ArrayTree, multiple_of: int) -> chex.ArrayTree:
    """The mask without the smallest scores of each leaf that make no multiple."""
    if multiple_of == 1:
        return mask

    def of_leaf(keep, leaf):
        kept = jnp.sum(keep, dtype=jnp.uint32)
        over = jnp.where(kept == leaf.size, 0, kept % jnp.uint32(multiple_of))
        return selection.top_k_mask(leaf, kept - over.astype(jnp.uint32))

    return jax.tree.map(of_leaf, mask, scores)


def _check_budget(budget: chex.Numeric, spent: chex.Numeric, least: int) -> None:
    if not (checks.known(budget) and checks.known(spent)):
        return
    if not budget >= spent:
        kept = f"the {least} largest scores of each leaf cost" if least else "to keep nothing costs"
        raise ValueError(f"the budget is {budget}, but {kept} {spent}: give at least that much")


def _within(spent: chex.Numeric, budget: chex.Numeric) -> jax.Array:
    spent = jnp.asarray(spent)
    if jnp.issubdtype(spent.dtype, jnp.integer):
        spent = wide.least_float32(spent)
    spent = spent.astype(masks.at_least_float32(spent))
    known = checks.known(budget)
    limit = _rounded_down(budget, spent.dtype) if known else jnp.asarray(budget, spent.dtype)
    return spent <= limit


def _rounded_down(budget: chex.Numeric, dtype) -> np.ndarray:
    """The largest number of a narrower dtype that isn't above the budget."""
    near = np.asarray(min(budget, float(jnp.finfo(dtype).max)), dtype)
    return np.nextafter(near, dtype.type(-np.inf)) if float(near) > budget else near
