"""Links of the table in Flax and Equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jaxprune as jp
from tests.methods.link_table import (
    distance,
    every_link_some_slow,
    sgd_then,
)


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
        "top_k": jp.keep_sparse(0.75),
        "top_k_every_3": jp.keep_sparse(0.75, every=3, where="kernel"),
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


def check_training(step, params, state):
    losses = []
    for _ in range(20):
        params, state, loss = step(params, state)
        losses.append(loss)
    assert losses[-1] < losses[0]
    assert float(jp.sparsity(params)) == 0.75
    assert jp.count(optax.tree.get(state, "mask")) == 16


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

    check_training(step, params, state)


@pytest.mark.parametrize("name", ["keep_mask", "top_k", "top_k_every_3"])
def test_equinox(name):
    model = eqx.nn.MLP(8, 8, 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    links = nnx_links(params) | {"top_k_every_3": jp.keep_sparse(0.75, every=3, where="weight")}
    tx = sgd_then(links[name])
    state = tx.init(params)

    @eqx.filter_jit
    def step(params, state):
        loss, grads = jax.value_and_grad(lambda p: fit(jax.vmap(eqx.combine(p, static))))(params)
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(params, updates), state, loss

    check_training(step, params, state)
