"""A trained network pruned in one shot, by every method: how far off it is, and what it still can.

python -m experiments.run experiments/configs/mnist/dense.py --out=runs/dense --data_dir=...
python -m benchmarks.one_shot runs/dense --where='fc[12]' --data_dir=...
python -m experiments.run experiments/configs/python/decoder4m_learned_patterns.py --out=runs/lm
python -m benchmarks.one_shot runs/lm --targets='50%,60%,70%,2:4'

The run has finished, and its first phase is dense training; whatever model and data set it was of,
the same 1,000 training records, without labels, are what every method sees. If the run went on to
learn N:M patterns of the frozen weights, these are a row of their own. A table for the network: the
test metric, and below it the squared error of the outputs on test records, relative to their
variance. With `--layer=fc1/kernel` instead a table of the error of this layer alone, if it is the
first one and multiplies the flattened inputs.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxprune as jp
from benchmarks import timing
from experiments import data, outcomes
from experiments.phases import Network
from experiments.room import Room, initial_network
from experiments.usage import Parser, UsageError, exit_with_one_line

METHODS = ("magnitude", "wanda", "sparsegpt", "admm")


class Trained(NamedTuple):
    """A dense network in its room, and by the target the patterns that were learned for it."""

    room: Room
    network: Network
    learned: dict[str, Network]


def target_of(name: str) -> float | jp.NM:
    """What a column asks for: "90%", "2:4" or "2:4 transposable"."""
    percent, pattern = name.removesuffix("%"), name.removesuffix(" transposable")
    try:
        if percent != name and 0 <= float(percent) <= 100:
            return float(percent) / 100
        n, m = map(int, pattern.split(":"))
        return jp.NM(n, m, transposable=pattern != name)
    except ValueError as error:
        raise UsageError(
            f"--targets: {name!r} is no target such as 90%, 2:4 or 2:4 transposable"
        ) from error


def check_batch(batch: int, records: int) -> None:
    """Raises a UsageError unless there are records for a batch."""
    if not 1 <= batch <= records:
        raise UsageError(
            f"--batch: {batch} must be at least 1 and at most the {records} training records "
            "that methods see"
        )


def pruned(apply, weights, target, where, batches, shown) -> dict[str, tuple]:
    """What each method makes of the weights; `shown` takes each as it comes."""
    for method in METHODS:
        start = time.perf_counter()
        new, mask = jp.prune_layers(
            apply, weights, target_of(target), batches, method=method, where=where
        )
        jax.block_until_ready(new)
        shown(method, target, new, time.perf_counter() - start)
        if method != "admm":  # whose weights are these already
            fitted = jp.reconstruct(apply, weights, mask, batches)
            shown(f"{method}, then `reconstruct`", target, fitted, None)


def relative_error(outputs: jax.Array, dense: jax.Array) -> float:
    """The squared error over the variance of each output."""
    spread = dense - dense.mean(range(dense.ndim - 1), keepdims=True)
    return float(jnp.sum((outputs - dense) ** 2) / jnp.sum(spread**2))


def table(title: str, targets, cells: dict[tuple[str, str], str]) -> None:
    """Prints a row for each method."""
    print(f"\n{title}\n\n| | {' | '.join(targets)} |\n|---{'|---' * len(targets)}|")
    for method in dict.fromkeys(method for method, _ in cells):
        print(f"| {method} | {' | '.join(cells.get((method, target), '') for target in targets)} |")


def of_network(trained: Trained, where, targets, batches) -> None:
    """The tables of the whole network."""
    room, network, learned = trained
    apply = lambda weights, inputs: room.run(weights, network.rest, inputs, train=False)[0]
    inputs = room.task.inputs(room.test.first(1_000))
    outputs = jax.jit(apply)
    dense = outputs(network.weights, inputs)
    metric = lambda weights: f"{float(room.test_metric(weights, network.rest)):.4f}"
    cells, errors, seconds = {}, {}, {}

    def shown(method, target, weights, took):
        cells[method, target] = metric(weights)
        errors[method, target] = f"{relative_error(outputs(weights, inputs), dense):.4f}"
        if took is not None:
            seconds[method, target] = f"{took:.1f}"
        print(method, target, cells[method, target], flush=True)

    for target in targets:
        pruned(apply, network.weights, target, where, batches, shown)
        if target in learned:
            shown("learned patterns", target, learned[target].masked_weights(), None)
            fitted = jp.reconstruct(apply, network.weights, learned[target].mask, batches)
            shown("learned patterns, then `reconstruct`", target, fitted, None)
    table(f"{room.task.metric.name}, dense {metric(network.weights)}", targets, cells)
    table("Error of the outputs", targets, errors)
    table("Seconds with compilation", targets, seconds)


def of_layer(trained: Trained, name: str, targets, batches) -> None:
    """The table of one layer alone, on test records."""
    room, network, _ = trained
    leaves = jax.tree_util.tree_leaves_with_path(network.weights)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    kernel = next((leaf for path, leaf in named.items() if path.startswith(name)), None)
    if kernel is None or kernel.ndim != 2:
        matrices = [path for path, leaf in named.items() if leaf.ndim == 2]
        raise UsageError(f"--layer: {name!r} is none of the matrices {matrices}")
    apply = lambda weights, inputs: inputs.reshape(len(inputs), -1) @ weights["kernel"]
    inputs = room.task.inputs(room.test.first(1_000))
    errors = {}

    def shown(method, target, weights, _):
        error = relative_error(apply(weights, inputs), apply({"kernel": kernel}, inputs))
        errors[method, target] = f"{error:.5f}"
        print(method, target, errors[method, target], flush=True)

    for target in targets:
        pruned(apply, {"kernel": kernel}, target, None, batches, shown)
    table(f"Error of {name} alone, test records", targets, errors)


def settings_of(folder: Path) -> dict[str, Any]:
    """The experiment that has run to its end in a folder."""
    result = folder / "result.json"
    if not result.exists():
        raise UsageError(
            f"{folder} holds no finished run (it has no {result.name}): run `python -m "
            f"experiments.run CONFIG --out={folder}` to its end first"
        )
    return json.loads(result.read_text())["experiment"]


def load(folder: Path, **paths) -> Trained:
    """What the phases of a run have left."""
    given = settings_of(folder)
    dataset = data.load(given["dataset"], limit=given["limit"], **given["dataset_options"], **paths)
    initial, graph = initial_network(given["model"], dataset.task, jax.random.key(0))
    room = Room(graph, dataset, given["holdout"])
    names = (f"network-{number}-{phase['name']}" for number, phase in enumerate(given["phases"]))
    found = [outcomes.load(folder.absolute() / name, initial, room.devices) for name in names]
    after = zip(given["phases"], found, strict=True)
    learned = {_target(phase): each for phase, each in after if phase["name"] == "learn"}
    return Trained(room, found[0], learned)


def _target(pattern: dict[str, Any]) -> str:
    """The name of the target that the settings of a phase describe."""
    return f"{pattern['n']}:{pattern['m']}{' transposable' * pattern['transposable']}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables of a trained network."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--where", default="kernel")
    parser.add_argument("--layer")
    parser.add_argument("--targets", default="50%,70%,90%,2:4,2:4 transposable")
    parser.add_argument("--records", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--data_dir")
    parser.add_argument("--cache_dir")
    given = parser.parse_args(arguments)
    targets = given.targets.split(",")
    for target in targets:
        target_of(target)  # raises before anything is read
    check_batch(given.batch, given.records)
    paths = {"data_dir": given.data_dir, "cache_dir": given.cache_dir}
    trained = load(given.run, **{k: path for k, path in paths.items() if path})
    check_batch(given.batch, min(given.records, trained.room.train.count))
    batches = trained.room.calibration(given.records, given.batch)
    print(timing.machine())
    if given.layer:
        of_layer(trained, given.layer, targets, batches)
    else:
        of_network(trained, given.where, targets, batches)


if __name__ == "__main__":
    exit_with_one_line(main)
