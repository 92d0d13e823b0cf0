"""ProbMask: its functions against the mathematics, and whole searches on handwritten digits."""

import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import jaxprune as jp

PARAMS = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3), "head": jnp.zeros((3, 1))}

# init_probabilities -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_init_probabilities_fills_prunable_leaves(value):
    probs = jp.init_probabilities(PARAMS, value=value)
    expected = {"kernel": jnp.full((2, 3), value), "bias": None, "head": jnp.full((3, 1), value)}
    chex.assert_trees_all_equal(probs, expected)


def test_init_probabilities_are_float32_for_bfloat16_params():
    probs = jp.init_probabilities(optax.tree.cast(PARAMS, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(probs)} == {jnp.dtype(jnp.float32)}


def test_init_probabilities_where():
    probs = jp.init_probabilities(PARAMS, where="head")
    assert jax.tree.map(jnp.shape, probs) == {"kernel": None, "bias": None, "head": (3, 1)}


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_init_probabilities_rejects_values_outside_the_box(value):
    with pytest.raises(ValueError, match="initial probability must lie in"):
        jp.init_probabilities(PARAMS, value=value)


def test_init_probabilities_rejects_params_without_prunable_leaves():
    with pytest.raises(ValueError, match="no leaf can be pruned"):
        jp.init_probabilities({"bias": jnp.zeros(3)})


# project_probabilities ----------------------------------------------------------------------------


class Projected(NamedTuple):
    """Scores z, a budget K and its projection: section 'Tests' of the specification."""

    scores: tuple[float, ...]
    budget: float
    expected: tuple[float, ...]


PROJECTED = {
    "active": Projected((0.9, 0.6, 0.3, -0.2), 1.0, (0.6333333, 0.3333333, 0.0333333, 0.0)),
    "one_at_its_bound": Projected((1.7, 0.5, 0.2), 1.2, (1.0, 0.2, 0.0)),
    "clipping_is_enough": Projected((0.4, -0.3, 1.5), 2.0, (0.4, 0.0, 1.0)),
    "uniform": Projected((1.0,) * 5, 1.5, (0.3,) * 5),
    "dense": Projected((1.0,) * 5, 5.0, (1.0,) * 5),
    "no_budget": Projected((0.4, 0.3, 1.5), 0.0, (0.0, 0.0, 0.0)),
}


@pytest.mark.parametrize("case", PROJECTED.values(), ids=PROJECTED)
def test_link_gives_the_numbers_of_the_specification(case):
    start = {"s": jnp.full(len(case.scores), 0.5)}
    scores = {"s": jnp.array(case.scores)}
    link = jp.project_probabilities(1 - case.budget / len(case.scores))
    moves = jax.tree.map(jnp.subtract, scores, start)
    updates, _ = link.update(moves, link.init(start), start)
    probs = optax.apply_updates(start, updates)
    np.testing.assert_allclose(probs["s"], case.expected, atol=2e-7)


COSTS = {
    "none": None,
    "a_number_for_each_leaf": {"a": 2.0, "b": 0.5},
    "one_for_each_weight": {"a": jnp.linspace(0.1, 1.0, 300).reshape(10, 30), "b": 0.5},
}


@pytest.mark.parametrize("density", [0.5, 0.001])
@pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS)
def test_link_equals_the_projection(costs, density):
    """Under jit too, up to the rounding of params + updates."""
    keys = jax.random.split(jax.random.key(0))
    probs = {"a": jax.random.uniform(keys[0], (10, 30)), "b": jax.random.uniform(keys[1], (200,))}
    moves = jax.tree.map(lambda p: 0.1 * jnp.cos(p * 40), probs)
    price = {"a": 1.0, "b": 1.0} if costs is None else costs
    everything = sum(
        float(np.sum(np.broadcast_to(np.asarray(price[name], np.float64), probs[name].shape)))
        for name in probs
    )
    expected = jp.projection_capped_simplex(
        optax.apply_updates(probs, moves), density * everything, costs=costs
    )
    link = jp.project_probabilities(1 - density, costs=costs)
    updates, _ = jax.jit(link.update)(moves, link.init(probs), probs)
    chex.assert_trees_all_close(optax.apply_updates(probs, updates), expected, atol=3e-7)


def test_sparsity_zero_keeps_certain_weights_exactly():
    """The reference implementation would subtract 2**-21 here and never be dense."""
    probs = jp.init_probabilities(PARAMS)
    link = jp.project_probabilities(0.0)
    updates, _ = link.update(optax.tree.zeros_like(probs), link.init(probs), probs)
    chex.assert_trees_all_equal(optax.apply_updates(probs, updates), probs)


def test_schedule_is_read_at_the_links_own_count():
    link = jp.project_probabilities(jp.cubic_sparsity(0.75, begin=1, end=3))
    probs = jp.init_probabilities(PARAMS)
    state, densities = link.init(probs), []
    for _ in range(4):
        updates, state = link.update(optax.tree.zeros_like(probs), state, probs)
        probs = optax.apply_updates(probs, updates)
        densities.append(float(optax.tree.sum(probs)) / 9)
    np.testing.assert_allclose(densities, [1.0, 1.0, 0.34375, 0.25], rtol=1e-6)
    assert int(state.count) == 4


def layer_product(probs):
    """Of the expected widths of two layers, and one of them alone."""
    return jnp.sum(probs["a"]) * jnp.sum(probs["b"]) + jnp.sum(probs["a"])


def test_costs_may_be_a_function_of_all_probabilities():
    """The budget is a share of what certainty costs, and follows a schedule."""
    probs = {"a": jnp.full(10, 0.9), "b": jnp.linspace(0.5, 1.0, 20), "c": None}
    schedule = jp.cubic_sparsity(0.75, begin=1, end=3)
    link = jp.project_probabilities(schedule, costs=layer_product)
    state, update = link.init(probs), jax.jit(link.update)
    densities = []
    for _ in range(4):
        updates, state = update(jax.tree.map(jnp.ones_like, probs), state, probs)
        probs = optax.apply_updates(probs, updates)
        densities.append(float(layer_product(probs)) / 210)
    np.testing.assert_allclose(densities, [1.0, 1.0, 0.34375, 0.25], rtol=1e-5)
    assert all(leaf.max() <= 1 for leaf in jax.tree.leaves(probs))


class CallableCosts(NamedTuple):
    """A tree that is a function as well, as modules are."""

    a: jax.Array

    def __call__(self, probs):
        raise AssertionError("it was called")


def test_a_tree_that_can_be_called_is_a_tree():
    probs = CallableCosts(jnp.ones(4))
    link = jp.project_probabilities(0.5, costs=CallableCosts(jnp.full(4, 2.0)))
    updates, _ = link.update(optax.tree.zeros_like(probs), link.init(probs), probs)
    np.testing.assert_allclose(optax.apply_updates(probs, updates).a, 0.5, rtol=1e-6)


def test_a_budget_below_what_is_always_spent():
    costs = lambda probs: 3.0 + jnp.sum(probs["a"])
    with pytest.raises(ValueError, match=r"allows 0\.7 of 7, .* nothing costs 3: at most 0\.571"):
        jp.project_probabilities(0.9, costs=costs).init({"a": jnp.ones(4)})
    jp.project_probabilities(0.5, costs=costs).init({"a": jnp.ones(4)})


@pytest.mark.parametrize("sparsity", [-0.1, 1.1])
def test_project_probabilities_rejects_a_sparsity_outside_the_unit_interval(sparsity):
    with pytest.raises(ValueError, match="sparsity must lie in"):
        jp.project_probabilities(sparsity)


# best_sampled_mask --------------------------------------------------------------------------------


def test_best_sampled_mask_is_the_best_of_its_draws():
    probs, seen = {"w": jnp.full((20, 5), 0.5), "b": None}, []

    def score(mask):
        seen.append(jp.count(mask))
        return seen[-1]

    mask, value = jp.best_sampled_mask(jax.random.key(0), probs, score, draws=6)
    assert len(seen) == 6 and len(set(seen)) > 1
    assert value == max(seen) == jp.count(mask)
    assert mask["b"] is None and mask["w"].dtype == bool


def test_best_sampled_mask_is_repeatable_and_depends_on_its_key():
    probs = {"w": jnp.full((50,), 0.5)}
    draw = lambda seed: jp.best_sampled_mask(jax.random.key(seed), probs, jp.count)[0]
    chex.assert_trees_all_equal(draw(0), draw(0))
    assert np.any(draw(0)["w"] != draw(1)["w"])


def test_best_sampled_mask_keeps_certain_weights_only():
    probs = {"w": jnp.array([0.0, 1.0, 0.0, 1.0])}
    mask, value = jp.best_sampled_mask(jax.random.key(0), probs, jp.count, draws=1)
    assert mask["w"].tolist() == [False, True, False, True] and value == 2


@pytest.mark.parametrize("place", [0, 1, 2])
def test_best_sampled_mask_passes_over_nan(place):
    scores = iter(np.insert([1.0, 2.0], place, np.nan))
    _, value = jp.best_sampled_mask(
        jax.random.key(0), {"w": jnp.full(3, 0.5)}, lambda mask: next(scores), draws=3
    )
    assert value == 2.0


def test_best_sampled_mask_needs_a_draw():
    with pytest.raises(ValueError, match="`draws` must be at least 1, got 0"):
        jp.best_sampled_mask(jax.random.key(0), {"w": jnp.ones(2)}, jp.count, draws=0)


# vrpge_gradient -----------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [2, 3])
def test_vrpge_gradient_is_unbiased(draws):
    """With L = a.m, E g_i = a_i sqrt(s_i (1 - s_i)): summed over all outcomes of all draws."""
    s, a = np.array([0.1, 0.5, 0.8]), np.array([1.0, -2.0, 0.5])
    outcomes = list(itertools.product([0, 1], repeat=3))
    chance = [np.prod(np.where(m, s, 1 - s)) for m in outcomes]
    drawn = jnp.array(list(itertools.product(range(8), repeat=draws)))
    weight = np.array([np.prod([chance[i] for i in row]) for row in drawn.tolist()])
    masks = jnp.array(outcomes, bool)

    @jax.jit
    @jax.vmap
    def gradient(rows):
        losses = masks[rows].astype(jnp.float32) @ jnp.array(a, jnp.float32)
        trees = [{"w": masks[rows[j]], "b": None} for j in range(draws)]
        return jp.vrpge_gradient({"w": jnp.array(s, jnp.float32), "b": None}, trees, losses)["w"]

    mean = weight @ np.asarray(gradient(drawn), np.float64)
    np.testing.assert_allclose(mean, a * np.sqrt(s * (1 - s)), rtol=1e-5)


def test_vrpge_gradient_is_finite_and_zero_at_the_ends_of_the_box():
    probs = {"w": jnp.array([0.0, 1.0])}
    masks = [{"w": jnp.array([False, True])}] * 2
    for estimate in (jp.vrpge_gradient, jax.jit(jp.vrpge_gradient)):
        gradient = estimate(probs, masks, jnp.array([1.0, 3.0]))
        assert gradient["w"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("losses", "draws"), [(1, 1), (3, 2)])
def test_vrpge_gradient_needs_two_masks_and_their_losses(losses, draws):
    masks = [{"w": jnp.array([True])}] * draws
    with pytest.raises(ValueError, match="at least two masks and one loss for each"):
        jp.vrpge_gradient({"w": jnp.array([0.5])}, masks, jnp.ones(losses))


# Whole searches: a bias-free perceptron 64-64-10 on scikit-learn's digits -------------------------

STEPS = 300
DENSITY = 0.1
WEIGHTS = 64 * 64 + 64 * 10


def digits():
    """1280 training images, and 517 test images."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = jnp.asarray(images[order] / 16, jnp.float32), jnp.asarray(labels[order])
    return (images[:1280], labels[:1280]), (images[1280:], labels[1280:])


def he_normal():
    keys = jax.random.split(jax.random.key(0))
    init = jax.nn.initializers.he_normal()
    return {"hidden": init(keys[0], (64, 64)), "head": init(keys[1], (64, 10))}


def logits(weights, images):
    return jax.nn.relu(images @ weights["hidden"]) @ weights["head"]


def cross_entropy(weights, images, labels):
    return -jnp.mean(
        jnp.take_along_axis(jax.nn.log_softmax(logits(weights, images)), labels[:, None], axis=1)
    )


def accuracy(weights, images, labels):
    return float(jnp.mean(jnp.argmax(logits(weights, images), axis=1) == labels))


def search(tx, params, temperature):
    """Trains with two soft masks for each step."""
    (images, labels), _ = digits()
    images, labels = images.reshape(5, 256, 64), labels.reshape(5, 256)

    def loss(params, keys, temperature, batch):
        def of_one_draw(key):
            soft = jp.relaxed_bernoulli(key, params["probs"], temperature)
            return cross_entropy(
                jp.apply_mask(params["weights"], soft), images[batch], labels[batch]
            )

        return jnp.mean(jax.vmap(of_one_draw)(keys))

    @jax.jit
    def run(params, state):
        def step(carry, i):
            params, state = carry
            keys = jax.random.split(jax.random.fold_in(jax.random.key(1), i), 2)
            grads = jax.grad(loss)(params, keys, temperature(i), i % 5)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), jnp.arange(STEPS))[0][0]

    return run(params, tx.init(params))


@pytest.mark.slow
@pytest.mark.usefixtures("relaxed_promotion")  # optax.adam needs it
def test_probmask_trains_a_sparse_classifier():
    weights = he_normal()
    params = {"weights": weights, "probs": jp.init_probabilities(weights)}
    sparsity = jp.cubic_sparsity(1 - DENSITY, begin=STEPS // 6, end=STEPS * 6 // 10)
    of_probs = optax.chain(optax.adam(3e-2), jp.project_probabilities(sparsity))
    tx = optax.partition({"weights": optax.adam(1e-2), "probs": of_probs}, LABELS)
    params = search(tx, params, jp.annealed_temperature(STEPS))

    k = round(DENSITY * WEIGHTS)
    assert float(optax.tree.sum(params["probs"])) == pytest.approx(DENSITY * WEIGHTS, rel=1e-5)
    mask = jp.top_k_mask(params["probs"], k)
    final = jp.apply_mask(params["weights"], mask)
    assert jp.count(mask) == k
    assert accuracy(final, *digits()[1]) > 0.9

    train = digits()[0]
    score = lambda m: accuracy(jp.apply_mask(params["weights"], m), *train)
    sampled, best = jp.best_sampled_mask(jax.random.key(2), params["probs"], score, draws=5)
    assert best > 0.85
    assert abs(jp.count(sampled) - k) < 5 * np.sqrt(k)


@pytest.mark.usefixtures("relaxed_promotion")
def test_supermask_of_frozen_random_weights():
    weights = he_normal()
    params = {"weights": weights, "probs": jp.init_probabilities(weights, value=0.5)}
    of_probs = optax.chain(optax.adam(3e-2), jp.project_probabilities(0.5))
    tx = optax.partition({"weights": optax.set_to_zero(), "probs": of_probs}, LABELS)
    params = search(tx, params, jp.annealed_temperature(STEPS, final=0.1))

    chex.assert_trees_all_equal(params["weights"], weights)
    mask = jp.top_k_mask(params["probs"], WEIGHTS // 2)
    assert jp.count(mask) == WEIGHTS // 2
    untrained = accuracy(weights, *digits()[1])
    assert untrained < 0.3
    assert accuracy(jp.apply_mask(weights, mask), *digits()[1]) > 0.85


LABELS = {"weights": "weights", "probs": "probs"}
