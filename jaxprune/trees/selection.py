"""Exact global selection: the k largest scores of a whole tree.

The cut between kept and pruned scores is found by counting, not by sorting. Scores are read as
integers in the same order; two bits of the cut are fixed at a time, by counting how many scores
reach each of 3 candidates in one pass over the tree. float32 takes 16 passes, bfloat16 takes 8.
Only the counts leave a device, so a sharded tree stays where it is; nothing is sorted, gathered,
concatenated or copied. Counts are integers, so the answer doesn't depend on the devices.

Scores equal to the cut are kept in order of position (leaf by leaf, row by row) until there are k;
where the order cuts a leaf, the same search finds the position.
"""

import operator
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.trees import masks, positions, wide

_INFINITY = 0x7F800000  # the bits of float32's infinity
_DIGIT = 2  # bits fixed in one pass: on CPUs 1 takes seven times as long, 4 half as long again
_ONE_BIT = (1,) * (2**_DIGIT - 1)


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
      ValueError: for k out of range, an empty tree, an unsupported dtype, or NaN (outside `jit`);
        the message names the leaf.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> jp.top_k_mask({"a": jnp.array([3.0, 1.0]), "b": jnp.array([2.0, 2.0])}, 2)
    {'a': Array([ True, False], dtype=bool), 'b': Array([ True, False], dtype=bool)}
    """
    check_scores(scores)
    size = sum(leaf.size for leaf in jax.tree.leaves(scores))
    return keep_largest(scores, _as_wide(k, size))


def check_scores(scores: chex.ArrayTree) -> None:
    """Raises a ValueError that names the leaf unless the tree can be ranked."""
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(scores)
    if not paths_and_leaves:
        raise ValueError("the tree of scores has no leaves")
    for path, leaf in paths_and_leaves:
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        floating = masks.is_floating(leaf) and leaf.dtype.itemsize <= 4
        integer = jnp.issubdtype(dtype, jnp.integer) if hasattr(leaf, "dtype") else False
        if not (floating or (integer and leaf.dtype.itemsize <= 2)):
            raise ValueError(
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


def _as_wide(k, size: int) -> wide.Wide:
    if isinstance(k, jax.Array) and jnp.issubdtype(k.dtype, jnp.integer):
        if isinstance(k, jax.core.Tracer):
            positive = jnp.maximum(k, 0).astype(jnp.uint32)
            k = wide.Wide(jnp.zeros_like(positive), positive)
            return wide.where(wide.less(k, wide.wide(size)), k, wide.wide(size))
        k = int(k)
    k = operator.index(k)
    if not 0 <= k <= size:
        raise ValueError(f"k must lie between 0 and the number of scores, {size}; got {k}")
    return wide.wide(k)


@jax.jit
def keep_largest(scores: chex.ArrayTree, k: wide.Wide) -> chex.ArrayTree:
    """`top_k_mask` of checked scores, with k of any size that may be traced."""
    leaves, structure = jax.tree.flatten(scores)
    cut = _cut_value(leaves, k)

    def choose(leaves):
        limits = _cut_positions(leaves, cut, k)
        ranks = [_rank(leaf) for leaf in leaves]
        return [
            (rank > cut) | ((rank == cut) & _precedes(positions.row_and_column(rank.shape), limit))
            for rank, limit in zip(ranks, limits, strict=True)
        ]

    # Both sides of the cut must see the same bits of a score. XLA may calculate scores again where
    # they are used, fused and so rounded differently; a conditional reads its operands from memory.
    kept = jax.lax.cond(
        cut <= jnp.uint32(2 * _INFINITY),  # false for k = 0 alone
        choose,
        lambda leaves: [jnp.zeros_like(leaf, dtype=bool) for leaf in leaves],
        leaves,
    )
    return structure.unflatten(kept)


def _rank(leaf: jax.Array) -> jax.Array:
    """uint32 in the order of the scores: 0 for -inf and NaN, 2 * _INFINITY for inf."""
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
    magnitude = bits & 0x7FFFFFFF
    rank = jnp.where(bits > 0x7FFFFFFF, _INFINITY - magnitude, _INFINITY + magnitude)
    return jnp.where(magnitude > _INFINITY, jnp.uint32(0), rank)


def _low_zero_bits(dtype) -> int:
    """How many low bits of `_rank` are zero for every score of this dtype."""
    floating = jnp.issubdtype(dtype, jnp.floating)
    return 23 - (jnp.finfo(dtype).nmant if floating else jnp.iinfo(dtype).bits - 1)


def _largest(holds: Callable[[list[jax.Array]], jax.Array], first: int, last: int) -> jax.Array:
    """The largest uint32 for which a monotone condition holds, digit by digit.

    Args:
      holds: takes 3 uint32 scalars and gives 3 booleans; true up to the answer, and at 0.
      first: place of the answer's highest digit.
      last: below this place the answer's bits are known to be 0.
    """

    def fix_digit(i, found):
        place = first - _DIGIT * i
        candidates = [found + (jnp.uint32(d) << place) for d in range(1, 2**_DIGIT)]
        digit = jnp.sum(holds(candidates), dtype=jnp.uint32)
        return found + (digit << place)

    return jax.lax.fori_loop(
        jnp.uint32(0), jnp.uint32(-(-(first - last) // _DIGIT) + 1), fix_digit, jnp.uint32(0)
    )


def _cut_value(leaves, k: wide.Wide) -> jax.Array:
    """The rank of the k-th largest score."""

    def reached_by_k(candidates):
        # The barrier keeps XLA from ranking the tree before the loop, which would copy it.
        here, candidates = jax.lax.optimization_barrier((leaves, candidates))
        reached = [[_rank(leaf) >= c for c in candidates] for leaf in here]
        return ~wide.less(wide.total(wide.exact_sums(reached, _ONE_BIT)), k)

    known = min(_low_zero_bits(leaf.dtype) for leaf in leaves)
    return _largest(reached_by_k, 32 - _DIGIT, known)


def _cut_positions(leaves, cut, k: wide.Wide):
    """For each leaf the position before which scores equal to the cut are kept."""
    counts = wide.exact_sums([[_rank(leaf) > cut, _rank(leaf) == cut] for leaf in leaves], (1, 1))
    above, ties = wide.at(wide.total(counts), 0), wide.at(counts, (slice(None), 1))
    through = wide.running_total(ties)
    wanted = wide.subtract(k, above)
    whole = ~wide.less(wanted, through)
    split = jnp.sum(whole, dtype=jnp.int32)  # the one leaf that the order may cut
    before = wide.subtract(through, ties)
    wanted_here = wide.subtract(wanted, wide.at(before, jnp.minimum(split, len(leaves) - 1)))
    row, column = _nth_tie(leaves, cut, split, wanted_here)
    everything = jnp.uint32(2**32 - 1)
    here = jnp.arange(len(leaves)) == split
    rows, columns = (
        jnp.where(whole, everything, jnp.where(here, word, jnp.uint32(0))) for word in (row, column)
    )
    return [(rows[i], columns[i]) for i in range(len(leaves))]


def _nth_tie(leaves, cut, chosen, wanted: wide.Wide):
    """The position in leaf `chosen` before which `wanted` of its scores equal the cut.

    One search is compiled for each kind of leaf, not for each leaf; it sees the leaf's ties alone.
    `chosen` = len(leaves) means that no leaf is cut.
    """
    kinds: dict = {}
    for i, leaf in enumerate(leaves):
        kinds.setdefault(jax.typeof(leaf), []).append(i)
    kind_of, place_of = np.full(len(leaves) + 1, len(kinds)), np.zeros(len(leaves) + 1, int)
    for kind, members in enumerate(kinds.values()):
        for place, i in enumerate(members):
            kind_of[i], place_of[i] = kind, place

    def search(members):
        ties = [lambda i=i: _rank(leaves[i]) == cut for i in members]
        place = jnp.asarray(place_of, jnp.int32)[chosen]
        return lambda: _nth_true(jax.lax.switch(place, ties), wanted)

    return jax.lax.switch(
        jnp.asarray(kind_of, jnp.int32)[chosen],
        [search(members) for members in kinds.values()] + [lambda: (jnp.uint32(0), jnp.uint32(0))],
    )


def _nth_true(tied: jax.Array, wanted: wide.Wide):
    """The position (row, column) before which `wanted` entries are true."""
    outer, inner = positions.row_and_column(tied.shape)
    rows, columns = positions.rows_and_columns(tied.shape)

    def at_most_wanted(before):
        return lambda candidates: (
            ~wide.less(
                wanted,
                wide.at(wide.exact_sums([[tied & before(c) for c in candidates]], _ONE_BIT), 0),
            )
        )

    row = jnp.uint32(0)
    if rows > 1:
        row = _largest(at_most_wanted(lambda c: outer < c), _first_place(rows), 0)
    column = _largest(
        at_most_wanted(lambda c: _precedes((outer, inner), (row, c))), _first_place(columns), 0
    )
    return row, column


def _first_place(size: int) -> int:
    return _DIGIT * ((max(size, 1).bit_length() - 1) // _DIGIT)


def _precedes(position, limit):
    outer, inner = position
    row, column = limit
    return (outer < row) | ((outer == row) & (inner < column))
