"""A smaller network leaves Python: as StableHLO, as a checkpoint."""

import functools

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

import jaxprune as jp
from tests.networks import nets
from tests.networks.modules import TRAINED, abstract, batch_norm, close, of_shapes, pruned

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


def through_bytes(function, *args):
    """The exported function, written and read."""
    pytest.importorskip("flatbuffers")
    exported = jax.export.export(jax.jit(function))(*args)
    return jax.export.deserialize(exported.serialize()).call


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def test_stable_hlo_of_parameters_and_inputs():
    apply, params, x = nets.mlp()
    small = pruned(apply, params, x)
    read = through_bytes(small.apply, shapes(small.params), shapes(x))
    close(jax.jit(small.apply)(small.params, x), read(small.params, x))


def test_stable_hlo_with_parameters_inside():
    """As it must be for trees that `jax.export` can't write, such as the states of NNX."""
    x = nets.normal(5, 3)
    _, (apply, params) = of_shapes(abstract(batch_norm, 6))
    small = pruned(apply, params, x)
    function = functools.partial(small.apply, small.params)
    close(jax.jit(function)(x), through_bytes(function, shapes(x))(x))


def test_any_batch_size():
    """Of the module. The function reads shapes of numbers anew each time that it is called."""
    model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
    apply, params, x = nets.linen(model, nets.ROWS)
    small = pruned(apply, params, x)
    rows = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), x.shape[1]), x.dtype)
    with pytest.raises(TypeError, match=r"symbolic shape float32\[batch,5\].*`shrink_module`"):
        through_bytes(small.apply, shapes(small.params), rows)
    smaller = jp.shrink_module(model, small, x)
    read = through_bytes(smaller.apply, shapes(small.params), rows)
    for batch in (x, x[:1]):
        close(small.apply(small.params, batch), read(small.params, batch))


@pytest.mark.parametrize("module", [True, False])
def test_checkpoint(module, tmp_path):
    """The smaller parameters are read, and what computes with them is made anew from the mask."""
    x = nets.normal(5, 3)
    model, (apply, params) = of_shapes(abstract(batch_norm, 6))
    small = pruned(apply, params, x)
    ocp.save(str(tmp_path / "network"), (small.params, small.mask))
    model, (apply, new) = of_shapes(abstract(batch_norm, 6))
    loaded, mask = ocp.load(str(tmp_path / "network"), shapes((small.params, small.mask)))
    again = jp.shrink(apply, new, mask, x)._replace(params=loaded)
    if module:
        smaller = jp.shrink_module(model, again, x)
        jax.tree.map(np.testing.assert_array_equal, nnx.state(smaller, TRAINED), small.params)
    else:
        function = functools.partial(again.apply, again.params)
        close(jnp.asarray(small.apply(small.params, x)), function(x))
