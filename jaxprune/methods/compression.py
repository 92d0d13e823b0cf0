r"""Pruning and quantization under one budget in bits: a projection, and ADMM towards it.

The size of a compressed network is :math:`\sum_l b_l \|W_l\|_0`, with the bits of each layer and
the number of weights that it keeps. `compress_to` looks for the nearest tree of a given size.
Widths come first: for each layer all widths at several prices of a bit, where a weight stays if it
is worth more than its bits cost, are the choices of a multiple-choice knapsack. At these widths the
mask is one knapsack over all weights, `knapsack_mask`, which fills the budget.

`add_admm` draws training towards any projection:

.. math::
  V &= P(W + Y / \rho), \qquad Y \leftarrow Y + \rho (W - V) \\
  g &= \nabla L(W) + Y + \rho (W - V)

Yang, Gui, Zhu, Liu, "Automatic neural network compression by sparsity-quantization joint learning"
(CVPR 2020), keep the sparsity in W and the quantization in V, and so project to widths for a given
number of kept weights and to weights for given widths. Neither step can trade bits for weights, as
the choice over both can; here V has both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxprune.methods import keeping
from jaxprune.methods.keeping import needed
from jaxprune.trees import checks, knapsack, masks, multiple_choice, quantizing, selection, wide
from jaxprune.trees.quantizing import Grid
from jaxprune.trees.report import Problem, noted

_PRICES = 16  # of a bit that are tried
_COARSELY, _FINELY = 2.0**-1.25, 2.0**-0.25  # each price as part of the one before


def compress_to(
    params: chex.ArrayTree,
    budget: int,
    *,
    most_bits: int = 8,
    place_bits: int = 0,
    where: masks.Where | None = None,
) -> tuple[chex.ArrayTree, chex.ArrayTree, chex.ArrayTree]:
    r"""Prunes and quantizes at once: which weights stay, and how many bits those of a leaf get.

    Looks for the tree of least squared distance with
    :math:`\sum_l (b_l + \text{place}) \|W_l\|_0 \le 8 \, \text{budget}`. The widths come from an
    exact choice over a table of widths and thresholds; at these widths the mask is
    `knapsack_mask`'s, of what keeping a rounded weight lowers the error by.

    Args:
      params: tree of arrays.
      budget: bytes, a Python integer, of the kept weights of the leaves that can be pruned.
      most_bits: the largest width, 1 to 8.
      place_bits: what it takes to say where a kept weight is, counted with its bits: 0 as in the
        paper; some 8 at a density of 1%, if a file's size is what counts.
      where: which leaves can be pruned, as for `prunable`.

    Returns:
      The compressed parameters, the mask, and a tree like them of a `Grid` for each leaf that can
      be pruned, `None` for others. Works inside `jax.jit`; the same bits on any mesh. Mask and
      grids have no gradient, and rounding has none.

    Raises:
      TypeError: for numbers that aren't whole.
      ValueError: for numbers out of range, NaN (outside `jit`), or if nothing is prunable; the
        message names the leaf.

    Source: Yang et al. (CVPR 2020), sections 3.2 and 3.3, for the budget and the two knapsacks.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.array([[2.0, -2.0], [0.1, 2.0]]), "bias": jnp.ones(2)}
    >>> compressed, mask, grids = jp.compress_to(params, 1)
    >>> compressed["kernel"].tolist(), int(grids["kernel"].bits)
    ([[2.0, -2.0], [0.0, 2.0]], 1)
    """
    if checks.integer("the budget", budget, least=0) >= 2**61:
        raise ValueError(f"the budget must be below 2**61 bytes, got {budget}")
    place_bits = checks.integer("`place_bits`", place_bits, least=0)
    if checks.integer("`most_bits`", most_bits, least=1) > quantizing.MOST_BITS:
        raise ValueError(f"`most_bits` must be at most {quantizing.MOST_BITS}, got {most_bits}")
    chosen = jax.tree.map(
        lambda leaf, keep: None if keep is None else jax.lax.stop_gradient(leaf),
        params,
        masks.prunable(params, where),
    )
    selection.check_no_nan(chosen)
    mask, found = _projected(chosen, most_bits, place_bits, _bits(budget))
    return quantizing.on_grids(params, mask, found), mask, found


@wide.counts_in_64_bits
def _bits(size: int) -> jax.Array:
    return jnp.uint64(8 * size)


def _projected(chosen, most_bits: int, place_bits: int, budget: jax.Array):
    """The mask and the grids of the leaves that can be pruned."""
    like = lambda leaf: jax.typeof(leaf).sharding
    whole = lambda leaf: like(leaf).update(spec=jax.P())
    of_grids = jax.tree.map(lambda leaf: Grid(whole(leaf), whole(leaf)), chosen)
    project = functools.partial(_project, most_bits=most_bits, place_bits=place_bits)
    return masks.sharded_as(project, (jax.tree.map(like, chosen), of_grids))(chosen, budget)


@functools.partial(jax.jit, static_argnames=("most_bits", "place_bits"))
def _project(chosen, budget: jax.Array, *, most_bits: int, place_bits: int):
    leaves, structure = jax.tree.flatten(chosen)
    bits, steps = _widths_within(leaves, most_bits, place_bits, budget)
    kept = _kept(leaves, Grid(bits, steps), place_bits, budget)
    found = [quantizing.fitted(*each) for each in zip(leaves, kept, bits, strict=True)]
    return structure.unflatten(kept), structure.unflatten(found)


@wide.counts_in_64_bits
def _kept(leaves, grids: Grid, place_bits: int, budget: jax.Array) -> list[jax.Array]:
    """The masks of the weights that are worth most for their bits; of grids in arrays (leaves,)."""
    costs = (grids.bits + place_bits).astype(jnp.uint64)
    each = Grid(grids.bits[:, None], grids.step[:, None])

    def least_ranks(ratios):
        values = knapsack.least_values(costs, ratios)
        gains = jax.lax.bitcast_convert_type(values, jnp.float32)
        return selection.INFINITY + quantizing.least_magnitude(each, gains)

    ranked = [selection.of_scores(leaf, magnitudes=True) for leaf in leaves]
    return knapsack.best(ranked, least_ranks, costs, budget)


def _widths_within(leaves, most_bits: int, place_bits: int, budget: jax.Array):
    """The bits and the step of each leaf in the best choice of widths and thresholds.

    The choice is made twice: between the largest square and a millionth of it, which gives the
    price of a bit, then around that price.
    """
    bits = jnp.arange(1, most_bits + 1, dtype=jnp.int32)
    powers = jnp.arange(_PRICES, dtype=jnp.float32)
    largest = [quantizing.largest_magnitude(leaf) for leaf in leaves]

    def choose(price, factors):
        tables = [
            _table(leaf, most, bits, price * factors, place_bits)
            for leaf, most in zip(leaves, largest, strict=True)
        ]
        gained, sizes, steps = (jnp.stack(each) for each in zip(*tables, strict=True))
        found = multiple_choice.multiple_choice(-gained, sizes, budget)
        steps = jnp.take_along_axis(steps, found.index[:, None], axis=1)[:, 0]
        return found.price, (bits[found.index // _PRICES], steps)

    factors = jnp.stack([_COARSELY**powers, _FINELY ** (powers - _PRICES // 2)])
    highest = jnp.square(functools.reduce(jnp.maximum, largest))
    return jax.tree.map(lambda each: each[-1], jax.lax.scan(choose, highest, factors)[1])


def _table(leaf, largest, bits, prices, place_bits: int):
    """What a leaf gains, its size and its step, for all widths at all prices of a bit."""
    ranked = selection.of_scores(leaf, magnitudes=True)

    def entry(both):
        width, price = both
        cost = (width + place_bits).astype(jnp.float32)

        def worth(grid):
            least = selection.INFINITY + quantizing.least_magnitude(grid, price * cost)
            ranks, least = ranked.read_again(least)
            return ranks >= least

        first = quantizing.reaching(largest, width, quantizing.highest_level(width))
        grid = quantizing.refined(leaf, worth, first, largest)
        fit = quantizing.fit_of(leaf, worth(grid), grid, largest)
        return fit.gained(grid.step), cost * fit.count, grid.step

    pairs = jnp.repeat(bits, prices.size), jnp.tile(prices, bits.size)
    return jax.lax.map(entry, pairs)


class ADMMState(NamedTuple):
    """`count`: updates so far, int32. `target`: V, `dual`: Y, like the prunable parameters."""

    count: jax.typing.ArrayLike
    target: chex.ArrayTree
    dual: chex.ArrayTree


def add_admm(
    projection: Callable[[chex.ArrayTree], chex.ArrayTree],
    strength: optax.ScalarOrSchedule,
    *,
    every: int,
    where: masks.Where | None = None,
) -> optax.GradientTransformation:
    r"""Adds the pull of ADMM towards a set to the updates: a projection, softly.

    Parameters stay free. At updates 0, `every`, 2 `every`, ... they are projected, as they come in
    and with what the dual variables add; in between, and at these updates, each update gets

    .. math:: Y + \rho (W - V)

    Args:
      projection: from the parameters, `None` in the place of leaves that can't be pruned and
        float32 or wider in the others, to the nearest such tree in the set, as far as is known:
        `lambda w: compress_to(w, 5_000)[0]`, `lambda w: prune_to(w, 0.99)[0]`.
      strength: rho, a number, also a traced one, or a schedule of the link's own count; it may
        start at 0.
      every: updates between two projections. Some epoch's worth: the dual variables grow by what
        is left between W and V at each.
      where: which leaves can be pruned, as for `prunable`.

    Returns:
      A transformation that stands, like `optax.add_decayed_weights`, before the optimizer. Its
      state holds two copies of the prunable parameters. Project once more at the end of training,
      and fine-tune with `keep_mask` or `keep_quantized`. The updates keep their dtypes.

    Raises:
      TypeError: for a projection that is no function, or a strength that is neither a number nor a
        schedule, or an `every` that isn't whole.
      ValueError: for an `every` below 1, in `update` without parameters, or if none is prunable.

    Source: Yang et al. (CVPR 2020), algorithm 1; Zhang et al., "A systematic DNN weight pruning
    framework using ADMM" (ECCV 2018), section 3.

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"kernel": jnp.array([[3.0, -1.0]])}
    >>> pull = jp.add_admm(lambda weights: jp.prune_to(weights, 0.5)[0], 0.5, every=2)
    >>> tx = optax.chain(pull, optax.sgd(1.0))
    >>> tx.update(optax.tree.zeros_like(params), tx.init(params), params)[0]
    {'kernel': Array([[-0.,  1.]], dtype=float32)}
    """
    checks.function("`projection`", projection)
    checks.strength("the strength", strength)
    checks.integer("`every`", every, least=1)

    def init_fn(params):
        zeros = jax.tree.map(jnp.zeros_like, _wide(params, where))
        return ADMMState(jnp.int32(0), zeros, jax.tree.map(jnp.copy, zeros))

    def update_fn(updates, state, params=None):
        params = needed(params, updates)
        rho = strength(state.count) if callable(strength) else strength

        def free():
            weights = _wide(params, where)  # here, or else each step would write them to memory
            divisor = jnp.where(jnp.equal(rho, 0), jnp.inf, rho)  # without strength, without duals
            scaled = lambda y: y / divisor.astype(y.dtype)
            return jax.tree.map(lambda w, y: w + scaled(y), weights, state.dual)

        def renewed():
            projected = projection(start)
            scaled = lambda z, v: jnp.asarray(rho, z.dtype) * (z - v)
            return projected, jax.tree.map(scaled, start, projected)

        due = state.count % every == 0
        # Two branches: what is projected takes the place of the last target, and is no third copy.
        start = jax.lax.cond(due, free, lambda: state.target)
        target, dual = jax.lax.cond(due, renewed, lambda: (start, state.dual))

        def add(update, weight, v, y):
            if weight is None:
                return update
            pull = y + jnp.asarray(rho, weight.dtype) * (weight - v)
            return (update.astype(weight.dtype) + pull).astype(update.dtype)

        updates = jax.tree.map(add, updates, _wide(params, where), target, dual)
        return updates, ADMMState(optax.safe_increment(state.count), target, dual)

    return optax.GradientTransformation(init_fn, update_fn)


def _wide(params, where):
    """The prunable parameters in float32 or wider, None for others."""
    return jax.tree.map(
        lambda p, keep: None if keep is None else p.astype(masks.at_least_float32(p)),
        params,
        masks.prunable(params, where),
    )


class KeepQuantizedState(NamedTuple):
    """`mask`, and `grids`: of each of its leaves. `problems`: see `problems`."""

    mask: chex.ArrayTree
    grids: chex.ArrayTree
    problems: jax.typing.ArrayLike


def keep_quantized(mask: chex.ArrayTree, grids: chex.ArrayTree) -> optax.GradientTransformation:
    """Keeps weights on their grids, and pruned ones at zero.

    Made for `straight_through`, behind which weights move less than a step of the grid at a time:
    at the end of a plain chain they would stay where they are. At each update a grid's step is
    fitted anew, by least squares for the codes that the weights had; its bits stay.

    Args:
      mask: tree like the parameters: boolean arrays, `None` where a leaf stays as it is.
      grids: as of `quantize_to` or `compress_to`, with the same leaves as the mask.

    Returns:
      A transformation whose parameters lie on the grids, up to the rounding of `params + updates`.
      The mask is `current_mask(params, opt_state)`, the grids are
      `optax.tree.get(opt_state, "grids")`.

    Raises:
      TypeError: in `init`, for a mask that isn't boolean; the message names the leaf.
      ValueError: in `init`, if mask or grids don't fit; the message names the leaf.

    >>> import jax.numpy as jnp, optax
    >>> import jaxprune as jp
    >>> params = {"w": jnp.array([0.9, -1.1, 0.1])}
    >>> quantized, grids = jp.quantize_to(params, {"w": jnp.array([True, True, False])}, 1)
    >>> keep = jp.keep_quantized({"w": jnp.array([True, True, False])}, grids)
    >>> tx = jp.straight_through(optax.sgd(1.0), keep)
    >>> updates, state = tx.update({"w": jnp.array([1.0, 0.0, 0.0])}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)["w"].round(4)
    Array([-0.6, -0.6,  0. ], dtype=float32)
    """

    def init_fn(params):
        own = jax.tree.map(jnp.copy, quantizing.fit(params, mask))
        quantizing.check(params, own, grids)
        copies = jax.tree.map(jnp.copy, masks.visible(params, grids))
        return KeepQuantizedState(own, copies, jnp.int32(0))

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        params = needed(params, updates, state.mask)

        moved = jax.tree.map(_moved, params, updates)
        largest = jax.tree.map(
            lambda x, keep: None if keep is None else quantizing.largest_magnitude(x),
            moved, state.mask,
        )  # fmt: skip
        grids = jax.tree.map(
            lambda x, keep, *of_leaf: None if keep is None else quantizing.refit(x, keep, *of_leaf),
            moved, state.mask, state.grids, largest,
        )  # fmt: skip
        rounded = quantizing.on_grids(moved, state.mask, grids)
        updates = jax.tree.map(
            lambda update, param, keep, x: update if keep is None else x - param.astype(x.dtype),
            updates, params, state.mask, rounded,
        )  # fmt: skip
        problems = state.problems | noted(Problem.NAN, keeping.has_nan(largest))
        return updates, KeepQuantizedState(state.mask, grids, problems)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _moved(param: jax.Array, update: jax.Array) -> jax.Array:
    """The parameter after the update, in the dtype that holds both."""
    wide = masks.wider_dtype(update, param)
    return param.astype(wide) + update.astype(wide)
