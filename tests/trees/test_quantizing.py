"""Grids of weights, against a search over steps, and their packed integers."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.trees import quantizing


def weights(count=200, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_normal(count).astype(np.float32), random.random(count) < 0.6


def rounded(x, step, bits):
    codes = np.clip(np.floor(x / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (codes + 0.5) * step


def error(x, step, bits):
    return np.sum((x - rounded(x.astype(np.float64), step, bits)) ** 2)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_step_is_nearly_the_best_of_a_fine_search(bits):
    x, keep = weights()
    quantized, grids = jp.quantize_to({"w": jnp.asarray(x)}, {"w": jnp.asarray(keep)}, bits)
    step = float(grids["w"].step)
    np.testing.assert_allclose(quantized["w"], np.where(keep, rounded(x, step, bits), 0), rtol=1e-5)
    steps = np.linspace(0.02, 1, 3000) * np.abs(x).max() / (2 ** (bits - 1) - 0.5)
    best = min(error(x[keep], each, bits) for each in steps)
    assert error(x[keep], step, bits) <= 1.03 * best
    assert np.unique(quantized["w"][keep]).size <= 2**bits


def test_one_bit_is_the_sign_times_the_mean_magnitude():
    x, keep = weights()
    quantized, _ = jp.quantize_to(jnp.asarray(x), jnp.asarray(keep), 1)
    expected = np.where(keep, np.sign(x) * np.abs(x[keep]).mean(), 0)
    np.testing.assert_allclose(quantized, expected, rtol=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_what_lies_on_a_grid_is_found_to_lie_there(bits):
    """Where the highest levels aren't used, too."""
    for highest in range(2 ** (bits - 1)):
        codes = np.arange(-highest - 1, highest + 1)
        x = jnp.asarray((codes + 0.5) * 0.37, jnp.float32)
        quantized, _ = jp.quantize_to(x, jnp.ones(x.shape, bool), bits)
        np.testing.assert_allclose(quantized, x, rtol=1e-6)


def test_grids_that_are_given_stay_as_they_are():
    x, keep = weights(20)
    grid = jp.Grid(jnp.int32(2), jnp.float32(0.5))
    quantized, grids = jp.quantize_to({"w": jnp.asarray(x)}, {"w": jnp.asarray(keep)}, {"w": grid})
    assert grids["w"] == grid
    np.testing.assert_array_equal(quantized["w"], np.where(keep, rounded(x, 0.5, 2), 0))


def test_leaves_of_their_own_widths_and_dtypes():
    x, keep = weights(64)
    params = {"a": jnp.asarray(x), "b": jnp.ones(3), "c": jnp.asarray(x, jnp.bfloat16)}
    mask = {"a": jnp.asarray(keep), "b": None, "c": jnp.ones(64, bool)}
    quantized, grids = jp.quantize_to(params, mask, {"a": 2, "b": None, "c": jnp.int32(3)})
    assert (int(grids["a"].bits), grids["b"], int(grids["c"].bits)) == (2, None, 3)
    assert quantized["c"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(quantized["b"], params["b"])
    assert np.all(np.asarray(quantized["a"])[~keep] == 0)


def test_nothing_kept_and_nothing_but_zeros():
    none, zeros = jnp.zeros(5, bool), jnp.ones(5, bool)
    for mask in (none, zeros):
        quantized, grids = jax.jit(jp.quantize_to, static_argnums=2)(jnp.zeros(5), mask, 3)
        assert np.isfinite(quantized).all()
        assert grids.step > 0
    assert not jp.quantize_to(jnp.ones(5), none, 3)[0].any()


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_the_least_magnitude_that_is_worth_a_gain(bits):
    grid = jp.Grid(jnp.int32(bits), jnp.float32(0.37))
    gains = jnp.float32([1e-30, 0.01, 0.3, 5.0, 1e6])
    least = quantizing.least_magnitude(grid, gains)
    at, before = ((least - i).view(jnp.float32) for i in jnp.uint32([0, 1]))
    assert np.all(quantizing.gain(at, grid) >= gains)
    assert np.all(quantizing.gain(before, grid) < gains)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_sums_are_right_and_the_same_in_any_order(scale):
    x, keep = weights(10_000)
    x = x * np.float32(scale)
    grid = jp.Grid(jnp.int32(4), jnp.float32(0.3 * scale))
    fit = lambda x, keep: quantizing.fit_of(x, keep, grid, quantizing.largest_magnitude(x))
    found = fit(jnp.asarray(x), jnp.asarray(keep))
    order = np.random.default_rng(1).permutation(x.size)
    assert found == fit(jnp.asarray(x[order]), jnp.asarray(keep[order]))
    step = np.float64(grid.step)
    levels = rounded(x[keep].astype(np.float64), step, 4) / step
    expected = np.sum(levels**2), np.sum(levels * x[keep]), keep.sum()
    np.testing.assert_allclose(np.float64(found), expected, rtol=1e-6)
    gains = np.sum(x[keep].astype(np.float64) ** 2) - error(x[keep], step, 4)
    if scale == 1:
        np.testing.assert_allclose(found.gained(grid.step), gains, rtol=1e-5)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_integers_come_back(bits):
    x, keep = weights(101, seed=bits)
    params, mask = {"w": jnp.asarray(x), "b": jnp.ones(2)}, {"w": jnp.asarray(keep), "b": None}
    quantized, grids = jp.quantize_to(params, mask, bits)
    packed = jp.pack_quantized(quantized, mask, grids)
    assert packed["b"] is None
    assert packed["w"].nbytes == -(-int(keep.sum()) * bits // 8)
    again = jp.unpack_quantized(params, mask, grids, packed)
    np.testing.assert_array_equal(again["w"], quantized["w"])
    np.testing.assert_array_equal(again["b"], params["b"])


def test_unpacking_takes_little_memory():
    size = 2**18
    params, mask = {"w": jnp.linspace(-1.0, 1.0, size)}, {"w": jnp.ones(size, bool)}
    quantized, grids = jp.quantize_to(params, mask, 8)
    packed = jp.pack_quantized(quantized, mask, grids)
    tracemalloc.start()
    unpacked = jp.unpack_quantized(params, mask, grids, packed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 * size
    np.testing.assert_array_equal(unpacked["w"], quantized["w"])
