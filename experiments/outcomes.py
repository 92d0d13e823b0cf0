"""The folder of a run: whose it is, and the outcomes of phases that it holds or takes over."""

import dataclasses
import functools
import shutil
from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from experiments.experiment import Experiment
from experiments.log import Log, rows_of
from experiments.phases.base import Network, Tree
from experiments.training import abstract
from experiments.usage import UsageError


def claim(folder: Path, experiment: Experiment) -> None:
    """Makes the folder this experiment's, or raises a UsageError if it is another's."""
    settings = folder / "settings.txt"
    if settings.exists() and settings.read_text() != repr(experiment):
        raise UsageError(
            f"{folder} holds a run with other settings ({settings.name}): choose another --out, or "
            "remove it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        settings.write_text(repr(experiment))
    except OSError as error:
        raise UsageError(f"--out: {error}") from error


def outcome_name(experiment: Experiment, number: int) -> str:
    """The folder in which the outcome of phase `number` is kept."""
    return f"network-{number}-{experiment.phases[number].name}"


def save(outcome: Path, network: Tree, settings: str) -> None:
    """Keeps the outcome of a phase and the settings that led to it."""
    outcome.with_suffix(".txt").write_text(settings)
    ocp.save(str(outcome), network)


def load(outcome: Path, like: Network) -> Network:
    """The outcome of a phase."""
    loaded: Tree = ocp.load(str(outcome), _as_saved(outcome, abstract(like)))
    return loaded


def _as_saved(outcome: Path, like: Network) -> Tree:
    """The same with the shapes that were saved, and masks of other leaves: channels may leave."""
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    saved = jax.tree_util.tree_leaves_with_path(ocp.metadata(str(outcome)).metadata)
    shapes = {name(path): leaf.shape for path, leaf in saved}

    def mask_of(path, weight):
        shape = shapes.get(f"mask/{name(path)}")
        return None if shape is None else weight.update(shape=shape, dtype=bool)

    resized = lambda path, leaf: leaf.update(shape=shapes[name(path)])
    masked = like._replace(mask=jax.tree_util.tree_map_with_path(mask_of, like.weights))
    return jax.tree_util.tree_map_with_path(resized, masked)


def history(experiment: Experiment, number: int) -> str:
    """All settings that the outcome of phase `number` depends on."""
    return repr(dataclasses.replace(experiment, phases=experiment.phases[: number + 1]))


def take_over(experiment: Experiment, folder: Path, log: Log, reuse: Path) -> None:
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
        rows = rows_of(found.parent / log.path.name)
        log.keep([*log.rows, *(row for row in rows if row["number"] == number)])
        shutil.copytree(found, folder / f"{name}.partial", dirs_exist_ok=True)
        (folder / f"{name}.txt").write_text(wanted)
        (folder / f"{name}.partial").rename(folder / name)
