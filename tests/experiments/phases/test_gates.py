"""Gates, sensitivities and dying channels in runs of a small residual network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune as jp
from experiments import checkpoints, data, run, training
from experiments.log import Log
from experiments.phases import (
    Dense,
    FineTune,
    Network,
    PruneBySensitivity,
    RemoveDying,
    Shrink,
    TrainGates,
)
from experiments.room import Room
from experiments.usage import UsageError
from tests.experiments.runs import SMALL, rows

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "one_device")

ADAM = {"batch": 64, "learning_rate": 3e-3, "optimizer": "adam", "weight_decay": 0.0}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", limit=256)


def run_resnet(folder, digits, *phases, **changes):
    settings = {"sparsity": 0.5, "evaluations": 2, "steps_per_call": 1, **changes}
    experiment = dataclasses.replace(SMALL, model="resnet8", phases=phases, **settings)
    return run.run(experiment, digits, folder)


class Small(nnx.Module):
    """Two hidden layers, of which the first goes through a norm."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.5, rngs=rngs)
        self.second = nnx.Linear(16, 12, rngs=rngs)
        self.last = nnx.Linear(12, 10, rngs=rngs)

    def __call__(self, images, train=False):
        norm = functools.partial(self.norm, use_running_average=not train)
        hidden = nnx.relu(norm(self.first(images.reshape(len(images), -1))))
        return self.last(nnx.relu(self.second(hidden)))


def small(digits):
    graph, weights, rest = nnx.split(Small(nnx.Rngs(0)), nnx.Param, ...)
    return Network(weights, rest, jp.prunable(weights, "kernel")), Room(graph, digits)


def widths(network):
    return network.weights["first"]["kernel"].shape[1], network.weights["last"]["kernel"].shape[0]


def test_a_step_is_that_of_the_gates_alone(digits):
    network, room = small(digits)
    phase = TrainGates(1, batch=64, strength=3.0, start=0.1, sharpest=100.0).in_room(network, room)
    trained = phase.begin(network, 0.5)
    batch = room.task.batch(digits.train, jax.random.key(0))
    loss_of = lambda weights, rest: room.frozen_loss(weights, rest, batch)
    loss, _, grads = phase.gradients(trained, network.rest, loss_of, None, jnp.float32(0.5))

    def expected(scores):  # of the family behind the norm, at the sharpness 100 ** 0.5
        gate = jax.nn.sigmoid(10 * scores)
        weights = jax.tree.map(jnp.copy, network.weights)
        for name in ("scale", "bias"):
            weights["norm"][name] = weights["norm"][name].replace(weights["norm"][name][...] * gate)
        loss = room.frozen_loss(weights, network.rest, batch)[0]
        return loss + 3.0 * jnp.mean(jax.nn.sigmoid(scores)), loss

    scores = jnp.full(16, 0.1)
    wanted, plain = jax.grad(expected, has_aux=True)(scores)
    np.testing.assert_allclose(loss, plain, rtol=1e-5)
    (found,) = jax.tree.leaves(grads["gates"])
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)
    assert not any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(grads["weights"]))


@pytest.mark.usefixtures("no_pictures")
def test_only_gates_are_trained_and_statistics_of_norms_stay(digits, tmp_path):
    network, room = small(digits)
    phase, log = TrainGates(2, batch=64), Log(tmp_path / "metrics.jsonl", digits.task.metric)
    experiment = dataclasses.replace(SMALL, phases=(phase,), evaluations=1)
    saved = checkpoints.saved_in(tmp_path / "checkpoints", 1e9, room.devices)
    key, of_phase = jax.random.key(0), log.of_phase(0, "gates")
    found = training.train(phase, network, experiment, room, key, of_phase, saved)
    jax.tree.map(np.testing.assert_array_equal, found.rest, network.rest)
    kernels = lambda of: [of[name]["kernel"] for name in ("first", "second", "last")]
    masked = kernels(jp.apply_mask(network.weights, found.mask))
    jax.tree.map(np.testing.assert_array_equal, kernels(found.weights), masked)
    assert rows(tmp_path)[-1]["dying"] == 0


def test_a_frozen_loss_is_that_of_evaluation(digits):
    network, room = small(digits)
    batch = room.task.batch(digits.train, jax.random.key(0))
    loss, rest = room.frozen_loss(network.weights, network.rest, batch)
    logits = room.outputs(network.parameters(), batch[0])
    wanted = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, rest, network.rest)


def test_gates_that_shut_are_cut_and_leave(digits):
    network, room = small(digits)
    phase = TrainGates(1, batch=64, sharpest=100.0).in_room(network, room)
    trained = phase.begin(network, 0.5)
    scores = jnp.linspace(-0.1, 0.1, 16)
    trained["gates"] = tuple(None if own is None else scores for own in trained["gates"])
    found = phase.end(trained, network, 0.5, None, None)
    stay = int(jnp.sum(jax.nn.sigmoid(100 * scores) > 0.9))
    assert widths(Shrink().apply(found, 0.5, room)) == (stay, 12)
    gate = jax.nn.sigmoid(100 * scores)
    np.testing.assert_allclose(found.weights["norm"]["scale"][-stay:], gate[-stay:], rtol=1e-5)
    trained["gates"] = tuple(None if own is None else scores - 1 for own in trained["gates"])
    found = phase.end(trained, network, 0.5, None, None)  # all are shut: the most open one stays
    assert widths(Shrink().apply(found, 0.5, room)) == (1, 12)


@pytest.mark.parametrize("draw", [False, True])
def test_sensitivities_hold_the_budget(digits, draw):
    network, room = small(digits)
    found = PruneBySensitivity(records=8, batch=4, draw=draw).apply(network, 0.5, room)
    first, last = widths(Shrink().apply(found, 0.5, room))
    whole = 64 * 16 + 16 * 12 + 12 * 10
    assert 0.4 * whole < 64 * first + first * last + last * 10 <= 0.5 * whole
    with pytest.raises(UsageError, match=r"sensitivity: the budget is .* but one channel"):
        PruneBySensitivity(records=8, batch=4).apply(network, 1.0, room)


def with_scales(network, scales):
    weights = jax.tree.map(jnp.copy, network.weights)
    weights["norm"]["scale"] = weights["norm"]["scale"].replace(scales)
    return network._replace(weights=weights)


@pytest.mark.parametrize(("dead", "left"), [(3, 13), (16, 1)])
def test_what_has_died_leaves_but_for_one_of_each_family(digits, capsys, dead, left):
    network, room = small(digits)
    scales = jnp.where(jnp.arange(16) < dead, 1e-5 * jnp.arange(1.0, 17.0), 1.0)
    pruned = RemoveDying().apply(with_scales(network, scales), 0.5, room)
    assert widths(Shrink().apply(pruned, 0.5, room)) == (left, 12)
    assert f"dying: {16 - left} of 28 groups of channels died" in capsys.readouterr().out


def test_networks_without_norms_have_no_gates_and_nothing_dies(tmp_path, digits):
    network, graph = run.initial_network("lenet300100", digits.task, jax.random.key(0))
    with pytest.raises(UsageError, match="dying: no group of channels goes through"):
        RemoveDying().apply(network, 0.5, Room(graph, digits))
    experiment = dataclasses.replace(SMALL, phases=(TrainGates(1, batch=64),))
    with pytest.raises(UsageError, match="gates: no group of channels goes through"):
        run.run(experiment, digits, tmp_path)


@pytest.mark.parametrize(
    ("phase", "option"),
    [(TrainGates, {"open_from": 1.0}), (TrainGates, {"sharpest": 1.0})],
)
def test_options_of_gates_are_checked(phase, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} must "):
        phase(1, **option)


def test_the_kind_of_budget_is_checked():
    with pytest.raises(ValueError, match="of must be "):
        PruneBySensitivity(of="seconds")


@pytest.mark.slow
def test_a_residual_network_trains_its_gates_and_trains_on_without_channels(tmp_path, digits):
    dense, gates = Dense(4, **ADAM), TrainGates(8, batch=64)
    phases = (dense, gates, Shrink(), FineTune(2, **ADAM))
    experiment = dataclasses.replace(SMALL, model="resnet8", phases=phases, evaluations=2)
    result = run.run(experiment, digits, tmp_path)
    assert result["size"]["after"]["flops"] < result["size"]["before"]["flops"]
    assert result["accuracy"] > 0.5
    found = rows(tmp_path)
    assert found[0]["sparsity"] == 0 < found[3]["sparsity"]
    assert all(row["dying"] == sum(row["dying_by_leaf"].values()) for row in found)
    again = run.run(experiment, digits, tmp_path)
    assert again["accuracy"] == result["accuracy"]
