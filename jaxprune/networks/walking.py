"""A walk through a network, from product to product: its leaves may change on the way.

Between two products the steps run under `jit`, once for each batch, and what later steps need of
their results is held for all batches. So a network that is pruned layer by layer runs once, not
once for each layer. Stretches of equal steps, as repeated blocks have them, are compiled once.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jaxprune.networks.capture import Product, Step, Trace

Leaves = list[jax.Array]


class _Stretch(NamedTuple):
    """Steps with what comes in and goes out of them."""

    steps: list[Step]
    inputs: list[int]
    outputs: list[int]


def walk(
    trace: Trace, networks: Sequence[Leaves], batches: Sequence[Any]
) -> Iterator[tuple[Product, list[list[jax.Array]]]]:
    """Yields each product with its operands, of each batch and network, before it is calculated.

    The networks are lists of leaves. Whoever calls may change them in place: products and whatever
    else comes later read them anew.
    """
    values = [
        [dict(zip(trace.arguments, jax.tree.leaves(batch), strict=True)) for _ in networks]
        for batch in batches
    ]
    functions: dict[Hashable, Callable] = {}
    last = _last_uses(trace)
    start = 0
    for product in trace.products:
        stretch = _stretch(trace, start, product, last)
        function = _compiled(stretch, functions)
        operands = [
            [_advance(trace, stretch, function, *each) for each in zip(networks, own, strict=True)]
            for own in values
        ]
        for slot in [slot for slot in values[0][0] if last.get(slot, -1) < product.step]:
            for own in values:
                for each in own:
                    each.pop(slot)
        start = product.step
        yield product, operands


def _last_uses(trace: Trace) -> dict[int, int]:
    """The number of the last step that reads a slot, up to the last product."""
    end = trace.products[-1].step if trace.products else 0
    last = {slot: number for number, step in enumerate(trace.steps[:end]) for slot in step.inputs}
    for product in trace.products:
        last[product.operand] = max(last.get(product.operand, -1), product.step)
    return last


def _stretch(trace: Trace, start: int, product: Product, last: dict[int, int]) -> _Stretch:
    """The steps up to a product; what is made of leaves is made anew."""
    steps: list[Step] = []
    made: set[int] = set()

    def make(slot: int) -> None:
        if slot in trace.makers and slot not in made:
            append(trace.makers[slot])

    def append(step: Step) -> None:
        for slot in step.inputs:
            make(slot)
        steps.append(step)
        made.update(step.outputs)

    for step in trace.steps[start : product.step]:
        append(step)
    make(product.operand)
    inputs = [slot for step in steps for slot in step.inputs if slot not in made]
    if product.operand not in made:
        inputs.append(product.operand)
    kept = [slot for step in steps for slot in step.outputs if last.get(slot, -1) >= product.step]
    outputs = [product.operand, *(slot for slot in kept if slot not in trace.makers)]
    return _Stretch(steps, list(dict.fromkeys(inputs)), list(dict.fromkeys(outputs)))


def _compiled(stretch: _Stretch, functions: dict[Hashable, Callable]) -> Callable:
    """The stretch as a function of its inputs, the same for stretches that do the same."""
    number: dict[int, int] = {}
    numbers = lambda slots: tuple(number.setdefault(slot, len(number)) for slot in slots)
    first = numbers(stretch.inputs)
    steps = [(step.key, numbers(step.inputs), numbers(step.outputs)) for step in stretch.steps]
    key = (first, *steps, numbers(stretch.outputs))

    def run(inputs):
        values = dict(zip(stretch.inputs, inputs, strict=True))
        for step in stretch.steps:
            results = step.run(*(values[slot] for slot in step.inputs))
            values.update(zip(step.outputs, results, strict=True))
        return [values[slot] for slot in stretch.outputs]

    return functions.setdefault(key, jax.jit(run))


def _advance(trace: Trace, stretch: _Stretch, function, leaves: Leaves, values) -> jax.Array:
    """Runs the stretch for one batch and network; the operand of the product at its end."""
    of_leaves = dict(zip(trace.leaves, leaves, strict=True))
    known = (of_leaves, trace.known, values)
    found = lambda slot: next(each[slot] for each in known if slot in each)
    results = function([found(slot) for slot in stretch.inputs])
    values.update(zip(stretch.outputs, results, strict=True))
    return results[0]
