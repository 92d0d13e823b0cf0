"""What is the same number whatever the inputs are, and whether it would be missed.

Each index of an axis has the number that the whole slice there is filled with, NaN if that isn't
known. Numbers start at the leaves and pass through the network: what a bias adds to zero, what an
activation makes of it, zero wherever one factor is zero. Entries that stay depend on those that
leave only where an axis is summed over. So a network without some indices computes exactly what it
did if, in every such sum, each of their terms has a factor that is zero. If the factor is another
number, the terms add a constant (`folding`). Activations are taken to be finite.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.networks import program as programs
from jaxprune.networks.coupling import Coupled
from jaxprune.networks.following import Follower
from jaxprune.networks.program import Step
from jaxprune.networks.rules import Axes, Axis


class Sum(NamedTuple):
    """A step that sums over an axis, or takes the largest entry along it.

    `terms` are those of the axis, `numbers` what each operand (by its number) has there.
    """

    step: Step
    place: int
    terms: Axis
    numbers: dict[int, Axis]

    @property
    def loud(self) -> np.ndarray:
        """Of each index, whether it may add something."""
        return ~functools.reduce(np.logical_or, [axis == 0 for axis in self.numbers.values()])

    def __str__(self):
        """Such as "`reduce_sum` of f32[2,8]"."""
        operand = min(self.numbers, default=0)
        return f"`{self.step.name}` of {self.step.equation.invars[operand].aval.str_short()}"


def sums(coupled: Coupled, numbers: Sequence[Axes]) -> list[Sum]:
    """All sums of a network whose leaves are filled with such numbers."""
    domain = _Numbers(coupled)
    avals = [coupled.program.avals[i] for i in coupled.program.body.inputs[len(numbers) :]]
    others = [tuple(map(_unknown, aval.shape)) for aval in avals]
    Follower(coupled.program, domain).follow(coupled.program.body, [*numbers, *others])
    return list(domain.sums.values())


def heard(coupled: Coupled, found: Sequence[Sum]) -> dict[int, list[Sum]]:
    """The variables whose leaving changes what stays, and in which sums."""
    places: dict[int, dict[int, Sum]] = {}
    for number, one in enumerate(found):
        for term in one.terms[one.loud].tolist():
            for variable in coupled.terms.variables(term):
                places.setdefault(variable, {})[number] = one
    return {variable: list(own.values()) for variable, own in places.items()}


def numbers_of(value: Any) -> Axes:
    """Of each index of each axis of an array, the number that the slice there is filled with.

    Only these numbers come from the devices that the array lies on.
    """
    shape = np.shape(value)
    numeric = jnp.issubdtype(getattr(value, "dtype", np.float32), np.number) or _is_boolean(value)
    if isinstance(value, jax.core.Tracer) or not numeric or 0 in shape:
        return tuple(map(_unknown, shape))
    ends = _ends(np.asarray(value)) if _on_host(value) else _ends_on_devices(value)
    return tuple(_where_equal(*(np.asarray(x, float) for x in pair)) for pair in ends)


def _is_boolean(value: Any) -> bool:
    return getattr(value, "dtype", None) == np.bool_


def _on_host(value: Any) -> bool:
    if not isinstance(value, jax.Array):
        return True
    return [device.platform for device in value.devices()] == ["cpu"]


def _ends(value: Any) -> list[tuple[Any, Any]]:
    """Of each index of each axis, the smallest and the largest entry of the slice."""
    axes = range(value.ndim)
    others = [tuple(j for j in axes if j != i) for i in axes]
    return [(value.min(beside), value.max(beside)) for beside in others]


def _ends_on_devices(value: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """The same, calculated where the array lies; all devices get to know them."""
    sharding = value.sharding
    on_a_mesh = isinstance(sharding, jax.sharding.NamedSharding)
    everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.P()) if on_a_mesh else None
    return jax.jit(_ends, out_shardings=everywhere)(value)


def _where_equal(a: Axis, b: Axis) -> Axis:
    return np.where(a == b, a, np.nan)


def _unknown(size: int) -> Axis:
    return np.full(size, np.nan)


def _zero_or_unknown(zero: np.ndarray) -> Axis:
    return np.where(zero, 0.0, np.nan)


class _Numbers:
    """The domain of numbers; `sums` gathers what is summed over."""

    def __init__(self, coupled: Coupled):
        self.coupled = coupled
        self.program = coupled.program
        self.sums: dict[Any, Sum] = {}
        self.constants = programs.constants(coupled.program)

    def begin(self, step: Step) -> None:
        """Remembers the step."""
        self.step = step

    def constant(self, slot: int) -> Axes:
        """Looks at the value."""
        return numbers_of(self.constants[slot])

    def copies(self, size: int) -> Axis:
        """Unknown."""
        return _unknown(size)

    def fixed(self, size: int, reason: str) -> Axis:
        """Unknown."""
        return _unknown(size)

    def fix(self, axis: Axis, reason: str) -> None:
        """Changes nothing."""

    def elementwise(self, step: Step, axes: Sequence[Axis | None], size: int) -> Axis:
        """The function of the numbers; zero by one factor; or what is chosen in any case."""
        scalars = [self._scalar(slot) for slot in step.inputs]
        operands = [
            np.broadcast_to(scalar if axis is None else axis, size)
            for axis, scalar in zip(axes, scalars, strict=True)
        ]
        if step.name in _SAME:
            return operands[0]
        found = self._calculated(step, np.stack(operands))
        if step.name == "select_n":
            found = _chosen(found, *operands)
        factors = {"mul": operands, "and": operands, "div": operands[:1]}.get(step.name, [])
        for factor in factors:
            found = np.where(factor == 0, 0.0, found)
        return found

    def _scalar(self, slot: int) -> float:
        """A constant's number."""
        aval, value = self.program.avals[slot], self.constants.get(slot)
        known = value is not None and not aval.shape and not isinstance(value, jax.core.Tracer)
        return float(value) if known and _is_real(aval) else np.nan

    def _calculated(self, step: Step, operands: np.ndarray) -> Axis:
        """The primitive's results for the numbers, where all operands' (operands, size) are known.

        What is calculated has a power of two as its length, so that little is compiled.
        """
        known = ~np.isnan(operands).any(0)
        avals = [self.program.avals[slot] for slot in [*step.inputs, *step.outputs]]
        found = _unknown(len(known))
        if not known.any() or not all(map(_is_real, avals)):
            return found
        different, places = np.unique(operands[:, known], axis=1, return_inverse=True)
        length = 1 << (different.shape[1] - 1).bit_length()
        rows = zip(different, avals, strict=False)
        values = [jnp.asarray(np.resize(row, length), aval.dtype) for row, aval in rows]
        (results,) = programs.bind(step, values)
        found[known] = np.asarray(results, float)[places.ravel()]
        return np.where(np.isfinite(found), found, np.nan)

    def alike(self, axes: Sequence[Axis]) -> Axis:
        """What all have."""
        return functools.reduce(_where_equal, axes)

    def padded(self, step: Step, axis: Axis) -> Axis:
        """As before if the same is put around it."""
        return np.where(axis == self._scalar(step.inputs[1]), axis, np.nan)

    def either(self, a: Axis, b: Axis) -> Axis:
        """Products in a sum: zero where one is."""
        return _zero_or_unknown((a == 0) | (b == 0))

    def summed(self, *operands: tuple[int, int, Axis]) -> None:
        """Notes it."""
        number, place, _ = operands[0]
        terms = self.coupled.passages[id(self.step)].operands[number][place]
        numbers = {operand: axis for operand, _, axis in operands}
        self.sums[id(self.step), number, place] = Sum(self.step, place, terms, numbers)

    def extreme(self, place: int, axis: Axis) -> None:
        """Any number may be the largest."""
        self.summed((0, place, _unknown(len(axis))))

    def reduced(self, step: Step, axis: Axis) -> Axis:
        """As many times the number as are summed, itself if it is the largest; zero is zero."""
        times = _times(step)
        return _zero_or_unknown(axis == 0) if times is None else times * axis

    def merged(self, axes: Sequence[Axis]) -> Axis:
        """That of the first axis that has one."""
        merge = lambda a, b: np.where(np.isnan(a)[:, None], b[None], a[:, None]).ravel()
        return functools.reduce(merge, axes)

    def split(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """What all that belongs to the index has."""
        return [_where_equal(*ends) for ends in _ends(axis.reshape(sizes))]


# Functions of entries that are what goes in, wherever it lies.
_SAME = ("copy", "copy_p", "sharding_constraint")

# What makes of entries that are all the same number this number again.
_EXTREMES = ("reduce_max", "reduce_min", "reduce_window_max", "cummax", "cummin", "rev")


def _is_real(aval) -> bool:
    numeric = jnp.issubdtype(aval.dtype, np.number) and not jnp.issubdtype(aval.dtype, np.complex64)
    return numeric or aval.dtype == np.bool_


def _chosen(found: Axis, which: Axis, *cases: Axis) -> Axis:
    """The case that is chosen, or what all cases have."""
    same = functools.reduce(_where_equal, cases)
    found = np.where(np.isnan(same), found, same)
    for number, case in enumerate(cases):
        found = np.where(which == number, case, found)
    return found


def _times(step: Step) -> int | None:
    """What a step that puts equal numbers together multiplies them by."""
    params = step.equation.params
    if step.name in _EXTREMES:
        return 1
    if step.name == "reduce_sum":
        return math.prod(step.equation.invars[0].aval.shape[i] for i in params["axes"])
    if step.name == "reduce_window_sum":
        plain = all(d == 1 for d in params["base_dilation"]) and not np.any(params["padding"])
        return math.prod(params["window_dimensions"]) if plain else None
    return None
