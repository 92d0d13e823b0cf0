import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.phases import FineTune, Regularize, Threshold
from tests.experiments.runs import WEIGHTS, initial, run_phases

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "one_device", "no_pictures")


def test_a_penalty_thins_out_what_training_alone_does_not(tmp_path):
    adam = {"batch": 64, "learning_rate": 3e-3, "optimizer": "adam", "weight_decay": 0.0}
    kept = {}
    for strength in (0.0, 3e-3):
        phases = (Regularize(24, strength=strength, **adam), Threshold(0.1), FineTune(2, **adam))
        result, network = run_phases(tmp_path / str(strength), *phases, steps_per_call=24)
        chex.assert_trees_all_equal(network.weights, network.masked_weights())
        kept[strength] = result["kept"]
        assert result["accuracy"] > 0.5
    assert kept[3e-3] < WEIGHTS / 3 < WEIGHTS / 1.5 < kept[0.0]


def tau(w):
    return (w**2).sum() / np.abs(w).sum()


def large_norms(w, axis):
    norms = np.sqrt((w**2).sum(axis, keepdims=True))
    return norms >= np.sqrt((norms**2).mean())


@pytest.fixture(scope="module")
def network():
    return initial()


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (Threshold(0.5), lambda w: np.abs(w) >= 0.5 * w.std()),
        (Threshold(0.5, rule="trimming_point"), lambda w: np.abs(w) >= 0.5 * tau(w)),
        (Threshold(0.1, rule="absolute"), lambda w: np.abs(w) >= 0.1),
        (Threshold(1.0, groups=True), lambda w: large_norms(w, 0) & large_norms(w, 1)),
    ],
)
def test_threshold_prunes_what_is_small(network, threshold, expected):
    pruned = threshold.apply(network, 0.9, None)
    for weight, keep in zip(*map(jax.tree.leaves, (network.weights, pruned.mask)), strict=True):
        np.testing.assert_array_equal(keep, expected(np.asarray(weight)))


def test_a_chain_of_layers_has_to_be_one(network):
    Threshold(0.5, chain=True).check(network, 0.9, None)
    branched = network._replace(
        mask={name: {"kernel": jnp.ones((5, 3), bool)} for name in ("main", "shortcut")}
    )
    Threshold(0.5).check(branched, 0.9, None)
    with pytest.raises(ValueError, match="shortcut/kernel of 5 inputs can't follow main/kernel of"):
        Threshold(0.5, chain=True).check(branched, 0.9, None)


@pytest.mark.parametrize(
    ("phase", "option"), [(Regularize, {"penalty": "l0"}), (Threshold, {"rule": "rank"})]
)
def test_options_are_checked(phase, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} must be "):
        phase(1, **option)
