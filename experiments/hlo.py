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
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\(([^)]*)(.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_CONDITION = re.compile(r"condition=%([\w.-]+)")
_NAME = re.compile(r"%([\w.-]+)")
_BITS = {"pred": 8}  # of an entry; others have their bits in their names
_COLLECTIVES = {
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
}
# These name arrays that lie somewhere already, and of custom calls those that make room for some.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_ROOM = 'custom_call_target="AllocateBuffer"'


class Array(NamedTuple):
    """An array of a program, and whether it lies in HBM."""

    bytes: float
    in_hbm: bool


class Instruction(NamedTuple):
    """One line of a compiled program."""

    kind: str
    arrays: list[Array]  # its result
    arguments: str
    operands: list[str]
    rest: str


Computation = dict[str, Instruction]


class Program:
    """A compiled program's text.

    Loops that end by what they compute run for so many `turns`. Of a conditional the `branch` that
    moves least runs, as between two choices of a mask; or with `max` that which moves most.
    """

    def __init__(self, text: str, turns: int = 1, branch: Callable = min):
        self.turns, self.branch = turns, branch
        self.computations: dict[str, Computation] = {}
        name = ""
        for line in text.splitlines():
            if opened := _COMPUTATION.match(line):
                name = "" if line.startswith("ENTRY") else opened[1]
                self.computations[name] = {}
            elif found := _INSTRUCTION.match(line):
                own, result, kind, arguments, rest = found.groups()
                self.computations[name][own] = Instruction(
                    kind, _arrays(result), arguments, _NAME.findall(arguments), rest
                )
        # XLA gives each instruction of a program a name of its own.
        self.all = {k: v for body in self.computations.values() for k, v in body.items()}

    def traffic(self, computation: str = "") -> float:
        """Bytes between HBM and the chip in one run."""
        return sum(map(self._moved, self.computations[computation].values()))

    def _moved(self, line: Instruction) -> float:
        if line.kind in _FREE or line.kind.endswith("-done") or _ROOM in line.rest:
            return 0.0
        if line.kind == "conditional":
            return self.branch(map(self.traffic, self._called(line)))
        if line.kind == "while":
            return self._turns(line) * sum(map(self.traffic, self._called(line)))
        if line.kind == "call":
            return sum(map(self.traffic, self._called(line)))
        if line.kind.endswith("-start"):  # a copy of an array or of its part, from and to
            ends = line.arrays[:2]
            return min(end.bytes for end in ends) * sum(end.in_hbm for end in ends)
        read = sum(
            min(self._read(line, place), _in_hbm(self.all[name].arrays))
            for place, name in enumerate(line.operands)
        )
        return read + max(_in_hbm(line.arrays) - self._untouched(line), 0.0)

    def collectives(self, computation: str = "") -> Iterator[tuple[str, float, int]]:
        """Of each collective its name, the bytes of its largest array on a chip, and its runs."""
        for line in self.computations[computation].values():
            name = line.kind.removesuffix("-start")
            if name in _COLLECTIVES:
                yield name, max((array.bytes for array in line.arrays), default=0.0), 1
            turns = self._turns(line) if line.kind == "while" else 1
            for called in self._called(line):
                for name, size, runs in self.collectives(called):
                    yield name, size, turns * runs

    def _called(self, line: Instruction) -> list[str]:
        return [name for name in _NAME.findall(line.rest) if name in self.computations]

    def _turns(self, loop: Instruction) -> int:
        """Of a loop from zero whose condition does nothing but compare with a constant, that."""
        condition = self.computations[_CONDITION.findall(loop.rest)[0]].values()
        limits = [line.arguments for line in condition if line.kind == "constant"]
        work = [line.rest for line in condition if line.kind not in _FREE]
        counted = len(limits) == len(work) == 1 and "direction=LT" in work[0]
        return int(limits[0]) if counted else self.turns

    def _read(self, line: Instruction, place: int) -> float:
        """Bytes of an operand that are read at most: slices and updates in place leave the rest."""
        if place == 0 and line.kind == "dynamic-update-slice":
            return 0.0
        if place == 0 and line.kind in ("slice", "dynamic-slice"):
            return _size(line)
        if line.kind == "fusion":
            body = self.computations[self._called(line)[0]]
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
            body = self.computations[self._called(line)[0]]
            return sum(map(self._untouched, body.values()))
        if line.kind == "dynamic-update-slice":
            return _size(line) - _size(self.all[line.operands[1]])
        return 0.0


def _arrays(text: str) -> list[Array]:
    """The arrays of a shape; the memory of S(n), n > 0, is the chip's own."""
    return [
        Array(_bytes(kind, shape), "S(" not in layout)
        for kind, shape, layout in _ARRAY.findall(text)
    ]


def _bytes(kind: str, shape: str) -> float:
    bits = _BITS.get(kind) or int(re.sub(r"\D", "", kind) or 0)
    return math.prod(int(size) for size in shape.split(",") if size) * bits / 8


def _size(line: Instruction) -> float:
    return sum(array.bytes for array in line.arrays)


def _in_hbm(arrays: list[Array]) -> float:
    return sum(array.bytes for array in arrays if array.in_hbm)
