"""One table of links; every column is a way in which people use an optax transformation."""

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from orbax.checkpoint import v1 as ocp

import jaxprune as jp

# The table ----------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A link, the tree it updates, and what holds after `count` updates of it."""

    name: str
    make: Callable[[], optax.GradientTransformation]
    params: Callable[[], Any]
    holds: Callable[[Any, int], None]


def weights():
    """64 prunable weights in two kernels, and a bias that stays dense."""
    key = jax.random.key(0)
    return {
        "dense": {"kernel": jax.random.normal(key, (8, 4)), "bias": jnp.ones(4)},
        "head": {"kernel": 0.5 * jax.random.normal(key, (4, 8))},
    }


def probabilities():
    return jp.init_probabilities(weights(), value=0.5)


def logits():
    return jax.tree.map(jnp.zeros_like, probabilities())


def half_mask():
    return jp.top_k_mask(kernels(weights()), 32)


COSTS = {"dense": {"kernel": 1.0, "bias": None}, "head": {"kernel": 3.0}}  # 128 in all
SIZE = 64


def kernels(params):
    return {"dense": {**params["dense"], "bias": None}, "head": params["head"]}


def total(tree):
    return sum(np.asarray(leaf, np.float64).sum() for leaf in jax.tree.leaves(tree))


def pruned_are_zero(params, count):
    masked = jp.apply_mask(params, half_mask())
    chex.assert_trees_all_equal(params, masked)
    assert np.all(np.asarray(params["dense"]["bias"], np.float32) != 0)


def kept_exactly(kept: Callable[[int], int]):
    def holds(params, count):
        nonzero = jax.tree.map(lambda p: p != 0, kernels(params))
        assert jp.count(nonzero) == kept(count)
        assert np.all(np.asarray(params["dense"]["bias"], np.float32) != 0)

    return holds


def two_of_four(*axes):
    def holds(params, count):
        for kernel in jax.tree.leaves(kernels(params)):
            for axis in axes:
                groups = np.moveaxis(np.asarray(kernel) != 0, axis, 0).reshape(
                    -1, 4, kernel.shape[1 - axis]
                )
                assert np.all(groups.sum(1) == 2)
        assert np.all(np.asarray(params["dense"]["bias"], np.float32) != 0)

    return holds


def within_budget(budget: Callable[[int], float], costs=1.0):
    def holds(probs, count):
        for leaf in jax.tree.leaves(probs):
            assert np.all((leaf >= 0) & (leaf <= 1))
        rounding = 1e-6 if jax.tree.leaves(probs)[0].dtype == jnp.float32 else 2.0**-8
        price = costs if isinstance(costs, dict) else jax.tree.map(lambda p: costs, probs)
        spent = jax.tree.map(lambda p, c: c * np.asarray(p, np.float64), probs, price)
        assert total(spent) <= budget(count) * (1 + rounding)

    return holds


def expected_within_a_quarter(logits, count):
    probs = jax.tree.map(lambda a: jax.nn.sigmoid(np.asarray(a, np.float32)), logits)
    # Projected logits end at -10, which is a probability of 4.5e-5.
    rounding = 2e-4 if jax.tree.leaves(logits)[0].dtype == jnp.float32 else 2.0**-6
    assert total(probs) <= 0.25 * SIZE * (1 + rounding)


def rising_sparsity(step):
    return jnp.minimum(0.25 * step.astype(jnp.float32), 0.75)


def falling_density(step):
    return 1.0 - rising_sparsity(step)


def scheduled(count):
    """The density after `count` updates under the schedules above."""
    return 1 - min(0.25 * (count - 1), 0.75)


ROWS = [
    Row("keep_mask", lambda: jp.keep_mask(half_mask()), weights, pruned_are_zero),
    Row("top_k", lambda: jp.project_top_k(0.75), weights, kept_exactly(lambda count: 16)),
    Row(
        "top_k_schedule",
        lambda: jp.project_top_k(rising_sparsity),
        weights,
        kept_exactly(lambda count: round(SIZE * scheduled(count))),
    ),
    Row(
        "top_k_every_3",
        lambda: jp.project_top_k(0.75, every=3),
        weights,
        kept_exactly(lambda count: 16),
    ),
    Row("nm", lambda: jp.keep_nm(2, 4), weights, two_of_four(0)),
    Row(
        "transposable_every_3",
        lambda: jp.keep_transposable_nm(2, 4, every=3),
        weights,
        two_of_four(0, 1),
    ),
    Row(
        "straight_through",
        lambda: jp.straight_through(optax.identity(), jp.keep_nm(2, 4), decay=0.01),
        weights,
        two_of_four(0),
    ),
    Row(
        "probabilities",
        lambda: jp.project_probabilities(0.25),
        probabilities,
        within_budget(lambda count: 16),
    ),
    Row(
        "probabilities_schedule",
        lambda: jp.project_probabilities(falling_density),
        probabilities,
        within_budget(lambda count: SIZE * scheduled(count)),
    ),
    Row(
        "probabilities_costs",
        lambda: jp.project_probabilities(0.25, costs=COSTS),
        probabilities,
        within_budget(lambda count: 32, COSTS),
    ),
    Row("logits", lambda: jp.project_logits(0.25), logits, expected_within_a_quarter),
]
FAST = ("keep_mask", "top_k", "probabilities")
BY_NAME = {row.name: row for row in ROWS}
every_link = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
every_link_some_slow = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[pytest.mark.slow] * (row.name not in FAST))
        for row in ROWS
    ],
)
weight_links = pytest.mark.parametrize("row", ROWS[:7], ids=lambda row: row.name)
mask_links = pytest.mark.parametrize(
    "row", [BY_NAME["keep_mask"], BY_NAME["top_k"]], ids=lambda row: row.name
)


def target(leaf):
    return np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(leaf.dtype)


def distance(params):
    """A loss with the gradient params - target, the same bits on any number of devices."""
    return 0.5 * sum(jnp.sum((p - target(p)) ** 2) for p in jax.tree.leaves(params))


def step_of(tx, **extra_args):
    def step(params, state):
        updates, state = tx.update(jax.grad(distance)(params), state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    return step


def sgd_then(link):
    return optax.chain(optax.sgd(0.1, momentum=0.9), link)


def train(tx, params, steps=5):
    step, state = jax.jit(step_of(tx)), tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


# A step under jit ---------------------------------------------------------------------------------


@every_link
def test_link_optimizes_under_jit_without_retrace(row):
    chex.clear_trace_counter()
    tx, params = sgd_then(row.make()), row.params()
    state, start = tx.init(params), distance(params)
    step = jax.jit(chex.assert_max_traces(step_of(tx), n=1))
    for count in range(1, 13):
        params, state = step(params, state)
        row.holds(params, count)
    assert distance(params) < start or row.name == "logits"  # which end far away, at -10


@every_link
def test_link_keeps_structure_dtypes_and_shapes(row):
    params, link = row.params(), row.make()
    state = link.init(params)
    updates, new_state = link.update(jax.tree.map(jnp.ones_like, params), state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


@every_link
def test_link_needs_params(row):
    params, tx = row.params(), optax.chain(optax.sgd(0.1), row.make())
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params, tx.init(params))


@every_link_some_slow
def test_link_in_scan_equals_loop(row):
    tx, params = sgd_then(row.make()), row.params()
    scanned, _ = jax.jit(
        lambda carry: jax.lax.scan(lambda c, _: (step_of(tx)(*c), None), carry, None, length=5)[0]
    )((params, tx.init(params)))
    row.holds(scanned, 5)
    chex.assert_trees_all_close(scanned, train(tx, params)[0], atol=1e-6)


@every_link_some_slow
def test_link_under_vmap_trains_an_ensemble(row):
    tx, members = sgd_then(row.make()), [row.params(), jax.tree.map(jnp.sqrt, probabilities())]
    if row.params is weights:
        members[1] = jax.tree.map(lambda p: p + 0.25, weights())
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    state, step = jax.vmap(tx.init)(params), jax.jit(jax.vmap(step_of(tx)))
    for _ in range(5):
        params, state = step(params, state)
    for i, member in enumerate(members):
        one = jax.tree.map(lambda p, i=i: p[i], params)
        row.holds(one, 5)
        chex.assert_trees_all_close(one, train(tx, member)[0], atol=1e-6)


@every_link_some_slow
def test_link_with_donated_params_and_state(row):
    tx, params = sgd_then(row.make()), row.params()
    expected, _ = train(tx, params)
    step, state = jax.jit(step_of(tx), donate_argnums=(0, 1)), tx.init(params)
    first = params
    for _ in range(5):
        params, state = step(params, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    chex.assert_trees_all_equal(params, expected)


def test_keep_mask_leaves_the_users_mask_alive_when_state_is_donated():
    mask = half_mask()
    tx, params = sgd_then(jp.keep_mask(mask)), weights()
    state = tx.init(params)
    jax.block_until_ready(jax.jit(step_of(tx), donate_argnums=(0, 1))(params, state))
    assert jp.count(mask) == 32
    pruned_are_zero(train(tx, weights())[0], 5)


# bfloat16: `optax.apply_updates` itself adds float32 to bfloat16, so promotion is relaxed.


DTYPES = {
    "bfloat16_params_float32_grads": (jnp.bfloat16, jnp.float32),
    "bfloat16_params_bfloat16_grads": (jnp.bfloat16, jnp.bfloat16),
    "float32_params_bfloat16_grads": (jnp.float32, jnp.bfloat16),
}


@pytest.mark.usefixtures("relaxed_promotion")
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@every_link_some_slow
def test_link_in_mixed_precision(row, dtypes):
    of_params, of_grads = dtypes
    params = optax.tree.cast(row.params(), of_params)
    tx = optax.chain(optax.sgd(0.1), row.make())
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = optax.tree.cast(jax.grad(distance)(params), of_grads)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for count in range(1, 5):
        params, state = step(params, state)
        row.holds(params, count)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(of_params)}


@pytest.mark.usefixtures("relaxed_promotion")
def test_narrow_grads_leave_pruned_weights_exactly_zero_inside_apply_if_finite_outside():
    """The exact update -p of a float32 weight is float32, so `apply_if_finite` stands inside."""
    params = weights()
    tx = optax.chain(optax.apply_if_finite(optax.sgd(0.1), 3), jp.keep_mask(half_mask()))
    grads = optax.tree.cast(params, jnp.bfloat16)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    pruned_are_zero(optax.apply_updates(params, updates), 1)


# Other transformations around a link --------------------------------------------------------------


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
    "top_k": (jp.project_top_k, "sparsity", weights, lambda f: kept_exactly(lambda _: 64 - 64 * f)),
    "probabilities": (
        jp.project_probabilities,
        "density",
        probabilities,
        lambda f: within_budget(lambda _: 64 * f),
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
        inner = jp.project_probabilities(0.25, costs={"sparse": COSTS, "other": None})
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
        {"w": sgd_then(of_weights), "s": sgd_then(jp.project_probabilities(0.25))},
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
        {"w": optax.sgd(0.1), "s": sgd_then(jp.project_probabilities(0.25, costs=costs))},
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


# Every optimizer ----------------------------------------------------------------------------------

RATE_IS_ENOUGH = """
    adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars
    lbfgs lion nadam nadamw novograd optimistic_adam_v2 optimistic_gradient_descent polyak_sgd radam
    rmsprop rprop sgd sign_sgd signum sm3 yogi
    contrib.acprop contrib.ademamix contrib.adopt contrib.cocob contrib.dadapt_adamw contrib.dog
    contrib.dowg contrib.galore contrib.madgrad contrib.momo contrib.momo_adam contrib.muon
    contrib.prodigy contrib.schedule_free_adamw contrib.schedule_free_sgd
    contrib.simplified_ademamix contrib.sophia
"""

OTHER_ARGUMENTS = {
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=0),
    "contrib.mechanize": lambda: optax.contrib.mechanize(optax.sgd(0.1)),
    "contrib.sam": lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05)),
    "contrib.schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "contrib.reduce_on_plateau": lambda: optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau()
    ),
}

EXTRA_ARGS = {
    "lbfgs": ["value", "grad", "value_fn"],
    "polyak_sgd": ["value"],
    "contrib.momo": ["value"],
    "contrib.momo_adam": ["value"],
    "contrib.reduce_on_plateau": ["value"],
    "contrib.sophia": ["obj_fn"],
}

NOT_BEFORE_A_LINK = {
    "optimistic_adam": "deprecated by optax, which warns and names optimistic_adam_v2",
    "lookahead": "its updates are a pair of trees (fast, slow): a link stands inside, tested below",
    "contrib.dpsgd": "its gradients have an axis of examples that the parameters lack, so the "
    "gradients of chain's first link differ in shape from all others; tested below",
}


def optimizer(name):
    return getattr(optax_module(name), short(name))(0.1)


def optax_module(name):
    return optax.contrib if name.startswith("contrib.") else optax


def short(name):
    return name.removeprefix("contrib.")


# What optax 0.2.6, the oldest that is allowed, lacks.
NEWER = {"signum", "contrib.galore", "contrib.madgrad"}

OPTIMIZERS = {
    name: functools.partial(optimizer, name)
    for name in RATE_IS_ENOUGH.split()
    if name not in NEWER or hasattr(optax_module(name), short(name))
} | OTHER_ARGUMENTS


def test_no_optimizer_of_optax_is_forgotten():
    for prefix, module in [("", optax), ("contrib.", optax.contrib)]:
        for name, member in inspect.getmembers(module, inspect.isfunction):
            arguments = inspect.signature(member).parameters
            private = name.startswith(("_", "scale_by_"))
            if "learning_rate" in arguments and not private:
                assert prefix + name in OPTIMIZERS | NOT_BEFORE_A_LINK


LONG = ("lbfgs", "contrib.sophia")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        pytest.param(
            name,
            BY_NAME[row],
            id=f"{name}-{row}",
            marks=[pytest.mark.slow] * (name in LONG or (row == "top_k" and name != "adam")),
        )
        for name in OPTIMIZERS
        for row in ("keep_mask", "top_k")
    ],
)
def test_every_optimizer_of_optax(name, row, relaxed):
    """Not jitted as a whole, which would compile each of them anew."""
    params = row.params()
    tx = optax.chain(relaxed(OPTIMIZERS[name]()), row.make())
    state = tx.init(params)
    for count in range(1, 4):
        value, grads = jax.value_and_grad(distance)(params)
        asked = {"value": value, "grad": grads, "value_fn": distance, "obj_fn": distance}
        extra_args = {argument: asked[argument] for argument in EXTRA_ARGS.get(name, [])}
        updates, state = tx.update(grads, state, params, **extra_args)
        params = optax.apply_updates(params, updates)
        row.holds(params, count)


def test_keep_mask_inside_lookahead(relaxed):
    tx = relaxed(optax.lookahead(sgd_then(jp.keep_mask(half_mask())), 3, 0.5))
    pruned = jp.apply_mask(weights(), half_mask())
    params = optax.LookaheadParams.init_synced(pruned)
    state = tx.init(params)
    for _ in range(7):
        updates, state = tx.update(jax.grad(distance)(params.fast), state, params)
        params = optax.apply_updates(params, updates)
    pruned_are_zero(params.fast, 7)
    pruned_are_zero(params.slow, 7)


@pytest.mark.filterwarnings("ignore:.seed. is deprecated")  # dpsgd itself passes it on
@mask_links
def test_links_after_dpsgd(row, relaxed):
    params = row.params()
    tx = optax.chain(relaxed(optax.contrib.dpsgd(0.1, 1.0, 0.1, seed=0)), row.make())
    of_two_examples = jax.tree.map(lambda g: jnp.stack([g, g]), jax.grad(distance)(params))
    updates, _ = tx.update(of_two_examples, tx.init(params), params)
    row.holds(optax.apply_updates(params, updates), 1)


# Frameworks ---------------------------------------------------------------------------------------


@every_link_some_slow
def test_flax_train_state(row):
    state = TrainState.create(apply_fn=None, params=row.params(), tx=sgd_then(row.make()))
    step = jax.jit(lambda state: state.apply_gradients(grads=jax.grad(distance)(state.params)))
    for count in range(1, 5):
        state = step(state)
        row.holds(state.params, count)


class Perceptron(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(4, 8, use_bias=False, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.head(jax.nn.tanh(self.dense(x)))


def fit(model):
    x = jax.random.normal(jax.random.key(0), (16, 8))
    return jnp.mean((model(x) - x) ** 2)


def nnx_links(params):
    mask = jp.top_k_mask(jax.tree.map(jnp.abs, jp_kernels(params)), 16)
    return {
        "keep_mask": jp.keep_mask(mask),
        "top_k": jp.project_top_k(0.75),
        "top_k_every_3": jp.project_top_k(0.75, every=3, where="kernel"),
    }


def jp_kernels(params):
    """The prunable leaves of any tree of parameters, None elsewhere."""
    return jax.tree.map(lambda p, m: None if m is None else p, params, jp.prunable(params))


as_pure = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure  # its name in Flax 0.12.0


@pytest.mark.parametrize("name", ["keep_mask", "top_k", "top_k_every_3"])
def test_nnx_optimizer(name):
    model = Perceptron()
    tx = sgd_then(nnx_links(nnx.state(model, nnx.Param))[name])
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(fit)(model)
        optimizer.update(model, grads)
        return loss

    losses = [step(model, optimizer) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert float(jp.sparsity(nnx.state(model, nnx.Param))) == 0.75
    assert jp.count(as_pure(optax.tree.get(optimizer.opt_state, "mask"))) == 16


@pytest.mark.parametrize("name", ["keep_mask", "top_k", "top_k_every_3"])
def test_nnx_state_as_params(name):
    graphdef, params = nnx.split(Perceptron(), nnx.Param)
    tx = sgd_then(nnx_links(params)[name])
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(lambda p: fit(nnx.merge(graphdef, p)))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for _ in range(20):
        params, state, loss = step(params, state)
        losses.append(loss)
    assert losses[-1] < losses[0]
    assert float(jp.sparsity(params)) == 0.75
    assert jp.count(optax.tree.get(state, "mask")) == 16


@pytest.mark.parametrize("name", ["keep_mask", "top_k", "top_k_every_3"])
def test_equinox(name):
    model = eqx.nn.MLP(8, 8, 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    links = nnx_links(params) | {"top_k_every_3": jp.project_top_k(0.75, every=3, where="weight")}
    tx = sgd_then(links[name])
    state = tx.init(params)

    @eqx.filter_jit
    def step(params, state):
        loss, grads = jax.value_and_grad(lambda p: fit(jax.vmap(eqx.combine(p, static))))(params)
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(params, updates), state, loss

    losses = []
    for _ in range(20):
        params, state, loss = step(params, state)
        losses.append(loss)
    assert losses[-1] < losses[0]
    assert float(jp.sparsity(params)) == 0.75
    assert jp.count(optax.tree.get(state, "mask")) == 16


# Meshes -------------------------------------------------------------------------------------------


def sharded(tree, mesh):
    """Kernels over both axes of the mesh, the bias over one."""
    spec = lambda leaf: jax.P("x", "y") if leaf.ndim == 2 else jax.P("y")
    put = lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec(leaf)))
    return jax.tree.map(put, tree)


def shardings(tree):
    """Where every array lies: masks like the parameters, from `init` on."""
    return [(leaf.shape, leaf.dtype, leaf.sharding) for leaf in jax.tree.leaves(tree) if leaf.ndim]


every_kind_of_mesh = pytest.mark.parametrize(
    "kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"]
)


@every_kind_of_mesh
@every_link_some_slow
def test_link_on_a_mesh_equals_one_device(row, kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    params, link = sharded(row.params(), mesh), row.make()
    if row.name == "keep_mask":
        link = jp.keep_mask(sharded(half_mask(), mesh))
    tx = sgd_then(link)
    expected, expected_state = train(tx, row.params())
    step, state = jax.jit(step_of(tx)), tx.init(params)
    before = shardings(params), shardings(state)
    for _ in range(5):
        params, state = step(params, state)
        assert (shardings(params), shardings(state)) == before
    chex.assert_trees_all_equal(params, expected)
    chex.assert_trees_all_equal(state, expected_state)


@every_kind_of_mesh
def test_keep_mask_takes_an_unsharded_mask(kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    params, _ = train(sgd_then(jp.keep_mask(half_mask())), sharded(weights(), mesh))
    pruned_are_zero(params, 5)


# Checkpoints --------------------------------------------------------------------------------------


@every_link_some_slow
def test_orbax_resumes_bit_for_bit(row, tmp_path):
    tx, params = sgd_then(row.make()), row.params()
    saved = train(tx, params, steps=2)
    ocp.save(tmp_path / "step", {"params": saved[0], "state": saved[1]})
    abstract = jax.eval_shape(lambda: {"params": params, "state": tx.init(params)})
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
    loaded = ocp.load(tmp_path / "step", jax.tree.map(place, abstract))
    chex.assert_trees_all_equal((loaded["params"], loaded["state"]), saved)
    step = jax.jit(step_of(tx))
    resumed, straight = (loaded["params"], loaded["state"]), saved
    for _ in range(4):
        resumed, straight = step(*resumed), step(*straight)
    chex.assert_trees_all_equal(resumed, straight)
    chex.assert_trees_all_equal(straight[0], train(tx, params, steps=6)[0])


# The state ----------------------------------------------------------------------------------------

NESTINGS = {
    "chain": lambda link: optax.chain(optax.clip(1.0), optax.chain(optax.sgd(0.1), link)),
    "multi_steps": lambda link: optax.MultiSteps(sgd_then(link), 2),
    "partition": lambda link: optax.partition({"all": sgd_then(link)}, "all"),
    "masked": lambda link: optax.masked(sgd_then(link), True),
    "apply_if_finite": lambda link: optax.apply_if_finite(sgd_then(link), 3),
    "inject_hyperparams": lambda link: optax.inject_hyperparams(
        lambda learning_rate: optax.chain(optax.sgd(learning_rate), link)
    )(0.1),
    "named_chain": lambda link: optax.named_chain(("sgd", optax.sgd(0.1)), ("prune", link)),
}


@pytest.mark.parametrize("nesting", NESTINGS)
@weight_links
def test_mask_is_found_in_nested_state(row, nesting):
    params = weights()
    state = NESTINGS[nesting](row.make()).init(params)
    mask = optax.tree.get(state, "mask")
    assert jax.tree.structure(mask) == jax.tree.structure(kernels(params))
    assert {leaf.dtype for leaf in jax.tree.leaves(mask)} == {jnp.dtype(bool)}


# What a mask update may cost: only the choice of the mask is conditional --------------


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from equations(getattr(inner, "jaxpr", inner))


def test_only_the_mask_is_computed_in_a_cond(relaxed):
    tx, params = optax.chain(relaxed(optax.adam(0.1)), jp.project_top_k(0.75, every=3)), weights()
    jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params), params)
    conds = [e for e in equations(jaxpr.jaxpr) if e.primitive.name == "cond"]
    outputs = [out.aval for cond in conds for out in cond.outvars]
    whole = [aval for aval in outputs if aval.size > 1]
    assert {(aval.shape, aval.dtype) for aval in whole} == {
        ((4, 8), jnp.dtype(bool)),
        ((8, 4), jnp.dtype(bool)),
    }


def test_count_is_exact_when_xla_fuses_scores_with_what_comes_before():
    """A score that is calculated twice, once with and once without FMA, would miss its own cut."""
    tx = optax.chain(optax.sgd(0.1), jp.project_top_k(0.5))

    @jax.jit
    def step(params, grads):
        updates, _ = tx.update(grads, tx.init(params), params)
        return jnp.count_nonzero(optax.apply_updates(params, updates))

    for seed in range(100):
        params, grads = jax.random.normal(jax.random.key(seed), (2, 32, 64))
        assert int(step(params, grads)) == 1024


def test_a_pruned_weight_returns_only_when_the_mask_is_chosen_anew():
    link = jp.project_top_k(0.75, every=3)
    params = jax.tree.map(jnp.copy, weights())
    update, state, masks = jax.jit(link.update), link.init(params), []
    for step in range(7):
        noise = jax.tree.map(
            lambda p, step=step: jax.random.normal(jax.random.key(step), p.shape), params
        )
        updates, state = update(noise, state, params)
        params = optax.apply_updates(params, updates)
        masks.append(np.concatenate([m.ravel() for m in jax.tree.leaves(state.mask)]))
    changed = [bool(np.any(a != b)) for a, b in itertools.pairwise(masks)]
    assert changed == [False, False, True, False, False, True]
