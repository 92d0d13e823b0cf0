import jax
import jax.numpy as jnp
import pytest

from experiments.phases import LearnPattern, PrunePattern
from tests.experiments.phases.patterns import check_pattern
from tests.experiments.runs import outcome

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "one_device", "no_pictures")


@pytest.mark.parametrize("transposable", [pytest.param(False, marks=pytest.mark.slow), True])
def test_learned_patterns_of_frozen_weights(transposable, after_dense, tmp_path):
    pattern = {"n": 1, "m": 4, "transposable": transposable, "where": "fc1"}
    one_shot, _ = after_dense("a", PrunePattern(**pattern))
    phase = LearnPattern(epochs=20, batch=64, **pattern)
    result, network = after_dense("b", phase)
    check_pattern(network.mask["fc1"]["kernel"][...], 1, 4, transposable)
    assert network.mask["fc1"]["kernel"][...].mean() == 0.25
    assert network.mask["fc2"]["kernel"][...].all()
    assert result["accuracy"] > one_shot["accuracy"]
    dense = outcome(tmp_path / "b", "0-dense")
    assert jax.tree.all(jax.tree.map(jnp.array_equal, dense.weights, network.weights))
