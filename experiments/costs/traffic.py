"""How many bytes a program for an accelerator moves in a run, counted from its compiled text.

HBM traffic is what the operands and results in HBM of each instruction come to. Of a conditional
one branch is counted; a loop runs as often as the constant in its condition says, or else as often
as asked.

XLA's own cost analysis would be shorter. But of a conditional it counts the branch that costs most,
a loop once, and what lies in the chip's own memory like what lies in HBM. A constant predicate
doesn't help: with the conditional goes what was written to memory for its sake, which is what is
looked for here. (tests/test_steps_tpu.py shows all four.)
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from experiments.costs.hlo import FREE, Array, Computation, Instruction, Program

# Of custom calls, those that make room for arrays.
_ROOM = 'custom_call_target="AllocateBuffer"'


def traffic(program: Program, branch: Callable = min) -> float:
    """Bytes between HBM and the chip in one run.

    Of a conditional the `branch` that moves least runs, as between two choices of a mask; or with
    `max` that which moves most.
    """
    return _Traffic(program, branch).of("")


class _Traffic(NamedTuple):
    program: Program
    branch: Callable

    def of(self, computation: str) -> float:
        return sum(map(self._moved, self.program.computations[computation].values()))

    def _moved(self, line: Instruction) -> float:
        if line.kind in FREE or line.kind.endswith("-done") or _ROOM in line.rest:
            return 0.0
        if line.kind == "conditional":
            return self.branch(map(self.of, self.program.called(line)))
        if line.kind == "while":
            return self.program.turns(line) * sum(map(self.of, self.program.called(line)))
        if line.kind == "call":
            return sum(map(self.of, self.program.called(line)))
        if line.kind.endswith("-start"):  # a copy of an array or of its part, from and to
            ends = line.arrays[:2]
            return min(end.bytes for end in ends) * sum(end.in_hbm for end in ends)
        read = sum(
            min(self._read(line, place), _in_hbm(self.program.all[name].arrays))
            for place, name in enumerate(line.operands)
        )
        return read + max(_in_hbm(line.arrays) - self._untouched(line), 0.0)

    def _read(self, line: Instruction, place: int) -> float:
        """Bytes of an operand that are read at most: slices and updates in place leave the rest."""
        if place == 0 and line.kind == "dynamic-update-slice":
            return 0.0
        if place == 0 and line.kind in ("slice", "dynamic-slice"):
            return _size(line)
        if line.kind == "fusion":
            body = self._body(line)
            own = [k for k, v in body.items() if (v.kind, v.arguments) == ("parameter", str(place))]
            return self._used(body, own[0])
        return math.inf

    def _used(self, body: Computation, name: str) -> float:
        uses = [
            self._used(body, user) if line.kind == "bitcast" else self._read(line, place)
            for user, line in body.items()
            for place, operand in enumerate(line.operands)
            if operand == name
        ]
        return sum(uses) if uses else math.inf  # it is the result

    def _untouched(self, line: Instruction) -> float:
        """Bytes of a result in HBM that an update in place leaves as they are."""
        if line.kind == "fusion":
            return sum(map(self._untouched, self._body(line).values()))
        if line.kind == "dynamic-update-slice":
            return _size(line) - _size(self.program.all[line.operands[1]])
        return 0.0

    def _body(self, fusion: Instruction) -> Computation:
        return self.program.computations[self.program.called(fusion)[0]]


def _size(line: Instruction) -> float:
    return sum(array.bytes for array in line.arrays)


def _in_hbm(arrays: list[Array]) -> float:
    return sum(array.bytes for array in arrays if array.in_hbm)
