"""DeepHoyer's links in the ways people use optax transformations, its flow, and its threshold."""

import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import chex
import equinox as eqx
import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding

import jaxprune as jp
from jaxprune.methods import hoyer


def gaussian(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def weights():
    return {
        "dense": {"kernel": gaussian(8, 4), "bias": jnp.ones(4)},
        "head": [gaussian(4, 8, seed=1)],
    }


def kernels(params):
    """The leaves that the links press, None elsewhere."""
    return jax.tree.map(lambda p: p if p.ndim == 2 else None, params)


def gradients():
    return jax.tree.map(lambda p: jnp.cos(3 * p), weights())


class Row(NamedTuple):
    """A link of any strength, and the penalty that it stands for."""

    make: Callable[..., optax.GradientTransformation]
    penalty: Callable


lasso = functools.partial(jp.group_lasso, axis="outputs")
both = functools.partial(jp.group_hoyer_square, axis=("inputs", "outputs"))
ROWS = {
    "hoyer_square": Row(jp.add_hoyer_square, jp.hoyer_square),
    "normalized": Row(
        functools.partial(jp.add_hoyer_square, normalized=True),
        functools.partial(jp.hoyer_square, normalized=True),
    ),
    "group_hoyer_square": Row(jp.add_group_hoyer_square, both),
    "group_hoyer_square of columns": Row(
        functools.partial(jp.add_group_hoyer_square, axis=(0,), normalized=True),
        functools.partial(jp.group_hoyer_square, axis="outputs", normalized=True),
    ),
    "l1": Row(functools.partial(jp.add_penalty, jp.l1), jp.l1),
    "transformed_l1": Row(functools.partial(jp.add_penalty, jp.transformed_l1), jp.transformed_l1),
    "group_lasso": Row(functools.partial(jp.add_penalty, lasso), lasso),
}
every_link = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
MAIN = ("hoyer_square", "group_hoyer_square", "l1")
main_links = pytest.mark.parametrize("row", [ROWS[name] for name in MAIN], ids=MAIN)


@functools.cache
def pressure(penalty):
    """The gradient of a penalty, zero where a leaf isn't pressed."""

    def gradient(params):
        of_kernels = jax.grad(penalty)(kernels(params))
        fill = lambda p, g: jnp.zeros_like(p) if g is None else g
        return jax.tree.map(fill, params, of_kernels)

    return jax.jit(gradient)


def pressed(row, grads, strength, params):
    add = lambda g, h: g + jnp.float32(strength) * h
    return jax.tree.map(add, grads, pressure(row.penalty)(params))


def once(tx, grads, params):
    return jax.jit(tx.update)(grads, tx.init(params), params)[0]


def train(tx, params, steps=4):
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda p: 0.1 * jnp.cos(3 * p), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


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
    assert extra < 0.1 * 4 * sum(leaf.size for leaf in weights)


# Frameworks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tree",
    [[gaussian(3, 4), jnp.ones(4)], (gaussian(3, 4), [None, {"bias": jnp.ones(4)}])],
    ids=["list", "tuple"],
)
def test_plain_trees(tree):
    zeros = optax.tree.zeros_like(tree)
    updates = once(jp.add_hoyer_square(1.0), zeros, tree)
    assert jax.tree.structure(updates) == jax.tree.structure(tree)
    close(updates[0], jax.grad(jp.hoyer_square)(tree[0]))
    chex.assert_trees_all_equal(updates[1], zeros[1])


class Perceptron(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(4, 8, use_bias=False, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.head(jax.nn.tanh(self.dense(x)))


def fit(model):
    x = gaussian(16, 8, seed=2)
    return jnp.mean((model(x) - x) ** 2)


def total(params):
    """Group Hoyer-Square of the kernels of any tree."""
    pruned = jp.prunable(params)
    return float(both(jax.tree.map(lambda p, m: None if m is None else p, params, pruned)))


def links():
    return optax.chain(jp.add_group_hoyer_square(0.2), optax.sgd(0.1))


def test_nnx_optimizer():
    model = Perceptron()
    optimizer = nnx.Optimizer(model, links(), wrt=nnx.Param)
    start = total(nnx.state(model, nnx.Param))

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(fit)(model))

    for _ in range(20):
        step(model, optimizer)
    assert total(nnx.state(model, nnx.Param)) < 0.8 * start
    assert np.all(np.isfinite(model.dense.kernel[...]))


def test_nnx_state_equals_pure_dict():
    state = nnx.state(Perceptron(), nnx.Param)
    pure = nnx.to_pure_dict(state)
    link = jp.add_group_hoyer_square(1.0)
    updates = once(link, optax.tree.zeros_like(state), state)
    close(nnx.to_pure_dict(updates), once(link, optax.tree.zeros_like(pure), pure))
    assert jax.tree.structure(updates) == jax.tree.structure(state)


def test_linen_train_state():
    model = nn.Dense(4)
    params = model.init(jax.random.key(0), gaussian(2, 8))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=links())
    x = gaussian(2, 8)
    loss = lambda params: jnp.mean(state.apply_fn(params, x) ** 2)
    step = jax.jit(lambda state: state.apply_gradients(grads=jax.grad(loss)(state.params)))
    for _ in range(20):
        state = step(state)
    assert total(state.params) < 0.8 * total(params)


def test_equinox():
    model = eqx.nn.MLP(8, 8, 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    tx = links()
    start, state = total(params), tx.init(params)

    @eqx.filter_jit
    def step(params, state):
        grads = jax.grad(lambda p: fit(jax.vmap(eqx.combine(p, static))))(params)
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(params, updates), state

    for _ in range(20):
        params, state = step(params, state)
    assert total(params) < 0.8 * start


# Meshes -------------------------------------------------------------------------------------------

every_kind_of_mesh = pytest.mark.parametrize(
    "kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"]
)


def sharded(tree, kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    spec = lambda leaf: jax.P("x", "y") if leaf.ndim == 2 else jax.P("y")
    return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec(leaf))), tree)


def assert_nothing_is_gathered(compiled):
    collectives = r"all-gather|all-to-all|collective-permute|collective-broadcast"
    assert not re.search(rf"({collectives})(-start)?\(", compiled.as_text())


@every_kind_of_mesh
@main_links
def test_link_on_a_mesh_equals_one_device(row, kind):
    params, grads = sharded(weights(), kind), sharded(gradients(), kind)
    link = row.make(0.25)
    compiled = jax.jit(link.update).lower(grads, link.init(params), params).compile()
    updates, _ = compiled(grads, link.init(params), params)
    close(updates, pressed(row, gradients(), 0.25, weights()), rtol=1e-6)
    for update, param in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        assert update.sharding.is_equivalent_to(param.sharding, param.ndim)
    assert_nothing_is_gathered(compiled)


@every_kind_of_mesh
@pytest.mark.parametrize("axis", ["outputs", ("inputs", "outputs")], ids=str)
def test_threshold_on_a_mesh_equals_one_device(axis, kind):
    params = sharded(weights(), kind)
    choose = jax.jit(lambda params: jp.threshold_mask(params, jp.trimming_point, axis=axis))
    compiled = choose.lower(params).compile()
    mask = compiled(params)
    chex.assert_trees_all_equal(mask, choose(weights()))
    for keep, leaf in zip(jax.tree.leaves(mask), jax.tree.leaves(kernels(params)), strict=True):
        assert keep.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
    assert_nothing_is_gathered(compiled)


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


# threshold_mask -----------------------------------------------------------------------------------

NORMAL = st.floats(-3, 3, width=32, allow_subnormal=False)  # the others are zero to XLA on CPUs
matrices = st.lists(st.sampled_from([0.0, -0.0, 0.5, -0.5]) | NORMAL, min_size=12, max_size=12).map(
    lambda values: np.reshape(np.asarray(values, np.float32), (3, 4))
)
of_numbers = jax.jit(lambda w, limit: jp.threshold_mask({"w": w}, limit)["w"])
of_columns = jax.jit(lambda w, limit: jp.threshold_mask({"w": w}, limit, axis="outputs")["w"])


@hypothesis.settings(max_examples=80)
@hypothesis.given(
    matrices,
    st.sampled_from([0.0, 0.5, 1e-3, 10.0]) | st.floats(0, 3, width=32, allow_subnormal=False),
)
def test_mask_of_a_number_equals_numpy(w, limit):
    expected = (np.abs(w) >= limit) & (w != 0)
    np.testing.assert_array_equal(of_numbers(w, np.float32(limit)), expected)


@hypothesis.settings(max_examples=50)
@hypothesis.given(matrices, st.floats(0, 5, width=32, allow_subnormal=False))
def test_mask_of_columns_equals_numpy(w, limit):
    norm = np.linalg.norm(w.astype(float), axis=0)
    kept = np.asarray(of_columns(w, np.float32(limit)))
    assert np.all(kept == kept[0])
    clear = (np.abs(norm - limit) > 1e-5) & ((norm == 0) | (norm > 1e-15))
    np.testing.assert_array_equal(kept[0][clear], ((norm >= limit) & (norm != 0))[clear])


def of_leaves(params, choose):
    return jax.tree.map(lambda w: None if w.ndim < 2 else choose(np.asarray(w)), params)


LIMITS = {
    "multiple of the deviation": (lambda w: 0.5 * jnp.std(w), lambda w: 0.5 * np.std(w)),
    "trimming point": (jp.trimming_point, lambda w: np.sum(w * w) / np.sum(np.abs(w))),
    "number": (0.3, lambda w: 0.3),
    "integer": (1, lambda w: 1),
}


@pytest.mark.parametrize(("limit", "expected"), LIMITS.values(), ids=LIMITS)
def test_each_leaf_has_its_own_threshold(limit, expected):
    params = weights() | {"small": 0.01 * gaussian(5, 5, seed=3)}
    mask = jp.threshold_mask(params, limit)
    jitted = jax.jit(lambda params: jp.threshold_mask(params, limit))(params)
    chex.assert_trees_all_equal(mask, of_leaves(params, lambda w: np.abs(w) >= expected(w)))
    chex.assert_trees_all_equal(jitted, mask)


def test_threshold_of_groups_gets_their_norms():
    seen = []

    def limit(norms):
        seen.append((norms.shape, norms.dtype))
        return jnp.mean(norms)

    params = {"kernel": gaussian(3, 3, 5, 7).astype(jnp.bfloat16)}
    mask = jp.threshold_mask(params, limit, axis=("inputs", "outputs"))["kernel"]
    assert seen == [((1, 1, 5, 1), jnp.float32), ((1, 1, 1, 7), jnp.float32)]
    w = np.asarray(params["kernel"], np.float64)
    channels, filters = (np.sqrt((w * w).sum(axis)) for axis in ((0, 1, 3), (0, 1, 2)))
    alive = np.outer(channels >= channels.mean(), filters >= filters.mean())
    assert 0 < alive.sum() < alive.size
    np.testing.assert_array_equal(mask, np.broadcast_to(alive, w.shape))


@pytest.mark.parametrize("axis", [None, "outputs", (0,), ("inputs", "outputs")], ids=str)
def test_zeros_are_pruned_at_threshold_zero(axis):
    params = {"kernel": jnp.array([[0.0, 3.0], [-0.0, 1e-30]])}
    mask = jp.threshold_mask(params, 0.0, axis=axis)["kernel"]
    assert mask.tolist() == [[False, True], [False, True]]


def test_a_tiny_group_is_not_a_zero_group():
    params = {"kernel": jnp.array([[1e-25, 3.0], [2e-25, 4.0]])}
    assert jnp.all(jp.threshold_mask(params, 0.0, axis="outputs")["kernel"])
    chosen = jp.threshold_mask(params, 1e-25, axis="outputs")["kernel"]
    assert jnp.all(chosen)


def test_where_chooses_the_leaves_of_the_mask():
    mask = jp.threshold_mask(weights(), 0.1, where="head")
    assert jax.tree.map(jnp.shape, mask) == {
        "dense": {"kernel": None, "bias": None},
        "head": [(4, 8)],
    }
    with pytest.raises(ValueError, match="no leaf can be pruned"):
        jp.threshold_mask(weights(), 0.1, where="absent")


def test_narrow_weights_are_compared_in_float32():
    """0.1 in bfloat16 is more than 0.1."""
    params = {"kernel": jnp.array([[0.1, 0.0996]], jnp.bfloat16)}
    assert jp.threshold_mask(params, 0.1)["kernel"].tolist() == [[True, False]]
    assert jp.threshold_mask(params, 0.1002)["kernel"].tolist() == [[False, False]]


def test_nan_is_named():
    params = weights()
    params["head"][0] = params["head"][0].at[1, 2].set(jnp.nan)
    for axis in (None, "outputs"):
        with pytest.raises(ValueError, match="leaf 'head/0' holds NaN"):
            jp.threshold_mask(params, 0.1, axis=axis)


def test_mask_with_nnx_state():
    state = nnx.state(Perceptron(), nnx.Param)
    mask = jp.threshold_mask(state, jp.trimming_point)
    pruned = jp.apply_mask(state, mask)
    assert float(jp.sparsity(pruned)) == pytest.approx(1 - jp.count(mask) / 64)


def test_fine_tuning_keeps_zeros_at_zero(relaxed):
    """An old momentum would revive what the threshold prunes."""
    adam = relaxed(optax.adam(0.1))
    trained, _ = train(adam, weights())
    mask = jp.threshold_mask(trained, lambda w: 0.8 * jnp.std(w))
    params = jp.apply_mask(trained, mask)
    assert 0 < jp.count(mask) < 64
    tuned, _ = train(optax.chain(relaxed(optax.adam(0.1)), jp.keep_mask(mask)), params, steps=6)
    chex.assert_trees_all_equal(tuned, jp.apply_mask(tuned, mask))
    nonzero = jax.tree.map(lambda w: w != 0, kernels(tuned))
    chex.assert_trees_all_equal(nonzero, mask)
    assert np.all(np.asarray(tuned["dense"]["bias"] != params["dense"]["bias"]))
