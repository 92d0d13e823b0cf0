r"""Approximate transposable N:M masks: the rivals of the exact solver, with its interface.

Both end alike. Entries are taken in the order of some priority while their row and their column
have room. Rows and columns that are then short of entries are completed by swaps: for a short row
i and a short column j the swap that costs least takes in (i, j') and (i', j) and leaves out
(i', j'). There always is one: where a short row lacks an entry of a column, that column is full,
and the other way round.

Tiles are arrays (m, m, ...) as in `solver`.
"""

import functools

import jax
import jax.numpy as jnp

from jaxprune.patterns import solver

_SHARPNESS = 100.0  # the largest score over the entropy's weight
_ROUNDS = 300
_NEVER = jnp.iinfo(jnp.int32).min


@jax.jit
def greedy(scores: jax.Array, n) -> jax.Array:
    """Takes the largest scores first: at least half of the best sum (Hubara et al. 2021).

    Args:
      scores: (m, m, ...) of any floating-point dtype; infinities and NaN as for
        `solver.solve`.
      n: entries in every row and column.

    Returns:
      boolean array like `scores`.
    """
    grid, _ = solver.to_grid(scores)
    return _take(grid, grid, n)


@jax.jit
def entropic(scores: jax.Array, n) -> jax.Array:
    """Takes first what has most mass in the entropic transport plan with entries of at most 1.

    The plan comes from alternating projections after Dykstra, here on logarithms.

    Args:
      scores: as for `greedy`.
      n: entries in every row and column.

    Returns:
      boolean array like `scores`.

    Source: Meng, Makni and Mazumder, "TSENOR: highly-efficient algorithm for finding transposable
    N:M sparse masks" (NeurIPS 2025).
    """
    grid, _ = solver.to_grid(scores)
    largest = jnp.maximum(jnp.max(jnp.abs(grid), axis=(0, 1), keepdims=True), 1)
    log_sum = jnp.log(jnp.asarray(n, jnp.float32))

    def spread(plan, axis):
        return plan - jax.nn.logsumexp(plan, axis=axis, keepdims=True) + log_sum

    def project(_, state):
        plan, cap = state
        uncapped = spread(spread(plan, 1), 0) + cap
        plan = jnp.minimum(uncapped, 0.0)
        return plan, uncapped - plan

    plan = _SHARPNESS * (grid / largest)
    plan, _ = jax.lax.fori_loop(0, _ROUNDS, project, (plan, jnp.zeros_like(plan)))
    return _take(plan, grid, n)


def _take(priority: jax.Array, grid: jax.Array, n) -> jax.Array:
    """Takes what finds room, in order of priority, and completes it to n everywhere."""
    m, batch = grid.shape[0], grid.shape[2:]
    priority = priority.reshape(m * m, *batch)
    index = _index(grid)

    def take_next(room, position):
        rows, columns = room
        in_row, in_column = index == position[None] // m, index == position[None] % m
        fits = jnp.any(in_row & (rows > 0), 0) & jnp.any(in_column & (columns > 0), 0)
        taken = lambda inside: (inside & fits[None]).astype(jnp.int32)
        return (rows - taken(in_row), columns - taken(in_column)), fits

    order = jnp.argsort(priority, axis=0, descending=True, stable=True)
    room = jnp.full((m, *batch), n, jnp.int32)
    _, fits = jax.lax.scan(take_next, (room, room), order)
    # Back in their places: a sort stays on each device, where scattering would not.
    _, mask = jax.lax.sort((order, fits), dimension=0, num_keys=1)
    return _complete(mask.reshape(grid.shape), grid, n)


def _index(grid: jax.Array) -> jax.Array:
    """Of rows or columns, (m, 1, ...)."""
    return jnp.arange(grid.shape[0]).reshape(-1, *[1] * (grid.ndim - 2))


def _complete(mask: jax.Array, grid: jax.Array, n) -> jax.Array:
    """Swaps until every row and column of every tile has n entries."""
    m, index = grid.shape[0], _index(grid)

    def short(mask, axis):
        return jnp.sum(mask, axis=axis, dtype=jnp.int32) < n

    def swap(mask):
        short_rows = short(mask, 1)
        i = index == jnp.argmax(short_rows, 0)[None]
        j = index == jnp.argmax(short(mask, 0), 0)[None]
        row = functools.partial(jnp.max, axis=0, where=i[:, None], initial=_NEVER)
        column = functools.partial(jnp.max, axis=1, where=j[None], initial=_NEVER)
        into_row = row(jnp.where(mask, _NEVER, grid))  # (j', tiles)
        into_column = column(jnp.where(mask, _NEVER, grid))  # (i', tiles)
        possible = mask & (into_row != _NEVER)[None] & (into_column != _NEVER)[:, None]
        gain = jnp.where(possible, into_row[None] + into_column[:, None] - grid, _NEVER)
        best = jnp.argmax(gain.reshape(m * m, *gain.shape[2:]), 0)[None]
        taken_row, taken_column = index == best // m, index == best % m
        toggled = (i | taken_row)[:, None] & (j | taken_column)[None]
        toggled &= ~(i[:, None] & j[None]) & jnp.any(short_rows, 0)[None, None]
        return mask ^ toggled

    return jax.lax.while_loop(lambda mask: jnp.any(short(mask, 1)), swap, mask)
