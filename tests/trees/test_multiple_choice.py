"""The multiple-choice knapsack, against all choices of small problems."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.trees import multiple_choice as module

LAYERS, CHOICES = 4, 5
ALL = np.array([*itertools.product(range(CHOICES), repeat=LAYERS)])


def picked(table, index):
    return np.take_along_axis(np.asarray(table), np.asarray(index)[:, None], 1).sum()


def least_error(errors, sizes, budget):
    layers = np.arange(LAYERS)
    fits = sizes[layers, ALL].sum(1) <= budget
    return errors[layers, ALL].sum(1)[fits].min()


def random_problem(random):
    errors = random.standard_normal((LAYERS, CHOICES)) ** 2
    sizes = random.integers(0, 20, (LAYERS, CHOICES)).astype(float)
    if random.random() < 0.3:
        errors = np.round(3 * errors)
    if random.random() < 0.5:  # as of widths: larger is better
        errors, sizes = -np.sort(-errors, axis=1), np.sort(sizes, axis=1)
    if random.random() < 0.2:
        errors[0, 3] = np.inf
    least, most = (np.where(np.isfinite(errors), sizes, end) for end in (np.inf, 0))
    budget = random.integers(least.min(1).sum(), most.max(1).sum() + 1)
    return errors, sizes, float(budget)


def test_a_thousand_problems_against_exhaustive_search():
    random = np.random.default_rng(0)
    for _ in range(1000):
        errors, sizes, budget = random_problem(random)
        choice = jp.multiple_choice(errors, sizes, budget)
        assert picked(sizes, choice.index) <= budget
        found, best = picked(errors, choice.index), least_error(errors, sizes, budget)
        assert found == pytest.approx(best, abs=1e-12)
        assert choice.bound == choice.error == np.float32(found)


def of_widths(layers):
    """Errors that fall with the bits, and sizes of many weights."""
    random = np.random.default_rng(1)
    bits, weights = np.arange(1, 9), random.integers(100, 100_000, (layers, 1))
    spread = random.random((layers, 1)) + 0.1
    errors = weights * spread**2 * 4.0**-bits * (1 + 0.1 * random.random((layers, 8)))
    return errors, (weights * bits).astype(float)


def test_sixty_layers_are_proven():
    errors, sizes = of_widths(60)
    choice = jp.multiple_choice(errors, sizes, 0.4 * sizes.max(1).sum())
    assert choice.bound == choice.error
    assert choice.error == np.float32(picked(errors, choice.index))


def test_the_price_bounds_what_more_budget_saves():
    """The relaxed least error is convex in the budget, and the price is its slope."""
    errors, sizes = of_widths(12)
    budget = 0.4 * sizes.max(1).sum()
    choice = jp.multiple_choice(errors, sizes, budget)
    more = jp.multiple_choice(errors, sizes, 1.1 * budget)
    relaxed = (errors + float(choice.price) * sizes).min(1).sum() - float(choice.price) * budget
    assert choice.error >= relaxed * (1 - 1e-6)
    assert more.error >= relaxed - 0.1 * budget * float(choice.price) * (1 + 1e-5)


@pytest.mark.parametrize(("unit", "common"), [(1, 20_000), (2**-12, 20_000), (2**20, 0)])
@pytest.mark.parametrize("layers", [6, 60])
def test_units_and_a_common_part_of_sizes_change_the_price_alone(unit, common, layers):
    """As of milliseconds with overhead, or microseconds."""
    random = np.random.default_rng(3)
    errors = -np.sort(-100 * random.random((layers, 8)), axis=1)
    sizes = np.sort(random.integers(0, 1000, (layers, 8)), axis=1).astype(float)
    budget = (sizes.min(1).sum() + sizes.max(1).sum()) // 2
    choice = jp.multiple_choice(errors, sizes, budget)
    other = jp.multiple_choice(errors, unit * (sizes + common), unit * (budget + layers * common))
    np.testing.assert_array_equal(other.index, choice.index)
    assert other.error == choice.error == pytest.approx(float(choice.bound), rel=1e-6)
    assert other.bound == pytest.approx(float(choice.bound), rel=1e-6)
    assert other.price * unit == pytest.approx(float(choice.price), rel=1e-5)


def test_small_differences_of_sizes_have_their_price():
    choice = jp.multiple_choice([[100.0, 0.0]] * 10, [[5.0, 5.125]] * 10, 50.625)
    assert choice.price == pytest.approx(100 / 0.125)
    assert choice.error == choice.bound == 500


@pytest.mark.parametrize("sizes", [[[0.5, 2.0], [1.0, 3.0]], [[0.0, 0.0]] * 2])
def test_an_infinite_budget_takes_the_least_errors(sizes):
    choice = jp.multiple_choice([[4.0, 1.0], [0.5, 2.0]], sizes, np.inf)
    assert choice.index.tolist() == [1, 0]
    assert (choice.error, choice.bound, choice.price) == (1.5, 1.5, 0)


@pytest.mark.parametrize(("limit", "value"), [("_ANSWERS", 2), ("_CHOICES", 2)])
def test_what_the_list_cannot_hold_is_in_the_certificate(monkeypatch, limit, value):
    monkeypatch.setattr(module, limit, value)
    module._choose.clear_cache()
    random, gaps = np.random.default_rng(2), 0
    for _ in range(60):
        errors, sizes, budget = random_problem(random)
        choice = jp.multiple_choice(errors, sizes, budget)
        best = least_error(errors, sizes, budget)
        assert picked(sizes, choice.index) <= budget
        assert choice.bound <= np.float32(best) * (1 + 1e-6) <= choice.error * (1 + 2e-6)
        gaps += bool(choice.bound < choice.error)
    assert gaps
    module._choose.clear_cache()


def test_inside_jit_with_a_traced_budget():
    errors, sizes = of_widths(6)
    errors32 = jnp.asarray(errors, jnp.float32)
    traced = jax.jit(lambda budget: jp.multiple_choice(errors32, jnp.float32(sizes), budget))
    budget = float(0.5 * sizes.max(1).sum() // 1)
    known = jp.multiple_choice(errors32, sizes, budget)
    np.testing.assert_array_equal(traced(jnp.float32(budget)).index, known.index)
    np.testing.assert_array_equal(traced(jnp.float32(-1)).index, 0)
