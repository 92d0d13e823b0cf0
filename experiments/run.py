"""Runs one experiment from its config file, or goes on with it if it was stopped.

    python -m experiments.run experiments/configs/digits_probmask.py
    python -m experiments.run experiments/configs/mnist_probmask.py --data_dir=~/data --density=0.01

The folder of a run holds settings.txt, metrics.jsonl (a line for each evaluation), table.txt,
picture.png, result.json, the outcome of each phase (weights, rest and mask) and, while it runs,
checkpoints. A run that was killed, at any moment, continues under the same command to the same
bits. All devices share each batch.
"""

import argparse
import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from orbax.checkpoint import v1 as ocp

import jaxprune as jp
from experiments import data, figures, models, training
from experiments.phases import Network


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config file defines as `experiment`; the command line can change all but `phases`.

    `limit` is the number of training records (None: all), `holdout` how many of them are kept apart
    to choose masks by, `evaluations` how many times each phase is evaluated on the test records.
    """

    model: str
    dataset: str
    phases: tuple[Any, ...]
    density: float = 0.1
    seed: int = 0
    limit: int | None = None
    holdout: int = 0
    evaluations: int = 20


def main(arguments: list[str] | None = None) -> dict:
    """Runs the command line; returns what is written to result.json."""
    flags = parse(arguments)
    experiment = configured(flags)
    dataset = data.load(
        experiment.dataset, flags.data_dir, cache_dir=flags.cache_dir, limit=experiment.limit
    )
    folder = Path(flags.out or f"runs/{describe(flags.config, experiment)}").absolute()
    return run(experiment, dataset, folder, flags.checkpoint_seconds)


def run(
    experiment: Experiment, dataset: data.Dataset, folder: Path, checkpoint_seconds: float = 60.0
) -> dict:
    """Runs all phases in `folder` and leaves table, picture and result there."""
    key = jax.random.key(experiment.seed)
    network, graph = initial_network(experiment.model, dataset, jax.random.fold_in(key, 0))
    room = training.Room(graph, dataset, experiment.holdout)
    for phase in experiment.phases:
        room.check(phase)
    network = room.replicated(network)
    claim(folder, experiment)
    log = training.Log(folder / "metrics.jsonl")

    for number, phase in enumerate(experiment.phases):
        outcome = folder / f"network-{number}-{phase.name}"
        checkpoints = folder / f"checkpoints-{number}-{phase.name}"
        if outcome.exists():
            loaded: Any = ocp.load(str(outcome), training.abstract(network))
            network = loaded
        elif phase.epochs:
            network = training.train(
                phase,
                network,
                experiment.density,
                room,
                jax.random.fold_in(key, number + 1),
                log.of_phase(number, phase.name),
                checkpoints,
                checkpoint_seconds,
                experiment.evaluations,
            )
        else:
            network = phase.end(network, experiment.density)
        if not outcome.exists():
            ocp.save(str(outcome), network)
        shutil.rmtree(checkpoints, ignore_errors=True)

    accuracy = float(room.test_accuracy(network.masked_weights(), network.rest))
    return report(experiment, network, accuracy, log, folder)


def claim(folder: Path, experiment: Experiment) -> None:
    """Makes the folder this experiment's, or raises a ValueError if it is another's."""
    settings = folder / "settings.txt"
    if settings.exists() and settings.read_text() != repr(experiment):
        raise ValueError(
            f"{folder} holds a run with other settings ({settings.name}): choose another --out, or "
            "remove it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    settings.write_text(repr(experiment))


def initial_network(model: str, dataset: data.Dataset, key) -> tuple[Network, nnx.GraphDef]:
    """A model at its random initialisation, with a mask that keeps everything."""
    built = models.build(model, dataset.classes, dataset.image_shape, nnx.Rngs(key))
    graph, weights, rest = nnx.split(built, nnx.Param, ...)
    return Network(weights, rest, jp.prunable(weights)), graph


def report(experiment, network: Network, accuracy: float, log, folder: Path) -> dict:
    """Writes and prints what the run found."""
    layers = jp.layers(network.mask)
    result = {
        "accuracy": accuracy,
        "kept": sum(layer.kept for layer in layers),
        "weights": sum(layer.size for layer in layers),
        "density_by_layer": {layer.path: layer.density for layer in layers},
        "seconds": sum(row["seconds"] for row in log.rows),
        "experiment": dataclasses.asdict(experiment),
    }
    table = jp.table(network.mask)
    (folder / "table.txt").write_text(table + "\n")
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    figures.run_picture(log.rows, layers, folder / "picture.png")
    print(table)
    print(f"test accuracy {accuracy:.2%} with {result['kept']:,} of {result['weights']:,} weights")
    for name in ("table.txt", "picture.png", "metrics.jsonl", "result.json"):
        print(folder / name)
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a Python file that defines `experiment`")
    parser.add_argument("--data_dir", help="where TensorFlow Datasets lie")
    parser.add_argument("--cache_dir", help="where to keep decoded images for the next run")
    parser.add_argument("--out", help="folder of this run (default: runs/<its settings>)")
    parser.add_argument("--checkpoint_seconds", type=float, default=60.0)
    parser.add_argument("--epochs", help="epochs of the phases that train, such as 20,20")
    for name, kind in _OVERRIDES.items():
        parser.add_argument(f"--{name}", type=kind)
    return parser.parse_args(arguments)


_OVERRIDES = {
    "model": str,
    "dataset": str,
    "density": float,
    "seed": int,
    "limit": int,
    "holdout": int,
    "evaluations": int,
}


def configured(flags: argparse.Namespace) -> Experiment:
    """The config file's experiment with the command line's changes."""
    path = Path(flags.config)
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}; those at hand are in experiments/configs")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    changes = {name: getattr(flags, name) for name in _OVERRIDES}
    changes = {name: value for name, value in changes.items() if value is not None}
    if flags.epochs is not None:
        changes["phases"] = with_epochs(module.experiment.phases, flags.epochs)
    experiment = dataclasses.replace(module.experiment, **changes)
    if not 0 <= experiment.density <= 1:
        raise ValueError(f"--density must lie in [0, 1], got {experiment.density}")
    return experiment


def with_epochs(phases, text: str):
    """The phases with other numbers of epochs for those that train."""
    numbers = [int(number) for number in text.split(",")]
    names = [phase.name for phase in phases if phase.epochs]
    if len(numbers) != len(names) or min(numbers) < 1:
        raise ValueError(f"--epochs needs a positive number for each of {names}, got {text!r}")
    remaining = iter(numbers)
    return tuple(
        dataclasses.replace(phase, epochs=next(remaining)) if phase.epochs else phase
        for phase in phases
    )


def describe(config: str, experiment: Experiment) -> str:
    """A folder name made of a run's settings."""
    epochs = "+".join(str(phase.epochs) for phase in experiment.phases if phase.epochs)
    return (
        f"{Path(config).stem}-{experiment.dataset}-{experiment.model}"
        f"-density{experiment.density:g}-epochs{epochs}-seed{experiment.seed}"
    )


if __name__ == "__main__":
    main()
