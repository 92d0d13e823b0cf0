"""The knapsack over a tree, against all subsets of small problems and the order said in words."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import jaxprune as jp

SHAPES = ((2, 3), (3,), (2,))
TRACED = jax.jit(jp.knapsack_mask)


def ratio(value, cost):
    """value / cost, rounded down to float32."""
    exact = np.float64(value) / cost
    near = np.float32(exact)
    return near if np.float64(near) <= exact else np.nextafter(near, np.float32(0))


def greedy(values, costs, budget):
    """The mask in order of ratio and position, what is left, and the first that didn't fit."""
    items = [
        (-ratio(value, cost), leaf, place, int(cost), float(value))
        for leaf, (own, cost) in enumerate(zip(values, costs, strict=True))
        for place, value in enumerate(np.asarray(own, np.float64).ravel())
        if value > 0
    ]
    mask, passed = [np.zeros(own.shape, bool) for own in values], None
    for _, leaf, place, cost, value in sorted(items):
        if cost <= budget:
            mask[leaf].flat[place] = True
            budget -= cost
        elif passed is None:
            passed = value * budget / cost  # its value times the part of its cost that is left
    return mask, budget, passed


def random_problem(random):
    values = [random.standard_normal(shape).astype(np.float32) ** 2 for shape in SHAPES]
    if random.random() < 0.5:  # ties in plenty, and zeros
        values = [np.round(2 * own) for own in values]
    same = random.random() < 0.2
    costs = [random.integers(1, 5)] * 3 if same else random.integers(1, 9, 3)
    return values, [*map(int, costs)], int(random.integers(0, 45))


SUBSETS = np.array([*itertools.product([False, True], repeat=11)])


def best_value(values, costs, budget):
    """Of all 2048 subsets, in float64."""
    flat = np.concatenate([own.ravel() for own in values]).astype(np.float64)
    prices = np.repeat(costs, [own.size for own in values])
    return np.max((SUBSETS @ flat)[SUBSETS @ prices <= budget])


def test_a_thousand_problems_against_exhaustive_search():
    random = np.random.default_rng(0)
    problems = [random_problem(random) for _ in range(1000)]
    values, costs, budgets = zip(*problems, strict=True)
    stacked = [jnp.stack(own) for own in zip(*values, strict=True)]
    prices = [*jnp.asarray(costs, jnp.int32).T]
    masks = jax.vmap(jp.knapsack_mask)(stacked, prices, jnp.asarray(budgets, jnp.int32))
    masks = zip(*map(np.asarray, masks), strict=True)
    optimal = sum(check(*problem, mask) for problem, mask in zip(problems, masks, strict=True))
    assert optimal > 700


def check(values, costs, budget, mask):
    """Whether the mask is the best one, and in any case the greedy one, within its bound."""
    expected, left, passed = greedy(values, costs, budget)
    for own, wanted in zip(mask, expected, strict=True):
        np.testing.assert_array_equal(own, wanted)
    spent = sum(cost * own.sum() for own, cost in zip(mask, costs, strict=True))
    value = sum(v.astype(np.float64)[own].sum() for v, own in zip(values, mask, strict=True))
    best = best_value(values, costs, budget)
    assert spent == budget - left <= budget
    for v, own, cost in zip(values, mask, costs, strict=True):
        assert cost > left or own[v > 0].all()  # nothing else fits
    assert best <= value + (passed or 0) + 1e-6
    if len(set(costs)) == 1 or passed is None:
        assert value == pytest.approx(best, abs=1e-6)
    return value >= best - 1e-6


def test_python_numbers_give_what_traced_ones_give():
    values, costs, budget = random_problem(np.random.default_rng(1))
    for mine, traced in zip(
        jp.knapsack_mask([*map(jnp.asarray, values)], costs, budget),
        TRACED(values, [*map(jnp.int32, costs)], jnp.int32(budget)),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, traced)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int8])
def test_narrow_values_beside_wide_ones(dtype):
    values = [jnp.arange(-3, 9).astype(dtype).reshape(3, 4), None, jnp.float32([0.3, 2.5, 7.0])]
    mask = jp.knapsack_mask(values, [3, None, 1], 17)
    expected, left, _ = greedy([values[0].astype(np.float32), values[2]], [3, 1], 17)
    assert left == 0
    np.testing.assert_array_equal(mask[0], expected[0])
    np.testing.assert_array_equal(mask[2], expected[1])
    assert mask[1] is None


def test_extremes_of_float32():
    """Denormals, infinity, costs near 2**32 and ratios that no float32 has."""
    values = [jnp.float32([jnp.inf, 3e38, 1e-45, 0.0, -1.0]), jnp.float32([1e-45, 3e-39])]
    for costs, budget, kept in (
        ((1, 1), 9, (3, 2)),
        ((2**32 - 1, 1), 2**33, (2, 2)),
        ((1, 2**32 - 1), 3, (3, 0)),
        ((7, 5), 7, (1, 0)),
        ((7, 5), 12, (1, 1)),
        ((7, 5), 0, (0, 0)),
    ):
        mask = jp.knapsack_mask(values, [*costs], budget)
        assert tuple(int(own.sum()) for own in mask) == kept
    nan = TRACED([jnp.float32([jnp.nan, 1.0])], [1], 2)
    assert nan[0].tolist() == [False, True]


def test_a_traced_budget_below_zero_keeps_nothing():
    mask = TRACED([jnp.ones(3)], [1], jnp.int32(-5))
    assert not mask[0].any()


def sharded(axis_type):
    random = np.random.default_rng(2)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type,) * 2)
    values = {"w": np.round(random.random((8, 6)) * 9), "v": random.random((4, 4))}
    values |= {"u": np.round(random.random(3) * 9)}
    specs = {"w": jax.P("a", "b"), "v": jax.P(None, "a"), "u": jax.P()}
    values = {name: own.astype(np.float32) for name, own in values.items()}
    return values, {
        name: jax.device_put(own, jax.NamedSharding(mesh, specs[name]))
        for name, own in values.items()
    }


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_as_on_one_device(axis_type):
    values, there = sharded(axis_type)
    costs = {"w": 5, "v": 3, "u": 2}
    for budget in (0, 33, 101, 1000):
        mask = jp.knapsack_mask(there, costs, budget)
        for name, expected in jp.knapsack_mask(values, costs, budget).items():
            np.testing.assert_array_equal(mask[name], expected)
            assert mask[name].sharding.is_equivalent_to(there[name].sharding, expected.ndim)


def test_only_scalars_travel():
    _, there = sharded(AxisType.Auto)
    lowered = TRACED.lower(there, {"w": 5, "v": 3, "u": 2}, jnp.int32(50))
    text = lowered.compile().as_text()
    assert not re.search(r"(all-gather|all-to-all|collective-permute)(-start)?\(", text)
    for result in re.findall(r"= (.*?) all-reduce(?:-start)?\(", text):
        assert set(re.findall(r"\[(.*?)\]", result)) == {""}, result


def test_leaves_past_the_reach_of_32_bits_trace():
    values = [
        jax.ShapeDtypeStruct((2**20, 2**17), jnp.bfloat16),
        jax.ShapeDtypeStruct((3,), np.float32),
    ]
    mask = jax.eval_shape(lambda values: jp.knapsack_mask(values, [8, 1], 2**40), values)
    assert mask[0].shape == (2**20, 2**17)
