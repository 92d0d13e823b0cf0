"""Whether what leaves a network would have added anything to what stays.

A flag of each index of an axis says that the slice there is exactly zero, whatever the inputs are.
Flags start at the leaves and pass through the network: a sum of zeros is zero, a product with a
zero factor too, a function of entries if it is zero at zero. Entries that stay depend on those
that leave only where an axis is summed over. So a network without some indices computes exactly
what it did if, in every such sum, each of their terms has a factor that is zero. Activations are
taken to be finite.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.networks import program as programs
from jaxprune.networks.coupling import Coupled
from jaxprune.networks.following import Follower
from jaxprune.networks.program import Step
from jaxprune.networks.rules import Axes, Axis


def heard(coupled: Coupled, zeros: list[Axes]) -> dict[int, str]:
    """The variables whose leaving changes what stays, and where: "`reduce_sum` of f32[2,8]".

    `zeros` says of each index of each axis of each leaf whether the slice is zero.
    """
    domain = _Silence(coupled)
    avals = [coupled.program.avals[i] for i in coupled.program.body.inputs[len(zeros) :]]
    others = [tuple(np.zeros(size, bool) for size in aval.shape) for aval in avals]
    Follower(coupled.program, domain).follow(coupled.program.body, [*zeros, *others])
    found: dict[int, str] = {}
    for term, place in domain.loud.items():
        for variable in coupled.terms.variables(term):
            found.setdefault(variable, place)
    return found


def flags(value) -> Axes:
    """Of each index of each axis of an array, whether the slice there is zero."""
    if jnp.issubdtype(getattr(value, "dtype", float), jax.dtypes.extended):  # keys
        return tuple(np.zeros(size, bool) for size in value.shape)
    nonzero = np.asarray(value) != 0
    others = [tuple(j for j in range(nonzero.ndim) if j != i) for i in range(nonzero.ndim)]
    return tuple(~nonzero.any(axes) for axes in others)


class _Silence:
    """The domain of flags; `loud` gathers terms that are summed over where they aren't zero."""

    def __init__(self, coupled: Coupled):
        self.coupled = coupled
        self.program = coupled.program
        self.loud: dict[int, str] = {}
        self.constants = programs.constants(coupled.program)

    def begin(self, step: Step) -> None:
        """Remembers the step."""
        self.step = step

    def constant(self, slot: int) -> Axes:
        """Looks at the value, unless it is traced."""
        value = self.constants[slot]
        if isinstance(value, jax.core.Tracer):
            return tuple(np.zeros(size, bool) for size in value.shape)
        return flags(value)

    def copies(self, size: int) -> Axis:
        """Not known to be zero."""
        return np.zeros(size, bool)

    def fixed(self, size: int, reason: str) -> Axis:
        """Not known to be zero."""
        return np.zeros(size, bool)

    def fix(self, axis: Axis, reason: str) -> None:
        """Changes nothing."""

    def elementwise(self, step: Step, axes: Sequence[Axis | None], size: int) -> Axis:
        """Zero where all operands are and the function is; or by one factor, or by a choice."""
        scalars = [self._scalar(slot) for slot in step.inputs]
        none, every = np.zeros(size, bool), np.ones(size, bool)
        zero = [
            np.broadcast_to(axis, size) if axis is not None else every if scalar == 0 else none
            for axis, scalar in zip(axes, scalars, strict=True)
        ]
        if step.name in ("mul", "and"):
            return zero[0] | zero[1]
        if step.name == "div":
            return zero[0]
        known = [z | (scalar is not None) for z, scalar in zip(zero, scalars, strict=True)]
        found = functools.reduce(operator.and_, known)
        found = found & (found.any() and self._is_zero_at_zero(step, scalars))
        if step.name == "select_n":
            found |= functools.reduce(operator.and_, zero[1:]) | (zero[0] & zero[1])
        return found

    def _scalar(self, slot: int):
        """A known number, or None."""
        if not self.program.constant[slot] or self.program.avals[slot].shape:
            return None
        value = self.constants[slot]
        return None if isinstance(value, jax.core.Tracer) else value

    def _is_zero_at_zero(self, step: Step, scalars) -> bool:
        avals = [self.program.avals[slot] for slot in step.inputs]
        values = [
            jnp.zeros((), aval.dtype) if scalar is None else scalar
            for aval, scalar in zip(avals, scalars, strict=True)
        ]
        return not np.asarray(programs.bind(step, values)[0]).any()

    def alike(self, axes: Sequence[Axis]) -> Axis:
        """Zero where all are."""
        return functools.reduce(operator.and_, axes)

    def padded(self, step: Step, axis: Axis) -> Axis:
        """Zero only if what is put around it is."""
        return axis & (self._scalar(step.inputs[1]) == 0)

    def either(self, a: Axis, b: Axis) -> Axis:
        """A product: zero where one is."""
        return a | b

    def summed(self, *operands: tuple[int, int, Axis]) -> None:
        """Notes what adds something."""
        silent = functools.reduce(operator.or_, [zero for _, _, zero in operands])
        number, place, _ = operands[0]
        terms = self.coupled.passages[id(self.step)].operands[number][place]
        shape = self.program.avals[self.step.inputs[number]].str_short()
        for term in terms[~silent].tolist():
            self.loud.setdefault(term, f"`{self.step.name}` of {shape}")

    def merged(self, axes: Sequence[Axis]) -> Axis:
        """Zero where one is."""
        return functools.reduce(np.logical_or.outer, axes).ravel()

    def split(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """Zero where all that belongs to the index is."""
        grid = axis.reshape(sizes)
        places = range(len(sizes))
        return [grid.all(tuple(j for j in places if j != i)) for i in places]
