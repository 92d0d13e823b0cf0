import chex
import jax
import jax.numpy as jnp
import pytest

import jaxprune as jp
from experiments.phases import PruneMagnitudes
from tests.experiments.runs import FINE_TUNE, WEIGHTS, kept_of, outcome, rows

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "one_device", "no_pictures")


def test_the_largest_weights_stay_and_are_fine_tuned(after_dense, tmp_path):
    result, tuned = after_dense("out", PruneMagnitudes(), FINE_TUNE)
    dense, pruned = (outcome(tmp_path / "out", name) for name in ("0-dense", "1-magnitude"))
    assert kept_of(dense.mask) == WEIGHTS
    chex.assert_trees_all_equal(pruned.weights, dense.weights)
    chex.assert_trees_all_equal(
        pruned.mask, jp.top_k_mask(jax.tree.map(jnp.abs, dense.weights), WEIGHTS // 10)
    )
    chex.assert_trees_all_equal(tuned.mask, pruned.mask)
    chex.assert_trees_all_equal(tuned.weights, tuned.masked_weights())
    assert result["kept"] == WEIGHTS // 10
    assert [row["accuracy"] > 0.8 for row in rows(tmp_path / "out") if row["epoch"] == 10] == [True]
