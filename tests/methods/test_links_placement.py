"""Every link of the table on a mesh, and back from a checkpoint."""

import chex
import jax
import pytest
from jax.sharding import AxisType, NamedSharding
from orbax.checkpoint import v1 as ocp

import jaxprune as jp
from jaxprune.methods import scores
from tests.methods.link_table import (
    every_link_some_slow,
    half_mask,
    kernels,
    pruned_are_zero,
    sgd_then,
    step_of,
    train,
    weights,
)

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


@every_kind_of_mesh
def test_random_scores_on_a_mesh(kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    params = sharded(kernels(weights()), mesh)
    found = scores.scored("random").of(params, None, ())
    assert [x.sharding for x in jax.tree.leaves(found)] == [x[2] for x in shardings(params)]
    tx = jp.keep_sparse(0.5, score="random")
    mask = jp.prune_to(params, 0.5, score="random")[1]
    chex.assert_trees_all_equal(mask, train(tx, kernels(weights()))[1].mask)
    chex.assert_trees_all_equal(mask, train(tx, params)[1].mask)


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
