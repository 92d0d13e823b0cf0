"""DeepHoyer's links in the ways people use optax transformations, and its flow."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.methods import hoyer
from tests.methods.penalty_table import (
    ROWS,
    close,
    every_link,
    gaussian,
    gradients,
    main_links,
    once,
    pressed,
    pressure,
    train,
    weights,
)

# What a link adds ---------------------------------------------------------------------------------


@every_link
def test_link_adds_strength_times_the_gradient_of_each_kernel(row):
    params, grads, link = weights(), gradients(), row.make(0.25)
    updates, state = jax.jit(link.update)(grads, link.init(params), params)
    close(updates, pressed(row, grads, 0.25, params))
    chex.assert_trees_all_equal(updates["dense"]["bias"], grads["dense"]["bias"])
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    assert state == hoyer.AddPenaltyState(count=1)
    assert state.count.dtype == jnp.int32


def test_schedule_is_read_at_the_links_own_count():
    row = ROWS["hoyer_square"]
    params, link = weights(), row.make(lambda count: 0.5 * jnp.float32(count))
    zeros, update, state = optax.tree.zeros_like(params), jax.jit(link.update), link.init(params)
    for count in range(3):
        updates, state = update(zeros, state, params)
        close(updates, pressed(row, zeros, 0.5 * count, params))
    assert int(state.count) == 3


def test_strength_may_be_traced_and_does_not_recompile():
    row = ROWS["hoyer_square"]
    chex.clear_trace_counter()
    params, grads = weights(), gradients()

    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def update(strength):
        link = row.make(strength)
        return link.update(grads, link.init(params), params)[0]

    for strength in (0.0, 1e-4, 2.0):
        close(update(jnp.float32(strength)), pressed(row, grads, strength, params))


def test_vmap_over_strengths():
    params, row = weights(), ROWS["hoyer_square"]
    strengths = jnp.array([0.0, 0.1, 1.0])
    zeros = optax.tree.zeros_like(params)
    run = lambda strength: row.make(strength).update(zeros, row.make(0.0).init(params), params)[0]
    batch = jax.jit(jax.vmap(run))(strengths)
    for i, strength in enumerate(strengths.tolist()):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], batch)
        close(one, pressed(row, zeros, strength, params))


def test_where_chooses_what_is_pressed():
    params, grads = weights(), gradients()
    bias = params["dense"]["bias"]
    for where in ("bias|head", lambda path, leaf: leaf.ndim == 1 or path == "head/0"):
        updates = once(jp.add_penalty(jp.l1, 0.5, where=where), grads, params)
        close(updates["dense"]["kernel"], grads["dense"]["kernel"], rtol=0, atol=0)
        close(updates["dense"]["bias"], grads["dense"]["bias"] + 0.5 * jnp.sign(bias))
        close(updates["head"][0], grads["head"][0] + 0.5 * jnp.sign(params["head"][0]))


def test_a_penalty_of_ones_own_sees_none_for_what_stays_dense():
    def ridge(params):
        assert params["dense"]["bias"] is None
        return optax.tree.norm(params, squared=True)

    params, grads = weights(), gradients()
    updates = once(jp.add_penalty(ridge, 0.5), grads, params)
    close(updates["head"][0], grads["head"][0] + params["head"][0])
    close(updates["dense"]["bias"], grads["dense"]["bias"])


def test_zero_kernels_get_no_pressure():
    params = optax.tree.zeros_like(weights())
    for row in (ROWS["hoyer_square"], ROWS["group_hoyer_square"], ROWS["group_lasso"]):
        with jax.debug_nans(True):
            updates = once(row.make(1.0), gradients(), params)
        chex.assert_trees_all_equal(updates, gradients())


@pytest.mark.parametrize("name", ["l1", "transformed_l1"])
def test_zero_weights_get_no_pressure(name):
    params = {"kernel": jnp.array([[0.0, 2.0], [-2.0, 0.0]])}
    updates = once(ROWS[name].make(1.0), optax.tree.zeros_like(params), params)["kernel"]
    assert jnp.sign(updates).tolist() == [[0, 1], [-1, 0]]


@main_links
def test_errors(row):
    link, params = row.make(0.1), weights()
    with pytest.raises(ValueError, match="needs the parameters"):
        link.update(params, link.init(params))
    with pytest.raises(ValueError, match=r"no leaf can be pruned.*\['bias'\].*Pass `where`"):
        link.update({"bias": jnp.ones(3)}, link.init({}), {"bias": jnp.ones(3)})


def test_error_names_the_leaf_without_the_axes():
    link = jp.add_group_hoyer_square(0.1, axis="heads")
    with pytest.raises(ValueError, match=r"'dense/kernel' of shape \(8, 4\) has no heads"):
        link.update(weights(), link.init(weights()), weights())


# The place in the chain ---------------------------------------------------------------------------


def test_before_adam_the_pressure_is_rescaled_after_it_decoupled(relaxed):
    row = ROWS["hoyer_square"]
    params, strength = weights(), 1e-3
    zeros, gradient = optax.tree.zeros_like(params), pressure(row.penalty)(params)
    before = optax.chain(row.make(strength), relaxed(optax.adam(0.1)))
    expected = once(relaxed(optax.adam(0.1)), pressed(row, zeros, strength, params), params)
    close(once(before, zeros, params), expected)
    after = optax.chain(
        relaxed(optax.scale_by_adam()), row.make(strength), optax.scale_by_learning_rate(0.1)
    )
    decoupled = jax.tree.map(lambda g: -0.1 * strength * g, gradient)
    close(once(after, zeros, params), decoupled, atol=1e-9)


# Other transformations around a link --------------------------------------------------------------


@main_links
def test_inject_hyperparams_changes_the_strength_without_retrace(row, relaxed):
    chex.clear_trace_counter()
    if row.penalty is jp.l1:
        link = optax.inject_hyperparams(jp.add_penalty, static_args="penalty")(jp.l1, 0.1)
    else:
        link = optax.inject_hyperparams(row.make)(0.1)
    tx, params, grads = relaxed(link), weights(), gradients()
    state, update = tx.init(params), jax.jit(chex.assert_max_traces(tx.update, n=1))
    for strength in (0.1, 0.0, 3.0):
        state = optax.tree.set(state, strength=jnp.float32(strength))
        updates, state = update(grads, state, params)
        close(updates, pressed(row, grads, strength, params))


def test_inject_hyperparams_with_a_schedule(relaxed):
    row, params, grads = ROWS["hoyer_square"], weights(), gradients()
    schedule = optax.linear_schedule(0.0, 1.0, 2)
    tx = relaxed(optax.inject_hyperparams(jp.add_hoyer_square)(strength=schedule))
    state, update = tx.init(params), jax.jit(tx.update)
    for strength in (0.0, 0.5, 1.0, 1.0):
        updates, state = update(grads, state, params)
        close(updates, pressed(row, grads, strength, params))
        assert float(state.hyperparams["strength"]) == strength


def test_masked_and_partition_press_their_part():
    """What they hide from a link isn't pressed, and isn't missed."""
    row = ROWS["hoyer_square"]
    params = {"sparse": weights(), "other": gaussian(3, 3)}
    grads = {"sparse": gradients(), "other": jnp.ones((3, 3))}
    expected = {"sparse": pressed(row, grads["sparse"], 0.5, weights()), "other": jnp.ones((3, 3))}
    labels = {"sparse": True, "other": False}
    masked = optax.masked(row.make(0.5), labels)
    close(once(masked, grads, params), expected)
    parts = optax.partition({True: row.make(0.5), False: optax.identity()}, labels)
    close(once(parts, grads, params), expected)


def test_partition_of_two_penalties():
    params, grads = weights(), gradients()
    links = {name: ROWS[name].make(0.5) for name in ("hoyer_square", "group_hoyer_square")}
    labels = {"dense": "hoyer_square", "head": "group_hoyer_square"}
    updates = once(optax.partition(links, labels), grads, params)
    for part, name in labels.items():
        close(updates[part], pressed(ROWS[name], grads[part], 0.5, params[part]))


def test_multi_steps_press_once_for_each_whole_step(relaxed):
    """`optax.MultiSteps` multiplies booleans with floats: it is relaxed."""
    row = ROWS["hoyer_square"]
    params, grads = weights(), gradients()
    inner = optax.chain(row.make(lambda count: 0.5 + jnp.float32(count)), optax.sgd(0.1))
    tx = relaxed(optax.MultiSteps(inner, every_k_schedule=2))
    state, update = tx.init(params), jax.jit(tx.update)
    for micro in range(4):
        part = jax.tree.map(lambda g, f=0.5 + micro % 2: f * g, grads)
        updates, state = update(part, state, params)
        if micro % 2 == 0:
            chex.assert_trees_all_equal(updates, optax.tree.zeros_like(params))
        else:
            whole = pressed(row, grads, 0.5 + micro // 2, params)
            close(updates, jax.tree.map(lambda g: -0.1 * g, whole))
    assert int(optax.tree.get(state, "count")) == 2


def test_apply_if_finite_skips_nan_and_does_not_count_it():
    row, params, grads = ROWS["hoyer_square"], weights(), gradients()
    tx = optax.apply_if_finite(row.make(0.5), max_consecutive_errors=3)
    state, update = tx.init(params), jax.jit(tx.update)
    bad = jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), grads)
    updates, state = update(bad, state, params)
    chex.assert_trees_all_equal(updates, optax.tree.zeros_like(params))
    updates, state = update(grads, state, params)
    close(updates, pressed(row, grads, 0.5, params))
    assert int(optax.tree.get(state, "count")) == 1


def test_two_links_in_a_chain_add_up():
    params, grads = weights(), gradients()
    tx = optax.chain(jp.add_hoyer_square(0.5), jp.add_group_hoyer_square(0.25))
    expected = pressed(ROWS["hoyer_square"], grads, 0.5, params)
    close(once(tx, grads, params), pressed(ROWS["group_hoyer_square"], expected, 0.25, params))


# Loops, memory and precision ----------------------------------------------------------------------


def test_scan_and_donation_equal_a_loop():
    row = ROWS["hoyer_square"]
    tx = optax.chain(
        row.make(lambda count: 0.01 * jnp.float32(count)), optax.sgd(0.1, momentum=0.9)
    )
    expected = train(tx, weights())

    def step(carry, _=None):
        params, state = carry
        grads = jax.tree.map(lambda p: 0.1 * jnp.cos(3 * p), params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=4)[0], donate_argnums=0)
    start = weights()
    close(run((start, tx.init(start))), expected)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))


DTYPES = {
    "bfloat16_params_float32_grads": (jnp.bfloat16, jnp.float32),
    "bfloat16_params_bfloat16_grads": (jnp.bfloat16, jnp.bfloat16),
    "float32_params_bfloat16_grads": (jnp.float32, jnp.bfloat16),
    "float16_params_float16_grads": (jnp.float16, jnp.float16),
}


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
def test_mixed_precision_adds_in_float32_and_rounds_once(dtypes):
    row = ROWS["hoyer_square"]
    of_params, of_grads = dtypes
    params, grads = optax.tree.cast(weights(), of_params), optax.tree.cast(gradients(), of_grads)
    updates = once(row.make(0.25), grads, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, grads)
    wide = lambda tree: optax.tree.cast(tree, jnp.float32)
    expected = pressed(row, wide(grads), 0.25, wide(params))
    rounding = 1e-5 + float(jnp.finfo(of_grads).eps) / 2 * (of_grads != jnp.float32)
    chex.assert_trees_all_close(wide(updates), expected, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("name", ["hoyer_square", "group_hoyer_square"])
def test_a_step_needs_no_memory_for_the_pressure(name, relaxed_promotion):
    """XLA would write to memory what has a division, or is read by two reductions."""
    weights = [jnp.ones((256, 512)), jnp.ones((512, 512)), jnp.ones((512, 8))]

    def loss(weights):
        outputs = jnp.ones((4, 256))
        for matrix in weights:
            outputs = jax.nn.relu(outputs @ matrix)
        return outputs.sum()

    def temporaries(tx):
        def step(params, state):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(weights, tx.init(weights)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    adam = optax.adam(1e-3)
    extra = temporaries(optax.chain(ROWS[name].make(1e-4), adam)) - temporaries(adam)
    part = 0.1 if jax.__version_info__ >= (0, 12) else 0.4  # the XLA of JAX 0.9 needs a third
    assert extra < part * 4 * sum(leaf.size for leaf in weights)


# The flow -----------------------------------------------------------------------------------------


def test_twenty_gaussians_flow_to_their_largest():
    """Small weights cross zero with each step, so single steps may rise by the size of one."""
    steps = 20_000
    tx = optax.chain(jp.add_hoyer_square(1e-3), optax.sgd(1.0))

    @jax.jit
    @jax.vmap
    def flow(w):
        def step(carry, _):
            w, state = carry
            updates, state = tx.update(jnp.zeros_like(w), state, w)
            return (optax.apply_updates(w, updates), state), None

        def hundred(carry, _):
            seen = jp.hoyer_square(carry[0]), jp.trimming_point(carry[0])
            return jax.lax.scan(step, carry, length=100)[0], seen

        (w, _), seen = jax.lax.scan(hundred, (w, tx.init(w)), length=steps // 100)
        return w, *seen

    start = gaussian(4, 1, 20)
    end, values, points = map(np.asarray, flow(start))
    assert np.all(np.diff(values) < 1e-4)
    assert np.all(np.diff(points) > -1e-4 * points[:, 1:])
    np.testing.assert_allclose(values[:, -1], 1, atol=0.01)
    for before, after in zip(np.abs(start[:, 0]), np.abs(end[:, 0]), strict=True):
        assert np.argmax(after) == np.argmax(before)
        assert np.sort(after)[-2] < 0.01 < 1 < after.max()
