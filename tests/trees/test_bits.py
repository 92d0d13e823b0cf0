"""Masks of a bit a weight: the same mask comes back, as small as can be, from any mesh and disk."""

import math

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from orbax.checkpoint import v1 as ocp

import jaxprune as jp


def mask_of(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape) < 0.5)


def like(mask):
    return jax.tree.map(lambda keep: jax.ShapeDtypeStruct(keep.shape, jnp.float32), mask)


sizes = st.sampled_from([0, 1, 3, 8, 9, 31])


@hypothesis.settings(max_examples=20)
@hypothesis.given(st.lists(sizes, max_size=3), st.integers(0, 99))
def test_any_shape_comes_back(shape, seed):
    mask = {"w": mask_of(*shape, seed=seed), "b": None}
    packed = jp.pack_mask(mask)
    params = {**like(mask), "b": jnp.ones(3)}
    chex.assert_trees_all_equal(jp.unpack_mask(params, packed), mask)
    along = [math.prod(shape) // max(size, 1) * math.ceil(size / 8) for size in shape]
    assert packed["w"].size == min(along, default=1)


AS_NUMPY_HAS_THEM = {
    (): (None, 1),
    (5,): (0, 1),
    (64,): (0, 8),
    (0, 3): (0, 0),
    (8, 64): (0, 64),  # not the last axis, if another is as good
    (300, 10): (0, 380),  # 2 bytes a row would be 600
    (10, 300): (1, 380),
    (64, 128, 3, 3): (1, 9216),  # the longest
    (3, 3, 1, 64): (3, 72),
    (20, 1): (0, 3),
}


@pytest.mark.parametrize("shape", AS_NUMPY_HAS_THEM, ids=str)
def test_bytes_are_those_of_numpy(shape):
    axis, size = AS_NUMPY_HAS_THEM[shape]
    mask = mask_of(*shape)
    packed = jp.pack_mask(mask)
    assert (packed.dtype, packed.size) == (jnp.uint8, size)
    np.testing.assert_array_equal(packed, np.packbits(np.asarray(mask), axis=axis))


def test_inside_jit():
    mask = [mask_of(3, 24), None, mask_of(5)]
    params = [jnp.ones((3, 24)), jnp.ones(2), jnp.ones(5)]
    packed = jax.jit(jp.pack_mask)(mask)
    chex.assert_trees_all_equal(packed, jp.pack_mask(mask))
    chex.assert_trees_all_equal(jax.jit(jp.unpack_mask)(params, packed), mask)


PLACED = [((64, 128), (None, "a")), ((64, 12), ("a",)), ((40, 12), ("a",)), ((8, 3), ("a",))]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(("shape", "spec"), PLACED, ids=str)
def test_on_a_mesh_where_shards_divide_and_where_they_do_not(shape, spec, kind):
    """What is moved where they do is in test_meshes.py: nothing."""
    mesh = jax.make_mesh((8,), ("a",), axis_types=(kind,))
    mask = mask_of(*shape)
    sharded = jax.device_put(mask, NamedSharding(mesh, jax.P(*spec)))
    packed = jax.jit(jp.pack_mask)(sharded)
    np.testing.assert_array_equal(packed, jp.pack_mask(mask))
    unpacked = jax.jit(jp.unpack_mask)(sharded.astype(jnp.float32), packed)
    np.testing.assert_array_equal(unpacked, mask)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_saved_on_a_mesh_and_loaded_on_one_device(tmp_path, kind):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    mask = {"w": mask_of(64, 8), "b": None, "s": mask_of()}
    put = lambda keep: jax.device_put(keep, NamedSharding(mesh, jax.P(*"ab"[: keep.ndim])))
    packed = jp.pack_mask(jax.tree.map(put, mask))
    assert packed["w"].sharding.spec == jax.P("a", "b")
    ocp.save(tmp_path / "mask", packed)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
    loaded = ocp.load(tmp_path / "mask", jax.tree.map(place, packed))
    params = {"w": jnp.ones((64, 8)), "b": jnp.ones(3), "s": jnp.float32(1)}
    chex.assert_trees_all_equal(jp.unpack_mask(params, loaded), mask)
