"""Axes followed through a program, step by step, by the rules of its primitives.

Loops and functions with a derivative of their own have bodies, which are followed as well.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxprune.networks.program import Body, Program, Step, scan_counts
from jaxprune.networks.rules import RULES, Axes, Domain, unknown


class Passage(NamedTuple):
    """The axes of a step's operands and results, and of what comes out of its bodies."""

    operands: list[Axes]
    results: list[Axes]
    inner: list[list[Axes]] = []  # noqa: RUF012


class Follower:
    """Follows axes through a program; `passages` has each step by its `id`."""

    def __init__(self, program: Program, domain: Domain):
        """Nothing has been followed yet."""
        self.program = program
        self.domain = domain
        self.known: dict[int, Axes] = {}
        self.passages: dict[int, Passage] = {}

    def follow(self, body: Body, inputs: Sequence[Axes]) -> list[Axes]:
        """The axes of the outputs of a body."""
        self.known.update(zip(body.inputs, inputs, strict=True))
        for step in body.steps:
            if not self.program.is_constant(step):
                self._step(step)
        return [self._axes(i) for i in body.outputs]

    def _axes(self, slot: int) -> Axes:
        return self.domain.constant(slot) if self.program.constant[slot] else self.known[slot]

    def _step(self, step: Step) -> None:
        self.domain.begin(step)
        operands = [self._axes(i) for i in step.inputs]
        if step.bodies:
            results, inner = _IN_BODIES[step.name](self, step, operands)
        else:
            rule = RULES.get(step.name, unknown)
            results, inner = [tuple(axes) for axes in rule(self.domain, step, operands)], []
        self.known.update(zip(step.outputs, results, strict=True))
        self.passages[id(step)] = Passage(operands, results, inner)

    def scan(self, step: Step, operands: list[Axes]):
        """What is carried is the same before and after; results besides have an axis of time."""
        (body,) = step.bodies
        same, carried = scan_counts(step.equation)
        for axes in operands[same + carried :]:
            self.domain.fix(axes[0], "a scan runs along it")
        before = operands[same : same + carried]
        scanned = [axes[1:] for axes in operands[same + carried :]]
        while True:
            outputs = self.follow(body, [*before, *scanned])
            after = [self._alike(*pair) for pair in zip(before, outputs[:carried], strict=True)]
            if all(map(_equal, before, after)):
                break
            before = after
        time = step.equation.params["length"]
        stacked = ((self.domain.fixed(time, "it is time"), *axes) for axes in outputs[carried:])
        return [*after, *stacked], [outputs]

    def custom_jvp(self, step: Step, operands: list[Axes]):
        """The derivative has the axes of the result, and its inputs those of the operands."""
        body, rule = step.bodies
        inputs = [self.known[i] for i in body.inputs]
        results = self.follow(body, inputs)
        of_rule = self.follow(rule, [*inputs, *inputs])
        for pair in zip(results * 2, of_rule, strict=True):
            self._alike(*pair)
        return results, [results, of_rule]

    def _alike(self, a: Axes, b: Axes) -> Axes:
        return tuple(self.domain.alike(pair) for pair in zip(a, b, strict=True))


_IN_BODIES = {"scan": Follower.scan, "custom_jvp_call": Follower.custom_jvp}


def _equal(a: Axes, b: Axes) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))
