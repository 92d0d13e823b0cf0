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

leaf_name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")


class Checkpoints:
    """Checkpoints in one folder."""

    def __init__(self, checkpointer: ocp.training.Checkpointer, seconds: float, devices: Devices):
        self._checkpointer, self._seconds, self._devices = checkpointer, seconds, devices
        self._started, self._first_step, self._look_at = time.monotonic(), 0, 0

    def latest(self, state: Tree) -> Tree:
        """The state that was saved last, in the place of one of the same form.

        Raises:
            UsageError: what was saved is of another form; the message names a leaf.
        """
        last = self._checkpointer.latest
        if last is None:
            return state
        self._first_step = last.step
        check_fits(Path(last.path), self._checkpointer.metadata(last.step).metadata, state)
        return self._checkpointer.load(last.step, self._devices.described(state))

    def save_if_due(self, step: int, state: Tree) -> None:
        """Saves the state if the last one is old enough."""
        if step < self._look_at:
            return
        passed = time.monotonic() - self._started
        wait = _steps_to_wait(step - self._first_step, passed, self._seconds)
        if wait := processes.agreed(wait):
            self._look_at = step + wait
        else:
            self.save(step, state)

    def save(self, step: int, state: Tree) -> None:
        """Saves the state, if this step's isn't yet."""
        last = self._checkpointer.latest
        if last is None or last.step < step:
            self._checkpointer.save(step, state)
        self._started, self._first_step, self._look_at = time.monotonic(), step, step


def _steps_to_wait(steps: int, passed: float, seconds: float) -> int:
    """After how many steps, of those that were so fast, to look at the clock again; 0 if it's time.

    After half of those that are left: processes look together, which costs, and may become slower.
    """
    if passed >= seconds:
        return 0
    return max(1, int(steps * (seconds - passed) / passed / 2))


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
