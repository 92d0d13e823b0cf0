r"""Uniform grids of 2**bits values, for weights that a mask keeps.

A grid has the values :math:`(k + \tfrac12) \Delta` with whole k from :math:`-2^{b-1}` to
:math:`2^{b-1} - 1`. Zero isn't among them: what is zero is said by the mask, and none of the codes
is spent on it, so that one bit is a sign. Bits and step are arrays, so a program of one shape tries
all widths and trains at those it chose.

A step is fitted by least squares over a leaf. The sums are added up as integers (weights in units
of a part of the largest), so that they are the same bits on any number of devices and lose nothing
in leaves of any size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxprune.trees import checks, masks, wide

MOST_BITS = 8
_REFITS = 4
_STARTS = 16  # levels on which the largest weight may lie
_PRECISION = 24  # bits of a weight in the sums, as many as a float32 has
_LEVELS = 8  # bits of a level in halves of a step


class Grid(NamedTuple):
    """The grid of one leaf: `bits`, an int32 scalar from 1 to 8, and `step`, a float32 scalar."""

    bits: jax.Array
    step: jax.Array


def quantize_to(
    params: chex.ArrayTree, mask: chex.ArrayTree, bits: int | chex.ArrayTree
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Rounds the kept weights of each leaf to the grid of least squared error.

    Args:
      params: tree of arrays.
      mask: tree like `params`: boolean arrays; `None` where a leaf stays as it is.
      bits: the width of a kept weight, 1 to 8: a number, or a tree like `params` of numbers or
        int32 scalars, `None` where the mask has none. Or a tree of `Grid`, to round to these.

    Returns:
      The parameters, zero where the mask prunes, and a tree like them of a `Grid` for each leaf of
      the mask, `None` for others. The step is found by alternating least squares from 16 starts.

    Raises:
      TypeError: for bits that aren't whole, or a mask that isn't boolean.
      ValueError: for bits out of range, or trees that don't fit; the message names the leaf.

    Source: Lloyd, "Least squares quantization in PCM" (1957; IEEE Transactions on Information
    Theory 1982), for the alternation.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"w": jnp.array([0.9, -1.1, 0.1, 3.0])}
    >>> quantized, grids = jp.quantize_to(params, {"w": jnp.array([True, True, False, True])}, 2)
    >>> quantized["w"].round(2).tolist(), int(grids["w"].bits)
    ([1.0, -1.0, 0.0, 3.0], 2)
    """
    mask = fit(params, mask)
    widths = _widths(params, mask, bits)

    def grid(leaf, keep, width):
        if keep is None:
            return None
        return width if isinstance(width, Grid) else fitted(leaf, keep, width)

    grids = jax.tree.map(grid, params, mask, widths)
    return on_grids(params, mask, grids), grids


def fit(params: chex.ArrayTree, mask: chex.ArrayTree) -> chex.ArrayTree:
    """The mask, checked against the parameters."""
    checks.tree("the parameters", params)
    masks.check_boolean(mask)
    return masks.fit_mask(params, mask)


def check(params: chex.ArrayTree, mask: chex.ArrayTree, grids: chex.ArrayTree) -> None:
    """Raises a ValueError that names the leaf unless each leaf of a mask that fits has a grid."""
    masks.leaves_like(params, grids, "`grids`", "`quantize_to` or `compress_to`")

    def of_leaf(path, _, keep, grid):
        if keep is not None and not isinstance(grid, Grid):
            raise ValueError(
                f"leaf '{masks.path_name(path)}' has a mask but no grid: make both by "
                "`quantize_to` or `compress_to`"
            )

    jax.tree_util.tree_map_with_path(of_leaf, params, mask, masks.visible(params, grids))


def _widths(params, mask, bits):
    """The bits of each leaf as int32 scalars, or its grid as it is."""
    if jax.tree_util.all_leaves([bits]):
        given = jax.tree.map(lambda _: bits, params)
    else:
        masks.leaves_like(params, bits, "`bits`", "`jax.tree.map(lambda keep: 4, mask)`")
        given = masks.visible(params, bits)
    width = lambda path, _, keep, own: None if keep is None else _width(masks.path_name(path), own)
    return jax.tree_util.tree_map_with_path(width, params, mask, given)


def _width(path: str, bits) -> jax.Array | Grid:
    if isinstance(bits, Grid):
        return bits
    if checks.known(bits):
        whole = checks.integer(f"the bits of leaf '{path}'", bits, least=1)
        if whole > MOST_BITS:
            raise ValueError(f"the bits of leaf '{path}' must be at most {MOST_BITS}, got {bits}")
    return jnp.asarray(bits, jnp.int32)


def on_grids(params: chex.ArrayTree, mask: chex.ArrayTree, grids: chex.ArrayTree) -> chex.ArrayTree:
    """The parameters rounded to grids, and zero where the mask prunes."""

    def of_leaf(leaf, keep, grid):
        return leaf if keep is None else jnp.where(keep, nearest(leaf, grid), 0).astype(leaf.dtype)

    return jax.tree.map(of_leaf, params, mask, grids)


def codes(x: jax.Array, grid: Grid) -> jax.Array:
    """Which k of the grid is nearest, as float32."""
    half = (1 << (grid.bits - 1)).astype(jnp.float32)
    return jnp.clip(jnp.floor(x.astype(jnp.float32) / grid.step), -half, half - 1)


def nearest(x: jax.Array, grid: Grid) -> jax.Array:
    """The nearest values of the grid, float32."""
    return (codes(x, grid) + 0.5) * grid.step


def gain(x: jax.Array, grid: Grid) -> jax.Array:
    """By how much keeping a weight, rounded, lowers the squared error: x^2 - (x - q)^2."""
    q = nearest(x, grid)
    return q * (2 * x.astype(jnp.float32) - q)


def least_magnitude(grid: Grid, least_gain: jax.Array) -> jax.Array:
    """The least magnitude that is worth this much when it is kept and rounded, as a float32's bits.

    The gain never falls from one magnitude to the next, so the answer is found bit by bit. Grids
    and gains may be arrays, of shapes that broadcast.
    """

    def fix_bit(i, below):
        candidate = below | (jnp.uint32(1) << (30 - i).astype(jnp.uint32))
        worth = gain(jax.lax.bitcast_convert_type(candidate, jnp.float32), grid)
        return jnp.where(worth >= least_gain, below, candidate)

    nothing = jnp.zeros(jnp.shape(least_gain), jnp.uint32)
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(31), fix_bit, nothing) + 1


class Fit(NamedTuple):
    """How kept weights lie on a grid: sums over them, float32 scalars.

    `squares` of their levels, `products` of levels and weights, and their `count`.
    """

    squares: jax.Array
    products: jax.Array
    count: jax.Array

    def step(self, otherwise: jax.Array) -> jax.Array:
        """Of least squared error at these levels."""
        best = self.products / jnp.where(self.squares > 0, self.squares, 1)
        return jnp.where((best > 0) & jnp.isfinite(best), best, otherwise)

    def gained(self, step: jax.Array) -> jax.Array:
        """The sum of all `gain`s."""
        return step * (2 * self.products - step * self.squares)


def fit_of(x: jax.Array, kept: jax.Array, grid: Grid, largest: jax.Array) -> Fit:
    """How the kept weights lie, of which none is larger than `largest`."""
    scale, unit = _units(largest, min(_PRECISION, 64 - _LEVELS - x.size.bit_length()))
    level = lambda grid: _integers(jnp.abs(2 * codes(x, grid) + 1))
    squares = _sum(kept, jnp.square(level(grid)))
    # By what XLA takes for other numbers: else it would keep levels and magnitudes in memory.
    grid, scale, squares = jax.lax.optimization_barrier((grid, scale, squares))
    # By a power of two, and so exact: the same however XLA fuses it.
    whole = _integers(jnp.abs(x.astype(jnp.float32) * scale) + 0.5)
    products = _sum(kept, level(grid) * whole)
    return Fit(squares / 4, products * unit / 2, _sum(kept, jnp.uint32(1)))


def _units(largest: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """The power of two that takes magnitudes to integers of so many bits, and its inverse."""
    exponent = jax.lax.bitcast_convert_type(largest, jnp.uint32) >> 23
    exponent = jnp.clip(exponent, bits, 254)
    power = lambda field: jax.lax.bitcast_convert_type(field << 23, jnp.float32)
    return power(253 + bits - exponent), power(exponent + 1 - bits)


def _integers(x: jax.Array) -> jax.Array:
    return x.astype(jnp.int32).astype(jnp.uint32)  # in this way TPUs convert while they add


@wide.counts_in_64_bits
def _sum(kept, values) -> jax.Array:
    of_kept = jnp.where(kept, values, jnp.uint32(0))
    return wide.exact_sums([[of_kept]])[0, 0].astype(jnp.float32)


def refit(x: jax.Array, kept: jax.Array, grid: Grid, largest: jax.Array) -> Grid:
    """The grid with the step of least squared error for the codes that kept weights have now."""
    return grid._replace(step=fit_of(x, kept, grid, largest).step(grid.step))


def refined(
    x: jax.Array, kept: Callable[[Grid], jax.Array], grid: Grid, largest: jax.Array
) -> Grid:
    """The grid after some refits, of what is kept with each."""
    again = lambda _, own: refit(x, kept(own), own, largest)
    return jax.lax.fori_loop(0, _REFITS, again, grid)


def reaching(largest: jax.Array, bits: jax.Array, level: jax.Array) -> Grid:
    """The grid on which the largest weight lies at this level, a half or more."""
    return Grid(bits, jnp.where(largest > 0, largest / level, 1))


def largest_magnitude(x: jax.Array) -> jax.Array:
    """Of a leaf, float32; NaN if one is."""
    return jnp.max(jnp.abs(x.astype(jnp.float32)), initial=0)


def highest_level(bits: jax.Array) -> jax.Array:
    """The largest value of a grid, in steps."""
    return (1 << (bits - 1)).astype(jnp.float32) - 0.5


@jax.jit
def fitted(x: jax.Array, kept: jax.Array, bits: jax.Array) -> Grid:
    """The grid of least squared error over the kept weights, of those that the starts lead to.

    They put the largest weight on one level or another, of the grid, so that what lies on a grid of
    up to 4 bits is found to lie there, or above it, so that large weights are clipped.
    """
    largest = largest_magnitude(jnp.where(kept, x, 0))
    highest = highest_level(bits)
    apart = jnp.maximum(2 * (highest + 0.5) / _STARTS, 0.5)

    def from_start(i):
        level = jnp.maximum(highest - apart * i, 0.5)
        grid = refined(x, lambda _: kept, reaching(largest, bits, level), largest)
        return fit_of(x, kept, grid, largest).gained(grid.step), grid.step

    gains, steps = jax.lax.map(from_start, jnp.arange(_STARTS, dtype=jnp.float32) - _STARTS // 2)
    return Grid(bits, steps[jnp.argmax(gains)])
