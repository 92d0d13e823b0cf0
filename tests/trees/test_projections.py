"""projection_capped_simplex against a float64 solver, and the properties of a projection."""

import bisect
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import jaxprune as jp


def solve(scores, budget, costs=None):
    """The projection in float64: a search among the kinks of the spending, then interpolation."""
    z = flat(scores)
    c = np.ones_like(z) if costs is None else flat(spread(scores, costs))
    spending = lambda v: np.sum(c * np.clip(z - v * c, 0, 1))
    v = 0.0
    if spending(v) > budget:
        kinks = np.unique(np.concatenate([[0.0], z / c, (z - 1) / c]))
        kinks = kinks[kinks >= 0]
        kinks = np.append(kinks, 2 * kinks[-1])  # at the last kink rounding may leave 1e-17
        i = bisect.bisect_left(kinks, True, key=lambda v: spending(v) <= budget)
        low, high = kinks[i - 1], kinks[i]
        above, below = spending(low), spending(high)
        v = low + (high - low) * (above - budget) / (above - below)
    return np.clip(z - v * c, 0, 1)


def flat(tree):
    return np.concatenate([np.asarray(x).astype(np.float64).ravel() for x in jax.tree.leaves(tree)])


def spread(scores, costs):
    return jax.tree.map(lambda x, c: np.broadcast_to(np.asarray(c), x.shape), scores, costs)


def cut(values, sizes=(2_000, 1, 3_000, 0, 4_999)):
    """A vector of 10,000 scores as a tree."""
    a, b, c, d, e = np.split(np.asarray(values, np.float32), np.cumsum(sizes)[:-1])
    leaves = {"a": a.reshape(40, 50), "b": b.reshape(()), "c": None, "d": [c, d, e]}
    return jax.tree.map(jnp.asarray, leaves)


SIZE = 10_000
normal = np.random.default_rng(0).normal(0.3, 0.5, SIZE).astype(np.float32)
DENSITIES = [0.5, 0.1, 0.01, 0.001]

project = jax.jit(lambda scores, budget: jp.projection_capped_simplex(scores, budget))


KNOWN = {
    "one cut": ([0.9, 0.6, 0.3, -0.2], 1.0, [0.6333333, 0.3333333, 0.0333333, 0.0]),
    "above one": ([1.7, 0.5, 0.2], 1.2, [1.0, 0.2, 0.0]),
    "slack: only clipped": ([0.4, -0.3, 1.5], 2.0, [0.4, 0.0, 1.0]),
    "budget just met": ([0.5, 0.25, -1.0], 0.75, [0.5, 0.25, 0.0]),
    "one half of each": ([1.0] * 8, 4.0, [0.5] * 8),
    "density 1": ([1.0] * 8, 8.0, [1.0] * 8),
    "density 1, above": ([3.0, 1.0], 2.0, [1.0, 1.0]),
    "no budget": ([0.7, 2.0, -1.0, 1e-3], 0.0, [0.0] * 4),
    "all negative": ([-0.1, -5.0], 1.0, [0.0, 0.0]),
    "infinite": ([np.inf, 0.5, -np.inf], 1.25, [1.0, 0.25, 0.0]),
    "one score": ([0.8], 0.3, [0.3]),
    "far above": ([1e3, 1e3, 999.5], 1.0, [0.5, 0.5, 0.0]),
    "far below": ([-1e3, -1e3], 1.0, [0.0, 0.0]),
}


@pytest.mark.parametrize("case", KNOWN)
def test_known_answers(case):
    scores, budget, expected = KNOWN[case]
    projected = jp.projection_capped_simplex({"w": jnp.array(scores)}, budget)["w"]
    np.testing.assert_allclose(projected, expected, atol=1e-7)


@pytest.mark.parametrize("size", [1, 3, 1_000, 300_000])
def test_density_one_gives_exactly_one(size):
    ones = [jnp.ones(size), jnp.ones((2, 2))]
    for budget in (float(size + 4), size + 4.5, 2.0 * size + 9):
        assert all(jnp.all(x == 1) for x in jp.projection_capped_simplex(ones, budget))


@pytest.mark.parametrize("largest", [2.0, 0.5, 1e-3, 1e-10, 1e4])
def test_no_budget_gives_exactly_zero(largest):
    scores = cut(normal * largest)
    assert np.all(flat(jp.projection_capped_simplex(scores, 0.0)) == 0)


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("score", [1.0, 0.7])
def test_equal_scores_share_the_budget(score, density):
    """After a dense phase all probabilities are 1; the first budget gives each the density."""
    shares = project(jnp.full(300_000, score), jnp.float32(density * 300_000))
    np.testing.assert_allclose(shares, density, rtol=1e-6)


MAGNITUDES = {"normal": normal, "at 1e3": normal + 1e3, "at -1e3": normal - 1e3,
              "wide": normal * 1e3, "narrow": normal * 1e-2, "rounded": np.round(normal, 1),
              "at -0.3": normal - 0.6}  # fmt: skip


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("case", MAGNITUDES)
def test_equals_float64(case, density):
    scores, budget = cut(MAGNITUDES[case]), density * SIZE
    projected = flat(project(scores, jnp.float32(budget)))
    np.testing.assert_allclose(projected, solve(scores, budget), rtol=0, atol=1e-6)
    clipped = np.clip(flat(scores), 0, 1).sum()
    np.testing.assert_allclose(projected.sum(), min(clipped, budget), rtol=1e-6)


@pytest.mark.parametrize("density", DENSITIES)
def test_properties(density):
    """On 10,000 normal scores; each of these budgets but the largest binds."""
    budget = jnp.float32(density * SIZE)
    on = lambda values: flat(project(cut(values), budget))
    projected = on(normal)
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert projected.sum() <= density * SIZE * (1 + 1e-6), "feasible"
    if np.clip(normal, 0, 1).sum(dtype=float) > density * SIZE:
        assert projected.sum() >= density * SIZE * (1 - 1e-6), "tight"
        moved = on(normal + np.float32(0.25))
        np.testing.assert_allclose(moved, projected, rtol=0, atol=1e-6, err_msg="shift")
    np.testing.assert_allclose(on(projected), projected, rtol=0, atol=1e-6, err_msg="idempotent")
    order = np.argsort(normal)
    assert np.all(np.diff(projected[order]) >= 0), "order"
    other = np.random.default_rng(1).normal(0.1, 0.9, SIZE).astype(np.float32)
    distance = np.linalg.norm(projected - on(other))
    assert distance <= np.linalg.norm(normal.astype(float) - other) + 1e-4, "non-expansive"
    for feasible in (on(other), np.full(SIZE, density), np.zeros(SIZE)):
        assert (normal - projected) @ (feasible - projected) <= 1e-4 * SIZE * density + 1e-4


def test_order_is_kept_among_neighbours():
    scores = np.sort(np.float32(0.5) + np.arange(SIZE, dtype=np.float32) * np.float32(2**-23))
    projected = flat(project(cut(scores), jnp.float32(1_000.0)))
    assert np.all(np.diff(projected) >= 0)


@pytest.mark.parametrize("density", DENSITIES)
def test_independent_of_how_the_vector_is_cut(density):
    budget = jnp.float32(density * SIZE)
    whole = np.asarray(project(jnp.asarray(normal), budget))
    for sizes in ((2_000, 1, 3_000, 0, 4_999), (2_000, 1, 7_999, 0, 0)):
        pieces = flat(project(cut(normal, sizes), budget))
        np.testing.assert_array_equal(pieces.astype(np.float32), whole)


def test_traced_and_python_budget_agree():
    scores = cut(normal)
    for budget in (123.25, 5_000.0, 0.0, 1e4):
        given = flat(jp.projection_capped_simplex(scores, budget))
        np.testing.assert_array_equal(given, flat(project(scores, jnp.float32(budget))))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_leaves_are_rounded_once(dtype):
    scores = jax.tree.map(lambda x: x.astype(dtype), cut(normal))
    projected = jp.projection_capped_simplex(scores, 1_000.0)
    assert {x.dtype for x in jax.tree.leaves(projected)} == {jnp.dtype(dtype)}
    once = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(flat(projected), solve(scores, 1_000.0), rtol=once, atol=1e-6)


def test_leaves_of_different_dtype():
    scores = {"a": jnp.array([0.9, 0.6], jnp.bfloat16), "b": jnp.array([0.3, -0.2]), "c": None}
    projected = jp.projection_capped_simplex(scores, 1.0)
    assert [x.dtype for x in (projected["a"], projected["b"])] == [jnp.bfloat16, jnp.float32]
    np.testing.assert_allclose(flat(projected), solve(scores, 1.0), atol=2e-3)


# Random small trees: shapes stay, so one program serves all examples.

grid = st.integers(-12, 12).map(lambda i: i / 8)
scores_of_nine = st.lists(grid | st.floats(-3, 3, width=32), min_size=9, max_size=9)
cost = st.sampled_from([1.0, 2.0, 0.5, 3.7]) | st.floats(0.125, 10, width=32)


def tree_of_nine(values):
    values = jnp.asarray(np.asarray(values, np.float32))
    return {"a": values[:6].reshape(2, 3), "b": None, "c": values[6], "d": values[7:]}


def tolerance(scores):
    """float32 holds z - v c no finer than this where the two are large."""
    return 1e-6 * max(1.0, float(np.abs(flat(scores)).max()))


@hypothesis.settings(max_examples=150)
@hypothesis.given(scores_of_nine, st.floats(0, 10), st.sampled_from([1.0, 1.0, 100.0, 1e-3]))
def test_random_trees(values, budget, magnitude):
    scores = tree_of_nine(np.asarray(values) * magnitude)
    projected = flat(project(scores, jnp.float32(budget)))
    np.testing.assert_allclose(projected, solve(scores, budget), atol=tolerance(scores))
    assert projected.sum() <= budget * (1 + 1e-6) + 9 * 2.0**-30


weighted = jax.jit(lambda s, k, c: jp.projection_capped_simplex(s, k, costs=c))


@hypothesis.settings(max_examples=150)
@hypothesis.given(scores_of_nine, st.floats(0, 40), st.lists(cost, min_size=9, max_size=9))
def test_random_trees_with_costs_per_weight(values, budget, costs):
    scores, costs = tree_of_nine(values), tree_of_nine(costs)
    projected = flat(weighted(scores, jnp.float32(budget), costs))
    np.testing.assert_allclose(projected, solve(scores, budget, costs), atol=2e-6)
    assert projected @ flat(costs) <= budget * (1 + 1e-6) + flat(costs).sum() * 2.0**-29


@hypothesis.settings(max_examples=150)
@hypothesis.given(scores_of_nine, st.floats(0, 40), st.tuples(cost, cost, cost))
def test_random_trees_with_costs_per_leaf(values, budget, costs):
    scores = tree_of_nine(values)
    costs = dict(zip("acd", map(jnp.float32, costs), strict=True)) | {"b": None}
    projected = flat(weighted(scores, jnp.float32(budget), costs))
    np.testing.assert_allclose(projected, solve(scores, budget, costs), atol=2e-6)


PER_LEAF = {"equal": (1.0, 1.0, 1.0, 1.0), "FLOPs": (12_544.0, 49.0, 196.0, 784.0),
            "tiny": (1e-9, 3e-9, 2e-9, 5e-10), "far apart": (1e5, 1.0, 1.0, 10.0)}  # fmt: skip


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("case", PER_LEAF)
@pytest.mark.parametrize("values", [normal, np.ones(SIZE)], ids=["normal", "ones"])
def test_costs_per_leaf_equal_float64(case, density, values):
    scores = cut(values)
    a, b, c, d = map(jnp.float32, PER_LEAF[case])
    costs = {"a": a, "b": b, "c": None, "d": [c, c, d]}
    check_costs(scores, costs, density)


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("decades", [0.3, 1, 2], ids=lambda d: f"{d} decades")
def test_costs_per_weight_equal_float64(decades, density):
    costs = np.exp(np.random.default_rng(2).normal(0, decades, SIZE)).astype(np.float32)
    check_costs(cut(normal), cut(costs), density)


def check_costs(scores, costs, density):
    all_costs = flat(spread(scores, costs))
    budget = float(np.float32(density * all_costs.sum()))
    projected = flat(weighted(scores, jnp.float32(budget), costs))
    np.testing.assert_allclose(projected, solve(scores, budget, costs), rtol=0, atol=2e-6)
    spent = min(budget, np.clip(flat(scores), 0, 1) @ all_costs)
    np.testing.assert_allclose(projected @ all_costs, spent, rtol=2e-6)


def test_cheap_weights_that_dominate_the_budget():
    """One dear weight sets the scale; a million cheap ones are what is spent."""
    scores = {"cheap": jnp.full(1_000_000, 0.7), "dear": jnp.array([-1.0])}
    costs = {"cheap": 1.0, "dear": 3e5}
    projected = jp.projection_capped_simplex(scores, 300_000.0, costs=costs)
    np.testing.assert_allclose(projected["cheap"], 0.3, rtol=1e-6)


def test_costs_may_be_python_numbers_and_numpy_arrays():
    scores = {"a": jnp.array([1.0, 1.0]), "b": jnp.array([1.0]), "c": None}
    costs = {"a": 2, "b": np.array([1.0], np.float32), "c": None}
    projected = jp.projection_capped_simplex(scores, 2.5, costs=costs)
    np.testing.assert_allclose(flat(projected), solve(scores, 2.5, costs), atol=1e-6)


@pytest.mark.parametrize("cost", [2.0, jnp.float32(2.0), np.full(4, 2.0, np.float32)], ids=repr)
def test_constant_costs_inside_jit(cost):
    """A training step closes over the costs; only the scores are traced."""
    shares = jax.jit(lambda z: jp.projection_capped_simplex([z], 4.0, costs=[cost]))(jnp.ones(4))
    np.testing.assert_allclose(shares[0], 0.5)


def test_constant_scores_inside_jit():
    scores = [jnp.ones(4)]
    shares = jax.jit(lambda budget: jp.projection_capped_simplex(scores, budget))(jnp.float32(2.0))
    np.testing.assert_allclose(shares[0], 0.5)


def test_inside_scan_and_vmap():
    batch = jnp.asarray(normal[:40].reshape(4, 10))
    budgets = jnp.array([0.0, 1.0, 2.5, 10.0])
    expected = [solve([row], budget) for row, budget in zip(batch, budgets, strict=True)]
    each = lambda row, budget: jp.projection_capped_simplex([row], budget)[0]
    np.testing.assert_allclose(jax.vmap(each)(batch, budgets), expected, atol=1e-6)
    _, scanned = jax.lax.scan(lambda _, x: (None, each(*x)), None, (batch, budgets))
    np.testing.assert_allclose(scanned, expected, atol=1e-6)


one = jnp.ones(3)
WRONG = {
    "negative budget": ({"w": one}, -1.0, None, "budget must be finite and not negative, got -1.0"),
    "infinite budget": ({"w": one}, np.inf, None, "budget must be finite"),
    "NaN budget": ({"w": one}, np.nan, None, "budget must be finite"),
    "empty": ({}, 1.0, None, "no leaves"),
    "only None": ({"w": None}, 1.0, None, "no leaves"),
    "integers": ({"a": {"b": jnp.ones(3, jnp.int32)}}, 1.0, None, "floating-point.*'a/b' is int32"),
    "Python number": ({"a": 1.0}, 1.0, None, "'a'"),
    "NaN": ({"a": one, "b": [jnp.array([jnp.nan])]}, 1.0, None, "'b/0' holds NaN.*nan_to_num"),
    "cost 0": ({"a": one}, 1.0, {"a": 0.0}, "costs of leaf 'a' must be positive and finite"),
    "cost < 0": ({"a": [one]}, 1.0, {"a": [jnp.array([1.0, -1, 1])]}, "'a/0' must be positive"),
    "cost NaN": ({"a": one}, 1.0, {"a": np.nan}, "'a' must be positive and finite"),
    "cost inf": ({"a": one}, 1.0, {"a": np.inf}, "'a' must be positive and finite"),
    "cost shape": ({"a": one}, 1.0, {"a": jnp.ones(2)}, r"'a' must be one .*\(3,\).*\(2,\)"),
    "cost absent": ({"a": one, "b": one}, 1.0, {"a": 1.0}, "the costs must have the structure"),
    "cost None": ({"a": one, "b": one}, 1.0, {"a": 1.0, "b": None}, "costs of leaf 'b'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_leaf_and_remedy(case):
    scores, budget, costs, message = WRONG[case]
    with pytest.raises((TypeError, ValueError), match=message):
        jp.projection_capped_simplex(scores, budget, costs=costs)


# Sharded trees: the same bits, and only scalars between devices.

SPECS = {"a": jax.P("a", "b"), "b": jax.P(("b", "a")), "c": jax.P(), "d": jax.P(None, "a")}
SHAPES = {"a": (8, 6), "b": (64,), "c": (), "d": (3, 8)}


def tree_for_mesh(seed, positive=False):
    values = np.random.default_rng(seed).normal(0.3, 0.5, (200,)).astype(np.float32)
    values = np.exp(values) if positive else values
    return {k: jnp.asarray(np.resize(values, s)) for k, s in SHAPES.items()}


def shard(tree, mesh):
    place = lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec))
    return {k: place(x, SPECS[k]) if x.ndim == len(SHAPES[k]) else x for k, x in tree.items()}


COSTS = {
    "no costs": None,
    "per leaf": {"a": jnp.float32(3.7), "b": jnp.float32(1.1), "c": jnp.float32(2.0),
                 "d": jnp.float32(0.3)},
    "per weight": tree_for_mesh(5, positive=True),
}  # fmt: skip


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("case", COSTS)
def test_sharded(case, axis_type):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type, axis_type))
    scores, costs = tree_for_mesh(4), COSTS[case]
    args = shard(scores, mesh), costs and shard(costs, mesh)
    on_mesh = jax.jit(lambda s, c, k: jp.projection_capped_simplex(s, k, costs=c))
    for budget in map(jnp.float32, (0.0, 1.5, 40.0, 1e4)):
        expected = on_mesh(scores, costs, budget)
        actual = on_mesh(*args, budget)
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
    for name, leaf in actual.items():
        assert leaf.sharding.is_equivalent_to(args[0][name].sharding, leaf.ndim), name
    assert_only_scalars_travel(on_mesh.lower(*args, budget).compile().as_text())


def assert_only_scalars_travel(compiled_text):
    collectives = r"all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    assert not re.search(rf"({collectives})(-start)?\(", compiled_text)
    reduced = re.findall(r"= (.*?) all-reduce(?:-start)?\(", compiled_text)
    assert reduced
    for result in reduced:
        assert set(re.findall(r"\[(.*?)\]", result)) == {""}, result


@pytest.mark.slow
@pytest.mark.parametrize("values", ["normal", "equal"])
@pytest.mark.parametrize("density", [0.5, 0.01, 1e-4])
def test_a_hundred_million_scores(values, density):
    size = 100_000_000
    if values == "normal":
        scores = 0.3 + 0.5 * jax.random.normal(jax.random.key(0), (size,))
    else:
        scores = jnp.ones(size)
    projected = project(scores, jnp.float32(density * size))
    total = np.asarray(projected).sum(dtype=np.float64)
    assert total == pytest.approx(float(np.float32(density * size)), rel=1e-6)
