"""Projection onto what a function of all probabilities allows, against all points of a grid."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.trees.projections import projection_within_cost

GRID = np.stack(np.meshgrid(*[np.linspace(0, 1, 31)] * 4, indexing="ij"), -1).reshape(-1, 4)


def cost(factors, probs):
    """Two layers with a product between them, and parts of their own."""
    a, b = (leaf.sum(-1) for leaf in probs)
    return factors[0] * a * b + factors[1] * a + factors[2] * b


@jax.jit
def projected(factors, scores, budget):
    return projection_within_cost(scores, budget, functools.partial(cost, factors))


def distance(points, scores):
    return np.sum((points - np.concatenate(scores)) ** 2, -1)


def best(factors, scores, budget):
    allowed = GRID[cost(factors, (GRID[:, :2], GRID[:, 2:])) <= budget]
    return distance(allowed, scores).min()


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.integers(0, 10_000), st.sampled_from([0.03, 0.1, 0.3, 0.6, 1.0]))
def test_as_near_as_any_point(seed, density):
    random = np.random.default_rng(seed)
    factors = np.float32(random.uniform(0.05, 2, 3))
    scores = np.float32(random.uniform(-0.5, 1.5, (2, 2)))
    budget = density * cost(factors, np.ones((2, 2)))
    found = projected(factors, tuple(scores), budget)
    assert cost(factors, found) <= budget * (1 + 1e-5)
    assert all(((leaf >= 0) & (leaf <= 1)).all() for leaf in found)
    least = best(factors, scores, budget)
    assert distance(np.concatenate(found), scores) <= 1.001 * least + 1e-5


def test_layers_that_are_alike_stay_alike():
    """What is allowed isn't convex: to lose one of them would be nearer."""
    factors, scores = np.float32([2.0, 0.1, 0.1]), np.ones((2, 2), np.float32)
    found = projected(factors, tuple(scores), 0.5)
    np.testing.assert_array_equal(found[0], found[1])
    assert cost(factors, found) == pytest.approx(0.5, rel=1e-5)
    ratio = distance(np.concatenate(found), scores) / best(factors, scores, 0.5)
    assert 1.1 < ratio < 1.5


def test_a_linear_cost_has_its_projection():
    scores = jnp.linspace(-0.2, 1.3, 50), jnp.linspace(1.0, 0.0, 20)
    prices = jnp.linspace(0.1, 2.0, 50), jnp.full(20, 0.5)
    total = lambda probs: sum(map(jnp.vdot, prices, probs))
    found = projection_within_cost(scores, 9.0, total)
    expected = jp.projection_capped_simplex(scores, 9.0, costs=prices)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, expected)


@pytest.mark.parametrize("density", [1e-4, 0.01, 0.5])
def test_a_deep_chain(density):
    """A product of neighbours, 8 layers deep; from certainty, far outside of the budget."""
    widths = [16, 32, 64, 64, 32, 16, 8, 8]

    def total(probs):
        means = [leaf.sum() for leaf in probs]
        return sum(a * b for a, b in itertools.pairwise(means)) + means[0]

    scores = tuple(jnp.linspace(0.9, 1.1, width) for width in widths)
    budget = density * total(tuple(map(jnp.ones, widths)))
    found = jax.jit(lambda scores: projection_within_cost(scores, budget, total))(scores)
    assert 0.98 * budget < total(found) <= budget * (1 + 1e-5)


def test_what_costs_nothing_any_more():
    """Slopes of zero: without the first layer the second is free."""
    scores = jnp.zeros(2), jnp.full(2, 0.7)
    found = projection_within_cost(scores, 0.5, lambda s: s[0].sum() * s[1].sum())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, scores)
    free = projection_within_cost(scores, 1.0, lambda s: 0.0 * s[0].sum())
    jax.tree.map(np.testing.assert_array_equal, free, scores)


def test_narrow_leaves():
    scores = {"a": jnp.full(8, 0.9, jnp.bfloat16), "b": None}
    found = projection_within_cost(scores, 16.0, lambda s: s["a"].sum() ** 2)
    assert found["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["a"], 0.5)
