import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from experiments.models.layers import ConvNorm
from experiments.models.resnets import Residual
from tests.experiments.models.functional import gradient_and_rest


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (6, 8, 8, 3))


def strided_block():
    return Residual(3, ((4, 3, 2), (4, 3, 1)), rngs=nnx.Rngs(0))


def test_gradient_through_a_copying_merge_updates_running_statistics(images):
    block = strided_block()
    graphdef, params, rest = nnx.split(block, nnx.Param, ...)
    before = jax.tree.map(jnp.copy, rest)

    gradients, updated = jax.jit(gradient_and_rest, static_argnums=0)(
        graphdef, params, rest, images
    )
    chex.assert_tree_all_finite(gradients)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients))
    chex.assert_trees_all_equal(rest, before)
    batch_mean = jnp.mean(block.shortcut.conv(images), axis=(0, 1, 2))
    running_mean = updated["shortcut"]["norm"]["mean"][...]
    chex.assert_trees_all_close(running_mean, 0.1 * batch_mean, atol=1e-6)


def test_evaluation_leaves_the_running_statistics_and_treats_images_one_by_one(images):
    block = strided_block()
    before = jax.tree.map(jnp.copy, nnx.state(block, nnx.BatchStat))
    together, first = block(images, train=False), block(images[:1], train=False)
    chex.assert_trees_all_close(together[:1], first, atol=1e-5)
    chex.assert_trees_all_equal(nnx.state(block, nnx.BatchStat), before)


def test_strided_convolutions_are_centred_where_the_shortcut_samples():
    layer = ConvNorm(1, 1, 3, 2, rngs=nnx.Rngs(0))
    layer.conv.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    chex.assert_trees_all_equal(layer.conv(images), images[:, ::2, ::2])
