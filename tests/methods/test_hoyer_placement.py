"""DeepHoyer's links with the trees of all frameworks, and on meshes."""

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxprune as jp
from tests.methods.penalty_table import (
    assert_nothing_is_gathered,
    both,
    close,
    every_kind_of_mesh,
    gaussian,
    gradients,
    main_links,
    once,
    pressed,
    sharded,
    weights,
)


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
