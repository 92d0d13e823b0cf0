"""Erdos-Renyi densities against bisection, and random masks: exact sizes, no bias, meshes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

import jaxprune as jp

SHAPES = {
    "stem": (3, 3, 3, 16),
    "block": {"kernel": (3, 3, 16, 32), "bias": (32,)},
    "embedding": (500, 32),
    "head": [(32, 10), (10,)],
}


def tree(shapes=SHAPES):
    return jax.tree.map(jnp.ones, shapes, is_leaf=lambda x: isinstance(x, tuple))


def bisected(shapes, sparsity):
    """The densities by another way: the one epsilon for which the clipped ones meet the budget."""
    sizes, raw = np.array([math.prod(s) for s in shapes]), np.array([sum(s) for s in shapes])
    low, high = 0.0, float(sizes.max())
    for _ in range(200):
        middle = (low + high) / 2
        spent = np.minimum(middle * raw, sizes).sum()
        low, high = (middle, high) if spent < (1 - sparsity) * sizes.sum() else (low, middle)
    return np.minimum(high * raw / sizes, 1)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.99, 1.0])
def test_densities_are_those_of_bisection(sparsity):
    found = jp.erk_sparsities(tree(), sparsity)
    shapes = [(3, 3, 16, 32), (500, 32), (32, 10), (3, 3, 3, 16)]  # as the tree sorts them
    densities = [1 - s for s in jax.tree.leaves(found)]
    np.testing.assert_allclose(densities, bisected(shapes, sparsity), atol=1e-9)
    assert found["block"]["bias"] is None
    assert all(0 <= s <= 1 and type(s) is float for s in jax.tree.leaves(found))


def test_small_leaves_are_dense_and_the_tree_meets_its_sparsity():
    found = jp.erk_sparsities(tree(), 0.5)
    assert found["head"][0] == 0 < found["stem"] < found["embedding"]
    mask = jp.random_mask(jax.random.key(0), tree(), found)
    assert abs(float(jp.sparsity(mask)) - 0.5) < 1e-4


def test_shapes_suffice_and_where_chooses():
    shapes = jax.eval_shape(tree)
    assert jp.erk_sparsities(shapes, 0.9) == jp.erk_sparsities(tree(), 0.9)
    only = jp.erk_sparsities(shapes, 0.9, where="kernel")
    assert jax.tree.leaves(only) == [pytest.approx(0.9)]


@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9, 1.0])
def test_random_masks_keep_exactly_so_many_in_each_leaf(sparsity):
    for row in jp.layers(jp.random_mask(jax.random.key(1), tree(), sparsity)):
        assert row.kept == row.size - round(sparsity * row.size)


def test_every_weight_is_kept_as_often():
    draw = jax.jit(lambda key: jp.random_mask(key, {"w": jnp.ones((8, 8))}, 0.75)["w"])
    kept = sum(np.asarray(draw(jax.random.key(i)), int) for i in range(400))
    assert abs(kept - 100).max() < 5 * math.sqrt(400 * 0.25 * 0.75)


def test_keys_and_leaves_differ():
    mask = lambda seed: jp.random_mask(jax.random.key(seed), [jnp.ones((8, 8))] * 2, 0.5)
    assert not np.array_equal(mask(0)[0], mask(0)[1])
    assert not np.array_equal(mask(0)[0], mask(1)[0])
    np.testing.assert_array_equal(mask(0)[0], mask(0)[0])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_masks_lie_like_the_parameters(kind, jit):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    place = NamedSharding(mesh, jax.P("x", "y"))
    params = {"w": jax.device_put(jnp.ones((16, 8)), place)}
    draw = lambda params: jp.random_mask(jax.random.key(0), params, 0.75)
    mask = (jax.jit(draw) if jit else draw)(params)["w"]
    assert mask.sharding.is_equivalent_to(place, 2)
    np.testing.assert_array_equal(mask, draw({"w": jnp.ones((16, 8))})["w"])
