"""The devices of a run, as a mesh: where records lie, and what is trained on them."""

from typing import Any, TypeAlias

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

Tree: TypeAlias = Any


class Devices:
    """A mesh with an axis `data`, along which devices share each batch."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self.by_record = NamedSharding(mesh, jax.P("data"))
        self.everywhere = NamedSharding(mesh, jax.P())

    @classmethod
    def all(cls) -> "Devices":
        """All devices along `data`."""
        return cls(jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)))

    @property
    def sharing(self) -> int:
        """How many parts a batch is cut into."""
        return self.mesh.shape["data"]

    def replicated(self, tree: Tree) -> Tree:
        """The tree on every device."""
        return jax.device_put(tree, self.everywhere)
