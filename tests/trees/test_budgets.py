"""Masks under a budget, against all masks of the k largest scores."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

SIZES = (4, 3)


def cost(mask):
    """Of a network's kind: how many stay here times how many stay there, and a part of its own."""
    a, b = (jnp.sum(leaf, dtype=jnp.int32) for leaf in mask)
    return 3 * a * b + 5 * b + 2 * a + 1


def candidates(scores):
    return [jp.top_k_mask(scores, k) for k in range(sum(SIZES) + 1)]


def numbers(mask):
    return tuple(int(leaf.sum()) for leaf in mask)


def of(values):
    return jnp.float32(values[: SIZES[0]]), jnp.float32(values[SIZES[0] :])


SCORES = st.lists(st.sampled_from([-1.0, 0.0, 1.0, 2.0, 3.0]), min_size=7, max_size=7)
TRACED = jax.jit(lambda scores, budget: jp.budget_mask(scores, budget, cost))


@hypothesis.settings(max_examples=25)
@hypothesis.given(SCORES, st.integers(1, 70))
def test_one_more_would_exceed_the_budget(values, budget):
    scores = of(values)
    expected = [mask for mask in candidates(scores) if cost(mask) <= budget][-1]
    for found in (jp.budget_mask(scores, budget, cost), TRACED(scores, float(budget))):
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def in_multiples(mask, scores, multiple):
    """The mask with the largest scores of each leaf, as many as its multiples allow."""
    rounded = lambda n, size: n if n == size else n - n % multiple
    kept = map(rounded, numbers(mask), SIZES)
    return tuple(map(jp.top_k_mask, scores, kept))


TRACED_IN_TWOS = jax.jit(lambda scores, budget: jp.budget_mask(scores, budget, cost, multiple_of=2))


@hypothesis.settings(max_examples=25)
@hypothesis.given(SCORES, st.integers(1, 70))
def test_each_leaf_keeps_a_multiple_or_all(values, budget):
    scores = of(values)
    masks = [in_multiples(mask, scores, 2) for mask in candidates(scores)]
    expected = [mask for mask in masks if cost(mask) <= budget][-1]
    found = jp.budget_mask(scores, budget, cost, multiple_of=2)
    for each in (found, TRACED_IN_TWOS(scores, float(budget))):
        jax.tree.map(np.testing.assert_array_equal, each, expected)


def test_the_least_of_multiples_is_one_of_them():
    scores = of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    found = [numbers(jp.budget_mask(scores, b, cost, least=1, multiple_of=2)) for b in (27, 40, 60)]
    assert found == [(2, 2), (2, 3), (4, 3)]
    with pytest.raises(ValueError, match="the 2 largest scores of each leaf cost 27"):
        jp.budget_mask(scores, 26, cost, least=1, multiple_of=2)


def test_the_number_kept_is_a_cost():
    scores = {"a": jnp.array([[0.1, 3.0], [2.0, 2.0]]), "b": None, "c": jnp.array([2.0])}
    found = jp.budget_mask(scores, 2, jp.count)
    jax.tree.map(np.testing.assert_array_equal, found, jp.top_k_mask(scores, 2))


def test_the_least_stays():
    """The largest of each leaf, also beside scores that are infinite."""
    scores = jnp.array([9.0, jnp.inf, jnp.inf, 7.0]), jnp.array([1.0, 3.0, 2.0])
    assert [numbers(jp.budget_mask(scores, budget, cost)) for budget in (1, 8)] == [(0, 0), (3, 0)]
    least = [jp.budget_mask(scores, budget, cost, least=1) for budget in (11, 16, 21, 200)]
    assert list(map(numbers, least)) == [(1, 1), (2, 1), (3, 1), (4, 3)]
    np.testing.assert_array_equal(least[0][0], [False, True, False, False])
    np.testing.assert_array_equal(least[0][1], [False, True, False])
    assert numbers(jp.budget_mask(scores, 200, cost, least=9)) == SIZES
    narrow = scores[0].astype(jnp.bfloat16), scores[1].astype(jnp.int16)
    assert numbers(jp.budget_mask(narrow, 16, cost, least=1)) == (2, 1)


def test_integers_beyond_float32_are_told_apart():
    """Of costs that float32 takes for one another, traced ones are rounded up."""
    scores = jnp.arange(4.0, 0.0, -1.0)
    dear = lambda mask: 2**24 * jnp.sum(mask, dtype=jnp.int32) + 1
    assert jp.budget_mask(scores, 2**24 + 1, dear).tolist() == [True, False, False, False]
    assert jp.budget_mask(scores, 2**24, dear).tolist() == [False] * 4
    traced = jax.jit(lambda budget: jp.budget_mask(scores, budget, dear))
    assert not traced(jnp.float32(2**24)).any()
    assert traced(jnp.float32(2**24 + 2)).sum() == 1
    known = jax.jit(lambda scores: jp.budget_mask(scores, 2**24 + 1.0, dear))
    assert not known(scores).any()  # float32 has no 2**24 + 1


@pytest.mark.parametrize("budget", [np.inf, 1e300, 10**30])
def test_a_budget_for_everything(budget):
    scores = of([0.0] * 7)
    traced = jax.jit(lambda scores: jp.budget_mask(scores, budget, cost))
    assert numbers(jp.budget_mask(scores, budget, cost)) == numbers(traced(scores)) == SIZES


def test_what_is_refused():
    scores = of([0.0] * 7)
    with pytest.raises(ValueError, match=r"budget is 0\.5, but to keep nothing costs 1"):
        jp.budget_mask(scores, 0.5, cost)
    with pytest.raises(ValueError, match="but the 1 largest scores of each leaf cost 11"):
        jp.budget_mask(scores, 10, cost, least=1)
    with pytest.raises(ValueError, match="budget is nan"):
        jp.budget_mask(scores, np.nan, cost)
    assert numbers(TRACED(scores, jnp.nan)) == (0, 0)
    with pytest.raises(ValueError, match="at most 4294967295 scores"):
        jax.eval_shape(
            lambda scores: jp.budget_mask(scores, 1, jp.sparsity),
            jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32),
        )
