"""Exact selection: the k largest scores of a whole tree, or of one leaf.

The cut between kept and pruned scores is found by counting, not by sorting. Scores are read as
integers in the same order; two bits of the cut are fixed at a time, by counting how many scores
reach each of 3 candidates in one pass over the tree. float32 takes 16 passes, bfloat16 takes 8.
Only the counts leave a device, so a sharded tree stays where it is; nothing is sorted, gathered,
concatenated or copied. Counts are integers, so the answer doesn't depend on the devices.

Scores equal to the cut are kept in order of position (leaf by leaf, row by row) until there are k;
where the order cuts a leaf, the same search finds the position.

A cut is two scalars, and what it keeps is known wherever the ranks are. So a choice within a choice
(`regrow`) or of random numbers (`random_mask`) holds no array of a leaf's size beside its mask.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxprune.trees import checks, masks, positions, wide

INFINITY = 0x7F800000  # the bits of float32's infinity
_MOST_SCALED = 1000  # powers of two, which float64 has
_DIGIT = 2  # bits fixed in one pass: on CPUs 1 takes seven times as long, 4 half as long again


def top_k_mask(scores: chex.ArrayTree, k: int | jax.Array) -> chex.ArrayTree:
    """Keeps exactly the k largest scores of the whole tree.

    Equal scores are kept in order of position: by leaf, then row by row. -0.0 equals 0.0.

    Args:
      scores: tree of arrays and `None`; floating-point of at most 32 bits, or integers of at most
        16. Dtypes may differ from leaf to leaf.
      k: how many to keep, 0 <= k <= number of scores: a Python integer, or a scalar integer array,
        which may be traced (then a k outside the range is taken as its nearer end).

    Returns:
      A mask like `scores` with exactly k `True`. Inside `jax.jit`, where values can't be checked,
      NaN ranks with -inf.

    Raises:
      TypeError: for a k that isn't whole, what is no tree of arrays, or an unsupported dtype.
      ValueError: for k out of range, an empty tree, or NaN (outside `jit`); the message names the
        leaf.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.top_k_mask({"a": jnp.array([3.0, 1.0]), "b": jnp.array([2.0, 2.0])}, 2)
    {'a': Array([ True, False], dtype=bool), 'b': Array([ True, False], dtype=bool)}
    """
    check_scores("the argument of `top_k_mask`", scores)
    size = sum(leaf.size for leaf in jax.tree.leaves(scores))
    return keep_largest(scores, _as_count(k, size))


def check_scores(name: str, scores: chex.ArrayTree) -> None:
    """Raises an error that names the leaf unless the tree can be ranked."""
    checks.tree(name, scores)
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(scores)
    if not paths_and_leaves:
        raise ValueError("the tree of scores has no leaves")
    for path, leaf in paths_and_leaves:
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        floating = masks.is_floating(leaf) and leaf.dtype.itemsize <= 4
        integer = jnp.issubdtype(dtype, jnp.integer) if hasattr(leaf, "dtype") else False
        if not (floating or (integer and leaf.dtype.itemsize <= 2)):
            raise TypeError(
                f"the scores of leaf '{masks.path_name(path)}' are {dtype}; allowed are arrays of "
                "floating-point dtypes of at most 32 bits and integers of at most 16: cast them to "
                "float32"
            )
    check_no_nan(scores)


def check_no_nan(scores: chex.ArrayTree) -> None:
    """Raises a ValueError that names the leaf of a NaN; traced leaves can't be seen and pass."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(scores):
        if isinstance(leaf, jax.core.Tracer) or not masks.is_floating(leaf):
            continue
        with jax.ensure_compile_time_eval():  # a concrete leaf can be seen while others are traced
            found = bool(_has_nan(leaf))
        if found:
            raise ValueError(
                f"leaf '{masks.path_name(path)}' holds NaN, which has no rank: find where the "
                "training diverged, or replace them with `jnp.nan_to_num`"
            )


@jax.jit
def _has_nan(leaf):
    return jnp.any(jnp.isnan(leaf))


@wide.counts_in_64_bits
def _as_count(k, size: int):
    """k as uint64."""
    if isinstance(k, jax.core.Tracer) and jnp.issubdtype(k.dtype, jnp.integer):
        return jnp.minimum(jnp.maximum(k, 0).astype(jnp.uint64), jnp.uint64(size))
    if checks.integer("k", k, least=0) > size:
        raise ValueError(f"k must lie between 0 and the number of scores, {size}; got {k}")
    return jnp.uint64(k)


@wide.counts_in_64_bits
def keep_largest(
    scores: chex.ArrayTree, k: jax.Array, *, magnitudes: bool = False
) -> chex.ArrayTree:
    """`top_k_mask` of checked scores, or of their magnitudes, with a uint64 k within the size."""
    of_tree = functools.partial(_keep_largest, magnitudes=magnitudes)
    return masks.sharded_alike(of_tree, scores)(scores, k)


@functools.partial(jax.jit, static_argnames="magnitudes")
def _keep_largest(scores, k, *, magnitudes):
    leaves, structure = jax.tree.flatten(scores)
    leaves = _in_float32(leaves)
    ranked = lambda leaves: [of_scores(leaf, magnitudes=magnitudes) for leaf in leaves]
    cut = _cut_rank(ranked(leaves), k)

    def choose(leaves):
        found = ranked(leaves)
        before = _cut_positions(found, cut, k)
        return [leaf.kept(Cut(cut, limit)) for leaf, limit in zip(found, before, strict=True)]

    # Both sides of the cut must see the same bits of a score. XLA may calculate scores again where
    # they are used, fused and so rounded differently; a conditional reads its operands from memory.
    nothing = lambda leaves: [jnp.zeros_like(leaf, dtype=bool) for leaf in leaves]
    return structure.unflatten(jax.lax.cond(k > 0, choose, nothing, leaves))


def _in_float32(leaves: list[jax.Array]) -> list[jax.Array]:
    """The leaves; if some are float64, all in float32, scaled so that the largest is near 1.

    By a power of two, so that scores have as many bits as in float32, but its range ties none.
    """
    if all(leaf.dtype != jnp.float64 for leaf in leaves):
        return leaves
    leaves = [leaf.astype(jnp.float64) for leaf in leaves]
    size = lambda leaf: jnp.max(jnp.abs(leaf), where=jnp.isfinite(leaf), initial=0)
    exponent = jnp.frexp(functools.reduce(jnp.maximum, map(size, leaves)))[1]
    scale = jnp.ldexp(jnp.float64(1), -jnp.clip(exponent, -_MOST_SCALED, _MOST_SCALED))
    return [(leaf * scale).astype(jnp.float32) for leaf in leaves]


class Cut(NamedTuple):
    """Kept are ranks above `rank`, and of those equal to it the ones before `position`."""

    rank: jax.Array
    position: jax.Array

    def keeps(self, ranks: jax.Array) -> jax.Array:
        """Which of a leaf's ranks are kept."""
        tied = (ranks == self.rank) & (positions.exact(ranks.shape) < self.position)
        return (ranks > self.rank) | tied


class Ranked(NamedTuple):
    """A leaf whose entries have ranks, which are worked out wherever they are read.

    `operands` lie in memory, the first in the leaf's shape; `ranks` makes uint32 of them, to the
    same bits wherever it is fused; `low_zero_bits` of each are zero, which spares passes.
    """

    operands: tuple
    ranks: Callable[..., jax.Array]
    low_zero_bits: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the leaf."""
        return self.operands[0].shape

    def read_again(self, then):
        """The ranks, of which XLA doesn't know that it has them: else it would keep them."""
        operands, then = jax.lax.optimization_barrier((self.operands, then))
        return self.ranks(*operands), then

    def kept(self, cut: Cut) -> jax.Array:
        """The mask of a cut."""
        ranks, cut = self.read_again(cut)
        return cut.keeps(ranks)


def of_scores(leaf: jax.Array, *, magnitudes: bool = False) -> Ranked:
    """The order of scores, or of their magnitudes."""
    ranks = functools.partial(score_ranks, magnitudes=magnitudes)
    return Ranked((leaf,), ranks, _low_zero_bits(leaf.dtype))


@wide.counts_in_64_bits
def cut(leaf: Ranked, k: jax.Array) -> Cut:
    """The cut that keeps the k largest of one leaf; k is a uint64 up to its size."""
    rank = _cut_rank([leaf], k)
    return Cut(rank, _cut_positions([leaf], rank, k)[0])


def score_ranks(leaf: jax.Array, *, magnitudes: bool = False) -> jax.Array:
    """uint32 in the order of the scores: 0 for -inf and NaN, 2 * INFINITY for inf."""
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
    size = bits & 0x7FFFFFFF
    negative = (bits > 0x7FFFFFFF) & (not magnitudes)
    rank = jnp.where(negative, INFINITY - size, INFINITY + size)
    return jnp.where(size > INFINITY, jnp.uint32(0), rank)


def _low_zero_bits(dtype) -> int:
    """How many low bits of `score_ranks` are zero for every score of this dtype."""
    floating = jnp.issubdtype(dtype, jnp.floating)
    return max(23 - (jnp.finfo(dtype).nmant if floating else jnp.iinfo(dtype).bits - 1), 0)


def largest(holds: Callable[[list[jax.Array]], jax.Array], start, digits) -> jax.Array:
    """The largest integer for which a monotone condition holds, digit by digit.

    Args:
      holds: takes 3 scalars and gives 3 booleans; true up to the answer, and at 0.
      start: zero in the answer's dtype, and the place of its highest digit.
      digits: how many to fix; below them the answer's bits are known to be 0.
    """
    zero, first = start

    def fix_digit(i, found):
        place = (first - _DIGIT * i).astype(zero.dtype)
        candidates = [found + (zero.dtype.type(d) << place) for d in range(1, 2**_DIGIT)]
        digit = jnp.sum(holds(candidates), dtype=zero.dtype)
        return found + (digit << place)

    return jax.lax.fori_loop(jnp.int32(0), digits, fix_digit, zero)


def _cut_rank(leaves: list[Ranked], k) -> jax.Array:
    """The k-th largest rank."""

    def reached_by_k(candidates):
        reached = []
        for leaf in leaves:
            ranks, candidates = leaf.read_again(candidates)
            reached.append([ranks >= c for c in candidates])
        return jnp.sum(wide.exact_sums(reached), axis=0) >= k

    known = min(leaf.low_zero_bits for leaf in leaves)
    digits = -(-(32 - known) // _DIGIT)
    return largest(reached_by_k, (jnp.uint32(0), 32 - _DIGIT), digits)


def _cut_positions(leaves: list[Ranked], cut, k) -> list[jax.Array]:
    """For each leaf the position before which ranks equal to the cut are kept."""

    def above_and_tied(leaf):
        ranks, limit = leaf.read_again(cut)
        return [ranks > limit, ranks == limit]

    counts = wide.exact_sums([above_and_tied(leaf) for leaf in leaves])
    wanted = k - jnp.sum(counts[:, 0])
    through = jnp.cumsum(counts[:, 1])  # ties of this leaf and of those before it
    whole = through <= wanted
    cut_leaf = jnp.sum(whole, dtype=jnp.int32)  # the one leaf that the order may cut
    before = jnp.max(through, where=whole, initial=0)
    inside = nth_tie(leaves, cut, cut_leaf, wanted - before)

    def limit(i, leaf):
        dtype = positions.exact_dtype(leaf.shape)
        everything = jnp.array(jnp.iinfo(dtype).max, dtype)
        here = jnp.where(cut_leaf == i, inside.astype(dtype), dtype(0))
        return jnp.where(whole[i], everything, here)

    return [limit(i, leaf) for i, leaf in enumerate(leaves)]


def nth_tie(leaves: list[Ranked], cut, chosen, wanted) -> jax.Array:
    """The position in leaf `chosen` before which `wanted` of its ties lie; uint64.

    Other leaves aren't read. `chosen` = len(leaves) means that no leaf is cut: nothing is read.
    """

    def ties_before(leaf, candidates):
        ranks, candidates = leaf.read_again(candidates)
        position = positions.exact(leaf.shape)
        tied = ranks == cut
        kept = [tied & (position < saturated(c, position.dtype)) for c in candidates]
        return wide.exact_sums([kept])[0]

    def at_most_wanted(candidates):
        none = lambda candidates: jnp.zeros(len(candidates), jnp.uint64)
        found = [
            jax.lax.cond(chosen == i, functools.partial(ties_before, leaf), none, candidates)
            for i, leaf in enumerate(leaves)
        ]
        return functools.reduce(jnp.add, found) <= wanted

    digits = -(-max(math.prod(leaf.shape) for leaf in leaves).bit_length() // _DIGIT)
    needed = jnp.where(chosen < len(leaves), jnp.int32(digits), jnp.int32(0))
    return largest(at_most_wanted, (jnp.uint64(0), _DIGIT * (digits - 1)), needed)


def saturated(x: jax.Array, dtype) -> jax.Array:
    """A uint64 in a dtype that may be narrower; what is too large becomes its largest."""
    return jnp.minimum(x, jnp.uint64(jnp.iinfo(dtype).max)).astype(dtype)
