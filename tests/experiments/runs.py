"""Short runs on the digits, and what they leave."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments import data, outcomes, run
from experiments.devices import Devices
from experiments.experiment import Experiment
from experiments.phases import Dense, FineTune, Network, Search

ROOT = Path(__file__).parents[2]
WEIGHTS = 64 * 300 + 300 * 100 + 100 * 10
DENSE = Dense(epochs=10, batch=64)
SEARCH = Search(epochs=2, batch=64)
FINE_TUNE = FineTune(epochs=2, batch=64)
SMALL = Experiment(
    "lenet300100", "digits", (SEARCH, FINE_TUNE), sparsity=0.9, limit=256, evaluations=4
)


def run_phases(folder, *phases, reuse=None, **changes):
    """The result of `SMALL` with other phases, and the network after the last one."""
    experiment = dataclasses.replace(SMALL, phases=phases, **changes)
    dataset = data.load("digits", limit=experiment.limit, **experiment.dataset_options)
    result = run.run(experiment, dataset, folder, reuse=reuse)
    return result, outcome(folder, f"{len(phases) - 1}-{phases[-1].name}")


@functools.cache
def initial(seed=0, model="lenet300100") -> Network:
    """The network that a run begins with."""
    key = jax.random.fold_in(jax.random.key(seed), 0)
    return run.initial_network(model, data.load("digits", limit=1).task, key)[0]


def outcome(folder, name) -> Network:
    """What a phase, such as `0-search`, left in the folder of a run."""
    return outcomes.load(folder / f"network-{name}", initial(), Devices.all())


def rows(folder, without=()):
    """The evaluations of a run."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in without}
        for line in lines
    ]


def kept_of(mask):
    """How many weights a mask keeps."""
    return sum(int(jnp.sum(leaf)) for leaf in jax.tree.leaves(mask))


def evaluated(phase, count):
    """The moment when the run in a folder has evaluated `phase` so many times."""

    def now(folder):
        path = folder / "metrics.jsonl"
        return path.exists() and path.read_text().count(f'"{phase}"') >= count

    return now
