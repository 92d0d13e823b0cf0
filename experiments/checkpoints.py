"""The last state of a phase, on disk, saved every so many seconds.

A checkpoint may be of another mesh: what is loaded lies as this run wants it. It may not be of
another network, and is then left as it is.
"""

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import jax
from orbax.checkpoint import v1 as ocp

from experiments import processes
from experiments.devices import Devices
from experiments.usage import UsageError

Tree: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]

_LOOK_SECONDS = 5.0

leaf_name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")


class Checkpoints:
    """Checkpoints in one folder."""

    def __init__(self, checkpointer: ocp.training.Checkpointer, seconds: float, devices: Devices):
        self._checkpointer, self._seconds, self._devices = checkpointer, seconds, devices
        self._saved = self._looked = time.monotonic()
        self._looked_step = self._look_at = 0

    def latest(self, state: Tree) -> Tree:
        """The state that was saved last, in the place of one of the same form.

        Raises:
            UsageError: what was saved is of another form; the message names a leaf.
        """
        last = self._checkpointer.latest
        if last is None:
            return state
        check_fits(Path(last.path), self._checkpointer.metadata(last.step).metadata, state)
        self._looked_step = last.step
        return self._checkpointer.load(last.step, self._devices.described(state))

    def save_if_due(self, step: int, state: Tree) -> bool:
        """Saves the state if the last one is old enough, or if the run was asked to stop.

        Returns whether it was. Clocks and signals are looked at by all processes at the same steps.
        """
        if step < self._look_at:
            return False
        due = time.monotonic() - self._saved >= self._seconds
        seen = processes.shown(processes.asked_to_stop(), due, self._steps_to_wait(step))
        stop, (due, wait) = bool(seen[:, 0].any()), seen[0, 1:]
        if due or stop:
            self._save(step, state)
        self._looked, self._looked_step, self._look_at = time.monotonic(), step, step + int(wait)
        return stop

    def _save(self, step, state):
        last = self._checkpointer.latest
        if last is None or last.step < step:
            self._checkpointer.save(step, state)
        self._saved = time.monotonic()

    def _steps_to_wait(self, step):
        """How many steps until the next look, for which processes wait for each other.

        At most twice as many as since the last one: the first steps are handed out, not done.
        """
        if jax.process_count() == 1:
            return 1
        steps = step - self._looked_step
        rate = steps / max(time.monotonic() - self._looked, 1e-3)
        return max(1, min(2 * steps, int(rate * min(_LOOK_SECONDS, self._seconds / 4))))


@contextmanager
def saved_in(folder: Path, seconds: float, devices: Devices) -> Iterator[Checkpoints]:
    """Checkpoints in a folder; the last one is whole when this ends."""
    with ocp.training.Checkpointer(
        str(folder),
        # orbax annotates its own policies as if they didn't fit this argument
        # pyrefly: ignore[bad-argument-type]
        preservation_policy=ocp.training.preservation_policies.LatestN(1),
    ) as checkpointer:
        yield Checkpoints(checkpointer, seconds, devices)


def check_fits(path: Path, saved: Tree, state: Tree) -> None:
    """Raises a UsageError if a tree of other leaves, or of other shapes, was saved."""
    found, wanted = shapes(saved), shapes(jax.tree.map(_as_saved, state))
    for name in found | wanted:
        if found.get(name) != wanted.get(name):
            raise another_network(path, name, found.get(name), wanted.get(name))


def another_network(path: Path, leaf: str, there: Shape | None, here: Shape | None) -> UsageError:
    """What to say of a leaf that doesn't fit."""
    text = lambda shape: "missing" if shape is None else f"of shape {shape}"
    return UsageError(
        f"{path} was saved by another network: {leaf} is {text(there)} there and {text(here)} "
        "here; choose another --out, or go back to the code that saved it"
    )


def shapes(tree: Tree) -> dict[str, Shape]:
    """The shape of each leaf by its name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path): tuple(leaf.shape) for path, leaf in leaves}


def _as_saved(leaf: jax.Array) -> jax.Array:
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf
