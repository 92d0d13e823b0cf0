"""The trees that are compiled for: abstract parameters on a mesh, in every layout.

Leaves are stacked over layers and sharded as language models have them, 10^12 weights in all
(without any sharding: a model that fits a chip). A `Setting` is the trees of one variant: weights,
masks, probabilities, logits.
"""

import copy
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding

import jaxprune as jp

AXES = ("data", "model")


class Variant(NamedTuple):
    """How the tree lies on the mesh, and how the function is compiled."""

    layout: str = "two axes"
    dtype: Any = jnp.bfloat16
    axis_type: AxisType = AxisType.Auto
    out_shardings: bool = False


_EXPLICIT = AxisType.Explicit
VARIANTS = {
    "base": Variant(),
    "float32": Variant(dtype=jnp.float32),
    "Explicit": Variant(axis_type=_EXPLICIT),
    "output shardings": Variant(out_shardings=True),
    "inputs": Variant("inputs"),
    "last axis": Variant("last"),
    "stacked axis": Variant("stacked"),
    "stacked and last": Variant("stacked and last"),
    "no axis": Variant("none"),
    "no axis, Explicit": Variant("none", axis_type=_EXPLICIT),
    "opposite": Variant("stacked and last", jnp.float32, _EXPLICIT, out_shardings=True),
}


def leaves(layout: str) -> dict[str, tuple[tuple[int, ...], tuple]]:
    """Shapes and partitions of a language model's leaves: some 10^12 weights, if sharded."""
    if layout == "two axes":
        return {
            "embedding": ((256_000, 16_384), ("model", "data")),
            "query": ((128, 16_384, 16_384), (None, "data", "model")),
            "up": ((128, 16_384, 65_536), (None, "data", "model")),
            "down": ((128, 65_536, 16_384), (None, "model", "data")),
            "experts_up": ((80, 64, 4_096, 16_384), (None, "data", None, "model")),
            "experts_down": ((80, 64, 16_384, 4_096), (None, "model", "data", None)),
        }
    shape, partition = {
        "inputs": ((480, 16_384, 65_536), (None, AXES, None)),
        "last": ((480, 16_384, 65_536), (None, None, AXES)),
        "stacked": ((512, 16_384, 65_536), (AXES, None, None)),
        # As many layers on a chip as groups along them can fill.
        "stacked and last": ((512, 16_384, 65_536), ("data", None, "model")),
        "none": ((16, 1024, 4096), ()),
    }[layout]
    return {f"kernel_{i}": (shape, partition) for i in range(2)}


class Setting:
    """The abstract trees of a variant on a mesh."""

    def __init__(self, variant: Variant, mesh: Mesh):
        self.variant, self.mesh = variant, mesh
        self.kernels = {
            name: self.array(shape, *partition, dtype=variant.dtype)
            for name, (shape, partition) in leaves(variant.layout).items()
        }
        self.params = self.kernels | {"scale": self.array((128, 16_384), dtype=variant.dtype)}
        self.kept = self.like(self.kernels, jnp.bool_)
        self.mask = self.kept | {"scale": None}
        self.probs = self.like(self.kernels, jnp.float32)
        self.key = self.array((2,), dtype=jnp.uint32)

    def with_mask(self, mask):
        """The same trees with another mask."""
        other = copy.copy(self)
        other.mask = mask
        return other

    def array(self, shape, *partition, dtype=jnp.float32):
        """An abstract array on the mesh."""
        sharding = NamedSharding(self.mesh, jax.P(*partition))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def scalars(self):
        """One for each kernel."""
        return jax.tree.map(lambda _: self.array(()), self.kernels)

    def like(self, tree, dtype):
        """The same shapes and places."""
        change = lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
        return jax.tree.map(change, tree)

    def placed(self, tree):
        """Abstract arrays, sharded like kernels of their shape or close to it, or replicated."""

        def place(x):
            for kernel in self.kernels.values():
                if len(x.shape) == kernel.ndim and all(
                    size % own == 0 and own >= size / 8
                    for size, own in zip(kernel.shape, x.shape, strict=True)
                ):
                    return kernel.sharding
            return NamedSharding(self.mesh, jax.P())

        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), tree
        )

    def packed(self):
        """The mask at a bit a weight, sharded like the mask."""
        place = lambda x, mask: self.array(x.shape, *mask.sharding.spec, dtype=x.dtype)
        return jax.tree.map(place, jax.eval_shape(jp.pack_mask, self.mask), self.mask)

    def thresholds(self):
        """One for each output, sharded like the outputs."""

        def place(kernel, own):
            spec = [*kernel.sharding.spec, *[None] * kernel.ndim][: kernel.ndim]
            pairs = zip(spec, own.shape, strict=True)
            return self.array(own.shape, *(axis if size > 1 else None for axis, size in pairs))

        return jax.tree.map(place, self.kernels, jax.eval_shape(jp.init_thresholds, self.kernels))

    def logits(self, transposable):
        """Of patterns, sharded like their kernels."""
        shapes = jax.eval_shape(
            lambda p: jp.init_pattern_logits(p, 2, 4, transposable=transposable), self.kernels
        )

        def place(kernel, logit):
            spec = [*kernel.sharding.spec, *[None] * kernel.ndim][: kernel.ndim]
            return self.array(logit.shape, None, *spec)

        return jax.tree.map(place, self.kernels, shapes)
