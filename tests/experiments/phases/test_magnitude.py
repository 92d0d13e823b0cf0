import chex
import jax
import jax.numpy as jnp
import pytest

import jaxprune as jp
from experiments.phases import Dense, PruneAlternately, PruneGradually, PruneMagnitudes, Rewind
from experiments.usage import UsageError
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


def test_dense_and_sparse_turns(tmp_path):
    phase = PruneAlternately(epochs=5, batch=64, dense_until=0.2, sparse_from=0.8, turn=0.2)
    result, network = run_phases(tmp_path, phase, limit=512, evaluations=5, steps_per_call=8)
    found = [row["sparsity"] for row in rows(tmp_path)]
    assert found == pytest.approx([0.0, 0.9, 0.0, 0.9, 0.9])
    assert result["kept"] == kept_of(network.mask) == WEIGHTS // 10
    chex.assert_trees_all_equal(network.weights, network.masked_weights())
    assert result["accuracy"] > 0.6 and result["problems"] == []


@pytest.mark.parametrize(
    ("phase", "hint"),
    [
        (PruneGradually(epochs=1, batch=64), "0, not 0.9: lower every or reach_sparsity_at"),
        (PruneGradually(epochs=4, batch=64, reach_sparsity_at=1.0, every=1), "lower every"),
        (PruneGradually(epochs=10, batch=64, every=100), "lower every"),
        (PruneAlternately(epochs=11, batch=64, sparse_from=1.0), "lower sparse_from or turn"),
    ],
)
def test_masks_that_would_be_chosen_too_early_are_refused(phase, hint, tmp_path):
    with pytest.raises(UsageError, match=hint):
        run_phases(tmp_path, phase, limit=512)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("setting", ["every", "reach_sparsity_at"])
def test_turns_have_no_settings_of_the_gradual_way(setting):
    with pytest.raises(TypeError, match=setting):
        PruneAlternately(epochs=5, **{setting: 1})


def test_rounds_go_back_to_early_weights_under_their_masks(tmp_path):
    early, rounds = Dense(epochs=1, batch=64), Dense(epochs=2, batch=64)
    phases = (early, rounds, PruneMagnitudes(part=0.5), Rewind(), FINE_TUNE, PruneMagnitudes())
    result, network = run_phases(tmp_path, *phases, Rewind())
    first, half, back = (outcome(tmp_path, name) for name in ("0-dense", "2-magnitude", "3-rewind"))
    assert kept_of(half.mask) == WEIGHTS - round((1 - 0.1**0.5) * WEIGHTS)
    chex.assert_trees_all_equal(back.weights, jp.apply_mask(first.weights, half.mask))
    assert result["kept"] == kept_of(network.mask) == WEIGHTS // 10
    assert kept_of(jax.tree.map(jnp.logical_and, network.mask, half.mask)) == WEIGHTS // 10
    chex.assert_trees_all_equal(network.weights, jp.apply_mask(first.weights, network.mask))


@pytest.mark.parametrize("phases", [(Rewind(),), (Dense(epochs=1, batch=64), Rewind(returns_to=1))])
def test_only_what_came_before_can_be_returned_to(phases, tmp_path):
    with pytest.raises(UsageError, match="rewind: returns_to must be a phase before it"):
        run_phases(tmp_path, *phases)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("part", [0.0, 1.5])
def test_parts_of_the_way_are_fractions(part):
    with pytest.raises(ValueError, match="part must be "):
        PruneMagnitudes(part=part)
