"""The folder of a run: whose it is, and the outcomes of phases that it holds or takes over.

Process 0 alone changes it, but for weights, of which each process writes what it holds.
"""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

import jaxprune as jp
from experiments import processes
from experiments.checkpoints import another_network, leaf_name, shapes
from experiments.devices import Devices
from experiments.experiment import Experiment
from experiments.log import Log, rows_of
from experiments.phases import Dense
from experiments.phases.base import Network, Tree
from experiments.usage import UsageError


def claim(folder: Path, experiment: Experiment) -> None:
    """Makes the folder this experiment's, or raises a UsageError if it is another's."""
    settings = folder / "settings.txt"
    processes.by_main(lambda: _claim(folder, settings, experiment))
    if not processes.shown(settings.exists()).all():
        raise UsageError(
            f"{folder} isn't the same folder for all processes: choose an --out that they share"
        )


def _claim(folder: Path, settings: Path, experiment: Experiment) -> None:
    if settings.exists() and settings.read_text() != repr(experiment):
        raise UsageError(
            f"{folder} holds a run with other settings ({settings.name}): choose another --out, or "
            "remove it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        processes.write(settings, repr(experiment))
    except OSError as error:
        raise UsageError(f"--out: {error}") from error


def outcome_name(experiment: Experiment, number: int) -> str:
    """The folder in which the outcome of phase `number` is kept."""
    return f"network-{number}-{experiment.phases[number].name}"


def save(outcome: Path, network: Tree, settings: str) -> None:
    """Keeps the outcome of a phase and the settings that led to it."""
    processes.write(outcome.with_suffix(".txt"), settings)
    ocp.save(str(outcome), network)


def load(outcome: Path, like: Network, devices: Devices) -> Network:
    """The outcome of a phase.

    Raises:
        UsageError: a leaf of the network is missing there, or has other axes.
    """
    loaded: Tree = ocp.load(str(outcome), devices.described(_as_saved(outcome, like)))
    return loaded


def _as_saved(outcome: Path, like: Network) -> Tree:
    """The same with the shapes that were saved, and masks of other leaves: channels may leave."""
    saved = shapes(ocp.metadata(str(outcome)).metadata)

    def resized(path, leaf):
        shape = saved.get(leaf_name(path))
        if shape is None or len(shape) != leaf.ndim:
            raise another_network(outcome, leaf_name(path), shape, leaf.shape)
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    def mask_of(path, weight):
        shape = saved.get(f"mask/{leaf_name(path)}")
        return None if shape is None else jax.ShapeDtypeStruct(shape, bool)

    def grid_of(path, weight):
        found = [f"grids/{leaf_name(path)}/{part}" in saved for part in jp.Grid._fields]
        scalars: Tree = jax.eval_shape(lambda: jp.Grid(jnp.int32(0), jnp.float32(0)))
        return scalars if all(found) else None

    of_weights = lambda of: jax.tree_util.tree_map_with_path(of, like.weights)
    quantized = any(name.startswith("grids/") for name in saved)
    masked = like._replace(
        mask=of_weights(mask_of), grids=of_weights(grid_of) if quantized else None
    )
    return jax.tree_util.tree_map_with_path(resized, masked)


def history(experiment: Experiment, number: int) -> str:
    """All settings that the outcome of phase `number` depends on."""
    phases = experiment.phases[: number + 1]
    if all(type(phase) is Dense for phase in phases):  # which knows no sparsity
        experiment = dataclasses.replace(experiment, sparsity=0.0)
    return repr(dataclasses.replace(experiment, phases=phases))


def take_over(experiment: Experiment, folder: Path, log: Log, reuse: Path) -> None:
    """Copies the outcomes, and the log, of the first phases from runs that have finished them."""
    processes.by_main(lambda: _take_over(experiment, folder, log, reuse))


def _take_over(experiment: Experiment, folder: Path, log: Log, reuse: Path) -> None:
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
        there = rows_of(found.parent / log.path.name)
        log.replace(number, [row for row in there if row["number"] == number])
        shutil.copytree(found, folder / f"{name}.partial", dirs_exist_ok=True)
        processes.write(folder / f"{name}.txt", wanted)
        (folder / f"{name}.partial").rename(folder / name)
