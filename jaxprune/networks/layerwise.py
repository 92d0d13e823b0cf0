"""A trained network changed layer by layer, by what its layers see of some calibration data.

How one layer changes is a function of its problem alone. `reconstruct` and `prune_layers` differ in
this function; they share their arguments, the walk through the network and what becomes of biases.
"""

import collections
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxprune.networks import capture, moments, walking
from jaxprune.networks.capture import Product, Trace
from jaxprune.networks.moments import Moments
from jaxprune.trees import checks, masks

_KERNEL = re.compile(r"(kernel|weight)(?=(/value)?$)")


class Problem(NamedTuple):
    """One layer: its dense kernel (inputs, outputs) in float32, and what it sees.

    `fitted` are the moments that a kernel is fitted by: about the means if there is a bias, which
    makes up for these, and about zero otherwise.
    """

    product: Product
    kernel: jax.Array
    seen: Moments
    fitted: Moments


def check(apply, batches, damping) -> list[Any]:
    """The batches as a list; raises an error for arguments that can't be calibrated with."""
    checks.number("damping", damping, "a number")
    if not damping >= 0:
        raise ValueError(f"damping must not be negative, got {damping}")
    return check_batches(apply, batches)


def check_batches(apply, batches) -> list[Any]:
    """The batches as a list; raises an error for what is none, or if `apply` is no function."""
    checks.function("`apply`", apply)
    if hasattr(batches, "dtype") or not hasattr(batches, "__iter__"):
        kind = checks.described(batches)
        raise TypeError(f"`batches` must be a sequence of batches, such as a list, got {kind}")
    batches = list(batches)
    if not batches:
        raise ValueError("calibration takes data: `batches` is empty")
    return batches


def change(
    apply: Callable[[chex.ArrayTree, Any], Any],
    params: chex.ArrayTree,
    start: chex.ArrayTree,
    chosen: Sequence[bool],
    batches: Sequence[Any],
    solve: Callable[[Problem], jax.Array],
    *,
    sequential: bool,
    damping: float,
    biases: bool = True,
) -> chex.ArrayTree:
    """The parameters `start` with what `solve` makes of the layers in the leaves chosen.

    With `sequential` a layer sees what comes out of the layers changed before it, otherwise what
    the dense network has there. With `biases` the bias of a layer keeps the mean of each output.
    """
    paths_and_leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    names = [masks.path_name(path) for path, _ in paths_and_leaves]
    dense, new = jax.tree.leaves(params), jax.tree.leaves(start)
    of_leaves = lambda leaves, batch: apply(structure.unflatten(leaves), batch)
    traced = [
        (_traced(of_leaves, dense, own[0], names, chosen), own) for own in of_one_shape(batches)
    ]

    for product, seen in _layers(traced, [new, dense] if sequential else [dense]):
        name, leaf = names[product.leaf], product.leaf
        bias = _bias_of(product, names, dense) if biases else None
        kernel = capture.as_matrix(dense[leaf].astype(jnp.float32), product)
        fitted = moments.about_zero(seen) if bias is None else seen
        check_finite(seen, f"the inputs of leaf '{name}' aren't all finite")
        matrix = solve(Problem(product, kernel, seen, fitted))
        check_finite(
            matrix,
            f"the normal equations of leaf '{name}' are singular: it takes more data or damping "
            f"than {damping}",
        )
        new[leaf] = capture.with_matrix(new[leaf], matrix, product)
        if bias is not None:
            shift = _shift(seen, kernel, matrix)
            shift = capture.as_result(shift, dense[leaf], product)
            new[bias] = _shifted(new[bias], product.place, shift)
    return structure.unflatten(new)


def _traced(apply, leaves, batch, names, chosen) -> Trace:
    """The trace with the products of the leaves chosen; raises an error if one has none."""
    stacks = {i for i, own in enumerate(chosen) if own}
    trace = capture.trace(apply, leaves, batch, stacks=stacks)
    products = [product for product in trace.products if product.leaf in stacks]
    first: dict[int, Product] = {}
    for product in products:
        if first.setdefault(product.leaf, product).inputs != product.inputs:
            raise ValueError(f"leaf '{names[product.leaf]}' is multiplied from both sides")
    unseen = [names[i] for i in sorted(stacks - first.keys())]
    if unseen:
        raise ValueError(
            "no matrix product or ungrouped convolution, outside loops but those that scan a stack "
            f"of layers, is seen of leaves {unseen}: put None in their places, or choose others "
            "with `where`"
        )
    return trace._replace(products=products)


def of_one_shape(batches) -> list[list[Any]]:
    """The batches, those of one shape together."""
    found: dict[Any, list[Any]] = {}
    for batch in batches:
        leaves, structure = jax.tree.flatten(batch)
        found.setdefault((structure, *map(jnp.shape, leaves)), []).append(batch)
    return list(found.values())


def _layers(traced: Sequence[tuple[Trace, list[Any]]], networks):
    """Each layer with all that it sees, before the last product with it."""
    left = collections.Counter(product.layer for product in traced[0][0].products)
    found: dict[Any, Moments] = {}
    walks = [walking.walk(trace, networks, batches) for trace, batches in traced]
    for together in zip(*walks, strict=True):
        of_batches = [
            moments.of_operands(own[0], own[-1], product.layout)
            for product, operands in together
            for own in operands
        ]
        layer = together[0][0].layer
        earlier = [found.pop(layer)] if layer in found else []
        found[layer] = functools.reduce(moments.together, [*earlier, *of_batches])
        left[layer] -= 1
        if not left[layer]:
            yield together[0][0], found.pop(layer)


def check_finite(tree, otherwise: str) -> None:
    """Raises a ValueError with this text unless all of the tree is finite."""
    if not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(tree)):
        raise ValueError(otherwise)


def _bias_of(product: Product, names, leaves) -> int | None:
    """The number of the leaf that is the kernel's bias by its name and sizes."""
    name = _KERNEL.sub("bias", names[product.leaf])
    if name not in names or name == names[product.leaf]:
        return None
    kernel, bias = leaves[product.leaf], leaves[names.index(name)]
    stacked = [axis for axis, _ in product.place]
    if any(axis >= bias.ndim or bias.shape[axis] != kernel.shape[axis] for axis in stacked):
        return None
    own = [size for axis, size in enumerate(bias.shape) if axis not in stacked and size > 1]
    sizes = [size for axis in product.result if (size := kernel.shape[axis]) > 1]
    return names.index(name) if own in (sizes, [math.prod(sizes)]) else None


@jax.jit
def _shift(seen: Moments, before, after):
    """By how much the means of the outputs have changed."""
    return moments.matmul(seen.dense, before) - moments.matmul(seen.sparse, after)


@functools.partial(jax.jit, static_argnums=1)
def _shifted(bias, place: tuple[tuple[int, int], ...], shift):
    """The bias at one place that makes up for a shift of the outputs."""
    index = tuple(dict(place).get(axis, slice(None)) for axis in range(bias.ndim))
    own = bias[index].astype(jnp.float32)
    return bias.at[index].set((own + shift.reshape(own.shape)).astype(bias.dtype))
