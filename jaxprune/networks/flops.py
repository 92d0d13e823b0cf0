"""How many operations a network spends on each of its leaves.

The function's program is followed from the leaves on. What is calculated from one leaf alone (its
transpose, a slice, one layer of a stack, its product with a mask) is still the leaf's, until it
meets activations in a matrix product or a convolution: these operations are spent on the leaf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax

from jaxprune.networks import program
from jaxprune.trees import checks, masks

_NO_LEAF = -1


def leaf_flops(
    apply: Callable[..., Any], params: chex.ArrayTree, *example_inputs: Any
) -> chex.ArrayTree:
    """The floating-point operations that a network spends on each leaf, dense.

    Two for each multiplication and addition of a matrix product or convolution of the leaf with
    activations, as often as a `scan` runs it. `table(mask, flops=...)` shows them beside those of
    kept weights. Products of two activations (attention), of two leaves, or of what a gather looks
    up (an embedding, or a layer by `jnp.take`, not by `stack[i]`) belong to no leaf, and branches
    and loops of unknown length aren't looked into; `channel_cost` counts whole networks.

    Args:
      apply: pure function `apply(params, *inputs)`.
      params: any tree of arrays, or of their shapes.
      *example_inputs: trees of arrays, or of their shapes, with the batch size that matters.

    Returns:
      A tree like `params`, of Python integers.

    Raises:
      TypeError: for an `apply` that is no function, or what is no tree of arrays.

    >>> import jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"w": jnp.ones((8, 4)), "b": jnp.ones(4)}
    >>> jp.leaf_flops(lambda p, x: x @ p["w"] + p["b"], params, jnp.ones((10, 8)))
    {'b': 0, 'w': 640}
    """
    structure = jax.tree.structure(params)
    found = dict.fromkeys(range(structure.num_leaves), 0)
    for leaf, flops in _products(apply, params, example_inputs):
        found[leaf] += flops
    return structure.unflatten(found.values())


def inner_layers(
    apply: Callable[..., Any], params: chex.ArrayTree, *example_inputs: Any
) -> Callable[[str, Any], bool]:
    """A `where` that leaves the first and the last layer dense, whatever they are called.

    These are the leaves of the first and the last matrix product or convolution that the network
    calculates; an embedding that is looked up is none, nor is what `prunable` leaves out.

    Args:
      apply: pure function `apply(params, *inputs)`.
      params: any tree of arrays, or of their shapes.
      *example_inputs: trees of arrays, or of their shapes.

    Returns:
      A predicate on (path, leaf), for `prunable` and every function and link with a `where`.

    Raises:
      TypeError: for an `apply` that is no function, or what is no tree of arrays.
      ValueError: if the network multiplies by fewer than three leaves.

    >>> import jax, jax.numpy as jnp
    >>> import jaxprune as jp
    >>> params = {"stem": jnp.ones((2, 4)), "body": jnp.ones((4, 4)), "head": jnp.ones((4, 2))}
    >>> apply = lambda p, x: x @ p["stem"] @ p["body"] @ p["head"]
    >>> _, mask = jp.prune_to(params, 0.5, where=jp.inner_layers(apply, params, jnp.ones((1, 2))))
    >>> [name for name, keep in mask.items() if keep is not None]
    ['body']
    """
    order = [leaf for leaf, _ in _products(apply, params, example_inputs)]
    if len(set(order)) < 3:
        raise ValueError(
            f"between the first and the last layer there must be others, but the network has "
            f"{len(set(order))} products with leaves of their own: leave out `inner_layers`"
        )
    paths = [masks.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    chosen = jax.tree.structure(params).flatten_up_to(
        jax.eval_shape(lambda: masks.prunable(params))
    )
    ends = {paths[order[0]], paths[order[-1]]}
    inner = {path for path, keep in zip(paths, chosen, strict=True) if keep is not None} - ends
    return lambda path, leaf: path in inner


def _products(apply, params, example_inputs) -> Iterable[tuple[int, int]]:
    """Leaves and the operations of one product with each, in the order of the program."""
    checks.function("`apply`", apply)
    checks.tree("the parameters", params)
    traced, _ = program.traced(apply, params, *example_inputs, derivatives=False)
    leaves = range(jax.tree.structure(params).num_leaves)
    return _spent(traced, dict(zip(traced.body.inputs, leaves, strict=False)))


def _spent(traced: program.Program, leaf_of: dict[int, int]) -> Iterable[tuple[int, int]]:
    """Leaves and the operations of one product, from the slots that hold a leaf."""
    for step, times in program.all_steps(traced.body):
        if step.name in _SUMMED:
            leaves = [leaf_of[slot] for slot in step.inputs if slot in leaf_of]
            if len(leaves) == 1:
                yield leaves[0], 2 * times * _multiplications(traced, step)
        elif step.bodies:
            _enter(step, leaf_of)
        else:
            _follow(traced, step, leaf_of)


def _enter(step: program.Step, leaf_of: dict[int, int]) -> None:
    """What a scan takes one by one of a leaf is the leaf's."""
    inner, outer = step.bodies[0].inputs, step.inputs
    carried = program.scan_counts(step.equation)[1]
    scanned = inner[carried:]
    for inside, outside in zip(scanned, outer[len(outer) - len(scanned) :], strict=True):
        if outside in leaf_of:
            leaf_of[inside] = leaf_of[outside]


def _follow(traced: program.Program, step: program.Step, leaf_of: dict[int, int]) -> None:
    """What is calculated from one leaf and constants is the leaf's."""
    slots = step.inputs[:1] if step.name == "dynamic_slice" else step.inputs
    leaves = {leaf_of.get(slot, _NO_LEAF) for slot in slots if not traced.constant[slot]}
    if len(leaves) == 1 and _NO_LEAF not in leaves:
        leaf_of.update(dict.fromkeys(step.outputs, leaves.pop()))


def _multiplications(traced: program.Program, step: program.Step) -> int:
    shape = lambda slot: traced.avals[slot].shape
    operand, axes = _SUMMED[step.name](step.equation.params)
    summed = math.prod(shape(step.inputs[operand])[axis] for axis in axes)
    return math.prod(shape(step.outputs[0])) * summed


def _of_matrix_product(params) -> tuple[int, tuple[int, ...]]:
    return 0, params["dimension_numbers"][0][0]


def _of_convolution(params) -> tuple[int, tuple[int, ...]]:
    return 1, params["dimension_numbers"].rhs_spec[1:]


# Which operand, and which axes of it, a product sums over.
_SUMMED = {"dot_general": _of_matrix_product, "conv_general_dilated": _of_convolution}
