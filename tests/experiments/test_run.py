"""What a run leaves, what it says of problems, and that devices and calls don't matter."""

import dataclasses
import json
import os

import chex
import jax
import optax
import pytest

import jaxprune as jp
from experiments import run
from experiments.experiment import Experiment
from experiments.phases import Dense, FineTune, PruneMagnitudes, Search
from experiments.usage import UsageError
from tests.experiments.runs import (
    FINE_TUNE,
    SEARCH,
    SMALL,
    WEIGHTS,
    kept_of,
    outcome,
    rows,
    run_phases,
)

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


def test_run_leaves_and_names_its_findings(config, tmp_path, capsys):
    folder = tmp_path / "out"
    path = config(dataclasses.replace(SMALL, sparsity=0.5))
    command = [path, f"--out={folder}", "--sparsity=0.9"]
    result = run.main(command)

    assert sorted(path.name for path in folder.iterdir()) == [
        "metrics.jsonl",
        "network-0-search",
        "network-0-search.txt",
        "network-1-fine-tune",
        "network-1-fine-tune.txt",
        "picture.png",
        "result.json",
        "settings.txt",
        "table.txt",
    ]
    printed = capsys.readouterr().out
    for name in ("table.txt", "picture.png", "metrics.jsonl", "result.json"):
        assert f"{folder / name}\n" in printed
    assert (folder / "table.txt").read_text() in printed
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert f"test accuracy {result['accuracy']:.2%} with 5,020 of 50,200 weights\n" in printed
    assert "problem" not in printed and result["problems"] == []

    network = outcome(folder, "1-fine-tune")
    assert result["kept"] == kept_of(network.mask) == 5_020
    chex.assert_trees_all_equal(network.weights, network.masked_weights())
    chex.assert_trees_all_equal(network.mask, outcome(folder, "0-search").mask)
    assert json.loads((folder / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["structure"]["macs_before"] == WEIGHTS
    assert [(row["number"], row["step"]) for row in rows(folder)] == [
        (number, step) for number in (0, 1) for step in (2, 4, 6, 8)
    ]
    assert rows(folder)[-1]["accuracy"] == result["accuracy"]

    found = rows(folder)
    assert run.main(command) == result  # finished, so nothing is trained again
    assert rows(folder) == found


@pytest.mark.usefixtures("no_pictures")
def test_eight_devices_find_what_one_does(tmp_path, request):
    assert jax.device_count() == 8
    several, _ = run_phases(tmp_path / "8", SEARCH, FINE_TUNE)
    request.getfixturevalue("one_device")
    one, _ = run_phases(tmp_path / "1", SEARCH, FINE_TUNE)
    assert several["kept"] == one["kept"] == WEIGHTS // 10
    assert several["accuracy"] == pytest.approx(one["accuracy"], abs=0.05)
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("8", "1")]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-3)
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


@pytest.mark.usefixtures("one_device", "no_pictures")
def test_steps_in_one_call_are_the_steps_one_by_one(tmp_path):
    phase = Dense(epochs=2, batch=64)  # 4 steps an epoch, an evaluation every 2
    options = {"dataset_options": {"standardize": False}, "holdout": 0}
    (first, one), (second, three) = (
        run_phases(tmp_path / str(calls), phase, steps_per_call=calls, **options)
        for calls in (1, 3)
    )
    chex.assert_trees_all_close(one, three, rtol=1e-5, atol=1e-6)
    assert [len(rows(tmp_path / str(calls))) for calls in (1, 3)] == [4, 4]
    assert first["accuracy"] == pytest.approx(second["accuracy"], abs=2 / 360)
    assert "heldout_accuracy" not in first


@pytest.mark.usefixtures("one_device", "no_pictures")
def test_held_out_records_are_measured_apart(tmp_path):
    result, _ = run_phases(tmp_path, Dense(epochs=1, batch=64), holdout=100)
    correct = result["heldout_accuracy"] * 100
    assert 0 < correct < 100 and correct == pytest.approx(round(correct), abs=1e-4)
    assert rows(tmp_path)[-1]["step"] == 156 // 64


# problems that links note -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Misordered(FineTune):
    """Fine-tuning whose mask stands in front of the optimizer, not behind it."""

    name: str = "misordered"

    def begin(self, network, sparsity):
        return network.weights

    def links(self, network, sparsity, steps, room):
        links = Dense.links(self, network, sparsity, steps, room)
        return optax.chain(jp.keep_mask(network.mask), links)


@pytest.mark.usefixtures("one_device", "no_pictures")
def test_links_in_the_wrong_order_are_said_once_and_kept(tmp_path, capsys):
    phases = (PruneMagnitudes(), Misordered(epochs=2, batch=64), FINE_TUNE)
    result, _ = run_phases(tmp_path, *phases)
    (problem,) = result["problems"]
    assert problem.startswith("misordered: opt_state[0]: pruned weights weren't zero")
    assert json.loads((tmp_path / "result.json").read_text())["problems"] == [problem]
    assert capsys.readouterr().out.count("misordered: problem: opt_state[0]: pruned") == 1
    assert [bool(row["problems"]) for row in rows(tmp_path)] == [True] * 4 + [False] * 4


# real data --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_device")
def test_folder_of_another_run_is_refused(tmp_path):
    (tmp_path / "settings.txt").write_text("Experiment()")
    with pytest.raises(UsageError, match="other settings"):
        run_phases(tmp_path, Dense(epochs=1, batch=64))


@pytest.mark.skipif("JAXPRUNE_TFDS" not in os.environ, reason="JAXPRUNE_TFDS names no tfds folder")
def test_mnist_is_learned(config, tmp_path):
    phases = (Search(epochs=2, batch=40), FineTune(epochs=1, batch=40))
    experiment = Experiment("lenet300100", "mnist", phases, limit=1000, evaluations=2)
    flags = [f"--data_dir={os.environ['JAXPRUNE_TFDS']}", f"--out={tmp_path / 'out'}"]
    result = run.main([config(experiment), *flags])
    assert result["kept"] == 26_620
    assert result["accuracy"] > 0.45
