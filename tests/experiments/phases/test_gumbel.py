"""Subnetworks of random weights."""

import numpy as np
import pytest

from experiments.phases import Extract
from tests.experiments.runs import run_phases

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "one_device", "no_pictures")


EXTRACTIONS = {
    "gumbel": Extract(epochs=40, batch=64, learning_rate=500),
    "dynamic": Extract(epochs=40, batch=64, learning_rate=500, rescale="dynamic"),
    "supermask": Extract(
        epochs=40, batch=64, learning_rate=500, estimator="supermask", rescale="dynamic"
    ),
    "edge_popup": Extract(epochs=40, batch=64, learning_rate=0.1, estimator="edge_popup"),
    "per_layer": Extract(
        epochs=40, batch=64, learning_rate=0.1, estimator="edge_popup", per_layer=True
    ),
    "projection": Extract(epochs=40, batch=64, learning_rate=500, budget="projection"),
    "penalty": Extract(epochs=40, batch=64, learning_rate=500, budget="penalty", strength=3.0),
    "top_k": Extract(epochs=40, batch=64, learning_rate=500, budget="top_k"),
}


FAST = ("projection", "edge_popup")


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in EXTRACTIONS],
)
def test_a_subnetwork_of_random_weights_is_found(name, tmp_path):
    short = {"limit": 512, "evaluations": 2, "steps_per_call": 8}
    result, network = run_phases(tmp_path, EXTRACTIONS[name], sparsity=0.7, **short)
    size = result["weights"]
    if name in ("edge_popup", "projection", "top_k"):
        assert result["kept"] == round(0.3 * size)
    if name == "per_layer":
        assert all(abs(density - 0.3) < 1e-3 for density in result["density_by_layer"].values())
    if name == "penalty":
        assert result["kept"] < 0.45 * size
    # A supermask that isn't sampled is worse than its samples.
    assert result["accuracy"] > (0.4 if name == "supermask" else 0.6)
    for layer in ("fc1", "fc2", "fc3"):  # nothing was trained but one scale a layer
        kernel = np.abs(network.weights[layer]["kernel"][...])
        assert np.unique(kernel[kernel > 0]).size == 1


def test_options_are_checked():
    for field in ("estimator", "rescale", "budget"):
        with pytest.raises(ValueError, match=f"{field} must be one of .* got 'other'"):
            Extract(epochs=1, **{field: "other"})
