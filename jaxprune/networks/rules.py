"""What primitives do to the axes of their operands, whatever it is that is known of an axis.

An axis is a NumPy array with an entry for each index. What the entries are, a domain says: in
`coupling` they are names of what must leave together, in `silence` the number that a slice is
filled with. A rule takes the domain, the step and the axes of each operand, and returns the axes of
each result. A primitive without a rule fixes all that goes in and comes out: unknown means safe.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from jaxprune.networks.program import Step

Axis = np.ndarray
Axes = tuple[Axis, ...]


class Domain(Protocol):
    """What is known of the indices of an axis, and how it passes through a network."""

    def begin(self, step: Step) -> None:
        """Is called before each step."""

    def constant(self, slot: int) -> Axes:
        """Of a value that depends on neither parameters nor inputs."""
        ...

    def copies(self, size: int) -> Axis:
        """A new axis along which a value repeats."""
        ...

    def fixed(self, size: int, reason: str) -> Axis:
        """An axis that can't become shorter."""
        ...

    def fix(self, axis: Axis, reason: str) -> None:
        """From here on the axis can't become shorter."""

    def elementwise(self, step: Step, axes: Sequence[Axis | None], size: int) -> Axis:
        """Of a function of entries; an axis of length 1 repeats, None is a scalar's."""
        ...

    def alike(self, axes: Sequence[Axis]) -> Axis:
        """Of axes that run side by side, such as those a concatenation leaves alone."""
        ...

    def padded(self, step: Step, axis: Axis) -> Axis:
        """Of an axis as long as before, when others are padded with the step's second operand."""
        ...

    def either(self, a: Axis, b: Axis) -> Axis:
        """Of axes that are multiplied index by index."""
        ...

    def summed(self, *operands: tuple[int, int, Axis]) -> None:
        """One axis of one operand or two (number, axis, what it is) is summed over."""

    def extreme(self, place: int, axis: Axis) -> None:
        """The largest or the smallest entry is taken over an axis of the only operand."""

    def reduced(self, step: Step, axis: Axis) -> Axis:
        """Of an axis that goes on where entries beside it are put together."""
        ...

    def merged(self, axes: Sequence[Axis]) -> Axis:
        """One axis that runs through several, the last one fastest."""
        ...

    def split(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """The axes of such sizes that one runs through."""
        ...


Rule = Callable[[Domain, Step, list[Axes]], Iterable[Iterable[Axis]]]


def _shapes(step: Step) -> list[tuple[int, ...]]:
    return [x.aval.shape for x in step.equation.outvars]


def unknown(domain: Domain, step: Step, operands: list[Axes]) -> list[list[Axis]]:
    """The rule of primitives that have none."""
    reason = f"`{step.name}` is not looked into"
    for axes in operands:
        for axis in axes:
            domain.fix(axis, reason)
    return [[domain.fixed(size, reason) for size in shape] for shape in _shapes(step)]


def _elementwise(domain, step, operands):
    (shape,) = _shapes(step)
    rows = [axes or (None,) * len(shape) for axes in operands]
    columns = zip(*rows, strict=True)
    yield [domain.elementwise(step, axes, n) for axes, n in zip(columns, shape, strict=True)]


def _side_by_side(domain, step, operands):
    """Each result is its operand, as of `optimization_barrier`."""
    return operands


def _broadcast_in_dim(domain, step, operands):
    (shape,) = _shapes(step)
    new = [None] * len(shape)
    places = step.equation.params["broadcast_dimensions"]
    for place, axis in zip(places, operands[0], strict=True):
        if len(axis) == shape[place]:
            new[place] = axis
        else:
            domain.fix(axis, "it is broadcast")
    yield [domain.copies(n) if x is None else x for n, x in zip(shape, new, strict=True)]


def _reduce_sum(domain, step, operands):
    summed = step.equation.params["axes"]
    for axis in summed:
        domain.summed((0, axis, operands[0][axis]))
    yield _rest(domain, step, operands[0], summed)


def _reduce(domain, step, operands):
    reduced = step.equation.params["axes"]
    for axis in reduced:
        domain.fix(operands[0][axis], f"`{step.name}` is taken over it")
    yield _rest(domain, step, operands[0], reduced)


def _reduce_to_extreme(domain, step, operands):
    reduced = step.equation.params["axes"]
    for axis in reduced:
        domain.extreme(axis, operands[0][axis])
    yield _rest(domain, step, operands[0], reduced)


def _without(axes, some):
    return [axis for i, axis in enumerate(axes) if i not in some]


def _rest(domain, step, axes, some):
    return [domain.reduced(step, axis) for axis in _without(axes, some)]


def _transpose(domain, step, operands):
    yield [operands[0][i] for i in step.equation.params["permutation"]]


def _squeeze(domain, step, operands):
    gone = step.equation.params["dimensions"]
    for i in gone:
        domain.fix(operands[0][i], "it is dropped")
    yield _without(operands[0], gone)


def _reshape(domain, step, operands):
    """Splits axes into common factors and merges these anew, block by block of equal size."""
    (shape,) = _shapes(step)
    axes = operands[0]
    if 0 in shape:
        return unknown(domain, step, operands)
    new: list[Any] = []
    for ins, outs in _blocks([len(axis) for axis in axes], shape):
        before, after = [axes[i] for i in ins], [shape[i] for i in outs]
        new += _reshaped(domain, before, after)
    return [new]


def _blocks(before: Sequence[int], after: Sequence[int]):
    """Runs of axes with the same number of entries before and after, as short as can be."""
    i = j = 0
    while i < len(before) or j < len(after):
        ins, outs = [i], [j]
        ins, outs = ins[: len(before) - i], outs[: len(after) - j]
        i, j = i + len(ins), j + len(outs)
        while math.prod(before[k] for k in ins) != math.prod(after[k] for k in outs):
            if math.prod(before[k] for k in ins) < math.prod(after[k] for k in outs):
                ins.append(i)
                i += 1
            else:
                outs.append(j)
                j += 1
        yield ins, outs


def _reshaped(domain, axes, sizes):
    if [len(axis) for axis in axes] == list(sizes):
        return axes
    for axis in axes:
        if len(axis) == 1:
            domain.fix(axis, "it is dropped")
    factors = _common_factors([len(axis) for axis in axes], sizes)
    if factors is None:
        reason = "a reshape cuts across it"
        for axis in axes:
            domain.fix(axis, reason)
        return [domain.fixed(size, reason) for size in sizes]
    parts = []
    for axis, own in zip(axes, _runs(factors, [len(axis) for axis in axes]), strict=True):
        parts += domain.split(axis, own) if len(own) > 1 else [axis] * len(own)
    new = []
    for own in _runs(factors, sizes):
        taken, parts = parts[: len(own)], parts[len(own) :]
        new.append(domain.merged(taken) if taken else domain.copies(1))
    return new


def _common_factors(before, after) -> list[int] | None:
    """Sizes, none of them 1, that both lists are products of runs of; None if there are none."""
    ends = sorted({int(n) for sizes in (before, after) for n in np.cumprod(sizes)} | {1})
    if any(b % a for a, b in itertools.pairwise(ends)):
        return None
    return [b // a for a, b in itertools.pairwise(ends)]


def _runs(factors, sizes):
    """The factors that make up each size."""
    factors = list(factors)
    for size in sizes:
        own: list[int] = []
        while math.prod(own) != size:
            own.append(factors.pop(0))
        yield own


def _concatenate(domain, step, operands):
    along = step.equation.params["dimension"]
    columns = enumerate(zip(*operands, strict=True))
    yield [np.concatenate(axes) if i == along else domain.alike(axes) for i, axes in columns]


def _stack(domain, step, operands):
    axes = [domain.alike(column) for column in zip(*operands, strict=True)]
    axes.insert(step.equation.params["axis"], domain.fixed(len(operands), "it is stacked"))
    yield axes


def _pad(domain, step, operands):
    axes, padding = operands[0], step.equation.params["padding_config"]
    (shape,) = _shapes(step)
    new = []
    for axis, config, size in zip(axes, padding, shape, strict=True):
        if any(config):
            domain.fix(axis, "it is padded")
            new.append(domain.fixed(size, "it is padded"))
        else:
            new.append(domain.padded(step, axis))
    yield new


def _slice(domain, step, operands):
    params = step.equation.params
    (shape,) = _shapes(step)
    strides = params["strides"] or (1,) * len(shape)
    new = []
    for axis, start, size, stride in zip(
        operands[0], params["start_indices"], shape, strides, strict=True
    ):
        if stride > 1:
            domain.fix(axis, "a slice takes every n-th index")
        new.append(axis[start : start + size * stride : stride])
    yield new


def _split(domain, step, operands):
    along, sizes = step.equation.params["axis"], step.equation.params["sizes"]
    axes = operands[0]
    for part in np.split(axes[along], np.cumsum(sizes)[:-1]):
        yield [part if i == along else axis for i, axis in enumerate(axes)]


def _whole_or_fixed(domain, axes, shape, reason):
    """Axes that keep their length pass, others are fixed."""
    for axis, size in zip(axes, shape, strict=True):
        if len(axis) == size:
            yield axis
        else:
            domain.fix(axis, reason)
            yield domain.fixed(size, reason)


def _dynamic_slice(domain, step, operands):
    yield list(_whole_or_fixed(domain, operands[0], _shapes(step)[0], "a slice moves along it"))


def _gather(domain, step, operands):
    """Axes of the operand that are taken whole pass, such as the columns of an embedding."""
    params, axes = step.equation.params, operands[0]
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    (shape,) = _shapes(step)
    dropped = numbers.collapsed_slice_dims + numbers.operand_batching_dims
    window = [i for i in range(len(axes)) if i not in dropped]
    new = [domain.fixed(size, "it is looked up") for size in shape]
    for place, i in zip(numbers.offset_dims, window, strict=True):
        if sizes[i] == len(axes[i]) and i not in numbers.start_index_map:
            new[place] = axes[i]
    for axis in axes:
        if not any(axis is other for other in new):
            domain.fix(axis, "it is looked up by index")
    for axis in operands[1]:
        domain.fix(axis, "it holds indices")
    yield new


def _along(domain, step, operands):
    """Runs along one axis and leaves the others, such as a cumulative sum."""
    params = step.equation.params
    along = params["dimensions"] if step.name == "rev" else (params["axis"],)
    reason = f"`{step.name}` runs along it"
    for i in along:
        domain.fix(operands[0][i], reason)
    yield [
        domain.fixed(len(axis), reason) if i in along else domain.reduced(step, axis)
        for i, axis in enumerate(operands[0])
    ]


def _reduce_window(domain, step, operands):
    params, axes = step.equation.params, operands[0]
    new = []
    for i, (axis, size) in enumerate(zip(axes, _shapes(step)[0], strict=True)):
        names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
        if all(params[name][i] == 1 for name in names) and not any(params["padding"][i]):
            new.append(domain.reduced(step, axis))
        else:
            domain.fix(axis, "windows run along it")
            new.append(domain.fixed(size, "windows run along it"))
    yield new


def _dot_general(domain, step, operands):
    (left, right), (left_batch, right_batch) = step.equation.params["dimension_numbers"]
    a, b = operands
    for i, j in zip(left, right, strict=True):
        domain.summed((0, i, a[i]), (1, j, b[j]))
    batch = [domain.either(a[i], b[j]) for i, j in zip(left_batch, right_batch, strict=True)]
    rest = (_rest(domain, step, a, left + left_batch), _rest(domain, step, b, right + right_batch))
    yield [*batch, *rest[0], *rest[1]]


def _convolution(domain, step, operands):
    params = step.equation.params
    images, kernel = operands
    (batch, channels, *space), (outputs, inputs, *window), result = params["dimension_numbers"]
    groups = params["feature_group_count"]
    if params["batch_group_count"] > 1:
        yield from unknown(domain, step, operands)
        return
    for axis in [images[i] for i in space] + [kernel[i] for i in window]:
        domain.fix(axis, "a convolution runs along it")
    out = domain.reduced(step, kernel[outputs])
    if groups == 1:
        domain.summed((0, channels, images[channels]), (1, inputs, kernel[inputs]))
    else:
        block, channel = domain.split(images[channels], [groups, len(images[channels]) // groups])
        own_block, own = domain.split(out, [groups, len(out) // groups])
        domain.summed((1, inputs, kernel[inputs]), (0, channels, channel))
        out = domain.merged([domain.either(block, own_block), own])
    (shape,) = _shapes(step)
    new = [domain.fixed(size, "a convolution runs along it") for size in shape]
    new[result[0]], new[result[1]] = domain.reduced(step, images[batch]), out
    yield new


# Functions of single entries.
_ENTRIES = [
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "cos",
    "cosh", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "integer_pow",
    "is_finite", "log", "log1p", "logistic", "neg", "pow", "real", "rem", "round", "rsqrt",
    "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh", "add", "sub", "mul", "div", "max",
    "min", "nextafter", "eq", "ne", "ge", "gt", "le", "lt", "and", "or", "xor", "not",
    "clamp", "select_n", "convert_element_type", "copy", "copy_p", "reduce_precision",
    "sharding_constraint", "stop_gradient",
]  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ENTRIES, _elementwise),
    **dict.fromkeys(["reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"], _reduce),
    **dict.fromkeys(["reduce_max", "reduce_min"], _reduce_to_extreme),
    **dict.fromkeys(["cumsum", "cumprod", "cummax", "cummin", "rev"], _along),
    **dict.fromkeys(["reduce_window_sum", "reduce_window_max"], _reduce_window),
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "optimization_barrier": _side_by_side,
    "pad": _pad,
    "reduce_sum": _reduce_sum,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
}
