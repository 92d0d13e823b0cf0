"""What is left of the structure of a chain of layers: units that carry a signal, and their cost.

A unit (an input pixel, a channel, a hidden unit) is alive if a kept weight leads to it and another
one from it. Layers are in the order of the mask's leaves; their kernels are (..., inputs, outputs).
"""

import itertools
import math
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from experiments.checkpoints import leaf_name
from experiments.devices import on_host

Tree: TypeAlias = Any


class Structure(NamedTuple):
    """Alive inputs of each layer, and multiplications and additions for one image without the dead.

    `inputs` counts channels of a convolution, and single features after flattening.
    """

    inputs: tuple[int, ...]
    macs: int
    macs_before: int


def of(model: str, image_shape: tuple[int, int, int], mask: Tree) -> Structure | None:
    """The structure that a mask leaves, or `None` for a model that isn't a known chain."""
    if model not in ("lenet300100", "lenet5"):
        return None
    mask = jax.tree.map(lambda leaf: leaf if leaf.ndim > 1 else None, mask)  # no biases
    kernels = [on_host(leaf) for leaf in jax.tree.leaves(without_dead_units(mask))]
    inputs = [int(_used(kernel).sum()) for kernel in kernels]
    outputs = [int(_made(kernel).sum()) for kernel in kernels[:-1]] + [kernels[-1].shape[-1]]
    windows, sides = [], image_shape[:2]
    for kernel in kernels:
        if kernel.ndim == 4:  # a convolution without padding, then pooling
            sides = [side - width + 1 for side, width in zip(sides, kernel.shape, strict=False)]
            windows.append(math.prod([*sides, *kernel.shape[:2]]))
            sides = [side // 2 for side in sides]
        else:
            windows.append(1)
    macs = sum(map(math.prod, zip(windows, inputs, outputs, strict=True)))
    before = sum(w * math.prod(k.shape[-2:]) for w, k in zip(windows, kernels, strict=True))
    return Structure(tuple(inputs), macs, before)


def check_chain(mask: Tree) -> None:
    """Raises a ValueError unless each layer can take what the one before it gives."""
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    for (path, kernel), (path_after, after) in itertools.pairwise(leaves):
        outputs, inputs = kernel.shape[-1], after.shape[-2]
        if inputs % outputs:
            raise ValueError(
                f"chain=True needs a chain of layers, and {leaf_name(path_after)} of {inputs} "
                f"inputs can't follow {leaf_name(path)} of {outputs} outputs: set chain=False"
            )


def without_dead_units(mask: Tree) -> Tree:
    """The mask of a chain of layers without the weights from and to units that carry nothing."""
    leaves, structure = jax.tree.flatten(mask)
    kernels = [on_host(leaf) for leaf in leaves]
    for _ in kernels:  # what dies spreads by one layer at a time
        for i in range(len(kernels) - 1):
            kernel, after = kernels[i : i + 2]
            alive = _made(kernel) & _used(after).reshape(-1, kernel.shape[-1]).any(0)
            features = np.tile(alive, after.shape[-2] // alive.size)  # flattened, channels last
            kernels[i], kernels[i + 1] = kernel & alive, after & features[:, None]
    return structure.unflatten(
        jax.device_put(kernel, leaf.sharding) for kernel, leaf in zip(kernels, leaves, strict=True)
    )


def _made(kernel: np.ndarray) -> np.ndarray:
    """Which outputs have a kept weight."""
    return kernel.any(tuple(range(kernel.ndim - 1)))


def _used(kernel: np.ndarray) -> np.ndarray:
    """Which inputs have a kept weight."""
    return kernel.any((*range(kernel.ndim - 2), kernel.ndim - 1))
