"""Every link of the table beside optax's other transformations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.methods.link_table import (
    BY_NAME,
    COSTS,
    distance,
    every_link_some_slow,
    half_mask,
    kept_exactly,
    kernels,
    probabilities,
    pruned_are_zero,
    sgd_then,
    step_of,
    train,
    weight_links,
    weights,
    within_budget,
)


@every_link_some_slow
def test_extra_args_reach_the_optimizer_before_the_link(row):
    params = row.params()
    tx = optax.chain(optax.polyak_sgd(), row.make())
    update, state = jax.jit(tx.update), tx.init(params)
    for count in range(1, 4):
        value, grads = jax.value_and_grad(distance)(params)
        updates, state = update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
        row.holds(params, count)


INJECTED = {
    "top_k": (jp.keep_sparse, "sparsity", weights, lambda f: kept_exactly(lambda _: 64 - 64 * f)),
    "probabilities": (
        jp.project_probabilities,
        "sparsity",
        probabilities,
        lambda f: within_budget(lambda _: 64 - 64 * f),
    ),
}


@pytest.mark.parametrize("case", INJECTED.values(), ids=INJECTED)
def test_inject_hyperparams_changes_the_fraction_without_retrace(case):
    factory, name, make_params, holds = case
    chex.clear_trace_counter()
    tx, params = sgd_then(optax.inject_hyperparams(factory)(**{name: 0.5})), make_params()
    state = tx.init(params)
    step = jax.jit(chex.assert_max_traces(step_of(tx), n=1))
    for fraction in (0.5, 0.25, 0.75):
        state = optax.tree.set(state, **{name: jnp.float32(fraction)})
        params, state = step(params, state)
        holds(fraction)(params, 1)


@pytest.mark.parametrize("case", INJECTED.values(), ids=INJECTED)
def test_inject_hyperparams_with_a_schedule(case):
    factory, _, make_params, holds = case
    schedule = optax.linear_schedule(0.25, 0.75, 2)
    tx, params = sgd_then(optax.inject_hyperparams(factory)(schedule)), make_params()
    state, step = tx.init(params), jax.jit(step_of(tx))
    for fraction in (0.25, 0.5, 0.75, 0.75):
        params, state = step(params, state)
        holds(fraction)(params, 1)


def test_inject_hyperparams_finds_keep_mask_through_a_factory():
    factory = lambda learning_rate: sgd_then_keep(learning_rate)
    tx = optax.inject_hyperparams(factory)(0.1)
    params, state = train(tx, weights())
    pruned_are_zero(params, 5)
    chex.assert_trees_all_equal(optax.tree.get(state, "mask"), half_mask())


def sgd_then_keep(learning_rate):
    return optax.chain(optax.sgd(learning_rate), jp.keep_mask(half_mask()))


@every_link_some_slow
def test_masked_applies_a_link_to_some_leaves(row):
    params = {"sparse": row.params(), "other": jnp.ones((3, 3))}
    inner = row.make()
    if row.name == "keep_mask":
        inner = jp.keep_mask({"sparse": half_mask(), "other": None})
    if row.name == "probabilities_costs":
        inner = jp.project_probabilities(0.75, costs={"sparse": COSTS, "other": None})
    tx = sgd_then(optax.masked(inner, {"sparse": True, "other": False}))
    params, _ = train(tx, params)
    row.holds(params["sparse"], 5)
    assert np.all(params["other"] != 0)


@weight_links
def test_partition_joins_weights_and_probabilities(row):
    params = {"weights": row.params(), "probs": probabilities()}
    of_weights = row.make()
    if row.name == "keep_mask":
        of_weights = jp.keep_mask({"weights": half_mask(), "probs": None})
    tx = optax.partition(
        {"w": sgd_then(of_weights), "s": sgd_then(jp.project_probabilities(0.75))},
        {"weights": "w", "probs": "s"},
    )
    params, state = train(tx, params)
    row.holds(params["weights"], 5)
    BY_NAME["probabilities"].holds(params["probs"], 5)
    assert jp.count(optax.tree.get(state, "mask")) == jp.count(
        jax.tree.map(lambda p: p != 0, kernels(params["weights"]))
    )


def test_partition_with_costs():
    params = {"weights": weights(), "probs": probabilities()}
    costs = {"weights": None, "probs": COSTS}
    tx = optax.partition(
        {"w": optax.sgd(0.1), "s": sgd_then(jp.project_probabilities(0.75, costs=costs))},
        {"weights": "w", "probs": "s"},
    )
    params, _ = train(tx, params)
    BY_NAME["probabilities_costs"].holds(params["probs"], 5)


@every_link_some_slow
def test_multi_steps_projects_and_counts_whole_steps(row, relaxed):
    """`optax.MultiSteps` multiplies booleans with floats: it is relaxed."""
    params = start = row.params()
    tx = relaxed(optax.MultiSteps(sgd_then(row.make()), every_k_schedule=3))
    state, step = tx.init(params), jax.jit(step_of(tx))
    for micro in range(1, 13):
        params, state = step(params, state)
        if micro < 3:
            chex.assert_trees_all_equal(params, start)
        else:
            row.holds(params, micro // 3)


@every_link_some_slow
def test_accumulated_gradients_equal_one_large_batch(row, relaxed):
    params = row.params()
    grads = jax.grad(distance)(params)
    parts = [jax.tree.map(lambda g, f=f: f * g, grads) for f in (0.5, 1.5)]
    whole, multi = row.make(), relaxed(optax.MultiSteps(row.make(), every_k_schedule=2))
    expected, _ = jax.jit(whole.update)(grads, whole.init(params), params)
    state, update = multi.init(params), jax.jit(multi.update)
    for part in parts:
        updates, state = update(part, state, params)
    chex.assert_trees_all_close(updates, expected, atol=1e-6)


@every_link_some_slow
def test_apply_if_finite_skips_nan_and_keeps_the_invariant(row):
    params = row.params()
    tx = optax.apply_if_finite(sgd_then(row.make()), max_consecutive_errors=5)
    update, state = jax.jit(tx.update), tx.init(params)
    for count, bad in [(1, False), (1, True), (2, False), (2, True)]:
        grads = jax.grad(distance)(params)
        if bad:
            grads = jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), grads)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        row.holds(params, count)


@every_link_some_slow
def test_ema_of_updates_before_the_link(row, relaxed):
    """`optax.ema` corrects its bias with a power of an int32 count: it is relaxed."""
    tx = optax.chain(optax.sgd(0.1), relaxed(optax.ema(0.9)), row.make())
    row.holds(train(tx, row.params())[0], 5)


# An average of parameters. With a fixed mask it is as sparse as they are; where masks change it is
# denser than each, and `apply_mask` makes it sparse. Probabilities form a convex set: their average
# keeps any fixed budget by itself.


@every_link_some_slow
def test_average_of_parameters(row):
    tx, params = sgd_then(row.make()), row.params()
    state, step = tx.init(params), jax.jit(step_of(tx))
    params, state = average, state = step(params, state)
    for _ in range(4):
        params, state = step(params, state)
        average = optax.incremental_update(params, average, 0.25)
    mask = optax.tree.get(state, "mask")
    if row.name == "keep_mask" or mask is None:
        row.holds(average, 1)  # a schedule's first budget is its largest
    if mask is not None:
        row.holds(jp.apply_mask(average, mask), 5)


PROJECTIONS = {
    "masked": lambda keep: optax.masked(keep(), {"dense": False, "head": True}),
    "partition": lambda keep: optax.partition(
        {"a": keep(), "b": keep()}, {"dense": "a", "head": "b"}
    ),
}


@pytest.mark.parametrize("score", ["magnitude", "movement"])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("around", PROJECTIONS.values(), ids=PROJECTIONS)
def test_straight_through_takes_projections_of_some_leaves(around, every, score):
    keep = lambda: jp.keep_sparse(0.5, every=every, score=score)
    params, state = train(jp.straight_through(optax.sgd(0.1), around(keep)), weights())
    assert jp.problems(state) == []
    mask = jp.current_mask(params, state)
    assert jp.count(mask) == jp.count(jax.tree.map(lambda m: m | True, mask)) // 2
    chex.assert_trees_all_equal(params, jp.apply_mask(params, mask))
