import chex
import jax
import jax.numpy as jnp
import pytest

import jaxprune as jp
from experiments.phases import PruneGradually, PruneMagnitudes
from tests.experiments.runs import FINE_TUNE, WEIGHTS, kept_of, outcome, rows, run_phases

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


def test_more_and_more_of_the_smallest_weights_go_while_it_trains(tmp_path):
    phase = PruneGradually(epochs=10, batch=64, every=3)
    result, network = run_phases(tmp_path, phase, limit=512, evaluations=4, steps_per_call=8)
    found = [row["sparsity"] for row in rows(tmp_path)]
    wanted = jp.cubic_sparsity(0.9, round(0.16 * 80), round(0.6 * 80))
    assert found == pytest.approx([float(wanted(step - 2)) for step in (20, 40, 60, 80)], abs=0.05)
    assert 0 < found[0] < found[1] < found[2] == found[3] == pytest.approx(0.9)
    assert result["kept"] == kept_of(network.mask) == WEIGHTS // 10
    chex.assert_trees_all_equal(network.weights, network.masked_weights())
    assert result["accuracy"] > 0.8 and result["problems"] == []
