"""Trainable thresholds against the equations in numpy, and in training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.methods.link_table import weights


def slope(x):
    x = abs(x)
    return np.select([x <= 0.4, x <= 1], [2 - 4 * x, 0.4], 0.0)


def test_values_and_gradients_are_those_of_the_paper():
    draw = np.random.default_rng(0).normal
    weight, threshold, incoming = draw(size=(6, 4)), abs(draw(size=(1, 4))), draw(size=(6, 4))
    x = abs(weight) - threshold
    step = (x > 0).astype(float)
    pull = jax.vjp(jp.above_thresholds, jnp.float32(weight), jnp.float32(threshold))
    of_weight, of_threshold = pull[1](jnp.float32(incoming))
    np.testing.assert_allclose(pull[0], weight * step, rtol=1e-6)
    through = incoming * weight * slope(x)
    np.testing.assert_allclose(of_weight, incoming * step + through * np.sign(weight), atol=1e-5)
    np.testing.assert_allclose(of_threshold, -through.sum(0, keepdims=True), atol=1e-5)


def test_thresholds_of_zero_prune_nothing_and_have_one_entry_an_output():
    params = {**weights(), "attention": {"query": {"kernel": jnp.ones((4, 2, 3))}}}
    thresholds = jp.init_thresholds(params)
    assert thresholds["dense"]["bias"] is None
    assert thresholds["head"]["kernel"].shape == (1, 8)
    assert thresholds["attention"]["query"]["kernel"].shape == (1, 2, 3)
    jax.tree.map(np.testing.assert_array_equal, jp.above_thresholds(params, thresholds), params)


def test_thresholds_of_a_leaf_without_weights():
    params = {"a": jnp.ones((0, 4)), "b": jnp.ones((2, 4))}
    thresholds = jp.init_thresholds(params)
    assert thresholds["a"].shape == (1, 4)
    assert jp.above_thresholds(params, thresholds)["a"].shape == (0, 4)
    np.testing.assert_array_equal(jp.reset_thresholds(params, thresholds)["a"], np.zeros((1, 4)))


def test_a_leaf_that_keeps_too_little_starts_again():
    params = {"a": jnp.ones((10, 10)), "b": jnp.ones((10, 10)).at[0, 0].set(3.0)}
    thresholds = {"a": jnp.full((1, 10), 0.5), "b": jnp.full((1, 10), 2.0)}
    found = jp.reset_thresholds(params, thresholds)  # of b one in a hundred is left
    np.testing.assert_array_equal(found["a"], thresholds["a"])
    np.testing.assert_array_equal(found["b"], np.zeros((1, 10)))
    kept = jp.reset_thresholds(params, thresholds, least=0.005)
    np.testing.assert_array_equal(kept["b"], thresholds["b"])


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("kept", "size"), [(1, 10), (29, 100), (3, 10), (57, 1000)])
def test_a_leaf_needs_more_than_the_least_density(kept, size, jit):
    reset = jp.reset_thresholds
    reset = jax.jit(reset, static_argnames="least") if jit else reset
    weights, exactly = jnp.arange(size, dtype=jnp.float32)[None], jnp.float32([[size - kept - 0.5]])
    for threshold, expected in ((exactly, 0.0), (exactly - 1, exactly.item() - 1)):
        assert reset(weights, threshold, least=kept / size).item() == expected


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pressure_prunes_what_the_loss_does_not_need(dtype):
    """Outputs that depend on two of eight inputs; the weights of the others are noise."""
    x = jax.random.normal(jax.random.key(0), (64, 8), dtype)
    y = x[:, :2] @ jnp.array([[2.0, -1.0], [1.0, 2.0]], dtype)
    kernel = (0.1 * jax.random.normal(jax.random.key(1), (8, 2))).astype(dtype)
    trained = {"params": {"kernel": kernel}, "thresholds": jp.init_thresholds({"kernel": kernel})}
    tx = optax.sgd(0.05)

    def loss(trained):
        params = jp.above_thresholds(trained["params"], trained["thresholds"])
        pressure = sum(jnp.sum(jnp.exp(-t)) for t in jax.tree.leaves(trained["thresholds"]))
        return jnp.mean((x @ params["kernel"] - y).astype(jnp.float32) ** 2) + 0.02 * pressure

    @jax.jit
    def step(trained, state):
        updates, state = tx.update(jax.grad(loss)(trained), state)
        trained = optax.apply_updates(trained, updates)
        return {
            **trained,
            "thresholds": jp.reset_thresholds(trained["params"], trained["thresholds"]),
        }, state

    state = tx.init(trained)
    for _ in range(300):
        trained, state = step(trained, state)
    kept = jp.above_thresholds(trained["params"], trained["thresholds"])["kernel"] != 0
    assert np.all(kept[:2]) and not np.any(kept[2:])
