"""Joint compression, then training on grids; and the file of what comes out."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from experiments import exported, processes
from experiments.phases import Compress, PruneMagnitudes, TrainQuantized
from tests.experiments.runs import initial, outcome, rows, run_phases

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "one_device", "no_pictures")

ADAM = {"batch": 64, "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.0}
COMPRESS = Compress(epochs=10, budget=600, projections=5, **ADAM)
QUANTIZED = TrainQuantized(epochs=5, bits=2, **ADAM)


def bits(network):
    leaves = zip(jax.tree.leaves(network.mask), grids(network), strict=True)
    return sum(int(grid.bits) * int(keep.sum()) for keep, grid in leaves)


def grids(network):
    return jax.tree.leaves(network.grids, is_leaf=lambda x: isinstance(x, jp.Grid))


@pytest.mark.slow
def test_a_network_of_600_bytes(after_dense, tmp_path):
    result, network = after_dense("joint", COMPRESS, QUANTIZED)
    folder = tmp_path / "joint"
    compressed = outcome(folder, "1-compress")
    assert jp.sparsity(compressed.weights) == 0 < jp.sparsity(compressed.masked_weights())
    assert 4800 - 8 < bits(compressed) <= 4800
    chex.assert_trees_all_equal(network.mask, compressed.mask)
    assert [g.bits for g in grids(network)] == [g.bits for g in grids(compressed)]
    assert result["kept"] == jp.count(network.mask)
    after = rows(folder)[-1]["accuracy"]
    assert after > 0.6 and result["accuracy"] == pytest.approx(after, abs=0.01)
    size = exported.write(network, folder / "network.bin")
    assert size.values <= 600
    assert size.total == (folder / "network.bin").stat().st_size
    read = exported.with_leaves(network, exported.read(folder / "network.bin"))
    chex.assert_trees_all_close(read.weights, network.weights, rtol=1e-6)


@pytest.mark.parametrize(("steps", "every"), [(3, 1), (5, 1), (9, 2), (10, 2), (11, 3)])
def test_the_projections_are_the_most_there_are(monkeypatch, steps, every):
    given = {}
    monkeypatch.setattr(jp, "add_admm", lambda *_, **how: given.update(how) or optax.identity())
    COMPRESS.links(initial(), 0.9, steps, None)
    assert given["every"] == every
    assert len(range(0, steps, every)) <= COMPRESS.projections


@pytest.mark.slow
def test_one_after_the_other_and_quantization_alone(after_dense):
    _, network = after_dense("after", PruneMagnitudes(), QUANTIZED)
    assert {int(grid.bits) for grid in grids(network)} == {2}
    for leaf, keep in zip(
        jax.tree.leaves(network.weights), jax.tree.leaves(network.mask), strict=True
    ):
        assert np.unique(leaf).size <= 5
        assert not np.any(np.asarray(leaf)[~np.asarray(keep)])


@pytest.mark.parametrize("bits", [2, 8])
def test_weights_end_on_the_grids_that_they_were_trained_on(bits):
    phase, network = TrainQuantized(epochs=1, bits=bits, **ADAM), initial()
    tx = phase.links(network, 0.9, 10, None)
    weights = phase.begin(network, 0.9)
    state, update = tx.init(weights), jax.jit(tx.update)
    for _ in range(3):
        updates, state = update(jax.tree.map(jnp.cos, weights), state, weights)
        weights = optax.apply_updates(weights, updates)
    ended = phase.end(weights, phase.in_force(network, weights, state), 0.9, None, None)
    chex.assert_trees_all_close(ended.weights, weights, rtol=1e-5)


def test_the_result_has_the_size_of_the_file(tmp_path):
    result, _ = run_phases(tmp_path, QUANTIZED, export=True, evaluations=1)
    assert result["file"]["values"] == 50_200 * 2 // 8
    assert result["file"]["places"] == 0
    assert result["file"]["total"] == (tmp_path / "network.bin").stat().st_size


@pytest.mark.parametrize("density", [0.0, 0.001, 0.02, 0.5, 1.0])
def test_floats_of_any_density_come_back(tmp_path, density):
    random = np.random.default_rng(0)
    network = initial()
    mask = jax.tree.map(lambda keep: jnp.asarray(random.random(keep.shape) < density), network.mask)
    network = network._replace(weights=jp.apply_mask(network.weights, mask), mask=mask)
    size = exported.write(network, tmp_path / "network.bin")
    assert size.values == 4 * jp.count(mask)
    assert size.places <= 50_200 // 8 + 200
    read = exported.with_leaves(initial(seed=1), exported.read(tmp_path / "network.bin"))
    chex.assert_trees_all_equal(read.weights, network.weights)


def test_processes_wait_for_the_whole_file(tmp_path, monkeypatch):
    path, found = tmp_path / "network.bin", []

    def shown(*values):
        found.append(path.stat().st_size)
        return np.array([values])

    monkeypatch.setattr(processes, "shown", shown)
    size = exported.write(initial(), path)
    assert found == [size.total]
    assert [*tmp_path.iterdir()] == [path]


def test_wrong_settings():
    with pytest.raises(ValueError, match="projections must be at least 1, got 0"):
        Compress(epochs=1, projections=0)
