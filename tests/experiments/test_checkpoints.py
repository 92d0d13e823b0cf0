"""What is loaded: the last state, as this run wants it to lie; nothing of another network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import checkpoints, outcomes, processes
from experiments.devices import Devices
from experiments.usage import UsageError
from tests.experiments.runs import initial


def state(width=24):
    weights = {"up": {"kernel": jnp.arange(16.0 * width).reshape(16, width)}}
    return {"weights": weights, "key": jax.random.key(1), "step": jnp.int32(3)}


def save(folder, devices, tree, step=3):
    with checkpoints.saved_in(folder, 0, devices) as saved:
        saved.save_if_due(step, devices.placed(tree))


@pytest.mark.parametrize("text", ["data:4,model:2", "model:8"])
def test_a_checkpoint_of_another_mesh_is_loaded_and_lies_as_wanted(tmp_path, text):
    save(tmp_path, Devices.all(shard_from=1), state())
    devices = Devices.of(text, model_axes={"up": 1}, shard_from=1)
    like = devices.placed(jax.tree.map(jnp.zeros_like, state() | {"key": jax.random.key(0)}))
    with checkpoints.saved_in(tmp_path, 0, devices) as saved:
        found = saved.latest(like)
    kernel = found["weights"]["up"]["kernel"]
    np.testing.assert_array_equal(kernel, state()["weights"]["up"]["kernel"])
    assert kernel.sharding.spec == devices.spec("up", (16, 24))
    assert (jax.random.key_data(found["key"]) == jax.random.key_data(jax.random.key(1))).all()


def test_a_checkpoint_of_another_network_is_refused_and_stays(tmp_path):
    devices = Devices.all()
    save(tmp_path, devices, state())
    before = sorted(tmp_path.rglob("*"))
    for other, said in (
        (state(width=32), r"up/kernel is of shape \(16, 24\) there and of shape \(16, 32\) here"),
        (state() | {"bias": jnp.ones(3)}, r"bias is missing there and of shape \(3,\) here"),
    ):
        with (
            pytest.raises(UsageError, match=said),
            checkpoints.saved_in(tmp_path, 0, devices) as saved,
        ):
            saved.latest(devices.placed(other))
    assert sorted(tmp_path.rglob("*")) == before


def test_an_outcome_of_another_network_is_refused(tmp_path):
    outcomes.save(tmp_path / "network", initial(), "settings")
    other = initial()._replace(rest={"mean": jnp.ones(3)})
    with pytest.raises(UsageError, match=r"rest/mean is missing there and of shape \(3,\) here"):
        outcomes.load(tmp_path / "network", other, Devices.all())


def test_several_processes_look_at_clocks_now_and_then(monkeypatch):
    """At 8 steps a second each 40th, when that rate is known; and as often as checkpoints need."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert looks(monkeypatch, seconds=1000) == [1, 3, 7, 15, 31, 63, 103, 143, 183]
    assert looks(monkeypatch, seconds=4)[-3:] == [183, 191, 199]


def looks(monkeypatch, seconds):
    """The steps at which the others are asked."""
    asked, now = [], [0.0]
    monkeypatch.setattr(
        processes, "shown", lambda *values: np.array([asked.append(step) or values])
    )
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    saved = checkpoints.Checkpoints(None, seconds, Devices.all())
    saved._save = lambda *args: None
    for step in range(1, 201):
        now[0] = step / 8
        saved.save_if_due(step, None)
    return asked
