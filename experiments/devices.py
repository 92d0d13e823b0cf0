"""The devices of a run, as a mesh: where records lie, and what is trained on them.

Devices along the axis `data` share each batch, and all state that is large: a leaf is cut along the
largest axis that divides (fully sharded). Devices along the axis `model` share the layers that a
config names (tensor-parallel). Where a leaf lies follows from its path and its shape alone: the
path of a moment, a mask or a probability holds the path of its weight, so all four lie alike.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from experiments.usage import UsageError

Tree: TypeAlias = Any

_AXES = ("data", "model")


@dataclasses.dataclass(frozen=True)
class Devices:
    """A mesh, and what of a tree is cut among its devices.

    `model_axes` gives the axis of a leaf that is cut along `model`, by the first regular expression
    that is found in the leaf's path. Leaves of fewer entries than `shard_from` are whole along
    `data`: to gather such a leaf takes longer than its memory is worth.
    """

    mesh: Mesh
    model_axes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    shard_from: int = 2**16

    @classmethod
    def all(cls, **rules: Any) -> "Devices":
        """All devices along `data`."""
        return cls(_mesh(jax.device_count(), 1), **rules)

    @classmethod
    def of(cls, text: str, **rules: Any) -> "Devices":
        """All devices in a mesh such as data:4,model:2.

        Raises:
            UsageError: another form, or another number of devices.
        """
        return cls(_mesh(*_sizes(text, jax.device_count())), **rules)

    @classmethod
    def over(cls, chips: Sequence[jax.Device], text: str | None, **rules: Any) -> "Devices":
        """These chips, which need not be there, in such a mesh or all along `data`.

        Raises:
            UsageError: as for `of`.
        """
        data, model = _sizes(text, len(chips)) if text else (len(chips), 1)
        return cls(_mesh(data, model, chips), **rules)

    # records

    @property
    def sharing(self) -> int:
        """How many parts a batch is cut into."""
        return self.mesh.shape["data"]

    @property
    def by_record(self) -> NamedSharding:
        """Where a batch lies: the records along `data`."""
        return NamedSharding(self.mesh, jax.P("data"))

    @property
    def everywhere(self) -> NamedSharding:
        """Where lies what every device holds."""
        return NamedSharding(self.mesh, jax.P())

    def held(self, records: Tree) -> Tree:
        """NumPy arrays, the same in each process, on every device."""
        copied = lambda array: jax.make_array_from_callback(
            array.shape, self.everywhere, lambda index: array[index]
        )
        return jax.tree.map(copied, records)

    def picked(self, records: Tree, indices: jax.Array) -> Tree:
        """Some of the records, each device with its part; inside `jax.jit`."""
        pick = lambda array: jax.lax.with_sharding_constraint(array[indices], self.by_record)
        return jax.tree.map(pick, records)

    # state

    def spec(self, path: str, shape: tuple[int, ...]) -> jax.P:
        """How a leaf is cut."""
        cut: list[str | None] = [None] * len(shape)
        divides = lambda axis, name: shape[axis] % self.mesh.shape[name] == 0
        given = [axis for text, axis in self.model_axes.items() if re.search(text, path)]
        for axis in given[:1]:
            if axis in range(-len(shape), len(shape)) and divides(axis, "model"):
                cut[axis] = "model"
        left = [axis for axis, name in enumerate(cut) if not name and divides(axis, "data")]
        if left and math.prod(shape) >= self.shard_from:
            # Of equal axes the last one, the outputs: N:M groups of inputs stay on one device.
            cut[max(left, key=lambda axis: (shape[axis], axis))] = "data"
        return jax.P(*cut)

    def shardings(self, tree: Tree) -> Tree:
        """Where the leaves of a tree of arrays, or of their shapes, lie."""

        def of_leaf(path, leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return NamedSharding(self.mesh, self.spec(name, leaf.shape))

        return jax.tree_util.tree_map_with_path(of_leaf, tree)

    def placed(self, tree: Tree) -> Tree:
        """The tree where it belongs."""
        return jax.device_put(tree, self.shardings(tree))

    def constrained(self, tree: Tree) -> Tree:
        """The same inside `jax.jit`."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def replicated(self, tree: Tree) -> Tree:
        """The tree on every device."""
        return jax.device_put(tree, self.everywhere)

    def described(self, tree: Tree) -> Tree:
        """Shapes, dtypes and places of a tree, as orbax wants them for loading."""
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            tree,
            self.shardings(tree),
        )

    def made(self, function: Callable[..., Tree], *arguments: Any) -> Tree:
        """What the function returns, made where it belongs: no device ever holds all of it."""
        if self.mesh.size == 1:  # there is but one place; compiling takes longer than making it
            return self.placed(function(*arguments))
        places = self.shardings(jax.eval_shape(function, *arguments))
        return jax.jit(function, out_shardings=places)(*arguments)

    # the model

    def in_model(self) -> AbstractContextManager:
        """Around calls of the model inside `jax.jit`, for `along_batch`."""
        if self.mesh.size == 1:
            return nullcontext()
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)


def along_batch(activations: jax.Array) -> jax.Array:
    """Activations (batch, ...) that stay along `data`, so that weights come to them.

    Left alone, XLA may gather the batch instead where that is smaller.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return activations
    return jax.lax.with_sharding_constraint(activations, NamedSharding(mesh, jax.P("data")))


def on_host(array: jax.Array) -> np.ndarray:
    """All of an array, in every process."""
    whole = array.is_fully_addressable or array.is_fully_replicated
    return np.asarray(array if whole else multihost_utils.process_allgather(array, tiled=True))


def _mesh(data: int, model: int, chips: Sequence[jax.Device] | None = None) -> Mesh:
    return jax.make_mesh((data, model), _AXES, axis_types=(AxisType.Auto,) * 2, devices=chips)


def _sizes(text: str, count: int) -> tuple[int, int]:
    """The sizes of `data` and `model` that a text such as model:4 names, of so many devices."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.partition(":")
        if name not in _AXES or name in found or not size.isdecimal() or not int(size):
            raise UsageError(f"--mesh must be such as data:8 or data:4,model:2, got {text!r}")
        found[name] = int(size)
    if math.prod(found.values()) != count:
        raise UsageError(
            f"--mesh={text} takes {math.prod(found.values())} devices, and there are {count}: the "
            f"sizes must multiply to {count}, as in data:{count}"
        )
    return found.get("data", 1), found.get("model", 1)
