"""Runs one experiment from its config file, or goes on with it if it was stopped.

    python -m experiments.run experiments/configs/digits_probmask.py
    python -m experiments.run experiments/configs/mnist_probmask.py --data_dir=~/data --density=0.01
    python -m experiments.run experiments/configs/mnist_hoyer.py --data_dir=~/data \\
        --set=regularize.strength=1e-4 --set=threshold.value=0.1

The folder of a run holds settings.txt, metrics.jsonl (a line for each evaluation), table.txt,
picture.png, result.json, the outcome of each phase (weights, rest and mask, and the settings that
led to them) and, while it runs, checkpoints. A run that was killed, at any moment, continues under
the same command to the same bits. All devices share each batch.
"""

import argparse
import ast
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
from experiments import data, figures, models, structure, training
from experiments.phases import Network


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config file defines as `experiment`; the command line can change all but `phases`.

    `limit` is the number of training records (None: all), `holdout` how many of them are kept apart
    to choose masks and settings by, `evaluations` how many times each phase is evaluated on the
    test records. `standardize=False` leaves pixels in [0, 1]. `steps_per_call` steps run on the
    device before the host is asked for more: of use where a step takes less than a millisecond.
    """

    model: str
    dataset: str
    phases: tuple[Any, ...]
    density: float = 0.1
    seed: int = 0
    limit: int | None = None
    holdout: int = 0
    evaluations: int = 20
    standardize: bool = True
    steps_per_call: int = 1


def main(arguments: list[str] | None = None) -> dict:
    """Runs the command line; returns what is written to result.json."""
    flags = parse(arguments)
    experiment = configured(flags)
    dataset = data.load(
        experiment.dataset, flags.data_dir, cache_dir=flags.cache_dir, limit=experiment.limit
    )
    folder = Path(flags.out or f"runs/{describe(flags, experiment)}").absolute()
    reuse = Path(flags.reuse).absolute() if flags.reuse else None
    return run(experiment, dataset, folder, flags.checkpoint_seconds, reuse)


def run(
    experiment: Experiment,
    dataset: data.Dataset,
    folder: Path,
    checkpoint_seconds: float = 60.0,
    reuse: Path | None = None,
) -> dict:
    """Runs all phases in `folder` and leaves table, picture and result there.

    Phases that a run beneath the folder `reuse` has finished with the same settings are copied.
    """
    if not experiment.standardize:
        dataset = data.without_standardization(dataset)
    key = jax.random.key(experiment.seed)
    network, graph = initial_network(experiment.model, dataset, jax.random.fold_in(key, 0))
    room = training.Room(graph, dataset, experiment.holdout)
    for phase in experiment.phases:
        room.check(phase)
    network = room.replicated(network)
    claim(folder, experiment)
    log = training.Log(folder / "metrics.jsonl")
    if reuse:
        take_over(experiment, folder, log, reuse)

    for number, phase in enumerate(experiment.phases):
        outcome = folder / outcome_name(experiment, number)
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
                experiment.steps_per_call,
            )
        else:
            network = phase.end(network, experiment.density, room)
        if not outcome.exists():
            outcome.with_suffix(".txt").write_text(history(experiment, number))
            ocp.save(str(outcome), network)
        shutil.rmtree(checkpoints, ignore_errors=True)

    network = network._replace(weights=network.masked_weights())
    accuracies = {"accuracy": float(room.test_accuracy(network.weights, network.rest))}
    if experiment.holdout:
        found = room.heldout_accuracy(network.weights, network.rest)
        accuracies["heldout_accuracy"] = float(found)
    left = structure.of(experiment.model, dataset.image_shape, network.mask)
    return report(experiment, network, accuracies, left, log, folder)


def outcome_name(experiment: Experiment, number: int) -> str:
    """The folder in which the outcome of phase `number` is kept."""
    return f"network-{number}-{experiment.phases[number].name}"


def history(experiment: Experiment, number: int) -> str:
    """All settings that the outcome of phase `number` depends on."""
    return repr(dataclasses.replace(experiment, phases=experiment.phases[: number + 1]))


def take_over(experiment: Experiment, folder: Path, log: training.Log, reuse: Path) -> None:
    """Copies the outcomes, and the log, of the first phases from runs that have finished them."""
    for number in range(len(experiment.phases)):
        name = outcome_name(experiment, number)
        wanted = history(experiment, number)
        if (folder / name).exists():
            continue
        for settings in sorted(reuse.glob(f"*/{name}.txt")):
            found = settings.with_suffix("")
            if found.exists() and settings.read_text() == wanted:
                break
        else:
            return
        rows = training.Log(found.parent / log.path.name).rows
        log.keep([*log.rows, *(row for row in rows if row["number"] == number)])
        shutil.copytree(found, folder / f"{name}.partial", dirs_exist_ok=True)
        (folder / f"{name}.txt").write_text(wanted)
        (folder / f"{name}.partial").rename(folder / name)


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


def report(
    experiment: Experiment,
    network: Network,
    accuracies: dict,
    left: structure.Structure | None,
    log: training.Log,
    folder: Path,
) -> dict:
    """Writes and prints what the run found."""
    layers = jp.layers(network.mask)
    result = {
        **accuracies,
        "kept": sum(layer.kept for layer in layers),
        "weights": sum(layer.size for layer in layers),
        "dense_parameters": sum(leaf.size for leaf in jax.tree.leaves(network.weights))
        - sum(layer.size for layer in layers),
        "density_by_layer": {layer.path: layer.density for layer in layers},
        "seconds": sum(row["seconds"] for row in log.rows),
        "experiment": dataclasses.asdict(experiment),
    }
    if left:
        result["structure"] = left._asdict()
    table = jp.table(network.mask)
    (folder / "table.txt").write_text(table + "\n")
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    figures.run_picture(log.rows, layers, folder / "picture.png")
    print(table)
    kept, weights = result["kept"], result["weights"]
    print(f"test accuracy {result['accuracy']:.2%} with {kept:,} of {weights:,} weights")
    if left:
        print(f"{left.macs:,} of {left.macs_before:,} MACs; alive inputs: {left.inputs}")
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
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        help="a setting of a phase, such as threshold.value=0.1; may be repeated",
    )
    parser.add_argument(
        "--reuse", help="folder of runs: phases that one of them has finished alike are copied"
    )
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
    "steps_per_call": int,
}


def configured(flags: argparse.Namespace) -> Experiment:
    """The config file's experiment with the command line's changes."""
    defined = definitions(flags.config)["experiment"]
    changes = {name: getattr(flags, name) for name in _OVERRIDES}
    changes = {name: value for name, value in changes.items() if value is not None}
    if flags.epochs is not None:
        changes["phases"] = with_epochs(defined.phases, flags.epochs)
    experiment = dataclasses.replace(defined, **changes)
    for setting in flags.set:
        experiment = dataclasses.replace(
            experiment, phases=with_setting(experiment.phases, setting)
        )
    if not 0 <= experiment.density <= 1:
        raise ValueError(f"--density must lie in [0, 1], got {experiment.density}")
    return experiment


def definitions(config: str) -> dict[str, Any]:
    """What a config file defines."""
    path = Path(config)
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}; those at hand are in experiments/configs")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


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


def with_setting(phases, setting: str):
    """The phases with one field changed, which is given as `phase.field=value`."""
    target, _, text = setting.partition("=")
    name, _, field = target.partition(".")
    choices = [
        f"{phase.name}.{each.name}"
        for phase in phases
        for each in dataclasses.fields(phase)
        if each.name != "name"
    ]
    if target not in choices or not text:
        raise ValueError(f"--set needs =value after one of {choices}, got {setting!r}")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    return tuple(
        dataclasses.replace(phase, **{field: value}) if phase.name == name else phase
        for phase in phases
    )


def describe(flags: argparse.Namespace, experiment: Experiment) -> str:
    """A folder name made of a run's settings."""
    epochs = "+".join(str(phase.epochs) for phase in experiment.phases if phase.epochs)
    settings = "".join(f"-{setting.replace('=', '')}" for setting in flags.set)
    return (
        f"{Path(flags.config).stem}-{experiment.dataset}-{experiment.model}"
        f"-density{experiment.density:g}-epochs{epochs}{settings}-seed{experiment.seed}"
    )


if __name__ == "__main__":
    main()
