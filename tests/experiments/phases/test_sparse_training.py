"""Masks before training, masks that move, and other scores while it trains."""

import chex
import jax
import jax.numpy as jnp
import pytest

import jaxprune as jp
from experiments.phases import FineTune, PruneAtStart, PruneGradually, Regrow
from tests.experiments.runs import WEIGHTS, initial, kept_of, outcome, run_phases

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "one_device", "no_pictures")

TRAIN = {"epochs": 6, "batch": 64, "learning_rate": 0.03, "decay": "cosine"}


def kept_by_leaf(mask):
    return [int(jnp.sum(leaf)) for leaf in jax.tree.leaves(mask)]


@pytest.mark.parametrize("by", ["snip", "grasp"])
def test_masks_of_gradients_before_training(by, tmp_path):
    result, network = run_phases(tmp_path, PruneAtStart(by=by), FineTune(**TRAIN), limit=512)
    start = outcome(tmp_path, "0-start")
    assert kept_of(start.mask) == result["kept"] == WEIGHTS // 10
    chex.assert_trees_all_equal(start.weights, jp.apply_mask(initial().weights, start.mask))
    chex.assert_trees_all_equal(network.mask, start.mask)
    largest = jp.prune_to(initial().weights, 0.9, where="kernel")[1]
    assert jp.overlaps(start.mask, largest)[-1].iou < 0.5  # not by magnitude
    assert result["accuracy"] > 0.3


@pytest.mark.parametrize("by", ["gradient", "random"])
def test_masks_that_move_keep_the_densities_of_their_leaves(by, tmp_path):
    phase = Regrow(by=by, every=5, **TRAIN)
    result, network = run_phases(tmp_path, PruneAtStart(by="random"), phase, limit=512)
    start = outcome(tmp_path, "0-start")
    wanted = jp.erk_sparsities(initial().weights, 0.9, where="kernel")
    sizes = [leaf.size for leaf in jax.tree.leaves(start.mask)]
    assert kept_by_leaf(start.mask) == [
        size - round(sparsity * size)
        for size, sparsity in zip(sizes, jax.tree.leaves(wanted), strict=True)
    ]
    # Weights that grew where no gradient ever comes are among them, though they are still zero.
    assert kept_by_leaf(network.mask) == kept_by_leaf(start.mask)
    assert result["kept"] == kept_of(network.mask)
    assert 0.02 < jp.overlaps(start.mask, network.mask)[-1].churn < 0.2
    assert result["accuracy"] > 0.3 and result["problems"] == []


@pytest.mark.parametrize("score", ["saliency", "movement"])
def test_other_scores_while_it_trains(score, tmp_path):
    phase = PruneGradually(epochs=4, batch=64, every=3, score=score, straight_through=True)
    result, network = run_phases(tmp_path, phase, limit=512)
    assert result["kept"] == kept_of(network.mask) == WEIGHTS // 10
    chex.assert_trees_all_equal(network.weights, network.masked_weights())
    assert result["accuracy"] > 0.2 and result["problems"] == []
