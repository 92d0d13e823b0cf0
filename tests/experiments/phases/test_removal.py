"""Channels are pruned to a budget, leave, and training, saving and loading go on without them."""

import functools

import jax
import numpy as np
import pytest

import jaxprune as jp
from experiments import data, outcomes, run
from experiments.devices import Devices
from experiments.phases import FineTune, PruneChannels, PruneMagnitudes, Regularize, Shrink
from experiments.room import Room
from tests.experiments.runs import initial, outcome, rows, run_phases

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "one_device")

ADAM = {"batch": 64, "learning_rate": 3e-3, "optimizer": "adam", "weight_decay": 0.0}
FLOPS = 2 * (64 * 300 + 300 * 100 + 100 * 10)


def sizes(tree):
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


def test_a_run_ends_with_a_smaller_network(tmp_path, capsys):
    phases = (
        Regularize(12, penalty="channel_hoyer_square", strength=1e-2, **ADAM),
        PruneChannels(),
        Shrink(),
        FineTune(10, **ADAM),
    )
    go = functools.partial(run_phases, tmp_path, *phases, steps_per_call=24)
    result, network = go()
    (inputs, first), (_, second), _ = sizes(network.weights)
    assert sizes(network.weights) == [(64, first), (first, second), (second, 10)]
    assert inputs == 64 and first < 300 and second < 100
    before, after = (result["size"][when] for when in ("before", "after"))
    assert before["flops"] == FLOPS and before["parameters"] == FLOPS / 2
    assert after["parameters"] == result["kept"] == 64 * first + first * second + 10 * second
    assert after["flops"] == 2 * after["parameters"] <= 0.1 * FLOPS
    assert after["flops"] + 2 * min(64 + second, first + 10) > 0.1 * FLOPS  # no more would fit
    assert result["accuracy"] > 0.5 and result["weights"] == FLOPS / 2
    printed = capsys.readouterr().out
    assert "0 of 360 test records are scored differently" in printed
    assert f"64x300   64x{first}\n" in (tmp_path / "table.txt").read_text()
    found = rows(tmp_path)
    again, same = go()  # what is saved is loaded with its shapes
    assert rows(tmp_path) == found and again["accuracy"] == result["accuracy"]
    jax.tree.map(np.testing.assert_array_equal, same, network)


@pytest.mark.usefixtures("no_pictures")
def test_widths_are_multiples(tmp_path):
    phases = PruneChannels(multiple_of=8), Shrink()
    result, network = run_phases(tmp_path, *phases, sparsity=0.5)
    (_, first), (_, second), _ = sizes(network.weights)
    assert first % 8 == 0 and (second % 8 == 0 or second == 100)
    after = result["size"]["after"]["flops"]
    assert after <= FLOPS / 2 < after + 16 * min(64 + second, first + 10)  # no 8 more would fit


@pytest.mark.usefixtures("no_pictures")
def test_pruned_channels_of_other_masks_leave_too(tmp_path):
    result, network = run_phases(tmp_path, PruneMagnitudes(), Shrink(partial="keep"), sparsity=0.97)
    assert sum(leaf.size for leaf in jax.tree.leaves(network.weights)) < FLOPS / 2
    assert result["size"]["after"]["parameters"] < FLOPS / 2
    assert outcome(tmp_path, "0-magnitude").mask["fc1"]["kernel"].shape == (64, 300)


def test_masks_are_loaded_as_they_were_saved(tmp_path):
    """Those of biases too, which a run begins without."""
    network = initial()
    outcomes.save(tmp_path / "network", network, "settings")
    without = network._replace(mask=jax.tree.map(lambda _: None, network.mask))
    jax.tree.map(
        np.testing.assert_array_equal,
        outcomes.load(tmp_path / "network", without, Devices.all()),
        network,
    )


def test_the_penalty_is_of_what_leaves_together():
    digits = data.load("digits", limit=8)
    network, graph = run.initial_network("lenet300100", digits.task, jax.random.key(0))
    room = Room(graph, digits)
    channels = room.channels(network)
    norms = jp.channel_norms(network.parameters(), channels)
    kernels = jax.tree.leaves(network.weights)
    first = np.sqrt((kernels[0] ** 2).sum(0) + (kernels[1] ** 2).sum(1))
    assert any(norm.shape == (300,) and np.allclose(norm, first, rtol=1e-5) for norm in norms)


@pytest.mark.parametrize(
    ("phase", "option"), [(PruneChannels, {"of": "seconds"}), (Shrink, {"partial": "maybe"})]
)
def test_options_are_checked(phase, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} must be "):
        phase(**option)
