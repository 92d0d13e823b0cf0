r"""The multiple-choice knapsack: one choice for each layer, of least error within a budget.

A price on size makes the layers independent: for any :math:`\lambda \ge 0`

.. math:: \sum_l \min_c (e_{lc} + \lambda s_{lc}) - \lambda B \le \text{the least error}

is a lower bound, greatest at the price found by bisection. Then layer after layer is added to a
list of partial answers (their size and error), as dynamic programming has it: an answer goes that
another one beats in both, and one that can't be completed within the budget, or not below the best
that is known. The bound is so close that few are left, and the list has a fixed length; what it
couldn't hold is part of the certificate. All of it is a program of fixed shapes, so that a training
step can choose without the host.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.trees import checks, wide

_ANSWERS = 512  # partial answers that are kept
_CHOICES = 32  # of a layer that are looked at
_HALVINGS = 100  # of the price
_HIGHEST = 1e150  # price; its square is finite


class Choice(NamedTuple):
    """One choice for each layer, and its certificate.

    `index` is int32 (layers,). `error` is the sum of the chosen errors, and `bound` a lower bound
    of what any choice within the budget has, float32 scalars: where they are equal, the choice is
    proven to be the best. `price` is the lambda of that bound: about what one more unit of budget
    would save.
    """

    index: jax.Array
    error: jax.Array
    bound: jax.Array
    price: jax.Array


def multiple_choice(
    errors: jax.typing.ArrayLike, sizes: jax.typing.ArrayLike, budget: chex.Numeric
) -> Choice:
    """Chooses one of several for each layer: the least sum of errors within a budget of sizes.

    Args:
      errors: float array (layers, choices), finite, or infinite for what can't be chosen.
      sizes: array (layers, choices) of numbers at or above 0. They are added in float64, so that
        whole numbers are exact up to 2**53.
      budget: what the chosen sizes may sum to: a number, which may be traced.

    Returns:
      A `Choice`. Its `error` equals its `bound` up to rounding, unless more partial answers had to
      be followed than fit (512); then the difference says by how much it could be beaten at most.
      Where a traced budget is below the least sizes, these are chosen.

    Raises:
      TypeError: for arguments that aren't numbers.
      ValueError: for arrays of other shapes, sizes below 0, NaN, or a budget below the least sizes.

    Source: Sinha, Zoltners, "The multiple-choice knapsack problem" (Operations Research 1979).

    >>> import jaxprune as jp
    >>> errors = [[9.0, 4.0, 1.0], [6.0, 5.0, 0.0]]
    >>> choice = jp.multiple_choice(errors, [[1, 2, 3], [10, 20, 30]], 22)
    >>> choice.index.tolist(), float(choice.error), float(choice.bound)
    ([2, 0], 7.0, 7.0)
    """
    return _choice(*_checked(errors, sizes, budget))


@wide.counts_in_64_bits
def _checked(errors, sizes, budget):
    """The arguments as float64."""
    checks.number("the budget", budget, "a number")
    errors, sizes = _array("errors", errors), _array("sizes", sizes)
    if errors.shape != sizes.shape or errors.ndim != 2 or 0 in errors.shape:
        raise ValueError(
            f"`errors` and `sizes` must have one shape (layers, choices), got {errors.shape} and "
            f"{sizes.shape}"
        )
    if all(map(checks.known, (errors, sizes, budget))):
        _check_values(np.asarray(errors), np.asarray(sizes), np.asarray(budget).item())
    return errors, sizes, jnp.asarray(budget, jnp.float64)


def _array(name: str, value) -> jax.Array:
    try:
        return jnp.asarray(value, jnp.float64)
    except (TypeError, ValueError) as error:
        got = checks.described(value)
        raise TypeError(f"`{name}` must be an array of numbers, got {got}") from error


def _check_values(errors: np.ndarray, sizes: np.ndarray, budget: float) -> None:
    if np.isnan(errors).any() or not (sizes >= 0).all():
        raise ValueError("`errors` may not be NaN, nor `sizes` NaN or below 0")
    least = np.where(np.isfinite(errors), sizes, np.inf).min(axis=1).sum()
    if not budget >= least:
        raise ValueError(
            f"the budget is {budget}, but the smallest choices take {least:g}: give at least that"
        )


class _Answers(NamedTuple):
    """Partial answers, of the layers so far; what was dropped could not be below `bound`."""

    size: jax.Array  # (answers,), infinite where there is none
    error: jax.Array
    bound: jax.Array


@wide.counts_in_64_bits
def _choice(errors, sizes, budget) -> Choice:
    return _choose(errors, sizes, budget)


@jax.jit
def _choose(errors, sizes, budget) -> Choice:
    sizes = jnp.where(jnp.isfinite(errors), sizes, jnp.inf)
    smallest = jnp.min(sizes, axis=1)
    largest = jnp.max(jnp.where(jnp.isfinite(sizes), sizes, 0), axis=1)
    # Finite, since it is multiplied by a price of 0; twice, so that rounding can't make it bind.
    budget = jnp.minimum(jnp.maximum(budget, jnp.sum(smallest)), 2 * jnp.sum(largest))
    price, known = _price(errors, sizes, budget)
    best_known = _sum_of(errors, known)
    priced = _priced(errors, sizes, price)
    relaxed = jnp.min(priced, axis=1)
    # Layers that differ much first: they matter most to what is left. Of each its best choices.
    order = jnp.argsort(smallest - largest)
    near = jnp.argsort(priced, axis=1)[order].astype(jnp.int32)
    first = lambda x: jnp.take_along_axis(x[order], near[:, :_CHOICES], axis=1)
    others = jnp.take_along_axis(priced[order], near[:, _CHOICES:], axis=1)
    lost = jnp.min(others - relaxed[order][:, None], initial=jnp.inf)
    after, least = (jnp.sum(x) - jnp.cumsum(x[order]) for x in (relaxed, smallest))
    add = functools.partial(_add_layer, price, budget, best_known)
    nothing = jnp.full(_ANSWERS, jnp.inf).at[0].set(0.0)
    start = _Answers(nothing, nothing, jnp.sum(relaxed) - price * budget + lost)
    layers = first(errors), first(sizes), after, least
    answers, origins = jax.lax.scan(add, start, layers)
    found = _traced_back(answers, origins, layers[0].shape[1])
    found = jnp.take_along_axis(near, found[:, None], axis=1)[:, 0]
    found = jnp.zeros_like(found).at[order].set(found)
    index = jnp.where(jnp.min(answers.error) < best_known, found, known)
    error = _sum_of(errors, index)
    bound = jnp.minimum(error, answers.bound)
    numbers = (x.astype(jnp.float32) for x in (error, bound, price))
    return Choice(index.astype(jnp.int32), *numbers)


def _sum_of(numbers, index) -> jax.Array:
    return jnp.sum(jnp.take_along_axis(numbers, index[:, None], axis=1))


def _least(x: jax.Array) -> jax.Array:
    """Where the last axis is least."""  # `jnp.argmin` of float64 is lowered without x64, and fails
    place = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    here = x == jnp.min(x, axis=-1, keepdims=True)
    return jnp.min(jnp.where(here, place, x.shape[-1]), axis=-1)


def _priced(errors, sizes, price) -> jax.Array:
    return jnp.where(jnp.isfinite(sizes), errors + price * sizes, jnp.inf)


def _price(errors, sizes, budget):
    """The least price at which the layers' own choices fit the budget, and these choices."""
    choices_at = lambda price: _least(_priced(errors, sizes, price))
    fits = lambda index: _sum_of(sizes, index) <= budget
    smallest, highest = _smallest_choices(errors, sizes)

    def halve(_, ends):
        low, high, index = ends
        middle = jnp.where(low > 0, jnp.sqrt(low * high), high * 2.0**-40)
        found = choices_at(middle)
        fit = fits(found)
        low, high = jnp.where(fit, low, middle), jnp.where(fit, middle, high)
        return low, high, jnp.where(fit, found, index)

    free = choices_at(0.0)
    ends = jnp.float64(0), highest, smallest
    _, price, index = jax.lax.fori_loop(0, _HALVINGS, halve, ends)
    return jnp.where(fits(free), 0.0, price), jnp.where(fits(free), free, index)


def _smallest_choices(errors, sizes):
    """The layers' smallest choices, the best among equals, and a price at which they are taken."""
    size = jnp.min(sizes, axis=1, keepdims=True)
    smallest = jnp.where(sizes == size, errors, jnp.inf)
    more = jnp.where(jnp.isfinite(sizes) & (sizes > size), sizes - size, jnp.inf)
    # What one more unit of size saves at most. Only these differences matter, not sizes themselves.
    saved = (jnp.min(smallest, axis=1, keepdims=True) - errors) / more
    highest = jnp.max(jnp.where(jnp.isfinite(more), saved, 0), initial=0)
    return _least(smallest), jnp.minimum(2 * highest, _HIGHEST)


def _add_layer(price, budget, best_known, answers: _Answers, layer):
    """The partial answers with one layer more, and of each from which it came."""
    errors, sizes, after, least = layer
    size = (answers.size[:, None] + sizes[None]).ravel()
    error = (answers.error[:, None] + errors[None]).ravel()
    bound_of = lambda size, error: error + after - price * (budget - size)
    # Rounding must not lose the best answer itself.
    slack = 1e-12 * (jnp.abs(best_known) + price * budget)
    alive = (size + least <= budget) & (bound_of(size, error) <= best_known + slack)
    size, error = (jnp.where(alive, x, jnp.inf) for x in (size, error))
    size, error, origin = jax.lax.sort(
        (size, error, jnp.arange(size.size, dtype=jnp.int32)), num_keys=2
    )
    before = jnp.concatenate([jnp.full(1, jnp.inf), jax.lax.cummin(error)[:-1]])
    bound = jnp.where(error < before, bound_of(size, error), jnp.inf)
    size, error = (jnp.where(error < before, x, jnp.inf) for x in (size, error))
    # The most promising ones stay. Where the size is infinite, so is the error.
    bound, size, error, origin = jax.lax.sort((bound, size, error, origin), num_keys=1)
    dropped = jnp.min(bound[_ANSWERS:], initial=jnp.inf)
    kept = _Answers(size[:_ANSWERS], error[:_ANSWERS], jnp.minimum(answers.bound, dropped))
    return kept, origin[:_ANSWERS]


def _traced_back(answers: _Answers, origins: jax.Array, choices: int) -> jax.Array:
    """The choice of each layer in the best answer."""

    def back(answer, origins):
        origin = origins[answer]
        return origin // choices, origin % choices

    return jax.lax.scan(back, _least(answers.error), origins, reverse=True)[1]
