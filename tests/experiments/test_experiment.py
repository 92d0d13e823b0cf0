"""What a config file and flags make of an experiment."""

import dataclasses
import functools

import jax
import pytest

from experiments import data, run
from experiments.experiment import CONFIGS, Experiment, config_name
from experiments.phases import Dense, FineTune, PruneMagnitudes, Regularize, Threshold
from experiments.room import Room, initial_network
from experiments.usage import UsageError
from tests.experiments.runs import FINE_TUNE, SEARCH, SMALL

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


def test_command_line_changes_the_experiment(config):
    flags = ["--sparsity=0.5", "--seed=7", "--epochs=3,4", "--holdout=20", "--limit=100"]
    experiment = run.configured(run.parse([config(SMALL), *flags]))
    assert experiment == dataclasses.replace(
        SMALL,
        phases=(dataclasses.replace(SEARCH, epochs=3), dataclasses.replace(FINE_TUNE, epochs=4)),
        sparsity=0.5,
        seed=7,
        holdout=20,
        limit=100,
    )
    assert run.configured(run.parse([config(SMALL)])) == SMALL
    name = run.describe(run.parse(["a/small.py"]), experiment)
    assert name == "small-digits-lenet300100-sparsity0.5-epochs3+4-seed7"


def test_how_records_are_read_is_no_setting(config):
    """So a run goes on with other folders and another number of workers."""
    path = config(SMALL)
    flags = ["--workers=3", "--data_dir=sets", "--cache_dir=cache"]
    assert run.configured(run.parse([path, *flags])) == SMALL


def test_epochs_skip_phases_that_train_nothing(config):
    experiment = dataclasses.replace(SMALL, phases=(Dense(5), PruneMagnitudes(), FineTune(6)))
    changed = run.configured(run.parse([config(experiment), "--epochs=1,2"]))
    assert changed.phases == (Dense(1), PruneMagnitudes(), FineTune(2))
    longer = run.configured(run.parse([config(experiment), "--epochs=x4"]))
    assert longer.phases == (Dense(20), PruneMagnitudes(), FineTune(24))


def test_command_line_sets_fields_of_phases_and_options_of_the_data_set(config):
    path = config(dataclasses.replace(SMALL, phases=(Regularize(3), Threshold(0.1))))
    settings = ["regularize.strength=2e-4", "threshold.rule=absolute", "regularize.decay=(0.5,)"]
    settings += ["dataset.standardize=False"]
    parsed = run.parse([path, *(f"--set={setting}" for setting in settings), "--seed=1"])
    experiment = run.configured(parsed)
    assert experiment.phases == (
        Regularize(3, strength=2e-4, decay=(0.5,)),
        Threshold(0.1, rule="absolute"),
    )
    assert experiment.dataset_options == {"standardize": False}
    assert run.describe(parsed, experiment) == (
        "small-digits-lenet300100-sparsity0.9-epochs3-regularize.strength2e-4"
        "-threshold.ruleabsolute-regularize.decay(0.5,)-dataset.standardizeFalse-seed1"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 90}, r"sparsity must lie in \[0, 1\], got 90: give a fraction, not a perc"),
        ({"sparsity": float("nan")}, r"sparsity must lie in \[0, 1\], got nan"),
        ({"sparsity": "0.9"}, "sparsity must be of type float, got '0.9'"),
        ({"phases": SEARCH}, "phases must be of type tuple"),
        ({"phases": (Dense(0),)}, "dense: epochs must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"evaluations": 0}, "evaluations must be at least 1"),
        ({"steps_per_call": 0}, "steps_per_call must be at least 1"),
        ({"limit": 1.5}, "limit must be of type int | None, got 1.5"),
    ],
)
def test_wrong_values_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(SMALL, **changes)


# configs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun():
    """A configuration's network, without computing its weights, and room; each is made once."""

    @functools.cache
    def of(model, dataset, options):
        described = data.described(dataset, **dict(options))
        make = functools.partial(initial_network, model, described.task)
        network, graph = jax.eval_shape(make, jax.random.key(0))
        return network, Room(graph, described)

    return lambda each: of(each.model, each.dataset, tuple(each.dataset_options.items()))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.py")), ids=config_name)
def test_every_config_says_how_it_is_run_and_can_begin(path, begun):
    experiment = run.configured(run.parse([str(path)]))
    assert isinstance(experiment, Experiment)
    command = f"python -m experiments.run experiments/configs/{config_name(path)}.py"
    assert command in path.read_text()
    assert experiment.dataset.startswith(path.parent.name)
    network, room = begun(experiment)

    def check(network, phase):
        steps = 50 * phase.epochs
        here = phase.in_room(network, room)
        links = here.links(network, experiment.sparsity, steps, room)
        assert callable(links.init)

    for phase in experiment.phases:
        if phase.epochs:
            jax.eval_shape(functools.partial(check, phase=phase), network)
