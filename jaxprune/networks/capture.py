"""Where a model multiplies by its leaves, for any model that is a function in JAX.

The function is traced to a program whose calls, and whose loops over stacked leaves, are written
out. Where a leaf, perhaps transposed, converted or one layer of a stack, is an operand of a matrix
product or a convolution, the other operand is what the layer sees. So Flax, Equinox and plain
functions need no hooks.
"""

import functools
import math
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxprune.networks import program

# Primitives whose result is the operand, entry by entry.
_SAME = ("convert_element_type", "copy", "sharding_constraint")


class Summed(NamedTuple):
    """How an operand of a matrix product is rows: these of its axes are summed over."""

    axes: tuple[int, ...]

    def rows(self, operand: jax.Array) -> jax.Array:
        """(samples, inputs)."""
        width = math.prod(operand.shape[axis] for axis in self.axes)
        return jnp.moveaxis(operand, self.axes, range(-len(self.axes), 0)).reshape(-1, width)


class Patches(NamedTuple):
    """How images are rows: one for each position of a kernel, the channels last."""

    axes: tuple[int, ...]
    window: tuple[int, ...]
    window_strides: Any
    padding: Any
    lhs_dilation: Any
    rhs_dilation: Any

    def rows(self, operand: jax.Array) -> jax.Array:
        """(samples, inputs)."""
        images = operand.transpose(self.axes)
        patches = jax.lax.conv_general_dilated_patches(
            images,
            self.window,
            self.window_strides,
            self.padding,
            lhs_dilation=self.lhs_dilation,
            rhs_dilation=self.rhs_dilation,
            precision=jax.lax.Precision.HIGHEST,
        )  # (batch, channels * height * width, ...)
        rows = jnp.moveaxis(patches, 1, -1).reshape(-1, images.shape[1], math.prod(self.window))
        return jnp.swapaxes(rows, 1, 2).reshape(len(rows), -1)


class Product(NamedTuple):
    """A product of rows (samples, inputs) with a leaf, given by its number in the tree.

    `inputs` are the axes of the leaf that are summed over, in the order of the rows' entries,
    `outputs` its other axes but those of `place`, which says (axis, index) where in a stack the
    layer lies. `result` are the outputs in the order of the result's axes, once it is transposed.
    `channels` of the inputs lie side by side: a pattern along the inputs has no group that reaches
    beyond. The step with this number multiplies by the value of the slot `operand`.
    """

    leaf: int
    place: tuple[tuple[int, int], ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    result: tuple[int, ...]
    channels: int
    operand: int
    layout: Summed | Patches
    step: int

    @property
    def layer(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        """The same for all products with the same weights."""
        return self.leaf, self.place


class Step(NamedTuple):
    """A calculation on slots; steps with equal keys calculate the same."""

    key: Hashable
    run: Callable[..., Sequence[jax.Array]]
    inputs: list[int]
    outputs: list[int]


class Trace(NamedTuple):
    """Steps in their order and the products among them.

    Slots are the leaves, the arguments, what is `known`, and the results of steps. `makers` are
    the steps that turn leaves into what is multiplied by; they stand beside the others, to be made
    anew wherever a leaf may have changed.
    """

    leaves: list[int]
    arguments: list[int]
    known: dict[int, Any]
    steps: list[Step]
    makers: dict[int, Step]
    products: list[Product]


def trace(
    apply: Callable[..., Any], params: chex.ArrayTree, *args: Any, stacks: Collection[int] = ()
) -> Trace:
    """The steps of `apply(params, *args)` and its products with leaves.

    Loops over leaves numbered in `stacks` are written out. Products inside other loops and inside
    branches aren't seen; nor are grouped convolutions and products in batches over a leaf's axis.
    """
    traced, _ = program.traced(apply, params, *args, derivatives=False)
    number = len(jax.tree.leaves(params))
    leaves, arguments = traced.body.inputs[:number], traced.body.inputs[number:]
    writer = _Writer(traced, leaves, stacks)
    writer.write(traced.body.steps, {})
    return Trace(leaves, arguments, traced.known, writer.steps, writer.makers, writer.products)


def as_matrix(leaf: jax.Array, product: Product) -> jax.Array:
    """The layer as (inputs, outputs), so that `rows @ matrix` is what the model calculates."""
    own = leaf[_index(leaf, product)]
    axes = _own_axes(leaf, product)
    size = math.prod(leaf.shape[axis] for axis in product.inputs)
    wanted = product.inputs + product.outputs
    return own.transpose([axes.index(axis) for axis in wanted]).reshape(size, -1)


def with_matrix(leaf: jax.Array, matrix: jax.Array, product: Product) -> jax.Array:
    """The leaf with the layer from a matrix, in its dtype."""
    wanted = product.inputs + product.outputs
    turned = matrix.reshape([leaf.shape[axis] for axis in wanted])
    axes = _own_axes(leaf, product)
    own = turned.transpose([wanted.index(axis) for axis in axes]).astype(leaf.dtype)
    return leaf.at[_index(leaf, product)].set(own) if product.place else own


def as_result(values: jax.Array, leaf: jax.Array, product: Product) -> jax.Array:
    """What belongs to each output (outputs,), with the axes that these have in the result."""
    turned = values.reshape([leaf.shape[axis] for axis in product.outputs])
    return turned.transpose([product.outputs.index(axis) for axis in product.result])


def _index(leaf, product: Product) -> tuple:
    place = dict(product.place)
    return tuple(place.get(axis, slice(None)) for axis in range(leaf.ndim))


def _own_axes(leaf, product: Product) -> list[int]:
    return [axis for axis in range(leaf.ndim) if axis not in dict(product.place)]


class _View(NamedTuple):
    """A leaf whose axis `axes[i]` is axis i here, at one place in its other axes."""

    leaf: int
    axes: tuple[int, ...]
    place: tuple[tuple[int, int], ...] = ()


class _Writer:
    """Writes steps, and notes views of leaves and products with them."""

    def __init__(self, traced: program.Program, leaves: list[int], stacks: Collection[int]):
        self.traced, self.stacks = traced, stacks
        self.steps: list[Step] = []
        self.makers: dict[int, Step] = {}
        self.products: list[Product] = []
        # Of what is a product's result: the product, and which axis of its leaf each axis is.
        self.results: dict[int, tuple[int, tuple[int | None, ...]]] = {}
        ranks = [len(traced.avals[slot].shape) for slot in leaves]
        self.views = {
            slot: _View(i, tuple(range(rank)))
            for i, (slot, rank) in enumerate(zip(leaves, ranks, strict=True))
        }

    def write(self, steps: Sequence[program.Step], slots: dict[int, int]) -> None:
        """Writes a body's steps; `slots` has what stands for its slots, and gets its results."""
        for step in steps:
            inputs = [slots.get(i, i) for i in step.inputs]
            if step.bodies and self._runs_over_a_stack(step, inputs):
                outputs = self._write_loop(step, inputs, slots)
            else:
                run = functools.partial(_bind, step)
                shapes = [self.traced.avals[i] for i in step.outputs]
                view = self._viewed(step, inputs)
                outputs = self._add(_key(step.equation), run, inputs, shapes, view)
                self._note_products(step, inputs, outputs)
                self._follow(step, inputs, outputs)
            slots.update(zip(step.outputs, outputs, strict=True))

    def _add(self, key, run, inputs, shapes, view: _View | None = None) -> list[int]:
        first = len(self.traced.avals)
        self.traced.avals.extend(shapes)
        outputs = list(range(first, first + len(shapes)))
        if view is None:
            self.steps.append(Step(key, run, inputs, outputs))
        else:
            self.makers[first] = Step(key, run, inputs, outputs)
            self.views[first] = view
        return outputs

    def _viewed(self, step: program.Step, inputs) -> _View | None:
        """What leaf the step's result is, if it's one."""
        view = self.views.get(inputs[0]) if inputs else None
        if view and step.name == "transpose":
            axes = tuple(view.axes[i] for i in step.equation.params["permutation"])
            return view._replace(axes=axes)
        return view if step.name in _SAME else None

    def _runs_over_a_stack(self, step: program.Step, inputs) -> bool:
        scanned = inputs[sum(program.scan_counts(step.equation)) :]
        return any(self.views[i].leaf in self.stacks for i in scanned if i in self.views)

    def _write_loop(self, step: program.Step, inputs, slots) -> list[int]:
        (body,), params = step.bodies, step.equation.params
        same, carried = program.scan_counts(step.equation)
        carry, scanned = inputs[same : same + carried], inputs[same + carried :]
        order = list(range(params["length"]))[:: -1 if params["reverse"] else 1]
        stacks: dict[int, list[int]] = {}
        for time in order:
            own = [self._at(slot, time) for slot in scanned]
            inner = {**slots, **dict(zip(body.inputs, [*carry, *own], strict=True))}
            self.write(body.steps, inner)
            results = [inner.get(i, i) for i in body.outputs]
            carry, stacks[time] = results[:carried], results[carried:]
        each = zip(*(stacks[time] for time in sorted(stacks)), strict=True)
        return [*carry, *(self._stacked(list(slots_of_one)) for slots_of_one in each)]

    def _at(self, slot: int, time: int) -> int:
        """One layer of a stack."""
        aval, view = self.traced.avals[slot], self.views.get(slot)
        index = len(self.traced.avals)
        self.traced.avals.append(jax.ShapeDtypeStruct((), jnp.int32))
        self.traced.known[index] = jnp.int32(time)
        shape = jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype)
        if view:
            view = _View(view.leaf, view.axes[1:], (*view.place, (view.axes[0], time)))
        return self._add("layer", _layer, [slot, index], [shape], view)[0]

    def _stacked(self, slots: list[int]) -> int:
        aval = self.traced.avals[slots[0]]
        shape = jax.ShapeDtypeStruct((len(slots), *aval.shape), aval.dtype)
        return self._add("stack", lambda *layers: [jnp.stack(layers)], slots, [shape])[0]

    def _note_products(self, step: program.Step, inputs, results) -> None:
        params, (result, *_) = step.equation.params, results
        if step.name == "dot_general":
            contracted, (batched, _) = params["dimension_numbers"]
            for kernel in () if batched else (0, 1):
                if view := self.views.get(inputs[kernel]):
                    found = self._matrix_product(view, kernel, contracted)
                    first = len(found[0]) - len(view.axes) if kernel else 0
                    self._note(view, inputs[1 - kernel], found, result, first)
        elif step.name == "conv_general_dilated":
            grouped = params["feature_group_count"] > 1 or params["batch_group_count"] > 1
            if not grouped and (view := self.views.get(inputs[1])):
                found = self._convolution(view, inputs[1], params)
                _, _, (_, feature, *_) = params["dimension_numbers"]
                self._note(view, inputs[0], found, result, feature)

    def _note(self, view: _View, operand: int, found, result: int, first: int) -> None:
        """A product in the step just written, whose outputs are axes `first`, ... of the result."""
        inputs, channels, layout = found
        outputs = tuple(axis for axis in view.axes if axis not in inputs)
        here = len(self.steps) - 1
        own = view.leaf, view.place, inputs, outputs, outputs
        axes: list[int | None] = [None] * len(self.traced.avals[result].shape)
        for i, axis in enumerate(outputs):
            axes[first + i] = axis
        self.results[result] = len(self.products), tuple(axes)
        self.products.append(Product(*own, channels, operand, layout, step=here))

    def _follow(self, step: program.Step, inputs, outputs) -> None:
        """Notes how the result of a product is transposed before anything else is done with it."""
        if step.name not in ("transpose", *_SAME) or inputs[0] not in self.results:
            return
        number, axes = self.results[inputs[0]]
        if step.name == "transpose":
            axes = tuple(axes[i] for i in step.equation.params["permutation"])
        self.results[outputs[0]] = number, axes
        order = tuple(axis for axis in axes if axis is not None)
        self.products[number] = self.products[number]._replace(result=order)

    def _matrix_product(self, view: _View, kernel: int, contracted):
        """In the order of the leaf's axes."""
        pairs = sorted(
            (view.axes[own], other)
            for own, other in zip(contracted[kernel], contracted[1 - kernel], strict=True)
        )
        inputs, summed = tuple(a for a, _ in pairs), tuple(b for _, b in pairs)
        sizes = self.traced.avals[self._leaf_slot(view)].shape
        return inputs, math.prod(sizes[axis] for axis in inputs), Summed(summed)

    def _leaf_slot(self, view: _View) -> int:
        return self.traced.body.inputs[view.leaf]

    def _convolution(self, view: _View, slot: int, params):
        """As a matrix product of patches (height, width, ..., channels) with the kernel."""
        image_axes, (_, channel, *spatial), _ = params["dimension_numbers"]
        shape = self.traced.avals[slot].shape
        layout = Patches(
            tuple(image_axes),
            tuple(shape[i] for i in spatial),
            *(params[name] for name in Patches._fields[2:]),
        )
        inputs = tuple(view.axes[i] for i in (*spatial, channel))
        return inputs, shape[channel], layout


def _bind(step: program.Step, *values) -> list[Any]:
    return program.bind(step, values)


def _layer(stack: jax.Array, index: jax.Array) -> list[jax.Array]:
    return [jax.lax.dynamic_index_in_dim(stack, index, keepdims=False)]


def _key(equation) -> Hashable:
    """Equal for equations that do the same; functions inside are compared by identity."""
    key = equation.primitive, tuple(sorted(equation.params.items()))
    try:
        hash(key)
    except TypeError:
        return id(equation)
    return key
