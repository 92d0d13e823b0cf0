"""What a config file and flags make of an experiment, and what they can't."""

import dataclasses
from pathlib import Path

import jax
import pytest

from experiments import data, run
from experiments.phases import Dense, FineTune, PruneMagnitudes, Regularize, Search, Threshold

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

ROOT = Path(__file__).parents[2]
SEARCH = Search(epochs=2, batch=64)
FINE_TUNE = FineTune(epochs=2, batch=64)
SMALL = run.Experiment(
    "lenet300100", "digits", (SEARCH, FINE_TUNE), density=0.1, limit=256, evaluations=4
)


def test_command_line_changes_the_experiment(config):
    flags = ["--density=0.5", "--seed=7", "--epochs=3,4", "--holdout=20", "--limit=100"]
    experiment = run.configured(run.parse([config(SMALL), *flags]))
    assert experiment == dataclasses.replace(
        SMALL,
        phases=(dataclasses.replace(SEARCH, epochs=3), dataclasses.replace(FINE_TUNE, epochs=4)),
        density=0.5,
        seed=7,
        holdout=20,
        limit=100,
    )
    assert run.configured(run.parse([config(SMALL)])) == SMALL
    name = run.describe(run.parse(["a/small.py"]), experiment)
    assert name == "small-digits-lenet300100-density0.5-epochs3+4-seed7"


def test_epochs_skip_phases_that_train_nothing(config):
    experiment = dataclasses.replace(SMALL, phases=(Dense(5), PruneMagnitudes(), FineTune(6)))
    changed = run.configured(run.parse([config(experiment), "--epochs=1,2"]))
    assert changed.phases == (Dense(1), PruneMagnitudes(), FineTune(2))


@pytest.mark.parametrize(
    ("changes", "flags", "error", "message"),
    [
        ({}, ["--density=1.2"], ValueError, r"--density must lie in \[0, 1\], got 1.2"),
        ({}, ["--density=nan"], ValueError, r"--density must lie in \[0, 1\], got nan"),
        ({}, ["--epochs=3"], ValueError, "a positive number for each of .'search', 'fine-tune'"),
        ({}, ["--epochs=3,0"], ValueError, "a positive number for each of"),
        ({}, ["--dataset=svhn"], ValueError, "unknown data set 'svhn'"),
        ({}, ["--model=alexnet"], ValueError, "unknown model 'alexnet'"),
        ({}, ["--dataset=mnist", "--data_dir=gone"], FileNotFoundError, "tfds build mnist"),
        ({}, ["--limit=0"], ValueError, "limit must be between 1 and the 1437"),
        ({}, ["--limit=63"], ValueError, "batch of 64 must .* at most the 63 training records"),
        ({}, ["--holdout=256"], ValueError, "count must be between 1 and 255"),
        (
            {"phases": (SEARCH, FineTune(1, batch=60))},
            [],
            ValueError,
            "batch of 60 must divide by the 8 devices",
        ),
        (
            {"phases": (dataclasses.replace(SEARCH, choose="best_sampled"),)},
            [],
            ValueError,
            "needs held-out records: set --holdout",
        ),
    ],
)
def test_what_cannot_run_is_said_before_anything_is_written(
    config, tmp_path, monkeypatch, changes, flags, error, message
):
    path = config(dataclasses.replace(SMALL, **changes))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        run.main([path, *flags])
    assert [file.name for file in tmp_path.iterdir()] == ["small.py"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("gone.py", FileNotFoundError, "no config file gone.py; those at hand are in experiments"),
        ("plain.txt", ValueError, "plain.txt is not a Python file"),
    ],
)
def test_config_must_be_a_python_file(tmp_path, monkeypatch, name, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.txt").touch()
    with pytest.raises(error, match=message):
        run.main([name])
    assert [file.name for file in tmp_path.iterdir()] == ["plain.txt"]


def test_command_line_sets_fields_of_phases(config):
    path = config(dataclasses.replace(SMALL, phases=(Regularize(3), Threshold(0.1))))
    flags = ["--set=regularize.strength=2e-4", "--set=threshold.rule=absolute", "--seed=1"]
    parsed = run.parse([path, *flags])
    experiment = run.configured(parsed)
    assert experiment.phases == (Regularize(3, strength=2e-4), Threshold(0.1, rule="absolute"))
    assert run.describe(parsed, experiment) == (
        "small-digits-lenet300100-density0.1-epochs3"
        "-regularize.strength2e-4-threshold.ruleabsolute-seed1"
    )


@pytest.mark.parametrize("setting", ["search.epoch=3", "dense.epochs=3", "search.name=a", "search"])
def test_only_fields_of_phases_are_set(config, setting):
    with pytest.raises(ValueError, match=r"'search.epochs'.*, got '" + setting):
        run.configured(run.parse([config(SMALL), f"--set={setting}"]))


@pytest.mark.parametrize(
    ("phase", "option"),
    [
        (Dense, {"optimizer": "lion"}),
        (Dense, {"decay": "linear"}),
        (Regularize, {"penalty": "l0"}),
        (Threshold, {"rule": "rank"}),
    ],
)
def test_phases_know_their_options(phase, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} must be "):
        phase(1, **option)


@pytest.mark.parametrize("option", [{"estimator": "guess"}, {"choose": "any"}])
def test_search_knows_its_options(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} must be "):
        Search(epochs=1, **option)


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("experiments/configs/*.py")), ids=lambda p: p.stem
)
def test_every_config_says_how_it_is_run_and_has_a_schedule(path):
    network, _ = run.initial_network("lenet300100", data.load("digits"), jax.random.key(0))
    experiment = run.configured(run.parse([str(path)]))
    assert f"python -m experiments.run experiments/configs/{path.name}" in path.read_text()
    for phase in experiment.phases:
        if phase.epochs:
            phase.links(network, experiment.density, 100 * phase.epochs)
