r"""Optimal transposable N:M masks: of each m-by-m tile, n entries of every row and every column.

The largest sum of scores under such a mask is a transport problem, whose dual has a potential for
each row and column:

.. math::
  \max_S \sum_{ij} S_{ij} A_{ij} = \min_{u, v} n \sum_i u_i + n \sum_j v_j
  + \sum_{ij} (A_{ij} - u_i - v_j)_+

and S is optimal if potentials separate it: what is kept reaches u_i + v_j, what isn't stays at or
below. Two steps find it, for all tiles at once and in integers, so exactly:

1. Every row moves its potential to the middle between its n-th and (n+1)-th largest A - v, then
   every column does, and so on. Nearly always the potentials soon separate n entries of every row
   and column: the mask is optimal, and they prove it. A round costs a sorting network, about a
   dozen operations a score.
2. Tiles where that fails (ties) are set aside and start from the mask of slightly changed scores;
   then cycles of exchanges that raise the sum are applied, all that a shortest-path search finds in
   a tile, until no tile has one: a mask without such cycles is optimal (Klein 1967).

Tiles are arrays (m, m, ...): the batch, one dimension or more, comes last, where vector units want
it.
"""

import functools
import itertools
import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.trees import masks

_ENUMERATED = 4  # up to this m all masks of a tile are tried
_CHUNK = 2**14  # scores of tiles that are set aside, worked on together
_CHANGES = (1024, 32, 1)  # the largest score over the largest change that parts ties
_BETWEEN_CHECKS = 4  # rounds of the first step
_FAR = 2**30 - 1  # longer than any path


def solve(scores: jax.Array, n: int | jax.Array) -> jax.Array:
    """The mask of largest sum with n entries in every row and column of every tile.

    Args:
      scores: (m, m, ...) of any floating-point dtype. Infinities are kept or pruned wherever the
        pattern allows it; NaN counts as -inf.
      n: 0 <= n <= m; an int32 scalar costs a little more than a Python integer.

    Returns:
      boolean array like `scores`.
    """
    if isinstance(n, numbers.Integral):
        return _solve_fixed(scores, int(n))
    return _solve_any(scores, n)


@functools.partial(jax.jit, static_argnames=("n",))
def _solve_fixed(scores, n: int):
    m = scores.shape[0]
    if n in (0, m):
        return jnp.full(scores.shape, n == m)
    return _solve_between(scores, n)


@jax.jit
def _solve_any(scores, n: jax.Array):
    m = scores.shape[0]
    if m == 1:
        return jnp.broadcast_to(n >= 1, scores.shape)
    between = lambda: _solve_between(scores, jnp.clip(n, 1, m - 1))
    all_or_none = lambda: jnp.broadcast_to(n >= m, scores.shape)
    return jax.lax.cond((n > 0) & (n < m), between, all_or_none)


def _solve_between(scores, n):
    """For 0 < n < m."""
    m = scores.shape[0]
    grid, _ = to_grid(scores)
    if m <= _ENUMERATED:
        if isinstance(n, int):
            return _best_of_all(grid, n)
        tries = [functools.partial(_best_of_all, n=k) for k in range(1, m)]
        return jax.lax.switch(n - 1, tries, grid)
    mask, done = _separate(grid, n, m, jnp.zeros(grid.shape[2:], bool))
    return _finish(grid, n, mask, done)


@jax.jit
def potentials(scores: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Potentials (m, ...) of rows and columns that prove an optimal mask to be so."""
    grid, shift = to_grid(scores)
    rows, _, _ = _shortest_paths(grid, mask)
    reduced = grid - rows[:, None]
    kept = jnp.min(reduced, 0, where=mask, initial=_FAR)
    columns = jnp.where(jnp.any(mask, 0), kept, jnp.max(reduced, 0))
    dtype = masks.at_least_float32(scores)
    back = lambda x: jnp.ldexp(x.astype(dtype), -shift[None])
    return back(rows), back(columns)


def to_grid(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The scores of each tile as int32, and the exponent of the power of two that made them so.

    The largest takes as many of 30 bits as leave room for sums of 2 m such numbers: 26 for m = 8,
    24, as many as float32 has, for m = 32. An infinity outweighs any exchange of finite scores.
    """
    m = scores.shape[0]
    if scores.dtype.itemsize < 4:
        scores = scores.astype(jnp.float32)
    room = (m - 1).bit_length()
    finite = jnp.isfinite(scores)
    all_finite = jnp.all(finite, axis=(0, 1), keepdims=True)
    _, exponent = jnp.frexp(
        jnp.max(jnp.abs(scores), axis=(0, 1), keepdims=True, where=finite, initial=0)
    )
    shift = jnp.where(all_finite, 29 - room, 28 - 2 * room) - exponent
    scaled = jnp.round(jnp.ldexp(jnp.where(finite, scores, 0), shift)).astype(jnp.int32)
    beyond = jnp.where(scores == jnp.inf, 2 ** (29 - room), -(2 ** (29 - room)))
    return jnp.where(finite, scaled, beyond), shift[0, 0]


# Small tiles: every mask.


def _best_of_all(grid: jax.Array, n: int) -> jax.Array:
    """Tries all masks; of equal sums the first counts. Sums of the same first rows are shared."""
    m = grid.shape[0]
    row_sums = [
        {
            row: functools.reduce(jnp.add, [grid[i, j] for j in range(m) if row >> j & 1])
            for row in rows_with(n, m)
        }
        for i in range(m)
    ]
    sums: dict[tuple[int, ...], jax.Array] = {(): jnp.int32(0)}
    best = jnp.full(grid.shape[2:], jnp.iinfo(jnp.int32).min)
    code = jnp.zeros(grid.shape[2:], jnp.int32)
    for rows in all_masks(n, m):
        for end in range(1, m + 1):
            if rows[:end] not in sums:
                sums[rows[:end]] = sums[rows[: end - 1]] + row_sums[end - 1][rows[end - 1]]
        better = sums[rows] > best
        best = jnp.where(better, sums[rows], best)
        bits = sum(row << (m * i) for i, row in enumerate(rows))
        code = jnp.where(better, bits, code)
    places = jnp.arange(m * m, dtype=jnp.int32).reshape(m, m, *[1] * code.ndim)
    return (code[None, None] >> places) & 1 == 1


def rows_with(n: int, m: int) -> list[int]:
    """All rows with n entries as bits."""
    return [sum(1 << j for j in kept) for kept in itertools.combinations(range(m), n)]


def all_masks(n: int, m: int) -> list[tuple[int, ...]]:
    """All masks of a tile, each a tuple of its rows."""
    columns = [sum(1 << (i * m + j) for i in range(m)) for j in range(m)]
    found = []
    for rows in itertools.product(rows_with(n, m), repeat=m):
        bits = sum(row << (m * i) for i, row in enumerate(rows))
        if all((bits & column).bit_count() == n for column in columns):
            found.append(rows)
    return found


# Step 1: potentials that separate.


def _separate(grid, n, rounds: int, done: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What potentials separate after at most so many rounds, and whether that is a mask.

    Tiles that are done from the start are not waited for.
    """
    m = grid.shape[0]

    def row_potentials(columns):
        return _middle([grid[:, j] - columns[None, j] for j in range(m)], n)

    def move(columns):
        rows = row_potentials(columns)
        columns = _middle([grid[i] - rows[None, i] for i in range(m)], n)
        # What is added to all columns, all rows lose: it changes nothing, so nothing drifts.
        return columns - columns[:1]

    def is_mask(columns):
        """Whether each column has n entries above the potentials; no row has more."""
        rows = row_potentials(columns)
        above = [(grid[i] - rows[None, i] > columns).astype(jnp.int32) for i in range(m)]
        return jnp.all(_sum(above) == n, axis=0)

    def going(state):
        count, _, ended = state
        return (count < rounds) & ~jnp.all(ended)

    def several_moves(state):
        count, columns, _ = state
        columns = jax.lax.fori_loop(0, _BETWEEN_CHECKS, lambda _, v: move(v), columns)
        return count + _BETWEEN_CHECKS, columns, done | is_mask(columns)

    zeros = jnp.zeros(grid.shape[1:], jnp.int32)
    _, columns, _ = jax.lax.while_loop(going, several_moves, (0, zeros, done))
    return grid - row_potentials(columns)[:, None] > columns[None], is_mask(columns)


def _middle(entries: list[jax.Array], n) -> jax.Array:
    """Halfway between the n-th and the (n+1)-th largest of m arrays, in each place."""
    entries = list(entries)
    for low, high in _sorting_network(len(entries)):
        a, b = entries[low], entries[high]
        entries[low], entries[high] = jnp.minimum(a, b), jnp.maximum(a, b)
    entries.reverse()
    if isinstance(n, int):
        return (entries[n - 1] + entries[n]) >> 1
    pairs = [a + b for a, b in itertools.pairwise(entries)]
    return _sum([jnp.where(n == k, pair, 0) for k, pair in enumerate(pairs, 1)]) >> 1


def _sorting_network(size: int) -> list[tuple[int, int]]:
    """Pairs to compare and exchange, in order: Batcher's merge exchange (Knuth 5.2.2, M)."""
    pairs = []
    top = 1 << max((size - 1).bit_length() - 1, 0)
    p = top
    while p:
        q, r, distance = top, 0, p
        while True:
            pairs += [(i, i + distance) for i in range(size - distance) if i & p == r]
            if q == p:
                break
            distance, q, r = q - p, q // 2, p
        p //= 2
    return pairs


def _sum(terms: list[jax.Array]) -> jax.Array:
    """Like the other sums over rows or columns, written out: so it is one vectorized kernel."""
    return functools.reduce(jnp.add, terms)


def _unravel(positions: jax.Array, shape: tuple[int, ...]) -> list[jax.Array]:
    """Positions in row-major order as indices; what lies beyond the end stays beyond it."""
    indices = []
    for size in reversed(shape[1:]):
        positions, index = positions // size, positions % size
        indices.append(index)
    return [positions, *reversed(indices)]


# Step 2: exchanges along cycles.


def _finish(grid: jax.Array, n, mask: jax.Array, done: jax.Array) -> jax.Array:
    """Solves the tiles that aren't done, a chunk of them at a time.

    On a mesh they aren't collected, which would move them, but solved among the others.
    """
    if jax.typeof(grid).sharding.mesh.size > 1:
        cancel = lambda: _cancel(grid, _near(grid, n, mask, done))
        return jax.lax.cond(jnp.all(done), lambda: mask, cancel)
    tiles = math.prod(done.shape)
    chunk = min(max(_CHUNK // grid.shape[0] ** 2, 1), tiles)
    order = jnp.nonzero(~done.reshape(-1), size=-(-tiles // chunk) * chunk, fill_value=tiles)[0]
    pending = jnp.sum(~done)

    def solve_chunk(state):
        start, mask = state
        places = _unravel(jax.lax.dynamic_slice(order, [start], [chunk]), done.shape)
        few = grid.at[:, :, *places].get(mode="fill", fill_value=0)
        absent = done.at[*places].get(mode="fill", fill_value=True)
        solved = _cancel(few, _near(few, n, jnp.zeros(few.shape, bool), absent))
        return start + chunk, mask.at[:, :, *places].set(solved, mode="drop")

    return jax.lax.while_loop(lambda state: state[0] < pending, solve_chunk, (0, mask))[1]


def _near(grid: jax.Array, n, mask: jax.Array, done: jax.Array) -> jax.Array:
    """Masks near the best: the best of slightly changed scores; where that fails, of others.

    Tiles that are done from the start keep their mask.
    """
    m = grid.shape[0]
    largest = jnp.max(jnp.abs(grid), axis=(0, 1))
    # Distinct for each place, and no sum of one number a row and one a column, which would part no
    # ties; frozen by NumPy for this generator.
    distinct = np.random.RandomState(0).permutation(m * m).reshape(m, m)
    of_tiles = lambda x: x.reshape(m, m, *[1] * done.ndim)
    distinct = of_tiles(jnp.asarray(distinct, jnp.int32))
    circulant = of_tiles((np.arange(m)[:, None] + np.arange(m)) % m < n)

    def change_more(state, part):
        mask, done = state
        step = jnp.maximum(largest // (m * m * part), 1)
        separated, found = _separate(grid + distinct * step[None, None], n, 2 * m, done)
        return (jnp.where((found & ~done)[None, None], separated, mask), done | found), None

    start = jnp.where(done[None, None], mask, circulant)
    (mask, _), _ = jax.lax.scan(change_more, (start, done), jnp.asarray(_CHANGES, jnp.int32))
    return mask


def _cancel(grid: jax.Array, mask: jax.Array) -> jax.Array:
    """Exchanges entries along cycles that raise the sum, until no tile has one.

    An exchange from row i to row k takes an entry of row i into the mask and one of row k, in the
    same column, out of it; around a cycle of rows, all row and column sums stay.
    """
    m = grid.shape[0]

    def exchange(state):
        mask, _ = state
        _, before, on_cycle = _shortest_paths(grid, mask)
        taken, left = _exchange_costs(grid, mask)
        from_row = [before == i for i in range(m)]  # m of (k, tiles)
        cost = left + _sum([jnp.where(from_row[i][:, None], taken[i][None], 0) for i in range(m)])
        _, column = _least([cost[:, j] for j in range(m)])
        moved = jnp.stack([on_cycle & (column == j) for j in range(m)], 1)  # (k, j, tiles)
        into = jnp.stack(
            [_any([from_row[i][k, None] & moved[k] for k in range(m)]) for i in range(m)]
        )
        return (mask & ~moved) | into, jnp.any(on_cycle)

    return jax.lax.while_loop(lambda state: state[1], exchange, (mask, jnp.bool_(True)))[0]


def _exchange_costs(grid: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What it costs to take an entry into the mask, and to leave one out."""
    return jnp.where(mask, _FAR, -grid), jnp.where(mask, grid, _FAR)


def _shortest_paths(grid: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Distances between rows by exchanges, after Bellman and Ford.

    Returns, each (m, tiles): the distance of each row from the nearest one, the row before it on
    that path (itself for a start), and whether it lies on a cycle of negative length. In a tile
    that has such a cycle, one is found; in the others the distances are final.
    """
    m = grid.shape[0]
    taken, left = _exchange_costs(grid, mask)
    length = functools.reduce(
        jnp.minimum, [taken[:, None, j] + left[None, :, j] for j in range(m)]
    )  # (i, k, tiles)
    length = jnp.where(length > _FAR // 2, _FAR, length)
    index = jax.lax.broadcasted_iota(jnp.int32, mask.shape[1:], 0)

    def relax(state):
        distance, before, on_cycle, going = state
        nearest, through = _least([distance[i, None] + length[i] for i in range(m)])
        # A tile stops by itself, so that the others don't change what it finds.
        nearer = (nearest < distance) & going[None]
        before = jnp.where(nearer, through, before)
        reached = before
        for _ in range((m - 1).bit_length()):
            reached = _sum([jnp.where(reached == i, reached[i, None], 0) for i in range(m)])
        on_cycle = _any([reached[i, None] == index for i in range(m)]) & (before != index)
        going = jnp.any(nearer, 0) & ~jnp.any(on_cycle, 0)
        return jnp.where(nearer, nearest, distance), before, on_cycle, going

    start = (jnp.zeros_like(index), index, index < 0, jnp.any(index >= 0, 0))
    return jax.lax.while_loop(lambda state: jnp.any(state[3]), relax, start)[:3]


def _any(terms: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.logical_or, terms)


def _least(terms: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The least of the arrays, in each place, and the index of the first that is."""
    least, first = terms[0], jnp.zeros(terms[0].shape, jnp.int32)
    for i, term in enumerate(terms[1:], 1):
        first = jnp.where(term < least, i, first)
        least = jnp.minimum(term, least)
    return least, first
