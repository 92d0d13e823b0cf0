"""`regrow` on trees of all kinds, inside and around optax's transformations, and on meshes."""

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

import jaxprune as jp
from tests.methods.link_table import distance, step_of
from tests.methods.regrow_checks import check_zero, falling, mask_of, pruned, some_slow
from tests.methods.test_links_frameworks import as_pure
from tests.methods.test_links_optimizers import EXTRA_ARGS, OPTIMIZERS
from tests.methods.test_links_placement import sharded, shardings

# Trees --------------------------------------------------------------------------------------------


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.Dense(8)(x))


class Nnx(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
        self.blocks = nnx.List([nnx.Linear(8, 4, rngs=nnx.Rngs(1))])


TREES = {
    "nnx": lambda: nnx.state(Nnx(), nnx.Param),
    "linen": lambda: Linen().init(jax.random.key(0), jnp.ones((1, 4))),
    "equinox": lambda: eqx.filter(eqx.nn.MLP(4, 4, 8, 1, key=jax.random.key(0)), eqx.is_array),
    "tuples": lambda: ((jnp.ones((4, 8)), jnp.ones(8)), [jnp.ones((8, 4)), jnp.ones((8, 4))]),
    "array": lambda: jnp.ones((8, 4)),
}


@pytest.mark.parametrize("tree", some_slow(TREES, "equinox", "tuples"))
def test_trees(tree, relaxed):
    params, mask = pruned(params=tree())
    tx = jp.regrow(relaxed(optax.adam(0.1)), mask, every=2)
    chex.clear_trace_counter()
    state, step = tx.init(params), jax.jit(chex.assert_max_traces(step_of(tx), n=1))
    for _ in range(5):
        params, state = step(params, state)
        check_zero(params, state, mask)
        moment = optax.tree.get(state, "mu")
        chex.assert_trees_all_equal(moment, jp.apply_mask(moment, mask_of(state)))
    assert not np.array_equal(jax.tree.leaves(mask)[0], jax.tree.leaves(mask_of(state))[0])


def test_nnx_optimizer():
    model = Nnx()
    params, mask = pruned(params=nnx.state(model, nnx.Param))
    nnx.update(model, params)
    with jax.numpy_dtype_promotion("standard"):
        optimizer = nnx.Optimizer(model, jp.regrow(optax.adam(0.1), mask, every=2), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            loss = lambda model: jnp.sum((model.blocks[0](model.first(jnp.ones((1, 4)))) - 1) ** 2)
            optimizer.update(model, nnx.grad(loss)(model))

        for _ in range(4):
            step(model, optimizer)
    now = nnx.state(model, nnx.Param)
    assert jp.count(as_pure(optax.tree.get(optimizer.opt_state, "mask"))) == jp.count(mask)
    assert float(jp.sparsity(now)) >= 0.5


# Other transformations ----------------------------------------------------------------------------

BY_NAME = dict(zip(OPTIMIZERS, OPTIMIZERS, strict=True))


@pytest.mark.parametrize("name", some_slow(BY_NAME, "adafactor", "rprop"))
def test_every_optimizer_of_optax(name, relaxed):
    params, first = pruned()
    tx = relaxed(jp.regrow(OPTIMIZERS[name](), first, every=2, fraction=0.5))
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=2 if name == "lbfgs" else 1)  # that of optax by itself needs two
    def step(params, state):
        value, grads = jax.value_and_grad(distance)(params)
        asked = {"value": value, "grad": grads, "value_fn": distance, "obj_fn": distance}
        extra_args = {argument: asked[argument] for argument in EXTRA_ARGS.get(name, [])}
        updates, state = tx.update(grads, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for count in range(4):
        before = mask_of(state)
        params, state = step(params, state)
        check_zero(params, state, first)
        chex.assert_tree_all_finite(params)
        if count == 2:
            grown = jax.tree.map(lambda old, new: new & ~old, before, mask_of(state))
            assert jp.count(grown) > 0
    assert np.all(params["dense"]["bias"] != 0)


LABELS = {"dense": {"kernel": "a", "bias": "b"}, "head": {"kernel": "a"}}
AROUND = {
    "chain": lambda link, mask: optax.chain(optax.clip(1.0), link(mask)),
    "apply_if_finite": lambda link, mask: optax.apply_if_finite(link(mask), 3),
    "masked": lambda link, mask: optax.chain(
        optax.masked(link(mask), {"dense": {"kernel": True, "bias": False}, "head": True}),
    ),
    "partition": lambda link, mask: optax.partition({"a": link(mask), "b": optax.sgd(0.1)}, LABELS),
    "MultiSteps": lambda link, mask: optax.MultiSteps(link(mask), 2).gradient_transformation(),
    "inject_hyperparams": lambda link, mask: optax.inject_hyperparams(
        lambda fraction: link(mask, fraction)
    )(fraction=falling(0.5, 100)),
}
INSIDE = {
    "chain": lambda: optax.chain(
        optax.add_decayed_weights(0.01), optax.trace(0.9), optax.scale(-0.1)
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "masked": lambda: optax.chain(
        optax.masked(optax.adam(0.1), {"dense": True, "head": False}), optax.scale(0.1)
    ),
    "partition": lambda: optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1)}, LABELS),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(
        optax.cosine_decay_schedule(0.1, 9)
    ),
    "ema": lambda: optax.chain(optax.sgd(0.1), optax.ema(0.9)),
}


def check_training(tx, mask, params, steps=6):
    chex.clear_trace_counter()
    state, step = tx.init(params), jax.jit(chex.assert_max_traces(step_of(tx), n=1))
    for _ in range(steps):
        params, state = step(params, state)
        check_zero(params, state, mask)
    assert not np.array_equal(mask["head"]["kernel"], mask_of(state)["head"]["kernel"])
    assert np.all(params["dense"]["bias"] != 1)
    return params, state


@pytest.mark.parametrize("around", some_slow(AROUND, "partition", "inject_hyperparams"))
def test_inside_other_transformations(around, relaxed):
    params, mask = pruned()
    adam = optax.adam(0.1)
    link = lambda mask, fraction=0.5: jp.regrow(adam, mask, every=2, fraction=fraction)
    check_training(relaxed(around(link, mask)), mask, params)


@pytest.mark.parametrize("inside", some_slow(INSIDE, "partition", "MultiSteps"))
def test_around_other_transformations(inside, relaxed):
    params, mask = pruned()
    tx = jp.regrow(relaxed(inside()), mask, every=2, fraction=0.5)
    _, state = check_training(tx, mask, params)
    moments = optax.tree.get_all_with_path(state, "mu") + optax.tree.get_all_with_path(state, "ema")
    for _, moment in moments:
        for got, keep in zip(
            jax.tree.leaves(moment), jax.tree.leaves(mask_of(state)), strict=False
        ):
            if got.shape == keep.shape:
                assert np.all(np.asarray(got)[~np.asarray(keep)] == 0)


def test_multi_steps_changes_by_accumulated_gradients(relaxed):
    params, mask = pruned()
    tx = jp.regrow(optax.sgd(0.1), mask, every=1, fraction=0.5)
    multi = relaxed(optax.MultiSteps(tx, 2))
    grads = [jax.grad(distance)(params), jax.tree.map(jnp.cos, params)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    state, whole = multi.init(params), tx.init(params)
    for _ in range(2):
        for grad in grads:
            _, state = multi.update(grad, state, params)
        _, whole = tx.update(mean, whole, params)
    chex.assert_trees_all_equal(mask_of(state), mask_of(whole))


def test_fraction_and_every_may_be_traced():
    params, mask = pruned()
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, fraction, every):
        tx = jp.regrow(optax.sgd(0.1), mask, every=every, fraction=fraction)
        updates, state = tx.update(jax.grad(distance)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = jp.regrow(optax.sgd(0.1), mask).init(params)
    changes = []
    for fraction, every in [(0.5, 2), (0.5, 2), (0.5, 3), (0.25, 3), (0.0, 1)]:
        before = mask_of(state)
        params, state = step(params, state, fraction, every)
        check_zero(params, state, mask)
        changes.append(jp.count(jax.tree.map(lambda a, b: a & ~b, before, mask_of(state))) > 0)
    assert changes == [False, False, False, True, False]


NARROW = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}


@pytest.mark.parametrize("dtype", some_slow(NARROW, "bfloat16"))
def test_narrow_dtypes(dtype, relaxed):
    params, mask = pruned(dtype=dtype)
    tx = jp.regrow(relaxed(optax.adam(0.1)), mask, every=2)
    params, _ = check_training(tx, mask, params)
    assert params["head"]["kernel"].dtype == dtype


# Meshes -------------------------------------------------------------------------------------------


MESHES = {
    f"{name}-{by}": (kind, by)
    for name, kind in (("auto", AxisType.Auto), ("explicit", AxisType.Explicit))
    for by in ("gradient", "random")
}


@pytest.mark.parametrize("case", some_slow(MESHES, "explicit-random"))
def test_on_a_mesh_it_equals_one_device(case):
    kind, by = case
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    found = []
    for place in (lambda tree: tree, lambda tree: sharded(tree, mesh)):
        params, mask = map(place, pruned())
        inner = optax.sgd(0.1, momentum=0.9)
        tx = jp.regrow(inner, mask, by=by, every=2, key=jax.random.key(0))
        step, state = jax.jit(step_of(tx)), tx.init(params)
        before = shardings(params), shardings(state)
        for _ in range(5):
            params, state = step(params, state)
            assert (shardings(params), shardings(state)) == before
        found.append((params, state))
    chex.assert_trees_all_equal(*found)
