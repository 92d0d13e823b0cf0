"""A program computed at some of the indices of its axes.

Step by step with the same primitives, whose own sizes (the shape of a reshape, the bounds of a
slice) follow the axes. Numbers in the program stay: a mean over an axis that has become shorter
still divides by the old length, as the mean over zeros in the masked network does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.networks.coupling import Coupled
from jaxprune.networks.following import Passage
from jaxprune.networks.program import Body, Step, bind, scan_counts
from jaxprune.networks.rules import Axes, Axis

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
    evaluator = _Evaluator(coupled, keeps)
    body = coupled.program.body
    evaluator.run(body, inputs)
    return [evaluator.values[i] for i in body.outputs]


class _Evaluator:
    """What is in each slot: constants whole, everything else at the indices that stay."""

    def __init__(self, coupled: Coupled, keeps: Keeps, values: dict[int, Any] | None = None):
        self.coupled = coupled
        self.keeps = keeps
        self.values = dict(coupled.program.known if values is None else values)

    def run(self, body: Body, inputs: Sequence[Any]) -> None:
        """Fills the slots of a body."""
        self.values.update(zip(body.inputs, inputs, strict=True))
        for step in body.steps:
            self.values.update(zip(step.outputs, self._results(step), strict=True))

    def _results(self, step: Step) -> Sequence[Any]:
        if self.coupled.program.is_constant(step):
            return bind(step, [self.values[i] for i in step.inputs])
        passage = self.coupled.passages[id(step)]
        if step.bodies or step.name == "sharding_constraint":
            return _OWN[step.name](self, step, passage)
        resize = _RESIZED.get(step.name)
        changed = resize(step, passage.operands, passage.results, self.keeps) if resize else {}
        return bind(step, self._taken(step.inputs, passage.operands), **changed)

    def _taken(self, slots: Sequence[int], axes: Sequence[Axes]) -> list[Any]:
        """What is in the slots, with constants cut to what they meet."""
        constant = self.coupled.program.constant
        return [
            taken(self.values[slot], own, self.keeps) if constant[slot] else self.values[slot]
            for slot, own in zip(slots, axes, strict=True)
        ]

    def _inside(self, body: Body, axes: list[Axes], inputs: Sequence[Any]) -> list[Any]:
        """The outputs of a body inside of this one."""
        inner = _Evaluator(self.coupled, self.keeps, self.values)
        inner.run(body, inputs)
        return inner._taken(body.outputs, axes)

    def scan(self, step: Step, passage: Passage) -> Sequence[Any]:
        """The same loop over less."""
        (body,), (axes,) = step.bodies, passage.inner
        params = step.equation.params
        same, carried = scan_counts(step.equation)

        def iteration(carry, xs):
            outputs = self._inside(body, axes, [*carry, *xs])
            return outputs[:carried], outputs[carried:]

        operands = self._taken(step.inputs, passage.operands)[same:]
        options = {name: params[name] for name in ("length", "reverse", "unroll")}
        carry, stacked = jax.lax.scan(iteration, operands[:carried], operands[carried:], **options)
        return [*carry, *stacked]

    def custom_jvp(self, step: Step, passage: Passage) -> Sequence[Any]:
        """The same function with its own derivative."""
        (body, rule), (axes, axes_of_rule) = step.bodies, passage.inner

        @jax.custom_jvp
        def function(*inputs):
            return self._inside(body, axes, inputs)

        @function.defjvp
        def _(primals, tangents):
            outputs = self._inside(rule, axes_of_rule, [*primals, *tangents])
            return outputs[: len(axes)], outputs[len(axes) :]

        return function(*(self.values[i] for i in body.inputs))

    def constrained(self, step: Step, passage: Passage) -> Sequence[Any]:
        """Lies as it did, unless its axes can't be divided any more."""
        (value,) = self._taken(step.inputs, passage.operands)
        try:
            step.equation.params["sharding"].shard_shape(value.shape)
        except ValueError:
            return [value]
        return bind(step, [value])


_OWN = {
    "scan": _Evaluator.scan,
    "custom_jvp_call": _Evaluator.custom_jvp,
    "sharding_constraint": _Evaluator.constrained,
}


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
