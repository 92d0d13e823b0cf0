"""N:M training, AdaPrune, extraction and learned patterns, each a short run on the digits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from experiments import data, run, training
from experiments.extraction import Extract, LearnPattern
from experiments.nm_phases import PrunePattern, Recalibrate, Reconstruct, TrainPattern
from experiments.phases import Dense

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "one_device")

DENSE = Dense(epochs=10, batch=64)
SMALL = run.Experiment(
    "lenet300100", "digits", (DENSE,), density=0.3, limit=512, evaluations=2, steps_per_call=8
)
HIDDEN = "fc[12]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run whose first phase is `DENSE`, and that run's result."""
    folder = tmp_path_factory.mktemp("runs")
    with jax.numpy_dtype_promotion("standard"):
        result = run.run(SMALL, data.load("digits", limit=512), folder / "dense")
    return folder, result


def result_of(folder, *phases, reuse=None):
    """The result, and the network after the last phase."""
    experiment = dataclasses.replace(SMALL, phases=phases)
    dataset = data.load("digits", limit=experiment.limit)
    result = run.run(experiment, dataset, folder / "out", reuse=reuse)
    network, _ = run.initial_network("lenet300100", dataset, jax.random.key(0))
    name = run.outcome_name(experiment, len(phases) - 1)
    return result, ocp.load(folder / "out" / name, training.abstract(network))


def after_dense(trained, folder, *phases):
    return result_of(folder, DENSE, *phases, reuse=trained[0])


def check_pattern(kernel, n, m, transposable):
    """At most n non-zeros; whole groups of a mask have n exactly."""
    kept = np.asarray(kernel) != 0
    inputs, outputs = kept.shape
    assert (kept[: inputs // m * m].reshape(-1, m, outputs).sum(1) <= n).all()
    if transposable:
        assert (kept[:, : outputs // m * m].reshape(inputs, -1, m).sum(2) <= n).all()


@pytest.mark.parametrize(("straight_through", "transposable"), [(False, False), (True, True)])
def test_training_keeps_the_pattern(straight_through, transposable, tmp_path):
    phase = TrainPattern(
        epochs=10,
        batch=64,
        transposable=transposable,
        straight_through=straight_through,
        pruned_decay=1e-3,
        every=3,
        where=HIDDEN,
    )
    result, network = result_of(tmp_path, phase)
    for name in ("fc1", "fc2"):
        check_pattern(network.weights[name]["kernel"][...], 2, 4, transposable)
        mask = network.mask[name]["kernel"][...]
        assert mask.mean() == 0.5
        check_pattern(mask, 2, 4, transposable)
    assert network.mask["fc3"]["kernel"][...].all()
    assert result["accuracy"] > 0.8


def test_adaprune_makes_up_for_one_shot_pruning(trained, tmp_path):
    pattern = {"n": 1, "m": 4, "transposable": True, "where": HIDDEN}
    one_shot, pruned = after_dense(trained, tmp_path / "a", PrunePattern(**pattern))
    phase = Reconstruct(records=500, batch=100, **pattern)
    result, network = after_dense(trained, tmp_path / "b", phase, Recalibrate(passes=1))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, pruned.mask, network.mask))
    check_pattern(network.weights["fc1"]["kernel"][...], 1, 4, True)
    dense = trained[1]["accuracy"]
    assert dense > 0.85
    assert one_shot["accuracy"] < result["accuracy"] > dense - 0.1


@pytest.mark.slow
def test_recalibration_estimates_batch_norm_anew():
    dataset = data.load("digits", limit=256)
    network, graph = run.initial_network("resnet20", dataset, jax.random.key(0))
    room = training.Room(graph, dataset)
    network = network._replace(weights=jax.tree.map(lambda w: 2 * w, network.weights))
    again = Recalibrate(records=256, batch=128, passes=20).end(network, 1.0, room)
    (images, _) = room.calibration(256, 128)
    seen = network.weights["stem"]["conv"]["kernel"][...]
    first = jax.lax.conv_general_dilated(
        images, seen, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    variance = again.rest["stem"]["norm"]["var"][...]
    np.testing.assert_allclose(variance, first.var((0, 1, 2)), rtol=0.2)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, again.weights, network.weights))


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
    phase = EXTRACTIONS[name]
    result, network = result_of(tmp_path, phase)
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


def test_unknown_words():
    for field in ("estimator", "rescale", "budget"):
        with pytest.raises(ValueError, match=f"{field} must be one of .* got 'other'"):
            Extract(epochs=1, **{field: "other"})


@pytest.mark.parametrize("transposable", [pytest.param(False, marks=pytest.mark.slow), True])
def test_learned_patterns_of_frozen_weights(transposable, trained, tmp_path):
    pattern = {"n": 1, "m": 4, "transposable": transposable, "where": "fc1"}
    one_shot, _ = after_dense(trained, tmp_path / "a", PrunePattern(**pattern))
    phase = LearnPattern(epochs=20, batch=64, **pattern)
    result, network = after_dense(trained, tmp_path / "b", phase)
    check_pattern(network.mask["fc1"]["kernel"][...], 1, 4, transposable)
    assert network.mask["fc1"]["kernel"][...].mean() == 0.25
    assert network.mask["fc2"]["kernel"][...].all()
    assert result["accuracy"] > one_shot["accuracy"]
    dense = ocp.load(tmp_path / "b/out/network-0-dense", training.abstract(network))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, dense.weights, network.weights))
