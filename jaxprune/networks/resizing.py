"""A program computed at some of the indices of its axes.

Step by step with the same primitives, whose own sizes (the shape of a reshape, the bounds of a
slice) follow the axes. Numbers in the program stay: a mean over an axis that has become shorter
still divides by the old length, as the mean over zeros in the masked network does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.networks import program as programs
from jaxprune.networks.axes import Axes, Axis
from jaxprune.networks.coupling import Coupled
from jaxprune.networks.program import Step, is_constant

Keeps = Callable[[Axis], np.ndarray]


def taken(value, axes: Axes, keeps: Keeps):
    """The value at the indices that stay."""
    for place, axis in enumerate(axes):
        keep = keeps(axis)
        if not keep.all():
            value = jax.numpy.take(value, np.flatnonzero(keep), axis=place)
    return value


def evaluate(coupled: Coupled, keeps: Keeps, inputs: Sequence[Any]) -> list[Any]:
    """The outputs for inputs of which the parameters have only the indices that stay."""
    program = coupled.program
    values = dict(program.known)
    values.update(zip(program.inputs, inputs, strict=True))
    for step, passage in zip(program.steps, coupled.passages, strict=True):
        operands = [values[i] for i in step.inputs]
        if passage is None or is_constant(program, step):
            results = programs.bind(step, operands)
        else:
            operands = [
                taken(value, axes, keeps) if program.constant[slot] else value
                for slot, value, axes in zip(step.inputs, operands, passage[0], strict=True)
            ]
            resize = _RESIZED.get(step.name)
            changed = resize(step, *passage, keeps) if resize else {}
            results = programs.bind(step, operands, **changed)
        values.update(zip(step.outputs, results, strict=True))
    return [values[i] for i in program.outputs]


def _shape(axes: Axes, keeps: Keeps) -> tuple[int, ...]:
    return tuple(int(keeps(axis).sum()) for axis in axes)


def _to_shape(name: str):
    return lambda step, ins, outs, keeps: {name: _shape(outs[0], keeps)}


def _slice(step: Step, ins, outs, keeps):
    """Bounds count what stays before them."""
    params = step.equation.params
    starts, limits = [], []
    for axis, start, limit in zip(
        ins[0], params["start_indices"], params["limit_indices"], strict=True
    ):
        before = np.concatenate([[0], np.cumsum(keeps(axis))])
        all_stay = before[-1] == len(axis)  # then there may be strides
        starts.append(int(start if all_stay else before[start]))
        limits.append(int(limit if all_stay else before[limit]))
    return {"start_indices": tuple(starts), "limit_indices": tuple(limits)}


def _split(step: Step, ins, outs, keeps):
    along = step.equation.params["axis"]
    return {"sizes": tuple(int(keeps(axes[along]).sum()) for axes in outs)}


def _gather(step: Step, ins, outs, keeps):
    """Axes that are taken whole stay whole."""
    sizes = zip(step.equation.params["slice_sizes"], ins[0], strict=True)
    return {"slice_sizes": tuple(int(keeps(x).sum()) if n == len(x) else n for n, x in sizes)}


def _convolution(step: Step, ins, outs, keeps):
    """As many groups as the channels that stay make of the kernel's inputs."""
    if step.equation.params["feature_group_count"] == 1:
        return {}
    (_, channels, *_), (_, inputs, *_), _ = step.equation.params["dimension_numbers"]
    images, kernel = (keeps(ins[i][place]).sum() for i, place in ((0, channels), (1, inputs)))
    return {"feature_group_count": int(images // kernel)}


_RESIZED = {
    "broadcast_in_dim": _to_shape("shape"),
    "conv_general_dilated": _convolution,
    "dynamic_slice": _to_shape("slice_sizes"),
    "gather": _gather,
    "reshape": _to_shape("new_sizes"),
    "slice": _slice,
    "split": _split,
}
