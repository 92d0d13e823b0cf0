import chex
import jax
import jax.numpy as jnp
import pytest

from experiments.phases import Search
from tests.experiments.runs import WEIGHTS, initial, kept_of, rows, run_phases

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "one_device", "no_pictures")


def test_the_sparsity_is_reached_with_finite_weights_by_losses_alone(tmp_path):
    search = Search(epochs=8, batch=64, estimator="vrpge", clip_jointly=False)
    result, network = run_phases(tmp_path, search)
    assert result["kept"] == kept_of(network.mask) == WEIGHTS // 10
    assert result["problems"] == []
    chex.assert_tree_all_finite(network.weights)
    assert rows(tmp_path)[-1]["sparsity"] == pytest.approx(0.9, abs=0.02)
    before = jax.tree.leaves(initial().weights)
    pairs = zip(jax.tree.leaves(network.weights), before, strict=True)
    assert any(bool(jnp.any(now != then)) for now, then in pairs)


def test_best_sampled_mask_is_chosen_by_the_score():
    network, seen = initial(), []
    probs = jax.tree.map(lambda keep: jnp.full(keep.shape, 0.1), network.mask)

    def score(weights):
        seen.append(kept_of(jax.tree.map(lambda weight: weight != 0, weights)))
        return seen[-1]

    search = Search(epochs=1, choose="best_sampled")
    params = {"weights": network.weights, "probs": probs}
    chosen = search.end(params, network, 0.9, jax.random.key(0), score)
    assert len(set(seen)) > 1 and all(abs(kept - 0.1 * WEIGHTS) < 500 for kept in seen)
    assert kept_of(chosen.mask) == max(seen)
    chex.assert_trees_all_equal(chosen.weights, network.weights)


def test_supermask_leaves_the_weights_alone(tmp_path):
    search = Search(epochs=30, batch=64, train_weights=False, start=0.5, dense_until=0.0)
    result, network = run_phases(tmp_path, search, sparsity=0.7, seed=3, steps_per_call=30)
    chex.assert_trees_all_equal(network.weights, initial(seed=3).weights)
    assert result["kept"] == round(0.3 * WEIGHTS)
    assert result["accuracy"] > 0.5


@pytest.mark.parametrize("option", [{"estimator": "guess"}, {"choose": "any"}])
def test_options_are_checked(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} must be "):
        Search(epochs=1, **option)
