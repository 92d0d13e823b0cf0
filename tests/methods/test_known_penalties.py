"""Penalties of small arrays and known distributions, and the trimming point."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

HOYER = {
    "hoyer_square": jp.hoyer_square,
    "inputs": functools.partial(jp.group_hoyer_square, axis="inputs"),
    "outputs": functools.partial(jp.group_hoyer_square, axis="outputs"),
}


@functools.cache
def closed(name):
    return jax.jit(jax.value_and_grad(HOYER[name]))


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


signed = st.floats(0.01, 8.0) | st.floats(-8.0, -0.01)
kernels = st.lists(signed, min_size=24, max_size=24).map(lambda w: np.reshape(w, (2, 3, 4)))


# Distributions ----------------------------------------------------------------------------------

DISTRIBUTIONS = {
    "normal": (2 / np.pi, 0.7899),
    "uniform": (0.75, 0.6667),
    "laplace": (0.5, 0.8647),
}


def sample(name):
    random = np.random.default_rng(0)
    draw = {"normal": random.normal, "uniform": random.uniform, "laplace": random.laplace}[name]
    limits = (-0.02, 0.02) if name == "uniform" else (0.0, 0.02)
    return jnp.asarray(draw(*limits, 1_000_000), jnp.float32)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_share_of_weights_that_shrink_at_the_start(name):
    fraction, shrinking = DISTRIBUTIONS[name]
    w = sample(name)
    assert float(jp.hoyer_square(w, normalized=True)) == pytest.approx(fraction, rel=0.003)
    below = np.mean(np.abs(w) < jp.trimming_point(w))
    assert below == pytest.approx(shrinking, abs=0.002)


def test_filters_and_channels_of_a_gaussian_convolution():
    kernel = jnp.asarray(gaussian(3, 3, 32, 64), jnp.float32)
    assert float(jp.group_hoyer_square(kernel, ("inputs", "outputs"))) == pytest.approx(
        95.9, abs=0.1
    )


# trimming_point ---------------------------------------------------------------------------------


@hypothesis.settings(max_examples=40)
@hypothesis.given(kernels)
def test_what_is_below_the_trimming_point_shrinks_and_the_rest_grows(w):
    w = jnp.asarray(w, jnp.float32)
    tau = float(jp.trimming_point(w))
    expected = np.sum(np.square(w, dtype=float)) / np.sum(np.abs(w, dtype=float))
    np.testing.assert_allclose(tau, expected, rtol=3e-6)
    outward = np.sign(w) * closed("hoyer_square")(w)[1]
    clear = np.abs(np.abs(w) / tau - 1) > 1e-5
    np.testing.assert_array_equal((outward > 0)[clear], (np.abs(w) < tau)[clear])


def test_trimming_point_has_the_units_of_its_argument():
    w = jnp.array([[3.0, -4.0]])
    for scale in (1e-30, 1.0, 1e30):
        tau = jax.jit(jp.trimming_point)(w * jnp.float32(scale))
        np.testing.assert_allclose(tau, 25 / 7 * scale, rtol=1e-6)
    assert float(jp.trimming_point(jnp.zeros(3))) == 0
    np.testing.assert_allclose(jp.trimming_point(jnp.full(1000, 2e-38)), 2e-38, rtol=1e-6)
    half = jp.trimming_point(w.astype(jnp.float16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, 25 / 7, rtol=1e-6)


# Known answers ----------------------------------------------------------------------------------


def test_three_and_four():
    value, gradient = jax.value_and_grad(jp.hoyer_square)(jnp.array([3.0, 4.0]))
    assert float(value) == pytest.approx(1.96, rel=1e-6)
    np.testing.assert_allclose(gradient, [0.0896, -0.0672], rtol=1e-5)


def test_a_row_of_three_and_four_above_a_row_of_zeros():
    rows = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    value, gradient = closed("inputs")(rows)
    assert float(value) == pytest.approx(1.0, rel=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    value, gradient = closed("outputs")(rows)
    assert float(value) == pytest.approx(1.96, rel=1e-6)
    np.testing.assert_allclose(gradient, [[0.0896, -0.0672], [0, 0]], rtol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [((1, 9), "outputs"), ((9, 1), "inputs")])
def test_groups_of_one_weight_give_hoyer_square(shape, axis):
    w = jnp.asarray(gaussian(*shape), jnp.float32)
    value, gradient = closed(axis)(w)
    expected, expected_gradient = closed("hoyer_square")(w)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_magnitudes_and_norms_of_small_numbers():
    tree = {"a": jnp.array([[3.0, -4.0], [0.0, 0.0]]), "b": None, "c": [jnp.array([[1.0]])]}
    assert float(jp.l1(tree)) == 8
    assert float(jp.transformed_l1(tree)) == pytest.approx(1.5 + 1.6 + 1.0)
    assert float(jp.group_lasso(tree, "inputs")) == pytest.approx(6)
    assert float(jp.group_lasso(tree, ("inputs", "outputs"))) == pytest.approx(6 + 8)
    gradient = jax.grad(jp.l1)(tree)["a"]
    assert gradient.tolist() == [[1, -1], [0, 0]], "a weight at zero stays there"
