from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import data, run
from experiments.phases import Network, PruneLayers, PrunePattern, Recalibrate, Reconstruct
from experiments.room import Room
from tests.experiments.phases.patterns import HIDDEN, check_pattern

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "one_device", "no_pictures")


def test_adaprune_makes_up_for_one_shot_pruning(after_dense, trained):
    pattern = {"n": 1, "m": 4, "transposable": True, "where": HIDDEN}
    one_shot, pruned = after_dense("a", PrunePattern(**pattern))
    phase = Reconstruct(records=500, batch=100, **pattern)
    result, network = after_dense("b", phase, Recalibrate(passes=1))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, pruned.mask, network.mask))
    check_pattern(network.weights["fc1"]["kernel"][...], 1, 4, True)
    dense = trained[1]["accuracy"]
    assert dense > 0.85
    assert one_shot["accuracy"] < result["accuracy"] > dense - 0.1


def test_layers_are_pruned_by_what_they_see(after_dense, trained):
    how = {"records": 500, "batch": 250, "where": HIDDEN, "pattern": "1:4"}
    one_shot, _ = after_dense("c", PruneLayers(method="magnitude", **how))
    result, network = after_dense("d", PruneLayers(method="sparsegpt", **how))
    check_pattern(network.weights["fc1"]["kernel"][...], 1, 4, False)
    assert bool(jnp.all(network.mask["fc3"]["kernel"][...]))  # dense, but still counted
    assert one_shot["accuracy"] < result["accuracy"] > trained[1]["accuracy"] - 0.1


@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_recalibration_leaves_nothing_of_the_old_averages(momentum):
    norm = nnx.BatchNorm(3, momentum=momentum, rngs=nnx.Rngs(0))
    graph, weights, rest = nnx.split(norm, nnx.Param, ...)
    rest = jax.tree.map(lambda average: average + 1000, rest)
    images = 5 + jax.random.normal(jax.random.key(0), (64, 3))

    def run(weights, rest, inputs, train):
        model = nnx.merge(graph, weights, rest, copy=True)
        return model(inputs, use_running_average=not train), nnx.state(model, nnx.BatchStat)

    room = SimpleNamespace(run=run, calibration=lambda *_: [images])
    network = Network(weights, rest, jax.tree.map(lambda _: None, weights))
    found = Recalibrate(passes=1).apply(network, 0.0, room).rest
    np.testing.assert_allclose(found["mean"][...], images.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found["var"][...], images.var(0), rtol=1e-4)


@pytest.mark.slow
def test_recalibration_estimates_batch_norm_anew():
    dataset = data.load("digits", limit=256)
    network, graph = run.initial_network("resnet20", dataset.task, jax.random.key(0))
    room = Room(graph, dataset)
    network = network._replace(weights=jax.tree.map(lambda w: 2 * w, network.weights))
    again = Recalibrate(records=256, batch=128, passes=20).apply(network, 0.0, room)
    images, _ = room.calibration(256, 128)
    seen = network.weights["stem"]["conv"]["kernel"][...]
    first = jax.lax.conv_general_dilated(
        images, seen, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    variance = again.rest["stem"]["norm"]["var"][...]
    np.testing.assert_allclose(variance, first.var((0, 1, 2)), rtol=0.2)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, again.weights, network.weights))
