"""Links where `jax_enable_x64` is on, as numerical work has it: leaves of both widths."""

import chex
import jax
import jax.numpy as jnp
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
