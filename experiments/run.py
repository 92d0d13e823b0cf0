"""Runs one experiment from its config file, or goes on with it if it was stopped.

    python -m experiments.run experiments/configs/digits/probmask.py
    python -m experiments.run experiments/configs/mnist/probmask.py --data_dir=... --sparsity=0.99
    python -m experiments.run experiments/configs/mnist/hoyer.py --data_dir=... \\
        --set=regularize.strength=1e-4 --set=threshold.value=0.1

The folder of a run holds settings.txt, metrics.jsonl (a line for each evaluation), table.txt,
picture.png, result.json, the outcome of each phase (weights, rest and mask, and the settings that
led to them) and, while it runs, checkpoints. A run that was killed, at any moment, continues under
the same command to the same bits. All devices share each batch and what is trained: --mesh says
how. On many hosts the command is started on each, with an --out that they share. What a step takes
on chips that one doesn't have yet, memory above all, --compile_for=v5e:4x4 says.
"""

import argparse
import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

import jaxprune as jp
from experiments import (
    checkpoints,
    data,
    exported,
    figures,
    outcomes,
    processes,
    shrinkage,
    training,
)
from experiments.costs import ahead
from experiments.devices import Devices
from experiments.experiment import Experiment, definitions, with_epochs, with_setting
from experiments.log import Log, announced
from experiments.phases import Network, Shrink
from experiments.room import Room, initial_network
from experiments.usage import Parser, UsageError, exit_with_one_line


def main(arguments: Sequence[str] | None = None) -> dict:
    """Runs the command line; returns what is written to result.json, or of --compile_for found."""
    flags = parse(arguments)
    if arguments is None:  # a command of its own, which has not used JAX yet
        processes.start(flags.coordinator, flags.processes, flags.process)
    experiment = configured(flags)
    if flags.compile_for:
        steps = ahead.steps(experiment, flags.compile_for, flags.mesh)
        print(ahead.text(steps, flags.compile_for))
        return {"steps": [step._asdict() for step in steps]}
    if flags.reuse and not Path(flags.reuse).is_dir():
        raise UsageError(f"--reuse: there is no folder {flags.reuse}")
    with announced(f"reading {experiment.dataset}"):
        dataset = data.load(
            experiment.dataset,
            flags.data_dir,
            cache_dir=flags.cache_dir,
            workers=flags.workers,
            limit=experiment.limit,
            **experiment.dataset_options,
        )
    folder = Path(flags.out or f"runs/{describe(flags, experiment)}").absolute()
    return run(experiment, dataset, folder, flags.checkpoint_seconds, flags.reuse, flags.mesh)


def run(
    experiment: Experiment,
    dataset: data.Dataset,
    folder: Path,
    checkpoint_seconds: float = 60.0,
    reuse: str | Path | None = None,
    mesh: str | None = None,
) -> dict:
    """Runs all phases in `folder` and leaves table, picture and result there.

    Phases that a run beneath the folder `reuse` has finished with the same settings are copied.
    `mesh` is how the devices share the work, such as data:4,model:2; by default all along `data`.
    """
    rules = {"model_axes": experiment.model_axes, "shard_from": experiment.shard_from}
    devices = Devices.of(mesh, **rules) if mesh else Devices.all(**rules)
    key = devices.made(lambda: jax.random.key(experiment.seed))
    initial = functools.partial(initial_network, experiment.model, dataset.task)
    first_key = jax.random.fold_in(key, 0)
    shapes, graph = jax.eval_shape(initial, first_key)
    room = Room(graph, dataset, experiment.holdout, devices)
    check(experiment, shapes, room)
    outcomes.claim(folder, experiment)
    log = Log(folder / "metrics.jsonl", dataset.task.metric)
    if reuse:
        outcomes.take_over(experiment, folder, log, Path(reuse).absolute())

    with announced(f"making {experiment.model}"):
        first, _ = devices.made(initial, first_key)
    network = first
    for number in range(len(experiment.phases)):
        processes.stop_if_asked()
        network = after_phase(number, network, experiment, room, key, log, checkpoint_seconds)

    network = network._replace(weights=network.masked_weights())
    file = None
    if experiment.export:
        file = exported.write(network, folder / "network.bin")
        network = exported.with_leaves(network, exported.read(folder / "network.bin"))
    return report(experiment, first, network, room, log, folder, file)


def after_phase(
    number: int,
    network: Network,
    experiment: Experiment,
    room: Room,
    key: jax.Array,
    log: Log,
    checkpoint_seconds: float,
) -> Network:
    """The outcome of a phase, which lies beside the log if the phase has finished before."""
    phase, folder = experiment.phases[number], log.path.parent
    outcome = folder / outcomes.outcome_name(experiment, number)
    of_phase = folder / f"checkpoints-{number}-{phase.name}"
    finished = processes.agreed(outcome.exists())
    if finished:
        network = outcomes.load(outcome, network, room.devices)
    elif phase.epochs:
        network = training.train(
            phase,
            network,
            experiment,
            room,
            jax.random.fold_in(key, number + 1),
            log.of_phase(number, phase.name),
            checkpoints.saved_in(of_phase, checkpoint_seconds, room.devices),
        )
    else:
        if phase.returns_to is not None:
            earlier = folder / outcomes.outcome_name(experiment, phase.returns_to)
            then = outcomes.load(earlier, network, room.devices)
            network = then._replace(mask=network.mask)
        network = applied(phase, network, experiment, room)
    if not finished:
        network = room.devices.placed(network)
        outcomes.save(outcome, network, outcomes.history(experiment, number))
    if processes.is_main():
        shutil.rmtree(of_phase, ignore_errors=True)
    return network


def applied(phase: Any, network: Network, experiment: Experiment, room: Room) -> Network:
    """The network after a phase that trains nothing."""
    if phase.whole_leaves:
        network = room.devices.replicated(network)
    with announced(phase.name):
        return phase.apply(network, experiment.sparsity, room)


def check(experiment: Experiment, network: Network, room: Room) -> None:
    """Raises a UsageError if a phase can't follow those before it, or begin with these shapes."""
    for number, phase in enumerate(experiment.phases):
        room.check(phase)
        if not phase.epochs and phase.returns_to not in (None, *range(number)):
            raise UsageError(
                f"{phase.name}: returns_to must be a phase before it, of 0 to {number - 1}, "
                f"got {phase.returns_to}"
            )
        try:
            jax.eval_shape(functools.partial(_begun, phase, experiment, room), network)
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"{phase.name}: {error}") from error


def _begun(phase, experiment, room, network):
    if not phase.epochs:
        return phase.check(network, experiment.sparsity, room)
    phase = phase.in_room(network, room)
    steps = training.Steps.of(phase, room.train.count, experiment)
    params = phase.begin(network, experiment.sparsity)
    return phase.links(network, experiment.sparsity, steps.total, room).init(params)


def report(
    experiment: Experiment,
    first: Network,
    network: Network,
    room: Room,
    log: Log,
    folder: Path,
    file: exported.FileSize | None = None,
) -> dict:
    """Writes and prints what the run found, of the network that the first one became."""
    leaves, metric = shrinkage.leaves(first, network), room.task.metric
    sizes = {leaf.path: math.prod(leaf.before) for leaf in leaves}
    layers = [layer._replace(size=sizes[layer.path]) for layer in jp.layers(network.mask)]
    shrunk = any(leaf.before != leaf.after for leaf in leaves)
    findings = {} if shrunk else room.task.findings(experiment.model, network.mask)
    may_shrink = shrunk or any(isinstance(phase, Shrink) for phase in experiment.phases)
    size = shrinkage.sizes(first, network, room) if may_shrink else {}
    result = measured(experiment, network, room, log)
    kept, weights = sum(layer.kept for layer in layers), sum(layer.size for layer in layers)
    result |= {
        "kept": kept,
        "weights": weights,
        "dense_parameters": sum(sizes.values()) - weights,
        "density_by_layer": {layer.path: layer.density for layer in layers},
        **findings,
    }
    if file:
        result["file"] = file._asdict()
    table = jp.table(network.mask)
    if size:
        result["size"] = {when: each._asdict() for when, each in size.items()}
    if shrunk:
        table += f"\n\n{shrinkage.table(leaves)}"
    processes.write(folder / "table.txt", table + "\n")
    if processes.is_main():
        figures.run_picture(log.rows, layers, leaves, metric, folder / "picture.png")
    processes.write(folder / "result.json", json.dumps(result, indent=1) + "\n")
    print(table)
    value = metric.text(result[metric.name])
    print(f"test {metric.name} {value} with {kept:,} of {weights:,} weights")
    for name, found in findings.items():
        print(f"{name}: {found}")
    if file:
        print(f"file: {file.total:,} bytes, of values {file.values:,}, of places {file.places:,}")
    for when, each in size.items():
        print(f"{when}: {shrinkage.text(each)}")
    for name in ("table.txt", "picture.png", "metrics.jsonl", "result.json"):
        print(folder / name)
    return result


def measured(experiment: Experiment, network: Network, room: Room, log: Log) -> dict:
    """How good the network is, how long it took and what went wrong."""
    metric = room.task.metric
    values = {metric.name: float(room.test_metric(network.weights, network.rest))}
    if experiment.holdout:
        found = room.heldout_metric(network.weights, network.rest)
        values[f"heldout_{metric.name}"] = float(found)
    return {
        "metric": metric._asdict(),
        **values,
        "seconds": sum(row["seconds"] for row in log.rows),
        "problems": log.problems(),
        "experiment": dataclasses.asdict(experiment),
    }


# The command line -------------------------------------------------------------------------------


_OVERRIDES = {
    "model": str,
    "dataset": str,
    "sparsity": float,
    "seed": int,
    "limit": int,
    "holdout": int,
    "evaluations": int,
    "steps_per_call": int,
    "shard_from": int,
}


def parser() -> Parser:
    """The flags of this command."""
    parser = Parser(__doc__)
    parser.add_argument("config", help="a Python file that defines `experiment`")
    parser.add_argument("--data_dir", help="where TensorFlow Datasets lie")
    parser.add_argument("--cache_dir", help="where to keep what is read before training")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that read a set on disk, not threads"
    )
    parser.add_argument("--out", help="folder of this run (default: runs/<its settings>)")
    parser.add_argument("--checkpoint_seconds", type=float, default=60.0)
    parser.add_argument(
        "--epochs", help="of the phases that train, such as 20,20, or x4: four times"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        help="a setting of a phase or of the data set, such as threshold.value=0.1 or "
        "dataset.standardize=False; may be repeated",
    )
    parser.add_argument("--mesh", help="how devices share the work, such as data:4,model:2")
    parser.add_argument(
        "--compile_for", help="don't run: say what the steps take on TPUs such as v5e:4x4"
    )
    parser.add_argument("--coordinator", help="host:port of process 0, for several processes")
    parser.add_argument("--processes", type=int, help="how many processes there are")
    parser.add_argument("--process", type=int, help="which of them this is, from 0")
    parser.add_argument(
        "--reuse", help="folder of runs: phases that one of them has finished alike are copied"
    )
    for name, kind in _OVERRIDES.items():
        parser.add_argument(f"--{name}", type=kind)
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    own = parser()
    flags, unknown = own.parse_known_args(arguments)
    own.check_known(unknown)
    for name, value in vars(flags).items():
        if value == "":
            raise UsageError(f"--{name} needs a value, got none")
    if not flags.checkpoint_seconds >= 0:
        raise UsageError(f"--checkpoint_seconds must be at least 0, got {flags.checkpoint_seconds}")
    return flags


def configured(flags: argparse.Namespace) -> Experiment:
    """The config file's experiment with the command line's changes."""
    experiment = definitions(flags.config)["experiment"]
    changes = {name: getattr(flags, name) for name in _OVERRIDES}
    changes = {name: value for name, value in changes.items() if value is not None}
    experiment = dataclasses.replace(experiment, **changes)
    if flags.epochs is not None:
        experiment = with_epochs(experiment, flags.epochs)
    for setting in flags.set:
        experiment = with_setting(experiment, setting)
    data.check(experiment.dataset, experiment.dataset_options)
    return experiment


def describe(flags: argparse.Namespace, experiment: Experiment) -> str:
    """A folder name made of a run's settings."""
    epochs = "+".join(str(phase.epochs) for phase in experiment.phases if phase.epochs)
    settings = "".join(f"-{setting}" for setting in flags.set).replace("=", "").replace("/", "_")
    return (
        f"{Path(flags.config).stem}-{experiment.dataset}-{experiment.model}"
        f"-sparsity{experiment.sparsity:g}-epochs{epochs}{settings}-seed{experiment.seed}"
    )


if __name__ == "__main__":
    exit_with_one_line(main)
