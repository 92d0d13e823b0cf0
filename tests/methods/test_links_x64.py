"""Links where `jax_enable_x64` is on, as numerical work has it: leaves of both widths."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.methods.link_table import every_link_some_slow, step_of, weights

widths = pytest.mark.parametrize("dtype", ["float32", "float64"])


@widths
@every_link_some_slow
def test_link_trains_and_keeps_dtypes(row, dtype):
    link = row.make()  # of float32, as `top_k_mask` asks for
    with jax.enable_x64(True):
        params = optax.tree.cast(row.params(), dtype)
        tx = optax.chain(optax.sgd(jnp.asarray(0.1, dtype)), link)
        trained, _ = jax.jit(step_of(tx))(params, tx.init(params))
        chex.assert_trees_all_equal_shapes_and_dtypes(trained, params)
    row.holds(optax.tree.cast(jax.device_get(trained), "float32"), 1)


@widths
@pytest.mark.parametrize("costs", [None, 2.0], ids=["alike", "costs"])
def test_projection_is_within_its_budget(costs, dtype):
    with jax.enable_x64(True):
        scores = optax.tree.cast(weights(), dtype)
        each = None if costs is None else jax.tree.map(lambda _: costs, scores)
        probs = jp.projection_capped_simplex(scores, 8, costs=each)
        chex.assert_trees_all_equal_dtypes(probs, scores)
        total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(probs))
        assert float(total) * (costs or 1) == pytest.approx(8, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-300, 1e-50, 1.0, 1e50, 1e307])
def test_a_fraction_of_float64_beyond_the_range_of_float32(scale):
    with jax.enable_x64(True):
        values = np.float64([[1.0, -4.0, 2.0], [-3.0, 6.0, 5.0]]) * scale
        params = {"a": jnp.asarray(values), "b": jnp.asarray(values[:, ::-1] / 2)}
        mask = jp.prune_to(params, 0.5)[1]
    assert mask["a"].tolist() == [[False, True, False], [True, True, True]]
    assert mask["b"].tolist() == [[False, False, False], [True, True, False]]


@pytest.mark.parametrize("threshold", [0.1, 0.3])
def test_a_threshold_is_compared_in_the_dtype_of_the_leaf(threshold):
    with jax.enable_x64(True):
        params = {"w": jnp.asarray([[0.1, 0.3]])}
        mask = jp.prune_to(params, jp.Above(threshold))[1]
        assert mask["w"].tolist() == jp.threshold_mask(params, threshold)["w"].tolist()
        assert mask["w"].tolist() == [[threshold <= 0.1, True]]
